"""Index masks that a lossless optimiser went over: the picture is the same, the numbers in the file are not.

oxipng, optipng and their like keep what is seen: grey becomes an index into a short list of greys, indices are dealt
anew together with their colours, palettes become RGB, and grey of 8 bits becomes grey of 1, 2 or 4.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import numpy as np

from carblib.base.images import MaskPng, open_mask_png
from carblib.classes import IGNORE, Colour

_SIBLINGS = 32  # masks of the folder that are looked at where one file alone cannot tell


def read_indices(path: Path, valid: Container[int], palette: Sequence[Colour] = ()) -> np.ndarray:
    """Read the values (H, W) of an index mask as they were before any lossless optimiser; an RGB image (H, W, 3) else.

    `valid`: the values a mask may hold; `palette`: the colours of the values 0, 1, …, black being void, where masks may
    carry them. A palette of greys that are all valid values gives these, one of the classes' colours gives the classes;
    any other palette is decoration, and the index counts. Raises CarbError where the file is no PNG.
    """
    png = open_mask_png(path)
    if png.values.ndim == 3:
        return _of_colours(png, palette)
    if png.palette is not None:
        return _of_palette(path, png, valid, palette)
    stretched = png.values * np.uint8(png.stretch) if png.stretch > 1 else png.values
    if png.stretch == 1 or not _all_valid(stretched, valid):
        return png.values
    # Both readings are possible, say 0 and 1, or 0 and 255: ids are written in few bits by whoever writes all of them
    # so, and an optimiser finds few bits here and more there.
    return png.values if _all_valid(png.values, valid) and _is_custom(path) else stretched


def _of_colours(png: MaskPng, palette: Sequence[Colour]) -> np.ndarray:
    known = _ids_of_colours(palette)
    opaque = png.values.shape[2] == 3 or bool((png.values[..., 3] == 255).all())
    pixels = packed(png.values[..., :3])
    colours = np.unique(pixels)
    if not opaque or not palette or not colours.any() or any(int(colour) not in known for colour in colours):
        return png.values
    ids = np.array([known[int(colour)] for colour in colours], np.uint8)
    return ids[np.searchsorted(colours, pixels)]


def _of_palette(path: Path, png: MaskPng, valid: Container[int], palette: Sequence[Colour]) -> np.ndarray:
    colours = [tuple(colour) for colour in png.palette.tolist()]
    pruned = len(colours) < 256  # as optimisers leave it; a whole palette of classes was written with its index
    if all(colour == (i, i, i) for i, colour in enumerate(colours)) and (len(colours) > 1 or not palette):
        return png.values
    known = _ids_of_colours(palette)
    of_classes = bool(palette) and all(_packed_one(colour) in known for colour in colours)
    if of_classes and not pruned:
        return png.values
    used = [i for i in np.flatnonzero(np.bincount(png.values.ravel(), minlength=256)) if i < len(colours)]
    seen = [colours[i] for i in used]
    if of_classes:
        # Black alone may be anything, unless the masks beside it are in the classes' colours too.
        coloured = any(map(any, seen)) or _any_coloured(path, known)
        return _translated(png.values, [known[_packed_one(c)] for c in colours]) if coloured else png.values
    greys = [colour[0] for colour in seen]
    if all(len({*colour}) == 1 for colour in seen) and all(grey in valid for grey in greys):
        decorated = {*greys} <= {0, 255} and all(i in valid for i in used) and _is_custom(path)
        return png.values if decorated else _translated(png.values, [colour[0] for colour in colours])
    return png.values


def _translated(values: np.ndarray, table: Sequence[int]) -> np.ndarray:
    lookup = bytes(table[value] if value < len(table) else value for value in range(256))
    return np.frombuffer(bytearray(values.tobytes()).translate(lookup), np.uint8).reshape(values.shape)


def _ids_of_colours(palette: Sequence[Colour]) -> dict[int, int]:
    # Black is void, as `write_index_png` paints it, unless it is a class's own.
    return {0: IGNORE} | {_packed_one(colour): value for value, colour in enumerate(palette)}


def _packed_one(colour: Sequence[int]) -> int:
    return colour[0] + (colour[1] << 8) + (colour[2] << 16)


def _all_valid(values: np.ndarray, valid: Container[int]) -> bool:
    return all(int(value) in valid for value in np.unique(values))


def _is_custom(path: Path) -> bool:
    """Tell whether the masks beside one have its kind, bits and palette as well: who wrote them meant the numbers."""
    return {_kind(other) for other in _beside(path)} <= {_kind(path)}


def _any_coloured(path: Path, known: Mapping[int, int]) -> bool:
    """Tell whether the palette of a mask beside one, black left out, is of known colours."""
    palettes = [palette for _, palette in map(_kind, _beside(path)) if any(palette)]
    return any({_packed_one(palette[i : i + 3]) for i in range(0, len(palette), 3)} <= {*known} for palette in palettes)


def _beside(path: Path) -> list[Path]:
    """Return some of the PNGs of a mask's folder, evenly spaced."""
    found = sorted(entry.path for entry in os.scandir(path.parent) if entry.name.lower().endswith(".png"))
    return [Path(other) for other in found[:: max(1, len(found) // _SIBLINGS)]]


def _kind(path: Path) -> tuple[bytes, bytes]:
    """Return a PNG's bits and kind of colour, and its palette, from its head."""
    with open(path, "rb") as file:
        head = file.read(2048)
    place = head.find(b"PLTE")
    size = int.from_bytes(head[place - 4 : place], "big") if place > 0 else 0
    return head[24:26], head[place + 4 : place + 4 + size] if size else b""


def packed(colours: np.ndarray) -> np.ndarray:
    """Return R + 256 G + 65536 B of colours (…, 3) uint8."""
    four = np.zeros((*colours.shape[:-1], 4), np.uint8)
    four[..., :3] = colours
    return four.view("<u4")[..., 0]
