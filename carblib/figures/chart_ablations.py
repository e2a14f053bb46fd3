"""The chart of the ablations, drawn from ablations.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from carblib.figures.style import (
    FAINT,
    GRID,
    INK,
    MARKERS,
    SPARE_COLOURS,
    PaperFigure,
    legend_columns,
    new_figure,
    paper_style,
)
from carblib.results.saved import numbers
from carblib.results.words import PAGE, path_label
from carblib.variants import in_order, variant_label

Row = dict[str, Any]
PATH_COLOURS = ("#0072b2", "#e69f00", "#cc79a7", *SPARE_COLOURS)


@paper_style()
def ablation_plot(rows: Sequence[Row]) -> PaperFigure:
    """Ablations: mIoU and small-class mean per variant, a tick per seed, mean and standard deviation over seeds.

    `rows`: {variant, path, masker, seed, miou, small_miou} as in ablations.json; colours are paths, symbols maskers,
    and the legend names what there are several of. The ceiling depends on neither and stands in the middle, dark.
    """
    variants = in_order({row["variant"] for row in rows})
    paths, maskers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("path", "masker"))
    settings = [(path, masker) for path in paths for masker in maskers]
    figure = new_figure(PAGE, 0.8 + len(variants) * (0.15 + 0.11 * len(settings)))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, title in zip(panels, ("miou", "small_miou"), ("mIoU (%)", "small-class mean (%)"), strict=True):
        for place, variant in enumerate(variants):
            for path, masker in settings:
                setting = (path, masker)
                values = 100 * numbers([row[key] for row in rows if _of(row) == (variant, *setting)])
                alone = variant == "ceiling"
                offset = 0 if alone else 0.76 * ((settings.index(setting) + 0.5) / len(settings) - 0.5)
                colour = INK if alone else PATH_COLOURS[paths.index(path) % len(PATH_COLOURS)]
                marker = MARKERS[maskers.index(masker) % len(MARKERS)]
                _draw_seeds(axes, values[~np.isnan(values)], place + offset, colour, marker)
        for place in range(1, len(variants)):
            axes.axhline(place - 0.5, color=GRID, linewidth=0.5)
        axes.set_xlabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(variants)), [variant_label(variant) for variant in variants])
    panels[0].set_ylim(len(variants) - 0.5, -0.5)
    handles = _handles(paths, maskers)
    if handles:
        columns = legend_columns(figure, [handle.get_label() for handle in handles])
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)
    return figure


def _of(row: Row) -> tuple[str, str, str]:
    return row["variant"], row["path"], row["masker"]


def _handles(paths: Sequence[str], maskers: Sequence[str]) -> list[Artist]:
    handles: list[Artist] = []
    if len(paths) > 1:
        colours = [PATH_COLOURS[i % len(PATH_COLOURS)] for i in range(len(paths))]
        handles += [Patch(color=colour, label=path_label(path)) for path, colour in zip(paths, colours, strict=True)]
    if len(maskers) > 1:
        names = [f"{masker.replace('_', ' ')} masker" for masker in maskers]
        marks = [MARKERS[i % len(MARKERS)] for i in range(len(maskers))]
        handles += [
            Line2D([], [], color=FAINT, marker=mark, linestyle="none", label=name)
            for mark, name in zip(marks, names, strict=True)
        ]
    return handles


def _draw_seeds(axes: Axes, values: np.ndarray, place: float, colour: str, marker: str) -> None:
    if not len(values):
        return
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    axes.plot(values, np.full(len(values), place), linestyle="none", marker="|", color=colour, markersize=5, alpha=0.6)
    axes.errorbar(values.mean(), place, xerr=spread, fmt=marker, color=colour, markersize=4, elinewidth=1)
