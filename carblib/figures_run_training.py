"""What the figures of a run's trainings are drawn from, and their captions; see `figures_run` for the others."""

from __future__ import annotations

from typing import Any

import numpy as np

from carblib import params as parameters
from carblib.figures_curves import (
    class_groups,
    compare_trainings,
    region_weight_curves,
    reliability_curves,
    spread_evenly,
    training_curves,
)
from carblib.figures_images import region_maps
from carblib.readers import Split, open_split
from carblib.results import MAIN_FIRST, Missing, RunResults, read_regions, region_folders, variant_label
from carblib.style import FigureRecord, PaperFigure, figure_record

Drawn = tuple[PaperFigure, FigureRecord]
REGION_MAPS = 4  # iterations shown of one image


def image_index(split: Split, name: str) -> int:
    """Return the place of an image in its split. Raises Missing where the data no longer holds it."""
    if name not in split.names:
        raise Missing(
            f"image {name} is no longer in split {split.name} of {split.image_paths[0].parent}; evaluate again"
        )
    return split.names.index(name)


def warmup_of(results: RunResults, variant: str) -> int | None:
    """Return the iteration at which a variant's balancing begins, None where it has none."""
    params = results.params
    balanced = params.variant(variant).balancing if variant in parameters.VARIANTS else params.balancing
    return params.warmup if balanced else None


def _trained(results: RunResults, have: dict[str, Any], what: str) -> str:
    """The variant among `have` that shows the method best: one with CARB, else any but the ceiling."""
    ranked = [variant for variant in MAIN_FIRST if variant in have]
    variant = next(iter(ranked + [variant for variant in have if variant != "ceiling"]), None)
    if variant is None:
        raise Missing(f"{what} is missing; notebook 03_train makes it")
    return variant


def _of_training(results: RunResults, variant: str, figure: PaperFigure, caption: str, alt: str) -> Drawn:
    split = results.params.val_split
    return figure, figure_record(results.params, caption, alt, split, checkpoint=f"train/{variant}, over training")


def one_training(results: RunResults) -> Drawn:
    """Loss, λ, consistent share and validation scores of the main training."""
    variant = _trained(results, results.logs, "train/<variant>/log.csv")
    log, warmup = results.logs[variant], warmup_of(results, variant)
    caption = (
        f"Training of {variant_label(variant)}: cross-entropy of the regions in both views, weight λ of the noisy "
        "region, share of the consistent region in the training batches, and scores on validation images."
    )
    alt = f"Four line charts over {int(log['iteration'].max())} iterations."
    weights = log["weight"].dropna()
    if warmup is not None and len(weights):
        caption += f" λ ends at {weights.tail(3).mean():.2g}."
    return _of_training(results, variant, training_curves(log, warmup), caption, alt)


def all_trainings(results: RunResults) -> Drawn:
    """All trainings side by side."""
    if len(results.logs) < 2:
        raise Missing("train/<variant>/log.csv of two variants are needed; notebook 03_train makes them")
    warmup = next((w for w in (warmup_of(results, variant) for variant in results.logs) if w is not None), None)
    caption = (
        "All trainings: scores on validation images, weight λ of the noisy region, and share of the consistent region "
        "in the training batches. The ceiling is trained on true masks."
    )
    names = ", ".join(variant_label(variant) for variant in results.logs)
    return _of_training(
        results, "<variant>", compare_trainings(results.logs, warmup), caption, f"Four line charts: {names}."
    )


def region_weights(results: RunResults) -> Drawn:
    """λ per class over training, for a variant that has one per class."""
    have = {variant: rows for variant, rows in results.region_weights.items() if rows["weight"].notna().any()}
    if not have:
        raise Missing("no variant with a weight per class went past its warm-up; `ours` in notebook 03_train has one")
    variant = _trained(results, have, "train/<variant>/region_weights.csv")
    last = have[variant].dropna(subset=["weight"])
    last = last[last["iteration"] == last["iteration"].max()].set_index("class")["weight"]
    caption = (
        f"Weight λ of the noisy region per class over the training of {variant_label(variant)}. The smaller a class's "
        "λ, the less it is learnt from pixels on which network and CLIP disagree. Small classes thick and bold."
    )
    alt = (
        f"A line per class; at the end λ is smallest for {last.idxmin()} ({last.min():.2g}) and largest for "
        f"{last.idxmax()} ({last.max():.2g})."
    )
    figure = region_weight_curves(have[variant], results.params.class_set, warmup_of(results, variant))
    return _of_training(results, variant, figure, caption, alt)


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
    return _of_training(results, variant, figure, caption, alt)


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
    split = open_split(results.params, results.params.val_split)
    image = split.image(image_index(split, name))
    caption = (
        f"Reliable regions of one image ({name}) over the training of {variant_label(variant)}. Upper row: "
        "CLIP's labels where the network agrees; the noisy region is blank. Lower row: the network's prediction among "
        "the classes present."
    )
    shares = ", ".join(f"{100 * regions[i]['consistent'].mean():.0f} % at {i}" for i in chosen)
    figure = region_maps(image, regions, results.params.class_set, warmup)
    record = figure_record(
        results.params, caption, f"Region maps of one image; consistent: {shares}.", split.name, 1, f"train/{variant}"
    )
    return figure, record
