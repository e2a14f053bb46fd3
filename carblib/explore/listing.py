"""The explorer's list: which images, in which order, at which of them one is, and the gallery of thumbnails."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

import numpy as np

from carblib.base.errors import CarbError
from carblib.explore.controls import ANY, Controls
from carblib.explore.explorer import Explorer
from carblib.explore.later import Later
from carblib.explore.order import CLASS, DISAGREEMENT, MIOU, NAME, Choice, listed, order, scores, sorts
from carblib.explore.results import results_of, table_of
from carblib.explore.session import Tags
from carblib.explore.viewer import PAGE, Viewer

THUMBS_AFTER = 0.5  # seconds: the image itself comes first
_BY_NAME = (
    "order: by name only; 02_pseudo_masks makes results of CLIP on the val split, 04_small_object_evaluation of the "
    "run's networks on the test split, and both need true masks"
)


class Listing:
    """`images`, indices into the chosen split in their order, and `place`, the one looked at.

    `pair` and `objects` are the confusion or the missed objects that were clicked, see `Choice`. While `quiet`, changes
    of controls are the explorer's own and mean nothing.
    """

    def __init__(self, explorer: Explorer, controls: Controls, viewer: Viewer, tags: Tags, lock: threading.RLock):
        self.explorer, self.controls, self.viewer, self.tags = explorer, controls, viewer, tags
        self.images: list[int] = []
        self.place = 0
        self.pair: tuple[int, int] | None = None
        self.objects: tuple[int, int] | None = None
        self.quiet = False
        self._first = 0  # place of the gallery's first image
        self._told: tuple[str, str] | None = None  # split and network whose orders were offered last
        self._ranked: dict[tuple[str, str], list[int]] = {}  # by disagreement, which is read from masks once
        self._thumbs = Later(lock)

    @property
    def index(self) -> int | None:
        """Index of the image looked at; None where the list is empty."""
        return self.images[self.place] if self.images else None

    @property
    def choice(self) -> Choice:
        """What is listed."""
        controls, (by, class_id) = self.controls, self.controls.sort.value
        present = None if controls.present.value < 0 else controls.present.value
        tag = "" if controls.tag.value == ANY else controls.tag.value
        return Choice(by, class_id, present, self.pair, self.objects, tag)

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """Change controls without anything coming of it."""
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before

    def renew(self, note: Callable[..., None], index: int | None = None) -> None:
        """List what the controls say, and stay at an image if it is listed; what is to be said goes to `note`."""
        explorer, controls, name = self.explorer, self.controls, self.controls.split.value
        split, network = explorer.splits[name], controls.network.value
        with self.quietly():
            try:
                self._offer()
                choice = self.choice
                tagged = self.tags.names(name, choice.tag)
                self.images = listed(explorer, name, network, choice, tagged, self._rank(choice))
            except CarbError as error:
                note(str(error), error=True)
                controls.sort.value, controls.present.value, self.pair, self.objects = (NAME, 0), -1, None, None
                self.images = order(explorer.params, split, network)
        if len(controls.sort.options) == 1 and self._told != (name, network):
            note(_BY_NAME)
        self._told = name, network
        self.place = self.images.index(index) if index in self.images else 0
        self.viewer.results = results_of(explorer, split, network)
        self.show_gallery(self.place - self.place % PAGE)

    def _offer(self) -> None:
        """Offer the orders that there are results for, and the tags."""
        explorer, controls, chosen = self.explorer, self.controls, self.controls.sort.value
        classes, split = explorer.class_set.names, explorer.splits[controls.split.value]
        controls.sort.options = [
            (f"lowest IoU of {classes[c]}" if by == CLASS else by, (by, c))
            for by in sorts(explorer.params, split, controls.network.value)
            for c in (range(len(classes)) if by == CLASS else (0,))
        ]
        controls.sort.value = chosen if chosen in [value for _, value in controls.sort.options] else (NAME, 0)
        self.offer_tags()

    def offer_tags(self) -> None:
        """Offer the tags that the split's images have."""
        with self.quietly():
            chosen, known = self.controls.tag.value, [ANY, *self.tags.known(self.controls.split.value)]
            self.controls.tag.options = known
            self.controls.tag.value = chosen if chosen in known else ANY

    def _rank(self, choice: Choice) -> list[int]:
        split, network = self.explorer.splits[self.controls.split.value], self.controls.network.value
        if choice.by != DISAGREEMENT:
            return order(self.explorer.params, split, network, choice.by, choice.class_id)
        key = split.name, network
        if key not in self._ranked:
            text = f"reading {len(split)} pseudo-masks and as many predictions …"
            self.viewer.status = {"text": text, "error": False}
            self._ranked[key] = order(self.explorer.params, split, network, choice.by)
        return self._ranked[key]

    def clear(self) -> None:
        """Drop all conditions."""
        with self.quietly():
            self.controls.present.value, self.controls.tag.value, self.pair, self.objects = -1, ANY, None, None

    def hits(self, wanted: str) -> list[int]:
        """Return the places of the images with a text in their name, in capitals or not."""
        names = self.explorer.splits[self.controls.split.value].names
        return [place for place, index in enumerate(self.images) if wanted.lower() in names[index].lower()]

    def words(self) -> str:
        """Say what is listed."""
        names, choice = self.explorer.class_set.names, self.choice
        parts = [f"tagged {choice.tag}"] * bool(choice.tag)
        parts += [] if choice.present is None else [f"with {names[choice.present]}"]
        if choice.pair:
            truth, predicted = ((*names, "void")[c] for c in choice.pair)
            parts.append(f"{truth} taken for {predicted}")
        if choice.objects:
            size = self.viewer.results["bins"][choice.objects[1]]
            parts.append(f"missed {names[choice.objects[0]]} of {size}")
        return f"images {', '.join(parts)}" if parts else ""

    def show_place(self) -> None:
        """Tell the page at which image one is, and turn the gallery to it."""
        split, name = self.controls.split.value, ""
        if self.index is not None:
            name = self.explorer.splits[split].names[self.index]
        tags = self.tags.of(split, name)
        self.viewer.place = {"place": self.place, "count": len(self.images), "name": name, "tags": tags}
        if not self._first <= self.place < self._first + PAGE:
            self.show_gallery(self.place - self.place % PAGE)

    def refresh(self) -> None:
        """Bring the table in line with the class that is looked at, and with tags."""
        self.show_gallery(self._first, wait=0)

    def show_gallery(self, first: int, wait: float = THUMBS_AFTER) -> None:
        """Show a page of the list: names, scores and failures at once, thumbnails as they come, `wait` s later."""
        explorer, name, choice = self.explorer, self.controls.split.value, self.choice
        split, shown = explorer.splits[name], self.images[first : first + PAGE]
        by = choice.by if choice.by not in (NAME, DISAGREEMENT) else MIOU
        network = self.controls.network.value
        values = scores(explorer.params, split, network, by, choice.class_id)
        class_id = choice.class_id if choice.by == CLASS else self.controls.shown_class.value
        columns, cells = table_of(explorer, split, network, class_id, shown)
        self._first = first
        rows = [
            {
                "place": place,
                "name": split.names[index],
                "text": _score(by, values[index]),
                "cells": [*own, " ".join(self.tags.of(name, split.names[index]))],
            }
            for place, index, own in zip(itertools.count(first), shown, cells, strict=False)
        ]
        page = {"first": first, "total": len(self.images), "note": self.words(), "by": choice.by, "columns": columns}
        self.viewer.gallery = {"rows": rows, **page}

        def put(thumbs: list[bytes] | Exception) -> None:
            if not isinstance(thumbs, Exception):  # a damaged image is told of when one goes to it
                full = [{**row, "thumb": thumb} for row, thumb in zip(rows, thumbs, strict=True)]
                self.viewer.gallery = {"rows": full, **page}

        self._thumbs.run(lambda: [explorer.thumb(name, index) for index in shown], put, wait)


def _score(by: str, value: float) -> str:
    what = {MIOU: "mIoU", CLASS: "IoU"}.get(by, "recall")
    return "" if np.isnan(value) else f"{what} {100 * value:.1f}"
