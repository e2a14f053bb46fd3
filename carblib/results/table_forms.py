"""A table and its three forms: LaTeX (booktabs), CSV and Markdown. What stands in a run's tables is in `tables`."""

from __future__ import annotations

import csv
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from carblib.base.files import write_text
from carblib.results.words import COLUMN, PAGE

GAP = 6  # points, LaTeX's own \tabcolsep
_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}


class Layout(NamedTuple):
    """How a LaTeX table is set: environment and the width it has in inches, type size, tabcolsep, titles turned."""

    environment: str
    room: float
    size: str
    gap: int
    turned: bool = False


# From what reads best to what holds most.
LAYOUTS = (
    Layout("table", COLUMN, "small", GAP),
    Layout("table", COLUMN, "scriptsize", 3),
    Layout("table*", PAGE, "small", GAP),
    Layout("table*", PAGE, "scriptsize", 3),
    Layout("table*", PAGE, "scriptsize", 3, turned=True),
)


@dataclass(frozen=True)
class Cell:
    """One cell: a text, or a value with what stands beside it (an interval, a spread). `rank` 1 = best, 2 = second."""

    text: str
    beside: str = ""
    rank: int = 0
    values: tuple[float | None, ...] = ()  # for the CSV: value, then low and high or spread


@dataclass(frozen=True)
class Table:
    """A table of any of these forms. `columns` are the titles, `align` their alignment, a letter l or r each.

    `csv_columns[i]` names what column i holds in CSV: its text, or its numbers and last its rank. `grouped`: rows come
    in groups, which the first column names.
    """

    title: str
    columns: tuple[str, ...]
    align: str
    rows: tuple[tuple[Cell, ...], ...]
    csv_columns: tuple[tuple[str, ...], ...]
    note: str = ""
    grouped: bool = False

    @property
    def caption(self) -> str:
        """Title and note in one line."""
        return f"{self.title} {self.note}".strip()

    def markdown(self) -> str:
        """Return Markdown: best bold, second-best in italics."""
        lines = [self.columns, ["---" if side == "l" else "---:" for side in self.align]]
        for row in self.rows:
            lines.append([_beside(_mark(cell, "**{}**", "*{}*"), cell.beside) for cell in row])
        body = "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)
        return f"{body}\n\n{self.caption} Best **bold**, second-best *italic*.\n"

    def latex(self, label: str = "") -> str:
        r"""Return a LaTeX table (needs booktabs): best \textbf, second-best \underline, intervals in small type.

        It stands in one text column where it fits, at once or in small type, else it spans both; where even that is too
        narrow, its titles are turned (needs graphicx). The name of a group stands in a line of its own above its rows.
        """
        layout = next((layout for layout in LAYOUTS if self._width(layout) <= layout.room), LAYOUTS[-1])
        titles = [_escape(title) for title in self.columns[self.grouped :]]
        if layout.turned:
            titles = [titles[0], *(rf"\rotatebox{{90}}{{{title}}}" for title in titles[1:])]
        lines = [
            rf"\begin{{{layout.environment}}}[t]",
            r"\centering",
            rf"\{layout.size}" + (rf"\setlength{{\tabcolsep}}{{{layout.gap}pt}}" if layout.gap != GAP else ""),
            rf"\caption{{{_escape(self.caption)} Best bold, second-best underlined.}}",
            *([rf"\label{{{label}}}"] if label else []),
            rf"\begin{{tabular}}{{{self.align[self.grouped :]}}}",
            r"\toprule",
            " & ".join(titles) + r" \\",
            *self._latex_rows(),
            r"\bottomrule",
            r"\end{tabular}",
            rf"\end{{{layout.environment}}}",
        ]
        return "\n".join(lines) + "\n"

    def _latex_rows(self) -> list[str]:
        lines, group = [] if self.grouped else [r"\midrule"], None
        for row in self.rows:
            if self.grouped and row[0] != group:
                group = row[0]
                name = rf"\emph{{{_escape(f'{self.columns[0]}: {group.text}')}}}"
                lines += [r"\midrule", rf"\multicolumn{{{len(self.columns) - 1}}}{{l}}{{{name}}} \\"]
            lines.append(" & ".join(_latex_cell(cell) for cell in row[self.grouped :]) + r" \\")
        return lines

    def _width(self, layout: Layout) -> float:
        """Estimate the width in inches from the longest cell of each column; a letter is half as wide as its size."""
        letter = {"small": 9, "scriptsize": 7}[layout.size] / 2
        points = 0.0
        for i in range(self.grouped, len(self.columns)):
            cells = [letter * len(row[i].text) + 3.5 * len(row[i].beside and f" {row[i].beside}") for row in self.rows]
            heading = letter * (2 if layout.turned and i else len(self.columns[i]))
            points += max([heading, *cells]) + 2 * layout.gap
        return points / 72

    def csv(self) -> str:
        """Return CSV with plain numbers at full precision, a column each for value, interval or spread, and rank."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([name for names in self.csv_columns for name in names])
        for row in self.rows:
            line: list[Any] = []
            for cell, names in zip(row, self.csv_columns, strict=True):
                if len(names) == 1:
                    line.append(cell.text)
                else:
                    line += ["" if v is None or np.isnan(v) else v for v in cell.values]
                    line.append(cell.rank or "")
            writer.writerow(line)
        return out.getvalue()


def drop_constant(table: Table, *titles: str) -> Table:
    """Leave out those of the named columns that say the same in every row; the note says it instead."""
    constant = [
        i for i, title in enumerate(table.columns) if title in titles and len({row[i] for row in table.rows}) == 1
    ]
    kept = [i for i in range(len(table.columns)) if i not in constant]
    said = " ".join(f"{table.columns[i]}: {table.rows[0][i].text}." for i in constant)
    return dataclasses.replace(
        table,
        columns=tuple(table.columns[i] for i in kept),
        align="".join(table.align[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
        csv_columns=tuple(table.csv_columns[i] for i in kept),
        note=f"{said} {table.note}".strip(),
        grouped=table.grouped and 0 in kept,
    )


def write_table(table: Table, path_stem: str | Path, label: str = "") -> list[Path]:
    """Write <stem>.tex, <stem>.csv and <stem>.md; return the paths."""
    stem = Path(path_stem)
    texts = {"tex": table.latex(label or f"tab:{stem.name}"), "csv": table.csv(), "md": table.markdown()}
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths


def _mark(cell: Cell, best: str, second: str) -> str:
    return (best if cell.rank == 1 else second if cell.rank == 2 else "{}").format(cell.text)


def _latex_cell(cell: Cell) -> str:
    text = _mark(dataclasses.replace(cell, text=_escape(cell.text)), r"\textbf{{{}}}", r"\underline{{{}}}")
    return text + (rf" {{\scriptsize {_escape(cell.beside)}}}" if cell.beside else "")


def _beside(text: str, beside: str) -> str:
    return f"{text} {beside}" if beside else text


def _escape(text: str) -> str:
    escaped = "".join(_LATEX.get(letter, letter) for letter in text)
    return escaped.replace("±", r"$\pm$").replace("–", "--").replace("λ", r"$\lambda$")
