"""Whether what figures show of CLIP, its similarity maps and its masks, is what would be made now."""

from __future__ import annotations

import contextlib
from pathlib import Path

from carblib.base.errors import CarbError
from carblib.base.stamps import NAME, Changes, Stamp, read_stamp, sources_changed
from carblib.data.labels import known_labels
from carblib.data.mask_folders import clip_masks
from carblib.data.readers import open_split
from carblib.data.sources import VERSIONS, mask_settings, mask_stamp, sources_of
from carblib.params import Params
from carblib.results.saved import read_arrays


def similarity_changes(folder: Path, params: Params) -> dict[str, Changes]:
    """Return {what: how it differs from what would be made now} of similarity_maps.npz in runs/<run>.

    What is not there is not named. Raises CarbError where it is damaged.
    """
    return _of_archive(folder / "similarity_maps.npz", params)


def example_changes(folder: Path, params: Params) -> dict[str, Changes]:
    """Return the same of mask_examples.npz and of the folders of masks that it chooses from."""
    found = _of_archive(folder / "mask_examples.npz", params)
    for masks in clip_masks(params, params.val_split).values():
        name = f"{masks.folder.parent.name}/{params.val_split}"
        stamp = read_stamp(folder / name / NAME)
        if stamp:
            found[name] = _changes(sources_of(stamp), masks.params, params.val_split, masks.local)
    return found


def _of_archive(path: Path, params: Params) -> dict[str, Changes]:
    if not path.is_file():
        return {}
    saved = read_arrays(path, (), "run notebook 02_pseudo_masks again", also=("made_from",))
    before = dict(saved["made_from"].tolist()) if saved else {}
    return {path.name: _changes(before, params, params.val_split)}


def _changes(before: dict[str, str], params: Params, split: str, local: bool = False) -> Changes:
    now = {what: digest or before.get(what, "") for what, digest in _sources(params, split, local).items()}
    return sources_changed(before, now)


def _sources(params: Params, split_name: str, local: bool) -> dict[str, str]:
    """What masks of a split would be made from; "" for what is not there to be read (results far from their data)."""
    stamp = Stamp("pseudo-masks", VERSIONS["pseudo-masks"], mask_settings(params, local), {"CLIP weights": ""})
    with contextlib.suppress(CarbError):
        split = open_split(params, split_name)
        labels = known_labels(params, split)
        if labels is not None:
            stamp = mask_stamp(params, split, labels, local)
    return sources_of(stamp)
