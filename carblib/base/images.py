"""Pictures and masks as files: read upright and checked byte by byte, or by their headers alone; written."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from carblib.base.errors import CarbError
from carblib.base.files import PathLike, existing, write_bytes
from carblib.base.progress import note

# Everything Pillow is known to raise on damaged files; nothing here can be a programming error of ours.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
MAX_PIXELS = 2**29  # stitched panoramas are read; what would take gigabytes of memory is refused
Image.MAX_IMAGE_PIXELS = None  # looked at here: Pillow would warn, and warnings become errors in all threads at once
_COLOUR_MODES = {"1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_COPY_AGAIN = "download or copy it again; what carb made is made again where you delete it"
_MASK_MODES = {"1", "L", "P", "I;16", "I", "RGB", "RGBA"}
_TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SAY_ORIENTATION = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}


# --- writing -----------------------------------------------------------------------------------------------------


def write_index_png(path: PathLike, mask: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write a mask (H, W) uint8 of train ids atomically as an indexed PNG; values beyond the palette show black."""
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"a mask is (H, W) uint8, not {mask.shape} {mask.dtype}")
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    picture = Image.fromarray(np.ascontiguousarray(mask))
    picture.putpalette(table.tobytes())
    data = io.BytesIO()
    # bits=8: with few values Pillow would pack 4 bits, which some readers turn into other indices.
    picture.save(data, "PNG", bits=8)
    write_bytes(path, data.getvalue())


def write_image(path: PathLike, image: np.ndarray, kind: str = "PNG") -> None:
    """Write an image (H, W, 3), or a grey or index image (H, W), uint8, atomically as PNG, or JPEG: lossy, and fast."""
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(data, kind, quality=90, subsampling=0)  # poles keep their colour
    write_bytes(path, data.getvalue())


# --- reading -----------------------------------------------------------------------------------------------------


def orientation(picture: Image.Image) -> int:
    """Return how a picture is to be turned, as EXIF counts: 2 to 8; 1, as it lies, for nothing said or nonsense."""
    if picture.format == "TIFF" or not picture.info.keys() & _SAY_ORIENTATION:  # TIFFs are turned by Pillow
        return 1
    try:
        said = picture.getexif().get(ExifTags.Base.Orientation)
    except DAMAGE:
        return 1
    return said if said in _TURNS else 1


def _upright(picture: Image.Image, path: PathLike) -> Image.Image:
    # An MPO is a photo with a preview, as telephones write it.
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
        note(f"{path}: holds {picture.n_frames} pictures, the first is read")
    turn = orientation(picture)
    return picture.transpose(_TURNS[turn]) if turn > 1 else picture


def _checked(path: Path) -> io.BytesIO:
    """Return a picture's bytes; ValueError for a PNG of which one is missing, or another than was written.

    Pillow looks at no checksum of the pixels, and misses no end.
    """
    data = path.read_bytes()
    place, kind = 8, b"" if data.startswith(b"\x89PNG\r\n\x1a\n") else b"IEND"
    while kind != b"IEND":
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if end > len(data):
            raise ValueError("its end is missing")
        if zlib.crc32(memoryview(data)[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError("a checksum of it is another")
        place, kind = end, data[place + 4 : place + 8]
    return io.BytesIO(data)


def is_whole(path: Path) -> bool:
    """Tell whether every byte of a PNG is as it was written."""
    try:
        return bool(_checked(path).getbuffer())
    except DAMAGE:
        return False


class Header(NamedTuple):
    """What a picture's header tells: kind of file, Pillow's mode, stored size, whether EXIF turns it by 90°."""

    kind: str
    mode: str
    height: int
    width: int
    turned: bool

    @property
    def upright(self) -> tuple[int, int]:
        """(H, W) as `read_image` gives the image."""
        return (self.width, self.height) if self.turned else (self.height, self.width)


@contextlib.contextmanager
def _picture(path: Path, kind: str, source: Path | io.BytesIO) -> Iterator[Image.Image]:
    """Open a picture for the block, in which Pillow's errors become CarbErrors that call it no `kind`."""
    try:
        with Image.open(source) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                most = f"more than the {MAX_PIXELS // 10**6} megapixels that are read"
                raise CarbError(f"{path}: a picture of {most}; cut it into tiles, or make it smaller")
            yield picture
    except DAMAGE as error:
        raise _damaged(path, kind, error) from error


def _damaged(path: Path, kind: str, error: Exception) -> CarbError:
    shown = str(error).replace(f" '{path}'", "")
    what = f"truncated, damaged or not {kind} ({shown})" if path.stat().st_size else "empty, 0 bytes"
    return CarbError(f"{path}: {what}; {_COPY_AGAIN}")


@contextlib.contextmanager
def _pixels(path: PathLike, kind: str) -> Iterator[Image.Image]:
    """As `_picture`, with every byte of a PNG checked first."""
    path = existing(path)
    try:
        data = _checked(path)
    except DAMAGE as error:
        raise _damaged(path, kind, error) from error
    with _picture(path, kind, data) as picture:
        yield picture


def _header(picture: Image.Image) -> Header:
    return Header(picture.format or "", picture.mode, picture.height, picture.width, orientation(picture) >= 5)


def read_header(path: PathLike) -> Header:
    """Read a picture's header, no pixel. Raises CarbError where the file is missing, or too large, or no picture.

    A PNG must have its end as well: a copy that broke off has a good header.
    """
    path = existing(path)
    with _picture(path, "an image", path) as picture:
        header = _header(picture)
        if header.kind == "PNG" and b"IEND" not in _tail(path):
            _checked(path)
        return header


def _tail(path: Path, length: int = 64) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - length))
        return file.read()


def check_image(path: PathLike, header: Header) -> None:
    """Raise CarbError for a picture that `read_image` does not read."""
    if header.mode not in _COLOUR_MODES:
        what = f"image mode {header.mode} is not 8-bit colour or grey"
        raise CarbError(f"{path}: {what}; convert it to an 8-bit PNG or JPEG")


def check_mask(path: PathLike, header: Header) -> None:
    """Raise CarbError for a picture that `open_mask_png` does not read."""
    if header.kind != "PNG" or header.mode not in _MASK_MODES:
        what = f"a {header.kind} file of mode {header.mode}"
        raise CarbError(f"{path}: {what}; a mask must be a PNG of ids, indices or RGB colours")


def read_image(path: PathLike) -> np.ndarray:
    """Read a PNG, JPEG or other 8-bit image as (H, W, 3) uint8 RGB, turned upright as its EXIF entry says.

    Colours of 16 bits become their upper 8, as Pillow reads them. Raises CarbError for a file that is missing,
    truncated, no image, too large, or grey of more than 8 bits.
    """
    with _pixels(path, "an image") as picture:
        check_image(path, _header(picture))
        picture.filename = ""  # of a file with a name Pillow scrambles grey TIFFs that it turns
        upright = _upright(picture, path)
        return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))  # it would copy all the same


@dataclass(frozen=True)
class MaskPng:
    """A PNG's raw values, (H, W) uint8 (grey or palette index), uint16 or int32, or (H, W, 3 or 4) uint8.

    palette: the file's colours (n, 3) uint8 where values are indices. stretch: what a viewer multiplies grey values of
    1, 2 or 4 bits by, so that the brightest is 255; else 1.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    stretch: int = 1

    def colours(self) -> np.ndarray:
        """Return what a viewer shows, (H, W, 3) uint8, of values of 8 bits."""
        if self.values.ndim == 3:
            return self.values[..., :3]
        if self.palette is not None:
            table = np.zeros((256, 3), np.uint8)
            table[: len(self.palette)] = self.palette
            return table[self.values]
        return np.repeat((self.values * self.stretch)[..., None], 3, 2)


def open_mask_png(path: PathLike) -> MaskPng:
    """Read a PNG's raw values, turned upright as an image's are, and what they stand for.

    Raises CarbError for a file that is missing, truncated or no PNG (JPEG changes the values).
    """
    with _pixels(path, "a PNG") as picture:
        check_mask(path, _header(picture))
        values, palette = np.array(_upright(picture, path)), None
        if picture.mode == "P":
            palette = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    with open(path, "rb") as file:
        depth, colour_type = file.read(26)[24:26]
    stretch = 255 // (2**depth - 1) if colour_type == 0 and depth < 8 else 1
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif stretch > 1:  # Pillow stretches grey of 2 and 4 bits
        values = values // np.uint8(stretch)
    return MaskPng(values, palette, stretch)
