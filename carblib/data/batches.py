"""Training batches whose content depends on (seed, iteration, slot) alone, so that resuming is exact.

There is no sampler state to save: which image a slot of an iteration holds, and how it is cropped, is computed anew
from the numbers. Hence any number of loading processes gives the same batches, and the processes of a multi-device run
share out every epoch without overlap.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from carblib.base.device import torch_device
from carblib.base.errors import CarbError
from carblib.base.interrupts import leave_to_parent
from carblib.data.image_cache import DecodedImages
from carblib.data.mask_folders import mask_path, read_mask, whole_pseudo_masks
from carblib.data.split import Split
from carblib.params import Params
from carblib.transforms import TrainTransform, distorted, load_sized, mix_seed, resize_mask

_KEPT_BYTES = 512 * 2**20  # decoded images and masks that one process keeps in memory


def sample_plan(
    seed: int, iteration: int, batch_size: int, dataset_size: int, rank: int = 0, world: int = 1
) -> list[tuple[int, int]]:
    """Return the (index, generator seed) of each slot of one process's batch.

    An epoch visits every image once, in an order of its own; a batch may reach into the next epoch. batch_size is per
    process; rank is one of 0 … world − 1.
    """
    first = (iteration * world + rank) * batch_size
    places = range(first, first + batch_size)
    orders = {epoch: _order(seed, epoch, dataset_size) for epoch in {place // dataset_size for place in places}}
    return [(orders[place // dataset_size][place % dataset_size], mix_seed(seed, 1, place)) for place in places]


def _order(seed: int, epoch: int, dataset_size: int) -> list[int]:
    generator = torch.Generator().manual_seed(mix_seed(seed, 0, epoch))
    return torch.randperm(dataset_size, generator=generator).tolist()


class TrainDataset(Dataset):
    """Training samples, addressed by (index, generator seed).

    A sample is the transform's, distorted unless a GPU will do that, with index (), name and labels (C,) bool. Its mask
    is the true mask with `supervision: masks`, the pseudo-mask on disk on the single path, and 255 everywhere on the
    dual path. With `supervision: clip` no true mask is ever opened. Raises CarbError for pseudo-masks that are missing.

    A pseudo-mask has the base size (`image_size`) or its image's own. `decoded`: where images come from that need not
    be decoded any more.
    """

    def __init__(self, params: Params, split: Split, labels: np.ndarray, decoded: DecodedImages | None = None):
        if not len(split):
            raise CarbError(f"split '{split.name}' of {params.data_root} holds no image; check `root`")
        if labels.shape != (len(split), len(split.class_set)):
            raise ValueError(f"labels {labels.shape} for {len(split)} images of {len(split.class_set)} classes")
        self.split, self.labels, self.images = split, torch.from_numpy(labels), decoded or split
        self.params, self.transform = params, TrainTransform(params)
        self.on_device = torch_device(params.device).type == "cuda"
        self.true_masks = params.supervision == "masks"
        self.folder = None
        if params.path == "single" and not self.true_masks:
            self.folder = whole_pseudo_masks(params, split.name, split.names)
        # Without random resizing every epoch starts from the same sized image: decode it once if memory allows.
        self.size = params.image_size
        sized_bytes = 4 * len(split) * self.size[0] * self.size[1]
        self.keeps = params.resize_ratio == (1.0, 1.0) and sized_bytes <= _KEPT_BYTES
        self.kept: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor | str] | CarbError:
        """Return a sample, or the CarbError that reading it raised (the loader raises it in the main process)."""
        index, seed = place
        try:
            image, mask = self._read(index)
        except CarbError as error:
            return error
        sample = self.transform(image, mask, torch.Generator().manual_seed(seed))
        if not self.on_device:
            sample = distorted(sample, self.params)
        return {**sample, "index": index, "name": self.split.names[index], "labels": self.labels[index]}

    def _pseudo_mask(self, index: int, own_size: tuple[int, int]) -> np.ndarray:
        # Of the base size, as we write them, or of the image's own: another shape is a mask of another image.
        name = self.split.names[index]
        mask = read_mask(self.folder, name, self.split.class_set)
        if mask.shape not in (self.size, own_size):
            (height, width), (own_height, own_width) = mask.shape, own_size
            raise CarbError(
                f"{mask_path(self.folder, name)}: mask of {height}×{width} (H×W) for an image of "
                f"{own_height}×{own_width}; make it anew, of that size or of `image_size` {self.size[0]}×{self.size[1]}"
            )
        return mask

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        if index in self.kept:
            return self.kept[index]
        image, mask = self.images.image(index), None
        if self.true_masks:
            mask = self.split.mask(index)
        elif self.folder is not None:
            mask = self._pseudo_mask(index, image.shape[:2])
        if self.keeps:
            image = load_sized(image, self.size).permute(1, 2, 0).contiguous().numpy()
            mask = None if mask is None else resize_mask(mask, self.size)
            self.kept[index] = image, mask
        return image, mask


class _Plan:
    """The (index, generator seed) lists of all iterations that are left: a batch sampler without state."""

    def __init__(self, params: Params, size: int, start: int, rank: int, world: int):
        self.params, self.size, self.start, self.rank, self.world = params, size, start, rank, world

    def __len__(self) -> int:
        return max(0, self.params.iterations - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for iteration in range(self.start, self.params.iterations):
            yield sample_plan(self.params.seed, iteration, self.params.batch_size, self.size, self.rank, self.world)


class _Loader(DataLoader):
    """A DataLoader that raises a sample's CarbError as it is; torch's own would bury it in a worker's traceback."""

    def __iter__(self) -> Iterator[dict]:
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as error:
                told = _worker_error(error, self.num_workers)
                if told is None:
                    raise
                raise told from error
            if batch is None:
                return
            if isinstance(batch, CarbError):
                raise batch
            yield batch


def _worker_error(error: RuntimeError, workers: int) -> CarbError | None:
    """Return what is to be said of a loading process that died, None where none did."""
    text = str(error)
    if "shared memory" in text or "</torch_" in text:  # also said where a worker died of SIGBUS, when it is full
        try:
            held = shutil.disk_usage("/dev/shm").total // 2**20
        except OSError:
            held = 0
        return CarbError(
            f"workers: {workers} pass batches through /dev/shm, which is too small ({held} MB); give it more "
            "(docker run --shm-size=2g), or set workers: 0, or lower batch_size"
        )
    if "DataLoader worker" in text:
        return CarbError(
            f"workers: one of {workers} was killed, most often because memory ran out; lower workers, then start again"
        )
    return None


def _collate(samples: list) -> dict | CarbError:
    errors = [sample for sample in samples if isinstance(sample, CarbError)]
    return errors[0] if errors else default_collate(samples)


def train_loader(
    params: Params, split: Split, labels: np.ndarray, start_iteration: int = 0, rank: int = 0, world: int = 1
) -> DataLoader:
    """Return the batches of iterations start_iteration … params.iterations − 1 of one process.

    labels: (N, C) bool in the split's order. A batch is a dictionary: index (B,) int64, name (list of B), image and
    clip_image (B, 3, H, W) uint8, mask (B, H, W) uint8, valid (B, H, W) bool, labels (B, C) bool, box (B, 2) int64
    (top, left of the crop in the resized and flipped image), flipped (B,) bool. For a GPU, clip_image is left to
    `distorted`, and draws (B, 5) may come in its place. Raises CarbError for missing pseudo-masks, and while iterating
    for a damaged file.
    """
    dataset = TrainDataset(params, split, labels, DecodedImages(params, split) if params.cache_images else None)
    return _Loader(
        dataset,
        batch_sampler=_Plan(params, len(dataset), start_iteration, rank, world),
        num_workers=params.workers,
        collate_fn=_collate,
        worker_init_fn=leave_to_parent,  # under spawn it does not know what training holds back
        pin_memory=dataset.on_device,
    )
