"""A training: the iteration of `carblib.step` from the first to the last, with its log, its checkpoints and its end.

A run lives in `runs/<run>/train/<variant>/`: `log.csv`, `reliability.csv`, `regions/`, `checkpoint.pt` (all
state, for resuming), `final.pt` (the network) and, written last, `done.json`. What a batch holds depends on
(seed, iteration) alone, so a run that is killed and resumed ends with the same weights as one that is not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from carblib import __version__
from carblib.base import files
from carblib.base.device import computing
from carblib.base.errors import CarbError, Interrupted
from carblib.base.interrupts import held_back
from carblib.base.locks import only_writer
from carblib.base.memory import lowering
from carblib.base.progress import bar_options
from carblib.base.stamps import NAME, read_stamp, write_stamp
from carblib.data.audit import note_stretching
from carblib.data.batches import TrainDataset, train_loader
from carblib.data.checks import check_split
from carblib.data.feature_cache import FeatureCache
from carblib.data.labels import ensure_labels, note_unlabelled, training_labels
from carblib.data.readers import open_split
from carblib.masker import Masker, build_masker
from carblib.network import build_network, load_weights
from carblib.params import Params
from carblib.step import Batch, Training, build, learning_rate, step
from carblib.training.launch import start_fabric
from carblib.training.log import TrainingLog, append_rows, check_tensorboard
from carblib.training.monitor import Monitor, watched_split
from carblib.training.state import PREVIOUS, bare, is_done, plain_state, read_checkpoint, training_stamp
from carblib.training.tables import TABLES, digests

MEMORY = "batch_size, crop, workers or image_size, or set cache_features: false"


@dataclass
class Shared:
    """What all variants of a run share and need not compute twice."""

    fabric: Fabric
    masker: Masker
    cache: FeatureCache | None
    monitor: Monitor | None


@lowering(MEMORY)
def train(params: Params, variant: str, shared: Shared | None = None, folder: Path | None = None) -> Path:
    """Train one variant of a run, resuming where an interrupted one stopped; returns its folder.

    variant: plain, glv, carb, paper, ours or ceiling (`Params.variant`). A finished variant with the same parameters is
    not trained again. `shared` (from `share`) saves work when several variants are trained in one process. Raises
    CarbError when the folder holds a run with other parameters.
    """
    params = params.variant(variant)
    folder = folder or params.run_dir / "train" / variant
    if is_done(folder, params):
        return folder
    if shared is None:
        check_taught(params)
        shared = share(params)
    training = assemble(params, shared)
    with only_writer(folder) if training.fabric.is_global_zero else nullcontext():
        resume(training, folder)
        if training.fabric.is_global_zero and training.iteration == 0:
            write_stamp(folder / NAME, training_stamp(params))
        run(training, folder, shared.monitor)
    return folder


def train_variants(params: Params, variants: Sequence[str]) -> list[Path]:
    """Train variants of a run one after the other; what they share is made once, and not at all if all are finished."""
    left = [name for name in variants if not is_done(params.run_dir / "train" / name, params.variant(name))]
    for name in left:
        check_taught(params.variant(name))
    if any(params.variant(name).supervision == "masks" for name in left):  # of the last, before the first begins
        check_split(params, open_split(params, params.train_split), masks=True)
    shared, started = share(params) if left else None, time.monotonic()
    for done, variant in enumerate(left):
        if shared.fabric.is_global_zero and len(left) > 1:
            minutes = (time.monotonic() - started) / 60 / max(done, 1) * (len(left) - done)
            ahead = f"; about {minutes:.0f} min left for all" if done else ""
            print(f"training {done + 1} of {len(left)}: {variant}{ahead}", flush=True)
        train(params, variant, shared)
    return [params.run_dir / "train" / name for name in variants]


def check_taught(params: Params) -> None:
    """Raise CarbError for pseudo-masks that are missing: told before minutes go into features, not after."""
    split = open_split(params, params.train_split)
    TrainDataset(params, split, training_labels(params, split))


@lowering(MEMORY)
def share(params: Params) -> Shared:
    """Load CLIP, and compute what does not change in training: frozen features, validation pseudo-masks."""
    check_tensorboard(params.tensorboard)
    if params.cache_features and params.backbone_weights == "random":
        raise CarbError(
            "cache_features: a random backbone differs each time; set backbone_weights, or cache_features: false"
        )
    split = open_split(params, params.train_split)
    watched = watched_split(params)  # before the processes start: an error must reach all of them
    if params.gate != "none":
        ensure_labels(params, split)
    check_split(params, split, masks=False)
    if watched:
        check_split(params, watched, masks=True)
    fabric = start_fabric(params)
    main, masker = fabric.is_global_zero, build_masker(params, fabric.device)
    cache = monitor = backbone = None
    if params.cache_features:
        backbone = build_network(params, masker.text.mean_per_class)
        every, mirrored = range(len(split)), params.flip > 0
        folder = params.run_dir / ".cache"
        with computing(fabric.device, params.precision):
            cache = FeatureCache(
                backbone, split, every, params.image_size, fabric.device, mirrored, folder, main, sharers=params.devices
            )
    if watched and main:
        monitor = Monitor(params, watched, masker, backbone, fabric.device)
    return Shared(fabric, masker, cache, monitor)


def assemble(params: Params, shared: Shared) -> Training:
    """Build a training that looks up cached features where there are any."""
    cache = shared.cache

    def features(batch: Batch) -> Tensor:
        return cache.crop(batch["index"], batch["flipped"], batch["box"], params.crop)

    return build(params, shared.fabric, shared.masker, features if cache else None)


def run(training: Training, folder: Path, monitor: Monitor | None) -> None:
    """Iterate to the end: log, watch the validation images, keep checkpoints, write the result last.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 end the iteration, save a checkpoint and raise Interrupted. Raises CarbError
    where the loss is not finite any more; the last good checkpoint stays.
    """
    params, fabric = training.params, training.fabric
    main = fabric.is_global_zero
    split = open_split(params, params.train_split)
    labels = training_labels(params, split)
    if main:
        note_unlabelled(labels, split.names)
        note_stretching(params, split)
    loader = train_loader(params, split, labels, training.iteration, fabric.global_rank, fabric.world_size)
    log, shown = TrainingLog(folder, training.iteration, params.tensorboard) if main else None, {}
    training.network.train()
    bar = tqdm(total=params.iterations, initial=training.iteration, desc=folder.name, disable=not main, **bar_options())
    first_bad = torch.full((), torch.inf, device=fabric.device)  # on the device: asking it every time would wait for it
    with bar, held_back() as stop_asked:
        for batch in loader:
            parts = step(training, batch)
            done, last = training.iteration, training.iteration == params.iterations
            first_bad = torch.where(parts.total.detach().isfinite(), first_bad, first_bad.clamp(max=done))
            stop = (
                stop_asked() if fabric.world_size == 1 else done % params.log_every == 0 and _any(fabric, stop_asked())
            )
            scores = {}
            if last or stop or done % params.log_every == 0 or done % params.checkpoint_every == 0:
                check_finite(first_bad, training, folder)
            if monitor and (done % params.val_every == 0 or last or done == params.warmup):
                # The bare network: DistributedDataParallel's forward would wait for the other processes.
                scores = monitor.look(bare(training.network), done, folder)
                append_rows(folder / "region_weights.csv", weight_rows(training))
                training.network.train()
            if main and (done % params.log_every == 0 or last or scores):
                shown |= log.write(done, parts, learning_rate(params, done - 1), scores)
                bar.set_postfix(shown, refresh=False)
            bar.update()
            if main and (done % params.checkpoint_every == 0 or last or stop):
                save_checkpoint(training, folder)
            if stop and not last:
                fabric.barrier()  # none ends before the first has saved
                if main:
                    print(f"stopped at iteration {done}; {folder}/checkpoint.pt holds it: start again to go on")
                raise Interrupted  # a notebook shows one line for it, a command ends with 130
    fabric.barrier()
    if main:
        log.close()
        finish(training, folder)


def _any(fabric: Fabric, asked: bool) -> bool:
    """Whether any process was asked to stop: all must stop at the same iteration."""
    return bool(fabric.all_reduce(torch.tensor(float(asked), device=fabric.device), reduce_op="sum") > 0)


def check_finite(first_bad: Tensor, training: Training, folder: Path) -> None:
    """Raise CarbError where the loss was not finite at an iteration (`first_bad`; inf = never), or a weight is not."""
    if not bool(torch.stack([weight.isfinite().all() for weight in training.network.parameters()]).all()):
        first_bad = first_bad.clamp(max=training.iteration)
    if bool(first_bad.isfinite()):
        kept = "the last good checkpoint is kept" if (folder / "checkpoint.pt").exists() else "nothing was saved"
        raise CarbError(
            f"{folder}: loss or weights are not finite at iteration {int(first_bad)}, {kept}; lower lr (now "
            f"{training.params.lr}), then train anew: {training.params.command('train', '-p', 'lr', '…', '--renew')}"
        )


def weight_rows(training: Training) -> list[dict]:
    """The noisy region's weight now, one row per class, or one for "all" where the classes share it (the paper)."""
    weights = training.loss.weights().tolist()
    names = training.params.class_set.names if len(weights) > 1 else ["all"]
    active = training.params.balancing and training.iteration > training.params.warmup
    return [
        {"iteration": training.iteration, "class": name, "weight": weight if active else None}
        for name, weight in zip(names, weights, strict=True)
    ]


def save_checkpoint(training: Training, folder: Path) -> None:
    """Write all state atomically: iteration, network, optimiser, region weights' queues, random generators."""
    if not training.fabric.is_global_zero:
        return
    state = {
        "stamp": read_stamp(folder / NAME).digest,
        "params": training.params.model_dump(mode="json"),
        "iteration": training.iteration,
        "network": plain_state(training.network),
        "optimizer": training.optimizer.state_dict(),
        "loss": training.loss.state_dict(),
        "generator": torch.get_rng_state(),
        "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "tables": {name: (folder / name).read_text("utf-8") for name in TABLES if (folder / name).exists()},
    }
    path = folder / "checkpoint.pt"
    if path.exists():
        os.replace(path, folder / PREVIOUS)  # kept for the day the newest is damaged
    files.save_torch(path, state)


def resume(training: Training, folder: Path) -> None:
    """Take up a checkpoint if there is one. Raises CarbError if it can't be read or belongs to other parameters."""
    if not (folder / "checkpoint.pt").exists() and not (folder / PREVIOUS).exists():
        return
    state, path = read_checkpoint(folder, training.params)
    load_weights(bare(training.network), state["network"], str(path))
    training.optimizer.load_state_dict(state["optimizer"])
    training.loss.load_state_dict(state["loss"])
    training.iteration = state["iteration"]
    torch.set_rng_state(state["generator"])
    if state["cuda_generators"] and torch.cuda.device_count() == len(state["cuda_generators"]):
        torch.cuda.set_rng_state_all(state["cuda_generators"])
    if training.fabric.is_global_zero:
        for name, text in state["tables"].items():
            files.write_text(folder / name, text)
        print(f"{path}: resuming at iteration {training.iteration}")


def finish(training: Training, folder: Path) -> None:
    """Write the trained network and, last of all, the marker that the run is complete."""
    params = training.params
    files.save_torch(
        folder / "final.pt",
        {
            "params": params.model_dump(mode="json"),
            "iteration": training.iteration,
            "network": plain_state(training.network),
        },
    )
    about = {"iteration": training.iteration, "version": __version__, "tables": digests(folder)}
    files.write_json(folder / "done.json", {"stamp": read_stamp(folder / NAME).digest} | about)
