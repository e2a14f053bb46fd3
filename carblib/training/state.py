"""What a training leaves on disk and how it is taken up again: whose it is, whether it is whole, and finished.

`stamp.json` says what a folder's weights are made from: parameters, weights, images, labels and masks. A training is
continued or called finished only if all of it is the same; `done.json`, written last, says that it is whole.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.base.locks import only_writer
from carblib.base.processes import is_first, wait_until
from carblib.base.stamps import NAME, Changes, Stamp, compare, joined, read_stamp, write_stamp
from carblib.data.labels import training_labels
from carblib.data.readers import open_split
from carblib.data.sources import VERSIONS, contents, digests, mask_stamp, taught_stamp
from carblib.masker import build_masker
from carblib.network import SegmentationNetwork, backbone_file, build_network, load_weights
from carblib.params import Params
from carblib.training.tables import damaged
from carblib.variants import TRAINED

PREVIOUS = "checkpoint.previous.pt"
CHECKPOINT = frozenset("stamp params tables iteration network optimizer loss generator cuda_generators".split())


def training_stamp(params: Params, labels: np.ndarray | None = None) -> Stamp:
    """Return what trained weights are made from: parameters, CLIP's and the backbone's weights, and what teaches.

    That is per image its content, its labels, and on the single path what its pseudo-mask is made from, for the ceiling
    its true mask. labels: (N, C) bool of the train split; None: read, and derived where they are not there yet. Raises
    CarbError where the training images or their labels are missing.
    """
    split = open_split(params, params.train_split)
    labels = training_labels(params, split) if labels is None else labels
    masks = mask_stamp(params, split, labels)
    upstream, items = dict(masks.upstream), masks.items
    if params.supervision == "masks":
        truth = digests(params, split.names, split.mask_paths)
        items = {name: joined([one, truth[name]]) for name, one in items.items()}
    elif params.path == "single":
        taught = taught_stamp(params, split, labels)
        upstream["pseudo-masks"] = replace(taught, items={}).digest
        items = {name: joined([one, taught.items[name]]) for name, one in items.items()}
    weights = backbone_file(params.backbone_weights)
    if weights.is_file():
        upstream["backbone weights"] = contents(params).digest(weights)
    settings = _settings(params) | {"classes": masks.settings["classes"]}
    return Stamp("training", VERSIONS["training"], settings, upstream, items)


def _settings(params: Params) -> dict[str, Any]:
    """Return what affects trained weights: processes that share all statistics are one with all of their images."""
    settings, processes = params.that_affect("training"), params.devices * params.num_nodes
    if processes == 1 or (params.sync_bn and not params.official_loss):
        whole = {"batch_size": params.batch_size * processes, "sync_bn": False, "devices": 1, "num_nodes": 1}
    else:
        whole = {"devices": processes, "num_nodes": 1}
    return settings | whole


def stamp_and_changes(folder: Path, params: Params, labels: np.ndarray | None = None) -> tuple[Stamp | None, Changes]:
    """Return what a folder's training was made from, None where there is none, and what would be different now.

    Where the data are not there (results on another machine), the parameters alone are compared. Raises CarbError for
    weights that no stamp speaks of.
    """
    if not any((folder / name).exists() for name in ("checkpoint.pt", PREVIOUS, "final.pt")):
        return None, Changes()  # begun at most: there is nothing yet that could be stale
    try:
        before = read_stamp(folder / NAME)
    except CarbError as damage:
        before = _stamped_again(folder, params, labels, damage)
    if before is None:
        raise CarbError(f"{folder}: holds a training, but no {NAME} says what of; move it, or choose another 'run'")
    if params.data_root.is_dir():
        return before, compare(before, training_stamp(params, labels))
    settings = _settings(params) | {"classes": before.settings.get("classes")}
    return before, compare(before, replace(before, settings=settings))


def _stamped_again(folder: Path, params: Params, labels: np.ndarray | None, damage: CarbError) -> Stamp:
    """Write a damaged stamp anew where the checkpoint knows it for that of the present parameters and data."""
    path = folder / "checkpoint.pt"
    now = training_stamp(params, labels) if path.is_file() and params.data_root.is_dir() else None
    if now is None or files.load_torch(path).get("stamp") != now.digest:
        raise damage
    write_stamp(folder / NAME, now)
    print(f"{folder / NAME}: damaged; written again, since the checkpoint beside it is of the same")
    return now


def check_same(folder: Path, params: Params) -> Stamp | None:
    """Return the stamp of a folder's training, None where there is none; CarbError where it is one of other things."""
    before, changes = stamp_and_changes(folder, params)
    if not changes.none:
        renew = params.command("train", "--variant", folder.name, "--renew")
        if folder.name not in TRAINED:
            renew = "delete it"  # a cell of the ablations
        shared = before.settings.get("devices") == _settings(params)["devices"]
        why = "" if shared else " (with sync_bn: true, and no official_loss, their number would not matter)"
        raise CarbError(
            f"{folder}: trained on other things: {changes}{why}; to train anew: {renew}; or choose another 'run'"
        )
    return before


def discard_stale(folder: Path, params: Params) -> None:
    """Delete a training of other parameters or data, and say so; one that is up to date, finished or not, stays.

    Raises CarbError where another process trains it, and, before anything is deleted, where a new one could not begin:
    words that CLIP does not know, weights that are not there.
    """
    if not is_first():  # it is the one that does it
        wait_until(lambda: stamp_and_changes(folder, params)[1].none, f"{folder} is of other things")
        return
    _, changes = stamp_and_changes(folder, params)
    if not changes.none:
        build_network(params, build_masker(params).text.mean_per_class)
        print(f"{folder}: deleted, it was trained on other things: {changes}")
        aside = folder.with_name(f".{folder.name}.deleted")  # at once, for processes that look
        shutil.rmtree(aside, ignore_errors=True)
        with only_writer(folder):
            folder.rename(aside)
        shutil.rmtree(aside)


def is_done(folder: Path, params: Params) -> bool:
    """Tell whether the folder holds a finished training of these parameters and data; CarbError if one of others.

    A table of it that is damaged is taken from the checkpoint, and a line says so.
    """
    stamp = check_same(folder, params)
    if stamp is None or not (folder / "done.json").exists() or not (folder / "final.pt").exists():
        return False
    done = files.read_json(folder / "done.json", "delete it and train again: the last checkpoint is taken up")
    restore_tables(folder)
    return done.get("stamp") == stamp.digest


def restore_tables(folder: Path) -> None:
    """Write tables of a finished training that are damaged as its checkpoint holds them, and say so."""
    names = damaged(folder)
    tables = files.load_torch(folder / "checkpoint.pt")["tables"] if names else {}
    for name in names:
        if name not in tables:
            raise CarbError(
                f"{folder / name}: damaged, and the checkpoint does not hold it; delete it to do without it"
            )
        print(f"{folder / name}: damaged; taken from the checkpoint beside it")
        files.write_text(folder / name, tables[name])


def read_checkpoint(folder: Path, params: Params) -> tuple[dict[str, Any], Path]:
    """Return the newest whole checkpoint of a training of these parameters, and its path.

    Where the newest is damaged, the one before it is taken, and a line says so. Raises CarbError where none is whole,
    and for one of another training than the folder's stamp tells of.
    """
    paths, damaged = [path for path in (folder / "checkpoint.pt", folder / PREVIOUS) if path.exists()], []
    stamp = check_same(folder, params)
    for path in paths:
        try:
            state = files.load_torch(path)
        except CarbError as error:
            damaged.append(error)
            continue
        if not isinstance(state, dict) or not state.keys() >= CHECKPOINT:
            raise CarbError(f"{path}: is no checkpoint of a training; move it elsewhere to start anew")
        if stamp is None or state["stamp"] != stamp.digest:
            raise CarbError(f"{path}: is of another training than {NAME} beside it; move it elsewhere to start anew")
        if damaged:
            print(f"{damaged[0]}; the checkpoint before it is taken")
        return state, path
    raise damaged[0]


def load_trained(path: Path) -> tuple[SegmentationNetwork, Params]:
    """Return (network in evaluation mode on the CPU, its parameters) from a `final.pt` or `checkpoint.pt`.

    Raises CarbError for any other file, and for weights that lack a key, have another shape or are not finite.
    """
    state = files.load_torch(path)
    if not isinstance(state, dict) or not {"params", "network"} <= state.keys():
        raise CarbError(f"{path}: is no checkpoint of carblib; official ones are read by carb checkpoints import")
    weights, values = state["network"], state["params"]
    if not isinstance(weights, dict) or getattr(weights.get("text"), "ndim", 0) != 2 or not isinstance(values, dict):
        raise CarbError(f"{path}: damaged, it lacks parameters or text embeddings; train again or take another copy")
    try:
        params = Params().updated(**values)
    except (CarbError, TypeError) as error:
        raise CarbError(f"{path}: {error}") from error
    network = build_network(params.updated(backbone_weights="random"), weights["text"])
    load_weights(network, weights, str(path))
    return network.eval(), params


def bare(network: nn.Module) -> SegmentationNetwork:
    """The network itself, out of Fabric's and torch.compile's wrappers."""
    module = getattr(network, "module", network)
    return getattr(module, "_orig_mod", module)


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's state dict on the CPU, free of wrappers' prefixes."""
    return {name: value.detach().cpu() for name, value in bare(network).state_dict().items()}
