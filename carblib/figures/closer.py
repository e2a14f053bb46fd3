"""Masks with a small object enlarged: one image, with which a report begins, and the grid of images chosen by rule."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carblib.classes import ClassSet
from carblib.data.mask_folders import read_mask
from carblib.data.split import Split
from carblib.figures.captions import Drawn, figure_record, image_index, open_data
from carblib.figures.grids import (
    OUTLINED,
    GridRow,
    fit_height,
    frame_box,
    panels_of,
    pick_rows,
    qualitative_grid,
    show,
    truth_of,
)
from carblib.figures.scores import checkpoints, main_evaluation
from carblib.figures.style import class_legend, paper_style
from carblib.results.saved import Missing, RunResults, prediction_path
from carblib.results.words import PAGE, percent, truth_name
from carblib.small_objects import components
from carblib.transforms import resize_mask
from carblib.variants import abbreviations, in_order, variant_label

Box = tuple[int, int, int, int]  # top, left, bottom, right
ENLARGED = 4  # times
GRID_COLUMNS = ("pseudo_masks_global", "pseudo_masks_local", "plain", "glv", "carb", "paper", "ours", "ceiling")
GRID_DROPPED = ("carb", "glv", "plain", "paper")  # in this order, where there are more than GRID_MASKS
GRID_MASKS = 6
BLOCK_COLUMNS = 4  # panels of an image side by side
BLOCK_HEIGHT = 9.0  # inches of a page that blocks may take
INSET, INSET_SIDE = 8, 0.45  # the part of an image that is enlarged is an eighth of its sides, and takes this share


def closer_look(results: RunResults) -> Drawn:
    """The image of median mIoU beside its masks, and below it, enlarged, its largest small object that fits."""
    main, params = main_evaluation(results), results.params
    split = open_data(results, main["split"])
    name = _median(main["per_image"])
    index, variants = image_index(split, name), in_order({"pseudo_masks_global", main["variant"]})
    paths = {variant: prediction_path(results, variant, split.name, name) for variant in variants}
    lacking = [path for path in paths.values() if not path.is_file()]
    if lacking:
        raise Missing(f"{lacking[0]} is missing; notebook 04_small_object_evaluation makes it")
    image, truth = split.image(index), split.mask(index)
    masks = {variant_label(v): read_mask(path.parent, name, split.class_set) for v, path in paths.items()}
    masks = {title: resize_mask(mask, truth.shape) for title, mask in masks.items()} | {truth_name(params): truth}
    found = small_object_box(truth, params.class_set, ENLARGED)
    if found is None:
        raise Missing("the image of median mIoU has no small object")
    box, what = found
    whole = GridRow("whole", image, masks, boxes=[box])
    rows = [whole, dataclasses.replace(_cut(whole, box), label=f"{ENLARGED}× enlarged")]
    caption = (
        f"The image of median mIoU among those with small objects ({name}), and below it, {ENLARGED} times enlarged, "
        f"its largest small object that fits, of class {what}. {OUTLINED} {abbreviations(variants)}"
    )
    alt = (
        f"A street scene and a part of it enlarged, with a small object of class {what}, beside "
        + ", ".join(masks)
        + "."
    )
    shown = checkpoints([results.evaluations.get(variant) or {"variant": variant} for variant in variants])
    record = figure_record(params, caption, alt, split.name, 1, shown, chosen_of=main["images"])
    return qualitative_grid(rows, params.class_set), record


def _median(per_image: Sequence[Mapping[str, Any]]) -> str:
    """The name of the image of median mIoU among those with small objects."""
    scored = [row for row in per_image if row["small_objects"] and row["miou"] is not None]
    if not scored:
        raise Missing("no image has a small object; `small` in the class set says which classes are small")
    return sorted(scored, key=lambda row: (row["miou"], row["name"]))[len(scored) // 2]["name"]


def _cut(row: GridRow, box: Box) -> GridRow:
    top, left, bottom, right = box
    masks = {title: mask[top:bottom, left:right] for title, mask in row.masks.items()}
    return GridRow(row.label, row.image[top:bottom, left:right], masks)


# --- the grid ---


def predictions_grid(results: RunResults) -> Drawn:
    """Images chosen by rule beside CLIP's masks, the networks' predictions and the truth."""
    evaluation, params = main_evaluation(results), results.params
    chosen = pick_rows(evaluation["per_image"])
    columns = _columns(results, evaluation["split"], list(chosen.values()))
    split = open_data(results, evaluation["split"])
    chosen = _that_fit(chosen, split.image(0).shape, 1 + len(columns) + split.has_masks)
    rows = [_grid_row(results, split, columns, rule, name) for rule, name in chosen.items()]
    caption = (
        f"Images chosen by rule, by the mIoU of {variant_label(evaluation['variant'])}: "
        + ", ".join(f"{rule} ({name})" for rule, name in chosen.items())
        + f". Below each mask its mIoU in this image, in percent; in a corner, enlarged, the image's largest small "
        f"object that fits. {OUTLINED} {abbreviations(columns)}"
    )
    alt = f"Grid of {len(rows)} images: " + ", ".join(["image", *rows[0].masks]) + "."
    shown = checkpoints([results.evaluations.get(variant) or {"variant": variant} for variant in columns])
    record = figure_record(params, caption, alt, split.name, len(rows), shown, chosen_of=evaluation["images"])
    return block_grid(rows, params.class_set), record


def _that_fit(chosen: dict[str, str], shape: Sequence[int], panels: int) -> dict[str, str]:
    """Those of the chosen images whose blocks fit on a page; the first are left out."""
    lines, columns = _block(panels)
    height = lines * (PAGE / columns * shape[0] / shape[1] + 0.17)
    return dict([*chosen.items()][-max(1, int(BLOCK_HEIGHT / height)) :])


def _grid_row(results: RunResults, split: Split, columns: Sequence[str], rule: str, name: str) -> GridRow:
    index, masks, notes = image_index(split, name), {}, {}
    for variant in columns:
        path = prediction_path(results, variant, split.name, name)
        masks[variant_label(variant)] = read_mask(path.parent, name, split.class_set)
        score = _score_of(results.evaluations.get(variant), name)
        notes[variant_label(variant)] = "" if score is None else percent(score)
    truth = truth_of(results, split, index)
    found = [small_object_box(mask, split.class_set, INSET) for mask in truth.values()]
    return GridRow(rule, split.image(index), masks | truth, notes, [part[0] for part in found if part])


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


@paper_style()
def block_grid(rows: Sequence[GridRow], class_set: ClassSet) -> Figure:
    """A block of panels per image, at most `BLOCK_COLUMNS` wide: the image, then its masks, each named below.

    What `boxes` frame is enlarged in a corner of every panel. Titles are those of the first row.
    """
    titles = ["image", *rows[0].masks]
    lines, columns = _block(len(titles))
    figure, panels = panels_of([row.image for row in rows for _ in range(lines)], columns)
    for place, row in enumerate(rows):
        block = [axes for line in panels[place * lines : (place + 1) * lines] for axes in line]
        block[0].set_ylabel(row.label, fontsize=7.5)
        for axes, title in zip(block, titles, strict=False):
            picture = row.masks.get(title, row.image)
            show(axes, picture, row.image.shape, class_set)
            for box in row.boxes:
                _enlarge(axes, picture, row.image.shape, box, class_set)
            name = textwrap.fill(f"{title} {row.notes.get(title, '')}".rstrip(), int(PAGE / columns / 0.0535))
            axes.set_xlabel(name, fontsize=7, labelpad=1.5)
        for box in row.boxes:
            frame_box(block[0], box)
        for axes in block[len(titles) :]:
            axes.set_axis_off()
    class_legend(figure, [mask for row in rows for mask in row.masks.values()], class_set)
    fit_height(figure, panels)
    return figure


def _block(panels: int) -> tuple[int, int]:
    """Lines and columns of a block."""
    lines = -(-panels // BLOCK_COLUMNS)
    return lines, -(-panels // lines)


def _enlarge(axes: Axes, picture: np.ndarray, frame: Sequence[int], box: Sequence[int], class_set: ClassSet) -> None:
    """Show a box (in pixels of `frame`) enlarged in the corner that is farthest from it."""
    high, wide = frame[0] / picture.shape[0], frame[1] / picture.shape[1]
    top, left, bottom, right = np.rint(np.divide(box, (high, wide, high, wide))).astype(int)
    part = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
    x, y = (0 if box[1] + box[3] > frame[1] else 1 - INSET_SIDE), (0 if box[0] + box[2] < frame[0] else 1 - INSET_SIDE)
    inset = axes.inset_axes((x, y, INSET_SIDE, INSET_SIDE), xticks=[], yticks=[])
    show(inset, part, part.shape, class_set)
    inset.set_aspect("auto")
    for spine in inset.spines.values():
        spine.set(visible=True, linewidth=1, color="white")


# --- the object ---


def small_object_box(
    truth: np.ndarray, class_set: ClassSet, times: int
) -> tuple[tuple[int, int, int, int], str] | None:
    """(top, left, bottom, right) of a part of a mask (H, W), and the class of the object in it: the largest small one
    that fits into H/times × W/times pixels, else the largest; None without any.
    """
    found = components(truth, class_set.small_ids)
    high, wide = truth.shape[0] // times, truth.shape[1] // times
    largest = [*(np.argsort(-found.pixels, kind="stable") + 1)]
    if not largest:
        return None
    extents = {label: _extent(found.labels == label) for label in largest}
    fitting = [label for label, (t, l, b, r) in extents.items() if b - t <= high and r - l <= wide]
    label = (fitting or largest)[0]
    top, left, bottom, right = extents[label]
    top = int(np.clip((top + bottom - high) // 2, 0, truth.shape[0] - high))
    left = int(np.clip((left + right - wide) // 2, 0, truth.shape[1] - wide))
    return (top, left, top + high, left + wide), class_set.names[found.class_ids[label - 1]]


def _extent(where: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(where.any(1))[0], np.nonzero(where.any(0))[0]
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
