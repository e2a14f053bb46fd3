"""Figures of runs with nothing to show, of classes of any name, under any matplotlibrc; none stops the others."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import yaml
from fake_run import make_run
from matplotlib.text import Text
from PIL import Image

from carblib.base.errors import CarbError
from carblib.base.files import read_json, read_rows, write_json, write_text
from carblib.classes import CAMVID, class_set
from carblib.figures import draw
from carblib.figures.style import new_figure, paper_style, rendered
from carblib.figures.table import FIGURES, TABLE
from carblib.results.saved import Missing, load_results
from carblib.results.tables import write_tables
from carblib.small_objects import join, match_objects, object_table

DRAFT = 40  # dpi: all is drawn and laid out as in the files, in a tenth of the pixels
NOTHING = [None] * 11
ODD = ["$x_1$", "a & b", "100 %", "<b>x</b>", "#1", "naïve", "знак", "σ^2", "back\\slash", "{}", "$"]


def changed(path: Path, change: Callable[[dict], None]) -> None:
    content = read_json(path)
    change(content)
    write_json(path, content)


def own_classes(run: Path, names: list[str], small: tuple[int, ...]) -> None:
    params = yaml.safe_load((run / "params.yaml").read_text("utf-8"))
    params["classes"] = [{"name": name, "small": c in small} for c, name in enumerate(names)]
    write_text(run / "params.yaml", yaml.safe_dump(params))


def bare_run(root: Path, small: tuple[int, ...], nothing: bool) -> Path:
    """A run in which no small object is, and with `nothing` no class at all: all masks are void."""
    run = make_run(root)
    own_classes(run, list(CAMVID.names), small)
    none = match_objects(np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8), small)
    classes = class_set([{"name": name, "small": c in small} for c, name in enumerate(CAMVID.names)])
    objects = object_table(join([none]), classes, (32, 64))

    def evaluation(content: dict) -> None:
        content |= {"small_ids": list(small), "small_miou": None, "small_miou_interval": [None, None]}
        content["objects"] = json.loads(json.dumps(objects))
        if nothing:
            content |= {"iou": NOTHING, "miou": None, "iou_interval": [[None, None]] * 11}
            content |= {"miou_interval": [None, None], "confusion": np.zeros((11, 12), int).tolist()}
        for image in content["per_image"]:
            image |= {"small_recall": None, "small_objects": 0} | ({"miou": None} if nothing else {})

    def analysis(content: dict) -> None:
        content["small_ids"] = list(small)
        for c in range(11) if nothing else small:
            content["pixel_share"][c] = content["image_share"][c] = 0.0
            content["object_areas"][CAMVID.names[c]] = []
        if nothing:
            content |= {"cooccurrence": np.zeros((11, 11), int).tolist(), "classes_per_image": [0] * 5}

    for path in run.glob("evaluation/*/*.json"):
        changed(path, evaluation)
    changed(run / "analysis.json", analysis)
    for name in ("maskers", "ablations"):
        rows = [
            row | {"small_miou": None} | ({"miou": None} if nothing else {})
            for row in read_rows(run / f"{name}.json", ())
        ]
        write_json(run / f"{name}.json", rows)
    for path in run.glob("train/*/*.csv") if nothing else ():
        frame = pd.read_csv(path)
        for column in {"share_consistent", "precision_consistent", "precision_noisy", "val_miou", "consistent_share"}:
            if column in frame:
                frame[column] = np.nan
        frame.assign(**({"pixels": 0} if "pixels" in frame else {})).to_csv(path, index=False)
    return run


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("small", "nothing", "missing"),
    [
        ((), False, {
            "closer_look": "no image has a small object", "object_size_curves": "no class counts as small",
            "zoom_recovers": "no class counts as small",
        }),
        ((2, 7), False, {
            "closer_look": "no image has a small object", "object_size_curves": "no small class has an object",
            "zoom_recovers": "no small class",
        }),
        ((2, 7), True, {
            "closer_look": "no image has a small object",
            "object_sizes": "no class is in its masks", "iou_per_class": "no pixel of split test has a class",
            "pseudo_mask_iou": "no pixel of split val has a class", "confusion": "no pixel",
            "object_size_curves": "no small", "zoom_recovers": "no small", "gain_over_pseudo_masks": "no pixel",
            "masker_comparison": "no score", "ablations": "no score", "qualitative_grid": "no saved masks",
        }),
    ],
    ids=["no class is small", "no small object", "all void"],
)  # fmt: skip
def test_figures_with_nothing_to_show_say_so(tmp_path, small, nothing, missing):
    results, found = load_results(bare_run(tmp_path, small, nothing)), {}
    for row in TABLE:
        try:
            figure, record = row.make(results)
            rendered(figure, "png", DRAFT, {})
            assert "nan" not in record.alt
        except Missing as error:
            found[row.name] = str(error)
    assert found.keys() == missing.keys()
    assert all(words in found[name] for name, words in missing.items())
    write_tables(results, tmp_path / "out")


def test_a_figure_that_fails_stops_no_other_and_is_noted(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    row = FIGURES["class_frequency"]
    broken = type(row)(row.name, row.section, row.notebook, row.needs, lambda results: 1 / 0)
    monkeypatch.setattr(draw, "TABLE", [broken, FIGURES["classes_per_image"]])
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    with pytest.raises(
        CarbError, match=r"^figure class_frequency: ZeroDivisionError: .*stands in .*class_frequency.txt"
    ):
        draw.make_all(run)
    assert (tmp_path / "figures/tiny/classes_per_image.png").is_file()
    noted = run / "errors" / "figure_class_frequency.txt"
    assert "Traceback" in noted.read_text() and "1 / 0" in noted.read_text()
    monkeypatch.setattr(draw, "TABLE", [row])
    draw.make_all(run)
    assert not noted.exists()


def test_a_matplotlibrc_does_not_leak_in(tmp_path):
    results = load_results(make_run(tmp_path))
    settings = {
        "text.usetex": True,
        "font.size": 30,
        "axes.grid": True,
        "savefig.bbox": "tight",
        "axes.facecolor": "red",
    }
    for name in ("class_frequency", "iou_per_class", "region_weights", "training_curves"):
        plain = rendered(FIGURES[name].make(results)[0], "png", DRAFT, {})
        with matplotlib.rc_context(settings):
            assert rendered(FIGURES[name].make(results)[0], "png", DRAFT, {}) == plain
            assert matplotlib.rcParams["text.usetex"]  # the user's own figures stay as they were


def test_class_names_come_out_as_they_are(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    own_classes(run, ODD, CAMVID.small_ids)
    renamed = dict(zip(CAMVID.names, ODD, strict=True))
    for path in [*run.glob("evaluation/*/*.json"), run / "analysis.json"]:
        changed(path, lambda content: content.update(class_names=ODD))
    changed(run / "analysis.json", lambda content: content.update(
        object_areas={renamed[name]: areas for name, areas in content["object_areas"].items()}))  # fmt: skip
    for path in run.glob("train/*/*.csv"):
        frame = pd.read_csv(path)
        if "class" in frame:
            frame.assign(**{"class": frame["class"].replace(renamed)}).to_csv(path, index=False)
    results, seen = load_results(run), set()
    for row in TABLE:
        try:
            figure = row.make(results)[0]
        except Missing as error:
            other = "other classes; notebook 02_pseudo_masks makes it again" if row.clip else "are in the classes of"
            assert other in str(error)  # pictures of the data, and what CLIP was asked for
            continue
        rendered(figure, "png", DRAFT, {})
        for text in figure.findobj(Text):
            seen |= {name for name in ODD if name in text.get_text()}
            assert not text.get_parse_math() or text.get_gid() == "footnote" or not text.get_text(), text
    assert seen == set(ODD)


def test_a_dollar_is_drawn_as_a_letter():
    with paper_style():
        figure = new_figure(2, 1)
        figure.text(0.1, 0.5, "$x_1$")
        dollars = np.asarray(Image.open(io.BytesIO(rendered(figure, "png", 100, {}))))
        figure = new_figure(2, 1)
        figure.text(0.1, 0.5, r"\$x_1\$", parse_math=True)
        escaped = np.asarray(Image.open(io.BytesIO(rendered(figure, "png", 100, {}))))
    assert np.array_equal(dollars, escaped)


def test_a_letter_that_no_font_has_is_told_once(capsys):
    for _ in range(2):
        figure = new_figure(2, 1)
        figure.text(0.1, 0.5, "\U0001f9ff\ue123")
        rendered(figure, "png", 50, {})
    assert capsys.readouterr().out.count(repr("\ue123")) == 1
