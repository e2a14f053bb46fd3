"""What a state shows: its maps, for the page, and the same as panels of a figure for a paper.

`maps_of` gathers the maps, `view_of` paints them, and `view_figure` draws them in the style of all figures, to be saved
as PNG and PDF.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from carblib.classes import IGNORE, ClassSet
from carblib.explore.explorer import Box, Explorer, ExplorerState, Pixel
from carblib.figures.captions import FigureRecord, figure_record
from carblib.figures.grids import fit_height
from carblib.figures.style import (
    FAINT,
    VALUE_MAP,
    legend_columns,
    new_figure,
    paper_style,
    shrink,
)
from carblib.results.words import PAGE, truth_name

DETAIL = 640  # pixels across a panel of a figure, at most
NOISY, WINS, NOTHING = 254, 253, 252  # in a map, what is no train id: not reliable, words win, not to be drawn
MARK = (230, 0, 120)  # words and the clicked pixel: a colour no palette of streets uses
Colour = tuple[int, int, int]
_COLUMNS = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3, 7: 4, 8: 4, 9: 3}


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


class Map(NamedTuple):
    """What a map says of every pixel: `ids` (H, W) uint8 train ids, or one of NOISY, WINS and NOTHING.

    `id` names the map for the page, `stamp` what it was made from.
    """

    id: str
    title: str
    ids: np.ndarray
    stamp: str


def maps_of(explorer: Explorer, state: ExplorerState) -> list[Map]:
    """Return the maps of a state: pseudo-mask, predictions, truth, reliable regions, and where its words win."""
    gated = explorer.subject(state).labels is not None
    place = explorer.key(state)
    seen = f"{place}/{state.masker}/{explorer.gate(state)}/{(explorer.box(state), state.zoom) if state.local else ''}"
    mask = explorer.pseudo_mask(state)
    found = [Map("mask", "pseudo-mask", mask, f"mask/{seen}")]
    for which, name in (("prediction", state.network), ("other", state.other)):
        if name:
            title = f"prediction of {short_name(name)}" + (" (ungated)" if gated else "")
            stamp = f"{which}/{explorer.version(name)}/{place}"  # before it predicts: it may be added anew meanwhile
            found.append(Map(which, title, explorer.prediction(replace(state, network=name))[0], stamp))
    found += truth_of(explorer, state)
    stamp, consistent = f"reliable/{explorer.version(state.network)}/{seen}", explorer.consistent(state)
    if consistent is not None:
        # Training compares the pseudo-mask with the prediction among the image's labels, which is another one.
        title = "reliable (gated prediction)" if gated else "reliable regions"
        reliable = np.where(consistent, mask, np.uint8(NOISY))
        found.append(Map("reliable", title, reliable, stamp))
    if explorer.has_words(state):
        wins = explorer.text_margin(state) > 0
        title = f"“{_short(state.text)}” wins: {100 * wins.mean():.1f} %"
        ids = np.where(wins, np.uint8(WINS), np.uint8(NOTHING))
        found.append(Map("wins", title, ids, f"wins/{state.text}/{seen}"))
    return found


def truth_of(explorer: Explorer, state: ExplorerState) -> list[Map]:
    """Return the map of the truth, none where there is no truth: what can be shown before CLIP has looked."""
    truth = explorer.subject(state).truth
    title = truth_name(explorer.params)
    return [] if truth is None else [Map("truth", title, truth, f"truth/{explorer.key(state)}")]


def short_name(network: str) -> str:
    """Return a network's name without what all checkpoints' paths share: runs/a/train/b/final.pt is a/b."""
    parts = [part for part in Path(network).parts if part not in ("runs", "train", "final.pt")]
    return "/".join(parts).removesuffix(".pt")


def view_of(explorer: Explorer, state: ExplorerState) -> View:
    """Gather a state's panels: image, similarity of the class, its maps, and the similarity of its words.

    `opacity` is that of masks. Similarity maps are opaque: a mixed colour could not be read off their scale.
    """
    classes, subject = explorer.class_set, explorer.subject(state)
    image = shrink(subject.image, DETAIL)
    ends, opacity = explorer.similarity_range(state), state.opacity
    # Over grey, a colour keeps its hue and can be found in the legend.
    grey = np.repeat(image.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(classes)], colours[WINS] = classes.palette, MARK

    def painted(one: Map) -> np.ndarray:
        ids = shrink(one.ids, DETAIL)
        shown = _mix(grey, colours[ids], opacity)
        shown[ids == NOISY] = 255
        return np.where((ids == NOTHING)[..., None], image, shown)

    def heat(values: np.ndarray, words: str) -> Panel:
        return Panel(f"similarity to “{_short(words)}”", _heat(shrink(values, DETAIL), ends))

    maps = maps_of(explorer, state)
    panels = [Panel("image", image), heat(explorer.similarity(state), classes.words[state.class_id][0])]
    panels += [Panel(one.title, painted(one)) for one in maps]
    if explorer.has_words(state):
        panels.append(heat(explorer.text_similarity(state), state.text))
    return View(
        tuple(panels),
        _legend([one.ids for one in maps], classes, float(grey.mean()), opacity),
        ends,
        explorer.params.image_size,
        explorer.box(state) if state.local else None,
        state.pixel,
    )


def _short(words: str) -> str:
    return words if len(words) <= 16 else words[:15] + "…"


def _mix(image: np.ndarray | float, colour: np.ndarray | Sequence[int], opacity: float) -> np.ndarray:
    return ((1 - opacity) * image + opacity * np.asarray(colour, np.float32)).astype(np.uint8)


def _heat(values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    low, high = ends
    return heat_colours()[np.clip((values - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)]


def _legend(
    maps: Iterable[np.ndarray], classes: ClassSet, grey: float, opacity: float
) -> tuple[tuple[str, Colour], ...]:
    """Names of what is in view, with its colours as they look over an image of that mean grey."""
    seen = np.unique(np.concatenate([np.unique(ids) for ids in maps])).tolist()
    marks = {IGNORE: ("void", (0, 0, 0)), WINS: ("the words win", MARK)}
    known = {**marks, **dict(enumerate(zip(classes.names, classes.palette, strict=True)))}
    entries = [(known[c][0], tuple(_mix(grey, known[c][1], opacity).tolist())) for c in seen if c in known]
    return tuple(entries + [("noisy region", (255, 255, 255))] * (NOISY in seen))


@functools.cache
def heat_colours() -> np.ndarray:
    """Return the colours (256, 3) uint8 of the similarity maps' scale, lowest first."""
    return matplotlib.colormaps[VALUE_MAP](np.arange(256), bytes=True)[:, :3]


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
        parts.append(f"prediction of {state.network}" + (f", compared with {state.other}" if state.other else ""))
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
