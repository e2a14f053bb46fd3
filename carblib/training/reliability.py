"""Reliability: how much of the image is consistent, and how often CLIP is right inside and outside that region.

Consistent = pseudo-mask and prediction agree (paper: consistency-aware region balancing; METHOD.md, 5: R = {M_G = Ŝ}).
The truth is used to measure only, never to train.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from carblib.classes import IGNORE


class Reliability:
    """Counts over images, by the pseudo-mask's class; `rows` turns them into shares and precisions.

    `counts` is (C, 2, 2) int64: pixels by pseudo-label, consistent or not, CLIP right or not; `predicted` (C,) int64:
    pixels by predicted class. Both may be summed over processes.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.counts = np.zeros((len(class_names), 2, 2), np.int64)
        self.predicted = np.zeros(len(class_names), np.int64)

    def add(self, pseudo_mask: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Add one image or a batch: three uint8 arrays of one shape, train ids.

        Only pixels where both truth and pseudo-mask name a class count; `prediction` is the argmax gated by the
        image-level labels, as the loss has it, and must name a class everywhere.
        """
        pseudo_mask, prediction, truth = (np.asarray(mask) for mask in (pseudo_mask, prediction, truth))
        valid = (truth != IGNORE) & (pseudo_mask != IGNORE)
        said, predicted, truth = pseudo_mask[valid].astype(np.int64), prediction[valid], truth[valid]
        code = said * 4 + (said == predicted) * 2 + (said == truth)
        self.counts += np.bincount(code, minlength=self.counts.size).reshape(self.counts.shape)
        self.predicted += np.bincount(predicted, minlength=len(self.predicted))

    def rows(self, iteration: int) -> list[dict[str, Any]]:
        """Return the rows of reliability.csv: one per class, by the pseudo-mask's class, then "all".

        share_consistent: share of the class's pseudo-labelled pixels on which the network agrees; precision_*: share
        of these (of the others) where the pseudo-label is right; predicted_share: share of all pixels that the network
        gives to the class; pixels: the class's pseudo-labelled pixels. Shares are 0–1, None where there is no pixel.
        """
        total = self.predicted.sum()
        rows = [
            self._row(iteration, name, self.counts[c], self.predicted[c], total)
            for c, name in enumerate(self.class_names)
        ]
        return [*rows, self._row(iteration, "all", self.counts.sum(0), total, total)]

    @staticmethod
    def _row(iteration: int, name: str, counts: np.ndarray, predicted: int, total: int) -> dict[str, Any]:
        noisy, consistent = counts
        return {
            "iteration": iteration,
            "class": name,
            "share_consistent": _share(consistent.sum(), counts.sum()),
            "precision_consistent": _share(consistent[1], consistent.sum()),
            "precision_noisy": _share(noisy[1], noisy.sum()),
            "predicted_share": _share(predicted, total),
            "pixels": int(counts.sum()),
        }


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
