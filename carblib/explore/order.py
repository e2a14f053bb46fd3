"""Where the explorer begins, which images of a split it lists, and in which order: by name, or the worst first."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from carblib.base.errors import CarbError
from carblib.base.files import read_json
from carblib.base.stamps import lacking
from carblib.data.mask_folders import pseudo_mask_folder, read_mask
from carblib.data.split import Split
from carblib.explore.explorer import Explorer, ExplorerState
from carblib.metrics import iou
from carblib.params import Params
from carblib.results.saved import MAIN_FIRST
from carblib.small_objects import Objects, components
from carblib.stages.evaluate import evaluation_path, objects_of_images, read_per_image
from carblib.stages.predict import prediction_folder
from carblib.stages.pseudo_masks import middle_scale
from carblib.transforms import resize_mask

NAME, MIOU, CLASS, RECALL = "name", "lowest mIoU", "lowest IoU of the class", "lowest small-object recall"
DISAGREEMENT = "highest disagreement"


@dataclass(frozen=True)
class Choice:
    """Which images are listed, in which order; every condition that is set must hold.

    `by` is an order, `class_id` the class that CLASS speaks of. `present`: a class in the image. `pair`: a class and
    what it was taken for; most such pixels first, as long as the order is by name. `objects`: a small class and a size
    bin of which objects were missed. `tag`: one of the user's tags.
    """

    by: str = NAME
    class_id: int = 0
    present: int | None = None
    pair: tuple[int, int] | None = None
    objects: tuple[int, int] | None = None
    tag: str = ""


@dataclass(frozen=True)
class Measured:
    """What an evaluation says of each image of a split, in its order: scores (N,) 0–1, nan where there is none.

    `confusion` (N, C, C+1) counts pixels; `image` (K,) says in which image each of the K `objects` lies.
    """

    miou: np.ndarray
    recall: np.ndarray
    confusion: np.ndarray
    objects: Objects
    image: np.ndarray


def first_state(explorer: Explorer) -> ExplorerState:
    """Return the state to begin with: the run's own settings and the network that stands for it, on the first image.

    The split is one that can be sorted, as far as there is one, else val; class and local view
    are those of the image's largest object of a small class, as far as labels and truth tell.
    """
    params, (height, width) = explorer.params, explorer.params.image_size
    network = next((name for name in (*MAIN_FIRST, *explorer.networks) if name in explorer.networks), "")
    offered = {name: len(sorts(params, split, network)) for name, split in explorer.splits.items()}
    state = ExplorerState(
        max(offered, key=offered.get),  # the first of equals
        masker=params.masker,
        gate=params.gate,
        network=network,
        centre=(height // 2, width // 2),
        zoom=middle_scale(params),
    )
    try:
        _, truth, labels = explorer.subject(state)
    except CarbError:  # is said where the image is shown: another one may be whole
        return state
    present = list(range(len(explorer.class_set))) if labels is None else labels.nonzero().flatten().tolist()
    chosen = [c for c in present if c in explorer.class_set.small_ids] or present or [0]
    objects = None if truth is None else components(truth, chosen)
    if objects is None or not len(objects.pixels):
        return replace(state, class_id=chosen[0])
    largest = int(objects.pixels.argmax())
    row, column = np.median(np.argwhere(objects.labels == largest + 1), axis=0).astype(int).tolist()
    return replace(state, class_id=int(objects.class_ids[largest]), centre=(row, column))


def measured(params: Params, split: Split, network: str) -> Measured | None:
    """Return what runs/<run>/evaluation says of a split's images, None where nothing does.

    Of a trained variant or, with "", of CLIP's masks of the whole image.
    """
    path = evaluation_path(params, network or "pseudo_masks_global", split.name)
    there = path.is_file() and path.with_suffix(".npz").is_file()
    if not there or list(split.class_set.names) != read_json(path).get("class_names"):
        return None
    return _read(path, path.stat().st_mtime_ns, tuple(split.names))


@functools.lru_cache(maxsize=8)
def _read(path: Path, _: int, names: tuple[str, ...]) -> Measured:
    evaluation = read_json(path)
    rows = {row["name"]: (place, row) for place, row in enumerate(evaluation["per_image"])}
    found = [rows.get(name, (-1, {})) for name in names]
    places = np.array([place for place, _ in found], int)
    scores = [[row.get(key) for _, row in found] for key in ("miou", "small_recall")]
    of_images = read_per_image(path)
    matrices = np.where((places >= 0)[:, None, None], of_images["confusion"][places], 0)
    return Measured(*(np.array(values, float) for values in scores), matrices, *objects_of_images(of_images, places))


def sorts(params: Params, split: Split, network: str) -> list[str]:
    """Return the orders whose results are on disk, for a trained variant or, with "", for CLIP's masks."""
    found = [NAME] if measured(params, split, network) is None else [NAME, MIOU, CLASS, RECALL]
    there = network and not any(lacking(folder, split.names) for folder in _folders(params, split, network))
    return [*found, DISAGREEMENT] if there else found


def order(params: Params, split: Split, network: str, by: str = NAME, class_id: int = 0) -> list[int]:
    """Return the indices of the split's images, worst first, or by name; images without a score come last.

    Scores are read from runs/<run>/evaluation; disagreement is the share of pixels to which the pseudo-mask and the
    variant's prediction on disk give different classes.
    """
    values = scores(params, split, network, by, class_id)
    return np.lexsort((np.nan_to_num(values), np.isnan(values))).tolist()


def scores(params: Params, split: Split, network: str, by: str, class_id: int = 0) -> np.ndarray:
    """Return what an order goes by, (N,) with the worst image lowest, nan where there is no score."""
    if by == DISAGREEMENT:
        return -np.array(_disagreement(params, split, network))
    results = None if by == NAME else measured(params, split, network)
    if results is None:
        return np.full(len(split), np.nan)
    if by == CLASS:
        return iou(results.confusion)[:, class_id]
    return results.miou if by == MIOU else results.recall


def listed(
    explorer: Explorer, name: str, network: str, choice: Choice, tagged: set[str], ranked: list[int]
) -> list[int]:
    """Return those of a split's `ranked` images for which the choice's conditions hold.

    `tagged` are the names with its tag. Raises CarbError where results that a condition needs are not there.
    """
    split, kept = explorer.splits[name], np.ones(len(explorer.splits[name]), bool)
    results = measured(explorer.params, split, network)
    if (choice.pair or choice.objects) and results is None:
        raise CarbError(f"{network or 'CLIP'} on {name}: no results of each image; evaluate it again (notebook 2 or 4)")
    if choice.present is not None:
        kept &= _present(explorer, name, results)[:, choice.present]
    if choice.tag:
        kept &= np.array([one in tagged for one in split.names])
    if choice.pair:
        pixels = results.confusion[:, choice.pair[0], choice.pair[1]]
        kept &= pixels > 0
        ranked = np.argsort(-pixels, kind="stable").tolist() if choice.by == NAME else ranked
    if choice.objects:
        objects, (class_id, size) = results.objects, choice.objects
        missed = (objects.class_ids == class_id) & (objects.bins == size) & ~objects.found
        kept &= np.bincount(results.image[missed], minlength=len(split)) > 0
    return [index for index in ranked if kept[index]]


def _present(explorer: Explorer, name: str, results: Measured | None) -> np.ndarray:
    labels = explorer.labels(name)
    if labels is not None:
        return labels
    if results is None:
        make = explorer.params.command("labels", "--split", name)
        raise CarbError(f"split {name}: which classes an image holds is not known; {make}")
    return results.confusion.sum(-1) > 0


def _folders(params: Params, split: Split, network: str) -> tuple[Path, Path]:
    return pseudo_mask_folder(params.updated(crf=False), split.name), prediction_folder(params, network, split.name)


def _disagreement(params: Params, split: Split, network: str) -> list[float]:
    ours, theirs = _folders(params, split, network)
    shares = []
    for name in split.names:
        mask, other = (read_mask(folder, name, split.class_set) for folder in (ours, theirs))
        shares.append(float(np.mean(mask != resize_mask(other, mask.shape))))
    return shares
