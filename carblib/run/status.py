"""What of a run is up to date, what is stale and why, and what is missing: `carb status params/x.yaml`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carblib.base import files
from carblib.base.contents import Contents
from carblib.base.errors import CarbError
from carblib.base.files import digest_of
from carblib.base.stamps import NAME, Changes, Stamp, compare, joined, lacking, read_stamp, sources_changed
from carblib.data.labels import known_labels, labels_path, read_labels
from carblib.data.mask_folders import are_given, clip_masks, mask_path, pseudo_mask_folder
from carblib.data.readers import open_split
from carblib.data.sources import contents, digests, label_stamp, mask_stamp, prediction_stamp, refined_stamp
from carblib.data.split import Split
from carblib.figures.table import TABLE, RunFigure
from carblib.params import Params, project_root
from carblib.results.saved import RunResults, load_results
from carblib.stages.crf import SETTINGS
from carblib.stages.dataset_analysis import analysis_path
from carblib.stages.evaluate import compared, evaluation_path, evaluation_split, prediction_paths
from carblib.stages.predict import prediction_folder
from carblib.training.state import stamp_and_changes

UP_TO_DATE, STALE, MISSING, UNKNOWN = "up to date", "stale", "missing", "cannot tell"
DATA, MASKS, TRAINING, EVALUATION = (
    "01_dataset_analysis", "02_pseudo_masks", "03_train", "04_small_object_evaluation",
)  # fmt: skip
MARKERS = "done/0[1-9]*.json"  # of the notebooks that make results: 00 only looks at them
_OF_REPORT = ("evaluation/*/*.json", "*.json", "train/*/*.csv", "train/*/done.json", MARKERS)


class Row(NamedTuple):
    """One artefact: what it is, its state, why, the command that makes it (again), and the notebook that does."""

    what: str
    state: str
    why: str
    command: str
    notebook: str = ""


def status(params: Params) -> Iterator[Row]:
    """Say of each artefact of a run, in the order in which they are made, whether it is what would be made now."""
    yield from results_status(params)
    yield from shown_status(params)


def results_status(params: Params) -> Iterator[Row]:
    """The rows of `status` of all but figures and report."""
    train, measured, val = open_split(params, params.train_split), evaluation_split(params), None
    with contextlib.suppress(CarbError):  # a folder of images may have none
        val = open_split(params, params.val_split)
    of_labels = _labels(params, train)
    yield of_labels._replace(notebook=DATA)
    if train.has_masks:
        yield _analysis(params, train)._replace(notebook=DATA)
    labels = known_labels(params, train) if of_labels.state == UP_TO_DATE else None
    if params.path == "single":
        yield (_given if are_given(params, train.name) else _masks)(params.updated(crf=False), train, labels)
        if params.crf:
            yield _masks(params, train, labels)
    if val and (val.name != measured.name or not val.has_masks):
        yield from _of_clip(params, val, MASKS)
    for variant in params.trainings:
        yield _training(params, variant, labels)
    for variant in params.trainings:
        yield _predictions(params, variant, measured)
        if val and val.name != measured.name and (prediction_folder(params, variant, val.name) / NAME).is_file():
            yield _predictions(params, variant, val)._replace(notebook="")  # which no notebook makes
    if measured.has_masks:
        yield from _of_clip(params, measured, EVALUATION)
        for variant in params.trainings:
            yield _evaluation(params, variant, measured, params.command("batch", "--notebooks", "04"), EVALUATION)
    yield from _of_clip_shown(params)  # last: its notebook refuses masks made otherwise, whose commands stand above
    known = {
        evaluation_path(params, name, measured.name) for name in (*params.trainings, *clip_masks(params, measured.name))
    }
    known |= {evaluation_path(params, name, params.val_split) for name in clip_masks(params, params.val_split)}
    for path in sorted({*params.run_dir.glob("evaluation/*/*.json")} - known):
        yield _evaluation_of_another(params, path)


def shown_status(params: Params) -> Iterator[Row]:
    """The rows of `status` of what shows results: figures and the report."""
    if not (params.run_dir / "params.yaml").is_file():
        return
    try:
        results = load_results(params.run_dir, params)
    except CarbError as error:
        yield Row("figures, report", UNKNOWN, str(error), "")
        return
    yield _figures(results)
    yield _report(results)


def _row(what: str, changes: Changes | None, command: str, why: str = "") -> Row:
    if changes is None:
        return Row(what, MISSING, why, command)
    return Row(what, UP_TO_DATE, why, "") if changes.none else Row(what, STALE, str(changes), command)


def _labels(params: Params, split: Split) -> Row:
    what, path = f"labels {split.name}", labels_path(params, split.name)
    command = params.command("labels", *["--split", split.name] * (split.name != params.train_split))
    if params.gate == "none":
        return Row(what, UP_TO_DATE, "not read, gate: none", "")
    note = path.with_suffix(".json")
    if not path.is_file():
        return _row(what, None, command)
    before = read_stamp(note) if not params.labels else None
    if before is None or before.upstream.get("csv") != digest_of(path.read_bytes()):
        add = f"{command} --add"
        try:
            read_labels(path, split.class_set, split.names, add, split.left_out)
        except CarbError as error:  # what is to be done is in its words, and a command for missing rows alone
            why = str(error)
            return Row(what, STALE, why.removesuffix(f": {add}"), add if why.endswith(add) else "")
        return Row(what, UP_TO_DATE, "written by hand", "")
    return _row(what, compare(Stamp(before.kind, before.version, before.settings, {}, before.items),
                              label_stamp(params, split)), command)  # fmt: skip


def _analysis(params: Params, split: Split) -> Row:
    path, command = analysis_path(params), params.command("analyse")
    if not path.is_file():
        return _row("analysis", None, command)
    same = files.read_json(path).get("made_from") == label_stamp(params, split).digest
    return _row("analysis", Changes() if same else Changes(("other masks",)), command)


def _of_clip(params: Params, split: Split, notebook: str) -> Iterator[Row]:
    """CLIP's masks of a split that is shown or measured, and their evaluations."""
    of_labels = _labels(params, split)
    labels = known_labels(params, split) if of_labels.state == UP_TO_DATE else None
    command = params.command("batch", "--notebooks", notebook[:2])
    for variant, masks in clip_masks(params, split.name).items():
        if masks.params.gate != params.gate:
            what = f"pseudo-masks without labels {split.name}"
            yield _masks_in(masks.folder, what, masks.params, split, labels, False, command)._replace(notebook=notebook)
        elif masks.local or split.name != params.train_split or params.path != "single":  # else there is a row already
            yield _masks(masks.params, split, labels, masks.local)._replace(notebook=notebook)
        if split.has_masks:
            yield _evaluation(params, variant, split, command, notebook)


def _of_clip_shown(params: Params) -> Iterator[Row]:
    """What figures show of CLIP."""
    for figure in TABLE:
        if figure.clip and any(params.run_dir.glob(figure.needs[0])):
            what, command = figure.name.replace("_", " "), params.command("batch", "--notebooks", figure.notebook[:2])

            def look(figure: RunFigure = figure, what: str = what, command: str = command) -> Row:
                why = figure.outdated(params.run_dir, params)
                return _row(what, Changes((why,)) if why else Changes(), command)

            yield _looked(what, look, figure.notebook)


def _given(params: Params, split: Split, labels: np.ndarray | None) -> Row:
    folder = pseudo_mask_folder(params, split.name)
    without, what = lacking(folder, split.names), f"pseudo-masks {split.name}"
    if without:
        first = mask_path(folder, without[0])
        return Row(what, MISSING, f"{len(without)} of {len(split)} of yours, the first is {first}", "")
    return Row(what, UP_TO_DATE, "yours", "")


def _masks(params: Params, split: Split, labels: np.ndarray | None, local: bool = False) -> Row:
    what = f"{'refined ' * params.crf}{'local ' * local}pseudo-masks {split.name}"
    command = params.command(
        "masks", *["--split", split.name] * (split.name != params.train_split), *["--local"] * local
    )
    return _masks_in(pseudo_mask_folder(params, split.name, local), what, params, split, labels, local, command)


def _masks_in(
    folder: Path, what: str, params: Params, split: Split, labels: np.ndarray | None, local: bool, command: str
) -> Row:
    def look() -> Row:
        before = read_stamp(folder / NAME)
        if before is None:
            return _row(what, None, command)
        if labels is None:
            return Row(what, UNKNOWN, "its labels come first", "")
        if params.crf:
            now = refined_stamp(params, split, labels, SETTINGS | {"classes": len(split.class_set)})
        else:
            now = mask_stamp(params, split, labels, local)
        return _row_of_files(what, folder, before, now, command)

    return _looked(what, look, MASKS)


def _looked(what: str, look: Callable[[], Row], notebook: str) -> Row:
    """The row that `look` finds; where something is damaged, or missing of the user's, the row says so."""
    try:
        return look()._replace(notebook=notebook)
    except CarbError as error:
        return Row(what, UNKNOWN, str(error), "", notebook)


def _row_of_files(what: str, folder: Path, before: Stamp, now: Stamp, command: str) -> Row:
    changes = compare(before, now)
    without = lacking(folder, now.items)
    if changes.none and without:
        return Row(what, MISSING, f"{len(without)} of {len(now.items)} images", command)
    return _row(what, changes, f"{command} --renew" if changes.made_otherwise and " masks " in command else command)


def _training(params: Params, variant: str, labels: np.ndarray | None) -> Row:
    what, folder, own = f"training {variant}", params.run_dir / "train" / variant, params.variant(variant)
    command = params.command("train", "--variant", variant)

    def look() -> Row:
        if not (folder / NAME).is_file():
            return _row(what, None, command)
        if labels is None:
            return Row(what, UNKNOWN, "its labels come first", "")
        _, changes = stamp_and_changes(folder, own, labels)
        if changes.none and not (folder / "done.json").is_file():
            return Row(what, MISSING, "begun, not finished", command)
        return _row(what, changes, f"{command} --renew")

    return _looked(what, look, TRAINING)


def _predictions(params: Params, variant: str, split: Split) -> Row:
    what, folder = f"predictions {variant} {split.name}", prediction_folder(params, variant, split.name)
    final = params.run_dir / "train" / variant / "final.pt"
    command = params.command("predict", "--checkpoint", str(final), "--split", split.name)

    def look() -> Row:
        before = read_stamp(folder / NAME)
        if before is None or not final.is_file():
            return _row(what, None, command)
        now = prediction_stamp(params, split, contents(params).digest(final))
        return _row_of_files(what, folder, before, now, command)

    return _looked(what, look, EVALUATION)


def _evaluation(params: Params, variant: str, split: Split, command: str, notebook: str = "") -> Row:
    what, path = f"evaluation {variant} {split.name}", evaluation_path(params, variant, split.name)

    def look() -> Row:
        if not path.is_file():
            return _row(what, None, command)
        result = files.read_json(path)
        if not result.get("folder"):
            return Row(what, UNKNOWN, "its predictions were not kept", command)
        folder, options = project_root() / result["folder"], result.get("options", ())
        try:
            paths = prediction_paths(folder, split.names, "--label-ids" in options)
        except CarbError as error:
            return Row(what, STALE, str(error), command)
        now = compared(params, split, joined(digests(params, split.names, paths)))
        return _row(what, sources_changed(result.get("made_from"), now), command)

    return _looked(what, look, notebook)


def _evaluation_of_another(params: Params, path: Path) -> Row:
    """An evaluation that no notebook makes: `carb evaluate` of anyone's predictions."""
    variant, split = path.stem, path.parent.name

    def look() -> Row:
        result = files.read_json(path)
        command = params.command("evaluate", "--folder", str(result.get("folder")), "--split", split,
                                 "--variant", variant, *result.get("options", ()))  # fmt: skip
        return _evaluation(params, variant, open_split(params, split), command)

    return _looked(f"evaluation {variant} {split}", look, "")


# --- figures and report -----------------------------------------------------------------------------------------------


def _figures(results: RunResults) -> Row:
    command, stale = results.command("figures"), stale_figures(results)
    there = sum((results.figures_dir / f"{figure.name}.png").is_file() for figure in TABLE)
    if not there:
        return Row("figures", MISSING, "", command)
    why = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in stale.items())
    return Row("figures", STALE, why, command) if stale else Row("figures", UP_TO_DATE, f"{there} there", "")


def stale_figures(results: RunResults) -> dict[str, list[str]]:
    """Return {why: names} of the saved figures that were drawn from other things than lie there now."""
    found: dict[str, list[str]] = {}
    for figure in TABLE:
        changes = figure.changes(results, results.figures_dir / f"{figure.name}.png")
        if changes is not None and not changes.none:
            found.setdefault(str(changes), []).append(figure.name)
    return found


def report_digest(results: RunResults) -> str:
    """Return one digest of all that a run's report shows: parameters, results, figures with their records."""
    paths = [path for pattern in _OF_REPORT for path in sorted(results.folder.glob(pattern))]
    paths += sorted(path for path in results.figures_dir.glob("*.*") if path.suffix in (".json", ".png"))
    found = Contents(results.folder.parent / ".cache" / "contents.json").digests(paths)
    names = [f"{path.parent.name}/{path.name}" for path in paths]
    return joined([joined(results.params.model_dump(mode="json")), *names, *found])


def _report(results: RunResults) -> Row:
    path, command = results.folder / "report.html", results.command("report")
    if not path.is_file():
        return Row("report", MISSING, "", command)
    written = re.search(r'name="made-from" content="(\w+)"', path.read_text("utf-8")[:4000])
    same = written is not None and written[1] == report_digest(results)
    return _row("report", Changes() if same else Changes(("other results or figures",)), command)
