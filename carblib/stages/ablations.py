"""Ablations: the grid of variants x paths x maskers x seeds from one parameters file, finished cells skipped.

A masker and a path make a run of their own, `runs/<run>.<masker>.<path>/`, in which every variant is trained with
every seed; what they share (pseudo-masks, the frozen backbone's features) is made once. A cell whose measurement was
made from other things than now is measured again. The rows, one per cell, are in ``runs/<run>/ablations.json``:
``carb ablate params/demo.yaml``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.base.stamps import joined, sources_changed, wait_for
from carblib.data.checks import check_split
from carblib.data.labels import ensure_labels
from carblib.data.readers import open_split
from carblib.data.sources import contents, digests, prediction_stamp
from carblib.data.split import Split
from carblib.infer import predict_mask
from carblib.params import Params
from carblib.stages.evaluate import (
    compared,
    evaluate_folder,
    evaluate_masks,
    evaluation_path,
    evaluation_split,
    prediction_paths,
)
from carblib.stages.pseudo_masks import ensure_masks, export_masks
from carblib.training.loop import Shared, share, train
from carblib.training.state import is_done, load_trained
from carblib.training.tables import read_table

PATHS: dict[str, dict[str, Any]] = {  # what each path sets
    "dual": {"path": "dual", "crf": False},
    "single": {"path": "single", "crf": False},
    "single_crf": {"path": "single", "crf": True},
}
_SCORES = ("miou", "small_miou", "iou", "images", "split")


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
    measured. Until a cell is reached, the row of an earlier call stays. Raises CarbError where a cell was trained with
    other parameters.
    """
    table, cells, split = params.run_dir / "ablations.json", grid(params), evaluation_split(params)
    if not split.has_masks:
        raise CarbError(f"{params.data_root}: neither test_split nor val_split has masks, so nothing can be measured")
    check_split(params, split, masks=True)
    rows, in_order = _rows_before(table, split), [cell for of_group in cells.values() for cell in of_group]
    for (masker, path), of_group in cells.items():
        group, shared = group_params(params, masker, path), None
        for cell in of_group:
            if not is_measured(cell, group, split):
                if cell.seed is not None and shared is None:
                    shared = prepare(group)
                measure(cell, group, split, shared)
            result = files.read_json(evaluation_path(group, cell.name, split.name))
            scores = {key: result[key] for key in _SCORES}
            rows[cell] = asdict(cell) | scores
            files.write_json(table, [rows[cell] for cell in in_order if cell in rows])
            print(f"{masker}, {path}, {cell.name}: mIoU {100 * scores['miou']:.1f} %", flush=True)
    return [rows[cell] for cell in in_order]


def _rows_before(table: Path, split: Split) -> dict[Cell, dict[str, Any]]:
    """Return the rows of an earlier call on the same split."""
    keys = [field.name for field in fields(Cell)]
    with contextlib.suppress(CarbError):  # none yet, or damaged: what is measured tells it again
        rows = files.read_rows(table, (*keys, *_SCORES))
        return {Cell(*(row[key] for key in keys)): row for row in rows if row["split"] == split.name}
    return {}


def is_measured(cell: Cell, group: Params, split: Split) -> bool:
    """Tell whether a cell is finished; where it was measured on other things, a line says so.

    Raises CarbError if it was trained with other parameters.
    """
    path = evaluation_path(group, cell.name, split.name)
    if not path.exists():
        return False
    if cell.seed is not None and not is_done(cell_folder(cell, group), cell_params(cell, group)):
        return False
    before = files.read_json(path, "delete it: it is measured again").get("made_from")
    changes = sources_changed(before, made_from(cell, group, split))
    if not changes.none:
        print(f"{path}: {changes}; measured again")
    return changes.none


def made_from(cell: Cell, group: Params, split: Split) -> dict[str, str]:
    """Return digests of what a cell's measurement is made from; pseudo-masks that are not there are made."""
    if cell.seed is None:
        paths = prediction_paths(_pseudo_masks(group, split), split.names)
        return compared(group, split, joined(digests(group, split.names, paths)))
    weights = contents(group).digest(cell_folder(cell, group) / "final.pt")
    return compared(group.updated(seed=cell.seed), split, prediction_stamp(group, split, weights).digest)


def _pseudo_masks(group: Params, split: Split) -> Path:
    return wait_for(export_masks(group, split.name), split.names)


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
        evaluate_folder(_pseudo_masks(group, split), split, group, cell.name, resize=True)
        return
    params = group.updated(seed=cell.seed)
    folder = train(params, cell.variant, shared, cell_folder(cell, group))
    sources = made_from(cell, group, split)
    network = load_trained(folder / "final.pt")[0].to(shared.fabric.device)

    def predict(index: int) -> np.ndarray:
        return predict_mask(network, split.image(index), params)

    evaluate_masks(predict, split, params, cell.name, params.iterations, made_from=sources)


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
    frames = [read_table(path, ("iteration", "class", *columns)) for path in paths]
    if not frames:
        return pd.DataFrame(columns=columns)
    last = [frame[frame["iteration"] == frame["iteration"].max()] for frame in frames]
    return pd.concat(last).groupby("class", sort=False)[columns].mean()
