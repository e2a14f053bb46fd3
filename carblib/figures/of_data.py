"""What the figures of a run's data are drawn from, and their captions; see `figures_run` for the others."""

from __future__ import annotations

from typing import Any

import numpy as np

from carblib.base.errors import CarbError
from carblib.data.readers import Split, open_split
from carblib.figures.captions import FigureRecord, figure_record
from carblib.figures.chart_data import (
    class_frequency,
    classes_per_image,
    cooccurrence,
    dataset_difficulty,
    object_sizes,
)
from carblib.figures.grids import GridRow, qualitative_grid
from carblib.figures.style import PaperFigure
from carblib.results.saved import Missing, RunResults
from carblib.results.words import truth_name

Drawn = tuple[PaperFigure, FigureRecord]
SAMPLES = 3
OBJECT = (
    "An object is an 8-connected component of a class, so that one cut in two by a pole counts as two; its fragments "
    "under the smallest size that is evaluated are left out. Percentiles are by pixels: half of a class's pixels lie "
    "in objects larger than its median."
)


def open_data(results: RunResults, split: str) -> Split:
    """Open a split of the run's dataset. Raises Missing where it is not there: results may lie far from their data."""
    root = results.params.data_root
    if not root.is_dir():
        raise Missing(f"dataset not found at {root}; set root in {results.folder / 'params.yaml'}, or copy the data")
    try:
        return open_split(results.params, split)
    except CarbError as error:
        raise Missing(f"dataset not found at {root}: {str(error).removeprefix(f'{root}: ')}") from error


def image_index(split: Split, name: str) -> int:
    """Return the place of an image in its split. Raises Missing where the data no longer holds it."""
    if name not in split.names:
        raise Missing(
            f"image {name} is no longer in split {split.name} of {split.image_paths[0].parent}; evaluate again"
        )
    return split.names.index(name)


def images_of(results: RunResults, split: str) -> int:
    """Return how many images a split has, by the saved results, else by the dataset; 0 where neither is there."""
    if results.analysis and results.analysis["split"] == split:
        return int(results.analysis["images"])
    if split == results.params.val_split and results.validation:
        return int(next(iter(results.validation.values()))["images"])
    try:
        return len(open_data(results, split))
    except Missing:
        return 0


def samples(results: RunResults) -> Drawn:
    """The first, the middle and the last training image beside their masks."""
    params, train = results.params, open_data(results, results.params.train_split)
    chosen = np.unique(np.linspace(0, len(train) - 1, SAMPLES).round().astype(int))
    masks = [{truth_name(params): train.mask(i)} if train.mask_paths[i] else {} for i in chosen]
    names = [train.names[i] for i in chosen]
    rows = [GridRow(name, train.image(i), mask) for name, i, mask in zip(names, chosen, masks, strict=True)]
    caption = f"The first, the middle and the last training image ({', '.join(names)})"
    caption += f", and the {truth_name(params)} that training never sees." if train.has_masks else "."
    record = figure_record(
        params, caption, "Street scenes beside their masks.", train.name, len(rows), chosen_of=len(train)
    )
    return qualitative_grid(rows, params.class_set), record


def _analysis(results: RunResults) -> dict[str, Any]:
    if results.analysis is None:
        raise Missing("analysis.json is missing; notebook 01_dataset_analysis makes it")
    return results.analysis


def _of_data(results: RunResults, figure: PaperFigure, caption: str, alt: str) -> Drawn:
    analysis = _analysis(results)
    return figure, figure_record(results.params, caption, alt, analysis["split"], analysis["images"])


def frequency(results: RunResults) -> Drawn:
    """Share of the images and of the pixels, per class."""
    analysis, names = _analysis(results), results.params.class_set.names
    shares = np.array(analysis["pixel_share"])
    common = sum(share > 0.9 for share in analysis["image_share"])
    caption = (
        "How often a class is there, and how much of the image it takes (log scale), sorted by pixel share; small "
        f"classes bold. {common} of {len(names)} classes are in more than 90 % of the images, so that image-level "
        "labels hardly tell images apart."
    )
    alt = (
        f"Bars of image share and dots of pixel share per class. Most pixels: {names[shares.argmax()]}, "
        f"{100 * shares.max():.0f} %; fewest: {names[shares.argmin()]}, {100 * shares.min():.2f} %."
    )
    return _of_data(results, class_frequency(analysis, results.params.class_set, results.contrast), caption, alt)


def together(results: RunResults) -> Drawn:
    """Which classes come together."""
    analysis = _analysis(results)
    caption = (
        "Co-occurrence: of the images that hold the row's class, the percentage that also hold the column's class."
    )
    alt = "Matrix of classes by classes; high values everywhere mean that classes come together."
    return _of_data(results, cooccurrence(analysis, results.params.class_set), caption, alt)


def per_image(results: RunResults) -> Drawn:
    """How many classes an image holds."""
    analysis = _analysis(results)
    counts = analysis["classes_per_image"]
    caption = "Number of classes in an image."
    alt = f"Histogram of classes per image; mean {np.mean(counts):.1f} of {len(results.params.class_set)}."
    return _of_data(results, classes_per_image(analysis, results.contrast), caption, alt)


def sizes(results: RunResults) -> Drawn:
    """How large objects are, per class."""
    analysis = _analysis(results)
    caption = (
        "Sizes of objects as a share of the image, per class: median, quartiles (box), 5th and 95th percentile "
        f"(whiskers); small classes bold. {OBJECT}"
    )
    alt = "Box plots of object size per class on a logarithmic axis, sorted by median size."
    return _of_data(results, object_sizes(analysis, results.params.class_set, results.contrast), caption, alt)


def difficulty(results: RunResults) -> Drawn:
    """All charts of the data on one page width."""
    analysis = _analysis(results)
    caption = (
        "What makes the data hard for image-level labels: nearly every class is in nearly every image, classes come "
        "together, and some are small. Upper row: class frequency, pixel share (log scale), classes per image. Lower "
        "row: of the images with the row's class, the percentage with the column's; sizes of objects (median, "
        f"quartiles, 5th and 95th percentile). Small classes bold. {OBJECT}"
    )
    alt = (
        f"Five charts of the data; an image holds {np.mean(analysis['classes_per_image']):.1f} of "
        f"{len(results.params.class_set)} classes on average."
    )
    return _of_data(results, dataset_difficulty(analysis, results.params.class_set, results.contrast), caption, alt)
