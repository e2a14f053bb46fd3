"""Pretrain the small embedded backbone by classifying rendered crops: ``carb pretrain backbone``.

It plays the part that ImageNet plays in the paper: a MobileNetV2 learns to name what a crop shows (the kind of object
or surface in its centre) and never sees a mask. The scenes come from a seed range of their own. Only the layers that
the segmentation network uses are trained and written, already dilated to stride 8.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from carblib.base import files
from carblib.classes import CAMVID
from carblib.network import normalise, small_backbone
from carblib.scenes.paint import pick
from carblib.scenes.pretrain_clip import Box, cut, learning_rate, render_pool, steps_in
from carblib.scenes.render import Scene

SIZE = 64  # pixels of a crop's side
ZOOM = (1.0, 3.5)  # range of enlargement; the demo's network sees images enlarged by 2


class CropSampler:
    """Draws (crop, class) pairs: an object's crop is named by its kind, a surface crop by what fills its centre."""

    def __init__(self, pool: list[Scene], rng: np.random.Generator):
        self.pool, self.rng = pool, rng
        self.by_kind: dict[str, list[tuple[int, Box]]] = {}
        for index, scene in enumerate(pool):
            for item in scene.objects:
                if item.visible_pixels >= 16:
                    self.by_kind.setdefault(item.kind or CAMVID.names[item.class_id], []).append((index, item.box))
            self._add_surfaces(index, scene)
        self.kinds = sorted(kind for kind, entries in self.by_kind.items() if len(entries) >= len(pool) // 50)

    def _add_surfaces(self, index: int, scene: Scene) -> None:
        height, width = scene.mask.shape
        for _ in range(8):  # small squares that lie within one surface
            top, left = int(self.rng.integers(height - 12)), int(self.rng.integers(width - 12))
            values = np.unique(scene.mask[top : top + 12, left : left + 12])
            if len(values) == 1 and values[0] < len(CAMVID):
                box = (top, left, top + 12, left + 12)
                self.by_kind.setdefault(CAMVID.names[values[0]], []).append((index, box))

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Return crops (B, 3, SIZE, SIZE) uint8 and kinds (B,) long; pixels are enlarged by a factor from ZOOM."""
        crops = []
        kinds = torch.from_numpy(self.rng.integers(len(self.kinds), size=count))
        for kind in kinds.tolist():
            index, (top, left, bottom, right) = pick(self.rng, self.by_kind[self.kinds[kind]])
            image = self.pool[index].image
            extent = math.sqrt((bottom - top) * (right - left))  # of a long pole a piece of it is enough
            factor = math.exp(self.rng.uniform(math.log(ZOOM[0]), math.log(ZOOM[1])))
            side = int(min(max(SIZE / factor, 1.1 * extent, 12), image.shape[0]))
            y = int(np.clip((top + bottom) / 2 + self.rng.normal(0, 2) - side / 2, 0, image.shape[0] - side))
            x = int(np.clip((left + right) / 2 + self.rng.normal(0, 2) - side / 2, 0, image.shape[1] - side))
            crops.append(cut(image, (y, x, y + side, x + side), (SIZE, SIZE), self.rng))
        return torch.stack(crops), kinds


def centre_pool(features: Tensor) -> Tensor:
    """Average the middle half of the feature grid, where the named thing is: (B, F, h, w) -> (B, F)."""
    height, width = features.shape[2:]
    return features[:, :, height // 4 : height - height // 4, width // 4 : width - width // 4].mean((2, 3))


def pretrain(minutes: float, scenes: int, batch_size: int, lr: float, seed: int, output: Path) -> Path:
    """Train for a time budget, print the accuracy on crops of unseen scenes, write float16 safetensors."""
    torch.manual_seed(seed)
    pool = render_pool("backbone", scenes, seed)
    held_out = max(1, scenes // 20)
    sampler = CropSampler(pool[held_out:], np.random.default_rng([seed, 1]))
    check = CropSampler(pool[:held_out], np.random.default_rng([seed, 2]))
    backbone = small_backbone().to(memory_format=torch.channels_last)
    classifier = nn.Linear(backbone.channels, len(sampler.kinds))
    optimizer = torch.optim.AdamW([*backbone.parameters(), *classifier.parameters()], lr=lr, weight_decay=0.02)
    for step, done in steps_in(minutes):
        optimizer.param_groups[0]["lr"] = learning_rate(lr, done)
        crops, kinds = sampler.batch(batch_size)
        features = backbone(normalise(crops).to(memory_format=torch.channels_last))
        loss = F.cross_entropy(classifier(centre_pool(features)), kinds, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}  {100 * done:.0f} %  loss {loss:.3f}", flush=True)
    right = accuracy(backbone, classifier, check, sampler.kinds)
    halves = {name: v.half() if v.is_floating_point() else v for name, v in backbone.state_dict().items()}
    files.write_bytes(output, save({name: value.contiguous() for name, value in halves.items()}))
    print(f"{output}: {len(sampler.kinds)} kinds, accuracy {100 * right:.1f} % on crops of unseen scenes")
    return output


@torch.inference_mode()
def accuracy(backbone: nn.Module, classifier: nn.Module, sampler: CropSampler, kinds: list[str]) -> float:
    """Share (0-1) of 1000 crops of the sampler's scenes that are named right, over the kinds both samplers know."""
    sampler.kinds = [kind for kind in kinds if kind in sampler.by_kind]
    crops, rows = sampler.batch(1000)
    wanted = torch.tensor([kinds.index(kind) for kind in sampler.kinds])[rows]
    backbone.eval(), classifier.eval()
    return float((classifier(centre_pool(backbone(normalise(crops)))).argmax(1) == wanted).float().mean())
