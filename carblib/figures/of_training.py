"""What the figures of a run's trainings are drawn from, and their captions; see `figures_run` for the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from carblib.figures.captions import figure_record
from carblib.figures.chart_curves import (
    compare_trainings,
    region_weight_curves,
    reliability_curves,
    spread_evenly,
    training_curves,
)
from carblib.figures.grids import region_maps
from carblib.figures.of_data import Drawn, image_index, images_of, open_data
from carblib.figures.style import PaperFigure
from carblib.results.saved import MAIN_FIRST, Missing, RunResults, class_groups, read_regions, region_folders
from carblib.variants import TRAINED, abbreviations, variant_label

REGION_MAPS = 4  # iterations shown of one image


def warmup_of(results: RunResults, variant: str) -> int | None:
    """Return the iteration at which a variant's balancing begins, None where it has none."""
    params = results.params
    balanced = params.variant(variant).balancing if variant in TRAINED else params.balancing
    return params.warmup if balanced else None


def _trained(results: RunResults, have: dict[str, Any], what: str) -> str:
    """The variant among `have` that shows the method best: one with CARB, else any but the ceiling."""
    ranked = [variant for variant in MAIN_FIRST if variant in have]
    variant = next(iter(ranked + [variant for variant in have if variant != "ceiling"]), None)
    if variant is None:
        raise Missing(f"{what} is missing; notebook 03_train makes it")
    return variant


def watched_images(results: RunResults) -> int:
    """Return on how many validation images the trainings were watched (`val_images`, at most all; see monitor.Monitor).

    0 where neither an evaluation nor the dataset tells how many images the split has.
    """
    total = images_of(results, results.params.val_split)
    return min(results.params.val_images or total, total)


def _of_training(
    results: RunResults, variants: Sequence[str], figure: PaperFigure, caption: str, alt: str, batches: bool = False
) -> Drawn:
    """Complete a figure of these trainings; `batches`: it shows the training batches, too."""
    params = results.params
    record = figure_record(
        params,
        f"{caption} {abbreviations(variants)}",
        alt,
        params.val_split,
        watched_images(results),
        ", ".join(f"train/{variant}" for variant in variants) + ", over training",
        batches=params.train_split if batches else "",
    )
    return figure, record


def one_training(results: RunResults) -> Drawn:
    """Loss, λ, consistent share and validation scores of the main training."""
    variant = _trained(results, results.logs, "train/<variant>/log.csv")
    log, warmup = results.logs[variant], warmup_of(results, variant)
    caption = (
        f"Training of {variant_label(variant)}: in the training batches, cross-entropy of the regions in both views, "
        "weight λ of the noisy region and share of the consistent region; on validation images, the scores."
    )
    alt = f"Four line charts over {int(log['iteration'].max())} iterations."
    weights = log["weight"].dropna()
    if warmup is not None and len(weights):
        caption += f" λ ends at {weights.tail(3).mean():.2g}."
    return _of_training(results, [variant], training_curves(log, warmup), caption, alt, batches=True)


def all_trainings(results: RunResults) -> Drawn:
    """All trainings side by side."""
    if len(results.logs) < 2:
        raise Missing("train/<variant>/log.csv of two variants are needed; notebook 03_train makes them")
    warmup = next((w for w in (warmup_of(results, variant) for variant in results.logs) if w is not None), None)
    caption = (
        "All trainings: on validation images, the scores; in the training batches, weight λ of the noisy region and "
        "share of the consistent region."
        + (" The ceiling is trained on true masks." if "ceiling" in results.logs else "")
    )
    ends = [(variant_label(variant), log["val_miou"].dropna()) for variant, log in results.logs.items()]
    words = ", ".join(f"{name} {100 * scores.iloc[-1]:.1f}" for name, scores in ends if len(scores))
    alt = f"Four line charts. Validation mIoU in percent at the end: {words}."
    figure = compare_trainings(results.logs, warmup)
    return _of_training(results, list(results.logs), figure, caption, alt, batches=True)


def region_weights(results: RunResults) -> Drawn:
    """λ per class over training, for a variant that has one per class."""
    have = {variant: rows for variant, rows in results.region_weights.items() if rows["weight"].notna().any()}
    if not have:
        raise Missing("no variant with a weight per class went past its warm-up; `ours` in notebook 03_train has one")
    variant = _trained(results, have, "train/<variant>/region_weights.csv")
    last = have[variant].dropna(subset=["weight"])
    last = last[last["iteration"] == last["iteration"].max()].set_index("class")["weight"]
    caption = (
        f"Weight λ of the noisy region per class over the training of {variant_label(variant)}, noted at validations "
        f"after the warm-up of {warmup_of(results, variant)} iterations. The smaller a class's λ, the less it is "
        "learnt from pixels on which network and CLIP disagree. Small classes thick, orange and bold."
    )
    alt = (
        f"A line per class; at the end λ is smallest for {_classes_at(last, last.min())} and largest for "
        f"{_classes_at(last, last.max())}."
    )
    figure, params = region_weight_curves(have[variant], results.params.class_set), results.params
    caption = f"{caption} {abbreviations([variant])}"
    images, checkpoint = images_of(results, params.train_split), f"train/{variant}, over training"
    return figure, figure_record(params, caption, alt, params.train_split, images, checkpoint)


def _classes_at(weights: pd.Series, value: float) -> str:
    """Name all classes whose weight is shown as this value: "pedestrian and bicyclist (1)"."""
    names = [str(name) for name, weight in weights.items() if f"{weight:.2g}" == f"{value:.2g}"]
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + f"{names[-1]} ({value:.2g})"


def reliability(results: RunResults) -> Drawn:
    """Share and precision of the consistent region, by class group."""
    variant = _trained(results, results.reliability, "train/<variant>/reliability.csv")
    classes, rows = results.params.class_set, results.reliability[variant]
    caption = (
        f"Reliable regions over the training of {variant_label(variant)}, on validation images: share of CLIP's pixels "
        "on which the network agrees, and how often CLIP's label is right where they agree and where they don't."
    )
    last = class_groups(rows, classes)["all classes"].iloc[-1]
    alt = (
        f"Three line charts for all, large and small classes; at the end {100 * last['share']:.0f} % of the pixels are "
        f"consistent, and CLIP is right in {100 * last['inside']:.0f} % of them, in {100 * last['outside']:.0f} % of "
        "the others."
    )
    figure = reliability_curves(rows, classes, warmup_of(results, variant))
    return _of_training(results, [variant], figure, caption, alt)


def regions(results: RunResults) -> Drawn:
    """One image's region maps at a few iterations."""
    found = {variant: folders for variant in results.logs if (folders := region_folders(results, variant))}
    variant = _trained(results, found, "train/<variant>/regions")
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
        f"noisy region is blank. Lower row: the network's prediction among the classes present. "
        f"{abbreviations([variant])}"
    )
    shares = ", ".join(f"{100 * regions[i]['consistent'].mean():.0f} % at {i}" for i in chosen)
    alt = f"Region maps of one image; consistent: {shares}."
    figure, shown = region_maps(image, regions, results.params.class_set, warmup), f"train/{variant}, over training"
    record = figure_record(results.params, caption, alt, split.name, 1, shown, chosen_of=len(split))
    return figure, record
