"""Tables fit for a paper, as LaTeX (booktabs), CSV and Markdown: best and second-best marked, intervals given.

`comparison_table` compares the variants of a run, `ablation_table` and `masker_table` say the same as their figures.
`carb figures runs/demo` writes all whose results exist into figures/<run>/, with `--tables` nothing else.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from carblib.base.files import write_text
from carblib.classes import ClassSet
from carblib.results.saved import RunResults, numbers
from carblib.results.words import data_name, path_label, percent
from carblib.variants import abbreviations, in_order, variant_label

SCORES = {"miou": "mIoU", "small_miou": "small classes"}
FORMATS = {"seeds": "{:.0f}", "seconds": "{:#.2g}"}  # of numbers that are no scores
LATEX = {
    **{letter: rf"\{letter}" for letter in "&%_#${}"},
    **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"±": r"$\pm$", "λ": r"$\lambda$", "–": "--"},
}


# --- a table and its forms ---------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A word or number, what stands beside it (interval, spread), and its rank: 1 = best, 2 = second-best, else 0."""

    text: str
    beside: str = ""
    rank: int = 0

    def marked(self, best: str, second: str) -> str:
        """Return the text, put into the pattern of its rank."""
        return {1: best, 2: second}.get(self.rank, "{}").format(self.text)


@dataclass(frozen=True)
class Table:
    """A table: plain numbers, scores 0–1, and how to show them.

    `titles` names the columns of `frame` that are shown, scores in percent; of a score `miou`, `miou_low` and
    `miou_high` (an interval) or `miou_std` (a spread) stand beside it. `competing` says which rows are ranked.
    """

    caption: str
    frame: pd.DataFrame
    titles: dict[str, str]
    competing: Sequence[bool]

    @property
    def columns(self) -> list[str]:
        """The titles."""
        return [*self.titles.values()]

    @property
    def align(self) -> str:
        """How the columns are aligned: a letter each, l for words and r for numbers."""
        return "".join("r" if pd.api.types.is_numeric_dtype(self.frame[name]) else "l" for name in self.titles)

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """The cells as they are shown, row by row."""
        return [*zip(*map(self._cells, self.titles), strict=True)]

    def _cells(self, name: str) -> list[Cell]:
        values = self.frame[name]
        if not pd.api.types.is_numeric_dtype(values):
            return [Cell(text) for text in values]
        if name in FORMATS:
            return [Cell("–" if pd.isna(v) else FORMATS[name].format(v).rstrip(".")) for v in values]
        beside = [""] * len(values)
        if f"{name}_low" in self.frame:
            spans = self.frame[[f"{name}_low", f"{name}_high"]].to_numpy()
            beside = ["" if np.isnan(low + high) else f"[{percent(low)}, {percent(high)}]" for low, high in spans]
        elif f"{name}_std" in self.frame:
            beside = ["" if np.isnan(spread) else f"± {percent(spread)}" for spread in self.frame[f"{name}_std"]]
        return [*map(Cell, map(percent, values), beside, ranks(values.to_numpy(), self.competing))]

    def markdown(self) -> str:
        """Return Markdown: best bold, second-best in italics."""
        lines = [[_markdown(title) for title in self.columns], ["---" if a == "l" else "---:" for a in self.align]]
        for row in self.rows:
            cells = [cell._replace(text=_markdown(cell.text)) for cell in row]
            lines.append([f"{cell.marked('**{}**', '*{}*')} {cell.beside}".strip() for cell in cells])
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{body}\n\n{_markdown(self.caption)} Best **bold**, second-best *italic*.\n"

    def latex(self, label: str = "") -> str:
        r"""Return a LaTeX table (needs booktabs): best \textbf, second-best \underline.

        Up to four columns stand in one column of the text, more of them span both; the titles of very many are turned
        (needs graphicx).
        """
        titles = [_latex(title) for title in self.columns]
        if len(titles) > 14:
            titles = [titles[0], *(rf"\rotatebox{{90}}{{{title}}}" for title in titles[1:])]
        frame = pd.DataFrame([[_latex_cell(cell) for cell in row] for row in self.rows], columns=titles)
        text = frame.style.hide(axis="index").to_latex(
            hrules=True,
            column_format=self.align,
            caption=f"{_latex(self.caption)} Best bold, second-best underlined.",
            label=label or None,
            environment="table" if len(titles) <= 4 else "table*",
            position="t",
            position_float="centering",
        )
        return text.replace(r"\centering", "\\centering\n\\scriptsize\\setlength{\\tabcolsep}{3pt}", 1)

    def csv(self) -> str:
        """Return CSV with plain numbers at full precision, a column each for value and for interval or spread."""
        return self.frame.to_csv(index=False, lineterminator="\n")


def ranks(values: np.ndarray, competing: Sequence[bool]) -> list[int]:
    """Rank scores 0–1 as a reader sees them, in percent with one decimal: 1 for the best, 2 for the second, else 0.

    Equal numbers share a mark. nan and what does not compete have none, and what is shown as 0.0 is no second-best.
    """
    # As it is printed: numpy's round sends 0.05 to 0.0, the printed number is 0.1.
    shown = [float(percent(v)) if c and not np.isnan(v) else None for v, c in zip(values, competing, strict=True)]
    steps = sorted({v for v in shown if v is not None}, reverse=True)
    return [steps.index(v) + 1 if v and v in steps[:2] and len(steps) > 1 else 0 for v in shown]


def _latex_cell(cell: Cell) -> str:
    text = cell._replace(text=_latex(cell.text)).marked(r"\textbf{{{}}}", r"\underline{{{}}}")
    return f"{text} {_latex(cell.beside)}".strip()


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_<>|~$&])", r"\\\1", text)


# --- the tables --------------------------------------------------------------------------------------------------


def comparison_table(evaluations: Sequence[dict[str, Any]], class_set: ClassSet, per_class: bool = False) -> Table:
    """Compare variants by mIoU and small-class mean with 95 % intervals; with `per_class` by every class's IoU instead.

    Ranked is what learnt from the same and is told the same of an image: the networks trained on CLIP's masks. The
    ceiling saw true masks, and CLIP's own masks are told the image's labels; they are ranked only among themselves.
    """
    variants = [evaluation["variant"] for evaluation in evaluations]
    frame, titles = pd.DataFrame({"method": map(variant_label, variants)}), {"method": "Method", **SCORES}
    for key in SCORES:
        frame[key] = numbers([evaluation[key] for evaluation in evaluations])
        if not per_class:
            spans = numbers([evaluation[f"{key}_interval"] for evaluation in evaluations])
            frame[f"{key}_low"], frame[f"{key}_high"] = spans.T
    if per_class:
        names = {f"iou_{name}": name for name in class_set.names}  # whatever a class is called, no other column is
        ious = pd.DataFrame(numbers([evaluation["iou"] for evaluation in evaluations]), columns=[*names])
        frame, titles = pd.concat([frame, ious], axis=1), titles | names
    first, small = evaluations[0], ", ".join(class_set.names[c] for c in class_set.small_ids)
    caption = f"IoU in percent on {first['images']} images of split {first['split']}."
    caption += "" if per_class else " Brackets: 95 % bootstrap interval over images."
    caption += f" Small classes: {small or 'none'}."
    if any(variant.startswith("pseudo_masks") for variant in variants):
        told = "Other masks of CLIP's" if "pseudo_masks_no_labels" in variants else "CLIP's masks"
        caption += f" {told} are told each image's labels, networks are not."
    return Table(caption + _notes(variants), frame, titles, _competing(variants))


def ablation_table(rows: Sequence[dict[str, Any]], drop_constant: bool = False) -> Table:
    """Mean and standard deviation over seeds per variant, path and masker; `rows` as in ablations.json.

    With `drop_constant`, a path, masker or number of seeds that is the same in all rows is said in the caption instead.
    """
    cells = pd.DataFrame(rows).astype(dict.fromkeys(SCORES, float))
    orders = {key: cells[key].unique() for key in ("path", "masker", "variant")}
    orders["variant"] = in_order(orders["variant"])
    for key, order in orders.items():
        cells[key] = pd.Categorical(cells[key], order)
    groups = cells.groupby([*orders], observed=True)
    frame = groups["seed"].count().astype("Int64").to_frame("seeds")
    frame["seeds"] = frame["seeds"].mask(frame["seeds"] == 0)  # CLIP's masks have none
    for key in SCORES:
        frame[key] = groups[key].agg(lambda own: own.mean(skipna=False))
        frame[f"{key}_std"] = groups[key].agg(lambda own: own.std(skipna=False))
    frame = frame.reset_index()
    variants = [*frame["variant"]]
    frame["path"] = [path_label(path).removesuffix(" path") for path in frame["path"]]
    frame["masker"] = [masker.replace("_", " ") for masker in frame["masker"]]
    frame["variant"] = [*map(variant_label, variants)]
    titles = {name: name.capitalize() for name in ("path", "masker", "variant", "seeds")} | SCORES
    caption = "Ablations: IoU in percent, mean ± standard deviation over seeds."
    for name in ("path", "masker", "seeds") if drop_constant else ():
        if frame[name].notna().all() and frame[name].nunique() == 1:
            caption += f" {titles.pop(name)}: {frame.pop(name).iloc[0]}."
    return Table(caption + _notes(variants), frame, titles, _competing(variants))


def masker_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Pseudo-mask quality and speed per masker, in their order in maskers.json: by what each way changes."""
    titles = {"masker": "Masker", **SCORES, "seconds": "s per image"}
    frame = pd.DataFrame(rows)[[*titles]].astype({**dict.fromkeys(SCORES, float), "seconds": float})
    frame["masker"] = frame["masker"].str.replace("_", " ")
    return Table("Pseudo-masks by masker, IoU in percent.", frame, titles, [True] * len(frame))


def _competing(variants: Sequence[str]) -> list[bool]:
    trained = [not variant.startswith("pseudo_masks") and variant != "ceiling" for variant in variants]
    return trained if any(trained) else [variant != "ceiling" for variant in variants]


def _notes(variants: Sequence[str]) -> str:
    """What a caption says of its variants: which are ranked, where not all are, and what abbreviations mean."""
    ranked = "" if all(_competing(variants)) else " Ranked are the networks trained on CLIP's masks."
    return f"{ranked} {abbreviations(variants)}".rstrip()


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
        tables["ablations"] = ablation_table(results.ablations, drop_constant=True)
    data = f"Data: {data_name(results.params)}."
    return {name: dataclasses.replace(table, caption=f"{table.caption} {data}") for name, table in tables.items()}


def write_tables(results: RunResults, folder: str | Path) -> list[Path]:
    """Write all tables of a run whose results exist as table_<name>.tex, .csv and .md; return the paths."""
    written = []
    for name, table in run_tables(results).items():
        texts = {"tex": table.latex(f"tab:table_{name}"), "csv": table.csv(), "md": table.markdown()}
        for kind, text in texts.items():
            written.append(Path(folder) / f"table_{name}.{kind}")
            write_text(written[-1], text)
    return written


def comparison_markdown(results: RunResults) -> str:
    """Return the comparison table of a run as Markdown, or a sentence where nothing was evaluated yet."""
    tables = run_tables(results)
    return tables["comparison"].markdown() if "comparison" in tables else "Nothing was evaluated yet."
