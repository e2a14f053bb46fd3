"""What figures of single images show of CLIP: its similarity maps, and masks made without image-level labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from carblib.base import files
from carblib.base.device import torch_device
from carblib.data.labels import training_labels
from carblib.data.sources import mask_stamp, sources_of
from carblib.data.split import Split
from carblib.masker import build_masker
from carblib.params import Params
from carblib.transforms import load_sized


@torch.inference_mode()
def save_similarity(params: Params, split: Split, maps: int = 5) -> Path:
    """Save CLIP's similarity maps of the image with most classes by its labels, and its pseudo-mask, for the figure.

    Writes runs/<run>/similarity_maps.npz and returns its path: split, name; words (K,) of at most `maps` classes, small
    ones first; similarity (K, h, w) float32 cosine; mask (H, W) uint8; made_from (M, 2) of what and its digest.
    """
    path, device, small = params.run_dir / "similarity_maps.npz", torch_device(params.device), split.class_set.small_ids
    masker, labels = build_masker(params, device), training_labels(params, split)
    i = int(labels.sum(1).argmax())
    present = np.flatnonzero(labels[i])
    own = [c for c in present if c in small][: max(1, maps // 2 + 1)]
    shown = [*own, *[c for c in present if c not in small]][:maps]
    image = load_sized(split.image(i), params.image_size).to(device)
    saved = {
        "split": np.array(split.name),
        "made_from": _made_from(params, split, labels),
        "name": np.array(split.names[i]),
        "words": np.array([split.class_set.words[c][0] for c in shown]),
        "similarity": masker.similarity(image[None])[0].float().cpu().numpy()[shown],
        "mask": masker(image[None], torch.from_numpy(labels[i])[None], params.image_size)[0].cpu().numpy(),
    }
    files.write_npz(path, **saved)
    return path


def save_examples(params: Params, split: Split, chosen: Mapping[str, str]) -> Path:
    """Save which images {rule: name} show the masks of `pseudo_masks.clip_masks`.

    Writes runs/<run>/mask_examples.npz and returns its path: split; rules and names (N,); made_from (M, 2).
    """
    path, names = params.run_dir / "mask_examples.npz", np.array([*chosen.values()])
    sources = _made_from(params, split, training_labels(params, split))
    files.write_npz(path, split=np.array(split.name), made_from=sources, rules=np.array([*chosen]), names=names)
    return path


def _made_from(params: Params, split: Split, labels: np.ndarray) -> np.ndarray:
    return np.array([*sources_of(mask_stamp(params, split, labels)).items()])
