"""Rendered driving scenes with exact masks, in CamVid's classes: the data a run uses when no data set is at hand.

A scene is a function of its seed and size alone. Command: `carb scenes ROOT --split train --count 240`.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from carblib.base.errors import CarbError
from carblib.base.files import read_json, write_bytes, write_json
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
    names = [f"{index + 1:06d}.png" for index in range(count)]
    done = [(images / name).is_file() and (masks / name).is_file() for name in names]
    jobs = [(name, scene_seed(split, k, seed), tuple(size)) for k, name in enumerate(names) if not done[k]]
    for name, image, mask in tqdm(
        _render_all(jobs, processes), f"scenes {split}", len(jobs), disable=not jobs, **bar_options()
    ):
        write_bytes(masks / name, mask)
        write_bytes(images / name, image)
    return images


def ensure_scenes(params: Params) -> None:
    """Render what is missing of the three splits of a run on rendered scenes; nothing for any other dataset.

    Scenes that were rendered at another size before stay as they are, and are completed at that size.
    """
    if params.dataset != "scenes":
        return
    counts = {
        params.train_split: params.scenes_train,
        params.val_split: params.scenes_val,
        params.test_split: params.scenes_test,
    }
    for split, count in counts.items():
        note = Path(params.data_root) / f"{split}.scenes.json"
        size = tuple(read_json(note)["size"]) if note.is_file() else (256, 512)
        write_scenes(params.data_root, split, count, params.scenes_seed, size)


def _render_all(jobs: list, processes: int | None) -> Iterator[tuple[str, bytes, bytes]]:
    # A worker takes a second or more to start, so a few scenes are rendered sooner here.
    workers = min(processes or os.cpu_count() or 1, math.ceil(len(jobs) / 64))
    if workers <= 1:
        yield from map(render_pngs, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(render_pngs, jobs, chunksize=4)


def _check_folder(images: Path, masks: Path, spec: dict, count: int) -> None:
    note = images.parent / f"{images.name}.scenes.json"
    held = [p.name for folder in (images, masks) if folder.is_dir() for p in folder.iterdir() if p.suffix == ".png"]
    if note.is_file():
        old = read_json(note)
        for key, value in spec.items():
            if not isinstance(old, dict) or old.get(key) != value:
                raise CarbError(
                    f"{images}: {note.name} holds {old}, not {key} {value}; delete both or choose another root"
                )
    elif held:
        raise CarbError(f"{images}: holds images that carblib did not render; choose another root")
    extra = [name for name in held if not _NAME.fullmatch(name) or int(name[:6]) > count]
    if extra:
        raise CarbError(f"{images}: holds {min(extra)}, beyond the {count} scenes asked for; delete it or ask for more")
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    write_json(note, spec)
