"""Evaluation: streams a split through `carblib.metrics` and `carblib.small_objects`; writes `runs/<run>/evaluation/`.

`carb evaluate params/x.yaml --folder predictions/ --split val` measures any folder of index PNGs.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from carblib import __version__
from carblib.base import files
from carblib.base.errors import CarbError
from carblib.base.progress import bar_options
from carblib.base.stamps import joined
from carblib.data.label_maps import cityscapes_label_ids, decode_index
from carblib.data.mask_folders import mask_path, read_mask
from carblib.data.readers import Split, open_split
from carblib.data.sources import digests
from carblib.metrics import bootstrap, confusion, iou, miou
from carblib.params import Params, project_root
from carblib.small_objects import Objects, join, match_objects, object_table
from carblib.transforms import resize_mask

# --- splits ------------------------------------------------------------------------------------------------------


def evaluation_split(params: Params) -> Split:
    """Return the split results are measured on: test, or val where the masks of test are not public."""
    split = open_split(params, params.test_split)
    return split if split.has_masks else open_split(params, params.val_split)


def evaluation_path(params: Params, variant: str, split_name: str) -> Path:
    """Return runs/<run>/evaluation/<split>/<variant>.json."""
    return params.run_dir / "evaluation" / split_name / f"{variant}.json"


def evaluate_masks(
    predict: Callable[[int], np.ndarray],
    split: Split,
    params: Params,
    variant: str,
    iteration: int | None = None,
    resize: bool = False,
    folder: str | None = None,
    made_from: str = "",
) -> dict[str, Any]:
    """Measure `predict(i)` -> (H, W) uint8 train ids on every image of a split, and write the result as JSON and CSV.

    Masks must have the truth's size; with `resize` they are brought to it by nearest neighbour (pseudo-masks exported
    at the base size). `folder`, where the masks lie if they do, and `made_from` are noted in the result. Writes
    runs/<run>/evaluation/<split>/<variant>.json and .csv (per class) and returns the JSON's:
    IoUs 0–1 with None for nan, 95 % intervals over images, per-image scores, small objects by size bin. Raises
    CarbError naming the image whose mask does not fit.
    """
    if not len(split):
        raise CarbError(f"split {split.name}: no image to evaluate; check the data folder")
    matrices, objects, areas = [], [], []
    small_ids, classes = split.class_set.small_ids, len(split.class_set)
    for index in tqdm(range(len(split)), desc=f"evaluate {variant}", unit="image", **bar_options()):
        truth, prediction = split.mask(index), np.asarray(predict(index))
        if resize and prediction.shape != truth.shape:
            prediction = resize_mask(prediction, truth.shape)
        try:
            matrices.append(confusion(prediction, truth, classes))
            objects.append(match_objects(prediction, truth, small_ids))
        except CarbError as error:
            raise CarbError(f"{variant}, image {split.names[index]}: {error}") from error
        areas.append(truth.shape)
    result = _result(split, params, variant, iteration, np.stack(matrices), objects, tuple(np.mean(areas, 0)))
    result |= {"folder": folder, "made_from": made_from}
    path = evaluation_path(params, variant, split.name)
    files.write_csv(path.with_suffix(".csv"), class_rows(result))
    files.write_json(path, result)
    return result


def evaluate_folder(
    folder: str | Path,
    split: Split,
    params: Params,
    variant: str,
    iteration: int | None = None,
    resize: bool = False,
    label_ids: bool = False,
) -> dict[str, Any]:
    """Measure a folder of predictions, whoever made them: `<name>.png` of train ids, grey or palette, per image.

    `label_ids`: a Cityscapes submission, labelIds in `<name>*.png`. As `evaluate_masks` else. Raises CarbError for a
    prediction that is missing (before anything is measured) or no mask of these classes.
    """
    folder = Path(folder)
    paths = [_prediction(folder, name) if label_ids else mask_path(folder, name) for name in split.names]
    lacking = [path for path in paths if not path.is_file()]
    if lacking:
        raise CarbError(
            f"{lacking[0]}: no such prediction ({len(lacking)} of {len(paths)} missing); predict them first"
        )

    def predict(index: int) -> np.ndarray:
        if label_ids:
            return decode_index(paths[index], cityscapes_label_ids())
        return read_mask(folder, split.names[index], split.class_set)

    made_from = compared(params, split, paths)
    return evaluate_masks(predict, split, params, variant, iteration, resize, _noted(folder), made_from)


def compared(params: Params, split: Split, paths: Sequence[Path]) -> str:
    """Return a digest of what an evaluation compares: files of predictions, true masks, the classes' names."""
    truth = digests(params, split.names, split.mask_paths)
    return joined([*split.class_set.names, *digests(params, split.names, paths).values(), *truth.values()])


def _noted(folder: Path) -> str:
    # Relative to the project where it lies in it, so that a project that moved knows its folders again.
    folder, root = folder.resolve(), project_root().resolve()
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)


def _prediction(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(f"{glob.escape(name)}*.png"))
    if len(found) > 1:
        raise CarbError(f"{found[1]}: a second prediction of image {name}, beside {found[0].name}; keep one")
    return found[0] if found else folder / f"{name}*.png"


def _result(
    split: Split,
    params: Params,
    variant: str,
    iteration: int | None,
    matrices: np.ndarray,
    objects: list[Objects],
    size: tuple[float, float],
) -> dict[str, Any]:
    class_set, total = split.class_set, matrices.sum(0)
    intervals = bootstrap(matrices, class_set.small_ids, params.bootstrap, params.seed)
    per_image = zip(split.names, miou(matrices), objects, strict=True)
    return {
        "run": params.run,
        "variant": variant,
        "split": split.name,
        "images": len(split),
        "seed": params.seed,
        "iteration": iteration,
        "version": __version__,
        "class_names": list(class_set.names),
        "small_ids": list(class_set.small_ids),
        "confusion": total.tolist(),
        "iou": _plain(iou(total)),
        "miou": _plain(miou(total)),
        "small_miou": _plain(miou(total, class_set.small_ids)),
        "iou_interval": _plain(intervals.iou),
        "miou_interval": _plain(intervals.miou),
        "small_miou_interval": _plain(intervals.small_miou),
        "per_image": [
            {"name": name, "miou": _plain(score), "small_recall": found.recall, "small_objects": len(found)}
            for name, score, found in per_image
        ],
        "objects": object_table(join(objects), class_set, size),
    }


def _plain(values: np.ndarray) -> Any:
    """Nested lists of floats, nan as None: JSON knows no nan."""
    if np.ndim(values):
        return [_plain(value) for value in values]
    return None if np.isnan(values) else float(values)


def class_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of <variant>.csv: class, IoU, its interval, small, pixels in truth and prediction; means last."""
    total = np.array(result["confusion"])
    rows = []
    for c, name in enumerate(result["class_names"]):
        pixels = {"truth_pixels": int(total[c].sum()), "predicted_pixels": int(total[:, c].sum())}
        rows.append(
            _row(name, result["iou"][c], result["iou_interval"][c]) | {"small": c in result["small_ids"]} | pixels
        )
    means = [_row(key, result[key], result[f"{key}_interval"]) for key in ("miou", "small_miou")]
    return rows + means


def _row(name: str, value: float | None, interval: Sequence[float | None]) -> dict[str, Any]:
    return {"class": name, "iou": value, "low": interval[0], "high": interval[1]}


def default_variant(folder: Path, params: Params, split_name: str) -> str:
    """Return the name of a folder's evaluation: <variant> of the run's own predictions/<variant>/<split>, else its own.

    Raises CarbError where that name is taken by the evaluation of something else.
    """
    folder = folder.resolve()
    own = folder.parent.parent == (params.run_dir / "predictions").resolve()
    variant = folder.parent.name if own else folder.name
    path = evaluation_path(params, variant, split_name)
    if path.is_file():
        before = files.read_json(path).get("folder")
        if before != _noted(folder) and not (own and before is None):
            raise CarbError(
                f"{path}: is the evaluation of {before or 'a network of this run'}, not of {folder}; "
                "name this one with --variant"
            )
    return variant
