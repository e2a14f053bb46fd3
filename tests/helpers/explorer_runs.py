"""What the explorer's tests look at: a project with three tiny scenes and two networks with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import small_params

from carblib.base import files
from carblib.explore.explorer import Explorer, ExplorerState
from carblib.explore.views import view_of
from carblib.network import build_network
from carblib.params import Params
from carblib.scenes.folders import write_scenes
from carblib.small_objects import Objects
from carblib.stages.evaluate import _write_per_image, evaluation_path

SIZE = (64, 128)


def tiny_params(**changes: object) -> Params:
    tiny = {"run": "tiny", "root": "data/tiny", "image_size": SIZE, "crop": SIZE, "patch": (32, 24)}
    tiny |= {"scenes_train": 1, "scenes_val": 3, "scenes_test": 1}
    return small_params(**{**tiny, "backbone_weights": "random", "aspp_dilations": (1, 2)}).updated(**changes)


def save_network(path: Path, params: Params, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(params, F.normalize(torch.randn(len(params.class_set), 128), dim=-1))
    state = {"params": params.model_dump(mode="json"), "iteration": 1, "network": network.state_dict()}
    files.save_torch(path, state)


def write_evaluation(params: Params, variant: str, split: str, miou: list, recall: list) -> None:
    rows = [
        {"name": f"{number:06d}", "miou": one, "small_recall": other}
        for number, (one, other) in enumerate(zip(miou, recall, strict=True), 1)
    ]
    evaluation = {"split": split, "class_names": list(params.class_set.names), "per_image": rows}
    path, classes = evaluation_path(params, variant, split), len(params.class_set)
    nothing = Objects(*(np.zeros(0, kind) for kind in (int, int, int, bool, float)))
    counts = np.zeros((len(rows), classes, classes + 1), int)
    files.write_json(path, evaluation | {"confusion": counts.sum(0).tolist()})
    _write_per_image(path.with_suffix(".npz"), counts, [nothing] * len(rows))


@contextmanager
def explorer_home(root: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARB_HOME", str(root))
        params = tiny_params()
        write_scenes(params.data_root, "val", 3, size=SIZE)
        save_network(params.run_dir / "train" / "plain" / "final.pt", params, 0)
        save_network(params.run_dir / "train" / "paper" / "checkpoint.pt", params, 1)
        yield root


def picture(explorer: Explorer, state: ExplorerState) -> list:
    """Everything a figure of a state shows, to be compared."""
    view = view_of(explorer, state)
    return [(panel.title, panel.picture.tobytes()) for panel in view.panels] + [view.legend, view.box, view.pixel]
