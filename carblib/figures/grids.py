"""Figures made of images and masks: qualitative grids and similarity maps.

Masks are shown in the dataset's own palette, with one legend that names only the classes in view. Which images are
shown is decided by rules, never by hand.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from carblib.classes import ClassSet
from carblib.data.label_maps import colour_mask
from carblib.data.mask_folders import mask_path, read_mask
from carblib.data.readers import Split
from carblib.figures.captions import Drawn, figure_record, image_index, open_data
from carblib.figures.scores import checkpoints, main_evaluation
from carblib.figures.style import FAINT, PDF_DPI, VALUE_MAP, class_legend, new_figure, paper_style, shrink
from carblib.results.saved import Missing, RunResults, prediction_path, read_arrays
from carblib.results.words import PAGE, percent, truth_name
from carblib.variants import abbreviations, in_order, variant_label

SAMPLES, CLIP_MASKS = 3, "CLIP's masks"
GRID_COLUMNS = ("pseudo_masks_global", "plain", "glv", "carb", "paper", "ours")
GRID_DROPPED = ("plain", "carb", "glv", "paper")  # in this order, where there are more than GRID_MASKS
GRID_MASKS = 5
RULES = "best, median and worst by mIoU of {}, and the one with most small objects"


# --- pictures side by side -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GridRow:
    """One image of a qualitative grid.

    `image` (H, W, 3) uint8; `masks` {title: (h, w) uint8 train ids}; `notes` {title: short text below it};
    `boxes` (top, left, bottom, right) in pixels of the image, drawn on the image (local views).
    """

    label: str
    image: np.ndarray
    masks: Mapping[str, np.ndarray]
    notes: Mapping[str, str] = field(default_factory=dict)
    boxes: Sequence[Sequence[int]] = ()


def pick_rows(per_image: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Choose images by rule from an evaluation's per_image list: {rule: image name}.

    best, median and worst by mIoU, then the one with most small objects; an image is shown once, ties go to the first
    name. With few images, fewer rows.
    """
    scored = sorted((row for row in per_image if row["miou"] is not None), key=lambda row: (-row["miou"], row["name"]))
    crowded = sorted(scored, key=lambda row: (-row["small_objects"], row["name"]))
    if not scored:
        return {}
    middle = len(scored) // 2
    candidates = {
        "best": scored,
        "median": [row for _, row in sorted(enumerate(scored), key=lambda place: abs(place[0] - middle))],
        "worst": scored[::-1],
        "most small objects": crowded,
    }
    chosen: dict[str, str] = {}
    for rule, rows in candidates.items():
        name = next((row["name"] for row in rows if row["name"] not in chosen.values()), None)
        if name is not None:
            chosen[rule] = name
    return chosen


@paper_style()
def qualitative_grid(rows: Sequence[GridRow], class_set: ClassSet) -> Figure:
    """A row per image: the image, then its masks under their column titles, in the palette; one legend below.

    Columns are those of the first row. Masks of another size than the image are shown over the same frame.
    """
    titles = ["image", *rows[0].masks]
    figure, panels = panels_of([row.image for row in rows], len(titles))
    for row, line in zip(rows, panels, strict=True):
        show_picture(line[0], row.image, row.image.shape)
        for top, left, bottom, right in row.boxes:
            for colour, width in (("white", 2), ("black", 0.8)):  # seen on dark and on light
                box = Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=width)
                line[0].add_patch(box)
        if row.label:
            line[0].set_ylabel(row.label.replace("most small ", "most small\n"), fontsize=7.5)
        for axes, title in zip(line[1:], titles[1:], strict=True):
            if title in row.masks:
                show_picture(axes, colour_mask(row.masks[title], class_set), row.image.shape)
            axes.set_xlabel(row.notes.get(title, ""), fontsize=7, labelpad=1.5)
    for axes, title in zip(panels[0], titles, strict=True):
        # A letter of a title takes about 0.066 in.
        axes.set_title(
            textwrap.fill(title, int(PAGE / len(titles) / 0.066), break_on_hyphens=False), fontweight="normal"
        )
    class_legend(figure, [mask for row in rows for mask in row.masks.values()], class_set)
    fit_height(figure, panels)
    return figure


@paper_style()
def similarity_panel(
    image: np.ndarray, masks: Mapping[str, np.ndarray], maps: Mapping[str, np.ndarray], class_set: ClassSet
) -> Figure:
    """CLIP's similarity maps of some classes beside the image and masks of it.

    `masks` {title: (h, w) train ids}, `maps` {class: (h, w) cosine similarity}, at least one. All maps share one scale,
    whose ends are their 1st and 99th percentile.
    """
    pictures = {"image": image} | {title: colour_mask(mask, class_set) for title, mask in masks.items()}
    total = len(pictures) + len(maps)
    columns = min(4, total)
    figure, panels = panels_of([image] * -(-total // columns), columns)
    flat = [axes for line in panels for axes in line]
    values = np.concatenate([np.ravel(values) for values in maps.values()])
    low, high = np.percentile(values, (1, 99))
    for axes, (title, picture) in zip(flat, pictures.items(), strict=False):
        show_picture(axes, picture, image.shape)
        axes.set_title(title, fontweight="normal")
    for axes, (title, similarity) in zip(flat[len(pictures) :], maps.items(), strict=False):
        extent = (0, image.shape[1], image.shape[0], 0)
        shown = axes.imshow(similarity, cmap=VALUE_MAP, vmin=low, vmax=high, extent=extent, interpolation="nearest")
        axes.set_title(f"“{title}”", fontweight="normal")
    for axes in flat[total:]:
        axes.set_axis_off()
    bar = figure.colorbar(shown, ax=flat, shrink=0.7, aspect=25, pad=0.01)
    bar.set_label("cosine similarity")
    bar.outline.set_linewidth(0.4)
    class_legend(figure, [*masks.values()], class_set)
    fit_height(figure, panels)
    return figure


def panels_of(images: Sequence[np.ndarray], columns: int) -> tuple[Figure, list[list[Axes]]]:
    """An empty grid at page width with a row per image; `fit_height` gives it its height."""
    heights = [image.shape[0] / image.shape[1] for image in images]
    figure = new_figure(PAGE, sum(heights) * PAGE / columns + 0.2 * len(images) + 0.8)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.015, wspace=0, hspace=0)
    grid = figure.subplots(len(images), columns, squeeze=False, height_ratios=heights)
    for axes in grid.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, linewidth=0.4, color=FAINT)
    return figure, [list(line) for line in grid]


def fit_height(figure: Figure, panels: list[list[Axes]]) -> None:
    """Make the figure just as high as its pictures are at this width: no white bands, none smaller than its column."""
    for _ in range(2):
        figure.draw_without_rendering()
        spare = 0.0
        for line in panels:
            slot, shown = line[0].get_position(original=True), line[0].get_position()
            spare += slot.height - shown.height * slot.width / shown.width
        figure.set_figheight(figure.get_figheight() * (1 - spare))


def show_picture(axes: Axes, picture: np.ndarray, frame: Sequence[int]) -> None:
    """Show a picture over the frame (H, W) of its image, with no more pixels than print resolves."""
    pixels = int(PDF_DPI * PAGE / axes.get_gridspec().ncols)
    axes.imshow(shrink(picture, pixels), extent=(0, frame[1], frame[0], 0), interpolation="nearest")


# --- figures of a run ----------------------------------------------------------------------------------------------


def samples(results: RunResults) -> Drawn:
    """The first, the middle and the last training image beside their masks."""
    params, train = results.params, open_data(results, results.params.train_split)
    chosen = np.unique(np.linspace(0, len(train) - 1, SAMPLES).round().astype(int))
    rows = [GridRow(train.names[i], train.image(i), _truth(results, train, i)) for i in chosen]
    names = [row.label for row in rows]
    caption = f"The first, the middle and the last training image ({', '.join(names)})"
    caption += f", and the {truth_name(params)} that training never sees." if train.has_masks else "."
    record = figure_record(
        params, caption, "Street scenes beside their masks.", train.name, len(rows), chosen_of=len(train)
    )
    return qualitative_grid(rows, params.class_set), record


def _truth(results: RunResults, split: Split, index: int) -> dict[str, np.ndarray]:
    return {truth_name(results.params): split.mask(index)} if split.mask_paths[index] else {}


def similarity_maps(results: RunResults) -> Drawn:
    """Similarity maps of one image, from similarity_maps.npz."""
    path, params = results.folder / "similarity_maps.npz", results.params
    saved = read_arrays(path, ("split", "name", "words", "similarity", "mask"), "run notebook 02_pseudo_masks again")
    name, split = str(saved["name"]), open_data(results, str(saved["split"]))
    index = image_index(split, name)
    maps = {str(word): similarity for word, similarity in zip(saved["words"], saved["similarity"], strict=True)}
    masks = {"pseudo-mask": saved["mask"]} | _truth(results, split, index)
    figure = similarity_panel(split.image(index), masks, maps, params.class_set)
    caption = (
        "CLIP's similarity of each patch to the words of some classes, small ones first, and the pseudo-mask of all "
        f"classes in the image. Image {name}: the one with most classes by its labels."
    )
    alt = "A street scene, its pseudo-mask and similarity maps of " + ", ".join(maps) + "."
    return figure, figure_record(params, caption, alt, split.name, 1, chosen_of=len(split))


def mask_examples(results: RunResults) -> Drawn:
    """CLIP's masks of a few images without labels, with them, and from local views."""
    params, path = results.params, results.folder / "mask_examples.npz"
    saved = read_arrays(path, ("split", "rules", "names", "no_labels"), "run notebook 02_pseudo_masks again")
    split, names = open_data(results, str(saved["split"])), [str(name) for name in saved["names"]]
    rows = [
        GridRow(str(rule), split.image(image_index(split, name)), _ways(results, split, name, mask))
        for rule, name, mask in zip(saved["rules"], names, saved["no_labels"], strict=True)
    ]
    if params.gate == "none":
        caption = "Pseudo-masks of the whole image and of zoomed local views, without image-level labels."
    else:
        caption = "Pseudo-masks without image-level labels, with them, and from zoomed local views with them."
    rule = "The first and the last image"
    if "best" in saved["rules"]:
        rule = f"Rows by rule: {RULES.format(CLIP_MASKS)}"
    caption += f" {rule} ({', '.join(names)})."
    record = figure_record(
        params, caption, "Grid of street scenes and their pseudo-masks.", split.name, len(rows), chosen_of=len(split)
    )
    return qualitative_grid(rows, params.class_set), record


def _ways(results: RunResults, split: Split, name: str, no_labels: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of one image by column title; without labels at all (gate: none) there are two ways only."""
    told = results.params.gate != "none"
    masks = {"no labels": no_labels} if told else {}
    kinds = {"with labels" if told else "whole image": "pseudo_masks", "local views": "pseudo_masks_local"}
    for title, kind in kinds.items():
        folder = results.folder / kind / split.name
        if not mask_path(folder, name).is_file():
            raise Missing(f"{kind}/{split.name}/{name}.png is missing; notebook 02_pseudo_masks makes it")
        masks[title] = read_mask(folder, name, split.class_set)
    return masks | _truth(results, split, image_index(split, name))


def predictions_grid(results: RunResults) -> Drawn:
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
        masks[variant_label(variant)] = read_mask(path.parent, name, split.class_set)
        score = _score_of(results.evaluations.get(variant), name)
        notes[variant_label(variant)] = "" if score is None else f"mIoU {percent(score)}"
    return GridRow(rule, split.image(index), masks | _truth(results, split, index), notes)


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
