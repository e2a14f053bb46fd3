"""What the figures of a run's scores are drawn from, and their captions; see `figures_run` for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from carblib.figures.captions import figure_record
from carblib.figures.chart_ablations import ablation_plot
from carblib.figures.chart_scores import confusion_matrix, gain_over, iou_bars, masker_comparison, object_size_curves
from carblib.figures.of_data import Drawn
from carblib.figures.style import PaperFigure
from carblib.results.saved import Missing, RunResults
from carblib.results.words import path_label, plural
from carblib.variants import abbreviations, variant_label

Evaluation = dict[str, Any]


def _comparable(results: RunResults) -> dict[str, Evaluation]:
    chosen = results.evaluations
    if not chosen:
        raise Missing("no evaluation yet; notebooks 02_pseudo_masks and 04_small_object_evaluation make them")
    return chosen


def main_evaluation(results: RunResults) -> Evaluation:
    """Return the evaluation of the trained network that stands for the run, or raise Missing."""
    if results.main_variant is None:
        raise Missing("no trained network was evaluated; notebook 04_small_object_evaluation does it")
    return results.evaluations[results.main_variant]


def _of_scores(
    results: RunResults, evaluations: Sequence[Evaluation], figure: PaperFigure, caption: str, alt: str
) -> Drawn:
    """Complete a figure that shows these evaluations, all of one split."""
    split, images = evaluations[0]["split"], evaluations[0]["images"]
    caption = f"{caption} {abbreviations(e['variant'] for e in evaluations)}"
    seeds = sorted({e["seed"] for e in evaluations if e.get("seed") is not None})
    record = figure_record(results.params, caption, alt, split, images, checkpoints(evaluations), seeds=seeds)
    return figure, record


def checkpoints(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Name all trained networks behind these evaluations, "none" where there are only CLIP's own masks."""
    at: dict[int | None, list[str]] = {}
    for evaluation in evaluations:
        if not evaluation["variant"].startswith("pseudo_masks"):
            at.setdefault(evaluation.get("iteration"), []).append(f"train/{evaluation['variant']}")
    named = [", ".join(names) + (f" at iteration {i}" if i else "") for i, names in at.items()]
    return "; ".join(named) or "none"


def _told(results: RunResults, chosen: Mapping[str, Evaluation]) -> str:
    masks = any(variant.startswith("pseudo_masks") for variant in chosen)
    if masks and len(chosen) > 1 and results.params.gate != "none":
        return " CLIP's masks are told each image's labels, networks are not."
    return ""


def _scores_in_words(evaluations: Mapping[str, Evaluation]) -> str:
    scores = [f"{variant_label(v)} {100 * e['miou']:.1f}" for v, e in evaluations.items() if e["miou"] is not None]
    return "mIoU in percent: " + ", ".join(scores) + "."


def per_class(results: RunResults) -> Drawn:
    """IoU per class of all variants."""
    chosen = _comparable(results)
    caption = "IoU per class, sorted by pixel share, with 95 % bootstrap intervals over images; small classes bold."
    figure, evaluations = iou_bars(list(chosen.values()), results.params.class_set), list(chosen.values())
    alt = "Grouped bars of IoU per class. " + _scores_in_words(chosen)
    return _of_scores(results, evaluations, figure, caption + _told(results, chosen), alt)


def object_sizes(results: RunResults) -> Drawn:
    """Recall and IoU of small objects against their size, all variants."""
    chosen = {variant: e for variant, e in _comparable(results).items() if e.get("objects")}
    if not chosen:
        raise Missing("no evaluation measured objects; evaluate again in notebook 04_small_object_evaluation")
    caption = (
        "Recall (at least half of the object's pixels found) and IoU of the small classes' objects against their size; "
        "n counts objects. An object is a connected component." + _told(results, chosen)
    )
    alt = f"Two line charts over object size, one line per variant. {_recall_in_words(chosen)}"
    return _of_scores(results, list(chosen.values()), object_size_curves(list(chosen.values())), caption, alt)


def zoom_recovers(results: RunResults) -> Drawn:
    """Small objects in CLIP's masks of the whole image and of local views."""
    measured = {variant: e for variant, e in _masks_measured(results).items() if e.get("objects")}
    if len(measured) < 2:
        raise Missing("pseudo-masks from local views were not measured; notebook 02_pseudo_masks does it")
    caption = (
        "Small objects found (at least half of their pixels), and how well outlined, by size: CLIP's masks of the "
        "whole image and of zoomed local views. n counts objects, which are connected components of a small class."
    )
    alt = f"Two line charts over object size, two lines each. {_recall_in_words(measured)}"
    return _of_scores(results, list(measured.values()), object_size_curves(list(measured.values())), caption, alt)


def _recall_in_words(evaluations: Mapping[str, Evaluation]) -> str:
    ends = []
    for variant, evaluation in evaluations.items():
        recalls = [recall for recall in evaluation["objects"]["all_small"]["recall"] if recall is not None]
        if recalls:
            ends.append(f"{variant_label(variant)} {100 * recalls[0]:.1f} to {100 * recalls[-1]:.1f}")
    return "Recall in percent from the smallest to the largest objects: " + "; ".join(ends) + "."


def gain(results: RunResults) -> Drawn:
    """IoU gained over CLIP's masks, per class."""
    chosen, evaluation = _comparable(results), main_evaluation(results)
    if "pseudo_masks_global" not in chosen:
        raise Missing(f"the pseudo-masks were not evaluated on split {evaluation['split']}; notebook 04 does it")
    others = [e for variant, e in chosen.items() if variant not in ("pseudo_masks_global", "ceiling")]
    caption = "IoU gained over CLIP's whole-image pseudo-masks per class, in points, sorted by pixel share; small bold."
    caption += _told(results, chosen)
    points = 100 * (evaluation["miou"] - chosen["pseudo_masks_global"]["miou"])
    alt = f"Dot plot of gains per class. Mean gain of {variant_label(evaluation['variant'])}: {points:+.1f} points."
    figure = gain_over(chosen["pseudo_masks_global"], others, results.params.class_set)
    return _of_scores(results, others, figure, caption, alt)


def _masks_measured(results: RunResults) -> dict[str, Evaluation]:
    measured = results.validation or results.evaluations
    chosen = {variant: e for variant, e in measured.items() if variant.startswith("pseudo_masks")}
    if not chosen:
        raise Missing("the pseudo-masks were not evaluated; notebook 02_pseudo_masks does it")
    return chosen


def pseudo_masks(results: RunResults) -> Drawn:
    """IoU per class of CLIP's masks."""
    chosen = _masks_measured(results)
    caption = (
        "Quality of CLIP's pseudo-masks per class, sorted by pixel share, from the whole image and from zoomed local "
        "views, with 95 % bootstrap intervals over images; small classes bold."
    )
    figure, evaluations = iou_bars(list(chosen.values()), results.params.class_set), list(chosen.values())
    return _of_scores(
        results, evaluations, figure, caption, "Grouped bars of IoU per class. " + _scores_in_words(chosen)
    )


def confusion(results: RunResults) -> Drawn:
    """Confusion matrix of the network that stands for the run."""
    evaluation = main_evaluation(results)
    caption = (
        f"Confusion of {variant_label(evaluation['variant'])}, row-normalised: of a true class's pixels, the "
        "percentage predicted as each class. Cells under 0.5 % are left empty."
    )
    recall = np.diag(np.array(evaluation["confusion"], float)) / np.maximum(np.sum(evaluation["confusion"], 1), 1)
    worst = results.params.class_set.names[int(recall.argmin())]
    alt = f"Matrix of true by predicted classes; least found: {worst}, {100 * recall.min():.0f} % of its pixels."
    return _of_scores(results, [evaluation], confusion_matrix(evaluation, results.params.class_set), caption, alt)


def maskers(results: RunResults) -> Drawn:
    """Ways of making pseudo-masks side by side."""
    if not results.maskers:
        raise Missing("maskers.json is missing; notebook 02_pseudo_masks compares maskers")
    caption = "Pseudo-masks by masker, best first: mIoU, mean over the small classes, and seconds per image."
    best = max(results.maskers, key=lambda row: row["miou"] or 0)
    alt = f"Bars per masker; best {best['masker'].replace('_', ' ')} with {100 * (best['miou'] or 0):.1f} % mIoU."
    split, images = best.get("split", ""), int(best.get("images", 0))
    return masker_comparison(results.maskers), figure_record(results.params, caption, alt, split, images)


def ablations(results: RunResults) -> Drawn:
    """Variants, paths and maskers over seeds."""
    rows = results.ablations
    if not rows:
        raise Missing("ablations.json is missing; notebook 05_ablations makes it")
    seeds = sorted({row["seed"] for row in rows if row["seed"] is not None})
    paths, maskers = ({row[key]: None for row in rows} for key in ("path", "masker"))
    caption = f"Ablations over {plural(len(seeds), 'seed')}, "
    caption += f"{path_label(next(iter(paths)))}, " if len(paths) == 1 else ""
    caption += f"{next(iter(maskers)).replace('_', ' ')} masker: " if len(maskers) == 1 else "by path and masker: "
    caption += "tick marks are single seeds, symbols their mean, lines one standard deviation to each side."
    if len(paths) * len(maskers) > 1:
        caption += " The ceiling depends on neither path nor masker and is drawn once."
    variants = {row["variant"]: None for row in rows}
    means = {
        v: np.mean([row["miou"] for row in rows if row["variant"] == v and row["miou"] is not None]) for v in variants
    }
    words = ", ".join(f"{variant_label(variant)} {100 * mean:.1f}" for variant, mean in means.items())
    alt = f"Dot plot of mIoU and small-class mean per variant. Mean mIoU in percent: {words}."
    trained = ", ".join(variant for variant in variants if not variant.startswith("pseudo_masks"))
    record = figure_record(
        results.params,
        f"{caption} {abbreviations(variants)}",
        alt,
        rows[0].get("split", ""),
        int(rows[0].get("images", 0)),
        f"of {trained}, one per seed" if trained else "none",
        seeds=seeds,
    )
    return ablation_plot(rows), record
