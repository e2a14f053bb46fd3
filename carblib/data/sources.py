"""What things on disk are made from: stamps of image-level labels, pseudo-masks, predictions (`carblib.base.stamps`).

Data are known by content: a `root` that moved, or is written otherwise, holds the same images. Image names are known by
their digests, labels by the row of each image, CLIP by its weights, classes by name, words and order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from carblib.base.contents import Contents
from carblib.base.stamps import Stamp, joined
from carblib.clip_files import clip_digest
from carblib.data.mask_folders import are_given, mask_path, whole_pseudo_masks
from carblib.data.split import Split
from carblib.params import Params

# Raised when the code makes other artefacts from the same sources; what was made before is then refused by name.
VERSIONS = {"image-level labels": 1, "pseudo-masks": 1, "refined pseudo-masks": 1, "predictions": 1, "training": 1}


def contents(params: Params) -> Contents:
    """Return the digests of files that all runs beside this one share: runs/.cache/contents.json."""
    return Contents(params.run_dir.parent / ".cache" / "contents.json")


def digests(params: Params, names: Sequence[str], paths: Sequence[Path | None]) -> dict[str, str]:
    """Return {name: digest of its file}, "" where there is no file to be read. Raises CarbError for a missing one."""
    there = [path for path in paths if path is not None]
    found = iter(contents(params).digests(there))
    return {name: "" if path is None else next(found) for name, path in zip(names, paths, strict=True)}


def image_digests(params: Params, split: Split) -> dict[str, str]:
    """Return {name: digest} of a split's images."""
    return digests(params, split.names, split.image_paths)


def label_stamp(params: Params, split: Split) -> Stamp:
    """Return what image-level labels derived from a split's masks are made from."""
    settings = {"dataset": params.dataset, "classes": list(split.class_set.names)}
    masks = digests(params, split.names, split.mask_paths)
    return Stamp("image-level labels", VERSIONS["image-level labels"], settings, {}, masks)


def mask_stamp(params: Params, split: Split, labels: np.ndarray, local: bool = False) -> Stamp:
    """Return what the pseudo-masks of a split are made from. labels: (N, C) bool, in the split's order."""
    settings = mask_settings(params, local)
    upstream = {"CLIP weights": clip_digest(params.clip, params.clip_folder, contents(params))}
    items = _with_labels(params, image_digests(params, split), labels)
    return Stamp("pseudo-masks", VERSIONS["pseudo-masks"], settings, upstream, items)


def mask_settings(params: Params, local: bool = False) -> dict[str, Any]:
    """Return the settings, classes and words that pseudo-masks are made with."""
    settings = params.that_affect("masks") | {"classes": _classes(params)}
    if local:
        settings |= {"patch": list(params.patch), "patch_rate": params.patch_rate, "patch_offset": params.patch_offset}
    return settings


def sources_of(stamp: Stamp) -> dict[str, str]:
    """Return a stamp as a table {what: digest}, as `sources_changed` compares them; "" where it names no image."""
    settings = {key: joined([value]) for key, value in stamp.settings.items()}
    images = joined(stamp.items) if stamp.items else ""
    return {"format": str(stamp.version), **settings, **stamp.upstream, "images or labels": images}


def refined_stamp(params: Params, split: Split, labels: np.ndarray, crf: dict[str, Any]) -> Stamp:
    """Return what pseudo-masks refined by a dense CRF of these settings are made from."""
    source = taught_stamp(params.updated(crf=False), split, labels)
    settings = source.settings | {"crf": crf}
    return replace(source, kind="refined pseudo-masks", version=VERSIONS["refined pseudo-masks"], settings=settings)


def taught_stamp(params: Params, split: Split, labels: np.ndarray) -> Stamp:
    """Return what the unrefined pseudo-masks on disk are made from: ours by their sources, the user's by content."""
    if not are_given(params, split.name):
        return mask_stamp(params, split, labels)
    folder = whole_pseudo_masks(params.updated(crf=False), split.name, split.names)
    masks = digests(params, split.names, [mask_path(folder, name) for name in split.names])
    images = image_digests(params, split)
    settings = {"classes": _classes(params)}
    items = {name: joined([images[name], masks[name]]) for name in split.names}
    return Stamp("pseudo-masks", VERSIONS["pseudo-masks"], settings, {}, items)


def prediction_stamp(params: Params, split: Split, network: str) -> Stamp:
    """Return what predictions of a split are made from; network: digest of the weights."""
    settings = params.that_affect("inference") | {"classes": list(split.class_set.names)}
    return Stamp("predictions", VERSIONS["predictions"], settings, {"network": network}, image_digests(params, split))


def _classes(params: Params) -> list[list[Any]]:
    # Names in their order and the words CLIP is asked for; colours change no mask.
    words = [of_class if params.synonyms else of_class[:1] for of_class in params.class_set.words]
    return [[name, list(own)] for name, own in zip(params.class_set.names, words, strict=True)]


def _with_labels(params: Params, images: dict[str, str], labels: np.ndarray) -> dict[str, str]:
    if params.gate == "none":
        return images
    rows = ["".join(map(str, row.astype(int))) for row in labels]
    return {name: joined([digest, row]) for (name, digest), row in zip(images.items(), rows, strict=True)}
