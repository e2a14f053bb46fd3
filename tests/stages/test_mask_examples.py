"""What figures of single images show is saved as CLIP made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small import small_params

from carblib.data.labels import training_labels
from carblib.data.readers import open_split
from carblib.masker import build_masker
from carblib.params import Params
from carblib.scenes.folders import write_scenes
from carblib.stages import mask_examples
from carblib.transforms import load_sized


@pytest.fixture
def params(tmp_path: Path, random_clip_file: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    write_scenes(tmp_path / "scenes", "val", 3, size=(64, 128), processes=1)
    data = {"dataset": "scenes", "classes": "camvid", "root": str(tmp_path / "scenes")}
    small = {"image_size": (64, 128), "crop": (64, 128), "patch": (32, 32)}
    return small_params(run="t", clip=str(random_clip_file), gate="none", **data, **small)


def test_what_the_figures_of_single_images_need_is_saved(params: Params) -> None:
    split = open_split(params, "val")
    saved = np.load(mask_examples.save_examples(params, split, {"best": split.names[1]}))
    assert (str(saved["split"]), saved["rules"].tolist(), saved["names"].tolist()) == (
        "val",
        ["best"],
        [split.names[1]],
    )
    gated = params.updated(gate="labels")
    maps = np.load(mask_examples.save_similarity(gated, split, maps=4))
    labels = training_labels(gated, split)
    index = split.names.index(str(maps["name"]))
    assert labels[index].sum() == labels.sum(1).max()
    words = [split.class_set.words[c][0] for c in range(len(split.class_set))]
    chosen = [words.index(word) for word in maps["words"]]
    assert len(chosen) == 4 and labels[index][chosen].all()
    small = [split.class_set.small[c] for c in chosen]
    own = min(int(labels[index][list(split.class_set.small_ids)].sum()), 3)
    assert own and small == [True] * own + [False] * (4 - own) and len(set(chosen)) == 4, "small classes first"
    image = load_sized(split.image(index), params.image_size)[None]
    np.testing.assert_allclose(maps["similarity"], build_masker(gated).similarity(image)[0].numpy()[chosen], atol=1e-6)
    assert set(np.unique(maps["mask"])) <= set(np.flatnonzero(labels[index]))
