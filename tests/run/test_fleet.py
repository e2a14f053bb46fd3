"""`carb fleet`: shards labelled once each, whoever dies; a restart does what is missing."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import signal
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from commands import carb
from distributed.diskutils import WorkSpace
from explorer_runs import save_network
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from places import REPOSITORY
from small import small_params

from carblib.base.errors import CarbError
from carblib.infer import predict_mask
from carblib.masker import build_masker, mask_image
from carblib.params import Params
from carblib.run import fleet
from carblib.run.shards import do_job, weights_digest
from carblib.scenes.render import render_scene, scene_seed
from carblib.training.state import load_trained

SIZE = (40, 72)
CHANGES = {"image_size": SIZE, "crop": SIZE, "patch": (16, 16), "cache_features": False, "device": "cpu"}
LABELS = ["road", "sky", "car"]


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Six frames."""
    return [render_scene(scene_seed("test", k, 7), SIZE).image for k in range(6)]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Small ones, in a project of their own."""
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(REPOSITORY)
    return small_params(**CHANGES)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryFileSystem:
    """Object storage, in memory and empty."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    return MemoryFileSystem()


def png(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_shards(folder: Path, frames: list[np.ndarray], shards: int, each: int, labels: bool = True) -> None:
    for shard in range(shards):
        members = {}
        for k in range(each):
            name = f"drive {shard}/{k:04d}"
            members[f"{name}.png"] = png(frames[(shard + k) % len(frames)])
            if labels:
                members[f"{name}.json"] = json.dumps(LABELS).encode()
        write_tar(folder / f"{shard:03d}.tar", members)


def read_tar(path: Path) -> dict[str, np.ndarray]:
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert len(names) == len(set(names))
        return {name: np.array(Image.open(io.BytesIO(tar.extractfile(name).read()))) for name in names}


def expected(params: Params, image: np.ndarray) -> np.ndarray:
    masker = build_masker(params)
    known = None if params.gate == "none" else params.class_set.labels(*LABELS)
    return mask_image(masker, image, known)


def test_a_killed_worker_loses_nothing_doubles_nothing_and_leaves_nothing(
    tmp_path: Path, params: Params, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, each, scratch = 6, 24, tmp_path / "scratch"
    params = params.updated(workers=1)  # more would read a shard to its end at once, and nobody be seen at work
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)  # asked anew
    write_shards(tmp_path / "frames", frames, shards, each)
    out, killed = tmp_path / "out", []

    def kill_one_at_work() -> None:
        at_work = []
        while not at_work or not list(out.glob("*.tar")):
            time.sleep(0.02)
            workers = psutil.Process().children()
            at_work = [worker.pid for worker in workers if any(".tar" in file.path for file in worker.open_files())]
        killed.append(at_work[0])
        os.kill(at_work[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_one_at_work, daemon=True)
    thread.start()
    done, left_out = fleet.run(params, str(tmp_path / "frames" / "*.tar"), str(out), processes=2)
    thread.join(5)
    assert killed and done == shards * each and not left_out
    WorkSpace(str(scratch / "dask-scratch-space")).new_work_dir(prefix="next").release()  # as Dask's next worker does
    assert not list(scratch.rglob("carb_fleet_*"))
    assert sorted(path.name for path in out.glob("*.tar")) == [f"{shard:03d}.tar" for shard in range(shards)]
    wanted = [expected(params, image) for image in frames]
    for shard in range(shards):
        masks = read_tar(out / f"{shard:03d}.tar")
        assert sorted(masks) == [f"drive {shard}/{k:04d}.png" for k in range(each)]
        for k in range(each):
            assert (masks[f"drive {shard}/{k:04d}.png"] == wanted[(shard + k) % len(frames)]).all()


def test_a_restart_does_what_is_missing(tmp_path: Path, params: Params, frames: list[np.ndarray]) -> None:
    write_shards(tmp_path / "frames" / "a", frames, 1, 2)
    write_shards(tmp_path / "frames" / "b", frames, 2, 2)
    source, out = str(tmp_path / "frames" / "*" / "*.tar"), tmp_path / "out"
    assert fleet.run(params, source, str(out)) == (6, [])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert sorted(path.relative_to(out).as_posix() for path in before) == ["a/000.tar", "b/000.tar", "b/001.tar"]
    assert fleet.run(params, source, str(out)) == (0, [])
    (out / "b" / "000.tar").unlink()
    os.utime(tmp_path / "frames" / "a" / "000.tar", (time.time() + 9, time.time() + 9))  # a newer shard
    assert fleet.run(params, source, str(out)) == (4, [])
    assert (out / "b" / "001.tar").stat().st_mtime_ns == before[out / "b" / "001.tar"]
    with pytest.raises(CarbError, match="made otherwise: masker .*choose another --out"):
        fleet.run(params.updated(masker="naclip"), source, str(out))


def test_object_storage(tmp_path: Path, params: Params, frames: list[np.ndarray], storage: MemoryFileSystem) -> None:
    write_shards(tmp_path, frames, 2, 2)
    for path in tmp_path.glob("*.tar"):
        storage.pipe_file(f"frames/{path.name}", path.read_bytes())
    source, out = "memory://frames/*.tar", "memory://found/masks"
    assert fleet.run(params, source, out) == (4, [])
    assert storage.find("found") == ["/found/masks/000.tar", "/found/masks/001.tar", "/found/masks/fleet.json"]
    storage.get_file("found/masks/001.tar", str(tmp_path / "got.tar"))
    masks = read_tar(tmp_path / "got.tar")
    for k in range(2):
        assert (masks[f"drive 1/{k:04d}.png"] == expected(params, frames[1 + k])).all()
    assert fleet.run(params, source, out) == (0, [])
    storage.pipe_file("frames/000.tar", (tmp_path / "000.tar").read_bytes())  # a newer shard
    assert fleet.run(params, source, out) == (2, [])
    with pytest.raises(CarbError, match="/found/masks/fleet.json: .*made otherwise: masker"):
        fleet.run(params.updated(masker="naclip"), source, out)
    assert fleet.run(params, source, str(tmp_path / "here")) == (4, [])
    assert (tmp_path / "here" / "001.tar").read_bytes() and fleet.run(params, source, str(tmp_path / "here")) == (0, [])


def test_results_never_replace_the_shards(
    tmp_path: Path, params: Params, frames: list[np.ndarray], storage: MemoryFileSystem
) -> None:
    write_shards(tmp_path / "frames", frames, 1, 1)
    (tmp_path / "link").symlink_to(tmp_path / "frames")
    storage.put(str(tmp_path / "frames" / "000.tar"), "frames/000.tar")
    frames_here = str(tmp_path / "frames")
    for folder, out in ((frames_here,) * 2, (frames_here, str(tmp_path / "link")), ("memory://frames",) * 2):
        with pytest.raises(CarbError, match="results would land among the shards"):
            fleet.run(params, f"{folder}/*.tar", out)
    assert os.listdir(tmp_path / "frames") == ["000.tar"] and storage.find("frames") == ["/frames/000.tar"]


def test_a_result_is_a_tar_by_its_name(tmp_path: Path, params: Params, frames: list[np.ndarray]) -> None:
    write_shards(tmp_path, frames, 1, 1)
    (tmp_path / "1.tar.gz").write_bytes(gzip.compress((tmp_path / "000.tar").read_bytes()))
    assert fleet.run(params, str(tmp_path / "*.tar*"), str(tmp_path / "out")) == (2, [])
    assert sorted(os.listdir(tmp_path / "out")) == ["000.tar", "1.tar.gz.tar", "fleet.json"]


def test_a_folder_of_pictures(tmp_path: Path, params: Params, frames: list[np.ndarray], monkeypatch) -> None:
    monkeypatch.setattr(fleet, "CHUNK", 2)
    folder, out = tmp_path / "frames", tmp_path / "out"
    (folder / "front").mkdir(parents=True)
    for k, image in enumerate(frames[:3]):
        (folder / "front" / f"{k}.png").write_bytes(png(image))
    with pytest.raises(CarbError, match="0.json: no such list; "):
        fleet.run(params, str(folder), str(out))
    (out / "fleet.json").unlink()
    free = params.updated(gate="none")
    assert fleet.run(free, str(folder), str(out)) == (3, [])
    (out / "front_1.png").unlink()
    assert fleet.run(free, str(folder), str(out)) == (1, [])
    for k, image in enumerate(frames[:3]):
        assert (np.array(Image.open(out / f"front_{k}.png")) == expected(free, image)).all()
    with pytest.raises(CarbError, match="results would land among the pictures"):
        fleet.run(free, str(folder), str(folder / "out"))
    with pytest.raises(CarbError, match="results of a folder lie on disk"):
        fleet.run(free, str(folder), "memory://out")


def test_classes_that_were_corrected_are_used(tmp_path: Path, params: Params, frames: list[np.ndarray]) -> None:
    folder, out = tmp_path / "frames", tmp_path / "out"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(frames[0]))
    (folder / "a.json").write_text('["sky"]', "utf-8")
    fleet.run(params, str(folder), str(out))
    (folder / "a.json").write_text(json.dumps(LABELS), "utf-8")
    os.utime(folder / "a.json", (time.time() + 9, time.time() + 9))
    assert fleet.run(params, str(folder), str(out)) == (1, [])
    assert (np.array(Image.open(out / "a.png")) == expected(params, frames[0])).all()


def test_workers_in_another_folder_write_to_the_same_place(
    tmp_path: Path, params: Params, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "frames").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here" / "frames" / "a.png").write_bytes(png(frames[0]))
    write_tar(tmp_path / "here" / "tars" / "0.tar", {"a.png": png(frames[0])})
    monkeypatch.chdir(tmp_path / "here")
    jobs = [fleet.find_jobs(shards, out)[0] for shards, out in (("frames", "found"), ("tars/*.tar", "packed"))]
    settings = params.updated(gate="none")
    monkeypatch.chdir(tmp_path / "elsewhere")  # as a worker that was started there
    for (job,) in jobs:
        assert do_job(job, settings.to_yaml(), None, weights_digest(settings, None)) == (1, [])
    assert (tmp_path / "here" / "found" / "a.png").is_file() and (tmp_path / "here" / "packed" / "0.tar").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_worker_that_lives_on_takes_the_network_trained_since(
    tmp_path: Path, params: Params, frames: list[np.ndarray]
) -> None:
    checkpoint, source = tmp_path / "train" / "final.pt", str(tmp_path / "frames" / "*.tar")
    write_shards(tmp_path / "frames", frames, 1, 1, labels=False)
    found = []
    for seed in (0, 1):
        save_network(checkpoint, params, seed)
        fleet.run(params, source, str(tmp_path / str(seed)), checkpoint)
        found.append(read_tar(tmp_path / str(seed) / "000.tar")["drive 0/0000.png"])
        assert (found[seed] == predict_mask(load_trained(checkpoint)[0], frames[0], params)).all()
    assert (found[0] != found[1]).any()
    ((job,), _) = fleet.find_jobs(source, str(tmp_path / "third"))
    with pytest.raises(CarbError, match=r"final.pt: on .* other weights than where the command was given"):
        do_job(job, params.to_yaml(), str(checkpoint), "the digest of a third")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (b'["road", ', "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b'{"road": 1}', "no list of names"),
        (b"[1]", "no list of names"),
        (b'["raod"]', "no class 'raod'; did you mean 'road'"),
    ],
)
def test_classes_that_cannot_be_used_are_named(
    written: bytes, why: str, tmp_path: Path, params: Params, frames: list[np.ndarray]
) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "a.png").write_bytes(png(frames[0]))
    (tmp_path / "frames" / "a.json").write_bytes(written)
    write_tar(tmp_path / "0.tar", {"a.png": png(frames[0]), "a.json": written})
    with pytest.raises(CarbError, match=f"frames/a.json: .*{why}"):
        fleet.run(params, str(tmp_path / "frames"), str(tmp_path / "out"))
    with pytest.raises(CarbError, match=f"0.tar: a.json: .*{why}"):
        fleet.run(params, str(tmp_path / "0.tar"), str(tmp_path / "out"))
    fleet.run(params.updated(gate="none"), str(tmp_path / "0.tar"), str(tmp_path / "free"))  # where none are needed


class Denied(Exception):
    """As botocore's, which is no OSError."""


def denied(self: MemoryFileSystem, *args: object, **options: object) -> None:
    raise Denied("no leave for this bucket")


def test_what_cannot_be_read_is_said(
    tmp_path: Path, params: Params, frames: list[np.ndarray], storage: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, frames, 1, 1)
    storage.put(str(tmp_path / "000.tar"), "frames/000.tar")
    words = params, "memory://frames/*.tar", str(tmp_path / "out")
    monkeypatch.setattr(MemoryFileSystem, "_open", denied)
    with pytest.raises(CarbError, match=r"frames/000.tar: .*not to be read \(Denied: no leave"):
        fleet.run(*words)
    monkeypatch.setattr(MemoryFileSystem, "glob", denied)
    with pytest.raises(CarbError, match=r"--shards or --out cannot be used \(Denied: no leave"):
        fleet.run(*words)


def test_a_scheduler_that_does_not_answer_is_said(tmp_path: Path, params: Params, frames: list[np.ndarray]) -> None:
    write_shards(tmp_path, frames, 1, 1)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "100ms"}),
        pytest.raises(CarbError, match="no workers .*tcp://127.0.0.1:9 .*; check --scheduler"),
    ):
        fleet.run(params, str(tmp_path / "*.tar"), str(tmp_path / "out"), scheduler="tcp://127.0.0.1:9")


def test_what_cannot_be_written_is_said(
    tmp_path: Path, params: Params, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a.png": png(frames[0])})
    free = params.updated(gate="none")
    monkeypatch.setattr(MemoryFileSystem, "put_file", denied)
    with pytest.raises(CarbError, match=r"memory:.*/bucket/fleet.json: cannot be written \(Denied: no leave"):
        fleet.run(free, str(shard), "memory://bucket")

    def full(self: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CarbError, match="0.png: cannot be written .*No space left"):
        fleet.run(free.updated(skip_bad=True), str(shard), str(tmp_path / "out"))


def test_bad_shards_and_frames_are_named(tmp_path: Path, params: Params, frames: list[np.ndarray]) -> None:
    free, out = params.updated(gate="none"), str(tmp_path / "out")
    cut = png(frames[0])[:-300]
    shard = write_tar(tmp_path / "t" / "0.tar", {"a.png": png(frames[0]), "b.png": cut, "c.png": png(frames[1])})
    with pytest.raises(CarbError, match="0.tar: b: .*truncated"):
        fleet.run(free, str(shard), out)
    assert not (tmp_path / "out" / "0.tar").exists()
    done, left_out = fleet.run(free.updated(skip_bad=True), str(shard), out)
    assert done == 2 and len(left_out) == 1 and sorted(read_tar(tmp_path / "out" / "0.tar")) == ["a.png", "c.png"]
    twice = write_tar(
        tmp_path / "t" / "1.tar", {"a.png": png(frames[0]), "b.png": png(frames[0]), "a.jpg": png(frames[1])}
    )
    with pytest.raises(CarbError, match="1.tar: a.png and a.jpg: two pictures of one name"):
        fleet.run(free, str(twice), out)
    beside = write_tar(tmp_path / "t" / "3.tar", {"a.jpg": png(frames[0]), "a.png": png(frames[0])})
    with pytest.raises(CarbError, match="3.tar: a.jpg and a.png: two pictures of one name"):
        fleet.run(free, str(beside), out)
    broken = tmp_path / "t" / "2.tar"
    broken.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(CarbError, match="2.tar: truncated, no tar"):
        fleet.run(free, str(broken), out)
    done, left_out = fleet.run(free.updated(skip_bad=True), str(tmp_path / "t" / "[02].tar"), out)
    assert done == 0 and len(left_out) == 1 and "2.tar: truncated" in left_out[0]
    assert not (tmp_path / "out" / "2.tar").exists()  # it is looked at again
    with pytest.raises(CarbError, match="no such folder, and no tar"):
        fleet.run(free, str(tmp_path / "nowhere" / "*.tar"), out)


def test_what_else_lies_in_a_tar(tmp_path: Path, params: Params, frames: list[np.ndarray]) -> None:
    picture, classes, out = png(frames[0]), json.dumps(LABELS).encode(), str(tmp_path / "out")
    other = {"._a.png": b"macOS", "./a.png": picture, "._a.json": b"macOS", "a.png.bak": b"", "./a.json": classes}
    assert fleet.run(params, str(write_tar(tmp_path / "0.tar", other)), out) == (1, [])
    assert list(read_tar(tmp_path / "out" / "0.tar")) == ["./a.png"]
    apart = write_tar(tmp_path / "1.tar", {"a.png": picture, "b.png": picture, "a.json": classes, "b.json": classes})
    with pytest.raises(CarbError, match="1.tar: a.json: no such list next to its picture .*--sort=name"):
        fleet.run(params, str(apart), out)
    with pytest.raises(CarbError, match="2.tar: no picture in it"):
        fleet.run(params, str(write_tar(tmp_path / "2.tar", {"a.json": classes})), out)
    (tmp_path / "a.png").write_bytes(picture)
    (tmp_path / "b.png").hardlink_to(tmp_path / "a.png")
    with tarfile.open(tmp_path / "3.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
        tar.add(tmp_path / "b.png", "b.png")
    with pytest.raises(CarbError, match="3.tar: b.png: a link; .*--hard-dereference"):
        fleet.run(params, str(tmp_path / "3.tar"), out)
    with pytest.raises(CarbError, match="4.tar: a: .*not an image"):
        fleet.run(params, str(write_tar(tmp_path / "4.tar", {"a.heic": b"no kind that is read"})), out)


def test_a_network_predicts_and_the_engine_may_be_missing(
    tmp_path: Path, params: Params, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "train" / "final.pt"
    save_network(checkpoint, params, 0)
    write_shards(tmp_path / "frames", frames, 2, 2, labels=False)
    source, out = str(tmp_path / "frames" / "*.tar"), tmp_path / "out"
    (tmp_path / "own.yaml").write_text(params.to_yaml(), "utf-8")
    words = ("fleet", tmp_path / "own.yaml", "--shards", source, "--out", out)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(CarbError, match=r"distributed is not installed .*carblib\[fleet\]', or give --processes 1"):
        carb(*words, "--checkpoint", checkpoint, "--processes", 2)
    assert carb(*words, "--checkpoint", checkpoint) == 0
    network = load_trained(checkpoint)[0]
    masks = read_tar(out / "001.tar")
    assert (masks["drive 1/0000.png"] == predict_mask(network, frames[1], params)).all()
    with pytest.raises(CarbError, match="made otherwise: predictions, now pseudo-masks"):
        carb(*words)
