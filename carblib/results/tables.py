"""Tables fit for a paper, as LaTeX (booktabs), CSV and Markdown: best and second-best marked, intervals given.

`comparison_table` compares the variants of a run, `ablation_table` and `masker_table` say the same as their figures.
`python -m carblib.results.tables runs/demo` writes all whose results exist into figures/<run>/; so does `carblib.figures.draw`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carblib.base.errors import cli
from carblib.classes import ClassSet
from carblib.params import load_params, project_root
from carblib.results.saved import RunResults, load_results, numbers
from carblib.results.table_forms import Cell, Table, drop_constant, write_table
from carblib.results.words import data_name, path_label
from carblib.variants import abbreviations, in_order, variant_label

Evaluation = dict[str, Any]


# --- the tables --------------------------------------------------------------------------------------------------


def comparison_table(evaluations: Sequence[Evaluation], class_set: ClassSet, per_class: bool = False) -> Table:
    """Compare variants by mIoU and small-class mean with 95 % intervals; with `per_class` by every class's IoU instead.

    Ranked is what learnt from the same and is told the same of an image: the networks trained on CLIP's masks. The
    ceiling saw true masks, and CLIP's own masks are told the image's labels; they are ranked only among themselves.
    """
    variants = [evaluation["variant"] for evaluation in evaluations]
    competing = _competing(variants)
    columns, names, cells = ["Method"], [("method",)], [[Cell(variant_label(variant)) for variant in variants]]
    for key, title in (("miou", "mIoU"), ("small_miou", "small classes")):
        values = numbers([evaluation[key] for evaluation in evaluations])
        spans = numbers([evaluation.get(f"{key}_interval") or (None, None) for evaluation in evaluations])
        columns.append(title)
        names.append((key, f"{key}_low", f"{key}_high", f"{key}_rank"))
        scores = [_score(*score) for score in zip(values, spans, ranks(values, competing), strict=True)]
        cells.append([dataclasses.replace(score, beside="") for score in scores] if per_class else scores)
    if per_class:
        ious = numbers([evaluation["iou"] for evaluation in evaluations])
        for c, name in enumerate(class_set.names):
            columns.append(name)
            names.append((name, f"{name}_rank"))
            ranked = ranks(ious[:, c], competing)
            cells.append(
                [Cell(_percent(v), rank=r, values=(_plain(v),)) for v, r in zip(ious[:, c], ranked, strict=True)]
            )
    first = evaluations[0]
    small = ", ".join(class_set.names[c] for c in class_set.small_ids)
    title = f"IoU in percent on {first['images']} images of split {first['split']}."
    note = "" if per_class else "Brackets: 95 % bootstrap interval over images. "
    note += f"Small classes: {small or 'none'}."
    if any(variant.startswith("pseudo_masks") for variant in variants):
        note += " CLIP's masks are told each image's labels, networks are not."
    if not all(competing):
        note += " Ranked are the networks trained on CLIP's masks."
    note = f"{note} {abbreviations(variants)}".strip()
    align = "l" + "r" * (len(columns) - 1)
    return Table(title, tuple(columns), align, tuple(zip(*cells, strict=True)), tuple(names), note)


def ablation_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Mean and standard deviation over seeds per variant, path and masker; `rows` as in ablations.json."""
    groups = [
        (path, masker, variant)
        for path in dict.fromkeys(row["path"] for row in rows)
        for masker in dict.fromkeys(row["masker"] for row in rows)
        for variant in in_order({row["variant"] for row in rows})
    ]
    chosen = {g: [row for row in rows if (row["path"], row["masker"], row["variant"]) == g] for g in groups}
    chosen = {group: members for group, members in chosen.items() if members}
    texts = [
        [
            Cell(path_label(path).removesuffix(" path")),
            Cell(masker.replace("_", " ")),
            Cell(variant_label(variant)),
            Cell(_seeds(members)),
        ]
        for (path, masker, variant), members in chosen.items()
    ]
    cells = [list(column) for column in zip(*texts, strict=True)]
    names = [("path",), ("masker",), ("variant",), ("seeds",)]
    competing = _competing([variant for _, _, variant in chosen])
    for key in ("miou", "small_miou"):
        seeds = [numbers([row[key] for row in members]) for members in chosen.values()]
        means = np.array([values.mean() for values in seeds])
        spreads = [values.std(ddof=1) if len(values) > 1 else float("nan") for values in seeds]
        ranked = ranks(means, competing)
        names.append((key, f"{key}_std", f"{key}_rank"))
        cells.append([_mean(*score) for score in zip(means, spreads, ranked, strict=True)])
    title = "Ablations: IoU in percent, mean ± standard deviation over seeds."
    note = "" if all(competing) else "Ranked are the networks trained on CLIP's masks."
    note = f"{note} {abbreviations(variant for _, _, variant in chosen)}".strip()
    columns = ("Path", "Masker", "Variant", "Seeds", "mIoU", "small classes")
    return Table(title, columns, "lllrrr", tuple(zip(*cells, strict=True)), tuple(names), note, grouped=True)


def masker_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Pseudo-mask quality and speed per masker, best first; `rows` as in maskers.json."""
    rows = sorted(rows, key=lambda row: -np.nan_to_num(numbers(row["miou"])))
    cells, names = [[Cell(str(row["masker"]).replace("_", " ")) for row in rows]], [("masker",)]
    for key in ("miou", "small_miou"):
        values = numbers([row[key] for row in rows])
        names.append((key, f"{key}_rank"))
        ranked = ranks(values, [True] * len(rows))
        cells.append([Cell(_percent(v), rank=r, values=(_plain(v),)) for v, r in zip(values, ranked, strict=True)])
    cells.append([Cell(f"{numbers(row['seconds']):#.2g}".rstrip(".")) for row in rows])
    names.append(("seconds",))
    columns = ("Masker", "mIoU", "small classes", "s per image")
    title = "Pseudo-masks by masker, IoU in percent."
    return Table(title, columns, "lrrr", tuple(zip(*cells, strict=True)), tuple(names))


def _competing(variants: Sequence[str]) -> list[bool]:
    trained = [not variant.startswith("pseudo_masks") and variant != "ceiling" for variant in variants]
    return trained if any(trained) else [variant != "ceiling" for variant in variants]


def _seeds(members: list[dict[str, Any]]) -> str:
    """How many seeds; CLIP's masks have none."""
    return str(sum(row["seed"] is not None for row in members) or "–")


def ranks(values: np.ndarray, competing: Sequence[bool]) -> list[int]:
    """Rank scores 0–1 as a reader sees them, in percent with one decimal: 1 for the best, 2 for the second, else 0.

    Equal numbers share a mark. nan and what does not compete have none, and what is shown as 0.0 is no second-best.
    """
    # As it is printed: numpy's round sends 0.05 to 0.0, the printed number is 0.1.
    shown = [float(_percent(v)) if c and not np.isnan(v) else None for v, c in zip(values, competing, strict=True)]
    steps = sorted({v for v in shown if v is not None}, reverse=True)
    return [steps.index(v) + 1 if v and v in steps[:2] and len(steps) > 1 else 0 for v in shown]


def _score(value: float, span: np.ndarray, rank: int) -> Cell:
    beside = "" if np.isnan(span).any() else f"[{100 * span[0]:.1f}, {100 * span[1]:.1f}]"
    return Cell(_percent(value), beside, rank, (_plain(value), _plain(span[0]), _plain(span[1])))


def _mean(value: float, spread: float, rank: int) -> Cell:
    beside = "" if np.isnan(spread) else f"± {100 * spread:.1f}"
    return Cell(_percent(value), beside, rank, (_plain(value), _plain(spread)))


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f}"


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


# --- a run's tables ----------------------------------------------------------------------------------------------


def run_tables(results: RunResults) -> dict[str, Table]:
    """Return a run's tables by name; those whose results do not exist yet are left out."""
    tables, classes = {}, results.params.class_set
    evaluations = list(results.evaluations.values())
    if evaluations:
        tables["comparison"] = comparison_table(evaluations, classes)
        tables["per_class"] = comparison_table(evaluations, classes, per_class=True)
    if results.maskers:
        tables["maskers"] = masker_table(results.maskers)
    if results.ablations:
        tables["ablations"] = drop_constant(ablation_table(results.ablations), "Path", "Masker", "Seeds")
    data = f"Data: {data_name(results.params)}."
    return {name: dataclasses.replace(table, note=f"{table.note} {data}".strip()) for name, table in tables.items()}


def write_tables(results: RunResults, folder: str | Path) -> list[Path]:
    """Write all tables of a run whose results exist as table_<name>.tex, .csv and .md; return the paths."""
    tables = run_tables(results)
    return [path for name, table in tables.items() for path in write_table(table, Path(folder) / f"table_{name}")]


def comparison_markdown(results: RunResults) -> str:
    """Return the comparison table of a run as Markdown, or a sentence where nothing was evaluated yet."""
    tables = run_tables(results)
    return tables["comparison"].markdown() if "comparison" in tables else "Nothing was evaluated yet."


def main(argv: Sequence[str] | None = None) -> int:
    """Write a run's tables."""
    parser = argparse.ArgumentParser(prog="python -m carblib.results.tables", description="Write a run's tables.")
    parser.add_argument("run_dir", help="folder of the run's results, e.g. runs/demo")
    parser.add_argument("--params", help="parameters of the run; default: params.yaml in its folder")
    parser.add_argument("--out", help="folder for the tables; default: figures/<run>")
    options = parser.parse_args(argv)
    results = load_results(options.run_dir, load_params(options.params) if options.params else None)
    folder = Path(options.out) if options.out else project_root() / "figures" / results.run
    written = write_tables(results, folder)
    print(*written, sep="\n")
    if not written:
        print("no table yet: notebooks 02_pseudo_masks and 04_small_object_evaluation make the results")
    return 0


if __name__ == "__main__":
    cli(main)
