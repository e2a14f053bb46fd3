"""Evaluation: one confusion matrix per image, summed once over the split; IoU, mIoU, small classes, intervals, objects.

The upper half is maths on arrays; the lower half streams a split through it and writes `runs/<run>/evaluation/`.
`python -m carblib.evaluate params/x.yaml --folder predictions/ --split val` measures any folder of index PNGs.
"""

from __future__ import annotations

import argparse
import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from carblib import __version__, files
from carblib.errors import CarbError, cli
from carblib.label_maps import cityscapes_label_ids, decode_index
from carblib.mask_folders import mask_path, read_mask
from carblib.objects import Objects, join, match_objects, object_table
from carblib.params import Params, add_arguments, from_arguments, project_root
from carblib.progress import bar_options
from carblib.readers import Split, open_split
from carblib.transforms import resize_mask

IGNORE = 255
INTERVAL = (2.5, 97.5)  # percentiles: a 95 % interval


# --- maths -------------------------------------------------------------------------------------------------------


def confusion(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by truth (row) and prediction (column) -> (C, C+1) int64, with one bincount.

    Both masks are (H, W) uint8 train ids. Pixels whose truth is 255 don't count; a predicted 255 goes to the last
    column and is a miss of the true class, as Cityscapes' own evaluator has it. Raises CarbError for other values ≥ C.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise CarbError(f"prediction is {prediction.shape}, truth {truth.shape}; both must have one size")
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != np.uint8:
            raise CarbError(f"{name}: masks are uint8 train ids, not {mask.dtype}")
    # All 256×256 pairs are counted, then cut: cheaper than masking pixels first, and strange values can't hide.
    code = truth.astype(np.uint16) * np.uint16(256) + prediction
    table = np.bincount(code.ravel(), minlength=65536).reshape(256, 256)
    for name, values in (
        ("truth", table[classes:IGNORE].sum(1)),
        ("prediction", table[:IGNORE].sum(0)[classes:IGNORE]),
    ):
        if values.any():
            strange = classes + int(values.argmax())
            raise CarbError(f"{name} holds the value {strange}; train ids are 0 to {classes - 1}, and 255 for ignore")
    return np.concatenate([table[:classes, :classes], table[:classes, IGNORE:]], 1)


def iou(matrix: np.ndarray) -> np.ndarray:
    """IoU per class, (…, C, C+1) -> (…, C) in 0–1; nan for a class that is in neither truth nor prediction."""
    matrix = np.asarray(matrix)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return _ratio(hits, matrix.sum(-1) + matrix[..., :-1].sum(-2) - hits)


def miou(matrix: np.ndarray, class_ids: Sequence[int] | None = None) -> np.ndarray:
    """Mean IoU over the classes that are in truth or prediction, or over those of `class_ids`; (…, C, C+1) -> (…).

    nan where none of the classes is there.
    """
    return mean_of(iou(matrix), class_ids)


def mean_of(ious: np.ndarray, class_ids: Sequence[int] | None = None) -> np.ndarray:
    """Mean over the last axis of IoUs (…, C), or over `class_ids` of it, leaving out nan; nan where nothing is left."""
    chosen = ious if class_ids is None else ious[..., list(class_ids)]
    there = ~np.isnan(chosen)
    return _ratio(np.where(there, chosen, 0.0).sum(-1), there.sum(-1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


@dataclass(frozen=True)
class Intervals:
    """95 % bootstrap intervals: per class (C, 2), of mIoU (2,), of the small-class mean (2,); nan where undefined."""

    iou: np.ndarray
    miou: np.ndarray
    small_miou: np.ndarray


def bootstrap(matrices: np.ndarray, small_ids: Sequence[int], samples: int, seed: int) -> Intervals:
    """Intervals over images: `samples` times, draw N of the N images with replacement and measure their sum.

    `matrices` (N, C, C+1). All draws are one matrix product, weights (samples, N) @ matrices (N, C·(C+1)); sums stay
    exact in float64. A class that a draw leaves out is left out of that draw's means. Percentile bootstrap, seeded.
    """
    images, classes = len(matrices), matrices.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(images, (samples, images), generator=generator)
    weights = torch.zeros(samples, images, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    flat = torch.from_numpy(matrices.reshape(images, -1).astype(np.float64))
    ious = iou((weights @ flat).numpy().reshape(samples, classes, classes + 1))
    return Intervals(_interval(ious), _interval(mean_of(ious)), _interval(mean_of(ious, small_ids)))


def _interval(values: np.ndarray) -> np.ndarray:
    """(samples, …) -> (…, 2): the percentiles of the values that are not nan."""
    defined = ~np.isnan(values).all(0)
    edges = np.full((*values.shape[1:], 2), np.nan)
    if defined.any():
        edges[defined] = np.moveaxis(np.nanpercentile(values[..., defined], INTERVAL, axis=0), 0, -1)
    return edges


# --- splits ------------------------------------------------------------------------------------------------------


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
) -> dict[str, Any]:
    """Measure `predict(i)` -> (H, W) uint8 train ids on every image of a split, and write the result as JSON and CSV.

    Masks must have the truth's size; with `resize` they are brought to it by nearest neighbour (pseudo-masks exported
    at the base size). `folder`, where the masks lie if they do, is noted in the result. Writes
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
    result["folder"] = folder
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
        return read_mask(folder, split.names[index], len(split.class_set))

    return evaluate_masks(predict, split, params, variant, iteration, resize, _noted(folder))


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


def main() -> int:
    """Measure a folder of predictions against a split's masks."""
    parser = argparse.ArgumentParser(prog="python -m carblib.evaluate", description=main.__doc__)
    add_arguments(parser)
    parser.add_argument("--folder", required=True, help="predictions: <name>.png of train ids per image")
    parser.add_argument("--split", default=None, help="default: the parameters' test split")
    parser.add_argument("--variant", default=None, help="name of the result; default: the training's or folder's")
    parser.add_argument("--resize", action="store_true", help="bring predictions of another size to the truth's")
    parser.add_argument("--label-ids", action="store_true", help="a Cityscapes submission: labelIds in <name>*.png")
    chosen = parser.parse_args()
    params = from_arguments(chosen)
    split = open_split(params, chosen.split or params.test_split)
    variant = chosen.variant or default_variant(Path(chosen.folder), params, split.name)
    result = evaluate_folder(chosen.folder, split, params, variant, resize=chosen.resize, label_ids=chosen.label_ids)
    shown = {key: "–" if result[key] is None else f"{100 * result[key]:.1f} %" for key in ("miou", "small_miou")}
    print(f"{variant} on {split.name}, {result['images']} images: mIoU {shown['miou']}, small {shown['small_miou']}")
    print(evaluation_path(params, variant, split.name))
    return 0


if __name__ == "__main__":
    cli(main)
