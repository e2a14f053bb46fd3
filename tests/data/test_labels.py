"""Image-level labels: derived from masks, read back in any order, and the official pickles without running them."""

import dataclasses
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import trees
from commands import carb
from PIL import Image
from places import CAMVID_ROOT
from small import small_params

from carblib.base.errors import CarbError
from carblib.classes import CAMVID, class_set
from carblib.data.labels import (
    add_labels,
    convert_official,
    derive_labels,
    ensure_labels,
    labels_of,
    labels_path,
    note_unlabelled,
    read_labels,
    training_labels,
    write_labels,
)
from carblib.data.npy_labels import read_npy_labels
from carblib.data.readers import open_split
from carblib.run.status import STALE, results_status

THREE = class_set(["road", "car", "sky"])
NAMES = ["a", "b"]
GOOD = "name,road,car,sky\na,1,0,1\nb,0,1,0\n"


class FakeSplit:
    """Masks in memory; None stands for an image without a mask."""

    name, class_set, mask_note, left_out = "train", THREE, "looked for nothing", {}

    def __init__(self, masks):
        self.masks = masks
        self.names = [f"i{i}" for i in range(len(masks))]
        self.mask_paths = [None] * len(masks)  # no file to be known by its content
        self.has_masks = any(mask is not None for mask in masks)

    def __len__(self):
        return len(self.masks)

    def image_path(self, i):
        return Path(f"/data/{self.names[i]}.png")

    def mask(self, i):
        if self.masks[i] is None:
            raise CarbError(f"{self.image_path(i)}: has no mask")
        return np.array(self.masks[i], np.uint8)


def message(call):
    with pytest.raises(CarbError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def home(tmp_path, monkeypatch, **keys):
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    return small_params(classes=[{"name": n} for n in THREE.names], **keys)


def test_labels_of_a_mask_are_its_classes():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.choice([0, 2, 5, 10, 255], (7, 9)).astype(np.uint8)
        expected = [bool((mask == c).any()) for c in range(11)]
        assert labels_of(mask, 11).tolist() == expected
    assert not labels_of(np.full((3, 3), 255, np.uint8), 11).any()


def test_derive_write_read(tmp_path):
    split = FakeSplit([[[0, 255], [2, 2]], [[1, 1], [1, 1]]])
    labels = derive_labels(split)
    assert {name: row.tolist() for name, row in labels.items()} == {"i0": [1, 0, 1], "i1": [0, 1, 0]}
    write_labels(tmp_path / "l.csv", labels, THREE)
    assert (tmp_path / "l.csv").read_text() == "name,road,car,sky\ni0,1,0,1\ni1,0,1,0\n"
    read = read_labels(tmp_path / "l.csv", THREE, ["i1", "i0"])
    assert read.dtype == bool and read.tolist() == [[0, 1, 0], [1, 0, 1]]
    assert derive_labels(FakeSplit([[[255, 255]], [[1, 1]]]))["i0"].tolist() == [0, 0, 0], "void throughout"
    assert [*derive_labels(split, ["i1"])] == ["i1"]
    assert "has no mask" in message(lambda: derive_labels(FakeSplit([[[0]], None])))


def test_columns_in_any_order_and_a_spreadsheets_mark(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("\ufeffsky, car,name,road\r\n1,0,a,1\r\n0,1,b,0\r\n\r\n", "utf-8")
    assert read_labels(path, THREE, NAMES).tolist() == [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no column 'name'"]),
        ("name|road|car|sky\na|1|0|1\n", ["no column 'name' among name|road|car|sky", "name,road,car,sky"]),
        (GOOD.replace("car", "cars"), ["no column 'car'"]),
        (GOOD.replace("name,", "name,rood,"), ["'rood' is no class", "did you mean 'road'?"]),
        (GOOD.replace("name,road", "name,road,road"), ["'road'", "twice"]),
        (GOOD.replace("b,0", "c,0"), ["line 3", "no image 'c'"]),
        (GOOD + "a,1,1,1\n", ["line 4", "'a' is given twice"]),
        (GOOD.replace("a,1", "a,2"), ["line 2", "'2' for class 'road'", "write 0 or 1"]),
        (GOOD.replace("a,1", "a,?"), ["line 2", "'?' for class 'road'"]),
        ("name,road,car,sky\na,0,0,0\nb,0,0,0\n", ["no image holds a class", "write 1 for each class"]),
        (GOOD.replace("b,0,1,0", "b,0,1"), ["line 3", "3 columns"]),
        (GOOD.replace("b,0,1,0\n", ""), ["no line for image 'b'", "(1 missing)"]),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, words):
    path = tmp_path / "l.csv"
    path.write_text(text)
    said = message(lambda: read_labels(path, THREE, NAMES))
    assert said.startswith(str(path))
    for word in words:
        assert word in said


def test_a_short_row_is_named_where_rows_are_added_too(tmp_path, monkeypatch):
    (tmp_path / "l.csv").write_text("road,car,sky,name\n1,0,1,a\n0,1\n")
    params = home(tmp_path, monkeypatch, labels="l.csv")
    assert "l.csv, line 3: 2 columns under a header of 4" in message(lambda: add_labels(params, FakeSplit([None])))


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    assert "carb labels makes it" in message(lambda: read_labels(tmp_path / "l.csv", THREE, NAMES))
    (tmp_path / "l.csv").write_bytes(b"name,road\xff")
    assert "UTF-8" in message(lambda: read_labels(tmp_path / "l.csv", THREE, NAMES))


def test_labels_are_derived_once(tmp_path, monkeypatch, capsys):
    params = home(tmp_path, monkeypatch)
    for name, mask in {"i0": [[0, 1]], "i1": [[2, 2]]}.items():
        trees.photo(tmp_path / "own" / "train" / f"{name}.png", 0, (1, 2))
        trees.save(tmp_path / "own" / "masks" / f"{name}.png", np.uint8(mask))
    own = {"dataset": "folder", "root": str(tmp_path / "own"), "classes": [*THREE.names]}
    params = params.updated(**own)
    split = open_split(params, "train")
    path = ensure_labels(params, split)
    assert path == tmp_path / "runs/demo/labels/train.csv" == labels_path(params, "train")
    blind = FakeSplit([None, None])
    before = path.stat().st_mtime_ns
    assert ensure_labels(params, blind) == path, "labels go on without the masks they were derived from"
    split = dataclasses.replace(split, decode=None)  # whoever reads a mask again fails
    assert ensure_labels(params, split) == path == ensure_labels(params.updated(root="data/other"), split)
    assert path.stat().st_mtime_ns == before and not capsys.readouterr().out
    assert training_labels(params, blind).tolist() == [[1, 1, 0], [0, 0, 1]]


def test_an_image_without_any_class_stays_and_is_named(tmp_path, capsys):
    path = tmp_path / "l.csv"
    path.write_text(GOOD.replace("b,0,1,0", "b,0,0,0"))
    labels = read_labels(path, THREE, NAMES)
    assert labels.tolist() == [[1, 0, 1], [0, 0, 0]]
    note_unlabelled(labels, NAMES)
    assert capsys.readouterr().out == "1 of 2 images hold no class and teach nothing: b\n"
    note_unlabelled(np.zeros((5, 3), bool), [*"vwxyz"])
    assert capsys.readouterr().out == "5 of 5 images hold no class and teach nothing: v, w, x …\n"
    note_unlabelled(labels[:1], NAMES[:1])
    assert not capsys.readouterr().out


def test_labels_of_the_users_own(tmp_path, monkeypatch):
    params = home(tmp_path, monkeypatch, labels="mine.csv")
    split = FakeSplit([None, None])
    assert "`labels` names it" in message(lambda: ensure_labels(params, split))
    (tmp_path / "mine.csv").write_text("name,road,car,sky\ni0,1,0,0\ni1,0,1,1\n")
    assert training_labels(params, split).tolist() == [[1, 0, 0], [0, 1, 1]]
    assert labels_path(params, "val") == tmp_path / "runs/demo/labels/val.csv"
    assert os.listdir(tmp_path) == ["mine.csv"]


def test_without_labels_and_masks(tmp_path, monkeypatch):
    params = home(tmp_path, monkeypatch)
    said = message(lambda: ensure_labels(params, FakeSplit([None])))
    assert "gate: none" in said and "--split train --blank" in said and "looked for nothing" in said
    assert training_labels(params.updated(gate="none"), FakeSplit([None])).tolist() == [[1, 1, 1]]


# --- the official pickles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64", "bool"])
def test_an_official_dictionary_is_converted(tmp_path, dtype):
    rng = np.random.default_rng(1)
    rows = {f"city/{i}_leftImg8bit.png": (rng.random(3) > 0.4).astype(dtype) for i in range(9)}
    rows["city/0_leftImg8bit.png"][:] = 1
    for row in rows.values():
        row[0] = 1
    np.save(tmp_path / "labels.npy", rows)
    read = convert_official(tmp_path / "labels.npy", THREE)
    assert {name: row.tolist() for name, row in read.items()} == {n: r.astype(bool).tolist() for n, r in rows.items()}
    matched = convert_official(tmp_path / "labels.npy", THREE, [f"{i}" for i in range(9)])
    np.testing.assert_array_equal(matched["3"], rows["city/3_leftImg8bit.png"].astype(bool))
    write_labels(tmp_path / "l.csv", matched, THREE)
    assert read_labels(tmp_path / "l.csv", THREE, sorted(matched)).shape == (9, 3)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_pickle_protocol_of_an_array(tmp_path, protocol):
    content = np.empty((), object)
    content[()] = {"a": np.array([[1, 0, 1.0]], order="F"), "b": [np.float32(0), np.float32(1), 0]}
    with open(tmp_path / "l.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(content, file, protocol)
    if protocol == 5:  # NumPy itself never writes such files, and its way of doing so is not admitted
        message(lambda: convert_official(tmp_path / "l.npy", THREE))
        return
    read = convert_official(tmp_path / "l.npy", THREE)
    assert read["a"].tolist() == [1, 0, 1] and read["b"].tolist() == [0, 1, 0]


def test_memory_order_is_kept(tmp_path):
    table = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / "l.npy", {"a": table})
    np.testing.assert_array_equal(read_npy_labels(tmp_path / "l.npy")["a"], table)


def test_a_plain_array_needs_names(tmp_path):
    np.save(tmp_path / "l.npy", np.array([[1, 0, 1], [0, 1, 0]]))
    assert convert_official(tmp_path / "l.npy", THREE, NAMES)["b"].tolist() == [0, 1, 0]
    assert "does not fit" in message(lambda: convert_official(tmp_path / "l.npy", THREE))
    assert "does not fit" in message(lambda: convert_official(tmp_path / "l.npy", THREE, ["a"]))


def test_numbers_of_another_byte_order_are_refused_and_not_misread(tmp_path):
    np.save(tmp_path / "l.npy", {"a": np.array([1, 0, 1], ">f4")})
    assert "not 0 and 1" in message(lambda: convert_official(tmp_path / "l.npy", THREE))


@pytest.mark.parametrize(
    "state",
    [
        (1, (9,), np.dtype("O"), False, [1]),  # NumPy itself would read beyond the list
        (1, (-1, -1), np.dtype("O"), False, [1]),
        (1, (9,), np.dtype("f4"), False, b"1234"),
        (1, (1,), np.dtype("O"), False, b"12345678"),
        (1, (1,), np.dtype("f4,O"), False, b"123456789012"),
    ],
)
def test_an_array_whose_state_does_not_fit_is_refused(tmp_path, state):
    class Forged:
        def __reduce__(self):
            return np.zeros(0).__reduce__()[0], (np.ndarray, (2**40,), b"b"), state

    np.save(tmp_path / "l.npy", np.array({"a": Forged()}, dtype=object))
    assert "not a safe .npy file" in message(lambda: read_npy_labels(tmp_path / "l.npy"))


class Malicious:
    def __init__(self, call, *arguments):
        self.what = call, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize(
    "evil",
    [
        Malicious(os.system, "touch pwned"),
        Malicious(eval, "open('pwned', 'w')"),
        Malicious(getattr, "a", "b"),
        Malicious(np.load, "x"),
        Malicious(subprocess.Popen, "touch pwned", -1, None),
        Path("x"),
    ],
)
def test_a_malicious_file_is_refused_and_never_run(tmp_path, monkeypatch, evil):
    monkeypatch.chdir(tmp_path)
    np.save("l.npy", np.array({"a": evil}, dtype=object))
    assert "l.npy: not a safe .npy file" in message(lambda: convert_official("l.npy", THREE))
    assert not Path("pwned").exists()


def test_a_codec_that_unpacks_is_refused(tmp_path):
    import codecs

    np.save(tmp_path / "l.npy", np.array({"a": Malicious(codecs.encode, "x", "zlib")}, dtype=object))
    assert "not a safe" in message(lambda: read_npy_labels(tmp_path / "l.npy"))


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(10, 100000000)"])
def test_a_header_that_announces_more_than_there_is_costs_no_memory(tmp_path, shape):
    np.save(tmp_path / "l.npy", np.zeros(3, np.uint8))
    header = (tmp_path / "l.npy").read_bytes()
    grown = header.replace(b"(3,), }", f"{shape}, }}".encode()).ljust(128)
    (tmp_path / "l.npy").write_bytes(grown)
    assert "announces an array" in message(lambda: read_npy_labels(tmp_path / "l.npy"))


def test_rows_that_make_no_array_or_hold_themselves_are_refused(tmp_path):
    ring = []
    ring.append(ring)
    for content in ({"a": [[1, 0], [1]]}, {"a": ring}):
        with open(tmp_path / "l.npy", "wb") as file:
            np.lib.format.write_array(file, np.array(content, dtype=object), allow_pickle=True)
        assert "not a safe .npy file" in message(lambda: read_npy_labels(tmp_path / "l.npy"))
    (tmp_path / "l.npy").write_bytes(b"")
    os.truncate(tmp_path / "l.npy", 2**28 + 1)  # a sparse file
    assert "larger than any" in message(lambda: read_npy_labels(tmp_path / "l.npy"))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "l.npy"
    assert "no such file" in message(lambda: convert_official(path, THREE))
    np.save(path, {"a": np.array([1.0, 0, 1])})
    whole = path.read_bytes()
    for end in (len(whole) - 9, len(whole) // 2, 8, 0):
        path.write_bytes(whole[:end])
        assert str(path) in message(lambda: convert_official(path, THREE))
    path.write_bytes(pickle.dumps({"a": 1}))
    message(lambda: convert_official(path, THREE))
    for content, word in [
        ({"a": np.array([1.0, 0])}, "2 labels"),
        ({"a": np.array([0.5, 0, 1])}, "not 0 and 1"),
        ({"a": np.array([0, 0, 0])}, "at least one"),
        ({"a": "text"}, ""),
        ([1, 2], "neither"),
        ({"x/a.png": np.ones(3), "y/a.png": np.ones(3)}, "differ only"),
        ({"b": np.ones(3)}, "no labels for image 'a'"),
        ({"a.png": np.ones(3), "b/a.jpg": np.zeros(3), "c/a.bmp": np.ones(3), "d/a": np.ones(2)}, None),
    ]:
        if word is None:  # the nearest form of the name decides, and other images' rows are not looked at
            np.save(path, np.array(content, dtype=object))
            assert convert_official(path, THREE, ["a"])["a"].tolist() == [1, 1, 1]
            continue
        np.save(path, np.array(content, dtype=object))
        assert word in message(lambda: convert_official(path, THREE, ["a"]))


def test_the_command_derives_and_converts(tmp_path, monkeypatch, capsys):
    for split, value in (("train", 3), ("val", 8)):
        (tmp_path / f"data/{split}").mkdir(parents=True)
        (tmp_path / f"data/{split}annot").mkdir()
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / f"data/{split}/x.png")
        Image.fromarray(np.full((6, 8), value, np.uint8)).save(tmp_path / f"data/{split}annot/x.png")
    (tmp_path / "p.yaml").write_text("run: t\ndataset: camvid\nclasses: camvid\nroot: data\n")
    np.save(tmp_path / "v.npy", {"x": np.eye(11)[5]})

    def command(*arguments):
        return carb("labels", tmp_path / "p.yaml", *arguments)

    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    assert command() == 0
    assert "1 images, on average 1.0 of 11 classes" in capsys.readouterr().out
    assert read_labels(tmp_path / "runs/t/labels/train.csv", CAMVID, ["x"])[0].nonzero()[0].tolist() == [3]
    assert command("--split", "val", "--from-npy", str(tmp_path / "v.npy")) == 0
    assert read_labels(tmp_path / "runs/t/labels/val.csv", CAMVID, ["x"])[0].nonzero()[0].tolist() == [5]
    assert "is there already" in message(lambda: command("--split", "val", "--from-npy", str(tmp_path / "v.npy")))
    assert "did you mean 'lr'?" in message(lambda: command("-p", "lrr", "3"))


def test_rows_of_other_images_do_no_harm(tmp_path):
    path = tmp_path / "l.npy"
    rows = {"train/a.png": np.array([1, 0, 0]), "val/nothing.png": np.zeros(3), "val/odd.png": np.array([0.5, 0, 1])}
    np.save(path, rows)
    assert {k: v.tolist() for k, v in convert_official(path, THREE, ["a"]).items()} == {"a": [1, 0, 0]}
    assert "'val/nothing.png' are not 0 and 1" in message(lambda: convert_official(path, THREE, ["a", "nothing"]))
    assert "'val/nothing.png' are not 0 and 1" in message(lambda: convert_official(path, THREE))


def test_names_with_dots_are_not_cut(tmp_path):
    path = tmp_path / "l.npy"
    np.save(path, {"a.001": np.array([1, 0, 0]), "a.002": np.array([0, 1, 0]), "x/a.003.PNG": np.array([0, 0, 1])})
    read = convert_official(path, THREE, ["a.003", "a.002", "a.001"])
    assert [read[name].tolist() for name in ("a.001", "a.002", "a.003")] == np.eye(3).tolist()
    assert "no labels for image 'a'" in message(lambda: convert_official(path, THREE, ["a"]))


def test_a_blank_file_is_written_once_and_must_be_filled_in(tmp_path, monkeypatch, capsys):
    for name in ("b", "a"):
        (tmp_path / "data/train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / f"data/train/{name}.jpg")
    (tmp_path / "p.yaml").write_text("run: t\ndataset: folder\nroot: data\nclasses: [{name: road}, {name: car}]\n")
    command = ("labels", tmp_path / "p.yaml")
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    path = tmp_path / "runs/t/labels/train.csv"
    path.parent.mkdir(parents=True)
    path.with_suffix(".json").write_text('{"root": "of labels that were deleted"}')
    assert carb(*command, "--blank") == 0 and f"{path}: 2 images" in capsys.readouterr().out
    assert path.read_text() == "name,road,car\na,0,0\nb,0,0\n"
    assert "no image holds a class; write 1 for each class" in message(lambda: carb(*command))
    path.write_text("name,road,car\na,0,1\nb,0,0\n")
    assert "is there already; move it elsewhere" in message(lambda: carb(*command, "--blank"))
    assert path.read_text() == "name,road,car\na,0,1\nb,0,0\n"
    assert carb(*command) == 0 and "1 of 2 images hold no class and teach nothing: b" in capsys.readouterr().out
    path.write_text("name,road,car\na,0,1\nb,1,0\n")
    assert carb(*command) == 0 and "2 images, on average 1.0 of 2 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "why", "adds"),
    [
        ("name,road,car\na,0,0\nb,0,0\n", "no image holds a class; write 1 for each class an image holds", False),
        ("name,road,car\na,0,1\nb,1,0\na,0,1\n", "line 4: image 'a' is given twice; remove one line", False),
        ("name,road,car\na,0,1\nb,1,0\nc,1,0\n", "line 4: no image 'c' in the split", False),
        ("name,road,cars\na,0,1\nb,1,0\n", "no column 'car' among name, road, cars", False),
        ("name,road,car\na,0,1\n", "no line for image 'b' (1 missing); write it, or append what is missing", True),
    ],
)
def test_status_says_what_is_wrong_with_a_file_and_what_mends_it(tmp_path, monkeypatch, text, why, adds):
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    for name in ("train/b", "train/a", "val/a", "test/a"):
        trees.photo(tmp_path / "data" / f"{name}.png", 0, (6, 8))
    params = small_params(run="t", dataset="folder", root="data", classes=["road", "car"])
    path = labels_path(params, "train")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    row = next(results_status(params))
    assert (row.what, row.state) == ("labels train", STALE)
    assert row.why.startswith(str(path)) and why in row.why and "carb labels" not in row.why
    assert row.command == (params.command("labels", "--add") if adds else "")


@pytest.mark.skipif(not CAMVID_ROOT.is_dir(), reason="no CamVid in ../shared/data/camvid or $CARB_CAMVID_ROOT")
def test_labels_of_real_camvid():
    split = open_split(small_params(dataset="camvid", root=str(CAMVID_ROOT.resolve())), "val")
    labels = derive_labels(split)
    assert len(labels) == 101
    for i in range(0, 101, 10):
        present = set(np.unique(np.array(Image.open(CAMVID_ROOT / "valannot" / f"{split.names[i]}.png"))).tolist())
        assert set(labels[split.names[i]].nonzero()[0].tolist()) == present - {11}
