"""Tables: one content in three forms, marks where they belong, every number where the CSV says it is."""

from __future__ import annotations

import csv
import html
import io
import re
import statistics
from pathlib import Path

import jinja2
import numpy as np
import pytest
from commands import carb
from fake_run import make_run
from hypothesis import given
from hypothesis import strategies as st

from carblib.classes import CAMVID, CITYSCAPES, class_set
from carblib.results import tables
from carblib.results.saved import load_results
from carblib.variants import variant_label


def score(variant: str, miou: float | None, small: float | None = 0.1) -> dict:
    interval = [None, None] if miou is None else [miou - 0.0123, miou + 0.0223]
    return {
        "variant": variant, "split": "test", "images": 9, "iou": [miou] * 10 + [None],
        "miou": miou, "small_miou": small,
        "miou_interval": interval, "small_miou_interval": [None, None],
    }  # fmt: skip


FOUR = [score("plain", 0.4), score("glv", 0.42), score("paper", 0.4201), score("ceiling", 0.9, 0.5)]


def test_equal_numbers_share_a_mark() -> None:
    table = tables.comparison_table(FOUR, CAMVID)
    assert [row[1].rank for row in table.rows] == [2, 1, 1, 0]
    assert [row[2].rank for row in table.rows] == [0, 0, 0, 0], "where all are equal there is no best"


def test_only_what_had_the_same_to_learn_from_is_ranked() -> None:
    masks = [score("pseudo_masks_global", 0.5), score("pseudo_masks_local", 0.6)]
    table = tables.comparison_table([*masks, *FOUR], CAMVID)
    assert [row[1].rank for row in table.rows] == [0, 0, 2, 1, 1, 0]
    assert "told each image's labels" in table.caption and "Ranked are the networks" in table.caption
    alone = tables.comparison_table(masks, CAMVID)
    assert [row[1].rank for row in alone.rows] == [2, 1] and "Ranked are" not in alone.caption


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=8))
def test_ranks_follow_the_printed_numbers(values: list[float]) -> None:
    ranked = tables.ranks(np.array(values), [True] * len(values))
    printed = [None if np.isnan(v) else float(f"{100 * v:.1f}") for v in values]
    assert all(r == 0 for r, p in zip(ranked, printed, strict=True) if p is None)
    known = [(p, r) for p, r in zip(printed, ranked, strict=True) if p is not None]
    for p, r in known:
        better = len({q for q, _ in known if q > p})
        assert r == (better + 1 if p > 0 and better < 2 and len({q for q, _ in known}) > 1 else 0)


def test_markdown() -> None:
    text = tables.comparison_table([*FOUR, score("odd|name", None, None)], CAMVID).markdown()
    lines = text.splitlines()
    assert lines[:2] == ["| Method | mIoU | small classes |", "| --- | ---: | ---: |"]
    assert "| GLV only | **42.0** [40.8, 44.2] | 10.0 |" in lines
    assert "| plain cross-entropy | *40.0* [38.8, 42.2] | 10.0 |" in lines
    assert r"| odd\|name | – | – |" in lines
    assert "9 images of split test" in text and "95 %" in text


def test_latex_is_booktabs_with_equal_rows_and_escapes() -> None:
    text = tables.comparison_table([*FOUR, score("100%_&#", 0.1)], CAMVID).latex("tab:x")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:x}", r"\begin{tabular}{lrr}"):
        assert text.count(rule) == 1
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line]
    assert len(rows) == 5 and all(row.count(" & ") == 2 and row.endswith(r"\\") for row in rows)
    assert variant_label("paper") + r" & \textbf{42.0} [40.8, 44.2]" in text and r"\underline{40.0}" in text
    assert r"100\% \&\#" in text and text.count("{") == text.count("}")
    assert not [c for line in text.splitlines() for c in line.replace(r"\%", "") if c == "%"], "a comment by accident"


def test_wide_latex_spans_the_page() -> None:
    text = tables.comparison_table(FOUR, CAMVID, per_class=True).latex()
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 1 and "& pole &" in text
    assert "[40.8" not in text, "no room for intervals"
    assert r"\begin{table}" in tables.comparison_table(FOUR, CAMVID).latex()
    many = [one | {"iou": [one["miou"]] * 19} for one in FOUR]
    assert r"\rotatebox{90}{rider}" in tables.comparison_table(many, CITYSCAPES, per_class=True).latex()


ODD = ("a|b", "x_y*z*", "50%&#$", r"\evil{}", "<b>&amp;", 'c,"d"', "~^`e`", "miou", "method")


def test_names_that_mean_something_to_a_form_are_escaped() -> None:
    classes = class_set([{"name": name, "words": ["thing"], "colour": [i, 0, 0]} for i, name in enumerate(ODD)])
    four = [one | {"iou": [one["miou"]] * len(ODD)} for one in FOUR]
    table = tables.comparison_table(four, classes, per_class=True)
    assert table.columns == ["Method", "mIoU", "small classes", *ODD] and [row[1].rank for row in table.rows][2] == 1

    lines = table.markdown().splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(table.columns) + 1 for line in lines[:6])
    head = lines[0].strip("| ").split(" | ")
    assert head[3:8] == [r"a\|b", r"x\_y\*z\*", r"50%\&#\$", r"\\evil{}", r"\<b\>\&amp;"]

    header = next(line for line in table.latex().splitlines() if line.startswith("Method"))
    assert header.count(" & ") == len(table.columns) - 1 and r"a\textbar{}b & x\_y*z* & 50\%\&\#\$" in header
    assert r"\textbackslash{}evil\{\} & \textless{}b\textgreater{}\&amp;" in header
    assert r"\textasciitilde{}\textasciicircum{}`e`" in header

    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [float(rows[0][f"iou_{name}"]) for name in ODD] == [0.4] * len(ODD)
    assert [float(row["miou"]) for row in rows] == [e["miou"] for e in FOUR], "a class called miou is another column"

    page = jinja2.Environment(loader=jinja2.PackageLoader("carblib", "assets"), autoescape=True)
    text = page.from_string("{% import 'table.html.j2' as tables %}{{ tables.show(table) }}").render(table=table)
    titles = [re.sub("<.*?>", "", title) for title in re.findall(r'<th scope="col".*?>(.*?)</th>', text)]
    assert [html.unescape(title) for title in titles] == table.columns and "<b>42.0</b>" in text


@pytest.mark.parametrize("per_class", [False, True])
def test_csv_holds_the_full_numbers(per_class: bool) -> None:
    text = tables.comparison_table(FOUR, CAMVID, per_class).csv()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["miou"]) for row in rows] == [e["miou"] for e in FOUR]
    assert all(None not in row and None not in row.values() for row in rows), "ragged rows"
    if per_class:
        assert float(rows[1]["iou_pole"]) == 0.42 and rows[1]["iou_bicyclist"] == ""
    else:
        assert float(rows[0]["miou_low"]) == pytest.approx(0.3877) and rows[0]["small_miou_low"] == ""


def ablated(variant: str, path: str, seed: int | None, miou: float, masker: str = "value_path") -> dict:
    return {"variant": variant, "path": path, "masker": masker, "seed": seed, "miou": miou, "small_miou": 0.1}


def test_ablations_give_mean_and_spread_over_seeds() -> None:
    values = [0.41, 0.45, 0.46]
    rows = [
        ablated(variant, path, seed, value - 0.1 * (variant == "plain"))
        for variant in ("paper", "plain")
        for path in ("single_crf", "dual")
        for seed, value in enumerate(values)
    ]
    rows.append(ablated("ceiling", "single_crf", 0, 0.9) | {"small_miou": None})
    rows.append(ablated("pseudo_masks", "dual", None, 0.3))
    table = tables.ablation_table(rows)
    found = {(row[0].text, row[2].text): row for row in table.rows}
    both, ceiling, masks = map(variant_label, ("paper", "ceiling", "pseudo_masks"))
    assert [*found] == [
        *(("single + CRF", name) for name in ("plain cross-entropy", both, ceiling)),
        *(("dual", name) for name in (masks, "plain cross-entropy", both)),
    ], "paths as they were run, variants in reading order"
    cell = found["dual", both][4]
    assert cell.text == f"{100 * statistics.mean(values):.1f}" and cell.rank == 1
    assert cell.beside == f"± {100 * statistics.stdev(values):.1f}"
    alone = found["single + CRF", ceiling]
    assert (alone[3].text, alone[4].beside, alone[4].rank, alone[5].text) == ("1", "", 0, "–")
    assert [cell.text for cell in found["dual", masks][3:]] == ["–", "30.0", "10.0"]
    assert r"$\pm$" in table.latex() and "±" not in table.latex()
    first = next(csv.DictReader(io.StringIO(table.csv())))
    assert float(first["miou"]) == pytest.approx(statistics.mean(values) - 0.1) and first["seeds"] == "3"
    assert float(first["miou_std"]) == pytest.approx(statistics.stdev(values))


def test_a_failed_seed_leaves_no_mean() -> None:
    rows = [ablated("plain", "dual", seed, 0.1) | {"small_miou": [0.1, None][seed]} for seed in (0, 1)]
    assert [cell.text for cell in tables.ablation_table(rows).rows[0][4:]] == ["10.0", "–"]


def test_constant_columns_are_said_in_the_caption() -> None:
    rows = [ablated(v, "dual", s, 0.1 * s, m) for v in ("plain", "paper") for m in ("a", "b") for s in (1, 2)]
    short = tables.ablation_table(rows, drop_constant=True)
    assert short.columns == ["Masker", "Variant", "mIoU", "small classes"] and short.align == "llrr"
    assert "Path: dual. Seeds: 2." in short.caption and all(len(row) == 4 for row in short.rows)
    assert "path" not in short.csv().splitlines()[0]
    masks = tables.ablation_table([ablated("pseudo_masks", "dual", None, 0.3)], drop_constant=True)
    assert masks.columns == ["Variant", "Seeds", "mIoU", "small classes"] and masks.rows[0][1].text == "–"


def test_a_shown_zero_is_no_second_best() -> None:
    assert tables.ranks(np.array([0.3, 0.0004, 0.0]), [True] * 3) == [1, 0, 0]
    assert tables.ranks(np.array([0.3, 0.0006, 0.0]), [True] * 3) == [1, 2, 0]


def test_maskers_stand_in_the_order_of_their_changes() -> None:
    rows = [
        {"masker": m, "miou": v, "small_miou": 0.1, "seconds": s} for m, v, s in [("a_b", 0.1, 2), ("c", 0.3, 0.05)]
    ]
    table = tables.masker_table(rows)
    assert [row[0].text for row in table.rows] == ["a b", "c"]
    assert [row[3].text for row in table.rows] == ["2.0", "0.050"]


def test_tables_of_a_run_are_written_and_name_their_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path)
    assert carb("figures", run, "--out", tmp_path / "out", "--tables") == 0
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {
        f"table_{n}.{k}" for n in ("comparison", "per_class", "maskers", "ablations") for k in ("tex", "csv", "md")
    }
    for path in (tmp_path / "out").glob("*.[mt]*"):
        assert "rendered scenes" in path.read_text("utf-8")
    assert variant_label("ours") in tables.comparison_markdown(load_results(run))
    for path in run.glob("evaluation/*/*.json"):
        path.unlink()
    assert "comparison" not in tables.run_tables(load_results(run))
    assert tables.comparison_markdown(load_results(run)) == "Nothing was evaluated yet."
