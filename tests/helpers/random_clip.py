"""A tiny CLIP of OpenAI's architecture with random weights."""

from __future__ import annotations

import torch

from carblib.clip_files import clip


def tiny_clip(vision_layers: int | tuple[int, ...] = 4, vision_width: int = 128, seed: int = 0) -> torch.nn.Module:
    """clip.model.CLIP of the embedded model's shape (ViT), or with a tuple of layers a tiny ResNet; random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = clip.model.CLIP(
            embed_dim=128,
            image_resolution=64,
            vision_layers=vision_layers,
            vision_width=vision_width,
            vision_patch_size=8,
            context_length=77,
            vocab_size=49408,
            transformer_width=64,
            transformer_heads=1,
            transformer_layers=2,
        )
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            # Zeros and ones of a fresh model (biases, norms, bn3) would hide what code forgets.
            if value.dim() == 1 and value.is_floating_point() and "running_var" not in name:
                value.data.add_(torch.randn_like(value) * 0.1)
            if name.endswith("bn3.weight"):
                value.data.add_(0.5)
    return model.float().eval()
