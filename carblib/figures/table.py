"""The table of figures, in reading order: name, section, the notebook and the saved results it needs, and who draws it.

A new figure is a drawing function, with its caption and alternative text, and a row here: notebooks, `carb figures`,
batches, the report's sections and its warnings take it from the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from carblib.figures import ablations, data, grids, regions, scores, training
from carblib.figures.captions import Drawn
from carblib.results.saved import Missing, RunResults


@dataclass(frozen=True)
class RunFigure:
    """One row. `needs` are patterns below the run's folder, `{val}` being its validation split; each must have a file.

    `notebook` makes what is needed. `part_of` names a figure that holds this one, which a report shows in its place.
    """

    name: str
    section: str
    notebook: str
    needs: tuple[str, ...]
    draw: Callable[[RunResults], Drawn]
    part_of: str = ""

    def make(self, results: RunResults) -> Drawn:
        """Draw it: matplotlib's figure and its record.

        Raises Missing where the run has not got the results yet, and CarbError where they cannot be read.
        """
        missing = self.missing(results)
        if missing:
            raise Missing(f"{missing} is missing; notebook {self.notebook} makes it")
        return self.draw(results)

    def missing(self, results: RunResults) -> str:
        """Return the first pattern of `needs` without any file, "" where all is there."""
        return next((pattern for pattern, files in self._sources(results).items() if not files), "")

    def is_current(self, results: RunResults, picture: Path) -> bool:
        """Tell whether a saved picture is of these results: there, and no older than what it is drawn from."""
        sources = self._sources(results)
        if not picture.is_file() or not all(sources.values()):
            return False
        newest = max((path.stat().st_mtime for files in sources.values() for path in files), default=0)
        return picture.stat().st_mtime >= newest

    def _sources(self, results: RunResults) -> dict[str, list[Path]]:
        patterns = [pattern.format(val=results.params.val_split) for pattern in self.needs]
        return {pattern: [*results.folder.glob(pattern)] for pattern in patterns}


_DATA = ("The data", "01_dataset_analysis", ("analysis.json",))
_MASKS, _OF_MASKS = ("CLIP's masks", "02_pseudo_masks"), ("evaluation/{val}/pseudo_masks*.json",)
_TRAINING = ("Training", "03_train")
_RESULTS = ("Results", "04_small_object_evaluation", ("evaluation/*/*.json",))

TABLE = (
    RunFigure("samples", "The data", "01_dataset_analysis", ("params.yaml",), grids.samples),
    RunFigure("dataset_difficulty", *_DATA, data.dataset_difficulty),
    RunFigure("class_frequency", *_DATA, data.class_frequency, part_of="dataset_difficulty"),
    RunFigure("cooccurrence", *_DATA, data.cooccurrence, part_of="dataset_difficulty"),
    RunFigure("classes_per_image", *_DATA, data.classes_per_image, part_of="dataset_difficulty"),
    RunFigure("object_sizes", *_DATA, data.object_sizes, part_of="dataset_difficulty"),
    RunFigure("similarity_maps", *_MASKS, ("similarity_maps.npz",), grids.similarity_maps),
    RunFigure("mask_examples", *_MASKS, ("mask_examples.npz",), grids.mask_examples),
    RunFigure("pseudo_mask_iou", *_MASKS, _OF_MASKS, scores.pseudo_mask_iou),
    RunFigure("zoom_recovers", *_MASKS, _OF_MASKS, scores.zoom_recovers),
    RunFigure("masker_comparison", *_MASKS, ("maskers.json",), ablations.masker_comparison),
    RunFigure("training_curves", *_TRAINING, ("train/*/log.csv",), training.training_curves),
    RunFigure("compare_trainings", *_TRAINING, ("train/*/log.csv",), training.compare_trainings),
    RunFigure("region_weights", *_TRAINING, ("train/*/region_weights.csv",), regions.region_weights),
    RunFigure("reliability_curves", *_TRAINING, ("train/*/reliability.csv",), regions.reliability_curves),
    RunFigure("region_maps", *_TRAINING, ("train/*/regions/*/*.npz",), regions.region_maps),
    RunFigure("qualitative_grid", *_RESULTS, grids.predictions_grid),
    RunFigure("iou_per_class", *_RESULTS, scores.iou_per_class),
    RunFigure("object_size_curves", *_RESULTS, scores.object_size_curves),
    RunFigure("gain_over_pseudo_masks", *_RESULTS, scores.gain_over_pseudo_masks),
    RunFigure("confusion", *_RESULTS, scores.confusion),
    RunFigure("ablations", "Ablations", "05_ablations", ("ablations.json",), ablations.ablations),
)
FIGURES = {figure.name: figure for figure in TABLE}
SECTIONS = tuple(dict.fromkeys(figure.section for figure in TABLE))
