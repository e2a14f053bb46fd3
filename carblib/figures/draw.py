"""All figures and tables of a run, from saved results, without running a model: `python -m carblib.figures.draw runs/demo`.

The drawing functions take plain arrays and are gathered here for notebooks: charts of the data (`figures_data`) and of
the scores (`figures_scores`, `figures_ablations`), curves (`figures_curves`), pictures (`figures_images`).
`figures_run` names a run's figures; what each is drawn from, and its caption, stands in `figures_run_data`, `_images`,
`_scores` and `_training`. They are written to figures/<run>/<name>.png, .pdf and .json.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carblib.base.errors import CarbError, cli, nearest
from carblib.base.files import read_json
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
from carblib.params import Params, load_params, project_root
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


def main(argv: Sequence[str] | None = None) -> int:
    """Make all figures and tables of a run; return 1 when results that are there could not be read."""
    parser = argparse.ArgumentParser(
        prog="python -m carblib.figures.draw", description="Make all figures and tables of a run."
    )
    parser.add_argument("run_dir", help="folder of the run's results, e.g. runs/demo")
    parser.add_argument("--params", help="parameters of the run; default: params.yaml in its folder")
    parser.add_argument("--out", help="folder for the figures; default: figures/<run>")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these figures, no tables")
    parser.add_argument("--contrast", help="JSON of an object-centric dataset's statistics, shown beside this data's")
    options = parser.parse_args(argv)
    results = load_results(options.run_dir, load_params(options.params) if options.params else None)
    if options.contrast:
        results = dataclasses.replace(results, contrast=read_json(options.contrast))
    outcomes = draw_all(results, options.out, options.only)
    for outcome in outcomes:
        state = outcome.path or f"{'NOT READABLE' if outcome.damaged else 'not made'}: {outcome.reason}"
        print(f"{outcome.name:24} {state}")
    if not options.only:
        for path in write_tables(results, _folder(results, options.out)):
            print(f"{path.stem:24} {path}")
    return 1 if any(outcome.damaged for outcome in outcomes) else 0


if __name__ == "__main__":
    cli(main)
