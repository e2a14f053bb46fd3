"""Files that rotted or were cut: used as they were, made again with a word, or refused in one line; never silent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from whole_run import READ_BY, TABLES, Project, damages, make, run

from carblib.base.errors import CarbError
from carblib.base.files import read_json
from carblib.base.images import open_mask_png, write_index_png
from carblib.results.saved import read_arrays


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("CARB_HOME", str(home))
        make(home)
        yield Project(home)


@pytest.mark.parametrize("pattern", [pattern for pattern in READ_BY if not pattern.endswith(".npz")])
def test_no_damage_is_silent(project: Project, pattern: str) -> None:
    rng, path = np.random.default_rng(len(pattern)), sorted(project.home.glob(pattern))[0]
    every = damages(project.kept[path][0], 3, rng)
    chosen = {"cut", *rng.choice([*every], 3, replace=False), [*every][-1]}
    found = {name: project.verdict(path, READ_BY[pattern], every[name]) for name in chosen}
    assert {*found.values()} <= {"told", "same"}, found
    assert found["cut"] == "told"


def test_a_damaged_stamp_of_a_training_costs_no_training(project: Project) -> None:
    stamp = project.home / "runs/r/train/paper/stamp.json"
    whole = stamp.read_bytes()
    stamp.write_bytes(whole[:99])
    said, left = project.outcome("train p.yaml")
    assert "stamp.json: damaged; written again" in said and not left


def test_a_damaged_table_comes_back_from_the_checkpoint(project: Project) -> None:
    log = project.home / "runs/r/train/paper/log.csv"
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b"1", b"2"))
    assert "log.csv: damaged; taken from the checkpoint" in run(project.home, "train p.yaml")
    assert log.read_bytes() == whole


def test_what_a_person_changed_is_read_without_its_checksum(project: Project) -> None:
    path = project.home / "runs/r/evaluation/test/paper.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"seed": 7}))
    assert "if you changed it yourself, delete its 'checksum'" in project.outcome(TABLES, path)[0]
    del content["checksum"]
    path.write_text(json.dumps(content | {"seed": 7}, indent=4))
    assert read_json(path)["seed"] == 7 and "error" not in project.outcome(TABLES, path)[0]


def test_arrays_are_whole_or_refused(tmp_path: Path) -> None:
    path, rng, refused = tmp_path / "a.npz", np.random.default_rng(0), 0
    arrays = {"a": rng.random((8, 9)), "b": np.arange(300) // 9}
    np.savez_compressed(path, **arrays)
    for data in damages(path.read_bytes(), 100, rng).values():
        path.write_bytes(data)
        try:
            found = read_arrays(path, ("a", "b"), "make it again")
            assert all(np.array_equal(found[key], arrays[key]) for key in arrays)
        except CarbError:
            refused += 1
    assert refused > 90


def test_masks_are_whole_or_refused(tmp_path: Path) -> None:
    path, rng, refused = tmp_path / "a.png", np.random.default_rng(0), 0
    mask = np.repeat(np.repeat(rng.integers(0, 11, (16, 32)), 8, 0), 8, 1).astype(np.uint8)
    write_index_png(path, mask, [(i, i, i) for i in range(11)])
    for data in damages(path.read_bytes(), 400, rng).values():
        path.write_bytes(data)
        try:
            assert np.array_equal(open_mask_png(path).values, mask)
        except CarbError:
            refused += 1
    assert refused > 390
