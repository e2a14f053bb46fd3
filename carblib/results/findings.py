"""What notebooks say about a run beside its figures: small tables, and a line of numbers where a table is too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from carblib.classes import ClassSet
from carblib.results.saved import RunResults, class_groups
from carblib.results.words import data_name, duration, path_label, percent, plural
from carblib.variants import in_order, variant_label

Evaluation = Mapping[str, Any]
TAIL = 0.1  # share of the log that counts as the end of a training


# --- 01: image-level labels --------------------------------------------------------------------------------------


def label_bits(labels: np.ndarray) -> np.ndarray:
    """Return how much each class's label tells about an image, in bits (C,), from image-level labels (N, C) bool.

    The entropy of "is the class there": 1 for a class in half of the images, 0 for one in all or none.
    """
    share = labels.mean(0).clip(1e-12, 1 - 1e-12)
    return np.abs(share * np.log2(share) + (1 - share) * np.log2(1 - share)).round(6)


def label_table(labels: np.ndarray, class_set: ClassSet) -> pd.DataFrame:
    """Return a table of classes by share of images (percent) and bits, most informative first."""
    columns = {"in images, %": 100 * labels.mean(0), "bits": label_bits(labels)}
    return pd.DataFrame(columns, index=class_set.names).sort_values("bits", ascending=False)


def of_labels(labels: np.ndarray) -> str:
    """Say how many classes an image holds and what its labels are worth."""
    images, classes = labels.shape
    return (
        f"{labels.sum(1).mean():.1f} of {classes} classes per image; **{label_bits(labels).sum():.1f} of {classes} "
        f"possible bits**; {len(np.unique(labels, axis=0))} different sets of labels in {images} images."
    )


# --- 02: pseudo-masks --------------------------------------------------------------------------------------------


def of_masks(measured: Mapping[str, Evaluation]) -> str:
    """Say what CLIP's masks score, by how they are made, and how many small objects they find."""
    return " ".join(
        f"{variant_label(name)}: mIoU {percent(one['miou'])} %, small classes {percent(one['small_miou'])} %, "
        f"{percent(one['objects']['total']['recall'])} % of the small objects found."
        for name, one in measured.items()
    )


# --- 03: training ------------------------------------------------------------------------------------------------


def training_table(results: RunResults) -> pd.DataFrame:
    """Return a table of trainings: iterations, time, loss and λ, validation scores, and the regions at the end.

    Consistent: share of the labelled pixels on which network and CLIP agree at the last look on validation images;
    right inside and right outside: how often CLIP's label is true there and elsewhere. All scores in percent.
    """
    rows = {}
    for variant, log in results.logs.items():
        end, scores = log.tail(max(1, round(TAIL * len(log)))), log["val_miou"].dropna()
        rows[variant_label(variant)] = {
            "iterations": f"{log['iteration'].max():.0f}",
            "time": duration(log["seconds"].max()),
            "loss": f"{end['loss'].mean():.2f}",
            "λ": _weight(end["weight"].mean()),
            "best val mIoU": percent(scores.max() if len(scores) else None),
            "last val mIoU": percent(scores.iloc[-1] if len(scores) else None),
            **_regions(results, variant),
        }
    return pd.DataFrame(rows).T


def _regions(results: RunResults, variant: str) -> dict[str, str]:
    """The regions of a training at its end; the ceiling, which learns from true masks, has none."""
    parts = {"consistent": "share", "right inside": "inside", "right outside": "outside"}
    if variant not in results.reliability or variant == "ceiling":
        return dict.fromkeys(parts, "–")
    last = class_groups(results.reliability[variant], results.params.class_set)["all classes"].iloc[-1]
    return {title: percent(last[part]) for title, part in parts.items()}


def _weight(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.2g}"


# --- 04: evaluation ----------------------------------------------------------------------------------------------


def of_evaluation(results: RunResults) -> str:
    """Compare the main result with all others: points of mIoU, and with which of them its interval overlaps."""
    scores, main = results.evaluations, results.main_variant
    if main is None:
        return "No trained network was measured."
    best = scores[main]
    compared = [
        f"{points(best['miou'], one['miou'])} against {variant_label(name)}{_overlap(best, one)}"
        for name, one in scores.items()
        if name != main
    ]
    line = (
        f"**{variant_label(main)}: mIoU {percent(best['miou'])} %, small classes {percent(best['small_miou'])} %, "
        f"{percent(best['objects']['total']['recall'])} % of the small objects found, {best['images']} images.**"
    )
    return f"{line} Points of mIoU: {', '.join(compared)}." if compared else line


def conclusion(results: RunResults) -> str:
    """Say in one sentence what came out: the best network taught by CLIP, and how far it is from what it stands beside.

    Where the interval of the next best overlaps with its own, the sentence says so. Without any trained network it
    speaks of CLIP's masks; "" where nothing was measured.
    """
    scores = {name: one for name, one in results.evaluations.items() if one["miou"] is not None}
    networks = [name for name in scores if not name.startswith("pseudo_masks") and name != "ceiling"]
    ranked = sorted(networks, key=lambda name: -scores[name]["miou"]) or [*scores]
    if not ranked:
        return ""
    best, data = scores[ranked[0]], data_name(results.params)
    small = f", {percent(best['small_miou'])} % on small classes" if best["small_miou"] is not None else ""
    line = (
        f"On {plural(best['images'], 'image')} of {data}, {variant_label(ranked[0])} reaches "
        f"{percent(best['miou'])} % mIoU{small}"
    )
    beside = {
        "plain": "plain cross-entropy",
        "paper": "the paper's method",
        "pseudo_masks_global": "CLIP's masks (which are told each image's labels)",
        "ceiling": "training on true masks",
    }
    gaps = [
        f"{abs(100 * (best['miou'] - scores[name]['miou'])):.1f} "
        f"{'above' if best['miou'] >= scores[name]['miou'] else 'below'} {words}{_overlap(best, scores[name])}"
        for name, words in beside.items()
        if name in scores and name != ranked[0]
    ]
    line += f"; in points of mIoU, {', '.join(gaps[:-1])}{' and ' * (len(gaps) > 1)}{gaps[-1]}." if gaps else "."
    if len(networks) > 1 and _overlap(best, scores[ranked[1]]) and ranked[1] not in beside:
        line += f" It is not clearly better than {variant_label(ranked[1])}: their intervals overlap."
    return line


def points(after: float | None, before: float | None) -> str:
    """Write the difference of two shares 0–1 in points with its sign, "–" where one is missing."""
    return "–" if None in (after, before) or np.isnan(after - before) else f"{100 * (after - before):+.1f}"


def _overlap(one: Evaluation, other: Evaluation) -> str:
    (low, high), (other_low, other_high) = one["miou_interval"], other["miou_interval"]
    if None in (low, high, other_low, other_high) or low > other_high or high < other_low:
        return ""
    return " (intervals overlap)"


# --- 05: ablations -----------------------------------------------------------------------------------------------


def gain_table(rows: Sequence[Mapping[str, Any]], other: str = "plain") -> pd.DataFrame:
    """Return what each training gains over `other` of the same masker, path and seed, in points, mean over seeds.

    `rows` as in ablations.json. "seeds better" counts those of the compared seeds in which it gains mIoU.
    """
    frame = pd.DataFrame(rows).astype({"miou": float, "small_miou": float})
    own = frame[~frame["variant"].isin(["pseudo_masks", "ceiling", other])]
    pairs = own.merge(frame[frame["variant"] == other], on=["masker", "path", "seed"], suffixes=("", "_before"))
    for key in ("miou", "small_miou"):
        pairs[key] -= pairs[f"{key}_before"]
    table = {}
    for (masker, path), cells in pairs.groupby(["masker", "path"], sort=False):
        for variant in in_order(cells["variant"].unique()):
            gains = cells[cells["variant"] == variant]
            table[masker.replace("_", " "), path_label(path), variant_label(variant)] = {
                "mIoU": points(gains["miou"].mean(), 0),
                "seeds better": f"{(gains['miou'] > 0).sum()} of {gains['miou'].count()}",
                "small classes": points(gains["small_miou"].mean(), 0),
            }
    return pd.DataFrame(table).T


def region_tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Return per masker and path a table of classes: λ, and in percent consistent share and CLIP's precision.

    A group of columns for each variant. `rows` as from `ablations.regions_at_the_end`.
    """
    tables: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    for row in rows:
        setting = f"{row['masker'].replace('_', ' ')} masker, {path_label(row['path'])}"
        cells = {
            "λ": _weight(row["weight"]),
            "consistent": percent(row["share_consistent"]),
            "right inside": percent(row["precision_consistent"]),
            "right outside": percent(row["precision_noisy"]),
        }
        columns = tables.setdefault(setting, {})
        for name, text in cells.items():
            columns.setdefault((variant_label(row["variant"]), name), {})[row["class"]] = text
    return {setting: pd.DataFrame(columns) for setting, columns in tables.items()}
