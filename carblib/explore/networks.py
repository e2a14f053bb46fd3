"""What the explorer can open: a run's splits and trained networks, and any other checkpoint by its path."""

from __future__ import annotations

from pathlib import Path

import torch

from carblib.base.errors import CarbError
from carblib.classes import ClassSet
from carblib.data.readers import open_split
from carblib.data.split import Split
from carblib.params import Params, below_root, resolve
from carblib.training.state import load_trained
from carblib.variants import in_order


class NetworkError(CarbError):
    """A checkpoint that cannot be shown; without it, everything else still can."""


def open_splits(params: Params) -> dict[str, Split]:
    """Open the run's val, test and train split, as far as they are there: {name: split}. CarbError if none is."""
    found, problems = {}, []
    for name in dict.fromkeys((params.val_split, params.test_split, params.train_split)):
        try:
            found[name] = open_split(params, name)
        except CarbError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    return found


def trained_networks(params: Params) -> dict[str, Path]:
    """Return the run's trained networks, {variant: final.pt, or checkpoint.pt of a training that is not finished}."""
    folder, kinds = params.run_dir / "train", ("checkpoint.pt", "final.pt")
    files = {file.parent.name: file for kind in kinds for file in folder.glob(f"*/{kind}")}
    return {name: files[name] for name in in_order(files)}


def read_network(path: Path, class_set: ClassSet) -> torch.nn.Module:
    """Return the network of a `final.pt` or `checkpoint.pt`, ready to predict, on the CPU.

    Raises NetworkError where the file is no checkpoint of carblib or its network knows other classes.
    """
    try:
        network, trained = load_trained(path)
    except CarbError as error:
        raise NetworkError(str(error)) from error
    if trained.class_set.names != class_set.names:
        raise NetworkError(
            f"{path}: its network knows the classes of {trained.class_set.name}, not of {class_set.name}; "
            "set `classes` to those it was trained with"
        )
    return network


def path_name(path: str | Path) -> str:
    """Return a checkpoint's name in the explorer: its path, from the project root where it lies in it."""
    return below_root(resolve(path))
