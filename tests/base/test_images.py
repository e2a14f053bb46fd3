"""Pictures and masks as files: every value kept, photographs upright, what is damaged told in one line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from refusals import fails

from carblib.base import images

PALETTE = [(128, 128, 128), (128, 0, 0), (192, 192, 128)]


@settings(max_examples=25, deadline=None)
@given(mask=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_an_index_png_keeps_every_value(mask, tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "a.png"
    images.write_index_png(path, mask, PALETTE)
    np.testing.assert_array_equal(images.open_mask_png(path).values, mask)


def test_an_index_png_shows_the_palette(tmp_path):
    images.write_index_png(tmp_path / "a.png", np.array([[0, 1], [2, 255]], np.uint8), PALETTE)
    assert images.read_image(tmp_path / "a.png").tolist() == [[[128] * 3, [128, 0, 0]], [[192, 192, 128], [0, 0, 0]]]


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
    assert images.open_mask_png(tmp_path / "a.png").values.tolist() == [values]


def test_masks_of_16_bits_and_of_colours_are_raw(tmp_path):
    ids = np.array([[0, 26001, 65535]], np.uint16)
    Image.fromarray(ids).save(tmp_path / "ids.png")
    np.testing.assert_array_equal(images.open_mask_png(tmp_path / "ids.png").values, ids)
    colours = np.array([[[1, 2, 3, 255]]], np.uint8)
    Image.fromarray(colours, "RGBA").save(tmp_path / "c.png")
    np.testing.assert_array_equal(images.open_mask_png(tmp_path / "c.png").values, colours)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_damaged_images_are_clear_errors(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    assert images.read_image(path).shape == (40, 50, 3)
    whole = path.read_bytes()
    for end in (len(whole) // 2, 30, 0):
        path.write_bytes(whole[:end])
        fails(lambda: images.read_image(path), path, "truncated" if end else "empty")
        fails(lambda: images.open_mask_png(path), path)
    path.write_text("not an image")
    fails(lambda: images.read_image(path), path, "not an image")
    fails(lambda: images.read_image(tmp_path / "none.png"), tmp_path / "none.png", "no such file")
    fails(lambda: images.read_image(tmp_path), tmp_path, "folder")


def test_a_png_that_was_cut_between_two_chunks_is_not_whole(tmp_path):
    path = tmp_path / "a.png"
    images.write_index_png(path, np.zeros((4, 5), np.uint8), PALETTE)
    path.write_bytes(path.read_bytes()[:-12])
    for read in (images.read_image, images.open_mask_png, images.read_header):
        fails(lambda read=read: read(path), path, "its end is missing")


def test_a_jpeg_is_no_mask_and_16_bits_are_no_image(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.jpg")
    fails(lambda: images.open_mask_png(tmp_path / "a.jpg"), tmp_path / "a.jpg", "PNG")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "a.png")
    fails(lambda: images.read_image(tmp_path / "a.png"), tmp_path / "a.png", "8-bit")


def test_photographs_stand_upright(tmp_path):
    picture = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert images.read_image(tmp_path / "a.jpg").shape == (40, 20, 3)
