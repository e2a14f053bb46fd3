"""Curves over training, drawn from train/<variant>/log.csv and reliability.csv."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from carblib.classes import ClassSet
from carblib.figures.style import (
    FAINT,
    INK,
    MARKERS,
    PaperFigure,
    legend_columns,
    new_figure,
    paper_style,
    variant_colours,
    variant_line,
)
from carblib.results.saved import class_groups
from carblib.results.words import COLUMN, PAGE
from carblib.variants import in_order, variant_label

LOSS_PARTS = {
    "consistent": ("consistent, global", "#0072b2", "-"),
    "noisy": ("noisy, global", "#d55e00", "-"),
    "local_consistent": ("consistent, local", "#56b4e9", "--"),
    "local_noisy": ("noisy, local", "#e69f00", "--"),
}
LABEL_HEIGHT = 0.135  # inches a line's name takes
GROUP_COLOURS = {"all classes": "#bbbbbb", "large classes": "#0072b2", "small classes": "#e69f00"}


@paper_style()
def training_curves(log: pd.DataFrame, warmup: int | None) -> PaperFigure:
    """One training: loss and its parts, weight λ of the noisy region, consistent share, scores on validation images.

    `log`: a row per logged iteration, columns as in log.csv. `warmup`: the iteration at which balancing begins, None
    where the variant has none.
    """
    figure = new_figure(PAGE, 3.7)
    (loss, weight), (share, score) = figure.subplots(2, 2, sharex=True)
    _smooth_line(loss, log, "loss", color=INK, label="total")
    for column, (label, colour, line) in LOSS_PARTS.items():
        if column in log and (log[column].fillna(0) != 0).any():
            _smooth_line(loss, log, column, color=colour, label=label, linestyle=line)
    loss.set_ylim(0, None)
    loss.set(title="Loss and its parts", ylabel="cross-entropy")
    loss.legend(loc="upper right", ncols=2, frameon=True, framealpha=0.9, edgecolor="none")
    _headroom(loss, 1.6)  # three rows of legend
    _draw_weight(weight, {"": log}, {"": "#0072b2"}, warmup)
    _smooth_line(share, log, "consistent_share", 100, color="#0072b2")
    share.set(title="Consistent region", ylabel="pixels (%)", ylim=(0, 100), xlabel="iteration")
    scored = log.dropna(subset=["val_miou"])
    score.plot(scored["iteration"], 100 * scored["val_miou"], marker="o", color="#0072b2", label="mIoU")
    if "val_small_miou" in scored:
        score.plot(
            scored["iteration"], 100 * scored["val_small_miou"], marker="s", color="#e69f00", label="small classes"
        )
    score.set(title="Validation", ylabel="IoU (%)", xlabel="iteration")
    score.set_ylim(0, None)
    _headroom(score, 1.3)
    score.legend(loc="upper left", ncols=2)
    _over_training((loss, weight, share, score), log["iteration"].max(), warmup, named=weight)
    return figure


@paper_style()
def compare_trainings(logs: Mapping[str, pd.DataFrame], warmup: int | None) -> PaperFigure:
    """Several variants side by side: mIoU and small-class mean on validation images, weight λ, consistent share."""
    figure = new_figure(PAGE, 3.9)
    (score, small), (weight, share) = figure.subplots(2, 2, sharex=True)
    variants = in_order(logs)
    colours = variant_colours(variants)
    for i, variant in enumerate(variants):
        scored, line = logs[variant].dropna(subset=["val_miou"]), variant_line(variant)
        style = {"color": colours[variant], "marker": MARKERS[i % len(MARKERS)]} | line
        score.plot(scored["iteration"], 100 * scored["val_miou"], label=variant_label(variant), **style)
        if "val_small_miou" in scored:
            small.plot(scored["iteration"], 100 * scored["val_small_miou"], **style)
        _smooth_line(share, logs[variant], "consistent_share", 100, color=colours[variant], **line)
    score.set(title="Validation mIoU", ylabel="IoU (%)", ylim=(0, None))
    small.set(title="Validation, small classes", ylabel="IoU (%)", ylim=(0, None))
    _draw_weight(weight, logs, colours, warmup)
    weight.set_xlabel("iteration")
    share.set(title="Consistent region", ylabel="pixels (%)", ylim=(0, 100), xlabel="iteration")
    last = max(log["iteration"].max() for log in logs.values())
    _over_training((score, small, weight, share), last, warmup, named=weight)
    figure.legend(loc="outside upper center", ncols=legend_columns(figure, [variant_label(v) for v in variants]))
    return figure


@paper_style()
def reliability_curves(reliability: pd.DataFrame, class_set: ClassSet, warmup: int | None) -> PaperFigure:
    """Share of the consistent region, and how often CLIP's label is right inside and outside it, by class group.

    `reliability`: rows as in reliability.csv. Groups are sums over pixels of the classes CLIP gives, not means over
    classes.
    """
    groups = class_groups(reliability, class_set)
    figure = new_figure(PAGE, 2.4)
    panels = figure.subplots(1, 3, sharex=True)
    titles = ("Share of consistent pixels", "CLIP right, consistent", "CLIP right, noisy")
    for axes, key, title in zip(panels, ("share", "inside", "outside"), titles, strict=True):
        for i, (name, group) in enumerate(groups.items()):
            # All classes nearly coincide with the large ones: a broad pale line below shows both.
            style = {"linewidth": 4} if name == "all classes" else {"marker": MARKERS[i]}
            label = name if axes is panels[0] else None
            axes.plot(group["iteration"], 100 * group[key], color=GROUP_COLOURS[name], label=label, **style)
        axes.set(title=title, ylim=(0, 103), xlabel="iteration")
        mark_warmup(axes, warmup, name=False, in_legend=axes is panels[0])
    _over_training(panels, reliability["iteration"].max())
    panels[0].set_ylabel("pixels (%)")
    figure.legend(loc="outside upper center", ncols=4, handlelength=2)
    return figure


@paper_style()
def region_weight_curves(weights: pd.DataFrame, class_set: ClassSet) -> PaperFigure:
    """Weight λ of the noisy region per class over training, every line named and numbered at its end; small bold.

    `weights`: rows {iteration, class, weight} as in region_weights.csv, empty during the warm-up, which is not shown.
    Classes are told apart by their names, not by colours: palettes have several of one darkness.
    """
    shown = weights[weights["weight"] > 0]
    ends = shown.sort_values("iteration").groupby("class")["weight"].last().sort_values()
    figure = new_figure(COLUMN, max(2.2, 0.75 + LABEL_HEIGHT * len(ends)))
    axes = figure.subplots()
    low, high = min(shown["weight"].min() / 1.2, 0.5), max(shown["weight"].max() * 1.2, 1.2)
    axes.set(yscale="log", ylim=(low, high), xlabel="iteration", ylabel="weight λ of the noisy region")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(axis="y")
    wanted = np.log(ends.to_numpy() / low) / np.log(high / low)  # places in the axes, 0 below and 1 above
    places = spread_apart(wanted, LABEL_HEIGHT / (figure.get_figheight() - 0.65))
    for name, value, start, place in zip(ends.index, ends, wanted, places, strict=True):
        small = class_set.small[class_set.index(name)]
        rows = shown[shown["class"] == name]
        colour = GROUP_COLOURS["small classes" if small else "large classes"]
        style = {
            "color": colour,
            "linewidth": 1.8 if small else 0.9,
            "marker": "o",
            "markersize": 3.5,
            "clip_on": False,
        }
        axes.plot(rows["iteration"], rows["weight"], **style)
        _name_at_the_end(axes, f"{name} {value:.2g}", start, place, colour, small)
    iterations = sorted(shown["iteration"].unique())
    axes.set_xlim(iterations[0] - (len(iterations) == 1), iterations[-1])
    axes.xaxis.set_major_locator(
        FixedLocator(iterations) if len(iterations) <= 4 else MaxNLocator(4, steps=(1, 2, 5, 10), integer=True)
    )
    return figure


def _name_at_the_end(axes: Axes, text: str, start: float, place: float, colour: str, bold: bool) -> None:
    """Write beside the axes at height `place`, with a thin line from `start`, the end of the curve (both 0–1)."""
    axes.plot([1.01, 1.06], [start, place], color=colour, linewidth=0.5, transform=axes.transAxes, clip_on=False)
    weight = "bold" if bold else "normal"
    axes.text(1.07, place, text, transform=axes.transAxes, va="center", fontsize=7, fontweight=weight)


def spread_apart(places: Sequence[float], gap: float) -> np.ndarray:
    """Move ascending places as little as needed for neighbours to stand `gap` apart, within 0–1 where there is room.

    Those too close to each other become one block around their mean.
    """
    blocks: list[list[float]] = []  # [sum of wanted places of the block's start, number of members]
    for i, place in enumerate(places):
        blocks.append([place - i * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    starts = np.repeat([total / count for total, count in blocks], [int(count) for _, count in blocks])
    room = max(1 - gap * (len(places) - 1), 0)
    return np.clip(starts, 0, room) + gap * np.arange(len(places))


def _over_training(panels: Iterable[Axes], last: int, warmup: int | None = None, named: Axes | None = None) -> None:
    """Let all panels run from 0 to the last iteration, so that figures of one training can be compared."""
    for axes in panels:
        axes.set_xlim(0, 1.02 * last)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10), integer=True))
        axes.grid(axis="y")
        mark_warmup(axes, warmup, name=axes is named)


def mark_warmup(axes: Axes, warmup: int | None, name: bool = True, in_legend: bool = False) -> None:
    """Mark the warm-up's end by a dashed line; `name` writes so beside the line, `in_legend` in the legend."""
    if not warmup:
        return
    label = "warm-up ends" if in_legend else None
    axes.axvline(warmup, color=FAINT, linestyle=(0, (4, 3)), linewidth=0.8, zorder=0.5, label=label)
    if name:
        axes.annotate(
            "warm-up ends",
            (warmup, 0.02),
            (-3, 0),
            xycoords=("data", "axes fraction"),
            rotation=90,
            ha="right",
            textcoords="offset points",
            va="bottom",
            fontsize=7,
            color=FAINT,
        )


def _draw_weight(axes: Axes, logs: Mapping[str, pd.DataFrame], colours: Mapping[str, str], warmup: int | None) -> None:
    shown = []
    for variant, log in logs.items():
        after = log[(log["iteration"] > (warmup or 0)) & (log["weight"] > 0)]
        if len(after):
            axes.plot(after["iteration"], after["weight"], color=colours[variant], **variant_line(variant))
            shown.append(after["weight"])
    axes.set(title="Weight λ of the noisy region", ylabel="λ")
    if shown:
        values = np.concatenate(shown)
        axes.set_yscale("log")
        axes.set_ylim(min(values.min() / 1.5, 0.1), max(values.max() * 1.5, 1))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter("")
        axes.axhline(1, color=FAINT, linewidth=0.6)
    else:
        axes.set(ylim=(0, 1), yticks=[])
        axes.text(0.5, 0.5, "no balancing", transform=axes.transAxes, ha="center", va="center", color=FAINT)


def _smooth_line(
    axes: Axes,
    log: pd.DataFrame,
    column: str,
    scale: float = 1,
    color: str = INK,
    label: str = "",
    linestyle: str | tuple = "-",
    linewidth: float = 1.2,
) -> None:
    """Plot a column: the values pale, their running mean over a fortieth of the training clear."""
    values = scale * log[column]
    window = max(1, len(log) // 40)
    if window > 1:
        axes.plot(log["iteration"], values, color=color, alpha=0.18, linewidth=0.6)
    smooth = values.rolling(window, min_periods=1, center=True).mean()
    axes.plot(log["iteration"], smooth, color=color, label=label or None, linestyle=linestyle, linewidth=linewidth)


def _headroom(axes: Axes, factor: float) -> None:
    axes.set_ylim(0, axes.get_ylim()[1] * factor)


def spread_evenly(iterations: Sequence[int], count: int, warmup: int | None = None) -> list[int]:
    """Choose at most `count` iterations by rule: first, last, the warm-up's end, the rest evenly spaced."""
    iterations = sorted(iterations)
    if len(iterations) <= count:
        return iterations
    chosen = {iterations[0], iterations[-1]}
    if warmup and count > 2:
        chosen.add(min(iterations, key=lambda i: abs(i - warmup)))
    for place in np.linspace(0, len(iterations) - 1, count).round().astype(int):
        if len(chosen) < count:
            chosen.add(iterations[place])
    return sorted(chosen)
