"""The explorer's pictures: panels side by side, as pixels for the screen or as a figure for a paper.

`view_of` gathers what a state shows, `render_view` paints it in some ten milliseconds (PIL, no matplotlib), and
`view_figure` draws the same view in the style of all figures, to be saved as PNG and PDF.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image, ImageDraw, ImageFont

from carblib.classes import IGNORE, ClassSet
from carblib.data.label_maps import colour_mask
from carblib.explore.explorer import Box, Explorer, ExplorerState, Pixel
from carblib.figures.captions import FigureRecord, figure_record
from carblib.figures.grids import fit_height
from carblib.figures.style import (
    FAINT,
    INK,
    VALUE_MAP,
    legend_columns,
    new_figure,
    paper_style,
    shrink,
)
from carblib.results.words import PAGE, truth_name

WIDTH = 1380  # pixels of a rendered view
DETAIL = 640  # pixels across a panel, at most
NOISY = (255, 255, 255)  # opaque
MARK = (230, 0, 120)  # words and the clicked pixel: a colour no palette of streets uses
Colour = tuple[int, int, int]
_COLUMNS = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3, 7: 4, 8: 4}
_GAP, _TITLE = 10, 24  # pixels: between panels, and above one


class Panel(NamedTuple):
    """One picture (h, w, 3) uint8 under a title."""

    title: str
    picture: np.ndarray


@dataclass(frozen=True)
class View:
    """Everything a state shows: panels of one size, and what the legend and the marks need.

    `legend` holds what is in view, with its colour as painted; `value_range` the ends of the similarity maps' scale;
    `size` (H, W) is the base size that `box` and `pixel` count in.
    """

    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, Colour], ...]
    value_range: tuple[float, float]
    size: tuple[int, int]
    box: Box | None = None
    pixel: Pixel | None = None


def view_of(explorer: Explorer, state: ExplorerState) -> View:
    """Gather a state's panels: image, similarity of the class, pseudo-mask, then prediction, truth, reliable regions
    and the maps of its words, where there are any.

    `opacity` is that of masks. Similarity maps are opaque: a mixed colour could not be read off their scale.
    """
    classes, subject = explorer.class_set, explorer.subject(state)
    image = shrink(subject.image, DETAIL)
    ends, opacity = explorer.similarity_range(state), state.opacity

    # Over grey, a colour keeps its hue and can be found in the legend.
    grey = np.repeat(image.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)

    def painted(mask: np.ndarray) -> np.ndarray:
        return _mix(grey, colour_mask(mask, classes), opacity)

    named = {"pseudo-mask": shrink(explorer.pseudo_mask(state), DETAIL)}
    predicted, consistent, gated = explorer.prediction(state), explorer.consistent(state), subject.labels is not None
    if predicted is not None:
        named["prediction (ungated)" if gated else "prediction"] = shrink(predicted[0], DETAIL)
    if subject.truth is not None:
        named[truth_name(explorer.params)] = shrink(subject.truth, DETAIL)
    values = shrink(explorer.similarity(state), DETAIL)
    word = classes.words[state.class_id][0]
    panels = [Panel("image", image), Panel(f"similarity to “{word}”", _heat(values, ends))]
    panels += [Panel(title, painted(mask)) for title, mask in named.items()]
    if consistent is not None:
        agreed = shrink(consistent.astype(np.uint8), DETAIL).astype(bool)
        shown = np.where(agreed[..., None], painted(named["pseudo-mask"]), np.uint8(NOISY))
        # Training compares the pseudo-mask with the prediction among the image's labels, which is another one.
        title = "reliable (gated prediction)" if gated else "reliable"
        panels.append(Panel(f"{title}: {100 * consistent.mean():.0f} %", shown))
    if explorer.has_words(state):
        panels += _word_panels(explorer, state, grey, ends)
    return View(
        tuple(panels),
        _legend(named.values(), classes, grey.mean(), opacity) + (("noisy region", NOISY),) * (consistent is not None),
        ends,
        explorer.params.image_size,
        explorer.box(state) if state.local else None,
        state.pixel,
    )


def _word_panels(explorer: Explorer, state: ExplorerState, image: np.ndarray, ends: tuple[float, float]) -> list[Panel]:
    text = state.text if len(state.text) <= 16 else state.text[:15] + "…"
    wins = explorer.text_margin(state) > 0
    shown = np.where(shrink(wins.astype(np.uint8), DETAIL)[..., None] > 0, _mix(image, MARK, state.opacity), image)
    heat = _heat(shrink(explorer.text_similarity(state), DETAIL), ends)
    title = f"“{text}” wins: {100 * wins.mean():.1f} %"
    return [Panel(f"similarity to “{text}”", heat), Panel(title, shown)]


def _mix(image: np.ndarray | float, colour: np.ndarray | Sequence[int], opacity: float) -> np.ndarray:
    return ((1 - opacity) * image + opacity * np.asarray(colour, np.float32)).astype(np.uint8)


def _heat(values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    low, high = ends
    return heat_colours()[np.clip((values - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)]


def _legend(
    masks: Iterable[np.ndarray], classes: ClassSet, grey: float, opacity: float
) -> tuple[tuple[str, Colour], ...]:
    """Names of the classes in view, with their colours as they look over an image of that mean grey."""
    seen = np.unique(np.concatenate([np.unique(mask) for mask in masks])).tolist()
    entries = [("void", (0, 0, 0)) if c == IGNORE else (classes.names[c], classes.palette[c]) for c in seen]
    return tuple((name, tuple(_mix(grey, colour, opacity).tolist())) for name, colour in entries)


@functools.cache
def heat_colours() -> np.ndarray:
    """Return the colours (256, 3) uint8 of the similarity maps' scale, lowest first."""
    return matplotlib.colormaps[VALUE_MAP](np.arange(256), bytes=True)[:, :3]


# --- pixels ------------------------------------------------------------------------------------------------------


def render_view(view: View) -> np.ndarray:
    """Paint a view's panels in rows, with its marks: (h, WIDTH, 3) uint8."""
    canvas = Image.new("RGB", (WIDTH, _height(view)), "white")
    draw = ImageDraw.Draw(canvas)
    for panel, (left, top, across, down) in zip(view.panels, _places(view), strict=True):
        way = Image.Resampling.NEAREST if across > panel.picture.shape[1] else Image.Resampling.BOX
        canvas.paste(Image.fromarray(panel.picture).resize((across, down), way), (left, top))
        draw.text((left + 1, top - 5), panel.title, INK, _font(), anchor="ls")
        _marks(draw, view, (left, top, across, down))
    return np.asarray(canvas)


def pixel_under(view: View, x: float, y: float) -> Pixel | None:
    """Return the image's pixel (row, column) under a point of the rendered view, whichever panel; None beside them.

    `x`, `y` are shares (0–1) of the rendered view's width and height.
    """
    x, y = x * WIDTH, y * _height(view)
    for left, top, across, down in _places(view):
        if left <= x < left + across and top <= y < top + down:
            return int((y - top) / down * view.size[0]), int((x - left) / across * view.size[1])
    return None


def _places(view: View) -> list[tuple[int, int, int, int]]:
    """Where each panel's picture lies: (left, top, width, height) in pixels."""
    columns = _COLUMNS[len(view.panels)]
    across = (WIDTH - (columns - 1) * _GAP) // columns
    down = round(across * view.size[0] / view.size[1])
    step = _TITLE + down + _GAP // 2
    cells = [divmod(place, columns) for place in range(len(view.panels))]
    return [(column * (across + _GAP), row * step + _TITLE, across, down) for row, column in cells]


def _height(view: View) -> int:
    _, top, _, down = _places(view)[-1]
    return top + down


def _marks(draw: ImageDraw.ImageDraw, view: View, place: tuple[int, int, int, int]) -> None:
    left, top, across, down = place
    down_by, across_by = down / view.size[0], across / view.size[1]
    if view.box:
        above, before, below, behind = view.box
        frame = [left + before * across_by, top + above * down_by, left + behind * across_by, top + below * down_by]
        draw.rectangle(frame, outline="black", width=4)
        draw.rectangle([frame[0] + 1, frame[1] + 1, frame[2] - 1, frame[3] - 1], outline="white", width=2)
    if view.pixel:
        x, y = left + (view.pixel[1] + 0.5) * across_by, top + (view.pixel[0] + 0.5) * down_by
        draw.ellipse([x - 7, y - 7, x + 7, y + 7], outline="white", width=5)
        draw.ellipse([x - 6, y - 6, x + 6, y + 6], outline=MARK, width=3)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 15)


# --- figures -----------------------------------------------------------------------------------------------------


@paper_style()
def view_figure(view: View) -> Figure:
    """Draw a view at page width in the style of all figures: same panels, vector text and marks, one legend."""
    columns = _COLUMNS[len(view.panels)]
    rows = -(-len(view.panels) // columns)
    figure = new_figure(PAGE, rows * PAGE / columns + 1)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.015, wspace=0, hspace=0)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for axes, panel in zip(grid.ravel(), view.panels, strict=False):
        axes.imshow(panel.picture, extent=(0, view.size[1], view.size[0], 0), interpolation="nearest")
        axes.set_title(panel.title, fontweight="normal", fontsize=7 if columns < 4 else 6.5)
        if view.box:
            top, left, bottom, right = view.box
            for colour, wide in (("black", 1.8), ("white", 0.8)):
                axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, lw=wide))
        if view.pixel:
            at = view.pixel[1] + 0.5, view.pixel[0] + 0.5
            axes.plot(*at, "o", mfc="none", mec=np.array(MARK) / 255, mew=1.2, ms=5)
    low, high = view.value_range
    scale = ScalarMappable(Normalize(low, high), VALUE_MAP)
    bar = figure.colorbar(scale, ax=grid, orientation="horizontal", shrink=0.3, aspect=30, pad=0.02)
    bar.set_label("cosine similarity", fontsize=7)
    bar.outline.set_linewidth(0.4)
    patches = [
        Patch(facecolor=np.array(colour) / 255, edgecolor=FAINT, linewidth=0.4, label=name)
        for name, colour in view.legend
    ]
    columns = legend_columns(figure, [name for name, _ in view.legend])
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, handleheight=0.9, handletextpad=0.5)
    fit_height(figure, [list(line) for line in grid])
    return figure


def view_record(explorer: Explorer, state: ExplorerState) -> FigureRecord:
    """Return caption and alternative text of a view, saying every choice that made it."""
    top, left, bottom, right = explorer.box(state)
    word, opacity = explorer.class_set.words[state.class_id][0], f"{100 * state.opacity:.0f} %"
    parts = [
        f"Image {explorer.name(state)}; masker {state.masker}, gate {explorer.gate(state)}",
        f"similarity map of “{word}”; masks drawn over the grey image with an opacity of {opacity}",
    ]
    if state.network:
        among = "" if explorer.subject(state).labels is None else " among the image's labels"
        parts.append(f"reliable where the network's prediction{among} and the pseudo-mask agree")
    if state.local:
        where = f"rows {top} to {bottom} and columns {left} to {right}"
        parts.append(f"local view, {where}, enlarged {state.zoom:.2f} times")
    if explorer.has_words(state):
        parts.append(f"similarity map of the words “{state.text}”, and where they win against every class")
    if state.pixel:
        parts.append(f"circle: row {state.pixel[0]}, column {state.pixel[1]}")
    if explorer.unknown_words(state):
        parts.append(f"CLIP never saw {', '.join(explorer.unknown_words(state))}")
    caption = "; ".join(parts) + "."
    shown = ", ".join(panel.title for panel in view_of(explorer, state).panels)
    alt = f"A driving scene and maps and masks of it, side by side: {shown}."
    return figure_record(explorer.params, caption, alt, state.split, 1, state.network or "none")
