"""One training iteration (METHOD.md, 4 and 5): what the paper describes, from a batch of crops to a step of SGD.

Take the global pseudo-mask from disk (single path) or from CLIP (dual path); draw one local view and let CLIP zoom into
it; run the network once; one loss for both views and both regions. Everything around the iteration (the loop, its log,
its checkpoints) is in `carblib.training`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn

from carblib.base.device import sent
from carblib.loss import LossParts, RegionBalancedLoss, build_loss
from carblib.masker import Masker
from carblib.network import build_network, share_batch_statistics
from carblib.params import Params
from carblib.transforms import distorted, mix_seed
from carblib.views import LocalView, local_pseudo_mask, sample_local_view

Batch = dict[str, Tensor]
PIXELS = {"image", "clip_image", "mask", "valid", "draws"}  # of a batch, what goes to the device


@dataclass
class Training:
    """Everything one iteration needs; network, optimizer, loss and iteration are what a checkpoint holds.

    features: returns the backbone features (B, F, h, w) of a batch where a frozen backbone's are kept, None where the
    whole network runs.
    """

    params: Params
    fabric: Fabric
    masker: Masker
    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: RegionBalancedLoss
    features: Callable[[Batch], Tensor] | None = None
    iteration: int = 0


def build(
    params: Params, fabric: Fabric, masker: Masker, features: Callable[[Batch], Tensor] | None = None
) -> Training:
    """Assemble network, optimiser and loss for a training that starts at iteration 0."""
    seed_everything(params.seed, workers=True, verbose=False)
    network = build_network(params, masker.text.mean_per_class)
    if params.sync_bn:
        network = share_batch_statistics(network, fabric.device)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, params.lr, momentum=params.momentum, weight_decay=params.weight_decay)
    network, optimizer = fabric.setup(torch.compile(network) if params.compile else network, optimizer)
    loss = build_loss(params).to(fabric.device)
    return Training(params, fabric, masker, network, optimizer, loss, features)


def step(training: Training, batch: Batch) -> LossParts:
    """Run one iteration on a batch of the loader and return the parts of its loss, of the batches of all processes.

    Nothing in here waits for the device (but torch's SyncBatchNorm, once a layer, where several GPUs share their
    statistics).
    """
    batch = on_device(training, batch)
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(training.params, training.iteration)
    with torch.no_grad():
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
        reduce=mean_over_processes,  # so that every GPU uses the same λ
    )
    training.optimizer.zero_grad(set_to_none=True)
    training.fabric.backward(parts.total)
    training.optimizer.step()
    training.iteration += 1
    return LossParts(*mean_over_processes(torch.stack([part.detach() for part in vars(parts).values()])))


def on_device(training: Training, batch: Batch) -> Batch:
    """Bring a batch of the loader to the device; what it leaves to a GPU, photometric distortion, is done there.

    The pixels go; labels, boxes and indices stay on the host, which asks them.
    """
    batch = batch | {name: sent(batch[name], training.fabric.device) for name in PIXELS & batch.keys()}
    return batch if "clip_image" in batch else distorted(batch, training.params)


def mean_over_processes(statistics: Tensor) -> Tensor:
    """The mean of a tensor over all processes; without the barrier before it at which Fabric's would wait."""
    if not torch.distributed.is_initialized():
        return statistics
    torch.distributed.all_reduce(statistics)
    return statistics / torch.distributed.get_world_size()


def global_pseudo_mask(training: Training, batch: Batch) -> Tensor:
    """The global view's pseudo-mask M_G (B, H, W): from disk (single path) or from CLIP now (dual path)."""
    if training.params.supervision == "masks" or training.params.path == "single":
        return batch["mask"]
    return training.masker(batch["clip_image"], batch["labels"], training.params.crop)


def local_view(training: Training, batch: Batch) -> tuple[LocalView | None, Tensor | None]:
    """Draw this iteration's local view and let CLIP name its pixels: (view, M_L (B, h, w)), or nothing without it."""
    params = training.params
    if not params.local_view:
        return None, None
    # Drawn for the images of all processes, of which each takes its own: one process with all would draw the same.
    own, rank = len(batch["labels"]), training.fabric.global_rank
    view = sample_local_view(
        batch=own * training.fabric.world_size,
        crop=params.crop,
        patch=params.patch,
        rate=params.patch_rate,
        offset=params.patch_offset,
        generator=torch.Generator().manual_seed(mix_seed(params.seed, 2, training.iteration)),
        official=params.official_views,
    )
    view = replace(view, boxes=view.boxes[rank * own : (rank + 1) * own])
    return view, local_pseudo_mask(training.masker, batch["clip_image"], batch["labels"], view)


def crop_logits(training: Training, batch: Batch) -> Tensor:
    """Logits (B, C, h, w) of a batch of crops, by the whole network or by its head on kept features."""
    kept = training.features(batch) if training.features else None
    return training.network(batch["image"], None if kept is None else sent(kept, training.fabric.device).float())


def learning_rate(params: Params, iteration: int) -> float:
    """Polynomial decay from lr to lr_min (METHOD.md, 6)."""
    left = 1 - iteration / params.iterations
    return params.lr_min + (params.lr - params.lr_min) * left**params.poly_power
