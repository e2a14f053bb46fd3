"""Datasets on disk as one kind of split: names, images, and masks of train ids where there are any.

Which form of a dataset lies on disk is seen from its folders (`root` in the parameters, `S` a split):

- scenes, camvid: `S/X.png` + `Sannot/X.png` (SegNet: 0–10, 11 = void) · `img/S/X.png` + `mask/S/X.png` (CARB) ·
  `701_StillsRaw_full/X.png` + `LabeledApproved_full/X_L.png` (original, 32 colours; the standard split, or the names
  listed in `S.txt`) · `S/X.png` + `S_labels/X_L.png` (32 colours in split folders)
- cityscapes: `leftImg8bit/S/<city>/X_leftImg8bit.png` + `gtFine/S/<city>/X_gtFine_labelTrainIds.png` or `…labelIds.png`
- wilddash2: `images/X.jpg` + `panoptic/X.png` + `panoptic.json` (official package; one video in eight is val, or the
  names listed in `S.txt`) · `img/S/X.jpg` + `mask/S/X_labelTrainIds.png` (CARB)
- folder: `S/X.jpg|png|…`, or the images right in `root`; masks, if any, in `Sannot/`, `masks/S/` or `masks/`. `S` may
  have subfolders, and its masks the same ones: `S/front/X.jpg` is the image `front_X`. Endings may be in capitals

Nothing reads a mask when a split is opened: weakly supervised training goes without.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from carblib.base.errors import CarbError
from carblib.base.files import read_image
from carblib.classes import CAMVID, CITYSCAPES, WILDDASH2, ClassSet
from carblib.data import label_maps
from carblib.params import Params

Decode = Callable[[Path], np.ndarray]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# Pictures as well, which are not read: a folder that holds them is refused rather than read in part.
_OTHER_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".jfif", ".ppm", ".pgm", ".tga", ".dng", ".cr2")


@dataclass(frozen=True)
class Split:
    """Images of one split, ordered by name, and their masks where there are any.

    `names` are unique and good as file names. `form` says in words how the data lies on disk. `mask_paths[i]` is None
    for an image without a mask; `mask_note` then says where masks were looked for. `decode` reads a mask's file.
    """

    name: str
    class_set: ClassSet
    form: str
    names: list[str]
    image_paths: list[Path]
    mask_paths: list[Path | None]
    mask_note: str
    decode: Decode

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_masks(self) -> bool:
        """Whether any image has a mask."""
        return any(path is not None for path in self.mask_paths)

    def image_path(self, i: int) -> Path:
        """Return the file of image i."""
        return self.image_paths[i]

    def image(self, i: int) -> np.ndarray:
        """Return image i, (H, W, 3) uint8 RGB. Raises CarbError for a missing or damaged file."""
        return read_image(self.image_paths[i])

    def mask(self, i: int) -> np.ndarray:
        """Return the mask of image i, (H, W) uint8 train ids, 255 void.

        Raises CarbError, naming the file, for a mask that is missing or damaged, has another size than its image, or
        holds a value that is no class.
        """
        path = self.mask_paths[i]
        if path is None:
            raise CarbError(f"{self.image_paths[i]}: has no mask; {self.mask_note}")
        mask = self.decode(path)
        size = _size(self.image_paths[i])
        if mask.shape != size:
            raise CarbError(
                f"{path}: mask of {mask.shape[0]}×{mask.shape[1]} (H×W) for an image of {size[0]}×{size[1]}; "
                "both must be of one size: resize the mask, nearest neighbour"
            )
        return mask


class _Found(NamedTuple):
    # What an opener saw on disk: files by name, and how to read a mask.
    form: str
    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    mask_note: str
    decode: Decode


def open_split(params: Params, split: str, require_masks: bool = False) -> Split:
    """Open a split of the run's dataset; no mask is read, and a split without masks opens as well.

    Raises CarbError for a missing folder, for folders that fit no form of the dataset or several, for classes that are
    not the dataset's, and with `require_masks` for an image without a mask.
    """
    root, classes = params.data_root, params.class_set
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
    names = sorted(found.images)
    images, masks = [found.images[name] for name in names], [found.masks.get(name) for name in names]
    opened = Split(split, classes, found.form, names, images, masks, found.mask_note, found.decode)
    if require_masks and None in masks:
        opened.mask(masks.index(None))
    return opened


def open_pictures(folder: Path, classes: ClassSet) -> Split:
    """Open any folder of pictures, with its subfolders but `masks/`, as a split of the folder's name without masks.

    Raises CarbError for a folder that is missing, empty or holds pictures that cannot be read.
    """
    found = _images(folder, deep=True) if folder.is_dir() else {}
    names = sorted(name for name, path in found.items() if folder / "masks" not in path.parents)
    if not names:
        raise CarbError(f"{folder}: no such folder, or no pictures in it but masks/; check --images")
    images, masks = [found[name] for name in names], [None] * len(names)
    decode = partial(label_maps.decode_index, table=label_maps.own_indices(len(classes)), palette=classes.palette)
    return Split(folder.name or "pictures", classes, "pictures", names, images, masks, "only pictures are read", decode)


# --- one opener per dataset ----------------------------------------------------------------------------------------


def _open_camvid(root: Path, split: str, classes: ClassSet) -> _Found:
    _require_classes("camvid", classes, CAMVID)
    indices = partial(label_maps.decode_index, table=label_maps.camvid_indices(), palette=classes.palette)
    colours = partial(label_maps.decode_packed, table=label_maps.camvid_colours())
    carb, segnet, original = root / "img" / split, root / split, root / "701_StillsRaw_full"
    form = _one_of(root, split, {"CARB form": carb, "SegNet form": segnet, "original frames": original})
    if form == "CARB form":
        return _paired(form, _images(carb), root / "mask" / split, "", indices)
    if form == "original frames":
        images = _of_split(_images(original), root, split, label_maps.camvid_split)
        return _paired(form, images, root / "LabeledApproved_full", "_L", colours)
    annot, labels = root / f"{split}annot", root / f"{split}_labels"
    if annot.is_dir() and labels.is_dir():
        raise CarbError(f"{root}: both {annot.name} (indices) and {labels.name} (colours) hold masks; remove one")
    if labels.is_dir():
        return _paired("colour masks in split folders", _images(segnet), labels, "_L", colours)
    return _paired(form, _images(segnet), annot, "", indices)


def _open_cityscapes(root: Path, split: str, classes: ClassSet) -> _Found:
    _require_classes("cityscapes", classes, CITYSCAPES)
    folder = root / "leftImg8bit" / split
    form = _one_of(root, split, {"official form": folder})
    images, masks = {}, {}
    for city in sorted(path for path in folder.iterdir() if path.is_dir()):
        images |= _pngs(city, "_leftImg8bit")
        truth = root / "gtFine" / split / city.name
        masks |= _pngs(truth, "_gtFine_labelIds") | _pngs(truth, "_gtFine_labelTrainIds")
    if not images:
        raise CarbError(f"{folder}: no <city>/*_leftImg8bit.png in it; unzip leftImg8bit_trainvaltest.zip again")
    note = f"looked for {root}/gtFine/{split}/<city>/<name>_gtFine_labelTrainIds.png and …_labelIds.png"
    if split == "test":
        # The masks published for test are blank: they would count as truth with nothing but void in it.
        masks, note = {}, "Cityscapes keeps the truth of test to itself; evaluate on val"
    return _Found(form, images, masks, note, _decode_cityscapes)


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
        return _paired(form, _images(carb), root / "mask" / split, "_labelTrainIds", indices)
    images = _of_split(_images(package), root, split, label_maps.wilddash_split)
    panoptic = label_maps.PanopticMasks(root / "panoptic.json", classes)
    found = _paired(form, images, root / "panoptic", "", panoptic)
    if not panoptic.json_path.is_file():
        return found._replace(masks={}, mask_note=f"looked for {panoptic.json_path} and {root}/panoptic/<name>.png")
    return found


def _open_folder(root: Path, split: str, params: Params) -> _Found:
    classes = params.class_set
    table = label_maps.own_indices(len(classes))
    indices = partial(label_maps.decode_index, table=table, palette=classes.palette)
    own, annot, masks = root / split, root / f"{split}annot", root / "masks"
    if own.is_dir():
        if annot.is_dir() and masks.is_dir():
            raise CarbError(f"{root}: both {annot.name} and {masks.name} hold masks; remove one")
        masks = annot if annot.is_dir() else masks / split if (masks / split).is_dir() else masks
        found = _paired("folder", _images(own, deep=True), masks, "", indices)
        return _with_strangers(found, own, masks, shared=masks == root / "masks")
    if not any(map(_is_picture, _files(root))):
        _one_of(root, split, {"the split's images, where none lie in the root itself": own})
    if masks.is_dir() and split != params.train_split:
        same = f"split '{split}' would be the very images that '{params.train_split}' trains on"
        raise CarbError(f"{root}: {same}; put its own in {own}")
    _refuse_subfolders(root, own, params)
    found = _paired("one folder for every split", _images(root), masks, "", indices)
    return _with_strangers(found, root, masks, shared=True)


def _with_strangers(found: _Found, images: Path, masks: Path, shared: bool) -> _Found:
    # Tells of pictures among the masks that are no image's; in a folder that splits share they may be another split's.
    taken = set(found.masks.values())
    strange = [path for path in _files(masks, deep=True) if _is_picture(path) and path not in taken]
    if not strange:
        return found
    note = f"{len(strange)} files there, such as {strange[0].relative_to(masks)}, are masks of no image in {images}"
    if not taken and not shared:
        raise CarbError(f"{masks}: {note}; name them <image>.png, or remove the folder to go without masks")
    return found._replace(mask_note=f"{found.mask_note}; {note}")


def _refuse_subfolders(root: Path, own: Path, params: Params) -> None:
    # Images right in the root are a split by themselves; beside them only splits and masks can have folders.
    known = {"masks", params.train_split, params.val_split, params.test_split}
    unread = [path.relative_to(root) for path in _files(root, deep=True) if _is_picture(path) and path.parent != root]
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
            f"({len(classes)}); set `classes`, or use dataset: folder"
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


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES + _OTHER_PICTURES


def _files(folder: Path, deep: bool = False) -> list[Path]:
    """Return the files in a folder by name, with those of its subfolders if `deep`; [] where there is no folder."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else ():
        path = Path(entry.path)
        if entry.name.startswith("."):  # what macOS and interrupted writers leave behind
            continue
        if not entry.is_dir():
            found.append(path)
        elif deep and not folder.resolve().is_relative_to(path.resolve()):  # a link upwards would never end
            found += _files(path, deep)
    return found


def _by_name(paths: Iterable[Path], folder: Path, ending: str = "") -> dict[str, Path]:
    """Return files by name, less ending and suffix: front/X is "front_X", for results are files <name>.png."""
    found: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix().replace("/", "_").removesuffix(ending)
        if name in found:
            raise CarbError(f"{path}: shares its name with {found[name].relative_to(folder)}; rename one of them")
        found[name] = path
    return found


def _images(folder: Path, deep: bool = False) -> dict[str, Path]:
    pictures = [path for path in _files(folder, deep) if _is_picture(path)]
    strange = [path for path in pictures if path.suffix.lower() in _OTHER_PICTURES]
    if strange:
        what = f"pictures of this kind cannot be read ({len(strange)} of {len(pictures)} in {folder})"
        raise CarbError(f"{strange[0]}: {what}; convert them to PNG or JPEG, or move them elsewhere")
    if not pictures:
        raise CarbError(f"{folder}: no image ({', '.join(IMAGE_SUFFIXES)}) in it; check `root` and the split's name")
    return _by_name(pictures, folder)


def _pngs(folder: Path, ending: str) -> dict[str, Path]:
    files = [path for path in _files(folder, deep=True) if path.suffix.lower() == ".png"]
    return _by_name([path for path in files if path.stem.endswith(ending)], folder, ending)


def _paired(form: str, images: Mapping[str, Path], folder: Path, ending: str, decode: Decode) -> _Found:
    # The mask of image <name> is <folder>/<name><ending>.png.
    masks = {name: path for name, path in _pngs(folder, ending).items() if name in images}
    return _Found(form, images, masks, f"looked for {folder}/<name>{ending}.png", decode)


def _of_split(images: dict[str, Path], root: Path, split: str, rule: Callable[[str], str | None]) -> dict[str, Path]:
    # The user's list <split>.txt decides where there is one, else the rule.
    listed = root / f"{split}.txt"
    if listed.is_file():
        # SegNet's lists hold the absolute paths of image and mask in a line: only the image's base name counts.
        files = [Path(line.split()[0]) for line in listed.read_text("utf-8").splitlines() if line.strip()]
        names = [file.name if file.name in images else file.stem for file in files]
        for name in names:
            if name not in images:
                raise CarbError(f"{listed}: lists {name}, which is not among the images; mend the list")
    else:
        others = sorted(path.name for path in root.glob("*.txt") if path.stem in ("train", "val", "test"))
        if others:
            raise CarbError(f"{listed}: no such list beside {', '.join(others)}; list every split or none")
        names = [name for name in images if rule(name) == split]
    if not names:
        raise CarbError(f"{root}: no image belongs to split '{split}'; choose another, or list names in {listed}")
    return {name: images[name] for name in names}


def _size(path: Path) -> tuple[int, int]:
    """Return (H, W) as `read_image` gives the image, from the header alone."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = "exif" in picture.info and picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except (OSError, SyntaxError, ValueError):
        return read_image(path).shape[:2]  # which says what is wrong with the file
    return (width, height) if turned else (height, width)


def note_stretching(image: np.ndarray, size: Sequence[int]) -> None:
    """Print a line where an image (H, W, 3) would be stretched by more than 5 % on its way to `size` (h, w)."""
    height, width = image.shape[:2]
    factor = (size[1] / size[0]) / (width / height)
    if not 0.95 <= factor <= 1.05:
        fitting = [size[0], max(1, round(size[0] * width / height))]
        print(
            f"note: images of {height} x {width} become {abs(factor - 1):.0%} {'wider' if factor > 1 else 'narrower'} "
            f"than they are at image_size {list(size)}; {fitting} would keep their shape"
        )
