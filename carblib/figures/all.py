"""All figures of a run by name, in reading order: functions RunResults -> (figure, record), in `FIGURES`.

What each is drawn from, and its caption, stands in `figures_run_data`, `figures_run_images`, `figures_run_scores` and
`figures_run_training`. A function raises `Missing` where the run has not got the results yet.
"""

from __future__ import annotations

from collections.abc import Callable

from carblib.figures import of_data, of_images, of_scores, of_training
from carblib.figures.of_data import Drawn
from carblib.results.saved import Missing, RunResults

__all__ = ["FIGURES", "Drawn", "Missing"]

FIGURES: tuple[tuple[str, Callable[[RunResults], Drawn]], ...] = (
    ("samples", of_data.samples),
    ("dataset_difficulty", of_data.difficulty),
    ("class_frequency", of_data.frequency),
    ("cooccurrence", of_data.together),
    ("classes_per_image", of_data.per_image),
    ("object_sizes", of_data.sizes),
    ("similarity_maps", of_images.similarity_maps),
    ("mask_examples", of_images.mask_examples),
    ("pseudo_mask_iou", of_scores.pseudo_masks),
    ("zoom_recovers", of_scores.zoom_recovers),
    ("masker_comparison", of_scores.maskers),
    ("training_curves", of_training.one_training),
    ("compare_trainings", of_training.all_trainings),
    ("region_weights", of_training.region_weights),
    ("reliability_curves", of_training.reliability),
    ("region_maps", of_training.regions),
    ("qualitative_grid", of_images.grid),
    ("iou_per_class", of_scores.per_class),
    ("gain_over_pseudo_masks", of_scores.gain),
    ("object_size_curves", of_scores.object_sizes),
    ("confusion", of_scores.confusion),
    ("ablations", of_scores.ablations),
)
