"""Files, written whole or not at all, and read with one-line errors that name the file and the remedy."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import pickle
import re
import struct
import uuid
import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

from carblib.base.errors import CarbError, refusals
from carblib.base.numpy_data import STAND_INS

PathLike = str | os.PathLike[str]

_CHECKSUM = "checksum"
_MAKE_AGAIN = "delete it and run its command again"


def digest_of(data: bytes) -> str:
    """Return the digest of some bytes: 32 hexadecimal digits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# --- writing -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing bytes; on a clean exit it takes the name `path` at one stroke.

    Missing folders are made. When the body raises, `path` stays as it was. Raises CarbError where the disk refuses.
    """
    path = Path(path)
    start = os.fsencode(path.name)[:100].decode("utf-8", "ignore")  # a name may have 255 bytes, not letters
    temporary = path.with_name(f".{start}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[None]:
    """Within the block, turn an OSError into a CarbError: `path` cannot be written, and why."""
    try:
        yield
    except OSError as error:
        long = error.errno == errno.ENAMETOOLONG
        remedy = "shorten the name" if long else "check free space and permissions"
        raise CarbError(f"{path}: cannot be written ({error}); {remedy}") from error


def write_bytes(path: PathLike, data: bytes | memoryview) -> None:
    """Write bytes atomically."""
    with atomic(path) as file:
        file.write(data)


def write_text(path: PathLike, text: str) -> None:
    """Write text atomically, as UTF-8; bytes of a file's name that are no text stand as in JSON: \\udcff."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: PathLike, obj: Any, indent: int | None = 1) -> None:
    """Write an object of plain Python types atomically as JSON; NaN is refused (use None: NaN is not JSON).

    Its last key is a checksum of the others, which whoever reads it compares; a list is kept under the key "rows".
    """
    content = obj if isinstance(obj, dict) else {"rows": obj}
    signed = {**content, _CHECKSUM: digest_of(json.dumps(content).encode())}
    write_text(path, json.dumps(signed, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


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


def write_npz(path: PathLike, **arrays: np.ndarray) -> None:
    """Write arrays atomically as a compressed .npz."""
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    write_bytes(path, data.getbuffer())


def save_torch(path: PathLike, obj: Any) -> None:
    """Write tensors and plain containers atomically in torch's format; `load_torch` reads them back."""
    import torch  # takes seconds, and few commands read or write tensors

    # Into memory first: where the disk refuses, torch raises errors of its own that hide the reason.
    data = io.BytesIO()
    torch.save(obj, data)
    write_bytes(path, data.getbuffer())


# --- reading -----------------------------------------------------------------------------------------------------


def existing(path: PathLike) -> Path:
    """Return the path of a file that is there and may be read; raises CarbError for any other."""
    path = Path(path)
    with refusals():
        if path.is_file():
            path.open("rb").close()  # what may not be read is not damaged
            return path
        what = "is a folder, not a file" if path.is_dir() else "a pipe or device, not a file"
        what = "no such file" if not path.exists() else what
        what = "a link that leads nowhere" if path.is_symlink() and not path.exists() else what
    raise CarbError(f"{path}: {what}; check the path")


def read_json(path: PathLike, remedy: str = _MAKE_AGAIN) -> dict[str, Any]:
    """Read an object of JSON, less its checksum; one that a person wrote needs none.

    Raises CarbError, which ends with the remedy, where it is missing, damaged, or no object.
    """
    content = _json(path, remedy)
    if not isinstance(content, dict):
        raise CarbError(f"{path}: holds no object of keys and values; {remedy}")
    return content


def read_rows(path: PathLike, keys: Sequence[str], remedy: str = _MAKE_AGAIN) -> list[dict[str, Any]]:
    """Read a list of rows, each of which has these keys. Raises CarbError, as `read_json` does, for anything else."""
    content = _json(path, remedy)
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise CarbError(f"{path}: holds no list of rows; {remedy}")
    lacking = [key for row in rows for key in keys if key not in row]
    if lacking:
        raise CarbError(f"{path}: a row lacks '{lacking[0]}'; {remedy}")
    return rows


def _json(path: PathLike, remedy: str) -> Any:
    path = existing(path)
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CarbError(f"{path}: not readable as JSON ({error}); {remedy}") from error
    expected = content.pop(_CHECKSUM, None) if isinstance(content, dict) else None
    if expected is not None and expected != digest_of(json.dumps(content).encode()):
        raise CarbError(
            f"{path}: damaged, its checksum is another; {remedy} (if you changed it yourself, delete its '{_CHECKSUM}')"
        )
    return content


class _Plain(yaml.SafeLoader):
    """YAML without its traps: a key given twice, of which it takes the last, 010, which is 8, and 1:30, which is 90."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Build a mapping whose keys are all different."""
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Build a number that everybody reads alike."""
        if re.match(r"[-+]?0[0-9_]+$|.*:", node.value):
            reason = f"{node.value} is no decimal number; write it without leading zeros and colons"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return self.construct_yaml_float(node) if node.tag.endswith("float") else self.construct_yaml_int(node)


for _kind in ("int", "float"):
    _Plain.add_constructor(f"tag:yaml.org,2002:{_kind}", _Plain.construct_number)


def read_yaml(path: PathLike, texts: Container[str] = ()) -> Any:
    """Read a YAML file of plain values. Raises CarbError where it is missing, no UTF-8, no YAML, or repeats a key.

    `texts`: keys, at whatever depth, whose value, or the items of whose list, are texts: taken as they are written,
    where YAML would turn 2024_01_15 and 0012 into other numbers, and yes into true.
    """
    path = existing(path)
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
    loader = _Plain(text)
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

    path = existing(path)
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


def sha256(path: PathLike) -> str:
    """Return a file's SHA-256 in hexadecimal. Raises CarbError where it is missing."""
    digest = hashlib.sha256()
    with open(existing(path), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
