"""All figures and tables of a run, from saved results, without running a model: `carb figures runs/demo`.

They are written to figures/<run>/<name>.png, .pdf and .json; the figures are the rows of `carblib.figures.table`.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carblib.base.errors import CarbError, nearest, one_line
from carblib.base.files import write_text
from carblib.figures.captions import save_figure
from carblib.figures.table import FIGURES, TABLE
from carblib.results.saved import Missing, RunResults, load_results
from carblib.results.tables import write_tables


@dataclass(frozen=True)
class Outcome:
    """What became of one figure: its PNG, or why there is none; `damaged` where its results cannot be drawn."""

    name: str
    path: Path | None
    reason: str = ""
    damaged: bool = False


def make_all(run_dir: Path) -> list[Path]:
    """Bring every figure and table of a run up to date with its results; return the PNGs of the figures there are.

    Raises CarbError where a figure failed, after all others were drawn.
    """
    results = load_results(run_dir)
    outcomes = draw_all(results, results.figures_dir, keep=True)
    write_tables(results, results.figures_dir)
    damaged = [outcome for outcome in outcomes if outcome.damaged]
    if damaged:
        raise CarbError(f"figure {damaged[0].name}: {damaged[0].reason}")
    return [outcome.path for outcome in outcomes if outcome.path is not None]


def draw_all(results: RunResults, folder: Path, only: Sequence[str] = (), keep: bool = False) -> list[Outcome]:
    """Draw a run's figures, or those named in `only`, into a folder; say what became of each.

    `keep` leaves a picture that is no older than its results as it is: a notebook of the run drew it.
    """
    for name in only:
        if name not in FIGURES:
            known = nearest(name, FIGURES) or "there are " + ", ".join(FIGURES)
            raise CarbError(f"--only {name}: no such figure; {known}")
    outcomes = []
    for figure in TABLE:
        stem = folder / figure.name
        if only and figure.name not in only:
            continue
        if keep and figure.is_current(results, stem.with_suffix(".png")):
            outcomes.append(Outcome(figure.name, stem.with_suffix(".png")))
            continue
        try:
            drawn, record = figure.make(results)
            outcomes.append(Outcome(figure.name, save_figure(drawn, stem, record)[0]))
        except Missing as missing:
            outcomes.append(Outcome(figure.name, None, str(missing)))
        except Exception as error:  # no figure keeps the others from being drawn
            outcomes.append(Outcome(figure.name, None, note_failure(results, figure.name, error), damaged=True))
            continue
        failure_path(results.folder, figure.name).unlink(missing_ok=True)
    return outcomes


def failure_path(run_dir: Path, figure: str) -> Path:
    """Return where it is noted how a figure failed; there is no such file for one that was drawn or has no results."""
    return run_dir / "errors" / f"figure_{figure}.txt"


def note_failure(results: RunResults, figure: str, error: Exception) -> str:
    """Write down how a figure failed, and return it in one line; an error that is none of ours names the file."""
    path = failure_path(results.folder, figure)
    write_text(path, "".join(traceback.format_exception(error)))
    return str(error) if isinstance(error, CarbError) else f"{one_line(error)}; how it came to it stands in {path}"
