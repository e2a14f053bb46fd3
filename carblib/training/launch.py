"""How a training's processes come about: started by Fabric itself, or found started, by torchrun or SLURM's srun."""

from __future__ import annotations

import os
import sys

import torch
from lightning_fabric import Fabric

from carblib.base.device import torch_device
from carblib.base.errors import CarbError
from carblib.params import Params


def start_fabric(params: Params) -> Fabric:
    """Start Lightning Fabric on the devices the parameters ask for; CarbError where they are not to be had.

    One process starts the others by itself; under torchrun and srun they are there, and must be as many.
    """
    accelerator = torch_device(params.device).type
    processes = params.devices * params.num_nodes
    alone = f"-p devices 1{' -p num_nodes 1' * (params.num_nodes > 1)} -p batch_size {params.batch_size * processes}"
    if accelerator == "cuda" and params.devices > torch.cuda.device_count():
        raise CarbError(
            f"devices: {params.devices} asked for, torch sees {torch.cuda.device_count()}; for one: {alone}"
        )
    if processes > 1 and "ipykernel" in sys.modules:
        every = params.command("train", "--variant", *params.variants, *["ceiling"] * params.ceiling)
        raise CarbError(
            f"devices: {params.devices} do not run inside a notebook; run {every} first, then the notebooks, which "
            f"take finished trainings up; or give one device: {alone}"
        )
    check_launched(params)
    fabric = Fabric(
        accelerator=accelerator, devices=params.devices, num_nodes=params.num_nodes, precision=params.precision
    )
    fabric.launch()
    return fabric


def check_launched(params: Params) -> None:
    """Raise CarbError where torchrun or SLURM started other processes than the parameters speak of.

    Fabric alone would train with those there are, on smaller batches, or wait for ever for the others.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher, here, everywhere = "torchrun", _number("LOCAL_WORLD_SIZE"), _number("WORLD_SIZE")
        nodes, remedy = (
            everywhere // here,
            f"start torchrun --nproc-per-node {params.devices} --nnodes {params.num_nodes}",
        )
    elif "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        launcher, nodes = "SLURM", _number("SLURM_NNODES")
        here = _number("SLURM_NTASKS_PER_NODE", _number("SLURM_NTASKS") // nodes)
        remedy = f"write #SBATCH --nodes={params.num_nodes} --ntasks-per-node={params.devices}, and srun"
        if here * nodes > 1 and "SLURM_STEP_NUM_TASKS" not in os.environ:
            raise CarbError(
                f"SLURM gave this job {here * nodes} tasks, but this is not one of srun's; write: srun carb …"
            )
    else:
        return
    if (here, nodes) != (params.devices, params.num_nodes):
        raise CarbError(
            f"devices: {params.devices} on num_nodes: {params.num_nodes} asked for, {launcher} started {here} on "
            f"{nodes}; {remedy}, or give -p devices {here} -p num_nodes {nodes}, and a batch_size to match"
        )


def _number(name: str, default: int = 1) -> int:
    return int(os.environ.get(name, default))
