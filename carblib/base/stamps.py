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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.base.files import digest_of
from carblib.base.locks import one_of_writers, only_writer
from carblib.base.processes import is_first, place, wait_until

NAME = "stamp.json"
MASK = ("{}.png",)  # what a folder holds of an image
FILES = (*MASK, "colour/{}.png", "overlay/{}.jpg")  # and with pictures to look at


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


def sources_changed(before: Any, now: dict[str, str]) -> Changes:
    """Return which of the sources {what: digest} differ; what noted none (`before` is no such table) is never fresh."""
    if not before or not isinstance(before, dict):
        return Changes(("made by an older carblib, which did not note what from",))
    return compare(Stamp("", 1, {}, before), Stamp("", 1, {}, now))


def write_stamp(path: Path, stamp: Stamp) -> None:
    """Write a stamp atomically."""
    files.write_json(path, asdict(stamp))


def read_stamp(path: Path) -> Stamp | None:
    """Read a stamp; None where there is none. Raises CarbError where it is damaged."""
    if not path.is_file():
        return None
    remedy = f"delete {path.parent} and make it again"
    if path.name != NAME:  # of derived labels
        remedy = f"delete it, and {path.with_suffix('.csv').name} beside it if that is not yours: it is derived again"
    values = files.read_json(path, remedy)
    values.pop("digest", None)  # what older ones have in place of a checksum
    try:
        stamp = Stamp(**values)
    except TypeError as error:
        raise CarbError(f"{path}: is no stamp ({error}); {remedy}") from error
    if not all(isinstance(part, dict) for part in (stamp.settings, stamp.upstream, stamp.items)):
        raise CarbError(f"{path}: is no stamp; {remedy}")
    return stamp


def settle(folder: Path, now: Stamp, renew: str = "", needed: Sequence[str] = MASK) -> list[str]:
    """Make a folder of files per image ready for what would be made now; return the names of the images to make.

    renew: the command that makes all anew, told where all was made otherwise; "" = that is done without asking, since
    it is cheap or was asked for. needed: an image's files, as in "colour/{}.png". What was made from an image that
    changed or is gone is deleted, since it can be made again, and a line says so; the stamp is written after that, so
    that a stop loses nothing. Raises CarbError where all of it was made otherwise, and where masks lie there that no
    stamp speaks of.
    """
    before = read_stamp(folder / NAME)
    if before is None and any(next(folder.glob(pattern.format("*")), None) for pattern in FILES):
        what = f"holds masks, or pictures of them, but no {NAME} says what of"
        raise CarbError(f"{folder}: {what}; move them away, or choose another folder")
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
        for pattern in FILES:
            (folder / pattern.format(name)).unlink(missing_ok=True)
    if before is None or not changes.none:
        write_stamp(folder / NAME, now)
    if before and not changes.none:
        print(f"{folder}: {changes}; {'all is' if changes.made_otherwise else 'what came of just those is'} made anew")
    return lacking(folder, now.items, needed)


def lacking(folder: Path, names: Iterable[str], needed: Sequence[str] = MASK) -> list[str]:
    """Return the names of the images of which a folder lacks a file; `needed` as in `settle`."""
    return [name for name in names if any(not (folder / pattern.format(name)).is_file() for pattern in needed)]


@contextmanager
def to_make(folder: Path, now: Stamp, renew: str = "", needed: Sequence[str] = MASK) -> Iterator[list[str]]:
    """Settle a folder and hold its lock; yield the names of the images that are this process's to make.

    A run by itself makes all that `settle` says, and nobody else writes; processes that a training started wait for the
    first. Of a launcher's processes (`place`) each makes what is lacking of a fixed share of the names: whichever is
    killed and started again, none is made twice, none left out. Raises the errors of `settle`, and CarbError where
    another process writes, or makes the same files otherwise.
    """
    rank, world = place()
    if world == 1 and not is_first():
        wait_until(lambda: read_stamp(folder / NAME) == now and not lacking(folder, now.items, needed), str(folder))
        yield []
    elif world == 1:
        with only_writer(folder):
            yield settle(folder, now, renew, needed)
    else:
        with one_of_writers(folder, lambda: settle(folder, now, renew, needed)):
            before = read_stamp(folder / NAME)
            changes = compare(before, now) if before else "no stamp"
            if before is None or not changes.none:
                what = f"others make {now.kind} here from something else ({changes})"
                raise CarbError(f"{folder}: {what}; end them first")
            yield lacking(folder, [*now.items][rank::world], needed)


def wait_for(folder: Path, names: Iterable[str], needed: Sequence[str] = MASK) -> Path:
    """Return a folder once it holds the files of all images, of which a launcher's other processes make their share."""
    left = [] if place()[1] == 1 else [*names]

    def done() -> bool:
        left[:] = lacking(folder, left, needed)
        return not left

    wait_until(done, f"files in {folder}")
    return folder


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
