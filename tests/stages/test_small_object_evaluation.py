"""The evaluation of a run: every training and both kinds of CLIP's masks, on the split that has masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.classes import CAMVID
from carblib.data.mask_folders import read_mask
from carblib.infer import predict_mask
from carblib.network import build_network
from carblib.params import Params
from carblib.stages.evaluate import evaluation_path
from carblib.stages.small_object_evaluation import evaluate_run
from carblib.training.state import load_trained

SMALL = {"image_size": (16, 32), "crop": (16, 32), "patch": (8, 8), "device": "cpu", "bootstrap": 10}
NETWORK = {"backbone": "mobilenet_v2", "backbone_weights": "random", "iterations": 5, "warmup": 1}


@pytest.fixture
def params(tmp_path: Path, random_clip_file: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A run of two trainings, with networks of different random weights, on a tiny CamVid."""
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    trees.write_segnet(tmp_path / "camvid")
    more = {"run": "r", "clip": str(random_clip_file), "variants": ("plain",), **SMALL, **NETWORK}
    params = trees.params(tmp_path / "camvid", "camvid", **more)
    for seed, variant in enumerate(params.trainings):
        torch.manual_seed(seed)
        state = build_network(params, torch.randn(11, 128)).state_dict()
        own = {"params": params.model_dump(mode="json"), "iteration": 5, "network": state}
        files.save_torch(params.run_dir / "train" / variant / "final.pt", own)
    return params


def test_every_training_and_both_kinds_of_masks_are_measured(params: Params) -> None:
    assert params.trainings == ("plain", "ceiling")
    split = evaluate_run(params)
    assert split.name == "test"
    masks = [f"pseudo_masks_{kind}" for kind in ("no_labels", "global", "local")]
    names = ["plain", "ceiling", *masks]
    found = {name: files.read_json(evaluation_path(params, name, "test")) for name in names}
    assert [one["iteration"] for one in found.values()] == [5, 5, None, None, None]
    assert {one["images"] for one in found.values()} == {len(split)}
    assert len({one["folder"] for one in found.values()}) == 5, "each is measured on masks of its own"
    network = load_trained(params.run_dir / "train/plain/final.pt")[0]
    folder = params.run_dir / "predictions/plain/test"
    assert np.array_equal(read_mask(folder, split.names[0], CAMVID), predict_mask(network, split.image(0), params))
    assert not (folder / "colour").exists()


def test_without_masks_pictures_are_all_there_is(params: Params, tmp_path: Path) -> None:
    for split in ("testannot", "valannot"):
        for path in (tmp_path / "camvid" / split).iterdir():
            path.unlink()
    split = evaluate_run(params)
    assert not split.has_masks and not (params.run_dir / "evaluation").exists()
    with Image.open(params.run_dir / f"predictions/ceiling/{split.name}/overlay/{split.names[0]}.jpg") as picture:
        assert picture.size[::-1] == split.image(0).shape[:2]


def test_a_training_that_is_not_there_is_named(params: Params) -> None:
    (params.run_dir / "train/ceiling/final.pt").unlink()
    with pytest.raises(
        CarbError, match="ceiling/final.pt: no such file; train first: carb train .*--variant ceiling, or"
    ):
        evaluate_run(params)
