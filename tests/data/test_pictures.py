"""Folders and lists as they come: nothing is left out without a word, and what can be read right is."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from carblib.base.errors import CarbError
from carblib.base.images import open_mask_png, read_header, read_image
from carblib.data.pictures import files_in, images_in, listed
from carblib.data.readers import open_split

WORDS = [{"name": word} for word in ("sky", "road", "tram")]


@pytest.fixture
def city(tmp_path):
    trees.write_cityscapes(tmp_path)
    return trees.params(tmp_path, "cityscapes", "cityscapes"), tmp_path


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("zurich", "gtFine/train: one file, zurich/zurich_000000_000019_gtFine_labelIds.png, of no image in"),
        ("aachen/aachen_000000_000019_leftImg8bit.png", "gtFine/train: one file, aachen/aachen_000000_000019"),
    ],
)
def test_a_city_or_frame_that_only_the_masks_have_is_told_once(city, gone, said, capsys):
    params, root = city
    path = root / "leftImg8bit" / "train" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for _ in range(2):
        open_split(params, "train")
    out = capsys.readouterr().out
    assert out.count("note: ") == 1 and said in out


def test_a_city_without_masks_is_an_error_when_they_are_asked_for(city):
    params, root = city
    shutil.rmtree(root / "gtFine" / "train" / "zurich")
    split = open_split(params, "train")
    assert len(split) == 3
    with pytest.raises(CarbError, match="zurich_000000_000019_leftImg8bit.png: has no mask; looked for"):
        split.mask(2)


def test_jpegs_among_cityscapes_pngs_are_read_and_other_names_told(city, capsys):
    params, root = city
    folder = root / "leftImg8bit" / "train" / "zurich"
    trees.photo(folder / "zurich_000001_000019_leftImg8bit.JPG", 1)
    trees.photo(folder / "zurich_000002_000019.png", 1)
    split = open_split(params, "train")
    assert "zurich_000001_000019" in split.names and len(split) == 4
    out = capsys.readouterr().out
    assert "one file, zurich/zurich_000002_000019.png, not read, for the name does not end in _leftImg8bit" in out
    shutil.copy(folder / "zurich_000000_000019_leftImg8bit.png", root / "leftImg8bit" / "train" / "aachen")
    with pytest.raises(CarbError, match="shares its name with aachen/zurich_000000_000019_leftImg8bit.png"):
        open_split(params, "train")


def test_masks_of_no_image_are_told_in_every_form(tmp_path, capsys):
    trees.write_segnet(tmp_path)
    (tmp_path / "train" / "0001TP_006690.png").unlink()
    open_split(trees.params(tmp_path, "camvid"), "train")
    assert "trainannot: one file, 0001TP_006690.png, of no image in" in capsys.readouterr().out
    trees.photo(tmp_path / "val" / "more" / "x.png", 0)
    open_split(trees.params(tmp_path, "camvid"), "val")
    assert "val: one file, more/x.png, not read; put them right into" in capsys.readouterr().out


def test_a_complete_tree_says_nothing(tmp_path, capsys):
    trees.write_cityscapes(tmp_path / "city")
    trees.write_camvid_original(tmp_path / "camvid")
    for split in ("train", "val", "test"):
        open_split(trees.params(tmp_path / "city", "cityscapes", "cityscapes"), split)
        open_split(trees.params(tmp_path / "camvid", "camvid"), split)
    assert capsys.readouterr().out == ""


def test_pictures_beside_the_folder_train_are_told(tmp_path, capsys):
    trees.write_folder(tmp_path / "train", ["a.png"])
    trees.write_folder(tmp_path, ["b.png", "c.png"])
    assert open_split(trees.params(tmp_path, "folder", WORDS), "train").names == ["a"]
    assert f"2 files, such as b.png, not read; put them right into {tmp_path}/train" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["masks", "deep/labels"])
def test_masks_among_the_images_are_no_images(tmp_path, folder):
    trees.write_folder(tmp_path / "train" / "images", ["a.jpg"], tmp_path / "train" / folder)
    with pytest.raises(CarbError, match=rf"train/{folder}: lies among the images .* move masks to .*/masks/train"):
        open_split(trees.params(tmp_path, "folder", WORDS), "train")


def test_camvid_frames_of_no_published_split_are_told(tmp_path, capsys):
    trees.write_camvid_original(tmp_path)
    trees.photo(tmp_path / "701_StillsRaw_full" / "IMG_0001.png", 0)
    assert len(open_split(trees.params(tmp_path, "camvid"), "train")) == 5
    said = capsys.readouterr().out
    assert "one file, 701_StillsRaw_full/IMG_0001.png, of no split by their names; list names in" in said


# --- lists ---------------------------------------------------------------------------------------------------------

IMAGES = {name: Path(name) for name in ("a", "b.1", "two words", unicodedata.normalize("NFC", "Straße é"))}
LINES = "# SegNet's\n\n/x/train/a.png /x/trainannot/a.png;\nb.1.PNG   \n\t\nC:\\x\\two words.jpg\nStraße é\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lists_as_any_editor_saves_them(tmp_path, encoding, ending):
    path = tmp_path / "train.txt"
    path.write_bytes(LINES.replace("\n", ending).encode(encoding))
    assert listed(path, IMAGES) == list(IMAGES)


def test_a_list_of_decomposed_letters_and_one_of_nothing_known(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(unicodedata.normalize("NFD", "Straße é\n"))
    assert listed(path, IMAGES) == ["Straße é"]
    path.write_text("a\n\nB.1.png\n")
    with pytest.raises(CarbError, match=r"train.txt: lists B.1.png, .* \(line 3\); did you mean 'b.1'"):
        listed(path, IMAGES)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CarbError, match="train.txt: not readable as text .*save it as UTF-8"):
        listed(path, IMAGES)


# --- files ---------------------------------------------------------------------------------------------------------


def test_names_are_alike_however_a_system_composes_accents(tmp_path):
    trees.write_folder(tmp_path / "train", [unicodedata.normalize("NFD", "é.png")])
    trees.write_folder(tmp_path / "other", ["é.png"], tmp_path / "trainannot")
    split = open_split(trees.params(tmp_path, "folder", WORDS), "train")
    assert split.names == ["é"] and split.mask(0).shape == trees.SIZE


def test_a_mask_whose_name_differs_in_case_is_named(tmp_path):
    trees.write_folder(tmp_path / "train", ["A.png", "b.png"])
    trees.write_folder(tmp_path / "other", ["a.png", "b.png"], tmp_path / "trainannot")
    with pytest.raises(CarbError, match=r"A.png: has no mask; .*one file, a.png, of no image"):
        open_split(trees.params(tmp_path, "folder", WORDS), "train").mask(0)


def test_hidden_files_and_circles_of_links_are_passed_by(tmp_path):
    trees.write_folder(tmp_path / "a", ["x.PNG", "._x.png", ".DS_Store.png"])
    trees.write_folder(tmp_path / "b", ["y.JPEG"])
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    assert sorted(images_in(tmp_path / "a", deep=True)) == ["to_b_y", "x"]
    assert len(files_in(tmp_path / "a", deep=True)) == 3


def test_names_that_are_no_text_are_refused(tmp_path):
    trees.photo(tmp_path / "x.png", 0).rename(os.fsdecode(bytes(tmp_path) + b"/\xe9.png"))
    with pytest.raises(CarbError, match="no UTF-8, or no letters; rename it") as caught:
        images_in(tmp_path)
    str(caught.value).encode()


@pytest.mark.parametrize("what", ["pipe", "nowhere", "folder"])
def test_what_is_no_file_is_said_at_once(tmp_path, what):
    path = tmp_path / "x.png"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere.png")
    said = {"pipe": "a pipe or device", "nowhere": "a link that leads nowhere", "folder": "is a folder"}[what]
    for read in (read_image, read_header, open_mask_png):
        with pytest.raises(CarbError, match=f"x.png: {said}"):
            read(path)


def _with_orientation(path: Path, said: int, how: str) -> Path:
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = said
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{said}"/></rdf:RDF></x:xmpmeta>'
    )
    if how == "exif":
        picture.save(path, exif=exif)
    elif path.suffix == ".png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        picture.save(path, pnginfo=info)
    else:
        picture.save(path, xmp=xmp.encode())
    return path


@pytest.mark.parametrize("how", ["exif", "xmp"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_images_are_turned_as_they_say_and_nonsense_turns_nothing(tmp_path, suffix, how):
    for said in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 99):
        path = _with_orientation(tmp_path / f"x.{suffix}", said, how)
        upright = (3, 2) if said in (5, 6, 7, 8) else (2, 3)
        assert read_header(path).upright == read_image(path).shape[:2] == upright, said


def test_tiffs_are_turned_as_they_say(tmp_path):
    for said in range(1, 9):
        tiff, png = (_with_orientation(tmp_path / f"x.{suffix}", said, "exif") for suffix in ("tif", "png"))
        np.testing.assert_array_equal(read_image(tiff), read_image(png))
        assert read_header(tiff).upright == read_image(tiff).shape[:2]


def test_masks_are_turned_as_images_are(tmp_path):
    for said in range(1, 9):
        path = _with_orientation(tmp_path / "x.png", said, "exif")
        np.testing.assert_array_equal(open_mask_png(path).values, read_image(path)[..., 0])
    assert open_mask_png(path).values.tolist() == [[80, 200], [40, 160], [0, 120]]  # 8: a quarter turn to the left


def test_a_broken_entry_of_exif_breaks_no_image(tmp_path):
    path = tmp_path / "x.jpg"
    Image.new("RGB", (3, 2)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9)
    assert read_header(path).upright == read_image(path).shape[:2] == (2, 3)


def test_a_mask_that_lies_on_its_side_is_to_be_turned(tmp_path):
    trees.photo(tmp_path / "train" / "a.png", 0, (4, 6))
    trees.save(tmp_path / "trainannot" / "a.png", np.zeros((6, 4), np.uint8))
    with pytest.raises(
        CarbError, match=re.escape("mask of 6×4 (H×W) for an image of 4×6; both must be of one size: the")
    ):
        open_split(trees.params(tmp_path, "folder", WORDS), "train").mask(0)


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_of_several_pictures_in_a_file_the_first_is_read_with_a_word(tmp_path, suffix, capsys):
    frames = [Image.new("RGB", (3, 2), (80 * i,) * 3) for i in range(3)]
    path = tmp_path / f"x.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert read_image(path).max() == 0
    assert capsys.readouterr().out == f"note: {path}: holds 3 pictures, the first is read\n"


def test_a_telephones_photo_with_its_preview_is_one_picture(tmp_path, capsys):
    frames = [Image.new("RGB", (3, 2), (80 * i,) * 3) for i in range(2)]
    frames[0].save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x.jpg").max() == 0 and capsys.readouterr().out == ""


def test_a_picture_too_large_for_memory_is_one_line(tmp_path):
    path = trees.save_grey(tmp_path / "x.png", np.zeros((1, 8)), 1)
    data = bytearray(path.read_bytes())
    data[16:24] = (30000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    for read in (read_image, read_header):
        with pytest.raises(CarbError, match="x.png: a picture of more than the 536 megapixels"):
            read(path)


@pytest.mark.parametrize("name", ["../data/train", "/train", "", ".", "a/b", ".hidden", "a\\b"])
def test_a_split_is_a_folder_right_in_the_root(tmp_path, name):
    trees.write_folder(tmp_path / "train", ["a.png"])
    with pytest.raises(CarbError, match=re.escape(f"split '{name}': no plain name of a folder")):
        open_split(trees.params(tmp_path, "folder", WORDS), name)
