"""`carb bench`: both ways of every stage give the same, and what is measured is written."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import carb
from PIL import Image

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.clip_models import ClipModel
from carblib.figures.costs import costs, growth
from carblib.run.bench import measure, plain, stages
from carblib.run.bench.stages import STAGES, Setting

CPU = torch.device("cpu")
BY_NAME = {stage.name: stage for stage in STAGES}


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_clip: ClipModel) -> Setting:
    """One that takes no time: a tiny CLIP and the small network in place of the recipes'."""
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    monkeypatch.setattr(stages, "_clip", lambda device: random_clip)
    monkeypatch.setattr(stages, "NETWORK", {"aspp_dilations": (1, 2)})
    monkeypatch.setattr(measure, "LEAST", 2)
    return Setting(tmp_path, (80, 144), (64, 128), batch=2, images=3)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_both_ways_give_the_same(stage: stages.Stage, setting: Setting) -> None:
    if stage.name == "CRF":
        pytest.importorskip("pydensecrf")
    row = measure.measure(stage, setting, 0)
    assert row.stage == stage.name and row.times == 2
    assert row.ours > 0 and row.official > 0 and row.low <= row.ratio <= row.high


@pytest.mark.parametrize(
    ("stage", "place", "name", "wrong"),
    [
        ("upsampling, argmax", stages, "resized_argmax", lambda maps, size: torch.zeros(size, dtype=torch.uint8)),
        ("masks, sclip", plain, "_soft", lambda a, b, bonus=0.0: (a @ b.transpose(-1, -2)).softmax(-1)),
        ("loader", plain, "PADDING", torch.zeros(3, 1, 1, dtype=torch.uint8)),
        ("evaluation", plain, "confusion", lambda prediction, truth, classes: np.ones((classes, classes), int)),
    ],
)
def test_a_difference_is_no_measurement(stage, place, name, wrong, setting: Setting, monkeypatch) -> None:
    monkeypatch.setattr(place, name, wrong)
    if stage == "loader":
        setting = dataclasses.replace(setting, size=(40, 72))  # smaller than the crop, which is padded
    with pytest.raises(CarbError, match=f"{stage}: ours and the official formulation do not give the same"):
        measure.measure(BY_NAME[stage], setting, 0)


def test_a_gpu_distorts_the_loader_s_crops(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    given = stages.train_loader

    def left_to_the_device(*args: object) -> object:
        loader = given(*args)
        loader.dataset.on_device = True  # as for a GPU
        return loader

    monkeypatch.setattr(stages, "train_loader", left_to_the_device)
    assert measure.measure(BY_NAME["loader"], setting, 0).ours > 0  # after the check that both are the same


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
@pytest.mark.parametrize("library", [np, torch])
def test_memory_is_what_is_needed_on_top(library, setting: Setting) -> None:
    freed = [np.ones(2**17) for _ in range(512)]  # what was freed before, here 512 MiB, must not hide anything
    del freed

    def needs() -> object:
        return library.ones(96 * 2**17, dtype=library.float64)

    assert abs(measure._peak(needs, stages.Ways("", needs, needs), setting) / 2**20 - 96) < 24  # not 0, nor 608


def test_growth_is_over_what_is_changed(setting: Setting, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    growth = (
        ("size", ((32, 64), (64, 128)), {}, ("upsampling, argmax",)),
        ("images", (2, 30), {"size": (32, 64)}, ("analysis",)),
    )
    monkeypatch.setattr(measure, "GROWTH", growth)
    points = list(measure.grow(setting))
    assert [(point.stage, point.axis, point.value) for point in points] == [
        ("upsampling, argmax", "size", "32×64"),
        ("upsampling, argmax", "size", "64×128"),
        ("analysis", "images", "2"),
        ("analysis", "images", "30"),
    ]
    assert all(point.seconds > 0 for point in points)
    assert carb("bench", "--device", "cpu", "--only", "gro") == 0
    assert "upsampling, argmax: size 64×128: " in capsys.readouterr().out


def test_growth_alone_is_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "GROWTH", (("classes", (3, 6), {"size": (32, 64)}, ("loss", "upsampling, argmax")),))
    out = tmp_path / "bench.json"
    assert carb("bench", "--device", "cpu", "--only", "growth", "--out", out) == 0
    written = files.read_json(out)
    assert not written["stages"] and [row["value"] for row in written["growth"]] == ["3", "6", "3", "6"]
    assert "loss, classes 6: " in files.read_json(tmp_path / "bench_growth.json")["alt"]
    assert not (tmp_path / "bench_figure.png").exists()
    upper, lower = growth(written).axes
    assert [len(axes.lines) for axes in (upper, lower)] == [2, 2] and upper.get_title() == "classes"
    assert [tick.get_text() for tick in lower.get_xticklabels()] == ["3", "6"]


def test_the_command_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert carb("bench", "--quick", "--device", "cpu", "--only", "confusion", "upsampling", "--out", out) == 0
    written = files.read_json(out)
    assert [row["stage"] for row in written["stages"]] == ["upsampling, argmax", "confusion"]
    assert written["machine"]["threads"] == torch.get_num_threads() and written["growth"] == []
    table = out.with_suffix(".md").read_text("utf-8").splitlines()
    assert len(table) == 4 and table[3].startswith("| confusion | 256×512 × 19 classes | ")
    assert Image.open(tmp_path / "bench_figure.png").width > 1000
    assert "times as fast" in files.read_json(tmp_path / "bench_figure.json")["alt"]
    printed = capsys.readouterr().out
    assert "threads" in printed and "confusion | 256×512" in printed and str(out) in printed


def test_a_part_is_written_only_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    whole = tmp_path / "runs" / "bench.json"
    files.write_text(whole, "measured before")
    with pytest.raises(CarbError, match="--only confusoin: no stage begins so; did you mean 'confusion'"):
        carb("bench", "--quick", "--device", "cpu", "--only", "upsampling", "confusoin")
    assert carb("bench", "--quick", "--device", "cpu", "--only", "confusion") == 0
    assert whole.read_text("utf-8") == "measured before" and list(whole.parent.iterdir()) == [whole]
    assert os.environ["CARB_HOME"] == str(tmp_path)


def test_bars_begin_at_one_and_whiskers_are_the_quartiles() -> None:
    row = {"stage": "loss", "ratio": 2.5, "low": 2.0, "high": 3.0, "our_bytes": 2**20, "official_bytes": None}
    slow = row | {"stage": "CRF", "ratio": 0.5, "low": 0.4, "high": 0.6, "our_bytes": None}
    axes = costs({"stages": [row | {"official_bytes": 2**22}, slow]}).axes[0]
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(1, 1.5), (1, -0.5)]
    ends = [(line.get_segments()[0][0][0], line.get_segments()[0][1][0]) for line in axes.collections]
    assert ends == [(2.0, 3.0), (0.4, 0.6)] and axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["2.5×   1 / 4 MiB", "0.5×"]
