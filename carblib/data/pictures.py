"""Pictures and masks in folders: which there are, under which names, and the lists that choose among them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath

from carblib.base.errors import CarbError, nearest
from carblib.data.sheets import read_text

_MAX_NAME = 255 - len(".png")  # bytes
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# Pictures as well, which are not read: a folder that holds them is refused rather than read in part.
_OTHER_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".jfif", ".ppm", ".pgm", ".tga", ".dng", ".cr2")


def is_picture(path: Path) -> bool:
    """Tell whether a file is a picture by its suffix, in whichever case, be it one that can be read or not."""
    return path.suffix.lower() in IMAGE_SUFFIXES + _OTHER_PICTURES


def files_in(folder: Path, deep: bool = False, above: tuple[Path, ...] = ()) -> list[Path]:
    """Return the files in a folder by name, with those of its subfolders if `deep`; [] where there is no folder.

    Hidden ones are left out, and links to folders that are being read (`above`, resolved), which would never end.
    """
    found = []
    above = (*above, folder.resolve())
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else ():
        path = Path(entry.path)
        if entry.name.startswith("."):  # what macOS and interrupted writers leave behind
            continue
        if not entry.is_dir():
            found.append(path)
        elif deep and not any(place.is_relative_to(path.resolve()) for place in above):
            found += files_in(path, deep, above)
    return found


def pictures_in(folder: Path, deep: bool = False) -> list[Path]:
    """Return the pictures among `files_in`."""
    return [path for path in files_in(folder, deep) if is_picture(path)]


def by_name(paths: Iterable[Path], folder: Path, ending: str = "", flat: bool = False) -> dict[str, Path]:
    """Return files by name, less ending and suffix: front/X is "front_X", for results are files <name>.png.

    flat: X alone, whichever subfolder it lies in. An accented letter is one letter (NFC), however the disk has it.
    Raises CarbError for two files of one name, and for a name that is no text or too long.
    """
    found: dict[str, Path] = {}
    for path in paths:
        parts = (path.name,) if flat else path.relative_to(folder).parts
        name = "_".join((*parts[:-1], path.stem)).removesuffix(ending)
        if any(unicodedata.category(letter) in ("Cs", "Cc") for letter in name):
            raise CarbError(f"{str(path)!r}: has bytes in its name that are no UTF-8, or no letters; rename it")
        name = unicodedata.normalize("NFC", name).strip()
        if len(name.encode()) > _MAX_NAME:
            what = (
                f"its name with its folders' is of {len(name.encode())} bytes, of which {_MAX_NAME} fit a file's name"
            )
            raise CarbError(f"{path}: {what}; shorten its folders'")
        if name in found:
            raise CarbError(f"{path}: shares its name with {found[name].relative_to(folder)}; rename one of them")
        found[name] = path
    return found


def images_in(
    folder: Path,
    deep: bool = False,
    ending: str = "",
    flat: bool = False,
    remedy: str = "check `root` and the split's name",
) -> dict[str, Path]:
    """Return the images of a folder by name, of those whose names have the ending.

    Raises CarbError for a folder without any and for pictures of a kind that cannot be read.
    """
    pictures = [path for path in pictures_in(folder, deep) if path.stem.endswith(ending)]
    strange = [path for path in pictures if path.suffix.lower() in _OTHER_PICTURES]
    if strange:
        what = f"pictures of this kind cannot be read ({len(strange)} of {len(pictures)} in {folder})"
        raise CarbError(f"{strange[0]}: {what}; convert them to PNG or JPEG, or move them elsewhere")
    if not pictures:
        kinds = ", ".join(ending + suffix for suffix in IMAGE_SUFFIXES)
        raise CarbError(f"{folder}: no image ({kinds}) in it; {remedy}")
    return by_name(pictures, folder, ending, flat)


def pngs_in(folder: Path, ending: str = "", flat: bool = False) -> dict[str, Path]:
    """Return the PNGs of a folder and its subfolders by name, of those whose names have the ending."""
    files = [path for path in files_in(folder, deep=True) if path.suffix.lower() == ".png"]
    return by_name([path for path in files if path.stem.endswith(ending)], folder, ending, flat)


def some(paths: Sequence[Path], folder: Path) -> str:
    """Return how many files there are and one of them: "3 files, such as aachen/x.png"."""
    first = paths[0].relative_to(folder)
    return f"{len(paths)} files, such as {first}," if len(paths) > 1 else f"one file, {first},"


def listed(path: Path, images: Mapping[str, Path]) -> list[str]:
    """Return the names that a list holds, an image a line: with folder and suffix or without, as any editor saves it.

    SegNet's lists hold the absolute paths of image and mask in a line: only the image's base name counts. Empty lines
    and those that begin with # say nothing. Raises CarbError, naming the line, for what is no image.
    """
    names = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = unicodedata.normalize("NFC", line.strip())
        if not line or line.startswith("#"):
            continue
        found = [name for word in (line, line.split()[0]) for name in _forms(word) if name in images]
        if not found:
            name = PureWindowsPath(line.split()[0]).name
            hint = nearest(PureWindowsPath(name).stem, images) or "mend the list"
            raise CarbError(f"{path}: lists {name}, which is not among the images (line {number}); {hint}")
        names.append(found[0])
    return names


def _forms(word: str) -> tuple[str, str]:
    name = PureWindowsPath(word.rstrip(";,")).name  # divides at / and at \
    plain = name[: -len(PureWindowsPath(name).suffix)] if name.lower().endswith(IMAGE_SUFFIXES) else name
    return name, plain
