"""Charts of a dataset's difficulty, drawn from analysis.json: why image-level labels say so little about a street.

A figure takes what a run saved; the `draw_…` functions put one chart of plain arrays on any axes. Shares come as 0–1
and are shown in percent. Names of small classes are bold. `contrast` gives an object-centric dataset's statistics,
{name, image_share, classes_per_image, object_areas}; all but the name may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from carblib.classes import ClassSet
from carblib.figures.captions import Drawn, figure_record
from carblib.figures.style import FAINT, GRID, INK, PALE, SHARE_MAP, bold_small, class_colours, new_figure, paper_style
from carblib.results.saved import Missing, RunResults, numbers
from carblib.results.words import COLUMN, PAGE

Analysis = dict[str, Any]
Contrast = dict[str, Any] | None
MOST_NUMBERED = 12  # classes up to which a matrix has its numbers written in
OBJECT = (
    "An object is an 8-connected component of a class, so that one cut in two by a pole counts as two; its fragments "
    "under the smallest size that is evaluated are left out. Percentiles are by pixels: half of a class's pixels lie "
    "in objects larger than its median."
)


# --- figures of a run ----------------------------------------------------------------------------------------------


@paper_style()
def dataset_difficulty(results: RunResults) -> Drawn:
    """All charts of the data on one page width."""
    analysis, classes, contrast = results.analysis, results.params.class_set, results.contrast
    figure = new_figure(PAGE, 2.6 + 0.26 * len(classes))
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    axes = upper.subplots(1, 3, width_ratios=(1, 1, 1.1))
    draw_image_share(axes[0], analysis, classes, contrast)
    draw_pixel_share(axes[1], analysis, classes)
    draw_classes_per_image(axes[2], analysis, contrast)
    matrix, sizes = lower.subplots(1, 2, width_ratios=(1.15, 1))
    draw_cooccurrence(matrix, analysis, classes, numbered=False)
    draw_object_sizes(sizes, analysis, classes, contrast)
    caption = (
        "What makes the data hard for image-level labels: nearly every class is in nearly every image, classes come "
        "together, and some are small. Upper row: class frequency, pixel share (log scale), classes per image. Lower "
        "row: of the images with the row's class, the percentage with the column's; sizes of objects (median, "
        f"quartiles, 5th and 95th percentile). Small classes bold. {OBJECT}"
    )
    alt = (
        f"Five charts of the data; an image holds {np.mean(analysis['classes_per_image']):.1f} of {len(classes)} "
        "classes on average."
    )
    return _captioned(results, figure, caption, alt)


@paper_style()
def class_frequency(results: RunResults) -> Drawn:
    """Share of the images that hold a class, and its share of the pixels (log scale), sorted by the latter."""
    analysis, classes = results.analysis, results.params.class_set
    figure = new_figure(PAGE, 0.8 + 0.165 * len(classes))
    left, right = figure.subplots(1, 2)
    draw_image_share(left, analysis, classes, results.contrast)
    draw_pixel_share(right, analysis, classes)
    shares, common = np.array(analysis["pixel_share"]), sum(share > 0.9 for share in analysis["image_share"])
    caption = (
        "How often a class is there, and how much of the image it takes (log scale), sorted by pixel share; small "
        f"classes bold. {common} of {len(classes)} classes are in more than 90 % of the images, so that image-level "
        "labels hardly tell images apart."
    )
    alt = (
        f"Bars of image share and dots of pixel share per class. Most pixels: {classes.names[shares.argmax()]}, "
        f"{100 * shares.max():.0f} %; fewest: {classes.names[shares.argmin()]}, {100 * shares.min():.2f} %."
    )
    return _captioned(results, figure, caption, alt)


@paper_style()
def cooccurrence(results: RunResults) -> Drawn:
    """Which classes come together."""
    many = len(results.params.class_set) > MOST_NUMBERED
    figure = new_figure(PAGE if many else COLUMN, 4.6 if many else COLUMN)
    draw_cooccurrence(figure.subplots(), results.analysis, results.params.class_set, numbered=not many)
    caption = (
        "Co-occurrence: of the images that hold the row's class, the percentage that also hold the column's class."
    )
    alt = "Matrix of classes by classes; high values everywhere mean that classes come together."
    return _captioned(results, figure, caption, alt)


@paper_style()
def classes_per_image(results: RunResults) -> Drawn:
    """How many classes an image holds."""
    figure = new_figure(COLUMN, 2.1)
    draw_classes_per_image(figure.subplots(), results.analysis, results.contrast)
    mean = np.mean(results.analysis["classes_per_image"])
    alt = f"Histogram of classes per image; mean {mean:.1f} of {len(results.params.class_set)}."
    return _captioned(results, figure, "Number of classes in an image.", alt)


@paper_style()
def object_sizes(results: RunResults) -> Drawn:
    """Sizes of objects (connected components) per class."""
    if not any(results.analysis["object_areas"].values()):
        raise Missing(f"split {results.analysis['split']} has no objects: no class is in its masks")
    figure = new_figure(COLUMN, 0.9 + 0.165 * len(results.params.class_set))
    draw_object_sizes(figure.subplots(), results.analysis, results.params.class_set, results.contrast)
    caption = (
        "Sizes of objects as a share of the image, per class: median, quartiles (box), 5th and 95th percentile "
        f"(whiskers); small classes bold. {OBJECT}"
    )
    alt = "Box plots of object size per class on a logarithmic axis, sorted by median size."
    return _captioned(results, figure, caption, alt)


def _captioned(results: RunResults, figure: Figure, caption: str, alt: str) -> Drawn:
    analysis = results.analysis
    return figure, figure_record(results.params, caption, alt, analysis["split"], analysis["images"])


# --- charts --------------------------------------------------------------------------------------------------------


def _by_pixels(analysis: Analysis) -> np.ndarray:
    return np.argsort(-numbers(analysis["pixel_share"]), kind="stable")


def draw_image_share(axes: Axes, analysis: Analysis, class_set: ClassSet, contrast: Contrast) -> None:
    """Per class, bars of the share of the images that hold it; a dashed line marks the median class of `contrast`."""
    order = _by_pixels(analysis)
    shares = 100 * numbers(analysis["image_share"])[order]
    _class_axis(axes, order, class_set, named=True)
    axes.barh(
        np.arange(len(order)), shares, 0.72, color=class_colours(class_set)[order], edgecolor=FAINT, linewidth=0.4
    )
    for place, share in enumerate(shares):
        axes.text(share + 1.5, place, f"{share:.0f}", va="center", fontsize=7)
    label = "images that hold the class (%)"
    if contrast and contrast.get("image_share"):
        axes.axvline(100 * np.median(numbers(contrast["image_share"])), color=INK, linestyle="--", zorder=3)
        label += f"\n(dashed: median class of {contrast['name']})"
    axes.set(xlim=(0, 116), xticks=(0, 25, 50, 75, 100), xlabel=label)
    axes.set_title("Class frequency")


def draw_pixel_share(axes: Axes, analysis: Analysis, class_set: ClassSet) -> None:
    """Per class, its share of the pixels: dots, as a logarithmic axis has no zero for bars to stand on."""
    order = _by_pixels(analysis)
    shares = 100 * numbers(analysis["pixel_share"])[order]
    low = min(shares[shares > 0], default=1) / 2
    _class_axis(axes, order, class_set, named=False)
    axes.hlines(np.arange(len(order)), low, 100, color=GRID, linewidth=0.5, zorder=0)
    colours = class_colours(class_set)[order]
    for place, share in enumerate(shares):
        if not share:
            axes.annotate("none", (low, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
            continue
        axes.plot(share, place, "o", color=colours[place], markeredgecolor=INK, markeredgewidth=0.5, markersize=6)
        side = -1 if share > 40 else 1  # no room between a large share's dot and 100 %
        axes.annotate(
            brief(share),
            (share, place),
            (5 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=7,
        )
    axes.set_xscale("log")
    axes.set(xlim=(low, 100), xlabel="pixels (%, log scale)")
    axes.xaxis.set_major_locator(LogLocator(10, numticks=6))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_title("Pixel share")


def _class_axis(axes: Axes, order: np.ndarray, class_set: ClassSet, named: bool) -> None:
    """A row per class, from above, in this order."""
    axes.set_yticks(np.arange(len(order)), [class_set.names[c] if named else "" for c in order])
    bold_small(axes.get_yticklabels(), [class_set.small[c] for c in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def draw_classes_per_image(axes: Axes, analysis: Analysis, contrast: Contrast) -> None:
    """Share of the images with 1, 2, 3, … classes, beside `contrast`'s counts or shares where given."""
    counts = np.asarray(analysis["classes_per_image"], int)
    shares = 100 * np.bincount(counts) / max(len(counts), 1)
    places = np.arange(len(shares))
    axes.bar(places[1:], shares[1:], 0.8, color=PALE, label=f"this data: mean {counts.mean():.1f}")
    title = "Classes per image"
    if contrast and contrast.get("classes_per_image"):
        other = numbers(contrast["classes_per_image"])
        other = 100 * other / other.sum()
        mean = float((np.arange(1, len(other) + 1) * other).sum() / 100)
        edges = np.arange(len(other) + 1) + 0.5
        axes.stairs(other, edges, color=INK, linewidth=1.4, label=f"{contrast['name']}: mean {mean:.1f}")
        shares, places = np.concatenate([shares, other]), max(places, edges, key=len)
        axes.legend(loc="upper left")
    else:
        title += f" (mean {counts.mean():.1f})"
    axes.set(xlabel="classes in an image", ylabel="images (%)", xlim=(0.4, len(places) - 0.4))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
    axes.set_ylim(0, (1.45 if contrast else 1.1) * shares.max())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    axes.set_title(title)


def draw_cooccurrence(axes: Axes, analysis: Analysis, class_set: ClassSet, numbered: bool) -> None:
    """Of the images that hold the row's class, the share that also holds the column's class, in percent."""
    order = _by_pixels(analysis)
    counts = numbers(analysis["cooccurrence"])[np.ix_(order, order)]
    held = np.diag(counts)[:, None]
    shares = np.divide(100 * counts, held, out=np.full_like(counts, np.nan), where=held > 0)
    names = [class_set.names[c] for c in order]
    draw_matrix(axes, shares, names, names, "images (%)", numbered)
    axes.set(xlabel="… also hold", ylabel="images with …")
    axes.set_title("Co-occurrence (%)")


def draw_object_sizes(axes: Axes, analysis: Analysis, class_set: ClassSet, contrast: Contrast) -> None:
    """Objects per class as share of the image: median, quartiles, 5th and 95th percentile, see `pixel_quantiles`."""
    image = float(np.prod(analysis["size"]))
    colours = class_colours(class_set)
    rows = []
    for c, name in enumerate(class_set.names):
        areas = numbers(analysis["object_areas"].get(name, [])) / image
        if len(areas):
            rows.append((name, 100 * areas, colours[c], class_set.small[c]))
    if not rows and not contrast:
        axes.text(0.5, 0.5, "no object in this split", ha="center", va="center", transform=axes.transAxes)
        axes.set(title="Object sizes", xticks=(), yticks=())
        return
    rows.sort(key=lambda row: -pixel_quantiles(row[1])[2])
    if contrast and contrast.get("object_areas"):
        rows.append((contrast["name"], 100 * numbers(contrast["object_areas"]), INK, False))
    keys = ("whislo", "q1", "med", "q3", "whishi")
    boxes = axes.bxp(
        [dict(zip(keys, pixel_quantiles(row[1]), strict=True)) for row in rows],
        orientation="horizontal",
        showfliers=False,
        patch_artist=True,
        widths=0.68,
        medianprops={"color": "black", "linewidth": 1.4},
        whiskerprops={"linewidth": 0.7},
        capprops={"linewidth": 0.7},
    )
    for box, row in zip(boxes["boxes"], rows, strict=True):
        box.set(facecolor=row[2], edgecolor=INK, linewidth=0.5)
    for line in boxes["medians"]:  # a white rim keeps the black median visible on dark colours
        axes.plot(*line.get_data(), color="white", linewidth=3, solid_capstyle="butt", zorder=line.get_zorder() - 0.1)
    axes.set_xscale("log")
    axes.set_yticks(np.arange(1, len(rows) + 1), [row[0] for row in rows])
    bold_small(axes.get_yticklabels(), [row[3] for row in rows])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("object size (% of the image, log scale)")
    axes.grid(axis="x")
    axes.set_title("Object sizes")


def pixel_quantiles(areas: np.ndarray) -> np.ndarray:
    """5th, 25th, 50th, 75th and 95th percentile of object areas, every object counting by its area: (5,).

    A pixel drawn at random from the class lies in an object of at most the q-th percentile's area with probability q.
    Counting objects instead would tell about the crumbs that are left of the sky between twigs and wires.
    """
    ordered = np.sort(areas)
    reached = np.cumsum(ordered) / ordered.sum()
    return ordered[np.minimum(np.searchsorted(reached, (0.05, 0.25, 0.5, 0.75, 0.95)), len(ordered) - 1)]


def draw_matrix(
    axes: Axes, shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], unit: str, numbered: bool
) -> None:
    """Draw percentages (rows, columns) as a matrix, with numbers or a colour bar in `unit`; nan stays grey."""
    texts = [["" if np.isnan(share) or share < 0.5 else f"{share:.0f}" for share in row] for row in shares]
    sns.heatmap(
        shares,
        ax=axes,
        vmin=0,
        vmax=100,
        cmap=SHARE_MAP,
        square=True,
        linewidths=0.4,
        annot=texts if numbered else None,
        fmt="",
        annot_kws={"fontsize": 7},
        cbar=not numbered,
        cbar_kws=None if numbered else {"label": unit, "shrink": 0.6},
        xticklabels=list(columns),
        yticklabels=list(rows),
    )
    axes.set_facecolor("#f2f2f2")
    axes.tick_params(length=0)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(axis="y", rotation=0)


def brief(value: float) -> str:
    """Write a percentage with as many digits as it deserves: 31, 4.5, 0.63, 0.04."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
