"""What each figure of a run is drawn from, and its caption: functions RunResults -> (figure, record), in `FIGURES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from carblib import figures_run_training
from carblib.figures_data import class_frequency, classes_per_image, cooccurrence, dataset_difficulty, object_sizes
from carblib.figures_images import GridRow, pick_rows, qualitative_grid
from carblib.figures_run_training import Drawn, image_index
from carblib.figures_scores import (
    ablation_plot,
    confusion_matrix,
    gain_over,
    iou_bars,
    masker_comparison,
    object_size_curves,
)
from carblib.mask_folders import read_mask
from carblib.readers import open_split
from carblib.results import (
    Missing,
    RunResults,
    in_order,
    prediction_path,
    variant_label,
)
from carblib.style import PaperFigure, figure_record, truth_name

GRID_COLUMNS = ("pseudo_masks_global", "plain", "full", "glv", "carb")  # the first of these beside the main variant
GRID_MASKS = 4


# --- the data ----------------------------------------------------------------------------------------------------


def _analysis(results: RunResults) -> dict[str, Any]:
    if results.analysis is None:
        raise Missing("analysis.json is missing; notebook 01_dataset_analysis makes it")
    return results.analysis


def _of_data(results: RunResults, figure: PaperFigure, caption: str, alt: str) -> Drawn:
    analysis = _analysis(results)
    return figure, figure_record(results.params, caption, alt, analysis["split"], analysis["images"])


def _frequency(results: RunResults) -> Drawn:
    analysis, names = _analysis(results), results.params.class_set.names
    shares = np.array(analysis["pixel_share"])
    common = sum(share > 0.9 for share in analysis["image_share"])
    caption = (
        "How often a class is there, and how much of the image it takes, sorted by pixel share; small classes bold. "
        f"{common} of {len(names)} classes are in more than 90 % of the images, so that image-level labels hardly tell "
        "images apart."
    )
    alt = (
        f"Two bar charts per class. Most pixels: {names[shares.argmax()]}, {100 * shares.max():.0f} %; "
        f"fewest: {names[shares.argmin()]}, {100 * shares.min():.2f} %."
    )
    return _of_data(results, class_frequency(analysis, results.params.class_set, results.contrast), caption, alt)


def _cooccurrence(results: RunResults) -> Drawn:
    analysis = _analysis(results)
    caption = (
        "Co-occurrence: of the images that hold the row's class, the percentage that also hold the column's class."
    )
    alt = "Matrix of classes by classes; high values everywhere mean that classes come together."
    return _of_data(results, cooccurrence(analysis, results.params.class_set), caption, alt)


def _per_image(results: RunResults) -> Drawn:
    analysis = _analysis(results)
    counts = analysis["classes_per_image"]
    caption = "Number of classes in an image."
    alt = f"Histogram of classes per image; mean {np.mean(counts):.1f} of {len(results.params.class_set)}."
    return _of_data(results, classes_per_image(analysis, results.contrast), caption, alt)


def _sizes(results: RunResults) -> Drawn:
    analysis = _analysis(results)
    caption = (
        "Sizes of connected components as a share of the image, per class: median, quartiles (box), 5th and 95th "
        "percentile (whiskers); small classes bold."
    )
    alt = "Box plots of object size per class on a logarithmic axis, sorted by median size."
    return _of_data(results, object_sizes(analysis, results.params.class_set, results.contrast), caption, alt)


def _difficulty(results: RunResults) -> Drawn:
    analysis = _analysis(results)
    caption = (
        "What makes the data hard for image-level labels: nearly every class is in nearly every image, classes come "
        "together, and some are small. Upper row: class frequency, pixel share (log scale), classes per image. Lower "
        "row: of the images with the row's class, the percentage with the column's; sizes of connected components "
        "(median, quartiles, 5th and 95th percentile). Small classes bold."
    )
    alt = (
        f"Five charts of the data; an image holds {np.mean(analysis['classes_per_image']):.1f} of "
        f"{len(results.params.class_set)} classes on average."
    )
    return _of_data(results, dataset_difficulty(analysis, results.params.class_set, results.contrast), caption, alt)


# --- scores ------------------------------------------------------------------------------------------------------


def _comparable(results: RunResults) -> dict[str, dict[str, Any]]:
    chosen = results.evaluations
    if not chosen:
        raise Missing("no evaluation yet; notebooks 02_pseudo_masks and 04_small_object_evaluation make them")
    return chosen


def _of_scores(results: RunResults, evaluation: dict[str, Any], figure: PaperFigure, caption: str, alt: str) -> Drawn:
    split, images = evaluation["split"], evaluation["images"]
    return figure, figure_record(results.params, caption, alt, split, images, checkpoint(evaluation))


def checkpoint(evaluation: dict[str, Any]) -> str:
    """Name the trained network behind an evaluation, "none" for CLIP's own masks."""
    if evaluation["variant"].startswith("pseudo_masks"):
        return "none"
    iteration = evaluation.get("iteration")
    return f"train/{evaluation['variant']}" + (f" at iteration {iteration}" if iteration else "")


def _told(results: RunResults, chosen: dict[str, dict[str, Any]]) -> str:
    masks = any(variant.startswith("pseudo_masks") for variant in chosen)
    return (
        " CLIP's masks are told each image's labels, networks are not."
        if masks and results.params.gate != "none"
        else ""
    )


def _scores_in_words(evaluations: dict[str, dict[str, Any]]) -> str:
    scores = [f"{variant_label(v)} {100 * e['miou']:.1f}" for v, e in evaluations.items() if e["miou"] is not None]
    return "mIoU in percent: " + ", ".join(scores) + "."


def _main(results: RunResults) -> dict[str, Any]:
    if results.main_variant is None:
        raise Missing("no trained network was evaluated; notebook 04_small_object_evaluation does it")
    return results.evaluations[results.main_variant]


def _iou(results: RunResults) -> Drawn:
    chosen = _comparable(results)
    caption = "IoU per class, sorted by pixel share, with 95 % bootstrap intervals over images; small classes bold."
    caption += _told(results, chosen)
    last = list(chosen.values())[-1] if results.main_variant is None else _main(results)
    figure = iou_bars(list(chosen.values()), results.params.class_set)
    return _of_scores(results, last, figure, caption, "Grouped bars of IoU per class. " + _scores_in_words(chosen))


def _object_sizes(results: RunResults) -> Drawn:
    chosen = {variant: e for variant, e in _comparable(results).items() if e.get("objects")}
    if not chosen:
        raise Missing("no evaluation measured objects; evaluate again in notebook 04_small_object_evaluation")
    caption = (
        "Recall (at least half of the object's pixels found) and IoU of the small classes' objects against their size; "
        "n counts objects. An object is a connected component." + _told(results, chosen)
    )
    figure = object_size_curves(list(chosen.values()))
    alt = "Two line charts over object size: recall and IoU, one line per variant."
    return _of_scores(results, list(chosen.values())[-1], figure, caption, alt)


def _gain(results: RunResults) -> Drawn:
    chosen, evaluation = _comparable(results), _main(results)
    if "pseudo_masks_global" not in chosen:
        raise Missing(f"the pseudo-masks were not evaluated on split {evaluation['split']}; notebook 04 does it")
    others = [e for variant, e in chosen.items() if variant not in ("pseudo_masks_global", "ceiling")]
    caption = "IoU gained over CLIP's whole-image pseudo-masks per class, in points, sorted by pixel share; small bold."
    caption += _told(results, chosen)
    gain = 100 * (evaluation["miou"] - chosen["pseudo_masks_global"]["miou"])
    alt = f"Dot plot of gains per class. Mean gain of {variant_label(evaluation['variant'])}: {gain:+.1f} points."
    figure = gain_over(chosen["pseudo_masks_global"], others, results.params.class_set)
    return _of_scores(results, evaluation, figure, caption, alt)


def _pseudo_masks(results: RunResults) -> Drawn:
    measured = results.validation or results.evaluations
    chosen = {variant: e for variant, e in measured.items() if variant.startswith("pseudo_masks")}
    if not chosen:
        raise Missing("the pseudo-masks were not evaluated; notebook 02_pseudo_masks does it")
    first = next(iter(chosen.values()))
    caption = (
        "Quality of CLIP's pseudo-masks per class, sorted by pixel share, from the whole image and from zoomed local "
        "views, with 95 % bootstrap intervals over images; small classes bold."
    )
    figure = iou_bars(list(chosen.values()), results.params.class_set)
    return _of_scores(results, first, figure, caption, "Grouped bars of IoU per class. " + _scores_in_words(chosen))


def _confusion(results: RunResults) -> Drawn:
    evaluation = _main(results)
    caption = (
        f"Confusion of {variant_label(evaluation['variant'])}, row-normalised: of a true class's pixels, the "
        "percentage predicted as each class. Cells under 0.5 % are left empty."
    )
    recall = np.diag(np.array(evaluation["confusion"], float)) / np.maximum(np.sum(evaluation["confusion"], 1), 1)
    worst = results.params.class_set.names[int(recall.argmin())]
    alt = f"Matrix of true by predicted classes; least found: {worst}, {100 * recall.min():.0f} % of its pixels."
    return _of_scores(results, evaluation, confusion_matrix(evaluation, results.params.class_set), caption, alt)


def _maskers(results: RunResults) -> Drawn:
    if not results.maskers:
        raise Missing("maskers.json is missing; notebook 02_pseudo_masks compares maskers")
    caption = "Pseudo-masks by masker, best first: mIoU, mean over the small classes, and seconds per image."
    best = max(results.maskers, key=lambda row: row["miou"] or 0)
    alt = f"Bars per masker; best {best['masker'].replace('_', ' ')} with {100 * (best['miou'] or 0):.1f} % mIoU."
    split, images = best.get("split", ""), int(best.get("images", 0))
    return masker_comparison(results.maskers), figure_record(results.params, caption, alt, split, images)


def _ablations(results: RunResults) -> Drawn:
    if not results.ablations:
        raise Missing("ablations.json is missing; notebook 05_ablations makes it")
    seeds = sorted({row["seed"] for row in results.ablations if row["seed"] is not None})
    caption = (
        f"Ablations over {len(seeds)} seeds ({', '.join(map(str, seeds))}): tick marks are single seeds, symbols their "
        "mean, lines one standard deviation to each side."
    )
    split, images = results.ablations[0].get("split", ""), int(results.ablations[0].get("images", 0))
    alt = "Dot plot of mIoU and small-class mean per variant, path and masker."
    record = figure_record(results.params, caption, alt, split, images, "one per variant and seed")
    return ablation_plot(results.ablations), record


# --- qualitative grid --------------------------------------------------------------------------------------------


def _grid(results: RunResults) -> Drawn:
    evaluation, params = _main(results), results.params
    chosen = pick_rows(evaluation["per_image"])
    columns = _columns(results, evaluation["split"], list(chosen.values()))
    split = open_split(params, evaluation["split"])
    scores = {
        variant: {row["name"]: row["miou"] for row in results.evaluations[variant]["per_image"]}
        for variant in columns
        if variant in results.evaluations
    }
    rows = []
    for rule, name in chosen.items():
        index, masks, notes = image_index(split, name), {}, {}
        for variant in columns:
            path = prediction_path(results, variant, split.name, name)
            masks[variant_label(variant)] = read_mask(path.parent, name, len(params.class_set))
            score = scores.get(variant, {}).get(name)
            notes[variant_label(variant)] = "" if score is None else f"mIoU {100 * score:.1f}"
        if split.has_masks:
            masks[truth_name(params)] = split.mask(index)
        rows.append(GridRow(rule, split.image(index), masks, notes))
    label = variant_label(evaluation["variant"])
    caption = (
        f"Images chosen by rule: best, median and worst by mIoU of {label}, and the one with most small objects "
        f"({', '.join(chosen.values())}). Below each mask its mIoU in this image."
    )
    alt = f"Grid of {len(rows)} images: " + ", ".join(["image", *rows[0].masks]) + "."
    return _of_scores(results, evaluation, qualitative_grid(rows, params.class_set), caption, alt)


def _columns(results: RunResults, split: str, names: list[str]) -> list[str]:
    wanted = [results.main_variant] if results.main_variant else []
    there = [
        variant
        for variant in dict.fromkeys([*wanted, *GRID_COLUMNS])
        if all(prediction_path(results, variant, split, name).is_file() for name in names)
    ]
    if not there or not names:
        raise Missing(f"no saved masks of split {split}; notebook 04_small_object_evaluation writes predictions/")
    return in_order(there[:GRID_MASKS])


FIGURES: tuple[tuple[str, Callable[[RunResults], Drawn]], ...] = (
    ("dataset_difficulty", _difficulty),
    ("class_frequency", _frequency),
    ("cooccurrence", _cooccurrence),
    ("classes_per_image", _per_image),
    ("object_sizes", _sizes),
    ("pseudo_mask_iou", _pseudo_masks),
    ("masker_comparison", _maskers),
    ("training_curves", figures_run_training.one_training),
    ("compare_trainings", figures_run_training.all_trainings),
    ("region_weights", figures_run_training.region_weights),
    ("reliability_curves", figures_run_training.reliability),
    ("region_maps", figures_run_training.regions),
    ("qualitative_grid", _grid),
    ("iou_per_class", _iou),
    ("gain_over_pseudo_masks", _gain),
    ("object_size_curves", _object_sizes),
    ("confusion", _confusion),
    ("ablations", _ablations),
)
