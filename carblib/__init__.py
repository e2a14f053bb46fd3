"""carblib: weakly supervised semantic segmentation of driving scenes (CARB, AAAI 2024).

The names below are the Python interface; each is loaded when it is first used. README.md beside this file is the map.
"""

import importlib

__version__ = "0.1.0"

_INTERFACE = {
    "load_params": "carblib.params",
    "Params": "carblib.params",
    "open_split": "carblib.data.readers",
    "read_image": "carblib.base.images",
    "build_masker": "carblib.masker",
    "mask_image": "carblib.masker",
    "sample_local_view": "carblib.views",
    "local_pseudo_mask": "carblib.views",
    "build_network": "carblib.network",
    "RegionBalancedLoss": "carblib.loss",
    "load_trained": "carblib.training.state",
    "predict_mask": "carblib.infer",
}
__all__ = ["__version__", *_INTERFACE]


def __getattr__(name: str) -> object:
    # torch takes seconds to import; `carb --help` must not wait for it.
    if name in _INTERFACE:
        return getattr(importlib.import_module(_INTERFACE[name]), name)
    raise AttributeError(f"module 'carblib' has no attribute '{name}'")
