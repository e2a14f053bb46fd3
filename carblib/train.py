"""Training: warm-up, then consistency-aware region balancing, over global and local views (method, sections 4 and 5).

One iteration: draw a batch of crops; take the global pseudo-mask from disk (single path) or from CLIP (dual path); draw
one local view and let CLIP zoom into it; run the network once; one loss for both views and both regions.

A run lives in ``runs/<run>/train/<variant>/``: ``log.csv``, ``reliability.csv``, ``regions/``, ``checkpoint.pt`` (all
state, for resuming), ``final.pt`` (the network) and, written last, ``done.json``. What a batch holds depends on
(seed, iteration) alone, so a run that is killed and resumed ends with the same weights as one that is not.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn
from tqdm import tqdm

from carblib import __version__, errors, files
from carblib.cache import FeatureCache
from carblib.data import mix_seed, train_loader
from carblib.errors import CarbError, Interrupted
from carblib.infer import torch_device
from carblib.interrupts import held_back
from carblib.labels import ensure_labels, training_labels
from carblib.loss import LossParts, RegionBalancedLoss, build_loss
from carblib.masker import Masker, build_masker
from carblib.monitor import Monitor, append_rows, watched_split
from carblib.network import build_network, load_weights
from carblib.params import VARIANTS, Params, add_arguments, from_arguments
from carblib.progress import bar_options
from carblib.readers import open_split
from carblib.scenes import ensure_scenes
from carblib.training_log import TrainingLog, check_tensorboard
from carblib.training_state import bare, dependencies, is_done, plain_state, read_checkpoint
from carblib.transforms import note_stretching
from carblib.views import LocalView, local_pseudo_mask, sample_local_view


@dataclass
class Shared:
    """What all variants of a run share and need not compute twice."""

    fabric: Fabric
    masker: Masker
    cache: FeatureCache | None
    monitor: Monitor | None


@dataclass
class Training:
    """Everything one iteration needs; network, optimizer, loss and iteration are what a checkpoint holds."""

    params: Params
    shared: Shared
    folder: Path
    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: RegionBalancedLoss
    iteration: int = 0


def train(params: Params, variant: str, shared: Shared | None = None, folder: Path | None = None) -> Path:
    """Train one variant of a run, resuming where an interrupted one stopped; returns its folder.

    variant: plain, glv, carb, full or ceiling (`Params.variant`). A finished variant with the same parameters is not
    trained again. `shared` (from `share`) saves work when several variants are trained in one process. Raises CarbError
    when the folder holds a run with other parameters.
    """
    params = params.variant(variant)
    folder = folder or params.run_dir / "train" / variant
    if is_done(folder, params):
        return folder
    training = build(params, shared or share(params), folder)
    resume(training)
    try:
        run(training)
    except KeyboardInterrupt:
        save_checkpoint(training)
        if training.shared.fabric.is_global_zero:
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
    accelerator = torch_device(params).type
    alone = f"-p devices 1 -p batch_size {params.batch_size * params.devices}"
    if accelerator == "cuda" and params.devices > torch.cuda.device_count():
        raise CarbError(
            f"devices: {params.devices} asked for, torch sees {torch.cuda.device_count()}; for one: {alone}"
        )
    if params.devices * params.num_nodes > 1 and "ipykernel" in sys.modules:
        raise CarbError(
            f"devices: {params.devices} do not run inside a notebook; run python -m carblib.train with every variant "
            f"first, then the notebooks, which take finished trainings up; or give one device: {alone}"
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


def build(params: Params, shared: Shared, folder: Path) -> Training:
    """Assemble network, optimiser and loss for a run that starts at iteration 0."""
    fabric = shared.fabric
    seed_everything(params.seed, workers=True, verbose=False)
    network = build_network(params, shared.masker.text.mean_per_class)
    if params.sync_bn:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, params.lr, momentum=params.momentum, weight_decay=params.weight_decay)
    network, optimizer = fabric.setup(torch.compile(network) if params.compile else network, optimizer)
    network.mark_forward_method("classify")
    loss = build_loss(params).to(fabric.device)
    return Training(params, shared, folder, network, optimizer, loss)


# --- one iteration ---------------------------------------------------------------------------------------------------
def step(training: Training, batch: dict[str, Tensor]) -> LossParts:
    """Run one iteration on a batch and return the parts of its loss."""
    params, fabric = training.params, training.shared.fabric
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(params, training.iteration)
    with fabric.autocast(), torch.no_grad():
        global_mask = global_pseudo_mask(training, batch)
        view, local_mask = local_view(training, batch)
    parts = training.loss(
        crop_logits(training, batch),
        global_mask,
        batch["labels"],
        training.iteration,
        valid=batch["valid"],
        view=view,
        local_mask=local_mask,
        reduce=mean_over(fabric),
    )
    training.optimizer.zero_grad(set_to_none=True)
    fabric.backward(parts.total)
    training.optimizer.step()
    training.iteration += 1
    return parts


def global_pseudo_mask(training: Training, batch: dict[str, Tensor]) -> Tensor:
    """The global view's pseudo-mask M_G (B, H, W): from disk (single path) or from CLIP now (dual path)."""
    if training.params.supervision == "masks" or training.params.path == "single":
        return batch["mask"]
    return training.shared.masker(batch["clip_image"], batch["labels"], training.params.crop)


def local_view(training: Training, batch: dict[str, Tensor]) -> tuple[LocalView | None, Tensor | None]:
    """Draw this iteration's local view and let CLIP name its pixels: (view, M_L (B, h, w)), or nothing without it."""
    params = training.params
    if not params.local_view:
        return None, None
    number = training.iteration * training.shared.fabric.world_size + training.shared.fabric.global_rank
    generator = torch.Generator().manual_seed(mix_seed(params.seed, 2, number))
    view = sample_local_view(
        len(batch["labels"]), params.crop, params.patch, params.patch_rate, params.patch_offset, generator,
        params.official_views,
    )  # fmt: skip
    return view, local_pseudo_mask(training.shared.masker, batch["clip_image"], batch["labels"], view)


def crop_logits(training: Training, batch: dict[str, Tensor]) -> Tensor:
    """Logits (B, C, h, w) of a batch of crops, by the whole network or by its head on cached features."""
    if training.shared.cache is None:
        return training.network(batch["image"])
    features = training.shared.cache.crop(batch["index"], batch["flipped"], batch["box"], training.params.crop)
    return training.network.classify(features.to(training.shared.fabric.device).float())


def learning_rate(params: Params, iteration: int) -> float:
    """Polynomial decay from lr to lr_min (method, section 6)."""
    left = 1 - iteration / params.iterations
    return params.lr_min + (params.lr - params.lr_min) * left**params.poly_power


def mean_over(fabric: Fabric) -> Callable[[Tensor], Tensor]:
    """The mean of a tensor over all processes, so that every GPU uses the same region weight."""
    if fabric.world_size == 1:
        return lambda value: value
    return lambda value: fabric.all_reduce(value, reduce_op="mean")


# --- the loop, its log and its checkpoints ---------------------------------------------------------------------------
def run(training: Training) -> None:
    """Iterate to the end: log, watch the validation images, keep checkpoints, write the result last."""
    params, fabric, folder = training.params, training.shared.fabric, training.folder
    monitor = training.shared.monitor
    main = fabric.is_global_zero
    split = open_split(params, params.train_split)
    labels = training_labels(params, split)
    if main:
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
                save_checkpoint(training)
            let_interrupt_through()
    fabric.barrier()
    if main:
        log.close()
        finish(training)


def weight_rows(training: Training) -> list[dict]:
    """The noisy region's weight now, one row per class, or one for "all" where the classes share it (the paper)."""
    weights = training.loss.weights().tolist()
    names = training.params.class_set.names if len(weights) > 1 else ["all"]
    active = training.params.balancing and training.iteration > training.params.warmup
    return [
        {"iteration": training.iteration, "class": name, "weight": weight if active else None}
        for name, weight in zip(names, weights, strict=True)
    ]


def save_checkpoint(training: Training) -> None:
    """Write all state atomically: iteration, network, optimiser, region weights' queues, random generators."""
    if not training.shared.fabric.is_global_zero:
        return
    state = {
        "params": dependencies(training.params),
        "iteration": training.iteration,
        "network": plain_state(training.network),
        "optimizer": training.optimizer.state_dict(),
        "loss": training.loss.state_dict(),
        "generator": torch.get_rng_state(),
        "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    files.write_json(training.folder / "params.json", {"params": dependencies(training.params)})
    files.save_torch(training.folder / "checkpoint.pt", state)


def resume(training: Training) -> None:
    """Take up a checkpoint if there is one. Raises CarbError if it can't be read or belongs to other parameters."""
    path = training.folder / "checkpoint.pt"
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
    if training.shared.fabric.is_global_zero:
        print(f"{path}: resuming at iteration {training.iteration}")


def finish(training: Training) -> None:
    """Write the trained network and, last of all, the marker that the run is complete."""
    folder, params = training.folder, training.params
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
        {"params": dependencies(params), "iteration": training.iteration, "version": __version__},
    )


def main() -> None:
    """Command line: train variants of a run, on as many devices as the parameters say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--variant", nargs="+", default=["full"], choices=list(VARIANTS), help="one or several")
    args = parser.parse_args()
    params = from_arguments(args)
    ensure_scenes(params)
    folders = train_variants(params, args.variant)
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0:
        print(f"trained networks and logs: {', '.join(map(str, folders))}")


if __name__ == "__main__":
    errors.cli(main)
