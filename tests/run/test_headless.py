"""Notebooks in real kernels: one that works, one that fails, one that is killed, one that is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from carblib.base.errors import CarbError
from carblib.run.headless import NotebookFailed, execute, render_html
from carblib.run.publish import kept

pytestmark = pytest.mark.slow


def write_notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_markdown_cell("# A title")]
    cells += [nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    # A kernel of that name in the user's own folder must not be taken.
    wrong = tmp_path / "jupyter" / "kernels" / "python3"
    wrong.mkdir(parents=True)
    (wrong / "kernel.json").write_text('{"argv": ["false"], "display_name": "wrong", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JPY_SESSION_NAME", "page.ipynb")
    return tmp_path


def test_runs_in_this_python_and_in_the_project(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import os, sys\nprint(x)\nprint(sys.executable)\nprint(os.getcwd(), 'JPY_SESSION_NAME' in os.environ)"
    picture = "from IPython.display import HTML, Image, display\ndisplay(Image(b'PNG', format='png', alt='a street'))"
    source = write_notebook(project / "in.ipynb", code, f"{picture}\nHTML('<b>bold</b>')")
    execute(source, project / "out" / "out.ipynb", {"x": 7})
    printed = capsys.readouterr().out
    assert f"    | 7\n    | {sys.executable}\n    | {project} False\n" in printed

    page = render_html(project / "out" / "out.ipynb").read_text()
    assert "A title" in page and "<b>bold</b>" in page
    assert "sys.executable" not in page, "code is left out"
    assert 'alt="a street"' in page
    assert 'src="http' not in page and "import(" not in page, "nothing is fetched from the network"

    text = kept(project / "out" / "out.ipynb")
    before, after = nbformat.read(source, 4), nbformat.reads(text, 4)
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert [cell.get("execution_count") for cell in after.cells] == [None, 1, 2, 3]
    assert "papermill" not in text
    assert after.cells[1].metadata.tags == ["parameters"] and "bold" in str(after.cells[-1].outputs)
    picture, bold = after.cells[-1].outputs
    assert picture.metadata["image/png"]["alt"] == "a street" and "a street" not in str(bold)
    nbformat.validate(after)


def test_failing_cell_is_named(project: Path) -> None:
    source = write_notebook(project / "in.ipynb", "ok = 1", "raise ValueError('two\\nlines')", "print('never')")
    with pytest.raises(NotebookFailed, match=r"cell \[4\] ValueError: two lines"):
        execute(source, project / "out.ipynb", {"x": 2})
    with pytest.raises(CarbError, match="holds an error"):
        kept(project / "out.ipynb")
    cells = nbformat.read(project / "out.ipynb", 4).cells
    assert "never" not in str(cells[-1].outputs)
    assert cells[0].source == "> **This run failed.** cell [4] ValueError: two lines"


def test_training_that_was_interrupted_is_no_failure(project: Path) -> None:
    source = write_notebook(project / "in.ipynb", "from carblib.base.errors import Interrupted\nraise Interrupted")
    with pytest.raises(KeyboardInterrupt):
        execute(source, project / "out.ipynb", {"x": 2})


def test_killed_kernel_is_a_failure(project: Path) -> None:
    source = write_notebook(project / "in.ipynb", "import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(NotebookFailed, match="Dead"):
        execute(source, project / "out.ipynb", {"x": 2})


def test_interrupt_lets_the_cell_clean_up(project: Path) -> None:
    cell = (
        "import os, time\ntry:\n    print('kernel', os.getpid(), flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5)\n    open('saved', 'w').close()\n    raise"
    )
    write_notebook(project / "in.ipynb", cell, "open('went_on', 'w').close()")
    program = (  # started from a background job, a process ignores Ctrl-C unless told otherwise
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\nfrom carblib.run import headless\n"
        "try:\n    headless.execute(Path('in.ipynb').absolute(), Path('out.ipynb').absolute(), {'x': 1})\n"
        "except KeyboardInterrupt:\n    raise SystemExit(130)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=project, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    kernel = 0
    for line in process.stdout:
        if "kernel" in line:
            kernel = int(line.split()[-1])
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(180) == 130
    assert (project / "saved").exists() and not (project / "went_on").exists()
    assert gone(kernel)


def gone(pid: int) -> bool:
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
