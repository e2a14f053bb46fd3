"""Settings side by side: ways of making pseudo-masks (maskers.json), and the ablations (ablations.json)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from carblib.figures.captions import Drawn, figure_record
from carblib.figures.style import FAINT, GRID, INK, MARKERS, legend_columns, new_figure, paper_style
from carblib.results.saved import Missing, RunResults, numbers
from carblib.results.words import PAGE, path_label, percent, plural
from carblib.variants import abbreviations, in_order, variant_label

Row = dict[str, Any]
PATH_COLOURS = ("#0072b2", "#e69f00", "#cc79a7")


# --- maskers -------------------------------------------------------------------------------------------------------


def masker_comparison(results: RunResults) -> Drawn:
    """Ways of making pseudo-masks side by side."""
    if not results.maskers:
        raise Missing("maskers.json names no masker; notebook 02_pseudo_masks compares them")
    caption = "Pseudo-masks by masker, best first: mIoU, mean over the small classes, and seconds per image."
    if all(row["miou"] is None for row in results.maskers):
        raise Missing("no score in maskers.json is known: all that was measured is void")
    best = max(results.maskers, key=lambda row: row["miou"] or 0)
    alt = f"Bars per masker; best {best['masker'].replace('_', ' ')} with {percent(best['miou'])} % mIoU."
    record = figure_record(results.params, caption, alt, best["split"], best["images"])
    return masker_bars(results.maskers), record


@paper_style()
def masker_bars(rows: Sequence[dict[str, Any]]) -> Figure:
    """Maskers, best first: mIoU and small-class mean of their pseudo-masks, and seconds per image.

    `rows`: {masker, miou, small_miou, seconds} as in maskers.json.
    """
    rows = sorted(rows, key=lambda row: -np.nan_to_num(numbers(row["miou"])))
    places = np.arange(len(rows))
    figure = new_figure(PAGE, 0.85 + 0.32 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.7, 1))
    for key, offset, colour, label in (
        ("miou", -0.2, "#0072b2", "mIoU"),
        ("small_miou", 0.2, "#e69f00", "small classes"),
    ):
        values = [row[key] for row in rows]
        bars = left.barh(places + offset, 100 * np.nan_to_num(numbers(values)), 0.38, color=colour, label=label)
        left.bar_label(bars, map(percent, values), padding=2, fontsize=7)
    seconds = [row["seconds"] for row in rows]
    bars = right.barh(places, seconds, 0.55, color=FAINT)
    right.bar_label(bars, [f"{value:#.2g}".rstrip(".") for value in seconds], padding=2, fontsize=7)
    left.set_yticks(places, [str(row["masker"]).replace("_", " ") for row in rows])
    left.set_ylim(len(rows) - 0.45, -0.55)
    left.set_xlabel("IoU of the pseudo-masks (%)")
    right.set_xlabel("seconds per image")
    for axes in (left, right):
        axes.set_xlim(0, 1.12 * axes.get_xlim()[1])
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


# --- ablations -----------------------------------------------------------------------------------------------------


def ablations(results: RunResults) -> Drawn:
    """Variants, paths and maskers over seeds."""
    rows = results.ablations
    if not rows:
        raise Missing("ablations.json has no row; notebook 05_ablations trains them")
    seeds = sorted({row["seed"] for row in rows if row["seed"] is not None})
    paths, maskers = ({row[key]: None for row in rows} for key in ("path", "masker"))
    caption = f"Ablations over {plural(len(seeds), 'seed')}, "
    caption += f"{path_label(next(iter(paths)))}, " if len(paths) == 1 else ""
    caption += f"{next(iter(maskers)).replace('_', ' ')} masker: " if len(maskers) == 1 else "by path and masker: "
    caption += "tick marks are single seeds, symbols their mean, lines one standard deviation to each side."
    if len(paths) * len(maskers) > 1:
        caption += " The ceiling depends on neither path nor masker and is drawn once."
    variants = {row["variant"]: None for row in rows}
    scores = {v: [row["miou"] for row in rows if row["variant"] == v and row["miou"] is not None] for v in variants}
    means = {variant: np.mean(own) for variant, own in scores.items() if own}
    if not means:
        raise Missing("no score in ablations.json is known: all that was measured is void")
    words = ", ".join(f"{variant_label(variant)} {percent(mean)}" for variant, mean in means.items())
    alt = f"Dot plot of mIoU and small-class mean per variant. Mean mIoU in percent: {words}."
    trained = ", ".join(variant for variant in variants if not variant.startswith("pseudo_masks"))
    record = figure_record(
        results.params,
        f"{caption} {abbreviations(variants)}",
        alt,
        rows[0]["split"],
        rows[0]["images"],
        f"of {trained}, one per seed" if trained else "none",
        seeds=seeds,
    )
    return ablation_plot(rows), record


@paper_style()
def ablation_plot(rows: Sequence[Row]) -> Figure:
    """Ablations: mIoU and small-class mean per variant, a tick per seed, mean and standard deviation over seeds.

    `rows`: {variant, path, masker, seed, miou, small_miou} as in ablations.json; colours are paths, symbols maskers,
    and the legend names what there are several of. The ceiling depends on neither and stands in the middle, dark.
    """
    variants = in_order({row["variant"] for row in rows})
    paths, maskers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("path", "masker"))
    colours, markers = dict(zip(paths, PATH_COLOURS, strict=False)), dict(zip(maskers, MARKERS, strict=False))
    settings = [(path, masker) for path in paths for masker in maskers]
    figure = new_figure(PAGE, 0.8 + len(variants) * (0.15 + 0.11 * len(settings)))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, title in zip(panels, ("miou", "small_miou"), ("mIoU (%)", "small-class mean (%)"), strict=True):
        for place, variant in enumerate(variants):
            for i, (path, masker) in enumerate(settings):
                own = [row for row in rows if (row["variant"], row["path"], row["masker"]) == (variant, path, masker)]
                values, alone = 100 * numbers([row[key] for row in own]), variant == "ceiling"
                offset = 0 if alone else 0.76 * ((i + 0.5) / len(settings) - 0.5)
                colour = INK if alone else colours[path]
                _draw_seeds(axes, values[~np.isnan(values)], place + offset, colour, markers[masker])
        for place in range(1, len(variants)):
            axes.axhline(place - 0.5, color=GRID, linewidth=0.5)
        axes.set_xlabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(variants)), [variant_label(variant) for variant in variants])
    panels[0].set_ylim(len(variants) - 0.5, -0.5)
    handles: list[Artist] = []
    if len(paths) > 1:
        handles += [Patch(color=colour, label=path_label(path)) for path, colour in colours.items()]
    if len(maskers) > 1:
        mark = {"color": FAINT, "linestyle": "none"}
        names = {masker: f"{masker.replace('_', ' ')} masker" for masker in maskers}
        handles += [Line2D([], [], marker=markers[masker], label=name, **mark) for masker, name in names.items()]
    if handles:
        columns = legend_columns(figure, [handle.get_label() for handle in handles])
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)
    return figure


def _draw_seeds(axes: Axes, values: np.ndarray, place: float, colour: str, marker: str) -> None:
    if not len(values):
        return
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    axes.plot(values, np.full(len(values), place), linestyle="none", marker="|", color=colour, markersize=5, alpha=0.6)
    axes.errorbar(values.mean(), place, xerr=spread, fmt=marker, color=colour, markersize=4, elinewidth=1)
