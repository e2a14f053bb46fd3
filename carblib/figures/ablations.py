"""Settings side by side: ways of making pseudo-masks (maskers.json), and the ablations (ablations.json)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from carblib.figures.captions import Drawn, figure_record
from carblib.figures.style import FAINT, GRID, INK, PALE, legend_columns, new_figure, paper_style
from carblib.results.saved import Missing, RunResults, numbers
from carblib.results.words import PAGE, path_label, percent, plural
from carblib.variants import abbreviations, in_order, variant_label

Row = dict[str, Any]
# Grey, as colours mean variants: a path has its grey, marker and line, a masker fills the marker.
PATH_STYLES = ((INK, "o", "-"), (FAINT, "s", "--"), (INK, "^", ":"))
FILLS = (
    *({"fillstyle": part} for part in ("full", "none", "left", "right", "top", "bottom")),
    {"markerfacecolor": PALE},
)


# --- maskers -------------------------------------------------------------------------------------------------------


def masker_comparison(results: RunResults) -> Drawn:
    """Ways of making pseudo-masks side by side."""
    rows = results.maskers
    if not rows:
        raise Missing("maskers.json names no masker; notebook 02_pseudo_masks compares them")
    caption = "Pseudo-masks by what each way changes about the first, the paper's: mIoU, mean over the small classes, "
    if all(row["miou"] is None for row in rows):
        raise Missing("no score in maskers.json is known: all that was measured is void")
    if any(_interval(row, "miou") for row in rows):
        caption += "both with 95 % bootstrap intervals over images, and seconds per image. Ways whose intervals "
        caption += "overlap are not ranked by these images."
    else:
        caption += f"and seconds per image. Without intervals: {plural(rows[0]['images'], 'image')} do not rank them."
    scores = ", ".join(f"{_named(row)} {percent(row['miou'])}" for row in rows)
    record = figure_record(
        results.params, caption, f"Markers per way; mIoU in percent: {scores}.", rows[0]["split"], rows[0]["images"]
    )
    return masker_dots(rows), record


def _named(row: Row) -> str:
    return str(row["masker"]).replace("_", " ")


def _interval(row: Row, key: str) -> list[float] | None:
    """The interval of a score, None where it is unknown: an older maskers.json has none."""
    ends = row.get(f"{key}_interval")
    return ends if ends and None not in ends else None


@paper_style()
def masker_dots(rows: Sequence[Row]) -> Figure:
    """Maskers in their order: mIoU and small-class mean of their pseudo-masks with intervals, and seconds per image.

    `rows`: {masker, miou, small_miou, miou_interval, small_miou_interval, seconds} as in maskers.json.
    """
    places = np.arange(len(rows))
    figure = new_figure(PAGE, 0.85 + 0.28 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
    for key, offset, marker, fill, label in (
        ("miou", -0.17, "o", INK, "mIoU"),
        ("small_miou", 0.17, "s", "white", "small classes"),
    ):
        for place, row in zip(places + offset, rows, strict=True):
            if row[key] is None:
                continue
            low, high = _interval(row, key) or (row[key], row[key])
            left.hlines(place, 100 * low, 100 * high, color=INK, linewidth=0.9)
            left.plot(100 * row[key], place, marker, color=INK, markerfacecolor=fill, markersize=4)
            beside = {"textcoords": "offset points", "va": "center", "fontsize": 7}
            left.annotate(percent(row[key]), (100 * max(high, row[key]), place), (5, 0), **beside)
        left.plot([], [], marker, color=INK, markerfacecolor=fill, label=label)
    seconds = [row["seconds"] for row in rows]
    bars = right.barh(places, seconds, 0.5, color=PALE)
    right.bar_label(bars, [f"{value:#.2g}".rstrip(".") for value in seconds], padding=2, fontsize=7)
    left.set_yticks(places, map(_named, rows))
    left.set_ylim(len(rows) - 0.45, -0.55)
    left.set_xlabel("IoU of the pseudo-masks (%)")
    right.set_xlabel("seconds per image")
    for axes in (left, right):
        axes.set_xlim(0, 1.16 * axes.get_xlim()[1])
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
    alt = f"Dot plot of mIoU and small-class mean per variant. Mean mIoU in percent: {_means_in_words(rows)}."
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


def _means_in_words(rows: Sequence[Row]) -> str:
    """Say per variant the mean over seeds that is drawn; of several, one per path and masker, the ends."""
    scores: dict[str, dict[tuple[str, str], list[float]]] = {}
    for row in rows:
        if row["miou"] is not None:
            setting = (row["path"], row["masker"])
            scores.setdefault(row["variant"], {}).setdefault(setting, []).append(row["miou"])
    if not scores:
        raise Missing("no score in ablations.json is known: all that was measured is void")
    words = []
    for variant, settings in scores.items():
        means = [np.mean(own) for own in settings.values()]
        ends = dict.fromkeys((percent(min(means)), percent(max(means))))
        words.append(f"{variant_label(variant)} {' to '.join(ends)}")
    return ", ".join(words)


@paper_style()
def ablation_plot(rows: Sequence[Row]) -> Figure:
    """Ablations: mIoU and small-class mean per variant, a tick per seed, mean and standard deviation over seeds.

    `rows`: {variant, path, masker, seed, miou, small_miou} as in ablations.json; markers and lines are paths, their
    filling maskers, and the legend names what there are several of. The ceiling depends on neither and stands in the
    middle, dark.
    """
    variants = in_order({row["variant"] for row in rows})
    paths, maskers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("path", "masker"))
    styles, fills = dict(zip(paths, PATH_STYLES, strict=False)), dict(zip(maskers, FILLS, strict=False))
    settings = [(path, masker) for path in paths for masker in maskers]
    figure = new_figure(PAGE, 0.8 + len(variants) * (0.15 + 0.11 * len(settings)))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, title in zip(panels, ("miou", "small_miou"), ("mIoU (%)", "small-class mean (%)"), strict=True):
        for place, variant in enumerate(variants):
            for i, (path, masker) in enumerate(settings):
                own = [row for row in rows if (row["variant"], row["path"], row["masker"]) == (variant, path, masker)]
                values, alone = 100 * numbers([row[key] for row in own]), variant == "ceiling"
                offset = 0 if alone else 0.76 * ((i + 0.5) / len(settings) - 0.5)
                style = (INK, "D", "-") if alone else styles[path]
                _draw_seeds(axes, values[~np.isnan(values)], place + offset, style, fills[masker])
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
        keys = ("color", "marker", "linestyle")
        handles += [Line2D([], [], label=path_label(p), **dict(zip(keys, styles[p], strict=True))) for p in paths]
    if len(maskers) > 1:
        mark = {"color": INK, "marker": "o", "linestyle": "none", "markerfacecoloralt": "white"}
        names = {masker: f"{masker.replace('_', ' ')} masker" for masker in maskers}
        handles += [Line2D([], [], label=name, **mark, **fills[masker]) for masker, name in names.items()]
    if handles:
        columns = legend_columns(figure, [handle.get_label() for handle in handles])
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.6)
    return figure


def _draw_seeds(axes: Axes, values: np.ndarray, place: float, style: tuple[str, str, str], fill: Row) -> None:
    if not len(values):
        return
    colour, marker, line = style
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    axes.plot(values, np.full(len(values), place), linestyle="none", marker="|", color=colour, markersize=5, alpha=0.6)
    axes.hlines(place, values.mean() - spread, values.mean() + spread, color=colour, linestyle=line, linewidth=1)
    axes.plot(values.mean(), place, marker, color=colour, markersize=4.5, markerfacecoloralt="white", **fill)
