"""What the figures made of a run's images and masks are drawn from, and their captions; see `figures_run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from carblib.data.mask_folders import mask_path, read_mask
from carblib.data.readers import Split
from carblib.figures.captions import figure_record
from carblib.figures.grids import GridRow, pick_rows, qualitative_grid, similarity_panel
from carblib.figures.of_data import Drawn, image_index, open_data
from carblib.figures.of_scores import checkpoints, main_evaluation
from carblib.results.saved import Missing, RunResults, prediction_path, read_arrays
from carblib.results.words import truth_name
from carblib.variants import abbreviations, in_order, variant_label

GRID_COLUMNS = ("pseudo_masks_global", "plain", "glv", "carb", "paper", "ours")
GRID_DROPPED = ("plain", "carb", "glv", "paper")  # in this order, where there are more than GRID_MASKS
GRID_MASKS = 5
RULES = "best, median and worst by mIoU of {}, and the one with most small objects"


# --- CLIP's masks ------------------------------------------------------------------------------------------------


def similarity_maps(results: RunResults) -> Drawn:
    """Similarity maps of one image, from similarity_maps.npz."""
    path, params = results.folder / "similarity_maps.npz", results.params
    if not path.is_file():
        raise Missing("similarity_maps.npz is missing; notebook 02_pseudo_masks makes it")
    saved = read_arrays(path, ("split", "name", "words", "similarity", "mask"), "run notebook 02_pseudo_masks again")
    name, split = str(saved["name"]), open_data(results, str(saved["split"]))
    index = image_index(split, name)
    maps = {str(word): similarity for word, similarity in zip(saved["words"], saved["similarity"], strict=True)}
    truth = split.mask(index) if split.mask_paths[index] else None
    figure = similarity_panel(split.image(index), maps, saved["mask"], params.class_set, truth, truth_name(params))
    caption = (
        f"CLIP's similarity of each patch to the words of some classes, small ones first, and the pseudo-mask of all "
        f"classes in the image. Image {name}: the one with most classes by its labels."
    )
    alt = "A street scene, its pseudo-mask and similarity maps of " + ", ".join(maps) + "."
    return figure, figure_record(params, caption, alt, split.name, 1, chosen_of=len(split))


def mask_examples(results: RunResults) -> Drawn:
    """CLIP's masks of a few images without labels, with them, and from local views."""
    params, path = results.params, results.folder / "mask_examples.npz"
    if not path.is_file():
        raise Missing("mask_examples.npz is missing; notebook 02_pseudo_masks makes it")
    saved = read_arrays(path, ("split", "rules", "names", "no_labels"), "run notebook 02_pseudo_masks again")
    split, names = open_data(results, str(saved["split"])), [str(name) for name in saved["names"]]
    rows = [
        GridRow(str(rule), split.image(image_index(split, name)), _ways(results, split, name, mask))
        for rule, name, mask in zip(saved["rules"], names, saved["no_labels"], strict=True)
    ]
    told = params.gate != "none"
    caption = "Pseudo-masks " + (
        "without image-level labels, with them, and from" if told else "of the whole image and"
    )
    caption += " zoomed local views with them." if told else " of zoomed local views, without image-level labels."
    if "best" in saved["rules"]:
        caption += f" Rows by rule: {RULES.format('CLIP' + chr(39) + 's masks')} ({', '.join(names)})."
    else:
        caption += f" The first and the last image ({', '.join(names)})."
    record = figure_record(
        params, caption, "Grid of street scenes and their pseudo-masks.", split.name, len(rows), chosen_of=len(split)
    )
    return qualitative_grid(rows, params.class_set), record


def _ways(results: RunResults, split: Split, name: str, no_labels: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of one image by column title; without labels at all (gate: none) there are two ways only."""
    told, classes = results.params.gate != "none", len(split.class_set)
    masks = {"no labels": no_labels} if told else {}
    kinds = {"with labels" if told else "whole image": "pseudo_masks", "local views": "pseudo_masks_local"}
    for title, kind in kinds.items():
        folder = results.folder / kind / split.name
        if not mask_path(folder, name).is_file():
            raise Missing(f"{kind}/{split.name}/{name}.png is missing; notebook 02_pseudo_masks makes it")
        masks[title] = read_mask(folder, name, classes)
    index = image_index(split, name)
    return masks | ({truth_name(results.params): split.mask(index)} if split.mask_paths[index] else {})


# --- predictions -------------------------------------------------------------------------------------------------


def grid(results: RunResults) -> Drawn:
    """Images chosen by rule beside CLIP's masks, the networks' predictions and the truth."""
    evaluation, params = main_evaluation(results), results.params
    chosen = pick_rows(evaluation["per_image"])
    columns = _columns(results, evaluation["split"], list(chosen.values()))
    split = open_data(results, evaluation["split"])
    rows = [_grid_row(results, split, columns, rule, name) for rule, name in chosen.items()]
    caption = (
        f"Images chosen by rule: {RULES.format(variant_label(evaluation['variant']))} ({', '.join(chosen.values())}). "
        f"Below each mask its mIoU in this image. {abbreviations(columns)}"
    )
    alt = f"Grid of {len(rows)} images: " + ", ".join(["image", *rows[0].masks]) + "."
    shown = checkpoints([results.evaluations.get(variant) or {"variant": variant} for variant in columns])
    record = figure_record(params, caption, alt, split.name, len(rows), shown, chosen_of=evaluation["images"])
    return qualitative_grid(rows, params.class_set), record


def _grid_row(results: RunResults, split: Split, columns: Sequence[str], rule: str, name: str) -> GridRow:
    index, masks, notes = image_index(split, name), {}, {}
    for variant in columns:
        path = prediction_path(results, variant, split.name, name)
        masks[variant_label(variant)] = read_mask(path.parent, name, len(split.class_set))
        score = _score_of(results.evaluations.get(variant), name)
        notes[variant_label(variant)] = "" if score is None else f"mIoU {100 * score:.1f}"
    if split.mask_paths[index]:
        masks[truth_name(results.params)] = split.mask(index)
    return GridRow(rule, split.image(index), masks, notes)


def _score_of(evaluation: Mapping[str, Any] | None, name: str) -> float | None:
    rows = evaluation["per_image"] if evaluation else []
    return next((row["miou"] for row in rows if row["name"] == name), None)


def _columns(results: RunResults, split: str, names: list[str]) -> list[str]:
    """The variants with a mask of every image, in reading order; the one that stands for the run is always shown."""
    main = [results.main_variant] if results.main_variant else []
    there = [
        variant
        for variant in dict.fromkeys([*main, *GRID_COLUMNS])
        if all(prediction_path(results, variant, split, name).is_file() for name in names)
    ]
    if not there or not names:
        raise Missing(f"no saved masks of split {split}; notebook 04_small_object_evaluation writes predictions/")
    for variant in GRID_DROPPED:
        if len(there) > GRID_MASKS and variant in there and variant not in main:
            there.remove(variant)
    return in_order(there)
