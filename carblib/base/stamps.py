"""Stamps: what an artefact was made from, written beside it, so that nothing stale is ever taken for fresh.

A stamp holds the settings that affect the artefact (in their order: classes in another order are other classes),
digests of what it was made from as a whole (CLIP's weights), and one digest per image of all that was read of it. A
stage says what it would make now; `compare` tells what differs from what lies there. There are three rules:

1. Nothing differs: used. 2. Images were changed, added or removed: just theirs is made anew, and a line says so.
3. Settings, weights or the format differ: refused in one line, which says what (old → new) and the command to renew.

What a person made (a CSV, masks, weights) is never touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from carblib.base import files
from carblib.base.contents import digest_of
from carblib.base.errors import CarbError

NAME = "stamp.json"


@dataclass(frozen=True)
class Stamp:
    """What an artefact is made from. version: raised when the code that makes it changes what it means.

    settings: {key: plain value}; upstream: {what: digest}; items: {image name: digest}.
    """

    kind: str
    version: int
    settings: dict[str, Any]
    upstream: dict[str, str] = field(default_factory=dict)
    items: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One digest of all of it: what an artefact downstream records of this one."""
        return digest_of(_text(asdict(self)).encode())


@dataclass(frozen=True)
class Changes:
    """How what would be made now differs from what lies there: words for settings and upstream, names of images."""

    made_otherwise: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def none(self) -> bool:
        """Whether nothing differs."""
        return not (self.made_otherwise or self.changed or self.added or self.removed)

    def __str__(self) -> str:
        if self.made_otherwise:
            return ", ".join(self.made_otherwise)
        counts = {"changed": self.changed, "added": self.added, "removed": self.removed}
        return ", ".join(
            f"{len(names)} image{'s' * (len(names) > 1)} {what}" for what, names in counts.items() if names
        )


def compare(before: Stamp, now: Stamp) -> Changes:
    """Return what differs between two stamps of one kind."""
    words = []
    if before.version != now.version:
        words.append(f"made by an older carblib (format {before.version}, now {now.version})")
    for key in dict.fromkeys([*now.settings, *before.settings]):
        old, new = (_text(stamp.settings.get(key)) for stamp in (before, now))
        if old != new:
            words.append(f"{key} {_where_they_differ(old, new)} → {_where_they_differ(new, old)}")
    words += [f"other {what}" for what in dict.fromkeys([*now.upstream, *before.upstream])
              if before.upstream.get(what) != now.upstream.get(what)]  # fmt: skip
    return Changes(
        tuple(words),
        tuple(name for name in now.items if before.items.get(name, now.items[name]) != now.items[name]),
        tuple(name for name in now.items if name not in before.items),
        tuple(name for name in before.items if name not in now.items),
    )


def write_stamp(path: Path, stamp: Stamp) -> None:
    """Write a stamp atomically, with a checksum of its own."""
    files.write_json(path, {**asdict(stamp), "digest": stamp.digest})


def read_stamp(path: Path) -> Stamp | None:
    """Read a stamp; None where there is none. Raises CarbError where it is damaged."""
    if not path.is_file():
        return None
    try:
        values = files.read_json(path)
        digest = values.pop("digest")
        stamp = Stamp(**values)
    except (CarbError, TypeError, AttributeError, KeyError):
        stamp, digest = None, ""
    if stamp is None or stamp.digest != digest:
        raise CarbError(f"{path}: damaged; delete {path.parent} and make it again")
    return stamp


def settle(folder: Path, now: Stamp, renew: str = "", needed: Sequence[str] = ("{}.png",)) -> list[str]:
    """Make a folder of files per image ready for what would be made now; return the names of the images to make.

    renew: the command that makes all anew, told where all was made otherwise; "" = that is done without asking, since
    it is cheap or was asked for. needed: an image's files, as in "colour/{}.png". What was made from an image that
    changed or is gone is deleted, since it can be made again, and a line says so; the stamp is written after that, so
    that a stop loses nothing. Raises CarbError where all of it was made otherwise, and where masks lie there that no
    stamp speaks of.
    """
    before = read_stamp(folder / NAME)
    if before is None and next(folder.rglob("*.png"), None):
        raise CarbError(f"{folder}: holds masks, but no {NAME} says what of; move them away, or choose another folder")
    changes = compare(before, now) if before else Changes()
    stale = [*changes.changed, *changes.removed]
    if changes.made_otherwise:
        if renew:
            raise CarbError(
                f"{folder}: {now.kind} made otherwise: {'; '.join(changes.made_otherwise)}; "
                f"to make them anew: {renew} --renew; to keep them, choose another 'run' name"
            )
        stale = [*before.items]
    for name in stale:
        for path in (folder / f"{name}.png", folder / "colour" / f"{name}.png", folder / "overlay" / f"{name}.png"):
            path.unlink(missing_ok=True)
    if before is None or not changes.none:
        write_stamp(folder / NAME, now)
    if before and not changes.none:
        print(f"{folder}: {changes}; made anew: {'all' if changes.made_otherwise else 'theirs alone'}")
    return [name for name in now.items if any(not (folder / pattern.format(name)).is_file() for pattern in needed)]


def joined(parts: Mapping[str, str] | Sequence[str]) -> str:
    """Return one digest of several digests or texts, in their order."""
    return digest_of(_text(parts).encode())


def _text(value: Any) -> str:
    # Keys are not sorted: their order may matter (classes).
    return json.dumps(value, ensure_ascii=False, default=list)


def _where_they_differ(text: str, other: str) -> str:
    """A text, cut to what stands where it begins to differ from another one if it is long."""
    if len(text) <= 60:
        return text
    start = max(0, len(os.path.commonprefix([text, other])) - 20)
    return "…" * (start > 0) + text[start : start + 58] + "…" * (start + 58 < len(text))
