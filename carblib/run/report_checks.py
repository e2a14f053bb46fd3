"""What a reader of a report should be warned of: unfinished, collapsed, stale or incomparable results."""

from __future__ import annotations

import numpy as np

from carblib import __version__
from carblib.base.errors import CarbError
from carblib.figures.table import TABLE
from carblib.results.saved import RunResults
from carblib.results.words import data_name
from carblib.run.status import STALE, results_status, stale_figures
from carblib.variants import variant_label

SWITCHED_OFF = 0.05  # weight λ below which the noisy region has next to no say


def find_warnings(results: RunResults) -> list[str]:
    """Return sentences that warn of what the numbers alone do not say; none for a run that is as it should be."""
    checks = (_of_data, _of_training, _of_scores, _of_versions, _of_stale_results, _of_figures)
    return [sentence for check in checks for sentence in check(results)]


def _of_data(results: RunResults) -> list[str]:
    params = results.params
    if params.clip != "small" or params.dataset == "scenes":
        return []
    return [
        f"The small CLIP knows rendered scenes only. On {data_name(params)} its masks show that the machinery runs, "
        "and say nothing about the method."
    ]


def _of_training(results: RunResults) -> list[str]:
    found = []
    for variant, log in results.logs.items():
        name, last = f"“{variant_label(variant)}”", int(log["iteration"].max())
        if not (results.folder / "train" / variant / "done.json").is_file():
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
    seeds = {e["seed"] for e in scores.values()}
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
    others = [version for version in result_versions(results) if version != __version__]
    return [f"Some results were made with carblib {', '.join(others)}, this page with {__version__}."] if others else []


def result_versions(results: RunResults) -> list[str]:
    """Return the versions of carblib that a run was evaluated with."""
    return sorted({evaluation["version"] for evaluation in results.evaluations.values()})


def _of_figures(results: RunResults) -> list[str]:
    command = results.command("figures")
    missing = [
        figure.name.replace("_", " ")
        for figure in TABLE
        if figure.missing(results) or not (results.figures_dir / f"{figure.name}.png").is_file()
    ]
    found = [f"No figure of: {', '.join(missing)} ({command} says what each of them needs)."] if missing else []
    stale = stale_figures(results)
    for why, names in stale.items():
        words = ", ".join(name.replace("_", " ") for name in names)
        found.append(f"Left out, since they do not show these results: {words} ({why}); {command} draws them again.")
    return found


def _of_stale_results(results: RunResults) -> list[str]:
    """What of the results would be made otherwise now; nothing where the data are not there to be compared."""
    params = results.params
    if not params.data_root.is_dir():
        return []
    try:
        stale = [f"{row.what} ({row.why})" for row in results_status(params) if row.state == STALE]
    except CarbError as error:
        return [f"Whether the results are up to date cannot be told: {error}."]
    command = params.command("status")
    return [f"Not what would be made now: {'; '.join(stale)}. {command} says how to make it."] if stale else []
