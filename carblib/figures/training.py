"""Curves over training, drawn from train/<variant>/log.csv: one training in full, and all of them side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from carblib.figures.captions import Drawn, figure_record, images_of
from carblib.figures.style import (
    FAINT,
    INK,
    PALE,
    legend_above,
    new_figure,
    paper_style,
    variant_colours,
    variant_line,
    variant_markers,
)
from carblib.results.saved import MAIN_FIRST, Missing, RunResults
from carblib.results.words import PAGE, percent
from carblib.variants import TRAINED, abbreviations, in_order, variant_label

LOSS_PARTS = {
    "consistent": ("consistent, global", FAINT, "-"),
    "noisy": ("noisy, global", INK, "-"),
    "local_consistent": ("consistent, local", FAINT, ":"),
    "local_noisy": ("noisy, local", INK, ":"),
}


# --- figures of a run ----------------------------------------------------------------------------------------------


def training_curves(results: RunResults) -> Drawn:
    """Loss, λ, consistent share and validation scores of the main training."""
    variant = shown_training(results, results.logs, "train/<variant>/log.csv")
    log, warmup = results.logs[variant], warmup_of(results, variant)
    caption = (
        f"Training of {variant_label(variant)}: in the training batches, cross-entropy of the regions in both views, "
        "weight λ of the noisy region and share of the consistent region; on validation images, the scores."
    )
    alt = f"Four line charts over {int(log['iteration'].max())} iterations."
    weights = log["weight"].dropna()
    if warmup is not None and len(weights):
        caption += f" λ ends at {weights.tail(3).mean():.2g}."
    return of_training(results, [variant], draw_training(log, warmup), caption, alt, batches=True)


def compare_trainings(results: RunResults) -> Drawn:
    """All trainings side by side."""
    if len(results.logs) < 2:
        raise Missing("train/<variant>/log.csv of two variants are needed; notebook 03_train makes them")
    warmup = next((w for w in (warmup_of(results, variant) for variant in results.logs) if w is not None), None)
    caption = (
        "All trainings: on validation images, the scores; in the training batches, weight λ of the noisy region and "
        "share of the consistent region."
        + (" The ceiling is trained on true masks." if "ceiling" in results.logs else "")
    )
    ends = [(variant_label(variant), log["val_miou"].dropna()) for variant, log in results.logs.items()]
    words = ", ".join(f"{name} {percent(scores.iloc[-1])}" for name, scores in ends if len(scores))
    alt = f"Four line charts. Validation mIoU in percent at the end: {words or 'not measured'}."
    figure = draw_trainings(results.logs, warmup)
    return of_training(results, list(results.logs), figure, caption, alt, batches=True)


def warmup_of(results: RunResults, variant: str) -> int | None:
    """Return the iteration at which a variant's balancing begins, None where it has none."""
    params = results.params
    balanced = params.variant(variant).balancing if variant in TRAINED else params.balancing
    return params.warmup if balanced else None


def shown_training(results: RunResults, have: dict[str, Any], what: str) -> str:
    """The variant among `have` that shows the method best: one with CARB, else any but the ceiling."""
    ranked = [variant for variant in MAIN_FIRST if variant in have]
    variant = next(iter(ranked + [variant for variant in have if variant != "ceiling"]), None)
    if variant is None:
        raise Missing(f"no {what} but the ceiling's; notebook 03_train makes them")
    return variant


def watched_images(results: RunResults) -> int:
    """Return on how many validation images the trainings were watched (`val_images`, at most all; see monitor.Monitor).

    0 where neither an evaluation nor the dataset tells how many images the split has.
    """
    total = images_of(results, results.params.val_split)
    return min(results.params.val_images or total, total)


def of_training(
    results: RunResults, variants: Sequence[str], figure: Figure, caption: str, alt: str, batches: bool = False
) -> Drawn:
    """Complete a figure of these trainings; `batches`: it shows the training batches, too."""
    params = results.params
    record = figure_record(
        params,
        f"{caption} {abbreviations(variants)}",
        alt,
        params.val_split,
        watched_images(results),
        ", ".join(f"train/{variant}" for variant in variants) + ", over training",
        batches=params.train_split if batches else "",
    )
    return figure, record


# --- charts --------------------------------------------------------------------------------------------------------


@paper_style()
def draw_training(log: pd.DataFrame, warmup: int | None) -> Figure:
    """One training: loss and its parts, weight λ of the noisy region, consistent share, scores on validation images.

    `log`: a row per logged iteration, columns as in log.csv. `warmup`: the iteration at which balancing begins, None
    where the variant has none.
    """
    figure = new_figure(PAGE, 3.7)
    (loss, weight), (share, score) = figure.subplots(2, 2, sharex=True)
    _smooth_line(loss, log, "loss", PALE, {"label": "total", "linewidth": 3})
    for column, (label, colour, line) in LOSS_PARTS.items():
        if column in log and (log[column].fillna(0) != 0).any():
            _smooth_line(loss, log, column, colour, {"label": label, "linestyle": line})
    loss.set_ylim(0, None)
    loss.set(title="Loss and its parts", ylabel="cross-entropy")
    loss.legend(loc="upper right", ncols=2, frameon=True, framealpha=0.9, edgecolor="none")
    _headroom(loss, 1.6)  # three rows of legend
    _draw_weight(weight, {"": log}, {"": INK}, warmup)
    _smooth_line(share, log, "consistent_share", INK, {}, scale=100)
    share.set(title="Consistent region", ylabel="pixels (%)", ylim=(0, 100), xlabel="iteration")
    scored = log.dropna(subset=["val_miou"])
    score.plot(scored["iteration"], 100 * scored["val_miou"], marker="o", color=INK, label="mIoU")
    small = {"marker": "s", "markerfacecolor": "white", "linestyle": "--", "color": FAINT, "label": "small classes"}
    score.plot(scored["iteration"], 100 * scored["val_small_miou"], **small)
    score.set(title="Validation", ylabel="IoU (%)", xlabel="iteration")
    score.set_ylim(0, None)
    _headroom(score, 1.3)
    score.legend(loc="upper left", ncols=2)
    over_training((loss, weight, share, score), log["iteration"].max(), warmup, named=weight)
    return figure


@paper_style()
def draw_trainings(logs: Mapping[str, pd.DataFrame], warmup: int | None) -> Figure:
    """Several variants side by side: mIoU and small-class mean on validation images, weight λ, consistent share."""
    figure = new_figure(PAGE, 3.9)
    (score, small), (weight, share) = figure.subplots(2, 2, sharex=True)
    variants = in_order(logs)
    colours, markers = variant_colours(variants), variant_markers(variants)
    for variant in variants:
        scored, line = logs[variant].dropna(subset=["val_miou"]), variant_line(variant)
        style = {"color": colours[variant], "marker": markers[variant]} | line
        score.plot(scored["iteration"], 100 * scored["val_miou"], label=variant_label(variant), **style)
        small.plot(scored["iteration"], 100 * scored["val_small_miou"], **style)
        _smooth_line(share, logs[variant], "consistent_share", colours[variant], line, scale=100)
    score.set(title="Validation mIoU", ylabel="IoU (%)", ylim=(0, None))
    small.set(title="Validation, small classes", ylabel="IoU (%)", ylim=(0, None))
    _draw_weight(weight, logs, colours, warmup)
    weight.set_xlabel("iteration")
    share.set(title="Consistent region", ylabel="pixels (%)", ylim=(0, 100), xlabel="iteration")
    last = max(log["iteration"].max() for log in logs.values())
    over_training((score, small, weight, share), last, warmup, named=weight)
    legend_above(figure)
    return figure


def over_training(panels: Iterable[Axes], last: int, warmup: int | None = None, named: Axes | None = None) -> None:
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
    axes: Axes, log: pd.DataFrame, column: str, colour: str, line: Mapping[str, Any], scale: float = 1
) -> None:
    """Plot a column: the values pale, their running mean over a fortieth of the training clear, as `line` says."""
    values = scale * log[column]
    window = max(1, len(log) // 40)
    if window > 1:
        axes.plot(log["iteration"], values, color=colour, alpha=0.18, linewidth=0.6)
    smooth = values.rolling(window, min_periods=1, center=True).mean()
    axes.plot(log["iteration"], smooth, color=colour, **line)


def _headroom(axes: Axes, factor: float) -> None:
    axes.set_ylim(0, axes.get_ylim()[1] * factor)
