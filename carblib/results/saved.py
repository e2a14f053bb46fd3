"""What one run saved, read back as plain data: figures, tables and the report come from this, never from a model."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carblib.base.errors import CarbError
from carblib.base.files import read_json, read_rows
from carblib.classes import ClassSet
from carblib.params import Params, is_as_written, load_params, project_root
from carblib.training.tables import read_table
from carblib.variants import MAIN_FIRST, VARIANTS, in_order

LOG_COLUMNS = ("iteration", "loss", "weight", "consistent_share", "seconds", "val_miou", "val_small_miou")
REGION_WEIGHT_COLUMNS = ("iteration", "class", "weight")
RELIABILITY_COLUMNS = ("iteration", "class", "share_consistent", "precision_consistent", "precision_noisy", "pixels")
# Everything NumPy and zipfile raise on damaged archives.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
MEASURED = ("miou", "small_miou", "split", "images")
EVALUATION_KEYS = (
    *("variant", *MEASURED, "seed", "iteration", "version", "class_names", "small_ids", "confusion", "iou"),
    *("iou_interval", "miou_interval", "small_miou_interval", "per_image", "objects"),
)


@dataclass(frozen=True)
class RunResults:
    """The saved results of runs/<run>; what was not made yet is None or an empty dict.

    JSON files, parsed: `evaluations` (by variant, all on the split that stands for the run; `validation` on the
    validation split), `analysis`, `maskers`, `ablations`, and `contrast`, an object-centric dataset's statistics, where
    the user has put contrast.json there. By variant, data frames of the CSV files in train/<variant>: `logs`,
    `reliability`, and `region_weights` where it has a weight per class.
    """

    folder: Path
    params: Params
    evaluations: dict[str, dict[str, Any]]
    validation: dict[str, dict[str, Any]]
    analysis: dict[str, Any] | None
    maskers: list[dict[str, Any]] | None
    ablations: list[dict[str, Any]] | None
    logs: dict[str, pd.DataFrame]
    reliability: dict[str, pd.DataFrame]
    contrast: dict[str, Any] | None = None
    region_weights: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """The run's name, which is its folder's."""
        return self.folder.name

    @property
    def figures_dir(self) -> Path:
        """Folder of the run's figures and tables."""
        return project_root() / "figures" / self.run

    def command(self, name: str) -> str:
        """Return the command that shows these results, read with these parameters: figures, report."""
        moved = self.params.run_dir.resolve() != self.folder
        return f"carb {name} runs/{self.run}" if moved else self.params.command(name)

    @property
    def main_variant(self) -> str | None:
        """The trained variant that stands for the run: the first of MAIN_FIRST, else any other but the ceiling."""
        trained = [v for v in self.evaluations if not v.startswith("pseudo_masks")]
        ranked = [v for v in MAIN_FIRST if v in trained]
        others = [v for v in trained if v not in VARIANTS]
        return next(iter(ranked + others + trained), None)


class Missing(Exception):
    """Results that a figure needs and the run has not got; the message says what makes them."""


def read_evaluations(folder: Path, params: Params) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {split: {variant: evaluation}} of runs/<run>, the split that stands for the run first.

    That is the test split, else the validation split, where a trained network was measured on it; else the one of them
    that has any evaluation. Only evaluations of one split may stand in one chart or table. Raises CarbError.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("evaluation/*/*.json")):
        found.setdefault(path.parent.name, {})[path.stem] = _evaluation(path, params)
    order = [params.test_split, params.val_split]

    def rank(split: str) -> tuple:
        only_masks = all(variant.startswith("pseudo_masks") for variant in found[split])
        place = order.index(split) if split in order else len(order)
        return only_masks, place, split

    return {split: {v: found[split][v] for v in in_order(found[split])} for split in sorted(found, key=rank)}


def load_results(folder: str | Path, params: Params | None = None) -> RunResults:
    """Read everything runs/<run> holds. `params` default to the run's own params.yaml.

    Raises CarbError for a missing folder, a damaged file, or results of other classes than the parameters'.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CarbError(f"{folder}: no such run folder; run the notebooks first (carb batch params/demo.yaml)")
    params = params or run_params(folder)
    measured = read_evaluations(folder, params)
    weights = _frames(folder, "region_weights.csv", REGION_WEIGHT_COLUMNS)
    return RunResults(
        folder=folder.resolve(),
        params=params,
        evaluations=next(iter(measured.values()), {}),
        validation=measured.get(params.val_split, {}),
        analysis=_analysis(folder / "analysis.json", params),
        maskers=_rows(folder / "maskers.json", ("masker", *MEASURED, "seconds")),
        ablations=_rows(folder / "ablations.json", ("variant", "path", "masker", "seed", *MEASURED)),
        logs=_frames(folder, "log.csv", LOG_COLUMNS),
        reliability=_frames(folder, "reliability.csv", RELIABILITY_COLUMNS),
        region_weights={variant: frame for variant, frame in weights.items() if frame["class"].nunique() > 1},
        contrast=read_json(folder / "contrast.json", "mend or delete it")
        if (folder / "contrast.json").is_file()
        else None,
    )


def run_params(folder: Path) -> Params:
    """Read the parameters a run was made with, which its notebooks leave in params.yaml."""
    path = folder / "params.yaml"
    if path.is_file():
        if not is_as_written(path):
            print(f"{path}: changed since the run wrote it, or damaged; taken as it is")
        return load_params(path)
    raise CarbError(f"{path}: no such file; name the parameters with --params params/{folder.resolve().name}.yaml")


def prediction_path(results: RunResults, variant: str, split: str, name: str) -> Path:
    """Return where the mask of one image lies: a pseudo-mask for pseudo_masks_*, else the variant's prediction."""
    masks = "pseudo_masks_crf" if results.params.crf else "pseudo_masks"
    folder = {"pseudo_masks_global": masks}.get(variant, variant)
    folder = folder if folder.startswith("pseudo_masks") else f"predictions/{folder}"
    return results.folder / folder / split / f"{name}.png"


def region_folders(results: RunResults, variant: str) -> dict[int, Path]:
    """Return {iteration: folder of <name>.npz} of a variant's saved region maps, ascending; {} where there is none."""
    folders = (results.folder / "train" / variant / "regions").glob("*/")
    found = {int(folder.name): folder for folder in folders if folder.name.isdigit() and any(folder.glob("*.npz"))}
    return dict(sorted(found.items()))


def read_regions(path: Path) -> dict[str, np.ndarray]:
    """Read one image's region maps: pseudo_mask and prediction (H, W) uint8, consistent (H, W) bool."""
    return read_arrays(path, ("pseudo_mask", "prediction", "consistent"), "train again")


def read_arrays(path: Path, keys: Sequence[str], remedy: str, also: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read these arrays of an npz file, and those of `also` that it holds.

    Raises CarbError, with the remedy, where it is damaged or lacks one of `keys`.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in (*keys, *(key for key in also if key in arrays))}
    except _DAMAGE as error:
        raise CarbError(f"{path}: damaged ({error}); delete it and {remedy}") from error


def class_groups(reliability: pd.DataFrame, class_set: ClassSet) -> dict[str, pd.DataFrame]:
    """Pool reliability over all, large and small classes: {group: frame of iteration, share, inside, outside}, 0–1.

    share = consistent / labelled pixels; inside and outside = share of the consistent and of the noisy pixels whose
    CLIP label is right. nan where a group has no such pixel.
    """
    rows = reliability[reliability["class"] != "all"].copy()
    small = {class_set.names[c] for c in class_set.small_ids}
    rows["consistent"] = (rows["pixels"] * rows["share_consistent"]).fillna(0)
    rows["noisy"] = rows["pixels"] - rows["consistent"]
    rows["right_inside"] = (rows["consistent"] * rows["precision_consistent"]).fillna(0)
    rows["right_outside"] = (rows["noisy"] * rows["precision_noisy"]).fillna(0)
    is_small = rows["class"].isin(small)
    chosen = {"all classes": rows, "large classes": rows[~is_small], "small classes": rows[is_small]}
    return {name: _pooled(group) for name, group in chosen.items() if len(group)}


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    sums = rows.groupby("iteration")[["pixels", "consistent", "noisy", "right_inside", "right_outside"]].sum()
    parts = {
        "share": sums["consistent"] / sums["pixels"].where(sums["pixels"] > 0),
        "inside": sums["right_inside"] / sums["consistent"].where(sums["consistent"] > 0),
        "outside": sums["right_outside"] / sums["noisy"].where(sums["noisy"] > 0.5),
    }
    return pd.DataFrame(parts).reset_index()


def numbers(values: Any) -> np.ndarray:
    """Turn a (nested) list from JSON into a float array, None becoming nan."""
    return np.array(values, dtype=float)


# --- reading, with one-line errors -------------------------------------------------------------------------------


def _evaluation(path: Path, params: Params) -> dict[str, Any]:
    evaluation = read_json(path, "delete the file and evaluate again")
    for key in EVALUATION_KEYS:
        if key not in evaluation:
            raise CarbError(f"{path}: '{key}' is missing; delete the file and evaluate again")
    _same_classes(path, evaluation["class_names"], params)
    return evaluation


def _analysis(path: Path, params: Params) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    analysis = read_json(path, "carb analyse makes it again")
    _same_classes(path, analysis.get("class_names", []), params)
    return analysis


def _same_classes(path: Path, names: list[str], params: Params) -> None:
    if tuple(names) != params.class_set.names:
        raise CarbError(f"{path}: made for other classes than the parameters' {params.class_set.name}; make it again")


def _rows(path: Path, keys: tuple[str, ...]) -> list[dict[str, Any]] | None:
    if not path.is_file():
        return None
    return read_rows(path, keys, f"carb {'quality' if path.stem == 'maskers' else 'ablate'} makes it again")


def _frames(folder: Path, name: str, columns: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """Read a CSV of every training, by variant in reading order; those without a row are left out."""
    frames = {path.parent.name: read_table(path, columns) for path in sorted(folder.glob(f"train/*/{name}"))}
    return {variant: frames[variant] for variant in in_order(frames) if len(frames[variant])}
