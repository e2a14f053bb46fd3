"""Ways of making pseudo-masks are compared on the same images, and each one really changes what it says."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
from small import small_params

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.data.readers import open_split
from carblib.params import Params
from carblib.scenes.folders import write_scenes
from carblib.stages import mask_quality


@pytest.fixture
def params(tmp_path: Path, random_clip_file: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    write_scenes(tmp_path / "scenes", "val", 3, size=(64, 128), processes=1)
    small = {"image_size": (64, 128), "crop": (64, 128), "patch": (32, 32)}
    return small_params(run="t", root=str(tmp_path / "scenes"), clip=str(random_clip_file), gate="none", **small)


def test_the_papers_way_is_the_default_of_whatever_a_way_changes() -> None:
    assert mask_quality.PLAIN == {
        "masker": "value_path", "gate": "labels", "synonyms": False, "mask_window": None, "mask_stride": None,
        "mask_scales": (1.0,), "mask_flip": False,
    }  # fmt: skip


def test_every_way_is_measured_on_the_same_images(params: Params) -> None:
    rows = mask_quality.compare_maskers(params, open_split(params, "val"), images=2)
    assert [row["masker"] for row in rows] == list(mask_quality.WAYS)
    assert {(row["split"], row["images"]) for row in rows} == {("val", 2)}
    assert all(0 <= row["miou"] <= 1 and row["seconds"] > 0 for row in rows)
    assert files.read_rows(mask_quality.maskers_path(params), ()) == rows
    for key in ("miou", "small_miou"):
        assert all(low <= row[key] <= high for row in rows for low, high in [row[f"{key}_interval"]])
    assert any(row["miou_interval"][0] < row["miou_interval"][1] for row in rows)
    by_name = {row["masker"]: row["miou"] for row in rows}
    # A random CLIP: labels can only help, and no two ways give the very same masks.
    assert by_name["value_path"] > by_name["value_path, no labels"]
    assert len(set(by_name.values())) == len(by_name)


def test_a_resnet_clip_has_the_value_path_only(params: Params) -> None:
    resnet = types.SimpleNamespace(is_vit=False, resolution=4096)
    left = [name for name, changes in mask_quality.WAYS.items() if mask_quality._changed(params, changes, resnet)]
    assert left and all(name.startswith("value_path") for name in left)
    assert "value_path, windows" not in left, "the image is smaller than CLIP's own resolution"


def test_a_split_without_masks_is_refused(params: Params) -> None:
    for path in (Path(params.root) / "valannot").iterdir():
        path.unlink()
    with pytest.raises(CarbError, match="no masks to measure"):
        mask_quality.compare_maskers(params, open_split(params, "val"))
