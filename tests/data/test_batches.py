"""Batches depend on (seed, iteration, slot) alone, and weak supervision opens no mask."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_params

from carblib.base.errors import CarbError
from carblib.base.interrupts import SIGNALS
from carblib.classes import CAMVID
from carblib.data.batches import sample_plan, train_loader
from carblib.data.mask_folders import pseudo_mask_folder, write_mask
from carblib.transforms import distorted

SIZE = (16, 24)


class FakeSplit:
    """Images in memory that show their index in the red channel; masks that tell when they are opened."""

    name, class_set = "train", CAMVID

    def __init__(self, count=7, broken=()):
        self.names = [f"i{i}" for i in range(count)]
        self.opened, self.broken = [], set(broken)

    def __len__(self):
        return len(self.names)

    def image_path(self, i):
        return Path(f"{self.names[i]}.png")

    def image(self, i):
        if i in self.broken:
            raise CarbError(f"{self.names[i]}.png: truncated; download it again")
        return np.full((*SIZE, 3), i, np.uint8)

    def mask(self, i):
        self.opened.append(i)
        return np.full(SIZE, i, np.uint8)


class Unmasked(FakeSplit):
    """A split whose masks must not be read."""

    def mask(self, i):
        raise AssertionError("a mask was opened")


def params(**keys):
    small = {"image_size": SIZE, "crop": SIZE, "patch": [8, 8], "batch_size": 3, "path": "dual", "device": "cpu"}
    return small_params(**{**small, "iterations": 8, "warmup": 0, **keys})


def labels(split):
    return np.eye(11, dtype=bool)[np.arange(len(split)) % 11]


def batches(given, start=0, split=None, rank=0, world=1):
    split = FakeSplit() if split is None else split
    return list(train_loader(given, split, labels(split), start, rank, world))


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if torch.is_tensor(value) else value == second[key]
        for key, value in first.items()
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 5),
    size=st.integers(1, 23),
    world=st.integers(1, 3),
)
def test_every_epoch_holds_every_image_once_over_all_processes(seed, batch, size, world):
    steps = -(-2 * size // (batch * world))
    slots = [
        slot
        for step in range(steps)
        for rank in range(world)
        for slot in sample_plan(seed, step, batch, size, rank, world)
    ]
    for epoch in range(2):
        assert sorted(index for index, _ in slots[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert len({generator_seed for _, generator_seed in slots}) == len(slots)
    assert all(0 <= generator_seed < 2**63 for _, generator_seed in slots)


def test_the_order_differs_between_epochs_and_seeds():
    def order(seed, epoch):
        return [index for index, _ in sample_plan(seed, epoch, 50, 50)]

    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0) and order(0, 0) == order(0, 0)


def test_a_batch():
    (batch, *rest) = batches(params())
    assert len(rest) == 7
    assert set(batch) == {
        *("index", "name", "image", "clip_image", "mask", "valid", "labels", "box", "flipped"),
    }
    assert batch["image"].shape == batch["clip_image"].shape == (3, 3, *SIZE) and batch["image"].dtype == torch.uint8
    assert batch["mask"].shape == (3, *SIZE) and batch["mask"].dtype == torch.uint8 and (batch["mask"] == 255).all()
    assert batch["valid"].dtype == torch.bool and batch["valid"].all()
    assert batch["labels"].dtype == torch.bool and batch["labels"].shape == (3, 11)
    assert batch["box"].shape == (3, 2) and batch["flipped"].dtype == torch.bool and batch["index"].dtype == torch.int64
    assert batch["name"] == [f"i{i}" for i in batch["index"].tolist()]
    assert torch.equal(batch["image"][:, 0, 0, 0].long(), batch["index"])
    assert torch.equal(batch["labels"].long().argmax(1), batch["index"])


RANDOM = {"cache_features": False, "resize_ratio": [0.5, 2.0], "photometric": True}


@pytest.mark.parametrize("keys", [{}, RANDOM], ids=["sized", "random"])
def test_a_resumed_loader_goes_on_exactly(keys):
    whole = batches(params(**keys))
    assert all(same(*pair) for pair in zip(whole[5:], batches(params(**keys), start=5), strict=True))
    assert batches(params(**keys), start=8) == []


def test_the_number_of_workers_changes_nothing():
    whole = batches(params(**RANDOM, iterations=4))
    assert all(same(*pair) for pair in zip(whole, batches(params(**RANDOM, iterations=4, workers=2)), strict=True))


def test_what_is_left_to_the_device_gives_the_same_batches():
    for clip_pixels in ("clean", "official"):
        given, split = params(**RANDOM, clip_pixels=clip_pixels), FakeSplit()
        left = train_loader(given, split, labels(split))
        left.dataset.on_device = True  # as for a GPU
        for whole, batch in zip(batches(given), left, strict=True):
            assert "clip_image" not in batch and batch["draws"].shape == (3, 5)
            assert same(whole, distorted(batch, given))


def test_processes_of_one_run_share_out_the_images():
    first, second = (batches(params(iterations=1), rank=rank, world=2)[0]["index"].tolist() for rank in range(2))
    assert not set(first) & set(second)


@pytest.mark.parametrize("path", ["dual", "single"])
def test_weak_supervision_opens_no_mask(path, tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    split = Unmasked()
    for i, name in enumerate(split.names):
        write_mask(pseudo_mask_folder(params(path="single"), "train"), name, np.full(SIZE, 10 - i, np.uint8), CAMVID)
    for batch in batches(params(path=path), split=split):
        expected = 255 if path == "dual" else (10 - batch["index"])[:, None, None]
        assert (batch["mask"] == expected).all()


@pytest.mark.parametrize("path", ["dual", "single"])
def test_the_ceiling_reads_true_masks(path, tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    split = FakeSplit()
    ceiling = params(path=path).variant("ceiling")
    for batch in batches(ceiling, split=split):
        assert (batch["mask"] == batch["index"][:, None, None]).all()
    assert sorted(split.opened) == list(range(7))  # each once: sized images are kept in memory


def test_images_that_are_resized_at_random_are_not_kept():
    split = FakeSplit()
    batches(params(**RANDOM).variant("ceiling"), split=split)
    assert len(split.opened) == 24


def test_a_missing_pseudo_mask_is_named_with_its_command_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    given = params(path="single")
    split = FakeSplit()
    write_mask(pseudo_mask_folder(given, "train"), "i0", np.zeros(SIZE, np.uint8), CAMVID)
    with pytest.raises(CarbError, match=r"i1\.png.*6 missing.*carb masks .*--split train"):
        train_loader(given, split, labels(split))


@pytest.mark.parametrize("size", [(8, 12), (16, 24)], ids=["base", "own"])
def test_a_pseudo_mask_of_the_base_or_the_images_own_size(size, tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    given = params(path="single", image_size=(8, 12), crop=(8, 12), patch=[4, 4])
    split = Unmasked()
    for i, name in enumerate(split.names):
        write_mask(pseudo_mask_folder(given, "train"), name, np.full(size, i, np.uint8), CAMVID)
    for batch in batches(given, split=split):
        assert (batch["mask"] == batch["index"][:, None, None]).all()
    write_mask(pseudo_mask_folder(given, "train"), "i4", np.full((7, 500), 4, np.uint8), CAMVID)
    with pytest.raises(CarbError, match=r"i4\.png: mask of 7×500 \(H×W\) for an image of 16×24; .*8×12"):
        batches(given, split=split)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_one_line_whatever_the_workers(workers):
    with pytest.raises(CarbError) as error:
        batches(params(workers=workers), split=FakeSplit(broken=[3]))
    assert str(error.value) == "i3.png: truncated; download it again"


def test_an_empty_split_is_an_error():
    with pytest.raises(CarbError, match="holds no image"):
        batches(params(), split=FakeSplit(0))


def test_shared_memory_that_is_full_is_one_line():
    class Full(FakeSplit):
        def image(self, index):
            raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device")

    with pytest.raises(CarbError, match="^workers: 2 pass batches through /dev/shm.*--shm-size=2g"):
        batches(params(workers=2), split=Full())


def test_a_worker_that_is_killed_is_one_line():
    class Killed(FakeSplit):
        def image(self, index):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(CarbError, match="^workers: one of 2 was killed.*; lower workers"):
        batches(params(workers=2), split=Killed())


class Signalled(FakeSplit):
    """A split whose reader hears all that training holds back, as all of a terminal's or a job's processes do."""

    def image(self, i):
        for number in {*SIGNALS} - {signal.SIGTERM}:
            os.kill(os.getpid(), number)
        return super().image(i)


def test_workers_leave_signals_to_training():
    given = params(workers=1)
    assert all(same(*pair) for pair in zip(batches(given, split=Signalled()), batches(given), strict=True))
