"""Checkpoints of the official code (mmsegmentation's form): read into our network, reported key by key, written back.

They hold {"meta": …, "state_dict": …} for a ResNet-50 or -101 v1c; CLIP's own weights are stored in them as well, and
are not needed once the text embeddings are there.

    carb checkpoints import official.pth params/cityscapes.yaml
    carb checkpoints export runs/cityscapes/train/paper/final.pt official.pth
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from carblib import __version__
from carblib.base.errors import CarbError
from carblib.base.files import load_torch, save_torch, state_dict_of
from carblib.classes import ClassSet
from carblib.network import KeyReport, SegmentationNetwork, build_network, compare_keys, load_weights
from carblib.params import Params
from carblib.training.state import load_trained

# Their name for a part of the network, and ours.
PREFIXES = (
    ("backbone.", "backbone."),
    ("decode_head.decode_module.", "head."),
    ("decode_head.text_embeddings", "text"),
)
# CLIP's towers and projections, and the official iteration counter: not part of the network.
SPARE = tuple(f"decode_head.{name}" for name in ("clip.", "proj.", "q_proj.", "k_proj.", "v_proj.", "c_proj.", "_iter"))
DEPTHS = {6: "resnet50_v1c", 23: "resnet101_v1c"}  # blocks in layer3


@dataclass(frozen=True)
class OfficialCheckpoint:
    """An official checkpoint: its tensors by their official names, and what they say about the network."""

    path: Path
    weights: dict[str, Tensor]
    backbone: str
    text: Tensor  # (C, D)


def to_official(key: str) -> str:
    """Return the official name of a key of our network's state dict."""
    return _renamed(key, [(ours, theirs) for theirs, ours in PREFIXES])


def from_official(key: str) -> str:
    """Return our name of an official key; keys of parts we do not have keep theirs."""
    return _renamed(key, PREFIXES)


def _renamed(key: str, prefixes: tuple[tuple[str, str], ...] | list[tuple[str, str]]) -> str:
    for before, after in prefixes:
        if key.startswith(before):
            return after + key[len(before) :]
    return key


def read_official(path: Path) -> OfficialCheckpoint:
    """Read an official checkpoint, or the state dict alone, never running code of the file.

    Raises CarbError where it is not one.
    """
    weights = state_dict_of(load_torch(path))
    text = weights.get("decode_head.text_embeddings") if isinstance(weights, dict) else None
    if not isinstance(text, Tensor) or text.dim() != 2:
        raise CarbError(
            f"{path}: no official CARB checkpoint, it lacks decode_head.text_embeddings, a matrix; "
            "give one saved by the official training"
        )
    blocks = sum(key.startswith("backbone.layer3.") and key.endswith(".conv1.weight") for key in weights)
    backbone = DEPTHS.get(blocks)
    if backbone is None or "backbone.stem.0.weight" not in weights:
        raise CarbError(f"{path}: its backbone is no ResNet-50 or -101 v1c, the only ones that can be read")
    return OfficialCheckpoint(Path(path), weights, backbone, text)


def empty_network(checkpoint: OfficialCheckpoint, params: Params) -> SegmentationNetwork:
    """Return the parameters' network with random weights. Raises CarbError where it differs from the checkpoint's."""
    if params.backbone != checkpoint.backbone:
        raise CarbError(f"{checkpoint.path}: made with {checkpoint.backbone}, not with {params.backbone}; set backbone")
    if len(params.class_set) != len(checkpoint.text):
        raise CarbError(
            f"{checkpoint.path}: made for {len(checkpoint.text)} classes, not for the {len(params.class_set)} of "
            f"{params.class_set.name}; set classes"
        )
    return build_network(params.updated(backbone_weights="random"), torch.zeros_like(checkpoint.text))


def load_official(network: SegmentationNetwork, checkpoint: OfficialCheckpoint) -> KeyReport:
    """Load a checkpoint's weights and text embeddings into a network; the report has official names.

    Raises CarbError where a key is missing, is neither ours nor CLIP's, or has another shape.
    """
    weights = {from_official(key): value for key, value in checkpoint.weights.items()}
    return _official_names(load_weights(network, weights, str(checkpoint.path), SPARE))


def report_official(network: nn.Module, checkpoint: OfficialCheckpoint) -> KeyReport:
    """Report, in official names, what loading would use, leave unused and miss; loads nothing.

    A key of another shape than the network's (`misfits`) is unused, and its place misses one.
    """
    unfit = [from_official(key) for key in misfits(network, checkpoint)]
    report = compare_keys(network, [from_official(key) for key in checkpoint.weights])
    used = tuple(key for key in report.used if key not in unfit)
    return _official_names(KeyReport(used, (*report.unused, *unfit), (*report.missing, *unfit)))


def misfits(network: nn.Module, checkpoint: OfficialCheckpoint) -> dict[str, str]:
    """Return the official keys whose value does not fit into its place of the network, and what is wrong with each."""
    own, wrong = network.state_dict(), {}
    for key, value in checkpoint.weights.items():
        place = own.get(from_official(key))
        if place is not None and getattr(value, "shape", None) != place.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            wrong[key] = f"{found}, expected {tuple(place.shape)}"
    return wrong


def _official_names(report: KeyReport) -> KeyReport:
    return KeyReport(*(tuple(map(to_official, keys)) for keys in (report.used, report.unused, report.missing)))


def write_official(path: Path, network: SegmentationNetwork, classes: ClassSet) -> None:
    """Write a network in the official form, without CLIP's weights (the official test does not use them).

    Raises CarbError for a backbone that the official code does not have.
    """
    state = network.state_dict()
    if "backbone.stem.0.weight" not in state:
        raise CarbError(f"{path}: not written, the official code knows ResNet-50 and -101 v1c only")
    weights = {to_official(key): value.detach().cpu().contiguous() for key, value in state.items()}
    palette = [list(colour) for colour in classes.palette]
    meta = {"CLASSES": tuple(classes.names), "PALETTE": palette, "carblib_version": __version__}
    save_torch(path, {"meta": meta, "state_dict": weights})


# --- files ----------------------------------------------------------------------------------------------------


def import_file(path: Path, params: Params, output: Path) -> None:
    """Write an official checkpoint as a trained network of ours (`final.pt`), after printing what becomes of each key.

    Raises CarbError, and writes nothing, where a key is missing, is neither ours nor CLIP's, or has another shape.
    """
    checkpoint = read_official(path)
    network = empty_network(checkpoint, params)
    report = report_official(network, checkpoint)
    for name, keys in (("used", report.used), ("unused", report.unused), ("missing", report.missing)):
        for key in keys:
            print(f"{name:8}{key}")
    for key, what in misfits(network, checkpoint).items():
        print(f"{key} has shape {what}")
    print(report)
    load_official(network, checkpoint)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_torch(output, {"params": params.model_dump(mode="json"), "iteration": 0, "network": state})


def export_file(path: Path, output: Path) -> None:
    """Write a trained network of ours (`final.pt` or `checkpoint.pt`) in the official form."""
    network, params = load_trained(path)
    write_official(output, network, params.class_set)
