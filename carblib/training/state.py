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

CHECKPOINT = frozenset("params files iteration network optimizer loss generator cuda_generators".split())


def dependencies(params: Params) -> dict[str, Any]:
    """Return what trained weights depend on, as plain types: `params`, and checksums of the `files` that teach.

    These are the labels' CSV and, on the single path, the settings of the folder of pseudo-masks; a file that is not
    there (results copied to another machine) is left out.
    """
    taught = {}
    if params.gate != "none":
        taught["image-level labels"] = labels_path(params, params.train_split)
    if params.path == "single" and params.supervision == "clip":
        taught["pseudo-masks"] = pseudo_mask_folder(params, params.train_split) / "settings.json"
    sums = {what: files.sha256(file) for what, file in taught.items() if file.is_file()}
    return {"params": params.that_affect("training"), "files": sums}


def check_same(before: dict[str, Any], params: Params, folder: Path) -> None:
    """Raise CarbError naming what differs between `dependencies` that a folder holds and those of these parameters."""
    now, sums = dependencies(params), before.get("files", {})
    old, new = before["params"], now["params"]
    changed = sorted(key for key in new.keys() | old.keys() if new.get(key) != old.get(key))
    # A file that only one side knows does not count: results may be copied without it.
    changed += [f"the {what}" for what, digest in now["files"].items() if sums.get(what, digest) != digest]
    if changed:
        raise CarbError(
            f"{folder}: holds a run with other values of {', '.join(changed)}; "
            f"choose another 'run' name or delete the folder"
        )


def is_done(folder: Path, params: Params) -> bool:
    """Tell whether the folder holds a finished run of these parameters; CarbError if it holds one of others."""
    for name in ("done.json", "params.json"):
        if (folder / name).exists():
            check_same(files.read_json(folder / name), params, folder)
            return name == "done.json" and (folder / "final.pt").exists()
    return False


def read_checkpoint(path: Path, params: Params) -> dict[str, Any]:
    """Read a checkpoint of a training with these parameters. Raises CarbError if it is none or one of others."""
    state = files.load_torch(path)
    if not isinstance(state, dict) or not state.keys() >= CHECKPOINT:
        raise CarbError(f"{path}: is no checkpoint of a training; delete it to start anew")
    check_same(state, params, path.parent)
    return state


def load_trained(path: Path) -> tuple[SegmentationNetwork, Params]:
    """Return (network in evaluation mode on the CPU, its parameters) from a `final.pt` or `checkpoint.pt`.

    Raises CarbError for any other file, and for weights that lack a key, have another shape or are not finite.
    """
    state = files.load_torch(path)
    if not isinstance(state, dict) or not {"params", "network"} <= state.keys():
        raise CarbError(f"{path}: is no checkpoint of carblib; official ones are read by carb checkpoints import")
    weights, values = state["network"], state["params"]
    if not isinstance(weights, dict) or getattr(weights.get("text"), "ndim", 0) != 2 or not isinstance(values, dict):
        raise CarbError(f"{path}: damaged, it lacks parameters or text embeddings; train again or take another copy")
    try:
        params = Params().updated(**values)
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
