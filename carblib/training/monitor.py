"""Watching a training on validation images: mIoU, reliability of the consistent region, region maps of a few images.

Validation masks are read here to measure, never to train. The maps are kept so that figures need no model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from carblib.base import files
from carblib.base.device import computing
from carblib.base.errors import CarbError
from carblib.data.feature_cache import FeatureCache
from carblib.data.labels import labels_of
from carblib.data.readers import open_split
from carblib.data.split import Split
from carblib.masker import Masker, pseudo_mask
from carblib.metrics import confusion, iou, mean_of
from carblib.network import SegmentationNetwork
from carblib.params import Params
from carblib.training.log import append_rows
from carblib.training.reliability import Reliability
from carblib.transforms import load_sized, resize_mask, resized_argmax


def watched_split(params: Params) -> Split | None:
    """Return the split that a training is watched on, None for val_every: 0; CarbError where it has no masks."""
    if not params.val_every:
        return None
    split = open_split(params, params.val_split)
    if not split.has_masks:
        raise CarbError(f"val_split: '{params.val_split}' has no masks to watch the training with; set val_every: 0")
    return split


class Monitor:
    """Holds the validation images' pseudo-masks and (frozen backbone) features, so that a look costs little.

    split: of `watched_split`; `params.val_images` of its images are looked at, evenly spaced. network: holds the frozen
    backbone, None where it is trained.
    """

    def __init__(
        self, params: Params, split: Split, masker: Masker, network: SegmentationNetwork | None, device: torch.device
    ):
        self.params, self.device, self.split = params, device, split
        count = min(params.val_images or len(split), len(split))
        self.chosen = [place * len(split) // count for place in range(count)]
        self.truths = [resize_mask(split.mask(i), params.image_size) for i in self.chosen]
        self.labels = [labels_of(truth, len(params.class_set)) for truth in self.truths]
        if params.gate == "none":
            self.labels = [np.ones_like(labels) for labels in self.labels]  # as in training
        self.cache = None
        if network is not None:
            folder = params.run_dir / ".cache"
            with computing(device, params.precision):
                self.cache = FeatureCache(network, split, self.chosen, params.image_size, device, False, folder)
        self.pseudo_masks = [self._pseudo_mask(masker, row) for row in range(len(self.chosen))]

    @torch.inference_mode()
    def _pseudo_mask(self, masker: Masker, row: int) -> np.ndarray:
        labels = torch.from_numpy(self.labels[row])[None]
        return masker(self._image(row)[None], labels, self.params.image_size)[0].cpu().numpy()

    def _image(self, row: int) -> Tensor:
        return load_sized(self.split.image(self.chosen[row]), self.params.image_size).to(self.device)

    @torch.inference_mode()
    def look(self, network: nn.Module, iteration: int, folder: Path) -> dict[str, float]:
        """Measure the network now; appends to reliability.csv and writes region maps. Returns val mIoUs (0-1)."""
        classes, size = self.params.class_set, self.params.image_size
        matrix, reliability = np.zeros((len(classes), len(classes) + 1), np.int64), Reliability(classes.names)
        network.eval()
        for row, (truth, labels, mask) in enumerate(zip(self.truths, self.labels, self.pseudo_masks, strict=True)):
            logits = self._logits(network, row)
            matrix += confusion(resized_argmax(logits, size).cpu().numpy(), truth, len(classes))
            gated = pseudo_mask(logits[None], torch.from_numpy(labels)[None], size)[0].cpu().numpy()
            reliability.add(mask, gated, truth)
            if row < self.params.monitor_images:
                self._keep(folder / "regions" / f"{iteration:06d}", self.split.names[self.chosen[row]], mask, gated)
        append_rows(folder / "reliability.csv", reliability.rows(iteration))
        values = iou(matrix)
        return {
            "val_miou": float(mean_of(values)),
            "val_small_miou": float(mean_of(values, classes.small_ids)),
        }

    def _logits(self, network: nn.Module, row: int) -> Tensor:
        """Logits (C, h, w) of one validation image, at the network's stride."""
        with computing(self.device, self.params.precision):
            if self.cache is None:
                return network(self._image(row)[None])[0].float()
            return network.classify(self.cache.whole(row).to(self.device))[0].float()

    @staticmethod
    def _keep(folder: Path, name: str, pseudo_mask: np.ndarray, prediction: np.ndarray) -> None:
        arrays = {"pseudo_mask": pseudo_mask, "prediction": prediction, "consistent": pseudo_mask == prediction}
        files.write_npz(folder / f"{name}.npz", **arrays)
