"""Tables: one content in three forms, marks where they belong, every number where the CSV says it is."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path

import numpy as np
import pytest
from fake_run import make_run
from hypothesis import given
from hypothesis import strategies as st

from carblib.classes import CAMVID, CITYSCAPES
from carblib.results import tables
from carblib.results.saved import load_results
from carblib.results.table_forms import Cell, Table, drop_constant
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
    assert "told each image's labels" in table.note and "Ranked are the networks" in table.note
    alone = tables.comparison_table(masks, CAMVID)
    assert [row[1].rank for row in alone.rows] == [2, 1] and "Ranked are" not in alone.note


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
    assert (
        variant_label("paper") + r" & \textbf{42.0} {\scriptsize [40.8, 44.2]}" in text and r"\underline{40.0}" in text
    )
    assert r"100\% \&\#" in text and text.count("{") == text.count("}")
    assert not [c for line in text.splitlines() for c in line.replace(r"\%", "") if c == "%"], "a comment by accident"


def test_wide_latex_spans_the_page() -> None:
    text = tables.comparison_table(FOUR, CAMVID, per_class=True).latex()
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 1 and "& pole &" in text
    assert "scriptsize [" not in text, "no room for intervals"
    many = [one | {"iou": [one["miou"]] * 19} for one in FOUR]
    assert r"\rotatebox{90}{rider}" in tables.comparison_table(many, CITYSCAPES, per_class=True).latex()


def test_latex_fits_the_column_or_takes_the_page() -> None:
    def table(first: str, columns: int) -> str:
        cells = (Cell(first), *(Cell("12.3", "± 0.4") for _ in range(columns)))
        titles = tuple("abcdefgh"[: columns + 1])
        return Table("T.", titles, "l" + "r" * columns, (cells,), tuple((t,) for t in titles)).latex()

    assert r"\begin{table}" in table("short", 2) and r"\small" in table("short", 2)
    assert r"\begin{table}" in table("GLV + CARB per class (ours)", 2)
    assert r"\scriptsize\setlength{\tabcolsep}{3pt}" in table("GLV + CARB per class (ours)", 2)
    assert r"\begin{table*}" in table("x" * 60, 2) and r"\small" in table("x" * 60, 2)


@pytest.mark.parametrize("per_class", [False, True])
def test_csv_holds_the_full_numbers(per_class: bool) -> None:
    text = tables.comparison_table(FOUR, CAMVID, per_class).csv()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["miou"]) for row in rows] == [e["miou"] for e in FOUR]
    assert float(rows[0]["miou_low"]) == pytest.approx(0.3877) and rows[0]["small_miou_low"] == ""
    assert [row["miou_rank"] for row in rows] == ["2", "1", "1", ""]
    assert all(None not in row and None not in row.values() for row in rows), "ragged rows"
    if per_class:
        assert float(rows[1]["pole"]) == 0.42 and rows[1]["pole_rank"] == "1" and rows[1]["bicyclist"] == ""


def test_ablations_give_mean_and_spread_over_seeds() -> None:
    values = [0.41, 0.45, 0.46]
    rows = [
        {
            "variant": v,
            "path": p,
            "masker": "value_path",
            "seed": s,
            "miou": m - 0.1 * (v == "plain"),
            "small_miou": 0.1,
        }
        for v in ("paper", "plain")
        for p in ("dual", "single_crf")
        for s, m in enumerate(values)
    ]
    rows.append(
        {"variant": "ceiling", "path": "dual", "masker": "value_path", "seed": 0, "miou": 0.9, "small_miou": None}
    )
    table, both = tables.ablation_table(rows), variant_label("paper")
    found = {(row[0].text, row[2].text): row for row in table.rows}
    assert list(found)[0] == ("dual", "plain cross-entropy") and ("single + CRF", both) in found
    cell = found[("dual", both)][4]
    assert cell.text == f"{100 * statistics.mean(values):.1f}" and cell.rank == 1
    assert cell.beside == f"± {100 * statistics.stdev(values):.1f}"
    alone = found[("dual", "true masks (ceiling)")]
    assert (alone[3].text, alone[4].beside, alone[4].rank, alone[5].text) == ("1", "", 0, "–")
    assert r"$\pm$" in table.latex() and "±" not in table.latex()


def test_constant_columns_are_said_in_the_note() -> None:
    rows = [
        {"variant": v, "path": "dual", "masker": m, "seed": s, "miou": 0.1 * s, "small_miou": 0.1}
        for v in ("plain", "paper") for m in ("a", "b") for s in (1, 2)
    ]  # fmt: skip
    short = drop_constant(tables.ablation_table(rows), "Path", "Masker", "Variant")
    assert short.columns == ("Masker", "Variant", "Seeds", "mIoU", "small classes") and short.align == "llrrr"
    assert "Path: dual." in short.caption and not short.grouped
    assert all(len(row) == 5 for row in short.rows) and "path" not in short.csv().splitlines()[0]
    assert r"\multicolumn" not in short.latex()


def test_ablations_of_several_paths_are_grouped() -> None:
    rows = [
        {"variant": v, "path": p, "masker": "value_path", "seed": s, "miou": 0.1 * s, "small_miou": 0.0}
        for p in ("single", "dual") for v in ("plain", "paper") for s in (1, 2)
    ]  # fmt: skip
    text = drop_constant(tables.ablation_table(rows), "Path", "Masker").latex()
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0].splitlines()
    assert body[2::4] == [r"\midrule", r"\midrule"]
    assert body[3::4] == [rf"\multicolumn{{4}}{{l}}{{\emph{{Path: {p}}}}} \\" for p in ("single", "dual")]
    assert all(line.count(" & ") == 3 for line in [*body[4:6], *body[8:10]]) and r"\begin{tabular}{lrrr}" in text


def test_a_shown_zero_is_no_second_best() -> None:
    assert tables.ranks(np.array([0.3, 0.0004, 0.0]), [True] * 3) == [1, 0, 0]
    assert tables.ranks(np.array([0.3, 0.0006, 0.0]), [True] * 3) == [1, 2, 0]


def test_maskers_are_sorted_by_quality() -> None:
    rows = [
        {"masker": m, "miou": v, "small_miou": 0.1, "seconds": s} for m, v, s in [("a_b", 0.1, 2), ("c", 0.3, 0.05)]
    ]
    table = tables.masker_table(rows)
    assert [row[0].text for row in table.rows] == ["c", "a b"]
    assert [row[3].text for row in table.rows] == ["0.050", "2.0"]


def test_tables_of_a_run_are_written_and_name_their_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path)
    assert tables.main([str(run), "--out", str(tmp_path / "out")]) == 0
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
