"""A tiny training on six scenes, which the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small import small_params
from trained import SIZE

from carblib.params import Params
from carblib.scenes.folders import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    for split, count in (("train", 6), ("val", 2)):
        write_scenes(root, split, count, 0, SIZE)
    return root


@pytest.fixture
def params(scenes: Path, random_clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    yield small_params(
        run="tiny", root=str(scenes), clip=str(random_clip_file), image_size=SIZE, crop=SIZE, patch=(32, 32),
        input_scale=1, aspp_dilations=(1, 2), path="dual", lr=0.05, warmup=2, iterations=8, batch_size=2, log_every=1,
        val_every=4, val_images=0, checkpoint_every=4, monitor_images=1, device="cpu",
        scenes_train=6, scenes_val=2, scenes_test=1,
    )  # fmt: skip
