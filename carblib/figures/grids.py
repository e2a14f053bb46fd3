"""Figures made of images and masks: qualitative grids and similarity maps.

Masks are shown in the dataset's own palette, small classes outlined, with one legend that names only the classes in
view: colours alone would not tell CamVid's pedestrian from its building with deuteranopia. Which images are shown is
decided by rules, never by hand.
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
from carblib.data.split import Split
from carblib.figures.captions import Drawn, figure_record, image_index, open_data
from carblib.figures.style import FAINT, OUTLINE, PDF_DPI, VALUE_MAP, class_legend, new_figure, paper_style, shrink
from carblib.results.saved import Missing, RunResults, read_arrays
from carblib.results.words import PAGE, truth_name

SAMPLES, CLIP_MASKS = 3, "CLIP's masks"
OUTLINED = "Small classes are outlined in white."
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
        for box in row.boxes:
            frame_box(line[0], box)
        if row.label:
            line[0].set_ylabel(row.label.replace("most small ", "most small\n"), fontsize=7.5)
        for axes, title in zip(line[1:], titles[1:], strict=True):
            if title in row.masks:
                show_mask(axes, row.masks[title], row.image.shape, class_set)
            axes.set_xlabel(row.notes.get(title, ""), fontsize=7, labelpad=1.5)
    for axes, title in zip(panels[0], titles, strict=True):
        # A letter of a title takes about 0.066 in.
        axes.set_title(
            textwrap.fill(title, int(PAGE / len(titles) / 0.066), break_on_hyphens=False), fontweight="normal"
        )
    class_legend(figure, [mask for row in rows for mask in row.masks.values()], class_set)
    fit_height(figure, panels)
    return figure


def show(axes: Axes, picture: np.ndarray, frame: Sequence[int], class_set: ClassSet) -> None:
    """Show an image (h, w, 3) or a mask (h, w)."""
    if picture.ndim == 3:
        show_picture(axes, picture, frame)
    else:
        show_mask(axes, picture, frame, class_set)


def frame_box(axes: Axes, box: Sequence[int]) -> None:
    """Draw a box (top, left, bottom, right), in pixels of the image."""
    top, left, bottom, right = box
    for colour, width in (("white", 2), ("black", 0.8)):  # seen on dark and on light
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=width, zorder=3)
        )


@paper_style()
def similarity_panel(
    image: np.ndarray, masks: Mapping[str, np.ndarray], maps: Mapping[str, np.ndarray], class_set: ClassSet
) -> Figure:
    """CLIP's similarity maps of some classes beside the image and masks of it.

    `masks` {title: (h, w) train ids}, `maps` {class: (h, w) cosine similarity}, at least one. All maps share one scale,
    whose ends are their 1st and 99th percentile.
    """
    pictures = {"image": image, **masks}
    total = len(pictures) + len(maps)
    columns = min(4, total)
    figure, panels = panels_of([image] * -(-total // columns), columns)
    flat = [axes for line in panels for axes in line]
    values = np.concatenate([np.ravel(values) for values in maps.values()])
    low, high = np.percentile(values, (1, 99))
    for axes, (title, picture) in zip(flat, pictures.items(), strict=False):
        show(axes, picture, image.shape, class_set)
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
    axes.imshow(shrink(picture, _printed(axes)), extent=(0, frame[1], frame[0], 0), interpolation="nearest")


def show_mask(axes: Axes, mask: np.ndarray, frame: Sequence[int], class_set: ClassSet) -> None:
    """Show a mask (h, w) in the palette, its small classes outlined, over the frame (H, W) of its image."""
    show_picture(axes, colour_mask(mask, class_set), frame)
    outline_small(axes, mask, frame, class_set)


def outline_small(
    axes: Axes, mask: np.ndarray, frame: Sequence[int], class_set: ClassSet, colour: str = OUTLINE
) -> None:
    """Outline the small classes of a mask (h, w) that is shown over the frame (H, W) of its image."""
    small = np.isin(shrink(mask, _printed(axes)), class_set.small_ids)
    if not small.any():
        return
    y, x = ((np.arange(-1, n + 1) + 0.5) * side / n for n, side in zip(small.shape, frame, strict=False))
    around = np.pad(small, 1, "edge")  # a contour needs two rows and columns
    if not around.all():
        axes.contour(x, y, around, levels=[0.5], colors=colour, linewidths=0.5)
    axes.set(xlim=(0, frame[1]), ylim=(frame[0], 0))


def _printed(axes: Axes) -> int:
    """How many pixels across print resolves in this panel; an inset is about an eighth of a page."""
    grid = axes.get_gridspec()
    return int(PDF_DPI * PAGE / (grid.ncols if grid else 8))


# --- figures of a run ----------------------------------------------------------------------------------------------


def samples(results: RunResults) -> Drawn:
    """The first, the middle and the last training image beside their masks."""
    params, train = results.params, open_data(results, results.params.train_split)
    chosen = np.unique(np.linspace(0, len(train) - 1, SAMPLES).round().astype(int))
    rows = [GridRow(train.names[i], train.image(i), truth_of(results, train, i)) for i in chosen]
    names = [row.label for row in rows]
    caption = f"The first, the middle and the last training image ({', '.join(names)})"
    caption += f", and the {truth_name(params)} that training never sees. {OUTLINED}" if train.has_masks else "."
    record = figure_record(
        params, caption, "Street scenes beside their masks.", train.name, len(rows), chosen_of=len(train)
    )
    return qualitative_grid(rows, params.class_set), record


def truth_of(results: RunResults, split: Split, index: int) -> dict[str, np.ndarray]:
    """Return the true mask of an image under its column title, nothing where there is none."""
    return {truth_name(results.params): split.mask(index)} if split.mask_paths[index] else {}


def similarity_maps(results: RunResults) -> Drawn:
    """Similarity maps of one image, from similarity_maps.npz."""
    path, params = results.folder / "similarity_maps.npz", results.params
    saved = read_arrays(path, ("split", "name", "words", "similarity", "mask"), "run notebook 02_pseudo_masks again")
    name, split = str(saved["name"]), open_data(results, str(saved["split"]))
    index = image_index(split, name)
    maps = {str(word): similarity for word, similarity in zip(saved["words"], saved["similarity"], strict=True)}
    masks = {"pseudo-mask": saved["mask"]} | truth_of(results, split, index)
    figure = similarity_panel(split.image(index), masks, maps, params.class_set)
    caption = (
        "CLIP's similarity of each patch to the words of some classes, small ones first, and the pseudo-mask of all "
        f"classes in the image. Image {name}: the one with most classes by its labels. {OUTLINED}"
    )
    alt = "A street scene, its pseudo-mask and similarity maps of " + ", ".join(maps) + "."
    return figure, figure_record(params, caption, alt, split.name, 1, chosen_of=len(split))


def mask_examples(results: RunResults) -> Drawn:
    """CLIP's masks of a few images without labels, with them, and from local views."""
    params, path = results.params, results.folder / "mask_examples.npz"
    saved = read_arrays(path, ("split", "rules", "names"), "run notebook 02_pseudo_masks again")
    split, names = open_data(results, str(saved["split"])), [str(name) for name in saved["names"]]
    rows = [
        GridRow(str(rule), split.image(image_index(split, name)), _ways(results, split, name))
        for rule, name in zip(saved["rules"], names, strict=True)
    ]
    if params.gate == "none":
        caption = "Pseudo-masks of the whole image and of zoomed local views, without image-level labels."
    else:
        caption = "Pseudo-masks without image-level labels, with them, and from zoomed local views with them."
    rule = "The first and the last image"
    if "best" in saved["rules"]:
        rule = f"Rows by rule: {RULES.format(CLIP_MASKS)}"
    caption += f" {rule} ({', '.join(names)}). {OUTLINED}"
    record = figure_record(
        params, caption, "Grid of street scenes and their pseudo-masks.", split.name, len(rows), chosen_of=len(split)
    )
    return qualitative_grid(rows, params.class_set), record


def _ways(results: RunResults, split: Split, name: str) -> dict[str, np.ndarray]:
    """Masks of one image by column title; without labels at all (gate: none) there are two ways only."""
    masks, kinds = {}, {"no labels": "_no_labels", "with labels": "", "local views": "_local"}
    if results.params.gate == "none":
        kinds = {"whole image": "", "local views": "_local"}
    for title, kind in kinds.items():
        folder = results.folder / f"pseudo_masks{kind}" / split.name
        if not mask_path(folder, name).is_file():
            raise Missing(f"pseudo_masks{kind}/{split.name}/{name}.png is missing; notebook 02_pseudo_masks makes it")
        masks[title] = read_mask(folder, name, split.class_set)
    return masks | truth_of(results, split, image_index(split, name))
