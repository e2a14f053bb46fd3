"""Evaluation: streams a split through `carblib.metrics` and `carblib.small_objects`; writes `runs/<run>/evaluation/`.

`carb evaluate params/x.yaml --folder predictions/ --split val` measures any folder of index PNGs.
"""

from __future__ import annotations

import dataclasses
import shutil
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from carblib import __version__
from carblib.base import files
from carblib.base.errors import CarbError
from carblib.base.parallel import in_order
from carblib.base.processes import is_first, place, wait_until
from carblib.base.progress import bar_options, note
from carblib.base.stamps import joined
from carblib.data.checks import bad_files, check_split, refuse
from carblib.data.label_maps import cityscapes_label_ids, decode_index
from carblib.data.labels import some_of
from carblib.data.mask_folders import read_mask_file
from carblib.data.pictures import files_in, some
from carblib.data.readers import open_split
from carblib.data.sources import digests
from carblib.data.split import Split
from carblib.metrics import bootstrap, confusion, iou, miou
from carblib.params import Params, below_root, is_plain_name
from carblib.small_objects import Objects, join, match_objects, object_table
from carblib.transforms import resize_mask
from carblib.variants import VARIANTS

_Measured = tuple[np.ndarray, Objects, tuple[int, ...]]  # of an image: confusion, objects, size

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
    made_from: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measure `predict(i)` -> (H, W) uint8 train ids on every image of a split, and write the result as JSON and CSV.

    `predict` is called in this thread alone. Masks must have the truth's size; with `resize` they are brought to it by
    nearest neighbour (pseudo-masks exported at the base size). Writes runs/<run>/evaluation/<split>/<variant>.json,
    .csv (per class) and .npz (per image) and returns the JSON's: IoUs 0–1 with None for nan, 95 % intervals over
    images, per-image scores, small objects by size bin, `made_from` (as of `compared`). Raises CarbError naming the
    image whose mask does not fit.
    """
    images = range(len(split))
    measured = _measure(map(predict, images), images, split, params, variant, resize)
    return _write(measured, split, params, variant, iteration, {"made_from": made_from})


def _measure(
    predictions: Iterable[np.ndarray], images: Sequence[int], split: Split, params: Params, variant: str, resize: bool
) -> list[_Measured]:
    """Measure the predictions of some images of a split, in the order of these."""
    if not len(split):
        raise CarbError(f"split {split.name}: no image to evaluate; check the data folder")
    check_split(params, split, masks=True)

    def measure(pair: tuple[int, np.ndarray]) -> _Measured:
        index, prediction = pair[0], np.asarray(pair[1])
        truth = split.mask(index)
        if resize and prediction.shape != truth.shape:
            prediction = resize_mask(prediction, truth.shape)
        try:
            counts = confusion(prediction, truth, len(split.class_set))
            return counts, match_objects(prediction, truth, split.class_set.small_ids), truth.shape
        except CarbError as error:
            raise CarbError(f"{variant}, image {split.names[index]}: {error}") from error

    measured = in_order(measure, zip(images, predictions, strict=True), params.workers)
    return [*tqdm(measured, f"evaluate {variant}", len(images), unit="image", disable=not is_first(), **bar_options())]


def _write(
    measured: Sequence[_Measured],
    split: Split,
    params: Params,
    variant: str,
    iteration: int | None,
    noted: Mapping[str, Any],
) -> dict[str, Any]:
    """Write what was measured of all images of a split, with what is `noted`, and return the JSON's."""
    counts, objects, sizes = zip(*measured, strict=True)
    matrices = np.stack(counts)
    _note_uncounted(split, matrices.sum(2))
    result = _result(split, params, variant, iteration, matrices, objects, tuple(np.mean(sizes, 0))) | noted
    path = evaluation_path(params, variant, split.name)
    files.write_csv(path.with_suffix(".csv"), class_rows(result))
    _write_per_image(path.with_suffix(".npz"), matrices, objects)
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

    `label_ids`: a Cityscapes submission, labelIds in `<name>*.png`. As `evaluate_masks` else. Notes folder, options and
    `made_from` (see `compared`), by which `carb status` and `carb batch` tell whether it is up to date. Raises
    CarbError for a prediction that is missing (before anything is measured) or no mask of these classes. Of a
    launcher's processes each measures its share, and all return the same.
    """
    folder = Path(folder)
    if not is_plain_name(variant):
        raise CarbError(f"variant '{variant}': no plain name of a file; leave out / and \\ and a dot before it")
    paths = prediction_paths(folder, split.names, label_ids)
    refuse(params, folder, variant, bad_files(params, [None] * len(paths), paths), len(paths))

    def predict(index: int) -> np.ndarray:
        if label_ids:
            return decode_index(paths[index], cityscapes_label_ids())
        return read_mask_file(paths[index], split.class_set)

    noted = {
        "folder": below_root(folder.resolve()),
        "options": ["--resize"] * resize + ["--label-ids"] * label_ids,
        "made_from": compared(params, split, joined(digests(params, split.names, paths))),
    }

    def measure(images: range) -> list[_Measured]:
        read = in_order(predict, images, params.workers)
        return _measure(read, images, split, params, variant, resize)

    if place()[1] == 1:
        return _write(measure(range(len(split))), split, params, variant, iteration, noted)
    return _shared_out(measure, split, params, variant, iteration, noted)


def _shared_out(
    measure: Callable[[range], list[_Measured]],
    split: Split,
    params: Params,
    variant: str,
    iteration: int | None,
    noted: Mapping[str, Any],
) -> dict[str, Any]:
    """Measure a fixed share of the images, and return the result that the first process writes once it has all shares.

    Shares lie in <variant>.parts until then. A process that was killed and starts again finds what is done.
    """
    rank, world = place()
    path = evaluation_path(params, variant, split.name)
    expected = {"iteration": iteration, "version": __version__, **noted}
    folder, key = path.with_suffix(".parts"), joined([*map(str, expected.values())])
    parts = [folder / f"{number}-of-{world}.npz" for number in range(min(world, len(split)))]

    def result() -> dict[str, Any] | None:
        found = files.read_json(path, "delete it: it is measured again") if path.is_file() else {}
        return found if found.items() >= expected.items() else None

    if not (found := result()):
        if rank < len(parts) and not _is_part(parts[rank], key):
            counts, objects, sizes = zip(*measure(range(rank, len(split), world)), strict=True)
            _write_per_image(parts[rank], np.stack(counts), objects, size=np.array(sizes), key=np.array(key))
        if rank:
            return wait_until(result, str(path))
        wait_until(lambda: all(_is_part(part, key) for part in parts), f"their shares in {folder}")
        shares = [_read_part(part) for part in parts]
        measured = [shares[i % world][i // world] for i in range(len(split))]
        found = _write(measured, split, params, variant, iteration, noted)
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _is_part(path: Path, key: str) -> bool:
    if not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as found:
            return str(found["key"]) == key
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False  # damaged: measured again


def _read_part(path: Path) -> list[_Measured]:
    with np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    of_image = [arrays["object_image"] == i for i in range(len(arrays["size"]))]
    columns = {field.name: arrays[f"object_{field.name}"] for field in dataclasses.fields(Objects)}
    objects = [Objects(**{name: column[chosen] for name, column in columns.items()}) for chosen in of_image]
    return [*zip(arrays["confusion"].astype(np.int64), objects, map(tuple, arrays["size"].tolist()), strict=True)]


def _note_uncounted(split: Split, pixels: np.ndarray) -> None:
    """Say what of a split's masks no score can count; pixels: (N, C) of each class in each mask."""
    absent = [name for name, held in zip(split.class_set.names, pixels.any(0), strict=True) if not held]
    if absent:
        many = f"{len(absent)} of {len(split.class_set)} classes are in no mask of split '{split.name}'"
        note(f"{many}, and count only where they are predicted: {some_of(absent)}")
    void = [name for name, held in zip(split.names, pixels.any(1), strict=True) if not held]
    if void:
        many = f"{len(void)} of {len(split)} masks of split '{split.name}'"
        note(f"{many} are void throughout and count for nothing: {some_of(void)}")


def compared(params: Params, split: Split, predictions: str) -> dict[str, str]:
    """Return digests of what an evaluation is made from: predictions (theirs), true masks, classes, intervals."""
    classes = split.class_set
    return {
        "predictions": predictions,
        "true masks": joined(digests(params, split.names, split.mask_paths)),
        "classes": joined([*classes.names, *map(str, classes.small_ids)]),
        "intervals": joined([str(params.bootstrap), str(params.seed)]),
    }


def prediction_paths(folder: Path, names: Sequence[str], label_ids: bool = False) -> list[Path]:
    """Return the prediction of every image, in the order of `names`; says which PNGs are of none.

    Raises CarbError where there is no such folder, where one is missing, or there are two.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise CarbError(f"{folder}: {what}; name a folder of predictions")
    # A submission may have a folder per city; ours have pictures of the same names in colour/.
    there = [path for path in files_in(folder, deep=label_ids) if path.suffix.lower() == ".png"]
    found, strange = {name: [] for name in names}, []
    for path in there:
        stem = unicodedata.normalize("NFC", path.stem)
        begins = (stem[:end] for end in range(len(stem), 0, -1)) if label_ids else (stem,)
        found.get(next((name for name in begins if name in found), ""), strange).append(path)
    for name, paths in found.items():
        if len(paths) > 1:
            raise CarbError(f"{paths[1]}: a second prediction of image {name}, beside {paths[0].name}; keep one")
    lacking = [name for name, paths in found.items() if not paths]
    if strange:
        note(f"{folder}: {some(strange, folder)} of no image of the split")
    if lacking:
        path = folder / f"{lacking[0]}{'*' * label_ids}.png"
        raise CarbError(f"{path}: no such prediction ({len(lacking)} of {len(names)} missing); predict them first")
    return [found[name][0] for name in names]


def _result(
    split: Split,
    params: Params,
    variant: str,
    iteration: int | None,
    matrices: np.ndarray,
    objects: Sequence[Objects],
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
        "iou": plain(iou(total)),
        "miou": plain(miou(total)),
        "small_miou": plain(miou(total, class_set.small_ids)),
        "iou_interval": plain(intervals.iou),
        "miou_interval": plain(intervals.miou),
        "small_miou_interval": plain(intervals.small_miou),
        "per_image": [
            {"name": name, "miou": plain(score), "small_recall": found.recall, "small_objects": len(found)}
            for name, score, found in per_image
        ],
        "objects": object_table(join(objects), class_set, size),
    }


def plain(values: np.ndarray) -> Any:
    """Nested lists of floats, nan as None: JSON knows no nan."""
    if np.ndim(values):
        return [plain(value) for value in values]
    return None if np.isnan(values) else float(values)


def _write_per_image(path: Path, matrices: np.ndarray, objects: Sequence[Objects], **more: np.ndarray) -> None:
    """Write matrices and objects of some images as a .npz."""
    columns = {f"object_{field.name}": getattr(join(objects), field.name) for field in dataclasses.fields(Objects)}
    image = np.repeat(np.arange(len(objects)), [len(found) for found in objects])
    files.write_npz(path, confusion=matrices.astype(np.int32), object_image=image, **columns, **more)


def read_per_image(path: Path) -> dict[str, np.ndarray]:
    """Return what lies beside an evaluation's JSON: `confusion` (N, C, C+1) and the objects.

    The rows are those of its `per_image`. Raises CarbError for a missing or damaged file.
    """
    path, result = path.with_suffix(".npz"), files.read_json(path)
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        whole = len(arrays["confusion"]) == len(result["per_image"]) and "object_image" in arrays
        whole = whole and np.array_equal(arrays["confusion"].sum(0), result["confusion"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CarbError(f"{path}: cannot be read ({error}); evaluate again") from error
    if not whole:
        raise CarbError(f"{path}: is of another evaluation than {path.stem}.json; evaluate again")
    return arrays


def objects_of_images(arrays: dict[str, np.ndarray], places: np.ndarray) -> tuple[Objects, np.ndarray]:
    """Return the objects of `read_per_image` that lie in the images asked for, and the number of the image of each.

    places: (N,), where each image stands in the evaluation, -1 for one that it did not see.
    """
    number = np.full(len(arrays["confusion"]), -1)
    number[places[places >= 0]] = np.flatnonzero(places >= 0)
    objects = Objects(**{field.name: arrays[f"object_{field.name}"] for field in dataclasses.fields(Objects)})
    image = number[arrays["object_image"]]
    kept = image >= 0
    columns = {field.name: getattr(objects, field.name)[kept] for field in dataclasses.fields(Objects)}
    return Objects(**columns), image[kept]


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


def result_name(folder: Path, params: Params, split_name: str, variant: str | None = None) -> str:
    """Return the name of a folder's evaluation: `variant`, or by default the folder's own.

    That of the run's own predictions/<variant>/<split> is <variant>. Raises CarbError where the default is taken by the
    evaluation of something else, and for the name of a row of ours (`carblib.variants`) where the folder is not the
    run's own of it: figures and report would show it as ours.
    """
    folder = folder.resolve()
    name = variant or _default_name(folder, params, split_name)
    if name in VARIANTS or name.startswith("pseudo_masks"):
        own = _own_folders(params, name, split_name)
        if folder not in own:
            what = f"is for {own[0]}, and {folder} is not; name its result otherwise with --variant"
            raise CarbError(f"variant '{name}': {what}")
    return name


def _own_folders(params: Params, variant: str, split_name: str) -> list[Path]:
    """Return where a run keeps the predictions (a submission, too) or pseudo-masks of a row, resolved."""
    if variant in ("pseudo_masks", "pseudo_masks_global"):
        places = [f"pseudo_masks/{split_name}", f"pseudo_masks_crf/{split_name}"]
    elif variant.startswith("pseudo_masks"):
        places = [f"{variant}/{split_name}"]
    else:
        places = [f"predictions/{variant}/{split_name}", f"predictions/{variant}/{split_name}_labelIds"]
    return [(params.run_dir / place).resolve() for place in places]


def _default_name(folder: Path, params: Params, split_name: str) -> str:
    own = folder.parent.parent == (params.run_dir / "predictions").resolve()
    variant = folder.parent.name if own else folder.name
    path = evaluation_path(params, variant, split_name)
    if path.is_file():
        before = files.read_json(path, "delete the file and evaluate again").get("folder")
        if before != below_root(folder) and not (own and before is None):
            raise CarbError(
                f"{path}: is the evaluation of {before or 'a network of this run'}, not of {folder}; "
                "name this one with --variant"
            )
    return variant
