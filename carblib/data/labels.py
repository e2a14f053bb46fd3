"""Image-level labels: which classes an image holds. The only supervision that training reads besides the images.

An open format: CSV with the header `name,<class>,…` and one row of 0/1 per image. It is derived once from masks
(`carb labels params/x.yaml --split train`), or written by the user without any masks (`--blank` makes the
file with 0 everywhere, to be filled in), or converted from the official code's pickled .npy (`--from-npy`).
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from carblib.base.errors import CarbError, nearest
from carblib.base.files import csv_text, digest_of, write_text
from carblib.base.parallel import in_order
from carblib.base.processes import is_first, wait_until
from carblib.base.progress import bar_options
from carblib.base.stamps import Changes, Stamp, compare, read_stamp, write_stamp
from carblib.classes import ClassSet
from carblib.data.checks import check_split
from carblib.data.npy_labels import read_npy_labels
from carblib.data.pictures import IMAGE_SUFFIXES
from carblib.data.sheets import Sheet, read_sheet, truth
from carblib.data.sources import label_stamp
from carblib.data.split import Split
from carblib.params import Params, resolve


def labels_of(mask: np.ndarray, classes: int) -> np.ndarray:
    """Return which of the classes are in a mask (H, W) of train ids: bool (C,)."""
    return np.bincount(mask.ravel(), minlength=256)[:classes] > 0


def derive_labels(split: Split, names: Sequence[str] | None = None, workers: int = 0) -> dict[str, np.ndarray]:
    """Read the masks of a split, or of some of its images, and return their image-level labels, name → bool (C,).

    workers: threads, as in `in_order`. A mask that is void throughout gives an image without any class. Raises
    CarbError for a missing or bad mask.
    """
    wanted = {*(split.names if names is None else names)}
    chosen = [i for i, name in enumerate(split.names) if name in wanted]
    found = in_order(lambda i: labels_of(split.mask(i), len(split.class_set)), chosen, workers)
    bar = tqdm(found, f"{split.name} labels", len(chosen), unit="image", **bar_options())
    return {split.names[i]: labels for i, labels in zip(chosen, bar, strict=True)}


def some_of(names: Sequence[str]) -> str:
    """Return the first names of several, for a line."""
    return ", ".join(names[:3]) + " …" * (len(names) > 3)


def unlabelled(labels: np.ndarray, names: Sequence[str]) -> str:
    """Return which images hold no class by their labels, in one line, "" for none: they teach nothing, and may stay."""
    bare = [name for name, row in zip(names, labels, strict=True) if not row.any()]
    return f"{len(bare)} of {len(names)} images hold no class and teach nothing: {some_of(bare)}" if bare else ""


def note_unlabelled(labels: np.ndarray, names: Sequence[str]) -> None:
    """Print that line, where there is one."""
    line = unlabelled(labels, names)
    if line:
        print(line)


def write_labels(path: Path, labels: Mapping[str, np.ndarray], class_set: ClassSet) -> None:
    """Write image-level labels, name → (C,) of 0/1, as CSV."""
    write_text(path, _text(labels, class_set))


def _text(labels: Mapping[str, np.ndarray], class_set: ClassSet) -> str:
    rows = [
        {"name": name, **dict(zip(class_set.names, map(int, row), strict=True))} for name, row in sorted(labels.items())
    ]
    return csv_text(rows, ("name", *class_set.names))


def read_labels(
    path: Path,
    class_set: ClassSet,
    names: Sequence[str],
    add: str = "carb labels PARAMS_FILE --add",
    left_out: Collection[str] = (),
) -> np.ndarray:
    """Read image-level labels in the order of `names`: bool (N, C). The columns may come in any order.

    Spreadsheets' ways are read too (`carblib.data.sheets`): semicolons or tabs, TRUE and x, empty cells as 0.
    add: the command that appends missing images, told where there are any. left_out: images whose lines are not read,
    those that `skip_bad` left out of the split.

    Raises CarbError, naming file and line, for classes or images that are unknown, missing or given twice, for values
    other than 0 and 1, and where no image holds any class.
    """
    sheet, columns = _read_sheet(Path(path), class_set)
    known, found = set(names), {}
    for line, row in sheet.rows:
        where = f"{path}, line {line}"
        name = row[columns["name"]]
        if name in left_out:
            continue
        if name not in known:
            hint = nearest(name, names) or "remove the line, or check `root` and the split"
            raise CarbError(f"{where}: no image '{name}' in the split; {hint}")
        if name in found:
            raise CarbError(f"{where}: image '{name}' is given twice; remove one line")
        values = [truth(row[columns[label]]) for label in class_set.names]
        if None in values:
            label = class_set.names[values.index(None)]
            raise CarbError(f"{where}: '{row[columns[label]]}' for class '{label}'; write 0 or 1")
        found[name] = values
    if found and not any(any(row) for row in found.values()):
        raise CarbError(f"{path}: no image holds a class; write 1 for each class an image holds, or set gate: none")
    missing = [name for name in names if name not in found]
    if missing:
        raise CarbError(
            f"{path}: no line for image '{missing[0]}' ({len(missing)} missing); write it, or append what is missing "
            f"and leave the other lines alone: {add}"
        )
    return np.array([found[name] for name in names], bool).reshape(len(names), len(class_set))


def _read_sheet(path: Path, class_set: ClassSet) -> tuple[Sheet, dict[str, int]]:
    """Read a file of labels and return the place of every column in it."""
    if not path.is_file():
        raise CarbError(f"{path}: no such file of image-level labels; carb labels makes it")
    sheet, expected = read_sheet(path, "name"), ("name", *class_set.names)
    where = f"{path} ({sheet.note})" if sheet.note else str(path)
    for column in expected:
        if column not in sheet.header:
            there = ", ".join(sheet.header[:6]) + ", …" * (len(sheet.header) > 6)
            wanted = f"the header must be name,{','.join(class_set.names)}"
            raise CarbError(f"{where}: no column '{column}' among {there or 'none'}; {wanted}")
    for place, column in enumerate(sheet.header):
        if column not in expected or column in sheet.header[:place]:
            hint = nearest(column, expected) if column not in expected else "it is given twice"
            raise CarbError(f"{where}: column '{column}' is no class; {hint or 'remove it'}")
    for line, row in sheet.rows:
        if len(row) != len(sheet.header):
            what = f"{len(row)} columns under a header of {len(sheet.header)}"
            raise CarbError(f"{path}, line {line}: {what}; write one 0 or 1 per class")
    if sheet.note:
        print(f"{path}: {sheet.note}; save it as UTF-8 where letters come out wrong")
    return sheet, {column: place for place, column in enumerate(sheet.header)}


def labels_path(params: Params, split: str) -> Path:
    """Return where a split's labels lie: `params.labels` for the train split if given, else in the run's folder."""
    if params.labels and split == params.train_split:
        return resolve(params.labels)
    return params.run_dir / "labels" / f"{split}.csv"


def ensure_labels(params: Params, split: Split) -> Path:
    """Return the path of a split's labels; labels that we derived from masks are derived again where masks changed.

    A file that a person wrote, or changed after it was derived, is never touched: `labels` names it, or it is not the
    one that the note beside it speaks of. Of a launcher's processes the first one derives, the others wait. Raises
    CarbError where there are neither labels nor masks.
    """
    path = labels_path(params, split.name)
    if params.labels and split.name == params.train_split:
        if not path.is_file():
            raise CarbError(f"{path}: no such file, but `labels` names it; write it, or set labels: '' to derive it")
        return path
    note, before = path.with_suffix(".json"), _note_of(path)
    if path.is_file() and before is None:
        return path
    if not split.has_masks:
        if path.is_file():
            return path
        raise CarbError(
            f"{path}: no image-level labels, and split '{split.name}' has no masks to derive them from; "
            f"{params.command('labels', '--split', split.name, '--blank')} writes the file with 0 everywhere, "
            f"fill in 1 for each class an image holds; or set gate: none; for masks {split.mask_note}"
        )
    if before is None:
        check_split(params, split, masks=True)  # digests would name a missing file alone
    now = label_stamp(params, split)
    changes = compare(replace(before, upstream={}), now) if before else None
    if (changes is None or not changes.none) and not is_first():
        wait_until(lambda: (note := _note_of(path)) and compare(replace(note, upstream={}), now).none, str(path))
    elif changes is None or not changes.none:
        check_split(params, split, masks=True)
        known = _still_right(path, split, changes)
        derived = derive_labels(split, [name for name in split.names if name not in known], params.workers)
        text = _text(known | derived, split.class_set)
        path.unlink(missing_ok=True)  # a file without the note that speaks of it would be taken for a person's
        write_stamp(note, replace(now, upstream={"csv": digest_of(text.encode())}))
        write_text(path, text)
        if before:
            print(f"{path}: {changes}; derived anew")
    return path


def _note_of(path: Path) -> Stamp | None:
    """Return what derived labels were made from; None for a file that a person wrote, or changed afterwards."""
    try:
        note = read_stamp(path.with_suffix(".json")) if path.is_file() else None
        if note is None or note.upstream.get("csv") == digest_of(path.read_bytes()):
            return note
    except FileNotFoundError:  # another process derives it anew at this moment
        return None
    print(f"{path}: changed since it was derived from masks, and taken as yours; delete it to have it derived again")
    return None


def _still_right(path: Path, split: Split, changes: Changes | None) -> dict[str, np.ndarray]:
    """Return the rows of derived labels whose masks are what they were."""
    if changes is None or changes.made_otherwise:
        return {}
    gone = {*changes.changed, *changes.added, *changes.removed}
    with open(path, encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file) if row["name"] not in gone}
    return {name: np.array([row[label] == "1" for label in split.class_set.names]) for name, row in rows.items()}


def training_labels(params: Params, split: Split) -> np.ndarray:
    """Return the labels (N, C) bool of a split in its order; with `gate: none` all classes everywhere, and no file."""
    if params.gate == "none":
        return np.ones((len(split), len(split.class_set)), bool)
    add = params.command("labels", "--split", split.name, "--add")
    return read_labels(ensure_labels(params, split), split.class_set, split.names, add, split.left_out)


def known_labels(params: Params, split: Split) -> np.ndarray | None:
    """Return the labels (N, C) bool as they are on disk, None where they are missing or not of these images."""
    if params.gate == "none":
        return np.ones((len(split), len(split.class_set)), bool)
    try:
        return read_labels(labels_path(params, split.name), split.class_set, split.names, left_out=split.left_out)
    except CarbError:
        return None


def convert_official(path: Path, class_set: ClassSet, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Convert the official code's pickled .npy of image-level labels, without running anything in it.

    The file holds a dictionary image name → (C,), or an array (N, C) in the order of `names`. With `names`, images are
    matched by name, else without ending, else without folder as well; the result has exactly these names, and rows of
    other images are not looked at. Returns name → bool (C,); CarbError for anything else.
    """
    content = read_npy_labels(path)
    if isinstance(content, np.ndarray):
        if names is None or content.ndim != 2 or len(content) != len(names):
            count = "unknown" if names is None else len(names)
            raise CarbError(f"{path}: array of shape {content.shape} does not fit {count} images; give the right split")
        content = dict(zip(names, content, strict=True))
    matched = {name: name for name in content} if names is None else _matched(path, content, names)
    return {name: _official_row(path, given, content[given], class_set) for name, given in matched.items()}


def _matched(path: Path, content: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, str]:
    """Return which of the file's image names each of `names` is; raises CarbError where one is none or several."""
    forms = (str, _without_ending, lambda name: Path(_without_ending(name)).name)
    indices: list[dict[str, list[str]]] = [{}, {}, {}]
    for form, index in zip(forms, indices, strict=True):
        for given in content:
            index.setdefault(form(given), []).append(given)
    # A split's names have no ending, but may hold dots: only the file's are stripped.
    found = {name: next((index[name] for index in indices if name in index), []) for name in names}
    missing = [name for name in names if not found[name]]
    if missing:
        raise CarbError(f"{path}: no labels for image '{missing[0]}' ({len(missing)} missing); give the right split")
    for name, given in found.items():
        if len(given) > 1:
            raise CarbError(
                f"{path}: '{given[0]}' and '{given[1]}' differ only by folder or ending, and both could be "
                f"image '{name}'; it cannot be matched"
            )
    return {name: given[0] for name, given in found.items()}


def _without_ending(name: str) -> str:
    plain = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
    return plain.removesuffix("_leftImg8bit")


def _official_row(path: Path, name: str, row: np.ndarray, class_set: ClassSet) -> np.ndarray:
    row = np.asarray(row).reshape(-1)
    if len(row) != len(class_set):
        raise CarbError(f"{path}: {len(row)} labels for '{name}', but {class_set.name} has {len(class_set)} classes")
    if not np.isin(row, (0, 1)).all() or not row.any():
        raise CarbError(f"{path}: labels of image '{name}' are not 0 and 1 with at least one 1; not a file of labels")
    return row.astype(bool)


def add_labels(params: Params, split: Split) -> tuple[Path, int]:
    """Append the images that a file of labels lacks, derived from masks where there are any, else 0 everywhere.

    Lines that are there stay as they are. Returns the path and how many were added. Raises CarbError where there is no
    such file, or it is not readable as labels of these classes.
    """
    path = labels_path(params, split.name)
    sheet, columns = _read_sheet(path, split.class_set)
    known = {row[columns["name"]] for _, row in sheet.rows}
    lacking = [name for name in split.names if name not in known]
    if not lacking or (path.parent == params.run_dir / "labels" and _note_of(path)):
        return ensure_labels(params, split), len(lacking)  # what we derived is derived again, and stays ours
    check_split(params, split, masks=True)
    added = derive_labels(split, lacking, params.workers) if split.has_masks else blank_labels(split)
    rows = []
    for name in lacking:
        values = {"name": name, **dict(zip(split.class_set.names, map(int, added[name]), strict=True))}
        rows.append([values[column] for column in sheet.header])
    sheet.append(rows)
    return path, len(lacking)


def blank_labels(split: Split) -> dict[str, np.ndarray]:
    """Return labels to be filled in by the user: 0 for every image and class of a split."""
    return {name: np.zeros(len(split.class_set), bool) for name in split.names}


def write_given(params: Params, split: Split, labels: Mapping[str, np.ndarray]) -> Path:
    """Write labels that are not derived, name → (C,) of 0/1, as those of a split, and return their path.

    Raises CarbError where the split has a file of labels.
    """
    path = labels_path(params, split.name)
    if path.exists():
        raise CarbError(f"{path}: is there already; move it elsewhere first, or append what it lacks with --add")
    # No note says of which masks they are, and one of labels that were deleted must not stay.
    if path.parent == params.run_dir / "labels":
        path.with_suffix(".json").unlink(missing_ok=True)
    write_labels(path, labels, split.class_set)
    return path
