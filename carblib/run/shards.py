"""One shard of a fleet's frames, in whichever process: read, named pixel by pixel, written whole (`carb fleet`).

Reading, computing and writing overlap, and memory does not grow with the frames of a shard.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import platform
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import numpy as np
import torch
import yaml
from fsspec.implementations.local import LocalFileSystem

from carblib.base import files
from carblib.base.device import torch_device
from carblib.base.errors import CarbError, one_line
from carblib.base.images import read_image
from carblib.base.parallel import in_order
from carblib.clip_files import clip_digest
from carblib.data.mask_folders import mask_path, write_mask
from carblib.data.pictures import is_picture
from carblib.data.sources import contents
from carblib.infer import predict_mask
from carblib.masker import build_masker
from carblib.params import Params
from carblib.training.state import load_trained
from carblib.transforms import load_sized

Segment = Callable[[np.ndarray, "np.ndarray | None"], np.ndarray]


@dataclass(frozen=True)
class Job:
    """One shard: the address of a tar, or paths of pictures by name, and where its result goes."""

    tar: str
    pictures: tuple[tuple[str, Path], ...]
    result: str


class BadShard(CarbError):
    """A tar of which no result can come, which `skip_bad` leaves out."""


class Frame(NamedTuple):
    """A picture in a file, beside which its classes may lie, and its name in the results."""

    name: str
    path: Path


def do_job(job: Job, settings: str, checkpoint: str | None, weights: str) -> tuple[int, list[str]]:
    """Do one shard; returns how many frames were done, and what was left out with why. Raises CarbError for a bad one.

    weights: what `weights_digest` said where the job was given out.
    """
    params, segment = _segmenter(settings, checkpoint, weights)
    left_out: list[str] = []
    # Within a worker's own folder, which Dask removes once the worker is dead, however it ended.
    own = getattr(_worker(), "local_directory", None)
    with tempfile.TemporaryDirectory(prefix="carb_fleet_", dir=own) as scratch:
        folder = Path(scratch, "masks") if job.tar else Path(job.result)
        frames = _of_tar(job.tar, Path(scratch)) if job.tar else itertools.starmap(Frame, job.pictures)

        def read(frame: Frame) -> tuple[Frame, np.ndarray | CarbError]:
            try:
                return frame, read_image(frame.path)
            except CarbError as error:
                return frame, error

        def masks() -> Iterator[tuple[str, str, np.ndarray]]:
            for number, (frame, image) in enumerate(in_order(read, frames, params.workers)):
                if isinstance(image, CarbError):
                    error = CarbError(f"{job.tar}: {frame.name}: {image}") if job.tar else image
                    if not params.skip_bad:
                        raise error
                    left_out.append(str(error))
                    continue
                labels = None if checkpoint or params.gate == "none" else _labels(frame, params, job.tar)
                # In a tar names are anything; its files are numbered until they are packed.
                yield frame.name, str(number) if job.tar else frame.name, segment(image, labels)
                if job.tar:
                    frame.path.unlink()
                    frame.path.with_suffix(".json").unlink(missing_ok=True)

        def write(mask: tuple[str, str, np.ndarray]) -> tuple[str, Path]:
            write_mask(folder, mask[1], mask[2], params.class_set)
            return mask[0], mask_path(folder, mask[1])

        try:
            written = list(in_order(write, masks(), params.workers))
        except BadShard as error:
            if not params.skip_bad:
                raise
            return 0, [str(error)]
        if job.tar:
            _pack(written, Path(scratch, "result.tar"), job)
    return len(written), left_out


def _of_tar(address: str, scratch: Path) -> Iterator[Frame]:
    """Read a tar from front to back, its frames into files; neighbours of one name but for the suffix belong together.

    Hidden files, as macOS packs them, are left out. Raises BadShard.
    """
    pictures: dict[str, str] = {}
    with (
        told(f"{address}: truncated, no tar, or not to be read", "copy it again", BadShard),
        fsspec.open(address, "rb") as file,
        tarfile.open(fileobj=file, mode="r|*") as tar,
    ):
        groups = itertools.groupby(filter(_counts, tar), lambda member: member.name.rpartition(".")[0])
        for number, (name, group) in enumerate(groups):
            frame = None
            for member in group:
                if not member.isfile():
                    raise BadShard(f"{address}: {member.name}: a link; pack files: tar -h --hard-dereference")
                suffix = PurePosixPath(member.name).suffix.lower()
                path, data = scratch / f"{number}{suffix}", tar.extractfile(member).read()
                with files.writing(path):
                    path.write_bytes(data)
                if suffix == ".json":
                    continue
                if name in pictures:
                    both = f"{pictures[name]} and {member.name}"
                    raise BadShard(f"{address}: {both}: two pictures of one name; give each its own")
                pictures[name], frame = member.name, Frame(name, path)
            if frame:
                yield frame
        if not pictures:
            raise BadShard(f"{address}: no picture in it; leave it out of --shards")


def _counts(member: tarfile.TarInfo) -> bool:
    path = Path(member.name)
    return (is_picture(path) or path.suffix.lower() == ".json") and path.name[0] != "." and not member.isdir()


def _labels(frame: Frame, params: Params, tar: str) -> np.ndarray:
    beside = frame.path.with_suffix(".json")
    where, remedy = f"{tar}: {frame.name}.json" if tar else beside, "write the frame's classes, or set gate: none"
    try:
        classes, why = json.loads(beside.read_text("utf-8")), "no list of names"
        if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
            return params.class_set.labels(*classes)
    except FileNotFoundError:
        why = "no such list" + (" next to its picture (tar --sort=name packs a folder so)" if tar else "")
    except (OSError, ValueError, RecursionError) as error:
        why = f"not readable as JSON ({error})"
    except CarbError as error:
        raise CarbError(f"{where}: {error}") from error
    raise CarbError(f"{where}: {why}; {remedy}")


def _pack(written: list[tuple[str, Path]], whole: Path, job: Job) -> None:
    with files.writing(whole), tarfile.open(whole, "w") as tar:
        for name, path in written:
            tar.add(path, f"{name}.png")
    put(whole, job.result)


def put(path: Path, address: str) -> None:
    """Copy a file to an address, whole or not at all: object storage shows an object once all of it is there."""
    place, name = fsspec.core.url_to_fs(address)
    if isinstance(place, LocalFileSystem):
        with files.atomic(name) as file, path.open("rb") as source:
            shutil.copyfileobj(source, file)
        return
    with told(f"{address}: cannot be written", "check the address and your leave to write"):
        place.put_file(str(path), name)


@contextlib.contextmanager
def told(what: str, remedy: str, kind: type[CarbError] = CarbError) -> Iterator[None]:
    """Within the block, or the function decorated with it, turn what storage raises, each its own, into a CarbError."""
    try:
        yield
    except CarbError:
        raise
    except Exception as error:
        raise kind(f"{what} ({one_line(error)}); {remedy}") from error


def weights_digest(params: Params, checkpoint: str | None) -> str:
    """Return what tells the weights that do the work from others: the checkpoint's digest, or that of CLIP."""
    known = contents(params)
    return known.digest(checkpoint) if checkpoint else clip_digest(params.clip, params.clip_folder, known)


@functools.lru_cache(1)
def _segmenter(settings: str, checkpoint: str | None, weights: str) -> tuple[Params, Segment]:
    """Return parameters, and what makes the mask of an image (H, W, 3) with labels (C,): loaded once in a process.

    A worker may outlive a training: weights are loaded again when `weights` is another, and must be just those.
    """
    params = Params.model_validate(yaml.safe_load(settings))
    segment = _load(params, checkpoint)
    if weights_digest(params, checkpoint) != weights:  # asked once all is loaded: until then the file may change
        raise CarbError(
            f"{checkpoint or params.clip}: on {platform.node()} holds other weights than where the command was given; "
            "copy it there, or run the command again if it was just written"
        )
    return params, segment


def _load(params: Params, checkpoint: str | None) -> Segment:
    device = _device(params)
    if checkpoint is None:
        masker, size = build_masker(params, device), params.image_size

        def pseudo_mask(image: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
            known = None if labels is None else torch.from_numpy(labels)[None]
            return masker(load_sized(image, size)[None].to(device), known, size)[0].cpu().numpy()

        return pseudo_mask
    network, trained = load_trained(Path(checkpoint))
    if trained.class_set.names != params.class_set.names:
        raise CarbError(f"{checkpoint}: its network knows {trained.class_set.name}'s classes; set `classes` to them")
    network.to(device)
    return lambda image, _: predict_mask(network, image, params)


def _device(params: Params) -> torch.device:
    """Of several GPUs on a machine each of Dask's local workers, which are numbered, has one."""
    device, number = torch_device(params.device), getattr(_worker(), "name", None)
    if device.type == "cuda" and isinstance(number, int):
        return torch.device("cuda", number % torch.cuda.device_count())
    return device


def _worker() -> Any:
    """Return Dask's worker for which this is done, or None."""
    with contextlib.suppress(LookupError, AttributeError, ValueError):
        return sys.modules["distributed"].get_worker()
