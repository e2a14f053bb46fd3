"""Ablations: the grid of variants x paths x maskers x seeds from one parameters file, finished cells skipped.

A masker and a path make a run of their own, `runs/<run>.<masker>.<path>/`, in which every variant is trained with
every seed; what they share (pseudo-masks, the frozen backbone's features) is made once. The rows, one per cell, are in
``runs/<run>/ablations.json``: ``carb ablate params/demo.yaml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.data.labels import ensure_labels
from carblib.data.readers import Split, open_split
from carblib.infer import predict_mask
from carblib.params import Params
from carblib.stages.evaluate import evaluate_folder, evaluate_masks, evaluation_path, evaluation_split
from carblib.stages.pseudo_masks import ensure_masks, export_masks
from carblib.training.loop import Shared, share, train
from carblib.training.state import is_done, load_trained

PATHS: dict[str, dict[str, Any]] = {  # what each path sets
    "dual": {"path": "dual", "crf": False},
    "single": {"path": "single", "crf": False},
    "single_crf": {"path": "single", "crf": True},
}


@dataclass(frozen=True)
class Cell:
    """One measurement of the grid; seed None for the pseudo-masks, which have none."""

    masker: str
    path: str
    variant: str
    seed: int | None

    @property
    def name(self) -> str:
        """Folder of the training and name of the evaluation within the group's run."""
        return self.variant if self.seed is None else f"{self.variant}-seed{self.seed}"


def grid(params: Params) -> dict[tuple[str, str], list[Cell]]:
    """The cells by (masker, path). The ceiling depends on neither and is trained in the first group only."""
    groups = [(masker, path) for masker in params.ablation_maskers for path in params.ablation_paths]
    cells = {}
    for group in groups:
        variants = [v for v in params.ablation_variants if v != "ceiling" or group == groups[0]]
        trained = [Cell(*group, variant, seed) for variant in variants for seed in params.ablation_seeds]
        cells[group] = [Cell(*group, "pseudo_masks", None), *trained]
    return cells


def run_ablations(params: Params) -> list[dict[str, Any]]:
    """Train and measure every cell on the test split; returns and saves the rows, seeds not averaged.

    A row: masker, path, variant, seed, miou, small_miou, iou per class (0-1). Rows of variant "pseudo_masks" hold the
    quality of the masks themselves on the same images. Where the test masks are not public, the validation split is
    measured. Raises CarbError where a cell was trained with other parameters.
    """
    rows, split = [], evaluation_split(params)
    if not split.has_masks:
        raise CarbError(f"{params.data_root}: neither test_split nor val_split has masks, so nothing can be measured")
    for (masker, path), cells in grid(params).items():
        group, shared = group_params(params, masker, path), None
        for cell in cells:
            if not is_measured(cell, group, split):
                if cell.seed is not None and shared is None:
                    shared = prepare(group)
                measure(cell, group, split, shared)
            result = files.read_json(evaluation_path(group, cell.name, split.name))
            scores = {key: result[key] for key in ("miou", "small_miou", "iou", "images", "split")}
            rows.append({"masker": masker, "path": path, "variant": cell.variant, "seed": cell.seed} | scores)
            files.write_json(params.run_dir / "ablations.json", rows)
            print(f"{masker}, {path}, {cell.name}: mIoU {100 * scores['miou']:.1f} %", flush=True)
    return rows


def is_measured(cell: Cell, group: Params, split: Split) -> bool:
    """Tell whether a cell is finished; CarbError if it was trained with other parameters."""
    path = evaluation_path(group, cell.name, split.name)
    if not path.exists():
        return False
    if cell.seed is not None and not is_done(cell_folder(cell, group), cell_params(cell, group)):
        return False
    return files.read_json(path)["images"] == len(split)


def cell_params(cell: Cell, group: Params) -> Params:
    """Return the parameters a cell is trained with."""
    return group.updated(seed=cell.seed).variant(cell.variant)


def cell_folder(cell: Cell, group: Params) -> Path:
    """Return the folder of a cell's training."""
    return group.run_dir / "train" / cell.name


def group_params(params: Params, masker: str, path: str) -> Params:
    """The parameters of a masker and path: a run of its own that reads the same image-level labels."""
    if params.pseudo_masks:
        raise CarbError("pseudo_masks: the ablations make masks with each of ablation_maskers; leave the key empty")
    labels = params.labels
    if params.gate != "none":
        ensure_labels(params, open_split(params, params.train_split))
        # Relative to the project root, so that a folder of runs can be moved and its cells still count as finished.
        labels = labels or f"runs/{params.run}/labels/{params.train_split}.csv"
    return params.updated(run=f"{params.run}.{masker}.{path}", masker=masker, labels=labels, **PATHS[path])


def prepare(group: Params) -> Shared:
    """Make what all trainings of a group share: pseudo-masks on disk (single path), CLIP and cached features."""
    ensure_masks(group)
    return share(group)


def measure(cell: Cell, group: Params, split: Split, shared: Shared | None) -> None:
    """Train the cell if it is a training, and write its evaluation."""
    if cell.seed is None:
        evaluate_folder(export_masks(group, split.name), split, group, cell.name, resize=True)
        return
    params = group.updated(seed=cell.seed)
    folder = train(params, cell.variant, shared, cell_folder(cell, group))
    network, trained = load_trained(folder / "final.pt")
    network.to(shared.fabric.device)
    evaluate_masks(
        lambda i: predict_mask(network, split.image(i), trained), split, params, cell.name, trained.iterations
    )


def regions_at_the_end(params: Params) -> list[dict[str, Any]]:
    """What became of the consistent region, per class, at the end of every balanced training: means over seeds.

    A row: masker, path, variant, class ("all" too), weight (lambda; of "all" where the classes share it),
    share_consistent, precision_consistent and precision_noisy (0-1, on validation images), None where not known.
    """
    rows = []
    for (masker, path), cells in grid(params).items():
        group = group_params(params, masker, path)
        balanced = [cell for cell in cells if cell.seed is not None and cell_params(cell, group).balancing]
        for variant in dict.fromkeys(cell.variant for cell in balanced):
            folders = [cell_folder(cell, group) for cell in balanced if cell.variant == variant]
            weights = _at_the_end(folders, "region_weights.csv", ["weight"])
            shares = ["share_consistent", "precision_consistent", "precision_noisy"]
            means = _at_the_end(folders, "reliability.csv", shares).join(weights)
            for name, values in means.iterrows():
                row = {"masker": masker, "path": path, "variant": variant, "class": name}
                rows.append(row | {key: None if pd.isna(value) else float(value) for key, value in values.items()})
    return rows


def _at_the_end(folders: Sequence[Path], name: str, columns: list[str]) -> pd.DataFrame:
    """Mean over trainings of the last rows of a CSV, by class; no row where none was watched (val_every: 0)."""
    paths = [folder / name for folder in folders if (folder / name).exists()]
    frames = [pd.read_csv(path, converters={"class": str}) for path in paths]  # whatever a class is called: "nan"
    if not frames:
        return pd.DataFrame(columns=columns)
    last = [frame[frame["iteration"] == frame["iteration"].max()] for frame in frames]
    return pd.concat(last).groupby("class", sort=False)[columns].mean()
