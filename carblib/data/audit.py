"""What is odd about a split's data, a line each: what, how many, the first names. None of it stops anything.

Sizes come from headers, copies from digests, and only files of equal length are read for these. Classes come from the
pass over masks, or from the labels, that the caller has made.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from carblib.base.errors import CarbError
from carblib.base.progress import note
from carblib.data.checks import headers
from carblib.data.labels import some_of, unlabelled
from carblib.data.readers import open_split
from carblib.data.sources import contents
from carblib.data.split import Split
from carblib.params import Params

_TOLERANCE = 0.05  # a stretching that is not worth a word
_MUCH_VOID = 0.5  # of all pixels
Size = tuple[int, int]


def audit(params: Params, split: Split, present: np.ndarray, void_share: float | None = None) -> list[str]:
    """Return what is odd about a split, a line each. present: (N, C) bool, the classes each image holds.

    void_share: of the masks' pixels, None where no mask was read. Raises CarbError for images that cannot be used.
    """
    sizes = image_sizes(params, split)
    of_classes = _classes(split, present, void_share, split.has_masks and not params.labels)
    found = [*of_classes, _sizes(split, sizes), _stretched(params, split, sizes)]
    return [line for line in [*found, *_copies(params, split)] if line]


def tell(odd: Sequence[str]) -> None:
    """Print what is odd, a line each, or that nothing is."""
    print("\n".join(f"odd: {line}" for line in odd) or "data: nothing odd")


def image_sizes(params: Params, split: Split) -> list[Size]:
    """Return the (H, W) of a split's images, upright, from their headers."""
    table = headers(params)
    found = [table.of(path).upright for path in split.image_paths]
    table.save()
    return found


def note_stretching(params: Params, split: Split) -> None:
    """Print a line, once, where images of a split would be stretched on their way to `image_size`."""
    line = _stretched(params, split, image_sizes(params, split))
    if line:
        note(line)


# --- classes -----------------------------------------------------------------------------------------------------


def _classes(split: Split, present: np.ndarray, void_share: float | None, of_masks: bool) -> list[str]:
    classes, held = split.class_set.names, present.sum(1)
    absent = np.flatnonzero(~present.any(0)).tolist()
    lines = [unlabelled(present, split.names)]
    if absent and len(absent) < len(classes):
        what = f"{len(absent)} of {len(classes)} classes are in no image: {some_of([classes[c] for c in absent])}"
        lines.append(what + (_why_absent(absent, len(classes), void_share) if of_masks else ""))
    alone = [name for name, count in zip(split.names, held, strict=True) if count == 1]
    if alone and len(classes) > 1:
        lines.append(f"{len(alone)} of {len(split)} images hold one class only: {some_of(alone)}")
    if void_share is not None and void_share > _MUCH_VOID:
        lines.append(f"{void_share:.0%} of the masks' pixels are void")
    return lines


def _why_absent(absent: list[int], classes: int, void_share: float | None) -> str:
    """What of the ways to write masks wrongly would leave these classes without an image."""
    if absent == [*range(1, classes)] and void_share != 0:
        return "; binary masks of 0 and 255 are read as the first class and void: write ids"
    if absent == [0]:
        return "; do the ids begin with 1? they are to begin with 0"
    if absent == [classes - 1] and void_share:
        return "; were the ids lowered by one, the first class to 255?"
    return ""


# --- sizes -------------------------------------------------------------------------------------------------------


def _sizes(split: Split, sizes: Sequence[Size]) -> str:
    common, *others = Counter(sizes).most_common()
    if not others:
        return ""
    strange = [name for name, size in zip(split.names, sizes, strict=True) if size != common[0]]
    shown = ", ".join(f"{size[0]}×{size[1]} ({count})" for size, count in [common, *others][:3])
    many = f"{shown}{' …' * (len(others) > 2)}"
    return f"images are of {1 + len(others)} sizes (H×W), {many}; not of the commonest: {some_of(strange)}"


def _stretched(params: Params, split: Split, sizes: Sequence[Size]) -> str:
    height, width = params.image_size
    factors = {size: (width / height) / (size[1] / size[0]) for size in set(sizes)}
    odd = [size for size in sizes if not 1 - _TOLERANCE <= factors[size] <= 1 + _TOLERANCE]
    if not odd:
        return ""
    names = [name for name, size in zip(split.names, sizes, strict=True) if size in set(odd)]
    common = Counter(odd).most_common(1)[0][0]
    how = f"{abs(factors[common] - 1):.0%} {'wider' if factors[common] > 1 else 'narrower'} than they are"
    which = f"{len(odd)} of {len(split)} images, {common[0]}×{common[1]} and such ({some_of(names)})"
    fitting = [height, max(1, round(height * common[1] / common[0]))]
    return f"{which}, become {how} at image_size {[height, width]}; {fitting} would keep that shape"


# --- copies ------------------------------------------------------------------------------------------------------


def _copies(params: Params, split: Split) -> list[str]:
    splits = [split, *_other_splits(params, split)]
    digests = _digests(params, [path for one in splits for path in one.image_paths])
    own = _names_of(split, digests)
    doubled = [f"{name} = {first}" for first, *others in own.values() for name in others]
    lines = [f"{len(doubled)} of {len(split)} images are copies of another: {some_of(doubled)}"] if doubled else []
    for other in splits[1:]:
        pairs = [f"{name} = {own[digest][0]}" for digest, names in _names_of(other, digests).items()
                 if digest in own for name in names]  # fmt: skip
        if pairs:
            many = f"{len(pairs)} of {len(other)} images of split '{other.name}' are also in '{split.name}'"
            lines.append(f"{many}: {some_of(pairs)}")
    return lines


def _other_splits(params: Params, split: Split) -> Iterable[Split]:
    """The run's other splits that are there; one folder that serves as every split is but one."""
    for name in dict.fromkeys((params.train_split, params.val_split, params.test_split)):
        try:
            other = open_split(params, name)
        except CarbError:
            continue  # its own commands tell why
        if other.image_paths != split.image_paths:
            yield other


def _digests(params: Params, paths: Sequence[Path]) -> dict[Path, str]:
    """Return digests of the files that may be copies: those that are not the only one of their length."""
    of_length: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        if path.is_file():  # another split's may be gone
            of_length[path.stat().st_size].append(path)
    alike = [path for group in of_length.values() if len(group) > 1 for path in group]
    return dict(zip(alike, contents(params).digests(alike), strict=True))


def _names_of(split: Split, digests: Mapping[Path, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, path in zip(split.names, split.image_paths, strict=True):
        if path in digests:
            names[digests[path]].append(name)
    return names
