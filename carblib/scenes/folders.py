"""Rendered driving scenes with exact masks, in CamVid's classes: the data a run uses when no data set is at hand.

A scene is a function of its seed and size alone. Command: `carb scenes ROOT --split train --count 240`.
"""

from __future__ import annotations

import math
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from carblib.base.errors import CarbError
from carblib.base.files import read_json, write_bytes, write_json
from carblib.base.interrupts import deaf_children
from carblib.base.processes import cores, local_rank, wait_until
from carblib.base.progress import bar_options
from carblib.params import Params
from carblib.scenes.render import USES, Scene, SceneObject, render_pngs, render_scene, scene_seed

__all__ = ["USES", "Scene", "SceneObject", "ensure_scenes", "render_scene", "scene_seed", "write_scenes"]
VERSION = 1  # raised when the same seed gives another picture
_NAME = re.compile(r"\d{6}\.png")


def write_scenes(
    root: str | Path,
    split: str,
    count: int,
    seed: int = 0,
    size: tuple[int, int] = (256, 512),
    processes: int | None = None,
) -> Path:
    """Write scenes in CamVid's SegNet form: `root/split/000001.png` with `root/splitannot/000001.png` (L, ids 0–10).

    Complete pairs are kept, so an interrupted run goes on where it stopped. CarbError if the folder holds scenes of
    another seed, size or version, pictures that this function did not write, or more of them than `count`.
    Returns the folder of the images.
    """
    if count < 1:
        raise CarbError(f"scenes: count must be 1 or more, not {count}")
    scene_seed(split, 0, seed)
    images, masks = Path(root) / split, Path(root) / f"{split}annot"
    _check_folder(images, masks, {"seed": seed, "size": list(size), "version": VERSION}, count)
    jobs = [(name, scene_seed(split, k, seed), tuple(size)) for name, k in _lacking(root, split, count).items()]
    for name, image, mask in tqdm(
        _render_all(jobs, processes), f"scenes {split}", len(jobs), disable=not jobs, **bar_options()
    ):
        write_bytes(masks / name, mask)
        write_bytes(images / name, image)
    return images


def ensure_scenes(params: Params) -> None:
    """Render what is missing of the three splits of a run on rendered scenes; nothing for any other dataset.

    Scenes that were rendered at another size before stay as they are, and are completed at that size. Of a launcher's
    processes the first of each machine renders, since its disk may be its own, and the others wait.
    """
    if params.dataset != "scenes":
        return
    counts = {
        params.train_split: params.scenes_train,
        params.val_split: params.scenes_val,
        params.test_split: params.scenes_test,
    }
    root = Path(params.data_root)
    if local_rank():
        wait_until(lambda: not any(_lacking(root, *one) for one in counts.items()), f"scenes in {root}")
    for split, count in counts.items():
        note = root / f"{split}.scenes.json"
        size = _noted(note)["size"] if note.is_file() else (256, 512)
        write_scenes(root, split, count, params.scenes_seed, tuple(size))


def _lacking(root: str | Path, split: str, count: int) -> dict[str, int]:
    """Return the names of the scenes that are not there with their masks, and their numbers, from 0."""
    images, masks = Path(root) / split, Path(root) / f"{split}annot"
    numbers = {f"{number + 1:06d}.png": number for number in range(count)}
    return {name: k for name, k in numbers.items() if not ((images / name).is_file() and (masks / name).is_file())}


def _noted(note: Path) -> dict[str, Any]:
    """Read what the scenes of a folder were rendered with."""
    remedy = f"delete it and the folders {note.name.split('.')[0]}*: they are rendered again"
    spec = read_json(note, remedy)
    size = spec.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        raise CarbError(f"{note}: says no size; {remedy}")
    return spec


def _render_all(jobs: list, processes: int | None) -> Iterator[tuple[str, bytes, bytes]]:
    # A worker takes a second or more to start, so a few scenes are rendered sooner here.
    workers = min(processes or cores(), math.ceil(len(jobs) / 64))
    if workers <= 1:
        yield from map(render_pngs, jobs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        with deaf_children():
            rendered = pool.map(render_pngs, jobs)
        yield from rendered
    except BrokenProcessPool as error:
        raise CarbError(
            f"scenes: one of {workers} processes was killed, most often because memory ran out; start again, "
            "what is rendered is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _check_folder(images: Path, masks: Path, spec: dict, count: int) -> None:
    note = images.parent / f"{images.name}.scenes.json"
    held = [p.name for folder in (images, masks) if folder.is_dir() for p in folder.iterdir() if p.suffix == ".png"]
    if note.is_file():
        old = _noted(note)
        for key, value in spec.items():
            if old.get(key) != value:
                raise CarbError(f"{images}: {note.name} holds {old}, not {key} {value}; choose another root")
    elif held:
        raise CarbError(f"{images}: holds images that carblib did not render; choose another root")
    foreign = [name for name in held if not _NAME.fullmatch(name)]
    if foreign:
        raise CarbError(f"{images}: holds {min(foreign)}, which carblib did not render; move it elsewhere")
    if held and int(max(held)[:6]) > count:
        raise CarbError(f"{images}: holds {max(held)}, beyond the {count} scenes asked for; ask for more")
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    write_json(note, spec)
