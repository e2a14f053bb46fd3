"""Datasets on disk as one kind of split: names, images, and masks of train ids where there are any.

Which form of a dataset lies on disk is seen from its folders (`root` in the parameters, `S` a split):

- scenes, camvid: `S/X.png` + `Sannot/X.png` (SegNet: 0–10, 11 = void) · `img/S/X.png` + `mask/S/X.png` (CARB) ·
  `701_StillsRaw_full/X.png` + `LabeledApproved_full/X_L.png` (original, 32 colours; the standard split, or the names
  listed in `S.txt`) · `S/X.png` + `S_labels/X_L.png` (32 colours in split folders)
- cityscapes: `leftImg8bit/S/<city>/X_leftImg8bit.png|jpg|…` + `gtFine/S/<city>/X_gtFine_labelTrainIds.png` or
  `…labelIds.png`
- wilddash2: `images/X.jpg` + `panoptic/X.png` + `panoptic.json` (official package; one video in eight is val, or the
  names listed in `S.txt`) · `img/S/X.jpg` + `mask/S/X_labelTrainIds.png` (CARB)
- folder: `S/X.jpg|png|…`, or the images right in `root`; masks, if any, in `Sannot/`, `masks/S/` or `masks/`. `S` may
  have subfolders, and its masks the same ones: `S/front/X.jpg` is the image `front_X`. Endings may be in capitals

Nothing reads a mask when a split is opened: weakly supervised training goes without. What lies in these folders and is
not read, though it looks as if it should be, is told in a line.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carblib.base.errors import CarbError, nearest, refusals
from carblib.base.progress import note
from carblib.classes import CAMVID, CITYSCAPES, WILDDASH2, ClassSet
from carblib.data import label_maps
from carblib.data.checks import without_bad
from carblib.data.pictures import files_in, images_in, is_picture, listed, pictures_in, pngs_in, some
from carblib.data.sheets import read_text
from carblib.data.split import Decode, Split
from carblib.params import Params, is_plain_name, resolve

_MASK_FOLDERS = {"masks", "mask", "annot", "annotations", "labels"}


class _Found(NamedTuple):
    # What an opener saw on disk: files by name, how to read a mask, and what is left out, in words.
    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    mask_note: str
    decode: Decode
    left_out: tuple[str, ...] = ()


@refusals()
def open_split(params: Params, split: str) -> Split:
    """Open a split of the run's dataset; no mask is read, and a split without masks opens as well.

    A line is printed, once, for files that are left out: masks of no image, images that no split holds.

    Raises CarbError for a missing folder, for folders that fit no form of the dataset or several, for classes that are
    not the dataset's, and for names that cannot be those of files. With `skip_bad`, files that cannot be used are left
    out, as far as their headers tell.
    """
    root, classes = params.data_root, params.class_set
    if not is_plain_name(split):
        raise CarbError(f"split '{split}': no plain name of a folder; name one that lies right in {root}")
    if not root.is_dir():
        counts = {params.train_split: params.scenes_train, params.val_split: params.scenes_val}
        words = ["--split", split, "--count", counts.get(split, params.scenes_test), "--seed", params.scenes_seed]
        render = f"render them: {shlex.join(map(str, ('carb', 'scenes', root, *words)))}"
        remedy = render if params.dataset == "scenes" else "set `root` in the parameters"
        raise CarbError(f"{root}: no such folder for dataset {params.dataset}; {remedy}")
    if params.dataset == "cityscapes":
        found = _open_cityscapes(root, split, classes)
    elif params.dataset == "wilddash2":
        found = _open_wilddash2(root, split, classes)
    elif params.dataset == "folder":
        found = _open_folder(root, split, params)
    else:
        found = _open_camvid(root, split, classes)
    for left_out in found.left_out:
        note(left_out)
    names = _chosen(sorted(found.images), split, params)
    images, masks = [found.images[name] for name in names], [found.masks.get(name) for name in names]
    opened = Split(split, classes, root, names, images, masks, found.mask_note, found.decode)
    return without_bad(params, opened) if params.skip_bad else opened


def _chosen(names: list[str], split: str, params: Params) -> list[str]:
    # Those that the run's list of images names, as split/name; a split of which it names none is whole.
    if not params.images:
        return names
    path = resolve(params.images)
    if not path.is_file():
        raise CarbError(f"{path}: no such list, but `images` names it; write it, or set images: ''")
    wanted = {
        line.strip().removeprefix(f"{split}/") for line in read_text(path).splitlines() if line.startswith(f"{split}/")
    }
    strange = sorted(wanted - {*names})
    if strange:
        hint = nearest(strange[0], names) or "mend the list"
        raise CarbError(f"{path}: lists {split}/{strange[0]}, which is not among the images; {hint}")
    return [name for name in names if name in wanted] if wanted else names


@refusals()
def open_pictures(folder: Path, classes: ClassSet) -> Split:
    """Open any folder of pictures, with its subfolders but `masks/`, as a split of the folder's name without masks.

    Raises CarbError for a folder that is missing, empty or holds pictures that cannot be read.
    """
    if not folder.is_dir():
        is_file = "is a file; name the folder that holds the pictures"
        raise CarbError(f"{folder}: {is_file if folder.exists() else 'no such folder; check --images'}")
    found = images_in(folder, deep=True, remedy="check --images")
    names = sorted(name for name, path in found.items() if folder / "masks" not in path.parents)
    if not names:
        raise CarbError(f"{folder}: no pictures in it but masks/; check --images")
    images, masks = [found[name] for name in names], [None] * len(names)
    decode = partial(label_maps.decode_index, table=label_maps.own_indices(len(classes)), palette=classes.palette)
    return Split(folder.name or "pictures", classes, folder, names, images, masks, "only pictures are read", decode)


# --- one opener per dataset ----------------------------------------------------------------------------------------


def _open_camvid(root: Path, split: str, classes: ClassSet) -> _Found:
    _require_classes("camvid", classes, CAMVID)
    indices = partial(label_maps.decode_index, table=label_maps.camvid_indices(), palette=classes.palette)
    colours = partial(label_maps.decode_packed, table=label_maps.camvid_colours())
    carb, segnet, original = root / "img" / split, root / split, root / "701_StillsRaw_full"
    form = _one_of(root, split, {"CARB form": carb, "SegNet form": segnet, "original frames": original})
    if form == "CARB form":
        return _paired(carb, root / "mask" / split, "", indices)
    if form == "original frames":
        found = _paired(original, root / "LabeledApproved_full", "_L", colours)
        return _of_split(found, root, split, label_maps.camvid_split)
    annot, labels = root / f"{split}annot", root / f"{split}_labels"
    if annot.is_dir() and labels.is_dir():
        raise CarbError(f"{root}: both {annot.name} (indices) and {labels.name} (colours) hold masks; move one away")
    if labels.is_dir():
        return _paired(segnet, labels, "_L", colours)
    return _paired(segnet, annot, "", indices)


def _open_cityscapes(root: Path, split: str, classes: ClassSet) -> _Found:
    _require_classes("cityscapes", classes, CITYSCAPES)
    folder = root / "leftImg8bit" / split
    _one_of(root, split, {"official form": folder})
    truth, ending = root / "gtFine" / split, "_leftImg8bit"
    pictures = pictures_in(folder, deep=True)
    if not any(path.stem.endswith(ending) for path in pictures):
        raise CarbError(f"{folder}: no <city>/*{ending}.png in it; unzip leftImg8bit_trainvaltest.zip again")
    images = images_in(folder, True, ending, flat=True)
    masks = pngs_in(truth, "_gtFine_labelIds", flat=True) | pngs_in(truth, "_gtFine_labelTrainIds", flat=True)
    left_out = _left_out(truth, [path for name, path in masks.items() if name not in images], folder)
    used = {*images.values()}
    unread = [path for path in pictures if path not in used]
    if unread:
        left_out += (f"{folder}: {some(unread, folder)} not read, for the name does not end in {ending}",)
    looked = f"looked for {root}/gtFine/{split}/<city>/<name>_gtFine_labelTrainIds.png and …_labelIds.png"
    if split == "test":
        # The masks published for test are blank: they would count as truth with nothing but void in it.
        masks, looked = {}, "Cityscapes keeps the truth of test to itself; evaluate on val"
    return _Found(images, masks, looked, _decode_cityscapes, left_out)


def _decode_cityscapes(path: Path) -> np.ndarray:
    train_ids = path.stem.endswith("_labelTrainIds")
    table = label_maps.own_indices(len(CITYSCAPES)) if train_ids else label_maps.cityscapes_label_ids()
    return label_maps.decode_index(path, table, CITYSCAPES.palette if train_ids else ())


def _open_wilddash2(root: Path, split: str, classes: ClassSet) -> _Found:
    _require_classes("wilddash2", classes, WILDDASH2, CITYSCAPES)
    carb, package = root / "img" / split, root / "images"
    form = _one_of(root, split, {"CARB form": carb, "official package": package})
    if form == "CARB form":
        table = label_maps.wilddash_indices(classes)
        indices = partial(label_maps.decode_index, table=table, palette=WILDDASH2.palette)
        return _paired(carb, root / "mask" / split, "_labelTrainIds", indices)
    panoptic = label_maps.PanopticMasks(root / "panoptic.json", classes)
    found = _paired(package, root / "panoptic", "", panoptic)
    if not panoptic.json_path.is_file():
        found = found._replace(masks={}, mask_note=f"looked for {panoptic.json_path} and {root}/panoptic/<name>.png")
    return _of_split(found, root, split, label_maps.wilddash_split)


def _open_folder(root: Path, split: str, params: Params) -> _Found:
    classes = params.class_set
    table = label_maps.own_indices(len(classes))
    indices = partial(label_maps.decode_index, table=table, palette=classes.palette)
    own, annot, masks = root / split, root / f"{split}annot", root / "masks"
    if own.is_dir():
        if annot.is_dir() and masks.is_dir():
            raise CarbError(f"{root}: both {annot.name} and {masks.name} hold masks; move one away")
        masks = annot if annot.is_dir() else masks / split if (masks / split).is_dir() else masks
        _refuse_masks_among(own)
        found = _paired(own, masks, "", indices, deep=True, shared=masks == root / "masks")
        beside = pictures_in(root) if split == params.train_split else []
        return found._replace(left_out=found.left_out + _unread(root, beside, own))
    if not any(map(is_picture, files_in(root))):
        _one_of(root, split, {"the split's images, where none lie in the root itself": own})
    if masks.is_dir() and split != params.train_split:
        same = f"split '{split}' would be the very images that '{params.train_split}' trains on"
        raise CarbError(f"{root}: {same}; put its own in {own}")
    _refuse_subfolders(root, own, params)
    return _paired(root, masks, "", indices, shared=True)


def _refuse_masks_among(images: Path) -> None:
    # A common form, images and masks side by side in a split's folder, would make images of the masks.
    inside = [path for path in pictures_in(images, deep=True) if {*path.relative_to(images).parts[:-1]} & _MASK_FOLDERS]
    if inside:
        place = images.parent / "masks" / images.name
        raise CarbError(
            f"{inside[0].parent}: lies among the images of {images}, and its {len(inside)} pictures would be taken for "
            f"some; move masks to {place}, or give a folder of images another name"
        )


def _refuse_subfolders(root: Path, own: Path, params: Params) -> None:
    # Images right in the root are a split by themselves; beside them only splits and masks can have folders.
    known = {"masks", params.train_split, params.val_split, params.test_split}
    unread = [path.relative_to(root) for path in pictures_in(root, deep=True) if path.parent != root]
    unread = [path for path in unread if path.parts[0] not in known and not path.parts[0].endswith("annot")]
    if unread:
        what = f"{len(unread)} pictures in subfolders, such as {unread[0]}, would not be read beside those right in it"
        raise CarbError(f"{root}: {what}; put all of split '{own.name}', with their subfolders, into {own}")


# --- folders, names, pairs -----------------------------------------------------------------------------------------


def _require_classes(dataset: str, classes: ClassSet, *allowed: ClassSet) -> None:
    # One's own words, colours and small classes are welcome; order and names must be those the masks are written in.
    if all(classes.names != known.names for known in allowed):
        wanted = " or ".join(f"{known.name} ({len(known)})" for known in allowed)
        raise CarbError(
            f"classes: the masks of dataset {dataset} are in the classes of {wanted}, not of {classes.name} "
            f"({len(classes)}); set classes: {allowed[0].name}, or use dataset: folder"
        )


def _one_of(root: Path, split: str, forms: Mapping[str, Path]) -> str:
    found = [form for form, folder in forms.items() if folder.is_dir()]
    if len(found) == 1:
        return found[0]
    looked = ", ".join(f"{folder.relative_to(root)}/ ({form})" for form, folder in forms.items())
    if found:
        raise CarbError(f"{root}: fits {' and '.join(found)} at once (looked for {looked}); move one elsewhere")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    there = f"there are {', '.join(folders[:8])}" if folders else "it has no folders"
    raise CarbError(f"{root}: no split '{split}': looked for {looked}; {there}; check `root` and the split's name")


def _paired(folder: Path, masks: Path, ending: str, decode: Decode, deep: bool = False, shared: bool = False) -> _Found:
    # The mask of image <name> in `folder` is <masks>/<name><ending>.png. Pictures among the masks that are no image's
    # are told of; in a folder that splits share they may be another split's, and are told of where a mask is missing.
    images, there = images_in(folder, deep), pictures_in(masks, deep=True)
    taken = {name: path for name, path in pngs_in(masks, ending).items() if name in images}
    used = {*taken.values()}
    told = _left_out(masks, [path for path in there if path.stem.endswith(ending) and path not in used], folder)
    looked = f"looked for {masks}/<name>{ending}.png"
    looked = f"{looked}; {told[0]}" if told else looked
    if told and not taken and not shared:
        raise CarbError(f"{told[0]}; name them <image>{ending}.png, or move the folder to go without masks")
    below = [] if deep or shared else [path for path in pictures_in(folder, deep=True) if path.parent != folder]
    left_out = (() if shared else told) + _unread(folder, below, folder)
    return _Found(images, taken, looked, decode, left_out)


def _left_out(masks: Path, strange: Sequence[Path], images: Path) -> tuple[str, ...]:
    """Say which masks are of no image, () for none."""
    return (f"{masks}: {some(strange, masks)} of no image in {images}",) if strange else ()


def _unread(folder: Path, unread: Sequence[Path], images: Path) -> tuple[str, ...]:
    """Say which pictures are not read, () for none."""
    return (f"{folder}: {some(unread, folder)} not read; put them right into {images}",) if unread else ()


def _of_split(found: _Found, root: Path, split: str, rule: Callable[[str], str | None]) -> _Found:
    # The user's list <split>.txt decides where there is one, else the rule.
    list_file, left_out = root / f"{split}.txt", found.left_out
    if list_file.is_file():
        names = listed(list_file, found.images)
    else:
        others = sorted(path.name for path in root.glob("*.txt") if path.stem in ("train", "val", "test"))
        if others:
            raise CarbError(f"{list_file}: no such list beside {', '.join(others)}; list every split or none")
        names = [name for name in found.images if rule(name) == split]
        strange = [path for name, path in found.images.items() if rule(name) is None]
        if strange:
            left_out += (f"{root}: {some(strange, root)} of no split by their names; list names in {list_file}",)
    if not names:
        raise CarbError(f"{root}: no image belongs to split '{split}'; choose another, or list names in {list_file}")
    return found._replace(images={name: found.images[name] for name in names}, left_out=left_out)
