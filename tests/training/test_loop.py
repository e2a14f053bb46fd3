"""Trainings of a few iterations on six tiny scenes: exact resumption, weak supervision for real, files and errors."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import REPOSITORY
from small import small_params
from trained import SIZE, assert_same_weights, rows, weights

from carblib import step
from carblib.base import files, interrupts
from carblib.base.errors import CarbError
from carblib.base.stamps import NAME, write_stamp
from carblib.data import feature_cache
from carblib.data.feature_cache import FeatureCache
from carblib.data.labels import ensure_labels
from carblib.data.readers import open_split
from carblib.params import Params
from carblib.stages.pseudo_masks import export_masks
from carblib.training import loop as train
from carblib.training.launch import check_launched
from carblib.training.log import LOG_COLUMNS
from carblib.training.state import bare, is_done, load_trained, training_stamp
from carblib.transforms import load_sized
from carblib.variants import TRAINED

UNFROZEN = {"backbone_weights": "random", "freeze_backbone": False, "cache_features": False}
# The killed and the uninterrupted run must compute alike: the same number of threads, hence the same sums.
KILLED = """
import os, signal, sys, torch
from carblib.training import loop as train
from carblib.params import load_params

torch.set_num_threads(int(sys.argv[1]))
step = train.step

def step_or_die(training, batch):
    if training.iteration == 6:  # the checkpoint is of iteration 4; what iterations 5 and 6 did is lost
        os.kill(os.getpid(), signal.SIGKILL)
    return step(training, batch)

train.step = step_or_die
for file in sys.argv[2:]:
    child = os.fork()
    if not child:
        train.train(load_params(file), "paper")
        os._exit(0)
    print("ended by signal", os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


# --- stopping and resuming -------------------------------------------------------------------------------------------
def test_killed_and_resumed_ends_like_uninterrupted(params: Params, tmp_path: Path) -> None:
    cases = [params.updated(run="cached"), params.updated(run="unfrozen", region_weight="class", **UNFROZEN)]
    paths = [tmp_path / f"{case.run}.yaml" for case in cases]
    for path, case in zip(paths, cases, strict=True):
        files.write_text(path, case.to_yaml())
    command = [sys.executable, "-c", KILLED, str(torch.get_num_threads()), *map(str, paths)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert killed.stdout.count(f"ended by signal {signal.SIGKILL.value}") == 2, killed.stderr
    for case in cases:
        stopped = case.run_dir / "train" / "paper"
        assert files.load_torch(stopped / "checkpoint.pt")["iteration"] == 4
        assert not (stopped / "final.pt").exists() and not (stopped / "done.json").exists()
        assert len(rows(stopped / "log.csv")) == 6, "two rows of lost iterations, to be replaced"
        whole = train.train(case, "paper", folder=case.run_dir / "whole")
        assert train.train(case, "paper") == stopped

        assert_same_weights(whole, stopped)
        assert len(weights(whole)) > 10
        for name, count in (("log.csv", 8), ("reliability.csv", 3 * 12)):
            assert rows(whole / name, "seconds") == rows(stopped / name, "seconds")
            assert len(rows(whole / name)) == count
        assert rows(whole / "region_weights.csv") == rows(stopped / "region_weights.csv")
        balanced = [float(row["weight"]) for row in rows(whole / "log.csv")]
        assert np.isnan(balanced[:2]).all() and len(set(balanced[2:])) > 1, "the queue of λ takes part"
        seconds = [float(row["seconds"]) for row in rows(stopped / "log.csv")]
        assert seconds == sorted(seconds), "time goes on where it stopped"


def test_interrupt_waits_for_the_iteration_and_loses_nothing(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, compute = train.share(params), step.crop_logits
    whole = train.train(params, "paper", shared, params.run_dir / "whole")

    def interrupted(training: step.Training, batch: dict) -> torch.Tensor:
        if training.iteration == 4:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of an iteration
        return compute(training, batch)

    folder = params.run_dir / "train" / "paper"
    capsys.readouterr()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(step, "crop_logits", interrupted)
        train.train(params, "paper", shared)
    said = capsys.readouterr().out
    assert "stopped at iteration 5" in said and str(folder / "checkpoint.pt") in said and "start again" in said
    assert files.load_torch(folder / "checkpoint.pt")["iteration"] == 5
    train.train(params, "paper", shared)
    assert "resuming at iteration 5" in capsys.readouterr().out
    assert_same_weights(whole, folder)


def test_interrupts_are_only_held_back_inside_the_block() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts.held_back() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
    assert signal.getsignal(signal.SIGINT) is before


def test_finished_run_is_not_repeated_and_other_parameters_are_refused(params: Params) -> None:
    params = params.updated(iterations=2, val_every=0, checkpoint_every=1)
    shared = train.share(params)
    folder = train.train(params, "paper", shared)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert train.train(params.updated(workers=1, bootstrap=3), "paper") == folder, "not even CLIP is loaded"
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(CarbError, match=r"paper: trained on other things: lr 0.05 → 0.1, seed 0 → 3; to train anew"):
        train.train(params.updated(lr=0.1, seed=3), "paper", shared)
    (folder / "done.json").unlink()
    with pytest.raises(CarbError, match="trained on other things: carb_coeff 1.0 → 2.0;"):
        train.train(params.updated(carb_coeff=2.0), "paper", shared)
    (folder / "stamp.json").unlink()
    with pytest.raises(CarbError, match=r"paper: holds a training, but no stamp.json says what of; move it"):
        train.train(params, "paper", shared)


# --- weak supervision ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["dual", "single"])
def test_deleting_every_training_mask_changes_nothing(params: Params, scenes: Path, tmp_path: Path, path: str) -> None:
    params = params.updated(path=path, iterations=4)
    labels = ensure_labels(params, open_split(params, "train"))
    shutil.copytree(scenes, tmp_path / "bare", ignore=shutil.ignore_patterns("trainannot"))
    assert not list((tmp_path / "bare").glob("train*/**/*annot*"))
    trained = []
    for run, root in (("with", scenes), ("without", tmp_path / "bare")):
        case = params.updated(run=run, root=str(root), labels=str(labels))
        assert open_split(case, "train").has_masks == (run == "with")
        if path == "single":
            export_masks(case, "train")
        trained.append(train.train(case, "paper"))
    assert_same_weights(*trained)
    with pytest.raises(CarbError, match="mask"):
        train.train(case, "ceiling")


# --- every kind of training, and what it leaves ----------------------------------------------------------------------
@pytest.mark.parametrize("path", ["dual", "single"])
def test_every_variant_trains_and_leaves_its_files(params: Params, path: str) -> None:
    params = params.updated(path=path, iterations=4, checkpoint_every=4)
    with pytest.raises(CarbError, match="make them with carb masks "):
        train.train(params.updated(path="single"), "plain")
    if path == "single":
        export_masks(params, "train")
    shared, names = train.share(params), params.class_set.names
    for variant in TRAINED:
        folder, own = train.train(params, variant, shared), params.variant(variant)
        log = rows(folder / "log.csv")
        assert list(log[0]) == LOG_COLUMNS and [row["iteration"] for row in log] == ["1", "2", "3", "4"]
        for row in log:
            number = int(row["iteration"])
            assert all(np.isfinite(float(row[key])) for key in ("loss", "consistent", "noisy", "lr"))
            assert np.isfinite(float(row["weight"])) == (own.balancing and number > own.warmup)
            assert 0 <= float(row["consistent_share"]) <= 1
            assert (float(row["local_consistent"]) + float(row["local_noisy"]) > 0) == own.local_view
            assert (row["val_miou"] != "") == (number in (2, 4)), "after the warm-up and at the end"
        kept = rows(folder / "reliability.csv")
        assert {row["iteration"] for row in kept} == {"2", "4"}
        assert [row["class"] for row in kept[:12]] == [*names, "all"]
        assert list(kept[0])[2:] == [
            "share_consistent", "precision_consistent", "precision_noisy", "predicted_share", "pixels"
        ]  # fmt: skip
        region_weights = rows(folder / "region_weights.csv")
        assert {row["class"] for row in region_weights} == set(names if variant == "ours" else ["all"])
        assert all((row["weight"] != "") == (own.balancing and row["iteration"] == "4") for row in region_weights)
        (maps,) = (folder / "regions" / "000004").glob("*.npz")
        with np.load(maps) as arrays:
            assert arrays["pseudo_mask"].shape == arrays["prediction"].shape == SIZE
            assert (arrays["consistent"] == (arrays["pseudo_mask"] == arrays["prediction"])).all()
        assert files.read_json(folder / "done.json")["iteration"] == 4
    # With true masks the labels are right everywhere, by both paths; the weak variants differ from one another.
    finals = [weights(params.run_dir / "train" / variant) for variant in TRAINED]
    key = next(name for name in finals[0] if name.startswith("head") and name.endswith("weight"))
    assert len({float(final[key].double().sum()) for final in finals}) == len(TRAINED)


def test_variants_share_what_they_can_and_finished_ones_cost_nothing(params: Params, monkeypatch) -> None:
    params, made, share = params.updated(iterations=2, warmup=1, val_every=0), [], train.share
    monkeypatch.setattr(train, "share", lambda own: made.append(own.run) or share(own))
    train.train_variants(params, ["plain"])
    folders = train.train_variants(params, ["plain", "glv", "carb"])
    assert made == [params.run] * 2 and [folder.name for folder in folders] == ["plain", "glv", "carb"]
    assert train.train_variants(params, ["carb", "plain"]) == [folders[2], folders[0]] and len(made) == 2
    assert all((folder / "final.pt").is_file() for folder in folders)


def test_workers_do_not_change_the_result(params: Params) -> None:
    params = params.updated(iterations=3, val_every=0, crop=(48, 64), patch=(32, 32))
    shared = train.share(params)
    trained = [train.train(params.updated(run=f"workers{n}", workers=n), "paper", shared) for n in (0, 2)]
    assert_same_weights(*trained)
    # … nor does it matter that another training went before; only the seed does.
    other = train.train(params.updated(run="seed", seed=1), "paper", shared)
    first, second = weights(trained[0]), weights(other)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_trained_network_is_loaded_with_equal_logits(params: Params) -> None:
    params = params.updated(iterations=3, val_every=0)
    training = train.assemble(params.variant("paper"), train.share(params))
    write_stamp(params.run_dir / "train" / "paper" / NAME, training_stamp(params.variant("paper")))
    train.run(training, params.run_dir / "train" / "paper", None)
    network, loaded = load_trained(params.run_dir / "train" / "paper" / "final.pt")
    assert loaded == params.variant("paper") and not network.training
    image = load_sized(open_split(params, "val").image(0), SIZE)[None]
    with torch.inference_mode():
        expected = bare(training.network).eval()(image)
        assert torch.equal(network(image), expected)
        assert expected.shape == (1, len(params.class_set), 8, 16) and expected.std() > 0
    train.save_checkpoint(training, params.run_dir / "train" / "paper")
    assert torch.equal(load_trained(params.run_dir / "train" / "paper" / "checkpoint.pt")[0](image), expected)


def test_learning_rate_is_the_polynomial_decay_of_the_method() -> None:
    params = small_params(lr=0.005, lr_min=1e-4, poly_power=0.9, iterations=100, warmup=0)
    assert step.learning_rate(params, 0) == pytest.approx(0.005)
    assert step.learning_rate(params, 50) == pytest.approx(1e-4 + 0.0049 * 0.5**0.9)
    assert step.learning_rate(params, 99) == pytest.approx(1e-4 + 0.0049 * 0.01**0.9)
    assert step.learning_rate(params, 100) == pytest.approx(1e-4)


# --- cached features -------------------------------------------------------------------------------------------------
def test_cached_features_are_those_of_the_image_and_its_mirror(params: Params) -> None:
    shared, split = train.share(params), open_split(params, "train")
    network = train.build_network(params, shared.masker.text.mean_per_class).eval()
    image = load_sized(split.image(3), SIZE)
    with torch.inference_mode():
        expected = network.features(torch.stack([image, image.flip(2)])).to(torch.bfloat16).float()
    index, flipped = torch.tensor([3, 3]), torch.tensor([False, True])
    whole = shared.cache.crop(index, flipped, torch.zeros(2, 2, dtype=torch.long), SIZE).float()
    assert torch.allclose(whole, expected, rtol=0.02, atol=0.02)
    part = shared.cache.crop(index, flipped, torch.tensor([[16, 8], [0, 64]]), (40, 64))
    assert torch.equal(part[0], whole[0, :, 2:7, 1:9]) and torch.equal(part[1], whole[1, :, 0:5, 8:16])
    single = FeatureCache(network, split, [3], SIZE, torch.device("cpu"), False, params.run_dir)
    assert torch.allclose(single.whole(0)[0], expected[0], rtol=0.02, atol=0.02)


def test_features_beyond_memory_lie_in_a_file_that_goes_with_the_process(params, monkeypatch, capsys) -> None:
    folder, two, start = params.run_dir / ".cache", params.updated(devices=2), train.start_fabric
    monkeypatch.setattr(train, "start_fabric", lambda _: start(params))
    whole = train.share(params).cache.values
    monkeypatch.setattr(feature_cache, "available", lambda: 3 * whole.nbytes)
    train.share(params)
    assert not folder.exists()
    shared = train.share(two)  # each would take half of what is there
    assert torch.equal(shared.cache.values, whole)
    assert f"{folder}: " in capsys.readouterr().out and not list(folder.iterdir())
    with monkeypatch.context() as patch:
        patch.delattr(feature_cache.os, "posix_fallocate", raising=False)  # macOS
        assert torch.equal(train.share(two).cache.values, whole)
    monkeypatch.setattr(
        feature_cache.os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "full")), raising=False
    )
    with pytest.raises(CarbError, match="no room for .* GB of features .*cache_features: false"):
        train.share(two)


def test_memory_that_ran_out_is_one_line_with_the_keys_to_lower(params, monkeypatch) -> None:
    def greedy(*_) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr(step, "crop_logits", greedy)
    with pytest.raises(CarbError, match="^memory ran out; lower batch_size, crop"):
        train.train(params, "plain")


# --- mistakes --------------------------------------------------------------------------------------------------------
def one_line(error: pytest.ExceptionInfo[CarbError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_asking_for_cuda_where_there_is_none(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CarbError, match="device: cuda") as error:
        train.train(params.updated(device="cuda"), "plain")
    assert "device: auto" in one_line(error)


def test_damaged_checkpoint_is_named(params: Params) -> None:
    params = params.updated(iterations=2, val_every=0)
    shared = train.share(params)
    folder = train.train(params, "paper", shared)
    (folder / "done.json").unlink()
    good = (folder / "checkpoint.pt").read_bytes()
    files.write_bytes(folder / "checkpoint.pt", good[: len(good) // 2])
    with pytest.raises(CarbError, match=r"checkpoint\.pt: truncated") as error:
        train.train(params, "paper", shared)
    one_line(error)
    files.save_torch(folder / "checkpoint.pt", {"network": torch.zeros(1)})
    with pytest.raises(CarbError, match=r"checkpoint\.pt: is no checkpoint of a training; move it elsewhere") as error:
        train.train(params, "paper", shared)
    one_line(error)
    with pytest.raises(CarbError, match=r"checkpoint\.pt: is no checkpoint of carblib"):
        load_trained(folder / "checkpoint.pt")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state["network"]["head.aspp_modules.0.conv.weight"].fill_(np.nan), "not finite"),
        (lambda state: state["network"].pop("head.aspp_modules.0.conv.weight"), "it lacks head.aspp_modules.0.conv"),
        (lambda state: state["network"].pop("text"), "text embeddings"),
        (lambda state: state["network"].update(text=torch.zeros(3)), "text embeddings"),
        (lambda state: state.update(network=[1]), "text embeddings"),
        (lambda state: state["params"].update(lr="fast"), "'lr' cannot be 'fast'"),
        (lambda state: state["params"].update(lrr=1), "'lrr' is no parameter"),
    ],
)
def test_damaged_weights_are_refused_in_one_line(params: Params, damage, message: str) -> None:
    params = params.updated(iterations=1, warmup=0, val_every=0)
    path = train.train(params, "plain") / "final.pt"
    load_trained(path)
    state = files.load_torch(path)
    damage(state)
    files.save_torch(path, state)
    with pytest.raises(CarbError, match=message) as error:
        load_trained(path)
    assert str(path) in one_line(error)


def test_a_training_knows_the_labels_and_masks_it_was_taught(params: Params) -> None:
    params = params.updated(iterations=2, warmup=1, val_every=0, checkpoint_every=1, path="single")
    export_masks(params, "train")
    folder = train.train(params, "plain")
    labels = ensure_labels(params, open_split(params, "train"))
    before = labels.read_text()
    labels.write_text(before.replace("\n000001,1", "\n000001,0").replace("\n000002,1", "\n000002,0"))
    assert labels.read_text() != before
    with pytest.raises(CarbError, match="trained on other things: 2 images changed; to train anew: carb train "):
        train.train(params, "plain")
    done = folder / "done.json"
    done.rename(folder / "away.json")
    with pytest.raises(CarbError, match="trained on other things: 2 images changed;"):
        train.train(params, "plain")
    (folder / "away.json").rename(done)
    plain = params.variant("plain")
    labels.write_text(before)
    assert is_done(folder, plain)
    with pytest.raises(CarbError, match=r'masker "value_path" → "naclip", other pseudo-masks;'):
        is_done(folder, plain.updated(masker="naclip"))
    assert is_done(folder, plain.updated(root=str(params.run_dir / "nowhere"))), "results copied without their data"
    with pytest.raises(CarbError, match="lr 0.05 → 0.1;"):
        is_done(folder, plain.updated(root=str(params.run_dir / "nowhere"), lr=0.1))
    (folder / "final.pt").unlink()
    assert not is_done(folder, plain)


def test_more_devices_than_there_are_or_in_a_notebook(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", os)
    with pytest.raises(CarbError, match="do not run inside a notebook; .*-p devices 1 -p batch_size 4") as error:
        train.share(params.updated(devices=2, batch_size=2))
    one_line(error)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(CarbError, match="devices: 2 asked for, torch sees 1") as error:
        train.share(params.updated(devices=2, batch_size=2, device="cuda"))
    one_line(error)


@pytest.mark.parametrize("gate", ["labels", "none"])
def test_the_watched_region_is_gated_as_the_training(params: Params, gate: str) -> None:
    monitor = train.share(params.updated(gate=gate)).monitor
    assert all(labels.all() for labels in monitor.labels) == (gate == "none")


def test_parameters_that_cannot_be_watched_or_cached(params: Params, tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(CarbError, match="cache_features: a random backbone"):
        train.share(params.updated(backbone_weights="random"))
    shutil.copytree(scenes, tmp_path / "bare", ignore=shutil.ignore_patterns("valannot"))
    with pytest.raises(CarbError, match="'val' has no masks to watch the training with; set val_every: 0"):
        train.share(params.updated(root=str(tmp_path / "bare")))


# --- several processes -----------------------------------------------------------------------------------------------
SPY = """
import os, signal, sys
import torch
from carblib.__main__ import main
from carblib.training import loop as train
step = train.step

def spy(training, batch):
    parts = step(training, batch)
    gradients = [p.grad for p in training.network.parameters() if p.grad is not None]
    told = torch.stack([*vars(parts).values()]).nan_to_num()
    seen = [told, training.loss.weights(), torch.cat([g.flatten() for g in gradients])]
    if training.fabric.is_global_zero:
        torch.save(seen, f"{training.params.run}.{training.iteration}.pt")
        if training.iteration == int(os.environ.get("STOP_AT", 0)):
            os.kill(os.getpid(), signal.SIGTERM)
    return parts

train.step = spy
if __name__ == "__main__":
    main()
"""
# What srun does of a job's tasks on one machine, and the command they run.
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do echo "srun $1"; shift; done
export SLURM_STEP_NUM_TASKS=2 SLURM_NODEID=0
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks="$tasks $!"; done
for task in $tasks; do wait $task || code=$?; done
exit $code
"""
PROGRAMS = {"srun": SRUN, "scontrol": '#!/bin/bash\necho scontrol "$@"\n'}
BATCH = {"SLURM_JOB_NAME": "carb", "SLURM_JOB_ID": "9812", "SLURM_NNODES": "1", "SLURM_PROCID": "0"}


def free_port() -> str:
    """A port below those that the system hands out, so that nobody is given it before it is used."""
    for port in random.sample(range(20000, 30000), 50):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError("no port is free")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_processes_of_any_launcher_and_number_train_as_one_with_the_whole_batch(params: Params, tmp_path: Path) -> None:
    """Ten iterations of two processes and two of one equal twelve of one: Fabric, torchrun, srun, a job of one task."""
    # The head alone is trained: through a deep backbone, batch statistics amplify float32's rounding beyond 1e-5.
    own = params.updated(
        iterations=12, val_every=0, checkpoint_every=99, sync_bn=True, cache_features=False, clip="small"
    )
    files.write_text(tmp_path / "seen.py", SPY)
    files.write_text(tmp_path / "tiny.yaml", own.to_yaml())
    programs = PROGRAMS | {"carb": f'#!/bin/bash\nexec "{sys.executable}" seen.py "$@"\n'}
    for name, text in programs.items():
        files.write_text(tmp_path / "bin" / name, text)
        (tmp_path / "bin" / name).chmod(0o755)

    def train_with(launcher: str, run: str, devices: int, ends: int, **environment: str) -> str:
        more = f"-p run {run} -p batch_size {4 // devices}" + f" -p devices {devices}" * ("slurm" not in launcher)
        command = [
            *launcher.split(),
            *("train tiny.yaml" if "slurm" not in launcher else "tiny.yaml").split(),
            *more.split(),
        ]
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600,
                              env=os.environ | {"PATH": path, "MASTER_PORT": free_port()} | environment)  # fmt: skip
        assert done.returncode == ends, done.stderr
        return done.stdout

    train_with("carb", "one", 1, 0)
    said = train_with("carb", "two", 2, 130, STOP_AT="3")
    assert said.count("stopped at iteration 3") == 1, "two processes, one of which Fabric started"
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 seen.py"
    assert "stopped at iteration 5" in train_with(torchrun, "two", 2, 1, STOP_AT="5")
    tasks = BATCH | {"SLURM_CPUS_PER_TASK": "1"}
    tasks |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "localhost"}
    script = f"bash {REPOSITORY / 'params' / 'slurm' / 'one_node.sh'}"
    said = train_with(script, "two", 2, 130, **tasks, STOP_AT="10")
    assert said.count("resuming at iteration 5") == 1 and "scontrol requeue 9812" in said
    assert "srun --wait=600\nsrun --cpus-per-task=1\n" in said
    said = train_with("carb", "two", 1, 0, **BATCH, SLURM_NTASKS="1")
    assert said.count("resuming at iteration 10") == 1

    for iteration in range(1, 13):
        alone, together = (torch.load(tmp_path / f"{run}.{iteration}.pt", weights_only=True) for run in ("one", "two"))
        for what, a, b in zip(("loss", "weight", "gradient"), alone, together, strict=True):
            assert float((a - b).norm() / a.norm()) < 1e-5, (iteration, what)
    one, two = (own.run_dir.parent / run / "train" / "paper" for run in ("one", "two"))
    assert len(rows(two / "log.csv")) == 12
    first, second = weights(one), weights(two)
    assert all(float((first[name] - second[name]).double().norm()) <= 1e-5 * float(first[name].double().norm())
               for name in first)  # fmt: skip


def test_what_number_of_processes_a_training_goes_on_with(params: Params) -> None:
    params = params.updated(iterations=2, val_every=0, checkpoint_every=1, batch_size=4).variant("plain")
    folder = train.train(params, "plain")
    shared = {"sync_bn": True}
    for same in ({"devices": 2, "batch_size": 2}, {"devices": 2, "num_nodes": 2, "batch_size": 1}, {}):
        assert is_done(folder, params.updated(**shared, **same))
    why = (
        r"batch_size 4 → 2, devices 1 → 2 \(with sync_bn: true, and no official_loss, their number would not matter\);"
    )
    with pytest.raises(CarbError, match=why):
        is_done(folder, params.updated(devices=2, batch_size=2))
    with pytest.raises(CarbError, match="batch_size 4 → 8; to train anew"):
        is_done(folder, params.updated(devices=2, batch_size=4, **shared))
    with pytest.raises(CarbError, match="devices 1 → 2"):
        is_done(folder, params.updated(devices=2, batch_size=2, official_loss=True, **shared))


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}
ONE = BATCH | {"SLURM_NTASKS": "1"}
TWO = BATCH | {"SLURM_NTASKS": "2"}
FOUR = BATCH | {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "words"),
    [
        ({}, 2, 2, ""),  # Fabric starts them itself
        (TORCHRUN, 2, 2, ""),
        (TORCHRUN | ONE, 2, 2, ""),
        (TORCHRUN, 1, 1, "torchrun started 2 on 2; start torchrun --nproc-per-node 1 --nnodes 1, or give -p devices 2"),
        (ONE, 1, 1, ""),
        (ONE, 2, 1, "SLURM started 1 on 1; write #SBATCH --nodes=1 --ntasks-per-node=2, and srun, or give"),
        (FOUR, 2, 2, ""),
        (FOUR, 4, 1, "devices: 4 on num_nodes: 1 asked for, SLURM started 2 on 2"),
        (TWO, 2, 1, "SLURM gave this job 2 tasks, but this is not one of srun's; write: srun carb"),
        (TWO | {"SLURM_JOB_NAME": "bash"}, 2, 1, ""),
    ],
)  # fmt: skip
def test_a_launchers_processes_are_those_asked_for(params, monkeypatch, environment, devices, nodes, words) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    params = params.updated(devices=devices, num_nodes=nodes)
    if not words:
        return check_launched(params)
    with pytest.raises(CarbError) as error:
        check_launched(params)
    assert words in one_line(error)
