"""Consistent and noisy region over training: their weights, how reliable they are, and where they lie in an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator
from scipy.optimize import isotonic_regression

from carblib.classes import IGNORE, ClassSet
from carblib.data.label_maps import colour_mask
from carblib.figures.captions import Drawn, figure_record, image_index, open_data, taught_images
from carblib.figures.grids import fit_height, outline_small, panels_of, show_mask, show_picture
from carblib.figures.style import FAINT, INK, PALE, class_legend, new_figure, paper_style
from carblib.figures.training import mark_warmup, of_training, over_training, shown_training, warmup_of
from carblib.results.saved import Missing, RunResults, class_groups, read_regions, region_folders
from carblib.results.words import COLUMN, PAGE, percent, plural
from carblib.variants import abbreviations, variant_label

REGION_MAPS = 4  # iterations shown of one image
LABEL_HEIGHT = 0.135  # inches a line's name takes
# Grey, as colours mean variants. All classes nearly coincide with the large ones: a broad pale line below shows both.
GROUP_STYLES = {
    "all classes": {"color": PALE, "linewidth": 4},
    "large classes": {"color": FAINT, "marker": "s", "linestyle": "--", "linewidth": 0.9},
    "small classes": {"color": INK, "marker": "o", "linewidth": 1.8},
}
FEW = 4  # measured iterations up to which a line between them would claim more than was measured


# --- figures of a run ----------------------------------------------------------------------------------------------


def region_weights(results: RunResults) -> Drawn:
    """λ per class over training, for a variant that has one per class."""
    have = {variant: rows for variant, rows in results.region_weights.items() if rows["weight"].notna().any()}
    if not have:
        raise Missing("no variant with a weight per class went past its warm-up; `ours` in notebook 03_train has one")
    variant = shown_training(results, have, "train/<variant>/region_weights.csv")
    noted = have[variant].dropna(subset=["weight"])
    last = noted[noted["iteration"] == noted["iteration"].max()].set_index("class")["weight"]
    iterations = sorted(noted["iteration"].unique())
    few = f"Measured at {plural(len(iterations), 'iteration')} only ({', '.join(map(str, iterations))}), so no course "
    few += "over training can be read from it; thin lines join what is one class's. "
    caption = (
        f"Weight λ of the noisy region per class over the training of {variant_label(variant)}, noted at validations "
        f"after the warm-up of {warmup_of(results, variant)} iterations. The smaller a class's λ, the less it is "
        "learnt from pixels on which network and CLIP disagree. "
        f"{few if len(iterations) <= FEW else ''}Small classes dark, with round markers and bold names."
    )
    alt = (
        f"Markers per class; at the end λ is smallest for {_classes_at(last, last.min())} and largest for "
        f"{_classes_at(last, last.max())}."
    )
    figure, params = draw_region_weights(have[variant], results.params.class_set), results.params
    caption = f"{caption} {abbreviations([variant])}"
    images, checkpoint = taught_images(results, variant), f"train/{variant}, over training"
    return figure, figure_record(params, caption, alt, params.train_split, images, checkpoint)


def _classes_at(weights: pd.Series, value: float) -> str:
    """Name all classes whose weight is shown as this value: "pedestrian and bicyclist (1)"."""
    names = [str(name) for name, weight in weights.items() if f"{weight:.2g}" == f"{value:.2g}"]
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + f"{names[-1]} ({value:.2g})"


def reliability_curves(results: RunResults) -> Drawn:
    """Share and precision of the consistent region, by class group."""
    variant = shown_training(results, results.reliability, "train/<variant>/reliability.csv")
    classes, rows = results.params.class_set, results.reliability[variant]
    caption = (
        f"Reliable regions over the training of {variant_label(variant)}, on validation images: share of CLIP's pixels "
        "on which the network agrees, and how often CLIP's label is right where they agree and where they don't."
    )
    last = class_groups(rows, classes)["all classes"].iloc[-1]
    alt = (
        f"Three line charts for all, large and small classes; at the end {percent(last['share'], 0)} % of the pixels "
        f"are consistent, and CLIP is right in {percent(last['inside'], 0)} % of them, in "
        f"{percent(last['outside'], 0)} % of the others."
    )
    figure = draw_reliability(rows, classes, warmup_of(results, variant))
    return of_training(results, [variant], figure, caption, alt)


def region_maps(results: RunResults) -> Drawn:
    """One image's region maps at a few iterations."""
    found = {variant: folders for variant in results.logs if (folders := region_folders(results, variant))}
    variant = shown_training(results, found, "train/<variant>/regions")
    folders, warmup = found[variant], warmup_of(results, variant)
    first = next(iter(folders.values()))
    # By rule: of the watched images, the one in whose CLIP mask most classes are named; ties go to the first name.
    names = [path.stem for path in sorted(first.glob("*.npz"))]
    masks = {name: read_regions(first / f"{name}.npz")["pseudo_mask"] for name in names}
    name = max(names, key=lambda name: len(np.unique(masks[name])))
    kept = [iteration for iteration, folder in folders.items() if (folder / f"{name}.npz").is_file()]
    chosen = spread_evenly(kept, REGION_MAPS, warmup)
    regions = {iteration: read_regions(folders[iteration] / f"{name}.npz") for iteration in chosen}
    split = open_data(results, results.params.val_split)
    image = split.image(image_index(split, name))
    caption = (
        f"Reliable regions of image {name} over the training of {variant_label(variant)}: of {len(names)} watched "
        "images, the one with most classes in CLIP's mask. Upper row: CLIP's labels where the network agrees; the "
        "noisy region is blank. Lower row: the network's prediction among the classes present. Small classes are "
        f"outlined, above in black, below in white. {abbreviations([variant])}"
    )
    shares = ", ".join(f"{percent(regions[i]['consistent'].mean(), 0)} % at {i}" for i in chosen)
    alt = f"Region maps of one image; consistent: {shares}."
    checkpoint = f"train/{variant}, over training"
    record = figure_record(results.params, caption, alt, split.name, 1, checkpoint, chosen_of=len(split))
    return draw_region_maps(image, regions, results.params.class_set, warmup), record


def spread_evenly(iterations: Sequence[int], count: int, warmup: int | None = None) -> list[int]:
    """Choose at most `count` iterations by rule: first, last, the warm-up's end, the rest evenly spaced."""
    iterations = sorted(iterations)
    if len(iterations) <= count:
        return iterations
    chosen = {iterations[0], iterations[-1]}
    if warmup and count > 2:
        chosen.add(min(iterations, key=lambda i: abs(i - warmup)))
    for place in np.linspace(0, len(iterations) - 1, count).round().astype(int):
        if len(chosen) < count:
            chosen.add(iterations[place])
    return sorted(chosen)


# --- charts --------------------------------------------------------------------------------------------------------


@paper_style()
def draw_region_weights(weights: pd.DataFrame, class_set: ClassSet) -> Figure:
    """Weight λ of the noisy region per class where it was measured, every class named and numbered at its end.

    `weights`: rows {iteration, class, weight} as in region_weights.csv, empty during the warm-up, which is not shown.
    Classes are told apart by their names, not by colours: palettes have several of one darkness.
    """
    shown = weights[weights["weight"] > 0]
    iterations = sorted(shown["iteration"].unique())
    ends = shown.sort_values("iteration").groupby("class")["weight"].last().sort_values()
    figure = new_figure(COLUMN, max(2.2, 0.75 + LABEL_HEIGHT * len(ends)))
    axes = figure.subplots()
    low, high = min(shown["weight"].min() / 1.2, 0.5), max(shown["weight"].max() * 1.2, 1.2)
    axes.set(yscale="log", ylim=(low, high), xlabel="iteration", ylabel="weight λ of the noisy region")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(axis="y")
    wanted = np.log(ends.to_numpy() / low) / np.log(high / low)  # places in the axes, 0 below and 1 above
    places = spread_apart(wanted, LABEL_HEIGHT / (figure.get_figheight() - 0.65))
    for name, value, start, place in zip(ends.index, ends, wanted, places, strict=True):
        small = class_set.small[class_set.index(name)]
        rows = shown[shown["class"] == name]
        style = GROUP_STYLES["small classes" if small else "large classes"]
        thin = {"linewidth": 0.5, "linestyle": ":"} if len(iterations) <= FEW else {}
        axes.plot(rows["iteration"], rows["weight"], markersize=3.5, clip_on=False, **style | thin)
        _name_at_the_end(axes, f"{name} {value:.2g}", start, place, style["color"], small)
    axes.set_xlim(iterations[0] - (len(iterations) == 1), iterations[-1])
    axes.xaxis.set_major_locator(
        FixedLocator(iterations) if len(iterations) <= FEW else MaxNLocator(4, steps=(1, 2, 5, 10), integer=True)
    )
    return figure


def _name_at_the_end(axes: Axes, text: str, start: float, place: float, colour: str, bold: bool) -> None:
    """Write beside the axes at height `place`, with a thin line from `start`, the end of the curve (both 0–1)."""
    axes.plot([1.01, 1.06], [start, place], color=colour, linewidth=0.5, transform=axes.transAxes, clip_on=False)
    weight = "bold" if bold else "normal"
    axes.text(1.07, place, text, transform=axes.transAxes, va="center", fontsize=7, fontweight=weight)


def spread_apart(places: Sequence[float], gap: float) -> np.ndarray:
    """Move ascending places as little as needed for neighbours to stand `gap` apart, within 0–1 where there is room."""
    steps = gap * np.arange(len(places))
    room = max(1 - gap * (len(places) - 1), 0)
    return np.clip(isotonic_regression(np.asarray(places) - steps).x, 0, room) + steps


@paper_style()
def draw_reliability(reliability: pd.DataFrame, class_set: ClassSet, warmup: int | None) -> Figure:
    """Share of the consistent region, and how often CLIP's label is right inside and outside it, by class group.

    `reliability`: rows as in reliability.csv. Groups are sums over pixels of the classes CLIP gives, not means over
    classes.
    """
    groups = class_groups(reliability, class_set)
    figure = new_figure(PAGE, 2.4)
    panels = figure.subplots(1, 3, sharex=True)
    titles = ("Share of consistent pixels", "CLIP right, consistent", "CLIP right, noisy")
    for axes, key, title in zip(panels, ("share", "inside", "outside"), titles, strict=True):
        for name, group in groups.items():
            label = name if axes is panels[0] else None
            axes.plot(group["iteration"], 100 * group[key], label=label, **GROUP_STYLES[name])
        axes.set(title=title, ylim=(0, 103), xlabel="iteration")
        mark_warmup(axes, warmup, name=False, in_legend=axes is panels[0])
    over_training(panels, reliability["iteration"].max())
    panels[0].set_ylabel("pixels (%)")
    figure.legend(loc="outside upper center", ncols=4, handlelength=2)
    return figure


@paper_style()
def draw_region_maps(
    image: np.ndarray, regions: Mapping[int, Mapping[str, np.ndarray]], class_set: ClassSet, warmup: int | None = None
) -> Figure:
    """One image at some iterations: above CLIP's labels where the network agrees, below its prediction.

    `regions` {iteration: {pseudo_mask, prediction: (H, W) uint8; consistent: (H, W) bool}}. Pixels on which the two
    disagree (the noisy region) are left blank in the upper row.
    """
    iterations = sorted(regions)
    figure, panels = panels_of([image, image], len(iterations) + 1)
    first = regions[iterations[0]]
    blank = _blank(class_set)
    masks = [regions[i][key] for i in iterations for key in ("pseudo_mask", "prediction")]
    show_picture(panels[0][0], image, image.shape)
    panels[0][0].set_title("image", fontweight="normal", fontsize=7)
    show_mask(panels[1][0], first["pseudo_mask"], image.shape, class_set)
    panels[1][0].set_xlabel("CLIP mask", labelpad=1.5, fontsize=7)
    for column, iteration in enumerate(iterations, start=1):
        region = regions[iteration]
        agreed = np.asarray(region["consistent"], bool)
        shown = np.where(agreed[..., None], colour_mask(region["pseudo_mask"], class_set), np.uint8(blank))
        show_picture(panels[0][column], shown, image.shape)
        agreed_mask = np.where(agreed, region["pseudo_mask"], np.uint8(IGNORE))
        outline_small(panels[0][column], agreed_mask, image.shape, class_set, INK)  # white would be lost on blank
        show_mask(panels[1][column], region["prediction"], image.shape, class_set)
        when = "" if not warmup else " (warm-up)" if iteration <= warmup else ""
        panels[0][column].set_title(f"iteration {iteration}{when}", fontweight="normal", fontsize=7)
        panels[0][column].set_xlabel(f"{100 * agreed.mean():.0f} % consistent", labelpad=1.5, fontsize=7)
        panels[1][column].set_xlabel("prediction", labelpad=1.5, fontsize=7)
    noisy = Patch(facecolor=np.array(blank) / 255, edgecolor=INK, linewidth=0.6, label="noisy region")
    class_legend(figure, masks, class_set, extra=[noisy])
    fit_height(figure, panels)
    return figure


def _blank(class_set: ClassSet) -> tuple[int, int, int]:
    """White, or the lightest grey or black that is no class's colour."""
    return next(c for c in ((255, 255, 255), (0, 0, 0), (225, 225, 225)) if c not in class_set.palette)
