"""Labels as people write them: what spreadsheets make of a CSV, and a locale that knows no umlauts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import trees
from places import REPOSITORY
from small import small_params

from carblib.base.errors import CarbError
from carblib.classes import class_set
from carblib.data.labels import add_labels, read_labels
from carblib.data.readers import open_split

CLASSES = class_set(["Straße", "car", "sky"])
TRUTH = [[1, 0, 1], [0, 1, 0]]
PLAIN = "name,Straße,car,sky\na,1,0,1\nb,0,1,0\n"
SHEETS = {
    "excel": (PLAIN.replace(",", ";").replace("\n", "\r\n"), "cp1252"),
    "excel's UTF-8": (PLAIN.replace(",", ";").replace("\n", "\r\n"), "utf-8-sig"),
    "excel's text": (PLAIN.replace(",", "\t").replace("\n", "\r\n"), "utf-16"),
    "big-endian without a mark": (PLAIN, "utf-16-be"),
    "sep line": ("sep=;\r\n" + PLAIN.replace(",", ";"), "utf-8"),
    "words": ("name,Straße,car,sky\na,TRUE,False,yes\nb,no,X,FALSE\n", "utf-8"),
    "empty cells": ("name,Straße,car,sky\na,1,,1\nb,,x,\n", "utf-8"),
    "filled up": ("name,Straße,car,sky,,\n,,,,,\na,1,0,1,,\nb,0,1,0,,\n,,,,,\n", "utf-8"),
    "spaces, other order": (" sky , car, name ,Straße\n 1, 0 ,a, 1\n0 ,1, b,0\n", "utf-8"),
    "floats": ("name,Straße,car,sky\na,1.0,0.0,1.0\nb,0.0,1.0,0.0\n", "utf-8"),
    "quotes": ('"name";"Straße";"car";"sky"\n"a";"1";"0";"1"\n"b";"0";"1";"0"\n', "utf-8"),
    "old mac": (PLAIN.replace("\n", "\r"), "utf-8"),
}


@pytest.mark.parametrize("kind", SHEETS)
def test_what_spreadsheets_write_is_read(tmp_path, capsys, kind):
    text, encoding = SHEETS[kind]
    (tmp_path / "l.csv").write_bytes(text.encode(encoding))
    assert read_labels(tmp_path / "l.csv", CLASSES, ["a", "b"]).tolist() == TRUTH
    assert ("read as Windows-1252" in capsys.readouterr().out) == (encoding == "cp1252")


@pytest.mark.parametrize(
    ("text", "encoding", "words"),
    [
        (PLAIN.replace("1,0,1", "1,2,1"), "utf-16", "line 2: '2' for class 'car'; write 0 or 1"),
        ("sep=;\n" + PLAIN.replace(",", ";").replace("b;0", "b;WAHR"), "utf-8", "line 4: 'WAHR' for class 'Straße'"),
        (PLAIN.replace(",", ";").replace("Straße", "Strasse"), "cp1252", "no column 'Straße' among name, Strasse"),
        (PLAIN.replace("ß", "ø"), "cp1252", r"Windows-1252\): no column 'Straße' among name, Straøe"),
        ("name;Straße\n", "mbcs-broken", "not readable as text"),
        (PLAIN.replace("b,0,1,0", "b,0,1"), "utf-8", "line 3: 3 columns under a header of 4"),
    ],
)
def test_what_cannot_be_read_is_refused_by_cause(tmp_path, text, encoding, words):
    data = b"name,\x81\xff\n" if encoding == "mbcs-broken" else text.encode(encoding)
    (tmp_path / "l.csv").write_bytes(data)
    with pytest.raises(CarbError, match=words):
        read_labels(tmp_path / "l.csv", CLASSES, ["a", "b"])


@pytest.mark.parametrize("kind", ["excel", "excel's UTF-8", "excel's text"])
def test_rows_are_added_in_the_file_s_own_way(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    trees.write_folder(tmp_path / "data" / "train", ["a.png", "b.png", "c.png"])
    classes = [{"name": name} for name in CLASSES.names]
    run = small_params(dataset="folder", root=str(tmp_path / "data"), classes=classes, labels="mine.csv")
    text, encoding = SHEETS[kind]
    (tmp_path / "mine.csv").write_bytes(text.encode(encoding))
    split = open_split(run, "train")
    assert add_labels(run, split)[1] == 1
    delimiter = "\t" if kind == "excel's text" else ";"
    assert (tmp_path / "mine.csv").read_bytes().decode(encoding) == text + delimiter.join("c000") + "\r\n"
    assert read_labels(tmp_path / "mine.csv", CLASSES, split.names).tolist() == [*TRUTH, [0, 0, 0]]


def test_our_own_csvs_are_utf_8_whatever_the_locale(tmp_path):
    """Derives labels, trains for two validations and reads all of it back, in a locale of ASCII alone."""
    trees.write_folder(tmp_path / "data" / "train", ["a.png", "b.png"], tmp_path / "data" / "trainannot")
    trees.write_folder(tmp_path / "data" / "val", ["c.png"], tmp_path / "data" / "valannot")
    params = tmp_path / "p.yaml"
    params.write_text(
        f"base: {REPOSITORY}/params/demo.yaml\nrun: locale\ndataset: folder\nroot: {tmp_path}/data\n"
        "classes: [{name: Straße, words: road}, {name: 車, words: car}, sky]\n"
        "image_size: [32, 64]\ncrop: [32, 64]\npatch: [16, 32]\n"
        "iterations: 4\nwarmup: 2\nval_every: 2\nbatch_size: 1\ndevice: cpu\n",
        "utf-8",
    )
    script = (
        "import sys\n"
        "from carblib.__main__ import carb\n"
        "from carblib.run.command_line import run_and_exit\n"
        "for words in (['labels'], ['analyse'], ['train', '--variant', 'paper'], ['labels']):\n"
        "    try:\n"
        "        run_and_exit(carb, [words[0], sys.argv[1], *words[1:]])\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, words\n"
        "from carblib.params import load_params\n"
        "from carblib.results.saved import load_results\n"
        "params = load_params(sys.argv[1])\n"
        "names = set(load_results(params.run_dir, params).reliability['paper']['class'])\n"
        "assert {'Stra\\xdfe', '\\u8eca', 'sky'} <= names, ascii(names)\n"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["CARB_HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", script, str(params)], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    folder = tmp_path / "runs" / "locale"
    for name in ("labels/train.csv", "train/paper/reliability.csv"):
        text = (folder / name).read_text("utf-8")
        assert "Straße" in text and "車" in text
