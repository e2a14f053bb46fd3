"""Files are written whole or not at all, and every bad file is a one-line error that names it."""

import errno
import os
import pickle
import subprocess

import numpy as np
import pytest
import torch
from refusals import fails

from carblib.base import files, images
from carblib.base.errors import CarbError, nearest


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.atomic(path) as file:
        file.write(b"half")
        raise RuntimeError("interrupted")
    assert files.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_interrupted_writer_never_shows_a_partial_file(tmp_path):
    path = tmp_path / "sub" / "a.bin"
    with files.atomic(path) as file:
        file.write(b"x" * 1000)
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"x" * 1000


def test_an_unwritable_place_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    fails(lambda: files.write_text(tmp_path / "file" / "a.txt", "x"), tmp_path / "file", "cannot be written")


def test_json_and_csv_round_trip(tmp_path):
    rows = {"käse": [1, None, 0.5], os.fsdecode(b"caf\xe9"): "a path of no UTF-8"}
    files.write_json(tmp_path / "a.json", rows)
    assert files.read_json(tmp_path / "a.json") == rows
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()
    files.write_csv(tmp_path / "a.csv", [{"a": 1, "b": None}, {"a": 2, "c": "x,y"}])
    assert (tmp_path / "a.csv").read_text() == 'a,b,c\n1,,\n2,,"x,y"\n'
    (tmp_path / "a.json").write_text("{")
    fails(lambda: files.read_json(tmp_path / "a.json"), tmp_path / "a.json", "JSON")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_torch_files_are_tensors_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    files.save_torch(path, {"w": torch.arange(3), "step": 4})
    assert files.load_torch(path)["w"].tolist() == [0, 1, 2]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails(lambda: files.load_torch(path), path, "truncated")
    for zipped in (True, False):  # torch's form of today, and that of before 1.6
        torch.save({"w": Malicious()}, path, _use_new_zipfile_serialization=zipped)
        fails(lambda: files.load_torch(path), path, "refused")
    path.write_bytes(pickle.dumps(Malicious()))
    fails(lambda: files.load_torch(path), path)
    path.write_text("hello")
    fails(lambda: files.load_torch(path), path)
    said = fails(lambda: files.load_torch(tmp_path / "b.pt"), tmp_path / "b.pt")
    assert said.endswith("no such file; check the path"), "it may have come from a file or the command line"
    assert not (tmp_path / "pwned").exists()


SCALARS = [
    np.float64(0.01),
    np.float32(0.5),
    np.int64(-3),
    np.uint8(7),
    np.bool_(True),
    np.str_("Straße"),
    np.float16(2),
]


@pytest.mark.parametrize("form", ["today's", "before torch 1.6", "of NumPy 1"])
def test_numpy_s_scalars_are_read_as_plain_numbers(tmp_path, form):
    torch.save({"meta": SCALARS}, tmp_path / "a.pt", _use_new_zipfile_serialization=form == "today's")
    if form == "of NumPy 1":
        data = (tmp_path / "a.pt").read_bytes()
        (tmp_path / "a.pt").write_bytes(data.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    read = files.load_torch(tmp_path / "a.pt")["meta"]
    assert read == [value.item() for value in SCALARS]
    assert [type(value) for value in read] == [float, float, int, int, bool, str, float]


class Reduced:
    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


SCALAR = np.float64(1).__reduce__()[0]


@pytest.mark.parametrize(
    "value",
    [
        Reduced(SCALAR, (np.dtype("f8"), b"short")),
        Reduced(SCALAR, (np.dtype("O"), {})),
        Reduced(SCALAR, ("f8", b"12345678")),
        Reduced(np.dtype, ("O", False, True)),
        Reduced(np.dtype, ("U999999999", False, True)),
        np.zeros(3, object),
        np.dtype([("a", "O")]),
        np.datetime64("2024-01-01"),
    ],
)
def test_scalars_that_are_none_are_refused(tmp_path, value):
    torch.save({"meta": value}, tmp_path / "a.pt")
    fails(lambda: files.load_torch(tmp_path / "a.pt"), tmp_path / "a.pt", "refused")


def test_torch_s_long_explanations_are_cut(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": Malicious()}, path)
    said = fails(lambda: files.load_torch(path), path, "refused", "Python objects", "plain state dict")
    assert len(said) - len(str(path)) < 130 and "weights_only" not in said
    path.write_bytes(b"")
    fails(lambda: files.load_torch(path), path, "empty, 0 bytes", "copy it again")
    path.write_text("hello")
    assert "(" not in fails(lambda: files.load_torch(path), path, "no torch file").removeprefix(str(path))


class FullDisk:
    """A file on a disk that takes a few bytes and then no more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_full_disk_is_one_line_also_for_torch(tmp_path, monkeypatch, room):
    path, weights = tmp_path / "a.pt", {"w": torch.arange(3)}
    files.save_torch(path, weights)
    monkeypatch.setattr(files, "open", lambda *a: FullDisk(open(*a), room), raising=False)
    fails(lambda: files.save_torch(path, {"w": torch.zeros(1000)}), path, "cannot be written", "free space")
    assert files.load_torch(path)["w"].tolist() == [0, 1, 2] and os.listdir(tmp_path) == ["a.pt"]


def test_a_disk_that_is_really_full(tmp_path):
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        fails(lambda: files.save_torch(tmp_path / "a.pt", torch.zeros(100_000)), tmp_path / "a.pt", "No space left")
        assert not os.listdir(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.fixture
def closed(tmp_path):
    """A file nobody may read and one in a folder nobody may enter; root, whom nothing stops, becomes nobody."""
    (tmp_path / "folder").mkdir()
    found = [tmp_path / "a.pt", tmp_path / "folder" / "a.pt"]
    for path in found:
        torch.save({}, path)
    root = os.geteuid() == 0
    opened = [folder for folder in tmp_path.parents if root and folder.stat().st_mode & 0o005 != 0o005]
    modes = {folder: folder.stat().st_mode for folder in opened}
    for folder in (*opened, tmp_path):
        os.chmod(folder, 0o755)
    os.chmod(found[0], 0)
    os.chmod(tmp_path / "folder", 0)
    try:
        if root:
            as_nobody()
        yield found
    finally:
        if root:
            os.seteuid(0)
        os.chmod(tmp_path / "folder", 0o755)
        for folder, mode in modes.items():
            os.chmod(folder, mode)


def as_nobody():
    try:
        os.seteuid(65534)
    except OSError:  # a container whose root is root of nothing else
        pytest.skip("root cannot become nobody here")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are others here")
def test_what_may_not_be_read_is_not_called_damaged(closed):
    for path in closed:
        for read in (files.load_torch, images.read_image, images.open_mask_png, files.read_json, files.read_yaml):
            said = fails(lambda read=read, path=path: read(path), path, "permission denied", "change its permissions")
            assert "truncated" not in said and "delete" not in said


def test_a_link_to_itself_is_said(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    fails(lambda: images.read_image(tmp_path / "a.png"), tmp_path / "a.png", "link that leads nowhere")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"run: 2024-13-45", "month must be in 1..12"),
        (b"seed: !!int abc", "invalid literal"),
        (b"flip: !!bool maybe", "maybe"),
        (b"run: " + 3000 * b"[" + 3000 * b"]", "too deep"),
        (b"run: \xff\xfe", "not UTF-8 text (byte 5)"),
        (b"? [a]\n: 1", "line 1, column 3"),
        (b"lr: 1\nlr: 2", "'lr' is given twice at line 1"),
    ],
)
def test_impossible_yaml_names_its_file(tmp_path, content, words):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    fails(lambda: files.read_yaml(path), path, words)


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_errors_are_one_line_in_ipython():
    error = CarbError("a.png: broken\n  by its maker; copy it again")
    assert error._render_traceback_() == ["error: a.png: broken by its maker; copy it again"]


def test_nearest():
    assert nearest("Lrr", ["lr", "crop"]) == "did you mean 'lr'?"
    assert nearest("zzz", ["lr", "crop"]) == ""


def test_a_flipped_bit_in_weights_is_noticed_or_harmless(tmp_path) -> None:
    path = tmp_path / "w.pt"
    files.save_torch(path, {"a": torch.arange(5000.0), "b": [1, "x"], "c": torch.ones(3, 4, dtype=torch.bfloat16)})
    whole, expected, noticed = path.read_bytes(), files.load_torch(path), 0
    for place in np.random.default_rng(0).integers(0, len(whole) * 8, 100):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = files.load_torch(path)
        except CarbError as error:
            assert str(path) in str(error)
            noticed += 1
        else:
            same = found["b"] == expected["b"] and all(torch.equal(found[key], expected[key]) for key in "ac")
            assert same, "a bit that nothing depends on, or else silent"
    assert noticed > 80
