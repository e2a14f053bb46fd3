"""A fleet's frames, millions of them, labelled or predicted shard by shard: `carb fleet`.

A shard is a tar of frames, on disk or in object storage, or a hundred pictures of a folder. Its result, a tar of index
PNGs or the PNGs themselves, is written whole or not at all, under a name that follows from the shard's: whoever does a
shard again writes the same file, so nothing is there twice, and the same command does what is missing. Who does which
shard is left to Dask: a worker that dies is replaced, and its shards go to the others. (Why Dask: COSTS.md.)

Image-level labels, where `gate` needs them, lie beside a frame: X.json, a list of class names; in a tar right after or
right before X.jpg.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from tqdm import tqdm

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.base.progress import bar_options
from carblib.base.stamps import Stamp, compare
from carblib.data.mask_folders import mask_path
from carblib.data.pictures import images_in
from carblib.data.sources import VERSIONS
from carblib.params import Params
from carblib.run.shards import Job, do_job, put, told, weights_digest

CHUNK = 100  # pictures of a folder that are done at once


def run(
    params: Params, shards: str, out: str, checkpoint: Path | None = None, processes: int = 1, scheduler: str = ""
) -> tuple[int, list[str]]:
    """Do what is missing of all shards; returns how many frames were done now, and what was left out with why.

    shards: a folder of pictures, or a pattern of tars ("frames/*.tar", "s3://bucket/*.tar"). out: a folder, for tars
    also in object storage. checkpoint: a trained network predicts; without one CLIP makes pseudo-masks. processes: on
    this machine; with `scheduler` the address of a Dask scheduler whose workers, on however many machines, do the work.
    With `skip_bad` frames and tars that cannot be read are left out. Raises CarbError for results made otherwise in
    `out`, for a frame or shard that cannot be used, for what does not answer, and for what is not installed.
    """
    shards, out = map(os.path.expanduser, (shards, out))
    jobs, total = find_jobs(shards, out)
    path = checkpoint and str(checkpoint.resolve())
    weights = weights_digest(params, path)
    _check_made_alike(params, "network" if path else "CLIP weights", weights, out)
    work = functools.partial(do_job, settings=params.to_yaml(), checkpoint=path, weights=weights)
    done, left_out = 0, []
    with tqdm(desc="fleet", total=total, initial=total - len(jobs), unit="shard", **bar_options()) as bar:
        for count, bad in _results(work, jobs, processes, scheduler):
            done, left_out = done + count, left_out + bad
            bar.update()
    return done, left_out


def _results(work: Callable[[Job], Any], jobs: list[Job], processes: int, scheduler: str) -> Iterator[Any]:
    """Yield the result of each job as it comes. Closes workers that it started, and cancels what it gave to others."""
    if not jobs or (processes == 1 and not scheduler):
        yield from map(work, jobs)
        return
    try:
        dask = importlib.import_module("distributed")
    except ImportError as error:
        how = "pip install 'carblib[fleet]', or give --processes 1"
        raise CarbError(f"fleet: the package distributed is not installed ({error}); {how}") from error
    local = {"n_workers": processes, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None}
    with contextlib.ExitStack() as stack:
        stack.enter_context(importlib.import_module("dask").config.set({"distributed.logging.distributed": "critical"}))
        with told("fleet: no workers", "check --scheduler"):
            cluster = scheduler or stack.enter_context(dask.LocalCluster(**local, silence_logs=50))
            client = stack.enter_context(dask.Client(cluster))
        futures = client.map(work, jobs, pure=False)
        try:
            for future in dask.as_completed(futures):
                yield future.result()
                future.release()
        except dask.KilledWorker as error:
            raise CarbError(f"fleet: a shard ends its workers ({error}); more memory, or fewer --processes") from error
        finally:
            client.cancel(futures)


@told("fleet: --shards or --out cannot be used", "check the addresses and your leave")
def find_jobs(shards: str, out: str) -> tuple[list[Job], int]:
    """Return the shards whose result is missing or older than they are, and how many there are in all.

    Paths are absolute: workers may run in another folder. Raises CarbError where there is none, where results would
    land among them, and where storage refuses.
    """
    if Path(shards).is_dir():
        if "://" in out:
            raise CarbError(f"--out {out}: results of a folder lie on disk; name a folder there, or pack tars")
        source, result = Path(shards).resolve(), Path(out).resolve()
        pictures = sorted(images_in(source, deep=True).items())
        if result.is_relative_to(source):
            raise CarbError(f"--out {out}: results would land among the pictures; choose a folder elsewhere")
        missing = [pair for pair in pictures if _older(mask_path(result, pair[0]), pair[1])]
        chunks = [tuple(missing[start : start + CHUNK]) for start in range(0, len(missing), CHUNK)]
        return [Job("", chunk, str(result)) for chunk in chunks], -(-len(pictures) // CHUNK)
    source, pattern = fsspec.core.url_to_fs(shards)
    tars = sorted(source.glob(pattern))
    if not tars:
        raise CarbError(f"--shards {shards}: no such folder, and no tar; write a pattern in quotes: 'frames/*.tar'")
    place, folder = fsspec.core.url_to_fs(out)
    top = os.path.commonpath([os.path.dirname(tar) for tar in tars])
    results = {tar: f"{folder}/{PurePosixPath(tar).relative_to(top)}".removesuffix(".tar") + ".tar" for tar in tars}
    if source == place and {*map(os.path.realpath, tars)} & {*map(os.path.realpath, results.values())}:
        raise CarbError(f"--out {out}: results would land among the shards; choose a folder elsewhere")
    there = {*place.find(folder)}  # asked at once: object storage answers slowly
    fresh = [tar for tar in tars if results[tar] in there and place.modified(results[tar]) >= source.modified(tar)]
    wanted = sorted({*tars} - {*fresh})
    return [Job(source.unstrip_protocol(tar), (), place.unstrip_protocol(results[tar])) for tar in wanted], len(tars)


def _older(result: Path, picture: Path) -> bool:
    sources = [picture, *filter(Path.is_file, [picture.with_suffix(".json")])]  # its classes, if there are any
    return not result.is_file() or result.stat().st_mtime < max(path.stat().st_mtime for path in sources)


@told("fleet: --shards or --out cannot be used", "check the addresses and your leave")
def _check_made_alike(params: Params, source: str, weights: str, out: str) -> None:
    """Leave a stamp in `out`, and refuse what was made otherwise; shards that changed are told by their dates."""
    kind, affects = ("predictions", "inference") if source == "network" else ("pseudo-masks", "masks")
    settings = params.that_affect(affects) | {"classes": list(params.class_set.names)}
    now = Stamp(kind, VERSIONS[kind], settings, {source: weights})
    place, folder = fsspec.core.url_to_fs(out)
    path = f"{folder}/fleet.json"
    if not place.exists(path):
        with tempfile.TemporaryDirectory() as scratch:
            files.write_json(Path(scratch, "fleet.json"), asdict(now))
            put(Path(scratch, "fleet.json"), place.unstrip_protocol(path))
        return
    before = Stamp(**{key: value for key, value in json.loads(place.cat_file(path)).items() if key != "checksum"})
    changes = compare(before, now) if before.kind == kind else f"{before.kind}, now {kind}"
    if before.kind != kind or not changes.none:
        raise CarbError(f"{path}: what lies there was made otherwise: {changes}; choose another --out")
