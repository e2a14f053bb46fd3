"""The device that tensors live on, from one word; in what precision it computes, and how tensors get there unwaited."""

from __future__ import annotations

import torch
from torch import Tensor

from carblib.base.errors import CarbError
from carblib.base.processes import local_rank, place


def torch_device(device: str) -> torch.device:
    """Return the torch device of "auto", "cpu" or "cuda"; auto is CUDA where there is any.

    On CUDA float32 then means float32 (torch alone would run convolutions in TF32, 10 bits of mantissa), and cuDNN
    tries its algorithms out at the first sight of a size. Processes of a launcher that share out the images of a stage
    take the GPUs of a machine in turn. Raises CarbError for "cuda" where torch sees no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise CarbError("device: cuda is asked for but torch sees no CUDA device; use device: auto or cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    if place()[1] == 1:
        return torch.device("cuda")
    return torch.device("cuda", local_rank() % torch.cuda.device_count())


def computing(device: torch.device, precision: str) -> torch.autocast:
    """The context in which models compute: "bf16-mixed" = bfloat16 where torch's autocast has it, "32-true" = float32.

    Masks, training and inference all ask here, so `precision` means the same everywhere.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host's tensor on `device`; on its way to CUDA by pinned memory, so that the host waits for nothing."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
