"""Files are written whole or not at all, and every bad file is a one-line error that names it."""

import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from carblib import files
from carblib.errors import CarbError, cli, nearest

PALETTE = [(128, 128, 128), (128, 0, 0), (192, 192, 128)]


def fails(call, path, *words):
    with pytest.raises(CarbError) as error:
        call()
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message
    return message


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
    files.write_json(tmp_path / "a.json", {"käse": [1, None, 0.5]})
    assert files.read_json(tmp_path / "a.json") == {"käse": [1, None, 0.5]}
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()
    files.write_csv(tmp_path / "a.csv", [{"a": 1, "b": None}, {"a": 2, "c": "x,y"}])
    assert (tmp_path / "a.csv").read_text() == 'a,b,c\n1,,\n2,,"x,y"\n'
    (tmp_path / "a.json").write_text("{")
    fails(lambda: files.read_json(tmp_path / "a.json"), tmp_path / "a.json", "JSON")


@settings(max_examples=25, deadline=None)
@given(mask=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_an_index_png_keeps_every_value(mask, tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "a.png"
    files.write_index_png(path, mask, PALETTE)
    np.testing.assert_array_equal(files.read_mask_png(path), mask)


def test_an_index_png_shows_the_palette(tmp_path):
    files.write_index_png(tmp_path / "a.png", np.array([[0, 1], [2, 255]], np.uint8), PALETTE)
    assert files.read_image(tmp_path / "a.png").tolist() == [[[128] * 3, [128, 0, 0]], [[192, 192, 128], [0, 0, 0]]]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_masks_of_few_bits_keep_their_ids(tmp_path, depth):
    # A grey PNG of fewer than 8 bits, written by hand: Pillow reads such values stretched to 0–255.
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    values = list(range(2**depth))[:8]
    row = sum(v << (depth * (len(values) - 1 - i)) for i, v in enumerate(values)) << (-depth * len(values) % 8)
    data = bytes([0]) + row.to_bytes((depth * len(values) + 7) // 8, "big")
    header = struct.pack(">IIBBBBB", len(values), 1, depth, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    assert files.read_mask_png(tmp_path / "a.png").tolist() == [values]


def test_masks_of_16_bits_and_of_colours_are_raw(tmp_path):
    ids = np.array([[0, 26001, 65535]], np.uint16)
    Image.fromarray(ids).save(tmp_path / "ids.png")
    np.testing.assert_array_equal(files.read_mask_png(tmp_path / "ids.png"), ids)
    colours = np.array([[[1, 2, 3, 255]]], np.uint8)
    Image.fromarray(colours, "RGBA").save(tmp_path / "c.png")
    np.testing.assert_array_equal(files.read_mask_png(tmp_path / "c.png"), colours)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_damaged_images_are_clear_errors(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    assert files.read_image(path).shape == (40, 50, 3)
    whole = path.read_bytes()
    for end in (len(whole) // 2, 30, 0):
        path.write_bytes(whole[:end])
        fails(lambda: files.read_image(path), path, "truncated")
        fails(lambda: files.read_mask_png(path), path)
    path.write_text("not an image")
    fails(lambda: files.read_image(path), path, "not an image")
    fails(lambda: files.read_image(tmp_path / "none.png"), tmp_path / "none.png", "no such file")
    fails(lambda: files.read_image(tmp_path), tmp_path, "folder")


def test_a_jpeg_is_no_mask_and_16_bits_are_no_image(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.jpg")
    fails(lambda: files.read_mask_png(tmp_path / "a.jpg"), tmp_path / "a.jpg", "PNG")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "a.png")
    fails(lambda: files.read_image(tmp_path / "a.png"), tmp_path / "a.png", "8-bit")


def test_photographs_stand_upright(tmp_path):
    picture = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert files.read_image(tmp_path / "a.jpg").shape == (40, 20, 3)


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
    torch.save({"w": Malicious()}, path)
    fails(lambda: files.load_torch(path), path, "refused")
    path.write_bytes(pickle.dumps(Malicious()))
    fails(lambda: files.load_torch(path), path)
    path.write_text("hello")
    fails(lambda: files.load_torch(path), path)
    fails(lambda: files.load_torch(tmp_path / "b.pt"), tmp_path / "b.pt", "no such file")
    assert not (tmp_path / "pwned").exists()


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_errors_are_one_line_in_ipython_and_on_the_command_line(capsys):
    error = CarbError("a.png: broken\n  by its maker; copy it again")
    assert error._render_traceback_() == ["error: a.png: broken by its maker; copy it again"]

    def broken():
        raise error

    def stopped():
        raise KeyboardInterrupt

    for main, code in ((broken, 2), (stopped, 130), (lambda: None, 0), (lambda: 3, 3)):
        with pytest.raises(SystemExit) as ended:
            cli(main)
        assert ended.value.code == code
    assert "error: a.png: broken by its maker" in capsys.readouterr().err


def test_nearest():
    assert nearest("Lrr", ["lr", "crop"]) == "did you mean 'lr'?"
    assert nearest("zzz", ["lr", "crop"]) == ""
