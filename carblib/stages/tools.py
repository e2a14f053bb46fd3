"""Packages and programs that only some parameters need: asked for before the first hour of work, not after it."""

from __future__ import annotations

import shutil

from carblib.base.errors import CarbError
from carblib.clip_files import check_open_clip
from carblib.params import Params
from carblib.stages.crf import COMPILERS, load_densecrf
from carblib.training.log import check_tensorboard


def check_tools(params: Params, trains: bool = True, ablates: bool = False) -> None:
    """Raise CarbError where something is not installed that work with these parameters needs.

    trains: whether a training is part of it; ablates: whether the ablations are.
    """
    check_open_clip(params.clip)
    if (params.crf and params.path == "single") or (ablates and "single_crf" in params.ablation_paths):
        load_densecrf()
    if trains:
        check_tensorboard(params.tensorboard)
        if params.compile and not any(map(shutil.which, COMPILERS)):
            raise CarbError("compile: true needs a C++ compiler; apt install g++, or set compile: false")
