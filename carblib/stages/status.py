"""What of a run is up to date, what is stale and why, and what is missing: `carb status params/x.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carblib.base import files
from carblib.base.contents import digest_of
from carblib.base.errors import CarbError
from carblib.base.stamps import NAME, Changes, Stamp, compare, read_stamp
from carblib.data.labels import labels_path, read_labels
from carblib.data.mask_folders import are_given, mask_path, pseudo_mask_folder
from carblib.data.readers import Split, open_split
from carblib.data.sources import contents, label_stamp, mask_stamp, prediction_stamp, refined_stamp
from carblib.params import Params
from carblib.stages.crf import SETTINGS
from carblib.stages.dataset_analysis import analysis_path
from carblib.stages.evaluate import compared, evaluation_path, evaluation_split
from carblib.stages.predict import prediction_folder
from carblib.training.state import stamp_and_changes

UP_TO_DATE, STALE, MISSING, UNKNOWN = "up to date", "stale", "missing", "cannot tell"


class Row(NamedTuple):
    """One artefact: what it is, its state, why, and the command that makes it (again)."""

    what: str
    state: str
    why: str
    command: str


def status(params: Params) -> Iterator[Row]:
    """Say of each artefact of a run, in the order in which they are made, whether it is what would be made now."""
    train, measured = open_split(params, params.train_split), evaluation_split(params)
    of_labels = _labels(params, train)
    yield of_labels
    yield _analysis(params, train)
    labels = _known_labels(params, train) if of_labels.state == UP_TO_DATE else None
    if params.path == "single" and not are_given(params, train.name):
        yield _masks(params.updated(crf=False), train, labels)
        if params.crf:
            yield _masks(params, train, labels)
    for variant in params.trainings:
        yield _training(params, variant, labels)
    for variant in params.trainings:
        yield _predictions(params, variant, measured)
    for variant in (*params.trainings, "pseudo_masks_global", "pseudo_masks_local"):
        yield _evaluation(params, variant, measured)


def _row(what: str, changes: Changes | None, command: str, why: str = "") -> Row:
    if changes is None:
        return Row(what, MISSING, why, command)
    return Row(what, UP_TO_DATE, why, "") if changes.none else Row(what, STALE, str(changes), command)


def _labels(params: Params, split: Split) -> Row:
    what, path, command = f"labels {split.name}", labels_path(params, split.name), params.command("labels")
    if params.gate == "none":
        return Row(what, UP_TO_DATE, "not read, gate: none", "")
    note = path.with_suffix(".json")
    if not path.is_file():
        return _row(what, None, command)
    before = read_stamp(note) if not params.labels else None
    if before is None or before.upstream["csv"] != digest_of(path.read_bytes()):
        lacking = _known_labels(params, split) is None
        return (
            Row(what, STALE, "written by hand, and not of these images", f"{command} --add")
            if lacking
            else (Row(what, UP_TO_DATE, "written by hand", ""))
        )
    return _row(what, compare(Stamp(before.kind, before.version, before.settings, {}, before.items),
                              label_stamp(params, split)), command)  # fmt: skip


def _known_labels(params: Params, split: Split) -> np.ndarray | None:
    """The labels (N, C) as they are on disk, None where they are missing or not of these images."""
    if params.gate == "none":
        return np.ones((len(split), len(split.class_set)), bool)
    try:
        return read_labels(labels_path(params, split.name), split.class_set, split.names)
    except CarbError:
        return None


def _analysis(params: Params, split: Split) -> Row:
    path, command = analysis_path(params), params.command("analyse")
    if not path.is_file():
        return _row("analysis", None, command)
    same = files.read_json(path).get("made_from") == label_stamp(params, split).digest
    return _row("analysis", Changes() if same else Changes(("other masks",)), command)


def _masks(params: Params, split: Split, labels: np.ndarray | None) -> Row:
    what = f"{'refined ' * params.crf}pseudo-masks {split.name}"
    folder, command = pseudo_mask_folder(params, split.name), params.command("masks")
    before = read_stamp(folder / NAME)
    if before is None:
        return _row(what, None, command)
    if labels is None:
        return Row(what, UNKNOWN, "its labels come first", "")
    now = (
        refined_stamp(params, split, labels, SETTINGS | {"classes": len(split.class_set)})
        if params.crf
        else (mask_stamp(params, split, labels))
    )
    return _row_of_files(what, folder, before, now, command)


def _row_of_files(what: str, folder: Path, before: Stamp, now: Stamp, command: str) -> Row:
    changes = compare(before, now)
    lacking = sum(not mask_path(folder, name).is_file() for name in now.items)
    if changes.none and lacking:
        return Row(what, MISSING, f"{lacking} of {len(now.items)} images", command)
    return _row(what, changes, f"{command} --renew" if changes.made_otherwise and " masks " in command else command)


def _training(params: Params, variant: str, labels: np.ndarray | None) -> Row:
    what, folder, own = f"training {variant}", params.run_dir / "train" / variant, params.variant(variant)
    command = params.command("train", "--variant", variant)
    if not (folder / NAME).is_file():
        return _row(what, None, command)
    if labels is None:
        return Row(what, UNKNOWN, "its labels come first", "")
    _, changes = stamp_and_changes(folder, own, labels)
    if changes.none and not (folder / "done.json").is_file():
        return Row(what, MISSING, "begun, not finished", command)
    return _row(what, changes, f"{command} --renew")


def _predictions(params: Params, variant: str, split: Split) -> Row:
    what, folder = f"predictions {variant} {split.name}", prediction_folder(params, variant, split.name)
    final = params.run_dir / "train" / variant / "final.pt"
    command = params.command("predict", "--checkpoint", str(final), "--split", split.name)
    before = read_stamp(folder / NAME)
    if before is None or not final.is_file():
        return _row(what, None, command)
    now = prediction_stamp(params, split, contents(params).digest(final))
    return _row_of_files(what, folder, before, now, command)


def _evaluation(params: Params, variant: str, split: Split) -> Row:
    what, path = f"evaluation {variant} {split.name}", evaluation_path(params, variant, split.name)
    command = params.command("batch", "--notebooks", "04")
    if not path.is_file():
        return _row(what, None, command)
    result = files.read_json(path)
    folder = Path(result["folder"]) if result.get("folder") else None
    paths = [mask_path(params.run_dir.parent.parent / folder, name) for name in split.names] if folder else []
    if not paths or not all(one.is_file() for one in paths):
        return Row(what, STALE, "its predictions are gone", command)
    same = result.get("made_from") == compared(params, split, paths)
    return _row(what, Changes() if same else Changes(("other predictions or masks",)), command)
