"""CSV as people write it: by hand, or by a spreadsheet in whichever encoding and with whichever delimiter it chose."""

from __future__ import annotations

import codecs
import csv
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carblib.base.errors import CarbError, refusals
from carblib.base.files import write_bytes

_WORDS = {"1": True, "1.0": True, "true": True, "yes": True, "x": True}
_WORDS |= {"0": False, "0.0": False, "false": False, "no": False, "": False}
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Sheet:
    """A table of text: the header and (line in the file, cells) of every row that is not empty, stripped, in NFC."""

    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]
    text: str
    delimiter: str
    encoding: str

    @property
    def note(self) -> str:
        """What is to be said of how it was read, "" for nothing."""
        return "no UTF-8, read as Windows-1252" if self.encoding == "cp1252" else ""

    def append(self, rows: Sequence[Sequence[str]]) -> None:
        """Write the file again with further rows, all it holds as it was. Raises CarbError where letters do not fit."""
        ending = "\r\n" if "\r\n" in self.text else "\n"
        added = io.StringIO()
        csv.writer(added, delimiter=self.delimiter, lineterminator=ending).writerows(rows)
        text = self.text + ("" if self.text.endswith("\n") else ending) + added.getvalue()
        bom = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(self.encoding, b"")
        try:
            write_bytes(self.path, bom + text.encode(self.encoding))
        except UnicodeEncodeError as error:
            raise CarbError(
                f"{self.path}: cannot hold the names in its encoding ({error}); save it as UTF-8"
            ) from error


def truth(cell: str) -> bool | None:
    """Return what a cell says: 1, true, yes, x or 0, false, no, nothing, in any case; None for anything else."""
    return _WORDS.get(cell.lower())


def read_sheet(path: Path, key: str) -> Sheet:
    """Read a CSV whose header has a column `key`: comma, semicolon or tab; UTF-8 or -16, with a mark or without.

    What is no UTF-8 is taken for Windows-1252. Raises CarbError for what is no text, or no table.
    """
    text, encoding = _decoded(path)
    first, _, rest = text.partition("\n")
    said = first.strip().strip('"').lower()
    skipped = said.startswith("sep=") and len(said) == 5  # Excel's own line
    body, start = (rest, 1) if skipped else (text, 0)
    delimiter = said[4] if skipped else _delimiter(body, key)
    try:
        reader = csv.reader(io.StringIO(body, newline=""), delimiter=delimiter)
        rows = [
            (start + reader.line_num, [unicodedata.normalize("NFC", cell.strip()) for cell in row]) for row in reader
        ]
    except csv.Error as error:
        raise CarbError(f"{path}: not readable as CSV ({error}); save it as comma-separated UTF-8") from error
    rows = [(line, row) for line, row in rows if any(row)]
    header = _trimmed(rows[0][1], 0) if rows else []
    rows = [(line, _trimmed(row, len(header))) for line, row in rows[1:]]
    return Sheet(Path(path), header, rows, text, delimiter, encoding)


def read_text(path: Path) -> str:
    """Return the text of a file that a person wrote, in the encodings of `read_sheet`. Raises CarbError for no text."""
    return _decoded(path)[0]


def _decoded(path: Path) -> tuple[str, str]:
    """Return a file's text, without its mark, and the encoding to write it back in."""
    with refusals():
        data = Path(path).read_bytes()
    encoding = "utf-8"
    if data.startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16-le" if data.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"
    elif b"\0" in data[:4]:  # UTF-16 without a mark: the header's letters are ASCII
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        return data.decode(encoding).removeprefix("\ufeff"), encoding
    except UnicodeDecodeError as error:
        if encoding == "utf-8" and b"\0" not in data:
            try:
                return data.decode("cp1252"), "cp1252"
            except UnicodeDecodeError:
                pass
        raise CarbError(f"{path}: not readable as text ({error}); save it as UTF-8") from error


def _delimiter(text: str, key: str) -> str:
    """Return what divides the cells of the first line that is not empty so that one of them is `key`."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in sorted(_DELIMITERS, key=line.count, reverse=True):
        if key in [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]:
            return delimiter
    return ","


def _trimmed(row: list[str], length: int) -> list[str]:
    # Spreadsheets fill rows up with empty cells.
    while len(row) > length and not row[-1]:
        row = row[:-1]
    return row
