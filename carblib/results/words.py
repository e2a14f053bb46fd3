"""Words for what a run holds: numbers, datasets, paths; the same in every legend, table, caption and page."""

from __future__ import annotations

import math

from carblib.params import Params

COLUMN, PAGE = 3.25, 6.875  # inches
DATA_NAMES = {
    "scenes": "rendered scenes",
    "camvid": "CamVid",
    "cityscapes": "Cityscapes",
    "wilddash2": "WildDash2",
    "folder": "a folder of images",
}


def plural(number: int, thing: str) -> str:
    """Write a number of things: 1 image, 3 images."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share 0–1 as a percentage without its sign: "44.8"; "–" for None and nan."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}"


def duration(seconds: float) -> str:
    """Write a duration as a person says it: 7 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def data_name(params: Params) -> str:
    """Return the dataset's name as captions give it; rendered scenes are always called so."""
    return DATA_NAMES.get(params.dataset, params.dataset)


def clip_name(params: Params) -> str:
    """Return what captions call the CLIP of a run; the small one is never mistaken for OpenAI's."""
    return "a small one trained on rendered scenes only" if params.clip == "small" else params.clip


def truth_name(params: Params) -> str:
    """Return what the reference masks are: exact masks of rendered scenes, or ground truth (human annotation)."""
    return "exact mask" if params.dataset == "scenes" else "ground truth"


def path_label(path: str) -> str:
    """Name a path of the ablations: dual, single, or single with CRF."""
    return f"{path.replace('_crf', ' + CRF').replace('_', ' ')} path"
