"""The grid of ablations: which cells there are, what is skipped, and what the rows hold."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import small_params

from carblib.base import files, images
from carblib.base.errors import CarbError
from carblib.infer import predict_mask
from carblib.params import Params
from carblib.results import findings
from carblib.scenes.folders import write_scenes
from carblib.stages import ablations
from carblib.stages.ablations import Cell, grid, regions_at_the_end, run_ablations
from carblib.stages.evaluate import evaluation_path

SIZE = (64, 128)
TINY = {
    "run": "tiny", "image_size": SIZE, "crop": SIZE, "patch": (32, 32), "input_scale": 1, "aspp_dilations": (1, 2),
    "scenes_train": 4, "scenes_val": 2, "scenes_test": 2, "lr": 0.05, "warmup": 1, "iterations": 2, "batch_size": 2,
    "log_every": 1, "val_every": 2, "val_images": 0, "checkpoint_every": 2, "monitor_images": 0, "bootstrap": 0,
    "device": "cpu", "ablation_variants": ("plain", "paper", "ceiling"), "ablation_paths": ("dual", "single"),
    "ablation_seeds": (0, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        write_scenes(root, split, count, 0, SIZE)
    return root


@pytest.fixture
def params(scenes: Path, random_clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    return small_params(root=str(scenes), clip=str(random_clip_file), **TINY)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is really made: "share" per group, and every measured cell, "+" if it was trained for it."""
    made: list[str] = []
    share, measure = ablations.share, ablations.measure

    def counted(cell: Cell, group: Params, *rest: Any) -> None:
        final = group.run_dir / "train" / cell.name / "final.pt"
        before = final.exists()
        measure(cell, group, *rest)
        made.append(f"{cell.path} {cell.name}" + " +" * (final.exists() and not before))

    monkeypatch.setattr(ablations, "share", lambda group: made.append("share") or share(group))
    monkeypatch.setattr(ablations, "measure", counted)
    return made


def test_grid_holds_every_combination_and_one_ceiling() -> None:
    params = small_params(
        ablation_variants=("plain", "paper", "ceiling"),
        ablation_paths=("dual", "single", "single_crf"),
        ablation_maskers=("value_path", "naclip"),
        ablation_seeds=(3, 5),
    )
    cells = grid(params)
    assert list(cells) == [(m, p) for m in ("value_path", "naclip") for p in ("dual", "single", "single_crf")]
    for number, (group, own) in enumerate(cells.items()):
        variants = ["plain", "paper", "ceiling"] if number == 0 else ["plain", "paper"]
        assert own == [Cell(*group, "pseudo_masks", None), *(Cell(*group, v, s) for v in variants for s in (3, 5))]
    assert [cell.name for cell in cells["value_path", "dual"]][:3] == ["pseudo_masks", "plain-seed3", "plain-seed5"]


def test_finished_cells_are_skipped_and_rows_hold_the_measurements(
    params: Params, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run_ablations(params)
    trained = [f"{v}-seed{s}" for v in ("plain", "paper", "ceiling") for s in (0, 1)]
    single = ["single pseudo_masks", "share", *(f"single {name} +" for name in trained[:4])]
    assert calls == ["dual pseudo_masks", "share", *(f"dual {name} +" for name in trained), *single]
    assert rows == files.read_rows(params.run_dir / "ablations.json", ())
    keys = [(row["masker"], row["path"], row["variant"], row["seed"]) for row in rows]
    assert keys == [(c.masker, c.path, c.variant, c.seed) for own in grid(params).values() for c in own]
    for row in rows:
        name = row["variant"] if row["seed"] is None else f"{row['variant']}-seed{row['seed']}"
        saved = files.read_json(tmp_path / f"runs/tiny.value_path.{row['path']}/evaluation/test/{name}.json")
        assert row["miou"] == saved["miou"] and row["iou"] == saved["iou"] and row["small_miou"] == saved["small_miou"]
        assert (row["split"], row["images"], saved["seed"]) == ("test", 2, row["seed"] or 0)
        assert 0 <= row["miou"] <= 1
    masks = [row for row in rows if row["variant"] == "pseudo_masks"]
    assert masks[0]["iou"] == masks[1]["iou"], "both paths have the same masks of the test images"
    check_regions(params)

    calls.clear()
    assert run_ablations(params) == rows and calls == []

    group = ablations.group_params(params, "value_path", "dual")
    evaluation_path(group, "plain-seed0", "test").unlink()
    assert run_ablations(params) == rows
    assert calls == ["share", "dual plain-seed0"], "measured again, not trained again"
    calls.clear()
    shutil.rmtree(group.run_dir / "train" / "paper-seed1")
    assert run_ablations(params) == rows and calls == ["share", "dual paper-seed1 +"]

    with pytest.raises(
        CarbError, match="plain-seed0: trained on other things: lr 0.05 → 0.1; to train anew: delete it;"
    ):
        run_ablations(params.updated(lr=0.1))
    calls.clear()
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere" / "runs")
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "elsewhere"))
    assert run_ablations(params) == rows and calls == [], "a folder of runs can be moved"
    again = run_ablations(params.updated(test_split="val", ablation_paths=("dual",), ablation_seeds=(0,)))
    assert {row["split"] for row in again} == {"val"} and not any("+" in call for call in calls)


def test_a_cell_that_was_measured_on_other_things_is_measured_again(
    params: Params, calls: list[str], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shutil.copytree(scenes, tmp_path / "own")
    one = {"ablation_variants": ("plain",), "ablation_paths": ("dual",), "ablation_seeds": (0,)}
    params, predicted = params.updated(root=str(tmp_path / "own"), **one), set()
    monkeypatch.setattr(
        ablations, "predict_mask", lambda *given: predicted.add(given[2].infer_flip) or predict_mask(*given)
    )

    def again(**changes: Any) -> list[str]:
        calls.clear(), predicted.clear(), capsys.readouterr()
        run_ablations(params.updated(**changes))
        return calls

    both = ["dual pseudo_masks", "share", "dual plain-seed0"]
    assert again() == [*both[:2], "dual plain-seed0 +"] and predicted == {False}
    assert again() == []
    assert again(infer_flip=True) == both[1:] and predicted == {True}, "the masks are no prediction"
    assert "plain-seed0.json: other predictions; measured again" in capsys.readouterr().out
    assert again(infer_flip=True, bootstrap=5) == both
    mask = next((tmp_path / "own/testannot").glob("*.png"))
    images.write_image(mask, np.zeros(SIZE, np.uint8))
    assert again(infer_flip=True, bootstrap=5) == both
    assert capsys.readouterr().out.count("other true masks; measured again") == 2
    assert again(infer_flip=True, bootstrap=5) == []


def test_a_grid_that_grows_keeps_its_rows_until_they_are_reached(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"ablation_variants": ("plain", "ceiling"), "ablation_paths": ("dual",)}
    rows = run_ablations(params.updated(**one, ablation_seeds=(0,)))

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ablations, "train", stopped)
    for split, left in (("test", rows), ("val", [])):
        with pytest.raises(KeyboardInterrupt):
            run_ablations(params.updated(**one, ablation_seeds=(0, 1), test_split=split))
        found = files.read_rows(params.run_dir / "ablations.json", ())
        assert {row["split"] for row in found} == {split} and found[1:] == left[1:]


def check_regions(params: Params) -> None:
    """regions_at_the_end against the files, by hand: class car, variant full, dual path."""
    rows = regions_at_the_end(params)
    assert {(row["path"], row["variant"]) for row in rows} == {("dual", "paper"), ("single", "paper")}
    assert [row["class"] for row in rows[:12]] == [*params.class_set.names, "all"]
    (car,) = (row for row in rows if (row["path"], row["class"]) == ("dual", "car"))
    (whole,) = (row for row in rows if (row["path"], row["class"]) == ("dual", "all"))
    shares, weights = [], []
    for seed in (0, 1):
        folder = params.run_dir.parent / f"tiny.value_path.dual/train/paper-seed{seed}"
        with (folder / "reliability.csv").open() as file:
            ends = [row for row in csv.DictReader(file) if row["iteration"] == "2" and row["class"] == "car"]
        shares += [float(row["share_consistent"]) for row in ends if row["share_consistent"]]
        with (folder / "region_weights.csv").open() as file:
            weights += [float(row["weight"]) for row in csv.DictReader(file) if row["iteration"] == "2"]
    assert car["share_consistent"] == (pytest.approx(np.mean(shares)) if shares else None)
    assert car["weight"] is None and whole["weight"] == pytest.approx(np.mean(weights)) and len(weights) == 2
    tables = findings.region_tables(rows)
    assert list(tables) == ["value path masker, dual path", "value path masker, single path"]
    table = next(iter(tables.values()))
    assert table.shape == (12, 4) and table.loc["all", ("GLV + CARB (paper)", "λ")] == f"{whole['weight']:.2g}"


def test_without_any_masks_nothing_is_trained(params: Params, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "b", ignore=shutil.ignore_patterns("testannot", "valannot"))
    with pytest.raises(CarbError, match="neither test_split nor val_split has masks"):
        run_ablations(params.updated(root=str(tmp_path / "b")))
    assert not (params.run_dir.parent / "tiny.value_path.dual").exists()


def test_crf_refines_the_masks_of_its_own_path(params: Params) -> None:
    pytest.importorskip("pydensecrf")
    changes = {"ablation_variants": ("plain",), "ablation_paths": ("single", "single_crf"), "ablation_seeds": (0,)}
    rows = run_ablations(params.updated(**changes))
    assert [(row["path"], row["variant"]) for row in rows] == [
        (path, variant) for path in ("single", "single_crf") for variant in ("pseudo_masks", "plain")
    ]
    assert rows[0]["iou"] != rows[2]["iou"]
