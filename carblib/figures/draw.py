"""All figures and tables of a run, from saved results, without running a model: `carb figures runs/demo`.

The drawing functions take plain arrays and are gathered here for notebooks: charts of the data (`figures_data`) and of
the scores (`figures_scores`, `figures_ablations`), curves (`figures_curves`), pictures (`figures_images`).
`figures_run` names a run's figures; what each is drawn from, and its caption, stands in `figures_run_data`, `_images`,
`_scores` and `_training`. They are written to figures/<run>/<name>.png, .pdf and .json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carblib.base.errors import CarbError, nearest
from carblib.figures.all import FIGURES
from carblib.figures.captions import save_figure
from carblib.figures.chart_ablations import ablation_plot
from carblib.figures.chart_curves import compare_trainings, region_weight_curves, reliability_curves, training_curves
from carblib.figures.chart_data import (
    class_frequency,
    classes_per_image,
    cooccurrence,
    dataset_difficulty,
    object_sizes,
)
from carblib.figures.chart_scores import confusion_matrix, gain_over, iou_bars, masker_comparison, object_size_curves
from carblib.figures.grids import GridRow, pick_rows, qualitative_grid, region_maps, similarity_panel
from carblib.params import Params, project_root
from carblib.results.saved import Missing, RunResults, class_groups, load_results
from carblib.results.tables import write_tables

__all__ = [
    "GridRow",
    "Outcome",
    "ablation_plot",
    "class_frequency",
    "class_groups",
    "classes_per_image",
    "compare_trainings",
    "confusion_matrix",
    "cooccurrence",
    "dataset_difficulty",
    "draw_all",
    "gain_over",
    "iou_bars",
    "make_all",
    "masker_comparison",
    "object_size_curves",
    "object_sizes",
    "pick_rows",
    "qualitative_grid",
    "region_maps",
    "region_weight_curves",
    "reliability_curves",
    "similarity_panel",
    "training_curves",
]


@dataclass(frozen=True)
class Outcome:
    """What became of one figure: its PNG, or why there is none; `damaged` where results are there but not readable."""

    name: str
    path: Path | None
    reason: str = ""
    damaged: bool = False


def make_all(run_dir: str | Path, params: Params | None = None, out: str | Path | None = None) -> list[Path]:
    """Make every figure and table whose results exist and return the figures' PNGs.

    Raises CarbError where results cannot be read, after all others were drawn.
    """
    results = load_results(run_dir, params)
    outcomes = draw_all(results, out)
    write_tables(results, _folder(results, out))
    damaged = [outcome for outcome in outcomes if outcome.damaged]
    if damaged:
        raise CarbError(f"figure {damaged[0].name}: {damaged[0].reason}")
    return [outcome.path for outcome in outcomes if outcome.path is not None]


def draw_all(results: RunResults, out: str | Path | None = None, only: Sequence[str] = ()) -> list[Outcome]:
    """Draw a run's figures, or those named in `only`, into `out` (default figures/<run>); say what became of each."""
    known = [name for name, _ in FIGURES]
    for name in only:
        if name not in known:
            raise CarbError(f"--only {name}: no such figure; {nearest(name, known) or 'there are ' + ', '.join(known)}")
    folder, outcomes = _folder(results, out), []
    for name, draw in FIGURES:
        if only and name not in only:
            continue
        try:
            figure, record = draw(results)
            outcomes.append(Outcome(name, save_figure(figure, folder / name, record)[0]))
        except Missing as missing:
            outcomes.append(Outcome(name, None, str(missing)))
        except CarbError as error:
            outcomes.append(Outcome(name, None, str(error), damaged=True))
    return outcomes


def _folder(results: RunResults, out: str | Path | None) -> Path:
    return Path(out) if out else project_root() / "figures" / results.run
