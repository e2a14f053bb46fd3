"""Class sets as data: names, words for CLIP, palettes, and which classes count as small.

The datasets' are in assets/classes.yaml, written as a parameter file writes the user's own.
"""

from __future__ import annotations

import colorsys
import dataclasses
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    ValidationError,
)

from carblib.base.errors import CarbError, nearest

Colour = tuple[int, int, int]
IGNORE = 255  # ignore_index: belongs to no class


@dataclass(frozen=True)
class ClassSet:
    """Classes in the order of their train ids 0 … C−1; 255 is ignore and belongs to no class.

    `words[c]` are class c's words for CLIP (first the paper's), `palette[c]` its RGB colour 0–255, `small[c]` whether
    it counts in the small-class mean.
    """

    name: str
    names: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    palette: tuple[Colour, ...]
    small: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Return the train id of a class name. Raises CarbError naming the nearest class."""
        if name not in self.names:
            hint = nearest(name, self.names) or f"its classes are {', '.join(self.names)}"
            raise CarbError(f"class set {self.name}: no class '{name}'; {hint}")
        return self.names.index(name)

    def labels(self, *names: str) -> np.ndarray:
        """Return image-level labels (C,) bool of the classes named. Raises CarbError naming the nearest class."""
        present = np.zeros(len(self), bool)
        present[[self.index(name) for name in names]] = True
        return present

    @property
    def small_ids(self) -> tuple[int, ...]:
        """Train ids of the small classes, ascending."""
        return tuple(i for i, small in enumerate(self.small) if small)


_TAKEN = {"name": "an image's name", "all": "all classes together"}


def _from_hex(colour: Any) -> Any:
    written = isinstance(colour, str) and re.fullmatch("#[0-9a-fA-F]{6}", colour)
    return list(bytes.fromhex(colour[1:])) if written else colour


def _plain(text: str) -> str:
    # One accented letter may be written as two, which look the same; a line break would break tables.
    if any(unicodedata.category(letter) == "Cc" for letter in text):
        raise ValueError("a line break or control character")
    return unicodedata.normalize("NFC", text)


_Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1), AfterValidator(_plain)]
_Words = Annotated[tuple[_Text, ...], BeforeValidator(lambda words: [words] if isinstance(words, str) else words)]
_Byte = Annotated[int, Field(strict=True, ge=0, le=255)]
_Colour = Annotated[tuple[_Byte, _Byte, _Byte], BeforeValidator(_from_hex)]


class _Own(BaseModel):
    """A class as the user writes it; descriptions say how each key is written."""

    model_config = ConfigDict(extra="forbid")

    name: _Text = Field(description="give the class a name, on one line")
    words: _Words = Field((), min_length=1, description="write a text or a list of texts for CLIP")
    colour: _Colour | None = Field(None, description="write [r, g, b] with 0–255 or '#rrggbb'")
    small: StrictBool = Field(False, description="write true or false")


def class_set(spec: str | list[dict[str, Any]]) -> ClassSet:
    """Return a known class set by name, or one of the user's own from a list of {name, words, colour, small}.

    Only `name` is required: `words` (text or list of texts) default to the name, `colour` ([r, g, b] or "#rrggbb") to
    distinct hues, `small` to false. Raises CarbError naming the entry and what to do.
    """
    if isinstance(spec, str):
        if spec not in _KNOWN:
            hint = nearest(spec, _KNOWN) or f"known are {', '.join(_KNOWN)}, or give a list of {{name, words}}"
            raise CarbError(f"classes: no class set '{spec}'; {hint}")
        return _KNOWN[spec]
    if not isinstance(spec, list | tuple) or not 2 <= len(spec) <= 255:
        raise CarbError("classes: give a known name or a list of 2 to 255 entries {name, words, colour, small}")
    own = _build("own", spec)
    for place, name in enumerate(own.names):
        if name in _TAKEN:
            raise CarbError(f"classes[{place}]: '{name}' stands for {_TAKEN[name]} in our tables; choose another name")
    for what, values in (("name", own.names), ("colour", own.palette)):
        for place, value in enumerate(values):
            if value in values[:place]:
                raise CarbError(f"classes[{place}]: {what} {value!r} is given twice; each class needs its own")
    return own


def _build(name: str, spec: list[Any]) -> ClassSet:
    entries = [_own(place, entry) for place, entry in enumerate(spec)]
    return ClassSet(
        name,
        names=tuple(entry.name for entry in entries),
        words=tuple(entry.words or (entry.name,) for entry in entries),
        palette=tuple(entry.colour or _hue(place, len(entries)) for place, entry in enumerate(entries)),
        small=tuple(entry.small for entry in entries),
    )


def _own(place: int, entry: Any) -> _Own:
    """Return the user's entry at `place`, checked."""
    where, entry = f"classes[{place}]", {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict):
        raise CarbError(f"{where}: {entry!r} is no class; write {{name: car, words: [car], colour: [r, g, b]}}")
    try:
        return _Own.model_validate(entry)
    except ValidationError as error:
        key, known = error.errors()[0]["loc"][0], _Own.model_fields
    if key not in known:
        raise CarbError(f"{where}: '{key}' is no key of a class; {nearest(key, known) or 'keys: ' + ', '.join(known)}")
    given = f"cannot be {entry[key]!r}" if key in entry else "is missing"
    raise CarbError(f"{where}: '{key}' {given}; {known[key].description}")


def _hue(place: int, count: int) -> Colour:
    # Hues spread evenly; brightness alternates so that neighbours in the list differ in more than hue.
    red, green, blue = colorsys.hsv_to_rgb(place / count, 0.75, 0.95 if place % 2 == 0 else 0.65)
    return round(255 * red), round(255 * green), round(255 * blue)


_TABLE = yaml.safe_load((Path(__file__).parent / "assets" / "classes.yaml").read_text("utf-8"))
CAMVID, CITYSCAPES, WILDDASH2 = (_build(name, entries) for name, entries in _TABLE.items())
WILDDASH2_CITYSCAPES = dataclasses.replace(CITYSCAPES, name="wilddash2_cityscapes")
_KNOWN = {known.name: known for known in (CAMVID, CITYSCAPES, WILDDASH2, WILDDASH2_CITYSCAPES)}
