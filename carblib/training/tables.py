"""The tables of a training, CSV: what they hold when it ends is noted in done.json, and compared when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from carblib.base import files
from carblib.base.errors import CarbError

TABLES = ("log.csv", "reliability.csv", "region_weights.csv")  # a checkpoint holds them as they were with it


def digests(folder: Path) -> dict[str, str]:
    """Return {name: digest} of a training's tables."""
    return {name: files.digest_of((folder / name).read_bytes()) for name in TABLES if (folder / name).is_file()}


def damaged(folder: Path) -> list[str]:
    """Return the tables of a finished training that are not what they were at its end; one that was deleted is none."""
    if not (folder / "done.json").is_file():
        return []
    noted = files.read_json(folder / "done.json").get("tables", {})
    return [name for name, digest in digests(folder).items() if noted.get(name, digest) != digest]


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table of numbers, and names of classes. Raises CarbError where it is damaged or lacks a column."""
    if path.name in damaged(path.parent):
        raise CarbError(f"{path}: damaged, it is not what it was when the training ended; carb train brings it back")
    remedy = "train again or delete the file"
    try:
        frame = pd.read_csv(path, converters={"class": str})  # whatever a class is called: "nan"
        missing = [column for column in columns if column not in frame]
        if missing:
            raise CarbError(f"{path}: no column '{missing[0]}'; {remedy}")
        return frame.astype(dict.fromkeys([column for column in columns if column != "class"], float)).astype(
            {"iteration": int}
        )
    except (OSError, ValueError) as error:
        raise CarbError(f"{path}: not readable as CSV ({error}); {remedy}") from error
