"""What headers tell of a split's files before long work begins: all that cannot be used is told at once.

With `skip_bad` such images are left out of their split wherever it is opened, so that labels, masks and trainings agree
on what it holds. A PNG must have its end, too. What is damaged in between, or is another format cut off, is found only
when it is read, and stops the work there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from carblib.base import files, images
from carblib.base.contents import Remembered
from carblib.base.errors import CarbError
from carblib.base.images import Header
from carblib.base.progress import note
from carblib.data.split import Split, check_sizes
from carblib.params import Params

_TOLD = 10  # files a message names; a file of the run lists all


def headers(params: Params) -> Remembered[Header]:
    """Return the headers of pictures, which all runs beside this one share: runs/.cache/headers.json."""
    table = params.run_dir.parent / ".cache" / "headers.json"
    return Remembered(table, images.read_header, lambda found: Header(*found))


def bad_files(params: Params, images: Sequence[Path | None], masks: Sequence[Path | None]) -> dict[int, str]:
    """Return {index: what is wrong, in one line} of pairs that cannot be used; None is a file that is not looked at."""
    table, found = headers(params), {}
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        try:
            _check(table, image, mask)
        except CarbError as error:
            found[i] = str(error)
    table.save()
    return found


def _check(table: Remembered[Header], image: Path | None, mask: Path | None) -> None:
    of_image = table.of(image) if image else None
    if of_image:
        images.check_image(image, of_image)
    if mask:
        of_mask = table.of(mask)
        images.check_mask(mask, of_mask)
        if of_image:
            check_sizes(mask, of_mask.upright, of_image.upright)


def check_split(params: Params, split: Split, masks: bool) -> None:
    """Check a split's images, and its masks if asked for, before they are needed; say which `skip_bad` left out.

    Raises CarbError, in one line for all of them, for files that cannot be used, and for masks of some images only.
    """
    if split.left_out:
        many = f"{len(split.left_out)} of {len(split) + len(split.left_out)} images of split '{split.name}'"
        note(f"{many} are left out (skip_bad): {_listed(params, split.root, split.name, [*split.left_out.values()])}")
    lacking = [i for i, path in enumerate(split.mask_paths) if path is None] if masks and split.has_masks else []
    if lacking:
        many = f"has no mask, nor have {len(lacking) - 1} others of {len(split)}" * (len(lacking) > 1)
        raise CarbError(f"{split.image_paths[lacking[0]]}: {many or 'has no mask'}; {split.mask_note}")
    bad = bad_files(params, split.image_paths, split.mask_paths if masks else [None] * len(split))
    refuse(params, split.root, split.name, bad, len(split), "skip_bad: true leaves out such")


def refuse(params: Params, root: Path, name: str, bad: Mapping[int, str], count: int, remedy: str = "") -> None:
    """Raise CarbError, in one line, where any of `count` files below `root` are bad; `remedy`: what helps besides."""
    problems = [*bad.values()]
    if len(problems) == 1:
        raise CarbError("; or ".join([*problems, remedy] if remedy else problems))
    if problems:
        what = f"{root}: {len(problems)} of {count} files of '{name}' cannot be used"
        listed = _listed(params, root, name, problems)
        raise CarbError(f"{what}: {listed}; mend or remove them{f', or {remedy}' if remedy else ''}")


def without_bad(params: Params, split: Split) -> Split:
    """Return a split less the images that cannot be used, or whose masks cannot; CarbError where none is left."""
    bad = bad_files(params, split.image_paths, split.mask_paths)
    kept = [i for i in range(len(split)) if i not in bad]
    if not kept:
        refuse(params, split.root, split.name, bad, len(split))
    names, images, masks = ([column[i] for i in kept] for column in (split.names, split.image_paths, split.mask_paths))
    left_out = {split.names[i]: problem for i, problem in bad.items()}
    return replace(split, names=names, image_paths=images, mask_paths=masks, left_out=left_out)


def _listed(params: Params, root: Path, name: str, problems: Sequence[str]) -> str:
    """The first problems, less what to do about them; where there are more, all go into a file of the run."""
    said = [problem.split("; ")[0].replace(f"{root}/", "") for problem in problems[:_TOLD]]
    if len(problems) <= _TOLD:
        return " · ".join(said)
    path = params.run_dir / "bad_files" / f"{name}.txt"
    files.write_text(path, "".join(f"{problem}\n" for problem in problems))
    return f"{' · '.join(said)} … all in {path}"
