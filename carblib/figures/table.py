"""The table of figures, in reading order: name, section, the notebook and the saved results it needs, and who draws it.

A new figure is a drawing function, with its caption and alternative text, and a row here: notebooks, `carb figures`,
batches, the report's sections and its warnings take it from the row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from carblib import __version__
from carblib.base.contents import Contents
from carblib.base.errors import CarbError
from carblib.base.files import read_json
from carblib.base.images import is_whole
from carblib.base.stamps import Changes, joined, sources_changed
from carblib.figures import ablations, closer, data, grids, regions, scores, training
from carblib.figures.captions import Drawn, open_data
from carblib.params import Params
from carblib.results.saved import Missing, RunResults
from carblib.results.shown import example_changes, similarity_changes


@dataclass(frozen=True)
class RunFigure:
    """One row. `needs` are patterns below the run's folder, `{val}` being its validation split; each must have a file.

    `notebook` makes what is needed. `also`: patterns of files that are read where they are there. `pictures` names the
    split whose images and masks are shown or counted ("train", "val" or "test"). `part_of` names a figure that holds
    this one, which a report shows in its place. `clip` tells how what it shows of CLIP differs from what would be made.
    """

    name: str
    section: str
    notebook: str
    needs: tuple[str, ...]
    draw: Callable[[RunResults], Drawn]
    part_of: str = ""
    pictures: str = ""
    also: tuple[str, ...] = ()
    clip: Callable[[Path, Params], dict[str, Changes]] | None = None

    def make(self, results: RunResults) -> Drawn:
        """Draw it: matplotlib's figure and its record.

        Raises Missing where the run has not got the results yet, or has those of other words or settings, and CarbError
        where they cannot be read.
        """
        missing = self.missing(results)
        if missing:
            raise Missing(f"{missing} is missing; notebook {self.notebook} makes it")
        outdated = self.outdated(results.folder, results.params)
        if outdated:
            raise Missing(outdated)
        figure, record = self.draw(results)
        return figure, dataclasses.replace(record, made_from=self.made_from(results))

    def missing(self, results: RunResults) -> str:
        """Return the first pattern of `needs` without any file, "" where all is there."""
        return next((pattern for pattern in self._needs(results) if not any(results.folder.glob(pattern))), "")

    def outdated(self, folder: Path, params: Params) -> str:
        """Say what of CLIP in runs/<run> would be made otherwise now, and what makes it; "" where all is as it should.

        Raises CarbError where it cannot be read.
        """
        found = self.clip(folder, params) if self.clip else {}
        stale = [f"{what}: {changes}" for what, changes in found.items() if not changes.none]
        return f"{'; '.join(stale)}; notebook {self.notebook} makes it again" if stale else ""

    def made_from(self, results: RunResults) -> dict[str, str]:
        """Return digests of what it is drawn from now: parameters, results, images; "" for data that are not there."""
        values = results.params.that_affect("results")
        del values["root"]  # data that moved are the same data
        found = {"carblib": __version__, "parameters": joined(values)}
        contents = Contents(results.folder.parent / ".cache" / "contents.json")
        for pattern in (*self._needs(results), *self.also):
            paths = sorted(results.folder.glob(pattern)) if pattern != "params.yaml" else []
            names = [path.relative_to(results.folder).as_posix() for path in paths]
            if paths:
                found[pattern] = joined(dict(zip(names, contents.digests(paths), strict=True)))
        if self.pictures:
            found[f"images of {self.pictures}"] = self._digest_of_pictures(results, contents)
        return found

    def changes(self, results: RunResults, picture: Path) -> Changes | None:
        """Tell how what a saved picture was drawn from differs from what is there now; None where there is no picture.

        Where the data are not there (results on another machine), their images are taken to be the same.
        """
        if not picture.is_file() or not picture.with_suffix(".json").is_file() or self.missing(results):
            return None
        record = read_json(picture.with_suffix(".json"))
        before, now = record.get("made_from") or {}, self.made_from(results)
        if not is_whole(picture):
            return Changes(("its file is damaged",))
        if record.get("run") != results.run:
            return Changes((f"of run {record.get('run')}",))
        try:
            outdated = self.outdated(results.folder, results.params)
        except CarbError as error:
            outdated = str(error)
        if outdated:
            return Changes((outdated,))
        return sources_changed(before, {what: digest or before.get(what, "") for what, digest in now.items()})

    def is_current(self, results: RunResults, picture: Path) -> bool:
        """Tell whether a saved picture is there and was drawn from these very results."""
        changes = self.changes(results, picture)
        return changes is not None and changes.none

    def _needs(self, results: RunResults) -> list[str]:
        return [pattern.format(val=results.params.val_split) for pattern in self.needs]

    def _digest_of_pictures(self, results: RunResults, contents: Contents) -> str:
        try:
            split = open_data(results, getattr(results.params, f"{self.pictures}_split"))
        except Missing:
            return ""
        masks = [path for path in split.mask_paths if path is not None]
        return joined([*split.names, *contents.digests([*split.image_paths, *masks])])


_DATA = ("The data", "01_dataset_analysis", ("analysis.json",))
_CONTRAST = ("contrast.json",)
_MASKS, _OF_MASKS = ("CLIP's masks", "02_pseudo_masks"), ("evaluation/{val}/pseudo_masks*.json",)
_TRAINING = ("Training", "03_train")
_RESULTS = ("Results", "04_small_object_evaluation", ("evaluation/*/*.json",))

TABLE = (
    RunFigure("samples", "The data", "01_dataset_analysis", ("params.yaml",), grids.samples, pictures="train"),
    RunFigure("dataset_difficulty", *_DATA, data.dataset_difficulty, also=_CONTRAST),
    RunFigure("class_frequency", *_DATA, data.class_frequency, part_of="dataset_difficulty", also=_CONTRAST),
    RunFigure("cooccurrence", *_DATA, data.cooccurrence, part_of="dataset_difficulty"),
    RunFigure("classes_per_image", *_DATA, data.classes_per_image, part_of="dataset_difficulty", also=_CONTRAST),
    RunFigure("object_sizes", *_DATA, data.object_sizes, part_of="dataset_difficulty", also=_CONTRAST),
    RunFigure(
        "similarity_maps",
        *_MASKS,
        ("similarity_maps.npz",),
        grids.similarity_maps,
        pictures="val",
        clip=similarity_changes,
    ),
    RunFigure(
        "mask_examples",
        *_MASKS,
        ("mask_examples.npz", "pseudo_masks*/{val}/stamp.json"),
        grids.mask_examples,
        pictures="val",
        clip=example_changes,
    ),
    RunFigure("pseudo_mask_iou", *_MASKS, _OF_MASKS, scores.pseudo_mask_iou),
    RunFigure("zoom_recovers", *_MASKS, _OF_MASKS, scores.zoom_recovers),
    RunFigure("masker_comparison", *_MASKS, ("maskers.json",), ablations.masker_comparison),
    RunFigure("training_curves", *_TRAINING, ("train/*/log.csv",), training.training_curves, pictures="val"),
    RunFigure("compare_trainings", *_TRAINING, ("train/*/log.csv",), training.compare_trainings, pictures="val"),
    RunFigure(
        "region_weights",
        *_TRAINING,
        ("train/*/region_weights.csv",),
        regions.region_weights,
        also=("train/*/stamp.json",),
    ),
    RunFigure(
        "reliability_curves", *_TRAINING, ("train/*/reliability.csv",), regions.reliability_curves, pictures="val"
    ),
    RunFigure("region_maps", *_TRAINING, ("train/*/regions/*/*.npz",), regions.region_maps, pictures="val"),
    RunFigure("closer_look", *_RESULTS, closer.closer_look, pictures="test"),
    RunFigure("qualitative_grid", *_RESULTS, closer.predictions_grid, pictures="test"),
    RunFigure("iou_per_class", *_RESULTS, scores.iou_per_class),
    RunFigure("object_size_curves", *_RESULTS, scores.object_size_curves),
    RunFigure("gain_over_pseudo_masks", *_RESULTS, scores.gain_over_pseudo_masks),
    RunFigure("confusion", *_RESULTS, scores.confusion),
    RunFigure("ablations", "Ablations", "05_ablations", ("ablations.json",), ablations.ablations),
)
FIGURES = {figure.name: figure for figure in TABLE}
SECTIONS = tuple(dict.fromkeys(figure.section for figure in TABLE))
