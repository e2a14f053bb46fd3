"""The log of a training: `log.csv` always, and the same values as TensorBoard events where `tensorboard` asks for it.

A run can so be watched from elsewhere: `tensorboard --logdir runs/demo/train`, or any reader of CSV.
"""

from __future__ import annotations

import csv
import math
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.loss import LossParts

LOG_COLUMNS = [
    *("iteration", "loss", "consistent", "noisy", "local_consistent", "local_noisy", "weight", "consistent_share"),
    *("lr", "seconds", "val_miou", "val_small_miou"),
]


def check_tensorboard(wanted: bool) -> None:
    """Raise CarbError where TensorBoard events are asked for and its package is not installed."""
    if wanted and find_spec("tensorboard") is None:
        raise CarbError("tensorboard: true needs a package; pip install tensorboard, or set tensorboard: false")


class TrainingLog:
    """Appends rows to a folder's log.csv; rows after the resumed iteration (written, lost with a kill) are dropped.

    `tensorboard` writes events into the same folder as well; those after the resumed iteration are superseded.
    """

    def __init__(self, folder: Path, iteration: int, tensorboard: bool = False):
        self.path, self.started = folder / "log.csv", time.time()
        rows = _rows_until(self.path, iteration) if iteration else []
        self.seconds_before = float(rows[-1]["seconds"]) if rows else 0.0
        files.write_csv(self.path, rows, LOG_COLUMNS)
        self.events = None
        if tensorboard:
            check_tensorboard(tensorboard)
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(folder), purge_step=iteration + 1)

    def write(self, iteration: int, parts: LossParts, lr: float, scores: dict[str, float]) -> dict[str, str]:
        """Append one row; scores: val_miou and val_small_miou, or nothing. Returns what the progress bar shows."""
        # All at once: the device is asked, and waited for, a single time.
        numbers = torch.stack([value.detach() for value in vars(parts).values()]).tolist()
        seconds = round(self.seconds_before + time.time() - self.started, 2)
        values = dict(zip(LOG_COLUMNS[1:], [*numbers, lr, seconds], strict=False)) | scores
        row = {key: f"{value:.6g}" for key, value in values.items()}
        with files.writing(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n").writerow({"iteration": iteration} | row)
        if self.events:
            for key, value in values.items():
                if key != "seconds" and math.isfinite(value):
                    self.events.add_scalar(key, value, iteration)
            self.events.flush()
        shown = {"loss": f"{values['loss']:.3f}", "agree": f"{values['consistent_share']:.0%}"}
        return shown | {"val": f"{scores['val_miou']:.1%}"} if scores else shown

    def close(self) -> None:
        """Close the file of events."""
        if self.events:
            self.events.close()


def append_rows(path: Path, rows: list[dict]) -> None:
    """Add rows to a CSV; rows of the same or a later iteration (written by a run that was then killed) are replaced."""
    files.write_csv(path, [*_rows_until(path, rows[0]["iteration"] - 1), *rows])


def _rows_until(path: Path, iteration: int) -> list[dict[str, str]]:
    """Read the rows of a CSV up to an iteration, as text, so that they are written back to the letter."""
    if not path.exists():
        return []
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    return frame[frame["iteration"].astype(int) <= iteration].to_dict("records")
