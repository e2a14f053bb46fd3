"""One look for every figure: type sizes, colours, legends, and how a figure becomes a file.

Widths are those of the common two-column formats (AAAI, CVPR: 3.25 and 6.875 inches). Fonts are embedded as TrueType
(pdf.fonttype 42, which conferences ask for). DejaVu Sans comes with matplotlib, so a figure looks alike everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from PIL import Image

from carblib.classes import IGNORE, ClassSet
from carblib.results.words import PAGE
from carblib.variants import VARIANTS

PNG_DPI, PDF_DPI = 200, 300  # the second is for pictures inside a PDF; lines and text stay vectors

# Continuous maps whose lightness rises or falls steadily, so that they read in grey and to colour-blind eyes.
VALUE_MAP, SHARE_MAP = "cividis", "Greys"
INK, FAINT, PALE, GRID = "#222222", "#767676", "#c8c8c8", "#dddddd"
SPARE_COLOURS = ("#004c8c", "#882255", "#999933", "#332288", "#aa4499", "#117733")
MARKERS = ("<", "h", "*", "d", "8")  # of variants that `carblib.variants` has no row for

# For letters that DejaVu Sans lacks, those of these that are installed.
OTHER_SCRIPTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR", "Source Han Sans",
    "IPAexGothic", "WenQuanYi Zen Hei", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
    "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Thai", "Nirmala UI", "Arial Unicode MS",
)  # fmt: skip

_SETTINGS = {
    "text.parse_math": False,  # a class may be called "$_sign"
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.2,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "figure.dpi": 150,
    "savefig.dpi": PNG_DPI,
    "savefig.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.04,
    "figure.constrained_layout.w_pad": 0.04,
}


@contextlib.contextmanager
def paper_style() -> Iterator[None]:
    """Within the block, or the function decorated with it, matplotlib has this style's settings and its own defaults.

    Whatever a matplotlibrc says (text.usetex where there is no LaTeX) is left out.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS | {"font.family": _families()})
        yield


@functools.cache
def _families() -> list[str]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in installed)]


class PaperFigure(Figure):
    """A matplotlib figure that is drawn in this style whoever draws it, and that a notebook shows without pyplot.

    matplotlib makes ticks only when it draws, with the settings of that moment; hence the style goes with the figure.
    """

    @paper_style()
    def draw(self, renderer: Any) -> None:
        """Draw with this style's settings."""
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return rendered(self, "png", self.dpi, {})


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure of that size in inches, laid out so that no label is cut off."""
    with paper_style():
        return PaperFigure(figsize=(width, height), layout="constrained", facecolor="white")


# Around small classes in a mask: with a colour vision deficiency, palettes hardly tell some of them from large ones.
OUTLINE = "white"

# --- colours and legends -------------------------------------------------------------------------------------------


def variant_colours(variants: Sequence[str]) -> dict[str, str]:
    """Return {variant: colour}: the colour of a row of `carblib.variants`, a spare one for any other."""
    others = [variant for variant in variants if variant not in VARIANTS]
    spare = {variant: SPARE_COLOURS[i % len(SPARE_COLOURS)] for i, variant in enumerate(others)}
    return {variant: spare.get(variant) or VARIANTS[variant].colour for variant in variants}


def variant_markers(variants: Sequence[str]) -> dict[str, str]:
    """Return {variant: marker}, chosen as colours are."""
    others = [variant for variant in variants if variant not in VARIANTS]
    spare = {variant: MARKERS[i % len(MARKERS)] for i, variant in enumerate(others)}
    return {variant: spare.get(variant) or VARIANTS[variant].marker for variant in variants}


def variant_line(variant: str) -> dict[str, Any]:
    """Return line style and width of a variant's curve."""
    row = VARIANTS.get(variant)
    return {"linestyle": row.line, "linewidth": row.width} if row else {"linestyle": "-", "linewidth": 1.3}


def class_colours(class_set: ClassSet) -> np.ndarray:
    """Return the palette as (C, 3) floats 0–1."""
    return np.array(class_set.palette, float) / 255


_PLAIN = {"edgecolor": FAINT, "linewidth": 0.4}
_OUTLINED = {"edgecolor": OUTLINE, "linewidth": 1, "path_effects": [withStroke(linewidth=2, foreground=INK)]}


def class_legend(figure: Figure, masks: Sequence[np.ndarray], class_set: ClassSet, extra: Sequence[Patch] = ()) -> None:
    """Put one legend below the figure that names only the classes in these masks (and void where it is in view).

    `extra` patches follow the classes.
    """
    seen = np.zeros(256, bool)
    for mask in masks:
        seen |= np.bincount(np.asarray(mask).ravel(), minlength=256)[:256] > 0
    colours = class_colours(class_set)
    handles = [
        Patch(facecolor=colours[c], label=class_set.names[c], **(_OUTLINED if class_set.small[c] else _PLAIN))
        for c in range(len(class_set))
        if seen[c]
    ]
    if seen[IGNORE]:
        handles.append(Patch(facecolor="black", label="void", **_PLAIN))
    handles.extend(extra)
    small = [class_set.names[c] for c in class_set.small_ids]
    columns = legend_columns(figure, [handle.get_label() for handle in handles])
    place = {"loc": "outside lower center", "handleheight": 0.9, "handletextpad": 0.5}
    texts = figure.legend(handles=handles, ncols=columns, **place).get_texts()
    bold_small(texts, [text.get_text() in small for text in texts])


def legend_above(figure: Figure) -> None:
    """Put one legend above the figure, in few rows, for everything in its panels that has a label."""
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    figure.legend(loc="outside upper center", ncols=legend_columns(figure, labels))


def bold_small(ticks: Iterable[Text], small: Iterable[bool]) -> None:
    """Make the names of small classes bold, those of the others plain."""
    for tick, is_small in zip(ticks, small, strict=True):
        tick.set_fontweight("bold" if is_small else "normal")


def legend_columns(figure: Figure, labels: Sequence[str]) -> int:
    """Return how many columns of a legend with these labels fit across the figure, rows being of equal length."""
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        widest = [max(map(len, labels[start : start + rows])) for start in range(0, len(labels), rows)]
        # A letter takes about 0.055 in at 7 pt, a handle and the gaps beside it 0.45 in.
        if sum(0.055 * letters + 0.45 for letters in widest) <= figure.get_figwidth():
            return -(-len(labels) // rows)
    return 1


def shrink(picture: np.ndarray, width: int) -> np.ndarray:
    """Scale an image (H, W, 3) or mask (H, W) down to at most `width` pixels across, keeping its shape.

    Images are averaged, masks take the nearest pixel, so no class id is invented.
    """
    if picture.shape[1] <= width:
        return picture
    size = (width, max(1, round(picture.shape[0] * width / picture.shape[1])))
    way = Image.Resampling.NEAREST if picture.ndim == 2 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize(size, way))


# --- files ---------------------------------------------------------------------------------------------------------


@paper_style()
def rendered(figure: Figure, kind: str, dpi: float, metadata: dict[str, Any]) -> bytes:
    """Return a figure as the bytes of a file (kind: png, pdf), in this style: its fonts are embedded as TrueType."""
    data = io.BytesIO()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        figure.savefig(data, format=kind, dpi=dpi, metadata=metadata)
    for warning in said:
        if letter := re.match(r"Glyph (\d+) .* missing from", str(warning.message)):
            _tell_of_letter(chr(int(letter[1])))
    return data.getvalue()


@functools.cache  # once for each letter
def _tell_of_letter(letter: str) -> None:
    print(f"figures: no font here has the letter {letter!r}; install one of its script (Noto Sans CJK, Noto Sans …)")


def compact(png: bytes, most: int) -> tuple[bytes, str]:
    """Return a picture for a page and its kind: a PNG of up to `most` bytes as it is, else a JPEG at most PAGE wide."""
    if len(png) <= most:
        return png, "png"
    data = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        width = min(picture.width, round(PAGE * PNG_DPI))
        smaller = picture.convert("RGB").resize((width, round(picture.height * width / picture.width)))
    smaller.save(data, "JPEG", quality=80, optimize=True)
    return data.getvalue(), "jpeg"
