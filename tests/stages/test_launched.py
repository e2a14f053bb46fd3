"""Images shared out over a launcher's processes: whatever is killed and starts again, the files are those of one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
import trees

from carblib.base import files
from carblib.base.stamps import wait_for
from carblib.data.readers import open_split
from carblib.network import build_network
from carblib.params import Params, load_params
from carblib.stages import evaluate, predict, pseudo_masks

SIZES = {"image_size": (16, 24), "crop": (16, 24), "patch": (8, 8), "device": "cpu", "bootstrap": 9}
NAMES = {split: [f"{split}_{i}" for i in range(count)] for split, count in (("train", 8), ("val", 2), ("test", 7))}
WRITERS = {
    "masks": (pseudo_masks, "write_mask"),
    "predictions": (predict, "write_mask"),
    "shares": (files, "write_bytes"),
}

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["carblib.stages.small_object_evaluation"])


def work(launcher: dict[str, str], file: Path, checkpoint: Path, killed: tuple[str, int] | None = None) -> None:
    """All that is shared out, in one of a launcher's processes; one that is `killed` goes after so many files of one
    kind. `made` gets the name of every mask and prediction that is made.
    """
    os.environ.update(launcher, CARB_HOME=str(file.parent))
    torch.set_num_threads(1)
    for kind, (module, function) in WRITERS.items():
        setattr(module, function, counted(getattr(module, function), kind, file.with_name("made"), killed))
    params = load_params(file)
    train, val, test = (open_split(params, name) for name in NAMES)
    wait_for(pseudo_masks.export_masks(params, "train"), train.names)
    folder = wait_for(predict.predict_checkpoint(checkpoint, test, params), test.names)
    result = evaluate.evaluate_folder(folder, test, params, "paper")
    assert result == files.read_json(evaluate.evaluation_path(params, "paper", "test"))
    folder = wait_for(pseudo_masks.export_masks(params, "val"), val.names)
    evaluate.evaluate_folder(folder, val, params, "masks", resize=True)  # fewer images than processes


def counted(write, kind: str, made: Path, killed: tuple[str, int] | None):
    left = killed[1] if killed and killed[0] == kind else -1

    def then(path, *what):
        nonlocal left
        write(path, *what)
        if kind == "shares" and path.suffix == ".npz":
            left -= ".parts" in str(path)
        elif kind != "shares":
            with open(made, "a", encoding="utf-8") as file:
                print(kind, what[0], file=file)
            left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return then


def launch(start: list[dict[str, str]], *what: object, killed: dict[int, tuple[str, int]] | None = None) -> list:
    processes = [
        context.Process(target=work, args=(one, *what, (killed or {}).get(i)), daemon=True)
        for i, one in enumerate(start)
    ]
    for process in processes:
        process.start()
    return processes


def ended(processes: list) -> list[int | None]:
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def tree(folder: Path) -> dict[str, bytes]:
    # Locks stay, and the begun file of a process that was killed, which is swept an hour later.
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock" and path.suffix != ".tmp"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def data(tmp_path_factory, random_clip_file) -> tuple[Params, Path]:
    root = tmp_path_factory.mktemp("data")
    trees.write_segnet(root / "camvid", NAMES)
    network = {"backbone": "mobilenet_v2", "backbone_weights": "random"}
    params = trees.params(root / "camvid", "camvid", run="r", clip=str(random_clip_file), **SIZES, **network)
    torch.manual_seed(0)
    state = build_network(params, torch.randn(11, 8)).state_dict()
    checkpoint = root / "paper" / "final.pt"
    files.save_torch(checkpoint, {"params": params.model_dump(mode="json"), "iteration": 3, "network": state})
    return params, checkpoint


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> dict[str, bytes]:
    params, checkpoint = data
    file = tmp_path_factory.mktemp("alone") / "run.yaml"
    file.write_text(params.to_yaml())
    assert ended(launch([{}], file, checkpoint)) == [0]
    return tree(file.parent / "runs/r")


def torchrun(world: int) -> list[dict[str, str]]:
    return [{"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)} for rank in range(world)]


def srun(world: int) -> list[dict[str, str]]:
    return [{"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": str(world)} for rank in range(world)]


@pytest.mark.parametrize("launcher", [torchrun(3), srun(2)], ids=["torchrun 3", "srun 2"])
def test_whoever_is_killed_and_starts_again_the_files_are_those_of_one_process(launcher, data, alone, tmp_path) -> None:
    params, checkpoint = data
    file, last = tmp_path / "run.yaml", len(launcher) - 1
    workers = 1 if len(launcher) == 3 else 2
    file.write_text(params.updated(workers=workers).to_yaml())
    running = launch(launcher[:last], file, checkpoint)
    for killed in (("masks", 1), ("predictions", 1), ("shares", 1)):
        assert ended(launch([launcher[last]], file, checkpoint, killed={0: killed})) == [-signal.SIGKILL]
    assert ended([*running, *launch([launcher[last]], file, checkpoint)]) == [0] * len(launcher)
    found = tree(tmp_path / "runs/r")
    assert found.keys() == alone.keys() and not [name for name in found if found[name] != alone[name]]
    made = (tmp_path / "made").read_text().splitlines()
    masks, predictions = NAMES["train"] + NAMES["val"], NAMES["test"]
    wanted = {*(f"masks {name}" for name in masks), *(f"predictions {name}" for name in predictions)}
    # One thread: none is made again. Of two, one may be killed between a file and its line here: the files tell, above.
    assert {*made} <= wanted and (workers > 1 or sorted(made) == sorted(wanted))
    # When all is there, each starts again and finds it.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/r").rglob("*.*") if path.name != ".lock"}
    assert ended(launch(launcher[:2], file, checkpoint)) == [0, 0]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    # What changed is settled once.
    first = params.updated(infer_flip=True)
    file.write_text(first.to_yaml())
    assert ended(launch(launcher, file, checkpoint)) == [0] * len(launcher)
    again = tree(tmp_path / "runs/r")
    changed = {name for name in again if again[name] != found[name] and name.startswith("predictions")}
    assert "predictions/paper/test/stamp.json" in changed and len(changed) > 1 and again.keys() == found.keys()
