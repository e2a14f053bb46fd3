"""What tests of trainings read of them."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from carblib.base import files

SIZE = (64, 128)


def rows(path: Path, *without: str) -> list[dict[str, str]]:
    with path.open() as file:
        return [{key: value for key, value in row.items() if key not in without} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return files.load_torch(folder / "final.pt")["network"]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different
