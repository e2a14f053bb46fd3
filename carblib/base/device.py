"""The device that tensors live on, from one word."""

from __future__ import annotations

import torch

from carblib.base.errors import CarbError


def torch_device(device: str) -> torch.device:
    """Return the torch device of "auto", "cpu" or "cuda"; auto is CUDA where there is any.

    Raises CarbError for "cuda" where torch sees no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise CarbError("device: cuda is asked for but torch sees no CUDA device; use device: auto or cpu")
    return torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")
