"""What the system refuses is said in one line that names the file; what is our own mistake keeps its stack trace."""

import errno
import os
from pathlib import Path

import pytest

from carblib.base.errors import CarbError, Interrupted, one_line, refusals


def refuse(number, name="/data/a.png"):
    raise OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "permission denied; change its permissions"),
        (errno.ENOSPC, "no space left on device; free some space"),
        (errno.ELOOP, "symbolic links; a link in it leads back to itself"),
        (errno.ENOTDIR, "not a directory; check the path"),
    ],
)
def test_a_refused_file_is_one_line(number, words):
    with pytest.raises(CarbError, match="^/data/a.png: ") as error, refusals():
        refuse(number)
    assert words in str(error.value)


def test_what_names_no_file_keeps_its_trace():
    for error in (OSError(errno.EIO, "broken"), ValueError("/data/a.png")):
        with pytest.raises(type(error)), refusals():
            raise error


def test_refusals_serve_as_a_decorator():
    @refusals()
    def read(path: Path) -> str:
        return refuse(errno.EACCES, str(path))

    for _ in range(2):
        with pytest.raises(CarbError, match="^/x/y: permission denied;"):
            read(Path("/x/y"))


def test_one_line_of_any_error():
    assert one_line(CarbError("a:\n b")) == "a: b"
    assert one_line(ValueError("two\n  lines")) == "ValueError: two lines"
    assert one_line(FileNotFoundError(errno.ENOENT, "No such file", "/x")) == "/x: no such file; check the path"


def test_an_interrupted_training_shows_one_word_in_a_notebook(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    shell.user_ns["Interrupted"] = Interrupted
    shell.run_cell("print('stopped at iteration 3')\nraise Interrupted")
    said = capsys.readouterr()
    assert (said.out + said.err).splitlines() == ["stopped at iteration 3", "interrupted"]
