"""What figures of single images show of CLIP: its similarity maps, and masks made without image-level labels."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from carblib.base import files
from carblib.base.device import torch_device
from carblib.data.labels import training_labels
from carblib.data.readers import Split
from carblib.masker import build_masker, pseudo_mask
from carblib.params import Params
from carblib.transforms import load_sized


@torch.inference_mode()
def save_similarity(params: Params, split: Split, maps: int = 5) -> Path:
    """Save CLIP's similarity maps of the image with most classes by its labels, and its pseudo-mask, for the figure.

    Writes runs/<run>/similarity_maps.npz and returns its path: split, name; words (K,) of at most `maps` classes, small
    ones first; similarity (K, h, w) float32 cosine; mask (H, W) uint8.
    """
    device, small = torch_device(params.device), split.class_set.small_ids
    masker, labels = build_masker(params, device), training_labels(params, split)
    i = int(labels.sum(1).argmax())
    present = np.flatnonzero(labels[i])
    own = [c for c in present if c in small][: max(1, maps // 2 + 1)]
    shown = [*own, *[c for c in present if c not in small]][:maps]
    image = load_sized(split.image(i), params.image_size).to(device)
    saved = {
        "split": np.array(split.name),
        "name": np.array(split.names[i]),
        "words": np.array([split.class_set.words[c][0] for c in shown]),
        "similarity": masker.similarity(image[None])[0].float().cpu().numpy()[shown],
        "mask": masker(image[None], torch.from_numpy(labels[i])[None].to(device), params.image_size)[0].cpu().numpy(),
    }
    return _save(params.run_dir / "similarity_maps.npz", saved)


@torch.inference_mode()
def save_examples(params: Params, split: Split, chosen: Mapping[str, str]) -> Path:
    """Save masks made without image-level labels of some images {rule: name}, to be shown beside those made with them.

    Writes runs/<run>/mask_examples.npz and returns its path: split; rules and names (N,); no_labels (N, H, W) uint8.
    The other masks are those of `pseudo_masks.export_masks`.
    """
    device = torch_device(params.device)
    masker, masks = build_masker(params, device), []
    for name in chosen.values():
        image = load_sized(split.image(split.names.index(name)), params.image_size).to(device)
        similarity = masker.similarity(image[None])
        masks.append(pseudo_mask(similarity, None, params.image_size, "none")[0].cpu().numpy())
    names = {"rules": np.array(list(chosen)), "names": np.array(list(chosen.values()))}
    saved = {"split": np.array(split.name), **names, "no_labels": np.stack(masks)}
    return _save(params.run_dir / "mask_examples.npz", saved)


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    files.write_bytes(path, data.getvalue())
    return path
