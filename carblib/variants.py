"""Variants: what a run compares, in reading order, from CLIP's masks to the true-mask ceiling. One row is one variant.

A new training is a row here: its name is then taken by `variants`, `carb train --variant`, every figure, table and
report. `overrides` are the parameters it changes; rows without any are CLIP's masks, which nobody trains.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Line = str | tuple[float, tuple[float, ...]]  # as matplotlib takes it: a name, or (offset, (on, off, …))


@dataclass(frozen=True)
class Variant:
    """One row: label of legends and tables, words in a sentence, colour, marker, curve, and what it overrides.

    Variants that differ in balancing alone are equal until the warm-up ends, so their curves must let each other show:
    wide solid lines below, thin or dashed ones above. Colours are those of Okabe and Ito, and mean variants only:
    whatever else a chart tells apart is grey, with a line style or marker of its own.
    """

    name: str
    label: str
    sentence: str
    colour: str
    marker: str
    line: Line = "-"
    width: float = 1.3
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def is_trained(self) -> bool:
        """Whether it is a training, and not CLIP's masks."""
        return bool(self.overrides)


_DASHED, _DOTTED, _MASKS = (0, (4, 2)), (0, (1, 1.5)), (0, (3, 1.5))

TABLE = (
    Variant(
        "pseudo_masks_no_labels", "CLIP masks, no labels", "CLIP's masks without labels", "#666666", "p", _MASKS, 1.4,
    ),
    Variant("pseudo_masks", "CLIP masks", "CLIP's masks", "#bbbbbb", "o", _MASKS, 1.4),
    Variant("pseudo_masks_global", "CLIP masks", "CLIP's masks", "#bbbbbb", "o", _MASKS, 1.4),
    Variant(
        "pseudo_masks_local", "CLIP masks, local views", "CLIP's masks of local views", "#8c8c8c", "s", _MASKS, 1.4,
    ),
    Variant(
        "plain", "plain cross-entropy", "plain cross-entropy", "#e69f00", "D", width=2.6,
        overrides={"local_view": False, "balancing": False},
    ),
    Variant(
        "glv", "GLV only", "global-local views", "#56b4e9", "^", width=2.6,
        overrides={"local_view": True, "balancing": False},
    ),
    Variant(
        "carb", "CARB only", "region balancing", "#cc79a7", "v", _DASHED,
        overrides={"local_view": False, "balancing": True, "region_weight": "paper"},
    ),
    Variant(
        "paper", "GLV + CARB (paper)", "the paper's method", "#d55e00", ">",
        overrides={"local_view": True, "balancing": True, "region_weight": "paper"},
    ),
    Variant(
        "ours", "GLV + CARB per class (ours)", "the method with a weight per class (ours)", "#009e73", "P", _DASHED,
        overrides={"local_view": True, "balancing": True, "region_weight": "class"},
    ),
    Variant(
        "ceiling", "true masks (ceiling)", "training on true masks", "#000000", "X", _DOTTED,
        overrides={"supervision": "masks", "local_view": False, "balancing": False},
    ),
)  # fmt: skip
VARIANTS = {variant.name: variant for variant in TABLE}
TRAINED = tuple(variant.name for variant in TABLE if variant.is_trained)
WEAK = tuple(name for name in TRAINED if name != "ceiling")  # those that learn from image-level labels
MAIN_FIRST = tuple(reversed(WEAK))  # the training that stands for a run is the first of these that it has
ABBREVIATIONS = {"GLV": "global-local views", "CARB": "consistency-aware region balancing"}


def variant_label(name: str) -> str:
    """Return the words a figure or table shows for a variant, also for one that is no row (a name of the user's)."""
    return VARIANTS[name].label if name in VARIANTS else name.replace("_", " ")


def in_order(names: Iterable[str]) -> list[str]:
    """Sort variant names into reading order; unknown ones stand alphabetically before the ceiling."""
    order = [*VARIANTS]
    order.remove("ceiling")
    return sorted(names, key=lambda name: (name == "ceiling", order.index(name) if name in order else len(order), name))


def abbreviations(names: Iterable[str]) -> str:
    """Return a sentence that spells out the abbreviations in these variants' labels, "" where there are none."""
    used = " ".join(map(variant_label, names)).split()
    spelt = [f"{short}: {words}" for short, words in ABBREVIATIONS.items() if short in used]
    return "; ".join(spelt) + "." if spelt else ""
