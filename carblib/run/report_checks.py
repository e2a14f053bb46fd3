"""What a reader of a report should be warned of: unfinished, collapsed, stale or incomparable results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from carblib import __version__
from carblib.figures.table import TABLE, RunFigure
from carblib.results.saved import RunResults
from carblib.results.words import data_name, duration, percent
from carblib.variants import variant_label

SWITCHED_OFF = 0.05  # weight λ below which the noisy region has next to no say


def find_warnings(results: RunResults, figures_dir: Path) -> list[str]:
    """Return sentences that warn of what the numbers alone do not say; none for a run that is as it should be."""
    return [
        *_of_data(results),
        *_of_training(results),
        *_of_scores(results),
        *_of_versions(results),
        *_of_figures(results, figures_dir),
    ]


def training_states(results: RunResults) -> list[dict[str, str]]:
    """Return a row per training: name, iterations, time, last validation score, and whether it finished."""
    rows = []
    for variant, log in results.logs.items():
        scored = log["val_miou"].dropna()
        rows.append(
            {
                "name": variant_label(variant),
                "iterations": f"{int(log['iteration'].max())}",
                "time": duration(seconds_spent(log)) if "seconds" in log else "–",
                "score": percent(scored.iloc[-1] if len(scored) else None),
                "state": "finished" if _done(results, variant) else "not finished",
            }
        )
    return rows


def seconds_spent(log: pd.DataFrame) -> float:
    """Sum the seconds of a training over its resumptions: the column starts anew with each of them."""
    steps = log["seconds"].diff()
    return float(steps.where(steps >= 0, log["seconds"]).sum())


def _done(results: RunResults, variant: str) -> bool:
    return (results.folder / "train" / variant / "done.json").is_file()


def _of_data(results: RunResults) -> list[str]:
    params, found = results.params, []
    if params.clip == "small" and params.dataset != "scenes":
        found.append(
            f"The small CLIP knows rendered scenes only. On {data_name(params)} its masks show that the machinery "
            "runs, and say nothing about the method."
        )
    return found


def _of_training(results: RunResults) -> list[str]:
    found = []
    for variant, log in results.logs.items():
        name, last = f"“{variant_label(variant)}”", int(log["iteration"].max())
        if not _done(results, variant):
            found.append(f"Training {name} is not finished (last logged iteration {last}); start it again to go on.")
        broken = log["iteration"][~np.isfinite(log["loss"])]
        if len(broken):
            found.append(f"The loss of {name} was not finite at iteration {int(broken.iloc[0])}.")
        weights = log["weight"].dropna().tail(max(1, len(log) // 20))
        if len(weights) and weights.mean() < SWITCHED_OFF:
            found.append(
                f"In {name} the weight λ of the noisy region fell to {weights.mean():.2g}: what the network does not "
                "yet predict there can hardly be learnt any more."
            )
    return found


def _of_scores(results: RunResults) -> list[str]:
    if not results.evaluations:
        return ["Nothing was evaluated yet."]
    found, scores = [], results.evaluations
    seeds = {e["seed"] for e in scores.values() if e.get("seed") is not None}
    if len(seeds) > 1:
        found.append(f"The compared results have different seeds: {', '.join(map(str, sorted(seeds)))}.")
    counts = {e["images"] for e in scores.values()}
    if len(counts) > 1:
        found.append(f"The compared results were measured on different numbers of images: {sorted(counts)}.")
    main = scores.get(results.main_variant or "")
    if main is None:
        return found
    names, label = main["class_names"], f"“{variant_label(main['variant'])}”"
    lost = [name for name, iou in zip(names, main["iou"], strict=True) if iou is not None and iou < 0.001]
    absent = [name for name, iou in zip(names, main["iou"], strict=True) if iou is None]
    if lost:
        found.append(f"{label} never finds: {', '.join(lost)}.")
    if absent:
        found.append(f"In neither truth nor prediction, and left out of the mean: {', '.join(absent)}.")
    for other in ("pseudo_masks_global", "plain"):
        if other in scores and other != main["variant"] and (main["miou"] or 0) < (scores[other]["miou"] or 0):
            found.append(f"{label} is below “{variant_label(other)}” in mIoU.")
    return found


def _of_versions(results: RunResults) -> list[str]:
    versions = sorted({str(e["version"]) for e in results.evaluations.values() if e.get("version")} - {__version__})
    return (
        [f"Some results were made with carblib {', '.join(versions)}, this page with {__version__}."]
        if versions
        else []
    )


def _of_figures(results: RunResults, folder: Path) -> list[str]:
    command = f"carb figures runs/{results.run}"
    pictures = {figure: folder / f"{figure.name}.png" for figure in TABLE}
    missing = [_words(figure) for figure, path in pictures.items() if figure.missing(results) or not path.is_file()]
    found = [f"No figure of: {', '.join(missing)} ({command} says what each of them needs)."] if missing else []
    stale = [
        _words(figure)
        for figure, path in pictures.items()
        if path.is_file() and not figure.missing(results) and not figure.is_current(results, path)
    ]
    if stale:
        found.append(f"Older than the results they show: {', '.join(stale)}; {command} makes them again.")
    return found


def _words(figure: RunFigure) -> str:
    return figure.name.replace("_", " ")
