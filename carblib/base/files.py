"""Files, written whole or not at all, and read with one-line errors that name the file and the remedy."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import pickle
import struct
import uuid
import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml
from PIL import Image, ImageOps

from carblib.base.errors import CarbError, refusals
from carblib.base.numpy_data import STAND_INS

PathLike = str | os.PathLike[str]

# Everything Pillow is known to raise on damaged files; nothing here can be a programming error of ours.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_COLOUR_MODES = {"1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_MASK_MODES = {"1", "L", "P", "I;16", "I", "RGB", "RGBA"}


# --- writing -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing bytes; on a clean exit it takes the name `path` at one stroke.

    Missing folders are made. When the body raises, `path` stays as it was. Raises CarbError where the disk refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CarbError(f"{path}: cannot be written ({error}); check free space and permissions") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: PathLike, data: bytes | memoryview) -> None:
    """Write bytes atomically."""
    with atomic(path) as file:
        file.write(data)


def write_text(path: PathLike, text: str) -> None:
    """Write text atomically, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: PathLike, obj: Any) -> None:
    """Write an object of plain Python types atomically as JSON; NaN is refused (use None: NaN is not JSON)."""
    write_text(path, json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: PathLike, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows atomically as CSV; the columns are those of all rows in order of first appearance; None is empty."""
    write_text(path, csv_text(rows, columns))


def csv_text(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return what `write_csv` writes."""
    names = list(columns) if columns is not None else list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


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


def write_image(path: PathLike, image: np.ndarray) -> None:
    """Write an image (H, W, 3), or a grey or index image (H, W), uint8, atomically as PNG."""
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(data, "PNG")
    write_bytes(path, data.getvalue())


def save_torch(path: PathLike, obj: Any) -> None:
    """Write tensors and plain containers atomically in torch's format; `load_torch` reads them back."""
    import torch  # takes seconds, and few commands read or write tensors

    # Into memory first: where the disk refuses, torch raises errors of its own that hide the reason.
    data = io.BytesIO()
    torch.save(obj, data)
    write_bytes(path, data.getbuffer())


# --- reading -----------------------------------------------------------------------------------------------------


def _existing(path: PathLike) -> Path:
    path = Path(path)
    with refusals():
        if path.is_file():
            path.open("rb").close()  # what may not be read is not damaged
            return path
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        what = "a link that leads nowhere" if path.is_symlink() and not path.exists() else what
    raise CarbError(f"{path}: {what}; check the path in the parameters")


def read_json(path: PathLike) -> Any:
    """Read a JSON file. Raises CarbError where it is missing or no JSON."""
    path = _existing(path)
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CarbError(f"{path}: not readable as JSON ({error}); delete it and run its command again") from error


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, where plain YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Build a mapping whose keys are all different."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: PathLike, texts: Container[str] = ()) -> Any:
    """Read a YAML file of plain values. Raises CarbError where it is missing, no UTF-8, no YAML, or repeats a key.

    `texts`: keys, at whatever depth, whose value, or the items of whose list, are texts: taken as they are written,
    where YAML would turn 2024_01_15 and 0012 into other numbers, and yes into true.
    """
    path = _existing(path)
    try:
        return parse_yaml(path.read_bytes().decode("utf-8"), texts)
    except UnicodeDecodeError as error:
        raise CarbError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except RecursionError as error:
        raise CarbError(f"{path}: brackets within brackets, too deep to read; mend it") from error
    except Exception as error:  # YAML's own, and whatever a constructor raises for a date or number that is none
        reason = str(error).replace('in "<unicode string>",', "at")
        raise CarbError(f"{path}: not readable as YAML ({reason}); mend that line") from error


def parse_yaml(text: str, texts: Container[str] = ()) -> Any:
    """Return what a text of YAML holds, `texts` as in `read_yaml`; raises what PyYAML raises."""
    loader = _UniqueKeys(text)
    node = loader.get_single_node()
    return None if node is None else loader.construct_document(_as_written(node, texts, False, {}))


def _as_written(node: yaml.Node, texts: Container[str], is_text: bool, seen: dict[tuple[int, bool], yaml.Node]) -> Any:
    """Return a node of YAML whose scalars that are texts by their key will be; null stays null."""
    if (id(node), is_text) in seen:  # an alias of a node, which may be one of thousands
        return seen[id(node), is_text]
    if isinstance(node, yaml.MappingNode):
        made = yaml.MappingNode(node.tag, [], node.start_mark, node.end_mark)
        seen[id(node), is_text] = made
        made.value += [(key, _as_written(value, texts, key.value in texts, seen)) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        made = yaml.SequenceNode(node.tag, [], node.start_mark, node.end_mark)
        seen[id(node), is_text] = made
        made.value += [_as_written(item, texts, is_text, seen) for item in node.value]
    elif is_text and node.tag != "tag:yaml.org,2002:null":
        made = yaml.ScalarNode("tag:yaml.org,2002:str", node.value, node.start_mark, node.end_mark)
    else:
        made = node
    return made


def load_torch(path: PathLike) -> Any:
    """Read tensors and plain containers on the CPU, never running code of the file (weights_only).

    NumPy's scalars come as Python's numbers. Raises CarbError for a missing or truncated file and for a pickle that
    holds anything but tensors and containers.
    """
    import torch

    path = _existing(path)
    if not path.stat().st_size:
        raise CarbError(f"{path}: empty, 0 bytes; download or copy it again")
    if zipfile.is_zipfile(path):
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types here, all of them about the file
        # torch explains at length, and advises to switch its protection off.
        if isinstance(error, pickle.UnpicklingError) or zipfile.is_zipfile(path):
            why = "refused, it holds Python objects or code and not only tensors; give a plain state dict"
        else:
            why = "truncated or no torch file; download or copy it again"
        raise CarbError(f"{path}: {why}") from error


def state_dict_of(loaded: Any) -> Any:
    """Return the state dict of a checkpoint: bare, or under "state_dict", less the "module." of parallel training."""
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if isinstance(state, dict) and state and all(str(key).startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _check_archive(path: Path) -> None:
    # torch writes a checksum of every tensor, and never looks at it when it reads.
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, ValueError, NotImplementedError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        bad = str(error)
    if bad:
        raise CarbError(f"{path}: damaged ({bad}), its checksum is another; copy it again, or make it again")


def read_image(path: PathLike) -> np.ndarray:
    """Read a PNG, JPEG or other 8-bit image as (H, W, 3) uint8 RGB, turned upright as its EXIF entry says.

    Raises CarbError for a file that is missing, truncated, no image, or of more than 8 bits per channel.
    """
    path = _existing(path)
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            if mode in _COLOUR_MODES:
                return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except _DAMAGE as error:
        raise CarbError(f"{path}: truncated or not an image ({error}); download or copy it again") from error
    raise CarbError(f"{path}: image mode {mode} is not 8-bit colour or grey; convert it to an 8-bit PNG or JPEG")


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


def read_mask_png(path: PathLike) -> np.ndarray:
    """Read a PNG's raw values (`MaskPng`). Raises CarbError where it is missing, truncated or no PNG."""
    return open_mask_png(path).values


def open_mask_png(path: PathLike) -> MaskPng:
    """Read a PNG's raw values and what they stand for.

    Raises CarbError for a file that is missing, truncated or no PNG (JPEG changes the values).
    """
    path = _existing(path)
    try:
        with Image.open(path) as picture:
            kind, mode = picture.format, picture.mode
            values = np.array(picture) if kind == "PNG" and mode in _MASK_MODES else None
            palette = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3) if mode == "P" else None
    except _DAMAGE as error:
        raise CarbError(f"{path}: truncated or not a PNG ({error}); download or copy it again") from error
    if values is None:
        raise CarbError(f"{path}: a {kind} file of mode {mode}; a mask must be a PNG of ids, indices or RGB colours")
    with open(path, "rb") as file:
        depth, colour_type = file.read(26)[24:26]
    stretch = 255 // (2**depth - 1) if colour_type == 0 and depth < 8 else 1
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif stretch > 1:  # Pillow stretches grey of 2 and 4 bits
        values = values // np.uint8(stretch)
    return MaskPng(values, palette, stretch)


def sha256(path: PathLike) -> str:
    """Return a file's SHA-256 in hexadecimal. Raises CarbError where it is missing."""
    digest = hashlib.sha256()
    with open(_existing(path), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
