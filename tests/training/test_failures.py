"""What happens to a training when things go wrong: damaged checkpoints, losses that are not finite, signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from trained import assert_same_weights, rows

from carblib import step
from carblib.base.errors import CarbError
from carblib.base.locks import only_writer
from carblib.base.stamps import Changes
from carblib.params import Params
from carblib.training import loop, state
from carblib.training.state import PREVIOUS


@pytest.fixture
def shared(params: Params) -> loop.Shared:
    return loop.share(params)


def stopped_at(iteration: int, params: Params, shared: loop.Shared, patch: pytest.MonkeyPatch, number: int) -> Path:
    compute = step.crop_logits

    def signalled(training: step.Training, batch: dict) -> torch.Tensor:
        if training.iteration == iteration - 1:
            for _ in range(2):  # the second must not lose the checkpoint that the first asks for
                os.kill(os.getpid(), number)
        return compute(training, batch)

    with patch.context() as own, pytest.raises(KeyboardInterrupt):
        own.setattr(step, "crop_logits", signalled)
        loop.train(params, "paper", shared)
    return params.run_dir / "train" / "paper"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_end_at_a_checkpoint_and_lose_nothing(params, shared, monkeypatch, name) -> None:
    params = params.updated(checkpoint_every=100)
    whole = loop.train(params.updated(run="whole"), "paper", shared)
    folder = stopped_at(3, params, shared, monkeypatch, getattr(signal, name))
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["iteration"] == 3
    assert_same_weights(whole, loop.train(params, "paper", shared))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(params, shared, monkeypatch, capsys) -> None:
    params = params.updated(checkpoint_every=2)
    whole = loop.train(params.updated(run="whole"), "paper", shared)
    folder = stopped_at(5, params, shared, monkeypatch, signal.SIGINT)
    data = bytearray((folder / "checkpoint.pt").read_bytes())
    data[len(data) // 2] ^= 4
    (folder / "checkpoint.pt").write_bytes(data)
    (folder / "log.csv").write_text("cut")  # tables come back with the checkpoint
    capsys.readouterr()
    assert_same_weights(whole, loop.train(params, "paper", shared))
    said = capsys.readouterr().out
    assert "checkpoint.pt: damaged" in said and f"{PREVIOUS}: resuming at iteration 4" in said
    assert [row["iteration"] for row in rows(folder / "log.csv")] == [
        row["iteration"] for row in rows(whole / "log.csv")
    ]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(params, shared, monkeypatch) -> None:
    params, compute = params.updated(checkpoint_every=2, log_every=2), step.crop_logits

    def diverging(training: step.Training, batch: dict) -> torch.Tensor:
        return compute(training, batch) * (torch.nan if training.iteration == 4 else 1)

    monkeypatch.setattr(step, "crop_logits", diverging)
    with pytest.raises(CarbError, match=r"not finite at iteration 5, the last good checkpoint is kept; lower lr"):
        loop.train(params, "paper", shared)
    folder = params.run_dir / "train" / "paper"
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["iteration"] == 4
    assert not (folder / "done.json").exists() and not (folder / "final.pt").exists()


def test_a_training_that_runs_is_not_thrown_away(tmp_path, params, monkeypatch) -> None:
    monkeypatch.setattr(state, "stamp_and_changes", lambda *_: (None, Changes(("lr 0.1 → 0.2",))))
    with only_writer(tmp_path / "paper"), pytest.raises(CarbError, match="is writing here"):
        state.discard_stale(tmp_path / "paper", params)
    assert (tmp_path / "paper").is_dir()
    state.discard_stale(tmp_path / "paper", params)
    assert not [path for path in tmp_path.iterdir() if "paper" in path.name]
