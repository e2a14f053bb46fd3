"""A training: the iteration of `carblib.step` from the first to the last, with its log, its checkpoints and its end.

A run lives in `runs/<run>/train/<variant>/`: `log.csv`, `reliability.csv`, `regions/`, `checkpoint.pt` (all
state, for resuming), `final.pt` (the network) and, written last, `done.json`. What a batch holds depends on
(seed, iteration) alone, so a run that is killed and resumed ends with the same weights as one that is not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from carblib import __version__
from carblib.base import files
from carblib.base.device import torch_device
from carblib.base.errors import CarbError, Interrupted
from carblib.base.interrupts import held_back
from carblib.base.progress import bar_options
from carblib.base.stamps import NAME, read_stamp, write_stamp
from carblib.data.batches import train_loader
from carblib.data.feature_cache import FeatureCache
from carblib.data.labels import ensure_labels, note_unlabelled, training_labels
from carblib.data.readers import note_stretching, open_split
from carblib.masker import Masker, build_masker
from carblib.network import build_network, load_weights
from carblib.params import Params
from carblib.step import Batch, Training, build, learning_rate, step
from carblib.training.log import TrainingLog, append_rows, check_tensorboard
from carblib.training.monitor import Monitor, watched_split
from carblib.training.state import bare, is_done, plain_state, read_checkpoint, training_stamp


@dataclass
class Shared:
    """What all variants of a run share and need not compute twice."""

    fabric: Fabric
    masker: Masker
    cache: FeatureCache | None
    monitor: Monitor | None


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
    shared = shared or share(params)
    training = assemble(params, shared)
    resume(training, folder)
    if training.fabric.is_global_zero and not (folder / NAME).exists():
        write_stamp(folder / NAME, training_stamp(params))
    try:
        run(training, folder, shared.monitor)
    except KeyboardInterrupt:
        save_checkpoint(training, folder)
        if training.fabric.is_global_zero:
            print(f"stopped at iteration {training.iteration}; {folder}/checkpoint.pt holds it: start again to go on")
        raise Interrupted from None  # a notebook shows one line for it, a command ends with 130
    return folder


def train_variants(params: Params, variants: Sequence[str]) -> list[Path]:
    """Train variants of a run one after the other; what they share is made once, and not at all if all are finished."""
    shared, folders = None, []
    for variant in variants:
        if shared is None and not is_done(params.run_dir / "train" / variant, params.variant(variant)):
            shared = share(params)
        folders.append(train(params, variant, shared))
    return folders


def start_fabric(params: Params) -> Fabric:
    """Start Lightning Fabric on the devices the parameters ask for; CarbError where they are not to be had."""
    accelerator = torch_device(params.device).type
    alone = f"-p devices 1 -p batch_size {params.batch_size * params.devices}"
    if accelerator == "cuda" and params.devices > torch.cuda.device_count():
        raise CarbError(
            f"devices: {params.devices} asked for, torch sees {torch.cuda.device_count()}; for one: {alone}"
        )
    if params.devices * params.num_nodes > 1 and "ipykernel" in sys.modules:
        every = params.command("train", "--variant", *params.variants, *["ceiling"] * params.ceiling)
        raise CarbError(
            f"devices: {params.devices} do not run inside a notebook; run {every} first, then the notebooks, which "
            f"take finished trainings up; or give one device: {alone}"
        )
    fabric = Fabric(
        accelerator=accelerator, devices=params.devices, num_nodes=params.num_nodes, precision=params.precision
    )
    fabric.launch()
    return fabric


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
    fabric = start_fabric(params)
    main, masker = fabric.is_global_zero, build_masker(params, fabric.device)
    cache = monitor = backbone = None
    if params.cache_features:
        backbone = build_network(params, masker.text.mean_per_class)
        every, mirrored = range(len(split)), params.flip > 0
        cache = FeatureCache(backbone, split, every, params.image_size, fabric.device, mirrored, show=main)
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
    """Iterate to the end: log, watch the validation images, keep checkpoints, write the result last."""
    params, fabric = training.params, training.fabric
    main = fabric.is_global_zero
    split = open_split(params, params.train_split)
    labels = training_labels(params, split)
    if main:
        note_unlabelled(labels, split.names)
        note_stretching(split.image(0), params.image_size)
    loader = fabric.setup_dataloaders(
        train_loader(params, split, labels, training.iteration, fabric.global_rank, fabric.world_size),
        use_distributed_sampler=False,
    )
    log, shown = TrainingLog(folder, training.iteration, params.tensorboard) if main else None, {}
    training.network.train()
    bar = tqdm(total=params.iterations, initial=training.iteration, desc=folder.name, disable=not main, **bar_options())
    with bar, held_back() as let_interrupt_through:
        for batch in loader:
            parts = step(training, batch)
            done, last = training.iteration, training.iteration == params.iterations
            scores = {}
            if monitor and (done % params.val_every == 0 or last or done == params.warmup):
                # The bare network: DistributedDataParallel's forward would wait for the other processes.
                with fabric.autocast():
                    scores = monitor.look(bare(training.network), done, folder)
                append_rows(folder / "region_weights.csv", weight_rows(training))
                training.network.train()
            if main and (done % params.log_every == 0 or last or scores):
                shown |= log.write(done, parts, learning_rate(params, done - 1), scores)
                bar.set_postfix(shown, refresh=False)
            bar.update()
            if main and (done % params.checkpoint_every == 0 or last):
                save_checkpoint(training, folder)
            let_interrupt_through()
    fabric.barrier()
    if main:
        log.close()
        finish(training, folder)


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
    }
    files.save_torch(folder / "checkpoint.pt", state)


def resume(training: Training, folder: Path) -> None:
    """Take up a checkpoint if there is one. Raises CarbError if it can't be read or belongs to other parameters."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return
    state = read_checkpoint(path, training.params)
    load_weights(bare(training.network), state["network"], str(path))
    training.optimizer.load_state_dict(state["optimizer"])
    training.loss.load_state_dict(state["loss"])
    training.iteration = state["iteration"]
    torch.set_rng_state(state["generator"])
    if state["cuda_generators"] and torch.cuda.device_count() == len(state["cuda_generators"]):
        torch.cuda.set_rng_state_all(state["cuda_generators"])
    if training.fabric.is_global_zero:
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
    files.write_json(
        folder / "done.json",
        {"stamp": read_stamp(folder / NAME).digest, "iteration": training.iteration, "version": __version__},
    )
