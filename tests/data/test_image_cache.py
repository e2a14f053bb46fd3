"""Decoded images on disk: the pixels of the sources, made once however many begin, whole or told."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import small_params

from carblib.base.errors import CarbError
from carblib.data import image_cache
from carblib.data.batches import train_loader
from carblib.data.image_cache import DecodedImages
from carblib.data.readers import open_split

SIZES = [(37, 53), (37, 53), (64, 21), (5, 90)]  # (H, W)


@pytest.fixture
def params(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    rng, folder = np.random.default_rng(0), tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    for i, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"i{i}.png")
    return small_params(
        dataset="folder", root=str(tmp_path / "data"), cache_images=str(tmp_path / "decoded"), path="dual",
        image_size=(32, 48), crop=(24, 40), patch=(8, 8), resize_ratio=(0.5, 2.0), flip=0.5, photometric=True,
        cache_features=False, batch_size=3, iterations=6, warmup=0, device="cpu",
    )  # fmt: skip


def held(params):
    return {path.name: path.stat().st_mtime_ns for path in Path(params.cache_images).glob("*.npy")}


def pixels_of(params):
    split, decoded = open_split(params, "train"), DecodedImages(params, open_split(params, "train"))
    for i in range(len(split)):
        np.testing.assert_array_equal(decoded.image(i), np.array(Image.open(split.image_paths[i])))
    return decoded


def test_batches_are_the_same_with_and_without(params):
    split = open_split(params, "train")
    labels = np.ones((len(split), len(split.class_set)), bool)
    plain = params.updated(cache_images="")
    for workers in (0, 2):
        batches = zip(
            train_loader(plain, split, labels),
            train_loader(params.updated(workers=workers), split, labels),
            strict=True,
        )
        for one, other in batches:
            assert all(np.array_equal(one[key], other[key]) for key in one)


def test_only_what_changed_is_decoded_again(params):
    pixels_of(params)
    first = held(params)
    assert len(first) == len(SIZES)
    path = Path(params.root, "train", "i1.png")
    Image.fromarray(np.full((9, 11, 3), 7, np.uint8)).save(path)
    shutil.copy(Path(params.root, "train", "i0.png"), path.with_name("i9.png"))  # the same content: not again
    pixels_of(params)
    again = held(params)
    assert len(again) == len(first) + 1 and first.items() <= again.items()


def test_an_interrupted_one_goes_on(params, monkeypatch):
    params, split = params.updated(workers=1), open_split(params, "train")
    plain, seen = type(split).image, []

    def image(self, i):
        seen.append(i)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return plain(self, i)

    monkeypatch.setattr(type(split), "image", image)
    with pytest.raises(KeyboardInterrupt):
        DecodedImages(params, split)
    assert len(held(params)) == 2 and len(list(Path(params.cache_images).iterdir())) == 3  # and the lock
    DecodedImages(params, split)
    assert seen == [0, 1, 2, 2, 3]


def test_damage_is_told(params):
    split = open_split(params, "train")
    for place, wrong in ((-5, 1), (200, 1), (3, 1), (-1, 1)):
        decoded = DecodedImages(params, split)
        path = decoded.paths[2]
        data = bytearray(path.read_bytes())
        data[place] ^= wrong
        path.write_bytes(data)
        with pytest.raises(CarbError, match=r"\.npy: gone or damaged; delete it and start again"):
            decoded.image(2)
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(CarbError, match="gone or damaged"):
            decoded.image(2)
        path.unlink()
    pixels_of(params)


def test_a_full_disk_is_told_before(params, monkeypatch):
    free = sum(3 * height * width for height, width in SIZES) - 1
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, free))
    with pytest.raises(CarbError, match="4 decoded images of train take .* GB, .* GB are free; .*cache_images: ''"):
        DecodedImages(params, open_split(params, "train"))
    assert not held(params)


def test_processes_that_begin_at_once_and_one_that_is_killed(params, tmp_path, monkeypatch):
    split, said = open_split(params, "train"), tmp_path / "said"
    plain, fork = type(split).image, multiprocessing.get_context("fork")

    def begin(seconds):
        def image(self, i):
            with open(said, "a") as file:
                file.write(f"{i}\n")
            time.sleep(seconds)
            return plain(self, i)

        monkeypatch.setattr(type(split), "image", image)
        process = fork.Process(target=DecodedImages, args=(params.updated(workers=1), split))
        process.start()
        return process

    killed = begin(60)
    while not said.is_file() or not said.read_text():
        time.sleep(0.01)
    others = [begin(0.05) for _ in range(2)]
    time.sleep(0.3)
    assert said.read_text() == "0\n" and not held(params)  # they wait
    killed.kill()
    for process in (killed, *others):
        process.join(300)
    assert [process.exitcode for process in others] == [0, 0]
    assert said.read_text().split() == ["0", "0", "1", "2", "3"]
    monkeypatch.setattr(type(split), "image", plain)
    pixels_of(params)
