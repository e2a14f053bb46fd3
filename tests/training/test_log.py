"""The log of a training: rows that a kill left behind are dropped, and TensorBoard sees what the CSV holds."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from carblib.base.errors import CarbError
from carblib.loss import LossParts
from carblib.training import log as training_log
from carblib.training.log import LOG_COLUMNS, TrainingLog, append_rows, check_tensorboard


def parts(base: float, weight: float = math.nan) -> LossParts:
    values = [torch.tensor(base + k / 8) for k in range(5)]
    return LossParts(*values, torch.tensor(weight), torch.tensor(0.75))


def write(folder: Path, iterations: list[int], resumed: int = 0, tensorboard: bool = False, base: float = 0) -> dict:
    log = TrainingLog(folder, resumed, tensorboard)
    for iteration in iterations:
        scores = {"val_miou": 0.375, "val_small_miou": 0.25} if iteration == 4 else {}
        shown = log.write(iteration, parts(base + iteration, 0.5 if iteration > 2 else math.nan), 0.125, scores)
    log.close()
    return shown


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_row_holds_every_value_and_the_bar_a_few(tmp_path: Path) -> None:
    assert write(tmp_path, [1, 4]) == {"loss": "4.000", "agree": "75%", "val": "37.5%"}
    first, last = rows(tmp_path)
    assert list(first) == LOG_COLUMNS and float(last.pop("seconds")) >= float(first.pop("seconds")) >= 0
    values = "iteration loss consistent noisy local_consistent local_noisy weight consistent_share lr".split()
    assert [first[key] for key in values] == ["1", "1", "1.125", "1.25", "1.375", "1.5", "nan", "0.75", "0.125"]
    assert [first["val_miou"], last["val_miou"], last["val_small_miou"]] == ["", "0.375", "0.25"]


def test_rows_after_the_resumed_iteration_are_dropped_and_time_goes_on(tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 3])
    text = (tmp_path / "log.csv").read_text().splitlines()
    place = LOG_COLUMNS.index("seconds")
    for k in (1, 2, 3):
        cells = text[k].split(",")
        cells[place] = f"{100 * k}"
        text[k] = ",".join(cells)
    (tmp_path / "log.csv").write_text("\n".join(text) + "\n")
    write(tmp_path, [3, 4], resumed=2, base=10)
    assert [(row["iteration"], row["loss"]) for row in rows(tmp_path)] == [
        ("1", "1"),
        ("2", "2"),
        ("3", "13"),
        ("4", "14"),
    ]
    assert 200 <= float(rows(tmp_path)[2]["seconds"]) < 260
    write(tmp_path, [1])
    assert len(rows(tmp_path)) == 1, "a training that starts anew keeps no rows"


def test_kept_rows_stay_as_they_were_to_the_letter(tmp_path: Path) -> None:
    head = ",".join(LOG_COLUMNS)
    kept = "2,1e-05,0.1,nan,0,0.30000000000000004,nan,0.75,1.0,007.50,,inf"
    (tmp_path / "log.csv").write_text(f"{head}\n{kept}\n3,{'0,' * 10}0\n")
    TrainingLog(tmp_path, 2)
    assert (tmp_path / "log.csv").read_bytes().decode() == f"{head}\n{kept}\n"

    path = tmp_path / "reliability.csv"
    path.write_text('iteration,class,share\n2,"a,b",0.10\n2,nan,\n4,car,1\n')
    append_rows(path, [{"iteration": 4, "class": "car", "share": 0.5}])
    append_rows(path, [{"iteration": 6, "class": "car", "share": None}])
    assert path.read_bytes().decode() == 'iteration,class,share\n2,"a,b",0.10\n2,nan,\n4,car,0.5\n6,car,\n'


def test_tensorboard_sees_what_the_csv_holds(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, [1, 2, 3], tensorboard=True)
    write(tmp_path, [3, 4], resumed=2, tensorboard=True, base=10)
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(LOG_COLUMNS) - {"iteration", "seconds"}
    for key in ("loss", "noisy", "lr", "val_miou", "weight"):
        written = [(int(r["iteration"]), float(r[key])) for r in rows(tmp_path) if r[key] not in ("", "nan")]
        assert [(event.step, event.value) for event in events.Scalars(key)] == written and written


def test_without_the_package_one_line_says_so_and_nothing_else_needs_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(training_log, "find_spec", lambda name: None)
    check_tensorboard(False)
    with pytest.raises(CarbError, match="pip install tensorboard"):
        check_tensorboard(True)
    write(tmp_path, [1])
    assert not list(tmp_path.glob("events*"))


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, 0)
    log.path = Path("/dev/full")
    with pytest.raises(CarbError, match="^/dev/full: cannot be written .*No space left"):
        log.write(1, parts(1), 0.1, {})
