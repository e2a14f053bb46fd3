"""Figures made of images and masks: qualitative grids, reliable regions over training, similarity maps.

Masks are shown in the dataset's own palette, with one legend that names only the classes in view. Whoever calls brings
the arrays; which images are shown is decided by the rules below, never by hand.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from carblib.classes import ClassSet
from carblib.data.label_maps import colour_mask
from carblib.figures.style import (
    FAINT,
    INK,
    PDF_DPI,
    VALUE_MAP,
    PaperFigure,
    class_legend,
    new_figure,
    paper_style,
    shrink,
)
from carblib.results.words import PAGE

Box = tuple[int, int, int, int]


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
    boxes: Sequence[Box] = ()


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
def qualitative_grid(rows: Sequence[GridRow], class_set: ClassSet) -> PaperFigure:
    """A row per image: the image, then its masks under their column titles, in the palette; one legend below.

    Columns are those of the first row. Masks of another size than the image are shown over the same frame.
    """
    titles = ["image", *rows[0].masks]
    figure, panels = _panels([row.image for row in rows], len(titles))
    for row, line in zip(rows, panels, strict=True):
        _picture(line[0], row.image, row.image.shape)
        for top, left, bottom, right in row.boxes:
            line[0].add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, color="white", linewidth=2)
            )
            line[0].add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, color="black", linewidth=0.8)
            )
        if row.label:
            line[0].set_ylabel(row.label.replace("most small ", "most small\n"), fontsize=7.5)
        for axes, title in zip(line[1:], titles[1:], strict=True):
            if title in row.masks:
                _picture(axes, colour_mask(row.masks[title], class_set), row.image.shape)
            axes.set_xlabel(row.notes.get(title, ""), fontsize=7, labelpad=1.5)
    for axes, title in zip(panels[0], titles, strict=True):
        # A letter of a title takes about 0.066 in.
        axes.set_title(
            textwrap.fill(title, int(PAGE / len(titles) / 0.066), break_on_hyphens=False), fontweight="normal"
        )
    class_legend(figure, [mask for row in rows for mask in row.masks.values()], class_set)
    _fit_height(figure, panels)
    return figure


@paper_style()
def region_maps(
    image: np.ndarray, regions: Mapping[int, Mapping[str, np.ndarray]], class_set: ClassSet, warmup: int | None = None
) -> PaperFigure:
    """One image at some iterations: above CLIP's labels where the network agrees, below its prediction.

    `regions` {iteration: {pseudo_mask, prediction: (H, W) uint8; consistent: (H, W) bool}}. Pixels on which the two
    disagree (the noisy region) are left blank in the upper row.
    """
    iterations = sorted(regions)
    figure, panels = _panels([image, image], len(iterations) + 1)
    first = regions[iterations[0]]
    blank = _blank(class_set)
    masks = [regions[i][key] for i in iterations for key in ("pseudo_mask", "prediction")]
    _picture(panels[0][0], image, image.shape)
    panels[0][0].set_title("image", fontweight="normal", fontsize=7)
    _picture(panels[1][0], colour_mask(first["pseudo_mask"], class_set), image.shape)
    panels[1][0].set_xlabel("CLIP mask", labelpad=1.5, fontsize=7)
    for column, iteration in enumerate(iterations, start=1):
        region = regions[iteration]
        agreed = np.asarray(region["consistent"], bool)
        shown = np.where(agreed[..., None], colour_mask(region["pseudo_mask"], class_set), np.uint8(blank))
        _picture(panels[0][column], shown, image.shape)
        _picture(panels[1][column], colour_mask(region["prediction"], class_set), image.shape)
        when = "" if not warmup else " (warm-up)" if iteration <= warmup else ""
        panels[0][column].set_title(f"iteration {iteration}{when}", fontweight="normal", fontsize=7)
        panels[0][column].set_xlabel(f"{100 * agreed.mean():.0f} % consistent", labelpad=1.5, fontsize=7)
        panels[1][column].set_xlabel("prediction", labelpad=1.5, fontsize=7)
    noisy = Patch(facecolor=np.array(blank) / 255, edgecolor=INK, linewidth=0.6, label="noisy region")
    class_legend(figure, masks, class_set, extra=[noisy])
    _fit_height(figure, panels)
    return figure


@paper_style()
def similarity_panel(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    mask: np.ndarray,
    class_set: ClassSet,
    truth: np.ndarray | None = None,
    truth_title: str = "ground truth",
) -> PaperFigure:
    """CLIP's similarity maps of some classes beside the image, the pseudo-mask and, where given, the truth.

    `maps` {class: (h, w) cosine similarity}. All maps share one scale, whose ends are their 1st and 99th percentile.
    """
    pictures = {"image": image, "pseudo-mask": colour_mask(mask, class_set)}
    if truth is not None:
        pictures[truth_title] = colour_mask(truth, class_set)
    total = len(pictures) + len(maps)
    columns = min(4, total)
    figure, panels = _panels([image] * -(-total // columns), columns)
    flat = [axes for line in panels for axes in line]
    values = np.concatenate([np.ravel(values) for values in maps.values()])
    low, high = np.percentile(values, (1, 99))
    shown = None
    for axes, (title, picture) in zip(flat, pictures.items(), strict=False):
        _picture(axes, picture, image.shape)
        axes.set_title(title, fontweight="normal")
    for axes, (title, similarity) in zip(flat[len(pictures) :], maps.items(), strict=False):
        extent = (0, image.shape[1], image.shape[0], 0)
        shown = axes.imshow(similarity, cmap=VALUE_MAP, vmin=low, vmax=high, extent=extent, interpolation="nearest")
        axes.set_title(f"“{title}”", fontweight="normal")
    for axes in flat[total:]:
        axes.set_axis_off()
    if shown is not None:
        bar = figure.colorbar(shown, ax=flat, shrink=0.7, aspect=25, pad=0.01)
        bar.set_label("cosine similarity")
        bar.outline.set_linewidth(0.4)
    class_legend(figure, [mask] if truth is None else [mask, truth], class_set)
    _fit_height(figure, panels)
    return figure


def _panels(images: Sequence[np.ndarray], columns: int) -> tuple[PaperFigure, list[list[Axes]]]:
    """An empty grid at page width with a row per image; `_fit_height` gives it its height."""
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


def _fit_height(figure: PaperFigure, panels: list[list[Axes]]) -> None:
    """Make the figure just as high as its pictures are at this width: no white bands, none smaller than its column."""
    for _ in range(2):
        figure.draw_without_rendering()
        spare = 0.0
        for line in panels:
            slot, shown = line[0].get_position(original=True), line[0].get_position()
            spare += slot.height - shown.height * slot.width / shown.width
        figure.set_figheight(figure.get_figheight() * (1 - spare))


def _picture(axes: Axes, picture: np.ndarray, frame: Sequence[int]) -> None:
    """Show a picture over the frame (H, W) of its image, with no more pixels than print resolves."""
    pixels = int(PDF_DPI * PAGE / axes.get_gridspec().ncols)
    axes.imshow(shrink(picture, pixels), extent=(0, frame[1], frame[0], 0), interpolation="nearest")


def _blank(class_set: ClassSet) -> tuple[int, int, int]:
    """White, or the lightest grey or black that is no class's colour."""
    return next(c for c in ((255, 255, 255), (0, 0, 0), (225, 225, 225)) if c not in class_set.palette)
