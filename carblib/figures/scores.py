"""Charts of the scores, drawn from evaluation/<split>/*.json: IoU per class, small objects by size, confusion.

A figure takes what a run saved; below are the charts of plain evaluations. Scores come as 0–1 and are shown in percent.
Names of small classes are bold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from carblib.classes import ClassSet
from carblib.figures.captions import Drawn, figure_record
from carblib.figures.data import MOST_NUMBERED, brief, draw_matrix
from carblib.figures.style import (
    FAINT,
    GRID,
    INK,
    bold_small,
    legend_above,
    legend_columns,
    new_figure,
    paper_style,
    variant_colours,
    variant_line,
    variant_markers,
)
from carblib.results.saved import Missing, RunResults, numbers
from carblib.results.words import COLUMN, PAGE, percent
from carblib.variants import abbreviations, variant_label

Evaluation = dict[str, Any]


# --- figures of a run ----------------------------------------------------------------------------------------------


def iou_per_class(results: RunResults) -> Drawn:
    """IoU per class of all variants."""
    shown = _measured(results.evaluations.values())
    caption = "IoU per class, sorted by pixel share, with 95 % bootstrap intervals over images; small classes bold."
    alt = "Markers of IoU per class. " + _scores_in_words(shown)
    return _captioned(results, shown, iou_points(shown, results.params.class_set), caption + _told(results, shown), alt)


def pseudo_mask_iou(results: RunResults) -> Drawn:
    """IoU per class of CLIP's masks."""
    shown = _measured(_masks(results))
    caption = (
        "Quality of CLIP's pseudo-masks per class, sorted by pixel share, from the whole image and from zoomed local "
        "views, with 95 % bootstrap intervals over images; small classes bold."
    )
    alt = "Markers of IoU per class. " + _scores_in_words(shown)
    return _captioned(results, shown, iou_points(shown, results.params.class_set), caption, alt)


def object_size_curves(results: RunResults) -> Drawn:
    """Recall and IoU of small objects against their size, all variants."""
    shown = [*results.evaluations.values()]
    _require_objects(shown)
    caption = (
        "Recall (at least half of the object's pixels found) and IoU of the small classes' objects against their size; "
        "n counts objects. An object is a connected component." + _told(results, shown)
    )
    alt = f"Two line charts over object size, one line per variant. {_recall_in_words(shown)}"
    return _captioned(results, shown, size_curves(shown), caption, alt)


def zoom_recovers(results: RunResults) -> Drawn:
    """Small objects in CLIP's masks of the whole image and of local views."""
    shown = _masks(results)
    if len(shown) < 2:
        raise Missing("pseudo-masks from local views were not measured; notebook 02_pseudo_masks does it")
    _require_objects(shown)
    caption = (
        "Small objects found (at least half of their pixels), and how well outlined, by size: CLIP's masks of the "
        "whole image and of zoomed local views. n counts objects, which are connected components of a small class."
    )
    alt = f"Two line charts over object size, two lines each. {_recall_in_words(shown)}"
    return _captioned(results, shown, size_curves(shown), caption, alt)


def gain_over_pseudo_masks(results: RunResults) -> Drawn:
    """IoU gained over CLIP's masks, per class."""
    measured, main = results.evaluations, main_evaluation(results)
    if "pseudo_masks_global" not in measured:
        raise Missing(f"the pseudo-masks were not evaluated on split {main['split']}; notebook 04 does it")
    (base,) = _measured([measured["pseudo_masks_global"]])
    shown = [e for variant, e in measured.items() if variant not in ("pseudo_masks_global", "ceiling")]
    caption = "IoU gained over CLIP's whole-image pseudo-masks per class, in points, sorted by pixel share; small bold."
    _measured([main])
    points = 100 * (main["miou"] - base["miou"])
    alt = f"Dot plot of gains per class. Mean gain of {variant_label(main['variant'])}: {points:+.1f} points."
    figure = gain_over(base, shown, results.params.class_set)
    return _captioned(results, shown, figure, caption + _told(results, [base, *shown]), alt)


def confusion(results: RunResults) -> Drawn:
    """Confusion matrix of the network that stands for the run."""
    main, classes = main_evaluation(results), results.params.class_set
    _measured([main])
    caption = (
        f"Confusion of {variant_label(main['variant'])}, row-normalised: of a true class's pixels, the percentage "
        "predicted as each class. Cells under 0.5 % are left empty."
    )
    pixels = np.sum(main["confusion"], 1)
    recall = np.where(pixels, np.diag(main["confusion"]) / np.maximum(pixels, 1), np.inf)  # inf: a class of no pixel
    alt = (
        f"Matrix of true by predicted classes; least found: {classes.names[recall.argmin()]}, "
        f"{percent(recall.min(), 0)} % of its pixels."
    )
    return _captioned(results, [main], confusion_matrix(main, classes), caption, alt)


# --- what they say -------------------------------------------------------------------------------------------------


def main_evaluation(results: RunResults) -> Evaluation:
    """Return the evaluation of the trained network that stands for the run, or raise Missing."""
    if results.main_variant is None:
        raise Missing("no trained network was evaluated; notebook 04_small_object_evaluation does it")
    return results.evaluations[results.main_variant]


def checkpoints(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Name all trained networks behind these evaluations, "none" where there are only CLIP's own masks."""
    at: dict[int | None, list[str]] = {}
    for evaluation in evaluations:
        if not _is_mask(evaluation):
            at.setdefault(evaluation.get("iteration"), []).append(f"train/{evaluation['variant']}")
    named = [", ".join(names) + (f" at iteration {i}" if i else "") for i, names in at.items()]
    return "; ".join(named) or "none"


def _captioned(results: RunResults, shown: Sequence[Evaluation], figure: Figure, caption: str, alt: str) -> Drawn:
    """Complete a figure that shows these evaluations, all of one split."""
    split, images = shown[0]["split"], shown[0]["images"]
    caption = f"{caption} {abbreviations(e['variant'] for e in shown)}"
    seeds = sorted({e["seed"] for e in shown})
    return figure, figure_record(results.params, caption, alt, split, images, checkpoints(shown), seeds=seeds)


def _is_mask(evaluation: Mapping[str, Any]) -> bool:
    return evaluation["variant"].startswith("pseudo_masks")


def _masks(results: RunResults) -> list[Evaluation]:
    """CLIP's masks as measured by notebook 02, on the validation split."""
    return [evaluation for evaluation in results.validation.values() if _is_mask(evaluation)]


def _measured(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Return those in which any class has a score; raise Missing where none has: all that was measured is void."""
    measured = [*evaluations]
    shown = [evaluation for evaluation in measured if evaluation["miou"] is not None]
    if measured and not shown:
        raise Missing(f"no pixel of split {measured[0]['split']} has a class, so no score is known")
    return shown


def _require_objects(shown: Sequence[Evaluation]) -> None:
    if not any(sum(evaluation["objects"]["all_small"]["count"]) for evaluation in shown):
        why = "no class counts as small" if not shown[0]["small_ids"] else "no small class has an object there"
        raise Missing(f"split {shown[0]['split']} has no small objects to show: {why}")


def _told(results: RunResults, shown: Sequence[Evaluation]) -> str:
    if len(shown) > 1 and any(map(_is_mask, shown)) and results.params.gate != "none":
        return " CLIP's masks are told each image's labels, networks are not."
    return ""


def _scores_in_words(shown: Sequence[Evaluation]) -> str:
    scores = [f"{variant_label(e['variant'])} {percent(e['miou'])}" for e in shown if e["miou"] is not None]
    return "mIoU in percent: " + ", ".join(scores) + "."


def _recall_in_words(shown: Sequence[Evaluation]) -> str:
    ends = []
    for evaluation in shown:
        recalls = [recall for recall in evaluation["objects"]["all_small"]["recall"] if recall is not None]
        if recalls:
            ends.append(f"{variant_label(evaluation['variant'])} {percent(recalls[0])} to {percent(recalls[-1])}")
    return "Recall in percent from the smallest to the largest objects: " + "; ".join(ends) + "."


# --- charts --------------------------------------------------------------------------------------------------------


@paper_style()
def iou_points(evaluations: Sequence[Evaluation], class_set: ClassSet) -> Figure:
    """Per-class IoU of several variants with 95 % intervals, classes sorted by pixel share, the two means last.

    Markers, which also tell variants apart in grey print.
    """
    shares = numbers(evaluations[0]["confusion"]).sum(1)
    shares = 100 * shares / max(shares.sum(), 1)
    order = np.argsort(-shares, kind="stable")
    places = np.concatenate([np.arange(len(order)), len(order) + np.array([0.4, 1.4])])
    figure = new_figure(PAGE, 3.1)
    axes = figure.subplots()
    for place in places[::2]:  # a band for every second class keeps its markers together
        axes.axvspan(place - 0.5, place + 0.5, color=GRID, alpha=0.4, linewidth=0, zorder=0)
    markers = variant_markers([evaluation["variant"] for evaluation in evaluations])
    for i, (evaluation, style) in enumerate(zip(evaluations, _styles(evaluations), strict=True)):
        values, spans = _with_means(evaluation, order)
        middles = places + 0.84 * ((i + 0.5) / len(evaluations) - 0.5)
        axes.vlines(middles, *spans.T, color=style["color"], linewidth=0.9)
        look = {"marker": markers[evaluation["variant"]], "markeredgecolor": "white", "markeredgewidth": 0.3}
        axes.plot(middles, values, linestyle="none", markersize=4.5, clip_on=False, zorder=3, **look, **style)
    labels = [f"{class_set.names[c]} {brief(shares[c])} %" for c in order] + ["mean", "small mean"]
    axes.set_xticks(places, labels, rotation=40, ha="right", rotation_mode="anchor")
    bold_small(axes.get_xticklabels(), [*(class_set.small[c] for c in order), False, True])
    axes.axvline(len(order) - 0.3, color=FAINT, linewidth=0.6)
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel="IoU (%)", ylim=(0, 100), xlim=(-0.5, places[-1] + 0.5))
    axes.grid(axis="y")
    legend_above(figure)
    return figure


def _styles(evaluations: Sequence[Evaluation]) -> list[dict[str, str]]:
    """Colour and label of each."""
    colours = variant_colours([evaluation["variant"] for evaluation in evaluations])
    return [{"color": colour, "label": variant_label(variant)} for variant, colour in colours.items()]


def _with_means(evaluation: Evaluation, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU in percent and its interval, classes in `order`, then mIoU and the small classes' mean: (C+2,), (C+2, 2)."""
    means = [evaluation["miou"], evaluation["small_miou"]]
    ends = [evaluation["miou_interval"], evaluation["small_miou_interval"]]
    values = np.concatenate([numbers(evaluation["iou"])[order], numbers(means)])
    spans = np.concatenate([numbers(evaluation["iou_interval"])[order], numbers(ends)])
    return 100 * values, 100 * spans


@paper_style()
def size_curves(evaluations: Sequence[Evaluation]) -> Figure:
    """Recall and IoU of the small classes' objects against their size. Below each size stands how many there are."""
    tables = [evaluation["objects"]["all_small"] for evaluation in evaluations]
    figure = new_figure(PAGE, 2.3)
    sizes = zip(evaluations[0]["objects"]["labels"], tables[0]["count"], strict=True)
    sizes = [f"{size}\nn = {count:,}" for size, count in sizes]
    places, labels = np.arange(len(sizes)), [variant_label(evaluation["variant"]) for evaluation in evaluations]
    variants = [evaluation["variant"] for evaluation in evaluations]
    colours, markers = variant_colours(variants), variant_markers(variants)
    panels = figure.subplots(1, 2, sharex=True)
    for axes, key, unit in zip(panels, ("recall", "iou"), ("recall (%)", "IoU (%)"), strict=True):
        for i, evaluation in enumerate(evaluations):
            # Lines on top of each other stay visible: `variant_line`, and each stands a little to the side.
            axes.plot(
                places + 0.06 * (i - (len(evaluations) - 1) / 2),
                100 * numbers(tables[i][key]),
                color=colours[evaluation["variant"]],
                marker=markers[evaluation["variant"]],
                **variant_line(evaluation["variant"]),
                markeredgecolor="white",
                markeredgewidth=0.4,
                markersize=5,
                label=labels[i] if key == "iou" else None,
            )
        top = 100 * np.nanmax([numbers(table[key]) for table in tables], initial=0.01)
        axes.set_xticks(places, sizes)
        axes.set(xlim=(-0.35, len(places) - 0.65), ylim=(-0.05 * top, min(1.08 * top, 103)), ylabel=unit)
        axes.set_xlabel("size of small objects")
        axes.grid(axis="y")
    figure.legend(loc="outside upper center", ncols=legend_columns(figure, labels), handlelength=2.6)
    return figure


@paper_style()
def gain_over(reference: Evaluation, evaluations: Sequence[Evaluation], class_set: ClassSet) -> Figure:
    """IoU gained over a reference (the pseudo-masks) per class, in points, sorted by pixel share, means last."""
    order = np.argsort(-numbers(reference["confusion"]).sum(1), kind="stable")
    base, _ = _with_means(reference, order)
    places = np.concatenate([np.arange(len(order)), len(order) + np.array([0.5, 1.5])])
    figure = new_figure(COLUMN, 1.15 + 0.19 * len(places))
    axes = figure.subplots()
    for place in places:
        axes.axhline(place, color=GRID, linewidth=0.5, zorder=0)
    markers = variant_markers([evaluation["variant"] for evaluation in evaluations])
    for i, (evaluation, style) in enumerate(zip(evaluations, _styles(evaluations), strict=True)):
        gain = _with_means(evaluation, order)[0] - base
        axes.plot(
            gain,
            places + 0.4 * ((i + 0.5) / len(evaluations) - 0.5),  # equal gains do not hide each other
            linestyle="none",
            marker=markers[evaluation["variant"]],
            markeredgecolor="white",
            markeredgewidth=0.3,
            markersize=5,
            **style,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axhline(len(order) - 0.25, color=FAINT, linewidth=0.6)
    axes.set_yticks(places, [*(class_set.names[c] for c in order), "mean", "small mean"])
    bold_small(axes.get_yticklabels(), [*(class_set.small[c] for c in order), False, True])
    axes.set(ylim=(places[-1] + 0.6, -0.6), xlabel=f"IoU gained over {variant_label(reference['variant'])} (points)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    legend_above(figure)
    return figure


@paper_style()
def confusion_matrix(evaluation: Evaluation, class_set: ClassSet) -> Figure:
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
