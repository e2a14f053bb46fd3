"""What a training leaves on disk and how it is taken up again: whose it is, whether it is whole, and finished.

`params.json` and `done.json` say what a folder's weights depend on: the parameters, and the contents of the image-
level labels and the pseudo-masks on disk. A training is continued or called finished only if all of it is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.data.labels import labels_path
from carblib.data.mask_folders import pseudo_mask_folder
from carblib.network import SegmentationNetwork, build_network, load_weights
from carblib.params import Params

CHECKPOINT = frozenset("params iteration network optimizer loss generator cuda_generators".split())


def dependencies(params: Params) -> dict[str, Any]:
    """Return what trained weights depend on, as plain types: parameters, and checksums of the files that teach.

    These are the labels' CSV and, on the single path, the settings of the folder of pseudo-masks; a file that is not
    there (results copied to another machine) is left out.
    """
    taught = {}
    if params.gate != "none":
        taught["image-level labels"] = labels_path(params, params.train_split)
    if params.path == "single" and params.supervision == "clip":
        taught["pseudo-masks"] = pseudo_mask_folder(params, params.train_split) / "settings.json"
    return params.training_dump() | {f"the {key}": files.sha256(file) for key, file in taught.items() if file.is_file()}


def check_same(before: dict[str, Any], params: Params, folder: Path) -> None:
    """Raise CarbError naming what differs between what a folder's run depends on and these parameters."""
    now = dependencies(params)
    files_known = {key for key in now.keys() ^ before.keys() if key.startswith("the ")}  # known on one side only
    keys = (now.keys() | before.keys()) - files_known
    changed = sorted(key for key in keys if now.get(key) != before.get(key))
    if changed:
        raise CarbError(
            f"{folder}: holds a run with other values of {', '.join(changed)}; "
            f"choose another 'run' name or delete the folder"
        )


def is_done(folder: Path, params: Params) -> bool:
    """Tell whether the folder holds a finished run of these parameters; CarbError if it holds one of others."""
    for name in ("done.json", "params.json"):
        if (folder / name).exists():
            check_same(files.read_json(folder / name)["params"], params, folder)
            return name == "done.json" and (folder / "final.pt").exists()
    return False


def read_checkpoint(path: Path, params: Params) -> dict[str, Any]:
    """Read a checkpoint of a training with these parameters. Raises CarbError if it is none or one of others."""
    state = files.load_torch(path)
    if not isinstance(state, dict) or not state.keys() >= CHECKPOINT:
        raise CarbError(f"{path}: is no checkpoint of a training; delete it to start anew")
    check_same(state["params"], params, path.parent)
    return state


def load_trained(path: Path) -> tuple[SegmentationNetwork, Params]:
    """Return (network in evaluation mode on the CPU, its parameters) from a `final.pt` or `checkpoint.pt`.

    Raises CarbError for any other file, and for weights that lack a key, have another shape or are not finite.
    """
    state = files.load_torch(path)
    if not isinstance(state, dict) or not {"params", "network"} <= state.keys():
        raise CarbError(
            f"{path}: is no checkpoint of carblib; official ones are read by python -m carblib.training.official"
        )
    weights, values = state["network"], state["params"]
    if not isinstance(weights, dict) or getattr(weights.get("text"), "ndim", 0) != 2 or not isinstance(values, dict):
        raise CarbError(f"{path}: damaged, it lacks parameters or text embeddings; train again or take another copy")
    try:
        params = Params().updated(**{key: value for key, value in values.items() if not key.startswith("the ")})
    except (CarbError, TypeError) as error:
        raise CarbError(f"{path}: {error}") from error
    network = build_network(params.updated(backbone_weights="random"), weights["text"])
    load_weights(network, weights, str(path))
    return network.eval(), params


def bare(network: nn.Module) -> SegmentationNetwork:
    """The network itself, out of Fabric's and torch.compile's wrappers."""
    module = getattr(network, "module", network)
    return getattr(module, "_orig_mod", module)


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's state dict on the CPU, free of wrappers' prefixes."""
    return {name: value.detach().cpu() for name, value in bare(network).state_dict().items()}
