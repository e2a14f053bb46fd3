"""One look for every figure: widths, type sizes, colours, and the helper that saves a figure with its caption.

Widths are those of the common two-column formats (AAAI, CVPR: 3.25 and 6.875 inches). Fonts are embedded as TrueType
(pdf.fonttype 42, which conferences ask for). DejaVu Sans comes with matplotlib, so a figure looks alike everywhere.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from carblib import __version__
from carblib.classes import ClassSet
from carblib.files import write_bytes, write_json
from carblib.params import Params

COLUMN, PAGE = 3.25, 6.875  # inches
PNG_DPI, PDF_DPI = 200, 300  # the second is for pictures inside a PDF; lines and text stay vectors
IGNORE = 255

# Continuous maps whose lightness rises or falls steadily, so that they read in grey and to colour-blind eyes.
VALUE_MAP, SHARE_MAP = "cividis", "Blues"
INK, FAINT, GRID = "#222222", "#767676", "#dddddd"
# Variants: the Okabe–Ito colours, one fixed for each; others take the spare ones in turn.
VARIANT_COLOURS = {
    "pseudo_masks": "#bbbbbb",
    "pseudo_masks_global": "#bbbbbb",
    "pseudo_masks_local": "#8c8c8c",
    "plain": "#e69f00",
    "glv": "#56b4e9",
    "carb": "#cc79a7",
    "full": "#0072b2",
    "ours": "#009e73",
    "ceiling": "#000000",
}
SPARE_COLOURS = ("#d55e00", "#882255", "#999933", "#332288", "#aa4499", "#117733")
MARKERS = ("o", "s", "D", "^", "v", ">", "<", "P", "X")
DATA_NAMES = {
    "scenes": "rendered scenes",
    "camvid": "CamVid",
    "cityscapes": "Cityscapes",
    "wilddash2": "WildDash2",
    "folder": "a folder of images",
}

_SETTINGS = {
    "font.family": "DejaVu Sans",
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


def paper_style() -> AbstractContextManager[None]:
    """Return matplotlib's settings of this style as a context manager, which also serves as a decorator."""
    return matplotlib.rc_context(_SETTINGS)


class PaperFigure(Figure):
    """A matplotlib figure that is drawn in this style whoever draws it, and that a notebook shows without pyplot.

    matplotlib makes ticks only when it draws, with the settings of that moment; hence the style goes with the figure.
    """

    @paper_style()
    def draw(self, renderer: Any) -> None:
        """Draw with this style's settings."""
        super().draw(renderer)

    @paper_style()
    def get_tightbbox(self, renderer: Any = None, *, bbox_extra_artists: Any = None) -> Any:
        """Measure with this style's settings."""
        return super().get_tightbbox(renderer, bbox_extra_artists=bbox_extra_artists)

    @paper_style()
    def _repr_png_(self) -> bytes:
        return _rendered(self, "png", self.dpi, {})


def new_figure(width: float, height: float) -> PaperFigure:
    """Return an empty white figure of that size in inches, laid out so that no label is cut off."""
    with paper_style():
        return PaperFigure(figsize=(width, height), layout="constrained", facecolor="white")


# --- colours and legends -----------------------------------------------------------------------------------------


def variant_colours(variants: Sequence[str]) -> dict[str, str]:
    """Return {variant: colour}: the fixed colour of a known variant, a spare one for any other."""
    others = [variant for variant in variants if variant not in VARIANT_COLOURS]
    spare = {variant: SPARE_COLOURS[i % len(SPARE_COLOURS)] for i, variant in enumerate(others)}
    return {variant: VARIANT_COLOURS.get(variant) or spare[variant] for variant in variants}


def variant_line(variant: str) -> dict[str, Any]:
    """Return line style and width of a variant's curve, such that one that lies on another lets it show.

    Variants that differ in balancing alone are equal until the warm-up ends: plain and carb, glv, full and ours.
    """
    if variant.startswith("pseudo_masks"):
        return {"linestyle": (0, (3, 1.5)), "linewidth": 1.4}
    if variant in ("plain", "glv"):
        return {"linestyle": "-", "linewidth": 2.6}
    dashes = {"carb": (0, (4, 2)), "ours": (0, (4, 2)), "ceiling": (0, (1, 1.5))}
    return {"linestyle": dashes.get(variant, "-"), "linewidth": 1.3}


def class_colours(class_set: ClassSet) -> np.ndarray:
    """Return the palette as (C, 3) floats 0–1."""
    return np.array(class_set.palette, float) / 255


def colorize(mask: np.ndarray, class_set: ClassSet) -> np.ndarray:
    """Turn a mask (H, W) of train ids into (H, W, 3) uint8 by the dataset's palette; ignored pixels are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(class_set)] = class_set.palette
    return table[mask]


def class_legend(figure: Figure, masks: Sequence[np.ndarray], class_set: ClassSet, extra: Sequence[Patch] = ()) -> None:
    """Put one legend below the figure that names only the classes in these masks (and void where it is in view).

    `extra` patches follow the classes.
    """
    seen = np.zeros(256, bool)
    for mask in masks:
        seen |= np.bincount(np.asarray(mask).ravel(), minlength=256)[:256] > 0
    colours = class_colours(class_set)
    handles = [
        Patch(facecolor=colours[c], edgecolor=FAINT, linewidth=0.4, label=class_set.names[c])
        for c in range(len(class_set))
        if seen[c]
    ]
    if seen[IGNORE]:
        handles.append(Patch(facecolor="black", edgecolor=FAINT, linewidth=0.4, label="void"))
    handles.extend(extra)
    columns = legend_columns(figure, [handle.get_label() for handle in handles])
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handleheight=0.9, handletextpad=0.5)


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


# --- captions and files ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FigureRecord:
    """What a figure shows and where it comes from; written beside it as JSON. `seed` holds several where they differ.

    `images` counts those shown or measured, all of the split or some.
    """

    run: str
    data: str
    split: str
    seed: int | tuple[int, ...]
    checkpoint: str
    images: int
    version: str
    caption: str
    alt: str


def figure_record(
    params: Params,
    caption: str,
    alt: str,
    split: str = "",
    images: int = 0,
    checkpoint: str = "none",
    *,
    chosen_of: int = 0,
    batches: str = "",
    seeds: Sequence[int] = (),
) -> FigureRecord:
    """Complete a caption (one or more sentences) with data, split, number of images, seed, checkpoint and version.

    `checkpoint` says which trained networks a figure rests on, "none" for CLIP's masks and for the data alone.
    `chosen_of`: of how many images of the split `images` were chosen by rule. `batches`: the split whose training
    batches are shown as well. `seeds` default to the parameters' one.
    """
    data, seeds = data_name(params), tuple(seeds) or (params.seed,)
    number = f"{images} of {chosen_of} images, chosen by rule" if chosen_of > images else plural(images, "image")
    source = f"Data: {data}" + (f", split {split}" if split else "") + (f" ({number})" if images else "")
    parts = [source + (f", and training batches of split {batches}" if batches else "")]
    if params.clip == "small":
        parts.append("CLIP: a small one trained on rendered scenes only")
    parts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    several = "s" if "," in checkpoint.removesuffix(", over training") else ""
    parts.append("no trained network" if checkpoint == "none" else f"checkpoint{several} {checkpoint}")
    caption = f"{caption.strip()} {'; '.join(parts)}; carblib {__version__}."
    splits = " and ".join(dict.fromkeys(name for name in (batches, split) if name))
    seed = seeds[0] if len(seeds) == 1 else seeds
    return FigureRecord(params.run, data, splits, seed, checkpoint, images, __version__, caption, alt.strip())


def plural(number: int, thing: str) -> str:
    """Write a number of things: 1 image, 3 images."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def data_name(params: Params) -> str:
    """Return the dataset's name as captions give it; rendered scenes are always called so."""
    return DATA_NAMES.get(params.dataset, params.dataset)


def truth_name(params: Params) -> str:
    """Return what the reference masks are: exact masks of rendered scenes, or ground truth (human annotation)."""
    return "exact mask" if params.dataset == "scenes" else "ground truth"


@paper_style()
def save_figure(figure: Figure, path_stem: str | Path, record: FigureRecord) -> list[Path]:
    """Write <stem>.png (200 dpi), <stem>.pdf (vectors, embedded fonts) and <stem>.json (the record); return the paths.

    A figure of rendered scenes gets a footnote that says so, for the day the picture is seen without its caption.
    """
    stem = Path(path_stem)
    if record.data == DATA_NAMES["scenes"]:
        _footnote(figure, "rendered scenes" + (f", {record.split}" if record.split else ""))
    about = {"Title": stem.name, "Description": record.alt}
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf", "json")]
    write_bytes(paths[0], _rendered(figure, "png", PNG_DPI, about))
    # No date, so that the same results give the same file.
    write_bytes(paths[1], _rendered(figure, "pdf", PDF_DPI, {"Title": stem.name, "CreationDate": None}))
    write_json(paths[2], dataclasses.asdict(record))
    return paths


def _rendered(figure: Figure, kind: str, dpi: float, metadata: dict[str, Any]) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=dpi, metadata=metadata)
    return data.getvalue()


def _footnote(figure: Figure, text: str) -> None:
    if any(artist.get_gid() == "footnote" for artist in figure.texts):
        return
    width, height = figure.get_size_inches()
    strip = 0.16  # inches added below, so that the drawing keeps its size
    figure.set_size_inches(width, height + strip)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, strip / (height + strip), 1, height / (height + strip)))
    figure.text(
        1 - 0.04 / width,
        0.035 / (height + strip),
        text,
        ha="right",
        va="bottom",
        fontsize=7,
        color=FAINT,
        gid="footnote",
    ).set_in_layout(False)
