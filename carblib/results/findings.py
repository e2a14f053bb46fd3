"""What results say, in sentences: the notebooks' conclusions, put together from numbers so that they hold for any run.

Every function takes what a run saved and returns Markdown. A sentence that depends on the outcome says what came out,
also where a part of the method did not help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from carblib.classes import ClassSet
from carblib.results.saved import RunResults, class_groups
from carblib.results.words import path_label
from carblib.variants import in_order, variant_label

Evaluation = Mapping[str, Any]
# What sentences call a variant; figures and tables have shorter labels.
NAMES = {
    "pseudo_masks_global": "CLIP's masks",
    "pseudo_masks_local": "CLIP's masks from local views",
    "plain": "plain cross-entropy",
    "glv": "global-local views",
    "carb": "CARB without local views",
    "paper": "the paper's method",
    "ours": "the method with a weight per class (ours)",
    "ceiling": "training on true masks",
}
TAIL = 0.1  # share of the log that counts as the end of a training
SWITCHED_OFF = 0.05  # weight λ below which the noisy region has next to no say


def percent(share: float | None) -> str:
    """Write a share 0–1 as a percentage with one digit, "–" where there is none."""
    return "–" if share is None or np.isnan(share) else f"{100 * share:.1f} %"


def points(after: float | None, before: float | None) -> str:
    """Write the difference of two shares 0–1 in points with its sign, "–" where one is missing."""
    return "–" if None in (after, before) else f"{100 * (after - before):+.1f}"


def called(variant: str) -> str:
    """Return what a sentence calls a variant."""
    return NAMES.get(variant, variant_label(variant))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


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


def of_pixels(analysis: Mapping[str, Any], class_set: ClassSet) -> str:
    """Say how often classes are there and how little of the image the small ones take."""
    shares, small = np.array(analysis["pixel_share"]), list(class_set.small_ids)
    common = sum(share > 0.9 for share in analysis["image_share"])
    few = f" The small classes together cover {percent(shares[small].sum())} of the pixels," if small else ""
    largest = f" *{class_set.names[shares.argmax()]}* alone {percent(shares.max())}."
    return f"{common} of {len(class_set)} classes are in more than 90 % of the images.{few}{largest}"


def of_labels(labels: np.ndarray) -> str:
    """Say how many classes an image holds and what its labels are worth."""
    bits, (images, classes) = label_bits(labels), labels.shape
    return (
        f"An image holds {labels.sum(1).mean():.1f} of {classes} classes on average. Its labels are worth "
        f"**{bits.sum():.1f} bits**; labels as open as a coin would be worth {classes}. Among {images} images there "
        f"are {len(np.unique(labels, axis=0))} different sets of labels."
    )


# --- 02: pseudo-masks --------------------------------------------------------------------------------------------


def of_zooming(whole: Evaluation, zoomed: Evaluation) -> str:
    """Compare masks of the whole image with masks from local views, class by class."""
    lines = [
        f"{name}: mIoU {percent(one['miou'])}, small classes {percent(one['small_miou'])}."
        for name, one in (("Whole image", whole), ("Local views", zoomed))
    ]
    pairs = zip(whole["class_names"], whole["iou"], zoomed["iou"], strict=True)
    gains = {name: after - before for name, before, after in pairs if None not in (before, after)}
    if gains:
        up, down = max(gains, key=gains.get), min(gains, key=gains.get)
        lines.append(
            f"Of all classes, zooming in does most for *{up}* ({100 * gains[up]:+.1f} points of IoU) "
            f"and least for *{down}* ({100 * gains[down]:+.1f})."
        )
    return " ".join(lines)


def of_masks(whole: Evaluation, zoomed: Evaluation, ways: Sequence[Mapping[str, Any]]) -> str:
    """Conclude on pseudo-masks: whether local views help the small classes, and which way of making masks is best."""
    helped = None not in (whole["small_miou"], zoomed["small_miou"]) and zoomed["small_miou"] > whole["small_miou"]
    best = max(ways, key=lambda row: row["miou"] or 0)
    return (
        f"**Local views change the small classes by {points(zoomed['small_miou'], whole['small_miou'])} points and all "
        f"classes by {points(zoomed['miou'], whole['miou'])}.** "
        + (
            "They see what the whole image hides, which is why training listens to both."
            if helped
            else "On this data, with this CLIP and this patch size, they do not help the small classes."
        )
        + f" Of the ways compared, *{best['masker'].replace('_', ' ')}* has the highest mIoU: "
        f"{percent(best['miou'])} on {best['images']} images."
    )


# --- 03: training ------------------------------------------------------------------------------------------------


def training_table(results: RunResults) -> pd.DataFrame:
    """Return a table of trainings: iterations, minutes, loss, λ and consistent share at the end, validation scores."""
    rows = {}
    for variant, log in results.logs.items():
        tail, scores = _end(log), log["val_miou"].dropna()
        rows[variant_label(variant)] = {
            "iterations": f"{log['iteration'].max():.0f}",
            "minutes": f"{log['seconds'].max() / 60:.1f}",
            "loss at the end": f"{tail['loss'].mean():.2f}",
            "λ at the end": _number(tail["weight"].mean()),
            "consistent": percent(tail["consistent_share"].mean()),
            "best val mIoU": percent(scores.max() if len(scores) else None),
            "last val mIoU": percent(scores.iloc[-1] if len(scores) else None),
        }
    return pd.DataFrame(rows).T


def of_training(results: RunResults) -> str:
    """Say per training whether agreement told right labels from wrong ones and where λ ended, then conclude."""
    lines, distances = [], []
    for variant, rows in results.reliability.items():
        if variant == "ceiling":
            continue
        last = class_groups(rows, results.params.class_set)["all classes"].iloc[-1]
        share, inside, outside = (percent(last[key]) for key in ("share", "inside", "outside"))
        line = (
            f"- {_capital(called(variant))}: at the end {share} of the pixels are consistent; CLIP's label is right in "
            f"{inside} of them and in {outside} of the others."
        )
        weight = _end(results.logs[variant])["weight"].mean() if variant in results.logs else float("nan")
        if results.params.variant(variant).balancing and not np.isnan(weight):
            line += f" λ ends at {weight:.2g}: " + (
                "the noisy region is as good as switched off; what the network does not predict by now cannot return."
                if weight < SWITCHED_OFF
                else "the noisy region keeps a say."
            )
        lines.append(line)
        distances.append(last["inside"] - last["outside"])
    if distances and not np.isnan(np.nanmean(distances)):
        apart = float(np.nanmean(distances))
        verb, more = ("is", "more") if apart > 0 else ("is not", "less")
        lines.append(
            f"\n**Agreement {verb} a sign of truth here: inside the consistent region CLIP is right "
            f"{100 * abs(apart):.0f} points {more} often than outside.** Whether acting on it pays is measured "
            "in the next notebook, on other images."
        )
    return "\n".join(lines)


def _end(log: pd.DataFrame) -> pd.DataFrame:
    return log.tail(max(1, round(TAIL * len(log))))


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2g}"


# --- 04: evaluation ----------------------------------------------------------------------------------------------


def of_evaluation(results: RunResults) -> str:
    """Compare the main result with its pseudo-masks, the plain baseline and the ceiling, then conclude."""
    main = results.main_variant
    if main is None:
        return "No trained network was measured: there is nothing to conclude."
    scores, lines = results.evaluations, []
    best = scores[main]
    for other in ("pseudo_masks_global", "pseudo_masks_local", "plain", "glv", "paper", "ceiling"):
        if other in scores and other != main:
            gain, small = (points(best[key], scores[other][key]) for key in ("miou", "small_miou"))
            lines.append(
                f"- {_capital(called(main))} against {called(other)}: {gain} points of mIoU, {small} on the small "
                f"classes. {_overlap(best, scores[other])}"
            )
    found = {variant: one["objects"]["total"]["recall"] for variant, one in scores.items()}
    words = [f"{called(variant)} {percent(recall)}" for variant, recall in found.items() if recall is not None]
    if words:
        lines.append(f"- Small objects found: {', '.join(words)}.")
    close = f"\n**On {best['images']} images, {called(main)} reaches {percent(best['miou'])} mIoU"
    close += f"{_beside_clip(results, best)}.**"
    lines.append(f"{close} One seed of training: before believing in a difference of a point, repeat with others.")
    return "\n".join(lines)


def _beside_clip(results: RunResults, best: Evaluation) -> str:
    """Name the better of CLIP's two pseudo-masks beside the main result, and what they are told that it is not."""
    masks = [results.evaluations[v] for v in ("pseudo_masks_global", "pseudo_masks_local") if v in results.evaluations]
    masks = [one for one in masks if one["miou"] is not None]
    if not masks:
        return ""
    top = max(masks, key=lambda one: one["miou"])
    verb = "more" if top["miou"] > (best["miou"] or 0) else "less"
    told = ", but are told each image's labels, which a network is not" if results.params.gate != "none" else ""
    which = called(top["variant"]) + (", the better of the two kinds," if len(masks) > 1 else "")
    return f"; {which} have {percent(top['miou'])}, which is {verb}{told}"


def _overlap(one: Evaluation, other: Evaluation) -> str:
    (low, high), (other_low, other_high) = one["miou_interval"], other["miou_interval"]
    if None in (low, high, other_low, other_high):
        return ""
    if low > other_high or high < other_low:
        return "The intervals of mIoU do not overlap."
    return "The intervals of mIoU overlap."


# --- 05: ablations -----------------------------------------------------------------------------------------------


def region_tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Return per masker and path a table of classes: λ, consistent share and CLIP's precision for each variant.

    `rows` as from `ablations.regions_at_the_end`.
    """
    tables: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    for row in rows:
        columns = tables.setdefault(setting_name(row["masker"], row["path"]), {})
        cells = {
            "λ": _number(float("nan") if row["weight"] is None else row["weight"]),
            "consistent": percent(row["share_consistent"]),
            "right inside": percent(row["precision_consistent"]),
            "right outside": percent(row["precision_noisy"]),
        }
        for name, text in cells.items():
            columns.setdefault((variant_label(row["variant"]), name), {})[row["class"]] = text
    return {setting: pd.DataFrame(columns) for setting, columns in tables.items()}


def setting_name(masker: str, path: str) -> str:
    """Return what a sentence calls a masker and path of the ablations."""
    return f"{masker.replace('_', ' ')} masker, {path_label(path)}"


def of_ablations(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say per masker and path what each part gains over plain cross-entropy, and in how many seeds, then conclude.

    `rows` as in ablations.json. A part counts as a help (or a harm) only if all seeds agree.
    """
    lines, settings = [], list(dict.fromkeys((row["masker"], row["path"]) for row in rows))
    for masker, path in settings:
        own = [row for row in rows if (row["masker"], row["path"]) == (masker, path)]
        trained = [v for v in in_order({row["variant"] for row in own}) if v not in ("pseudo_masks", "ceiling")]
        if len(settings) > 1:
            lines.append(f"\n{_capital(setting_name(masker, path))}:\n")
        for variant in trained:
            if variant != "plain" and "plain" in trained:
                lines.append(f"- {_capital(called(variant))}: {_against(own, variant, 'plain')}.")
        lines += [f"- {line}" for line in _bounds(own, trained)]
    seeds = len({row["seed"] for row in rows if row["seed"] is not None})
    many = (
        f"{seeds} seeds of training: differences that not all of them share are noise"
        if seeds > 1
        else ("One seed of training: before believing in a difference of a point, repeat with others")
    )
    return "\n".join([*lines, f"\n**{_best(rows)}** {many}."])


def _scores(rows: Sequence[Mapping[str, Any]], variant: str, key: str) -> dict[int | None, float]:
    """A variant's score by seed."""
    return {row["seed"]: row[key] for row in rows if row["variant"] == variant and row[key] is not None}


def _against(rows: Sequence[Mapping[str, Any]], variant: str, other: str) -> str:
    """Compare two variants seed by seed."""
    words = []
    for key, name in (("miou", "of mIoU"), ("small_miou", "on the small classes")):
        after, before = _scores(rows, variant, key), _scores(rows, other, key)
        gains = [100 * (after[seed] - before[seed]) for seed in after.keys() & before.keys()]
        if gains:
            better = sum(gain > 0 for gain in gains)
            words.append(f"{np.mean(gains):+.1f} points {name} (better with {better} of {len(gains)} seeds)")
    verdict = ""
    if words:
        gains = _scores(rows, variant, "miou"), _scores(rows, other, "miou")
        signs = {np.sign(gains[0][seed] - gains[1][seed]) for seed in gains[0].keys() & gains[1].keys()}
        verdict = {(1.0,): ", a help", (-1.0,): ", a harm"}.get(tuple(signs), ", no clear effect")
    return f"against {called(other)} {', '.join(words)}{verdict}" if words else "not comparable"


def _bounds(rows: Sequence[Mapping[str, Any]], trained: Sequence[str]) -> list[str]:
    """Place the best training between CLIP's masks and the ceiling."""
    means = {v: np.mean(list(_scores(rows, v, "miou").values())) for v in trained if _scores(rows, v, "miou")}
    if not means:
        return []
    best, lines = max(means, key=means.get), []
    for other, name in (("pseudo_masks", "the masks it learnt from"), ("ceiling", "training on true masks")):
        scores = list(_scores(rows, other, "miou").values())
        if scores:
            apart = 100 * (means[best] - np.mean(scores))
            lines.append(
                f"The best, {called(best)}, is {abs(apart):.1f} points {'above' if apart > 0 else 'below'} {name}."
            )
    return lines


def _best(rows: Sequence[Mapping[str, Any]]) -> str:
    cells: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        if row["variant"] not in ("pseudo_masks", "ceiling") and row["miou"] is not None:
            cells.setdefault((row["masker"], row["path"], row["variant"]), []).append(row["miou"])
    if not cells:
        return "No trained network was measured."
    (masker, path, variant), values = max(cells.items(), key=lambda item: np.mean(item[1]))
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return (
        f"The highest mean mIoU, {100 * np.mean(values):.1f}{spread} %, has {called(variant)} "
        f"({setting_name(masker, path)})."
    )
