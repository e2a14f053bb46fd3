"""Charts of the scores, drawn from evaluation/<split>/*.json and maskers.json.

Every function takes what these files hold and returns a figure. Scores come as 0–1 and are shown in percent. Names of
small classes are bold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from carblib.classes import ClassSet
from carblib.figures.chart_data import MOST_NUMBERED, draw_matrix, percent
from carblib.figures.style import (
    FAINT,
    GRID,
    INK,
    MARKERS,
    PaperFigure,
    legend_columns,
    new_figure,
    paper_style,
    variant_colours,
    variant_line,
)
from carblib.results.saved import numbers
from carblib.results.words import COLUMN, PAGE
from carblib.variants import variant_label

Evaluation = dict[str, Any]


@paper_style()
def iou_bars(evaluations: Sequence[Evaluation], class_set: ClassSet) -> PaperFigure:
    """Per-class IoU of several variants with 95 % intervals, classes sorted by pixel share, the two means last."""
    shares = numbers(evaluations[0]["confusion"]).sum(1)
    shares = 100 * shares / max(shares.sum(), 1)
    order = np.argsort(-shares, kind="stable")
    places = np.concatenate([np.arange(len(order)), len(order) + np.array([0.4, 1.4])])
    figure = new_figure(PAGE, 3.1)
    axes = figure.subplots()
    colours = variant_colours([evaluation["variant"] for evaluation in evaluations])
    width = 0.84 / len(evaluations)
    for i, evaluation in enumerate(evaluations):
        values, spans = _with_means(evaluation, order)
        middles = places + (i + 0.5) * width - 0.42
        axes.bar(
            middles,
            np.nan_to_num(values),
            width,
            color=colours[evaluation["variant"]],
            edgecolor="white",
            linewidth=0.3,
            label=variant_label(evaluation["variant"]),
        )
        _draw_intervals(axes, middles, spans)
    labels = [f"{class_set.names[c]} {percent(shares[c])} %" for c in order] + ["mean", "small mean"]
    axes.set_xticks(places, labels, rotation=40, ha="right", rotation_mode="anchor")
    for tick, small in zip(axes.get_xticklabels(), [*(class_set.small[c] for c in order), False, True], strict=True):
        tick.set_fontweight("bold" if small else "normal")
    axes.axvline(len(order) - 0.3, color=FAINT, linewidth=0.6)
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel="IoU (%)", ylim=(0, 100), xlim=(-0.55, places[-1] + 0.55))
    axes.grid(axis="y")
    figure.legend(loc="outside upper center", ncols=legend_columns(figure, _labels(evaluations)))
    return figure


def _draw_intervals(axes: Axes, places: np.ndarray, spans: np.ndarray) -> None:
    """Intervals (N, 2) as dark lines with a white rim, which shows them on black bars and on white paper alike."""
    known = ~np.isnan(spans).any(1) & (spans[:, 1] > spans[:, 0])
    for colour, width in (("white", 1.8), (INK, 0.7)):
        axes.vlines(places[known], *spans[known].T, color=colour, linewidth=width, zorder=3)


def _labels(evaluations: Sequence[Evaluation]) -> list[str]:
    return [variant_label(evaluation["variant"]) for evaluation in evaluations]


def _with_means(evaluation: Evaluation, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU in percent and its interval, classes in `order`, then mIoU and the small classes' mean: (C+2,), (C+2, 2)."""
    means = [evaluation["miou"], evaluation["small_miou"]]
    values = np.concatenate([numbers(evaluation["iou"])[order], numbers(means)])
    spans = np.stack([values, values], 1)
    if evaluation.get("iou_interval"):
        ends = [evaluation["miou_interval"], evaluation["small_miou_interval"]]
        spans = np.concatenate([numbers(evaluation["iou_interval"])[order], numbers(ends)])
    return 100 * values, 100 * spans


@paper_style()
def object_size_curves(evaluations: Sequence[Evaluation], class_name: str = "") -> PaperFigure:
    """Recall and IoU of small objects against their size, for all small classes or one of them.

    Below each size stands how many objects it has.
    """
    tables = [e["objects"]["per_class"][class_name] if class_name else e["objects"]["all_small"] for e in evaluations]
    figure = new_figure(PAGE, 2.3)
    colours = variant_colours([evaluation["variant"] for evaluation in evaluations])
    labels = [
        f"{label}\nn = {count:,}"
        for label, count in zip(evaluations[0]["objects"]["labels"], tables[0]["count"], strict=True)
    ]
    places = np.arange(len(labels))
    panels = figure.subplots(1, 2, sharex=True)
    for axes, key, unit in zip(panels, ("recall", "iou"), ("recall (%)", "IoU (%)"), strict=True):
        for i, evaluation in enumerate(evaluations):
            # Lines on top of each other stay visible: `variant_line`, and each stands a little to the side.
            axes.plot(
                places + 0.06 * (i - (len(evaluations) - 1) / 2),
                100 * numbers(tables[i][key]),
                color=colours[evaluation["variant"]],
                marker=MARKERS[i % len(MARKERS)],
                **variant_line(evaluation["variant"]),
                markeredgecolor="white",
                markeredgewidth=0.4,
                markersize=5,
                label=variant_label(evaluation["variant"]) if key == "iou" else None,
            )
        top = 100 * np.nanmax([numbers(table[key]) for table in tables], initial=0.01)
        axes.set_xticks(places, labels)
        axes.set(xlim=(-0.35, len(places) - 0.65), ylim=(-0.05 * top, min(1.08 * top, 103)), ylabel=unit)
        axes.set_xlabel(f"size of {class_name or 'small'} objects")
        axes.grid(axis="y")
    figure.legend(loc="outside upper center", ncols=legend_columns(figure, _labels(evaluations)), handlelength=2.6)
    return figure


@paper_style()
def gain_over(reference: Evaluation, evaluations: Sequence[Evaluation], class_set: ClassSet) -> PaperFigure:
    """IoU gained over a reference (the pseudo-masks) per class, in points, sorted by pixel share, means last."""
    order = np.argsort(-numbers(reference["confusion"]).sum(1), kind="stable")
    base, _ = _with_means(reference, order)
    places = np.concatenate([np.arange(len(order)), len(order) + np.array([0.5, 1.5])])
    figure = new_figure(COLUMN, 1.15 + 0.19 * len(places))
    axes = figure.subplots()
    colours = variant_colours([evaluation["variant"] for evaluation in evaluations])
    for place in places:
        axes.axhline(place, color=GRID, linewidth=0.5, zorder=0)
    for i, evaluation in enumerate(evaluations):
        gain = _with_means(evaluation, order)[0] - base
        axes.plot(
            gain,
            places + 0.4 * ((i + 0.5) / len(evaluations) - 0.5),  # equal gains do not hide each other
            linestyle="none",
            marker=MARKERS[i % len(MARKERS)],
            color=colours[evaluation["variant"]],
            label=variant_label(evaluation["variant"]),
            markeredgecolor="white",
            markeredgewidth=0.3,
            markersize=5,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axhline(len(order) - 0.25, color=FAINT, linewidth=0.6)
    axes.set_yticks(places, [*(class_set.names[c] for c in order), "mean", "small mean"])
    for tick, small in zip(axes.get_yticklabels(), [*(class_set.small[c] for c in order), False, True], strict=True):
        tick.set_fontweight("bold" if small else "normal")
    axes.set(ylim=(places[-1] + 0.6, -0.6), xlabel=f"IoU gained over {variant_label(reference['variant'])} (points)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    figure.legend(loc="outside upper center", ncols=legend_columns(figure, _labels(evaluations)))
    return figure


@paper_style()
def confusion_matrix(evaluation: Evaluation, class_set: ClassSet) -> PaperFigure:
    """Row-normalised confusion: of a true class's pixels, the share given to each predicted class, in percent."""
    counts = numbers(evaluation["confusion"])
    total = counts.sum(1, keepdims=True)
    shares = np.divide(100 * counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    columns = [*class_set.names, "void"][: counts.shape[1]]
    if counts.shape[1] > len(class_set) and not counts[:, -1].any():
        shares, columns = shares[:, :-1], columns[:-1]
    many = len(class_set) > MOST_NUMBERED
    figure = new_figure(PAGE if many else COLUMN, 4.6 if many else COLUMN)
    axes = figure.subplots()
    draw_matrix(axes, shares, class_set.names, columns, "pixels of the true class (%)", numbered=not many)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"Confusion (%)\n{variant_label(evaluation['variant'])}")
    return figure


@paper_style()
def masker_comparison(rows: Sequence[dict[str, Any]]) -> PaperFigure:
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
        values = 100 * numbers([row[key] for row in rows])
        left.barh(places + offset, np.nan_to_num(values), 0.38, color=colour, label=label)
        _write_values(left, values, places + offset, "{:.1f}")
    seconds = numbers([row["seconds"] for row in rows])
    right.barh(places, np.nan_to_num(seconds), 0.55, color=FAINT)
    _write_values(right, seconds, places, "{:#.2g}")
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


def _write_values(axes: Axes, values: np.ndarray, places: np.ndarray, form: str) -> None:
    for value, place in zip(values, places, strict=True):
        axes.annotate(
            "–" if np.isnan(value) else form.format(value).rstrip("."),
            (np.nan_to_num(value), place),
            (2, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
