"""What the page shows of a state: at once what is known of it, the rest once CLIP and the network have looked.

They look in a thread, once nobody moves on for a moment; what was overtaken is dropped.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from carblib.base.errors import CarbError, one_line
from carblib.explore.explorer import Explorer, ExplorerState
from carblib.explore.later import Later
from carblib.explore.listing import Listing
from carblib.explore.networks import NetworkError
from carblib.explore.viewer import Viewer, detail_of, first_layers, layers_of, picture_of

PAUSE = 0.25  # seconds without another move after which CLIP and the network begin to look at an image
_LONGEST = 400  # letters of an error of another package


class Showing:
    """Fills the viewer, and says in its status line what there is to say.

    `drop_networks` is called with a state whose network cannot be read. `drawn` counts whole pictures.
    """

    def __init__(
        self,
        explorer: Explorer,
        viewer: Viewer,
        listing: Listing,
        drop_networks: Callable[[ExplorerState], None],
        lock: threading.RLock,
    ):
        self.explorer, self.viewer, self.listing, self.drop_networks = explorer, viewer, listing, drop_networks
        self.drawn = 0
        self._notes: list[str] = []  # to be said with the next whole picture
        self._failed = False  # whether one of them is of an error
        self._unanswered: float | None = None
        self._looking, self._ahead = Later(lock), Later(lock)

    # --- what is said ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def saying(self) -> Iterator[None]:
        """Say on the page what went wrong within the block: nobody would see it elsewhere."""
        try:
            yield
        except (CarbError, RuntimeError, OSError, ValueError) as error:
            self.say(one_line(error)[:_LONGEST], error=True)

    def say(self, text: str, error: bool = False) -> None:
        """Say something now, and again with the picture where one is still to come: it would hide it."""
        self.viewer.status = {"text": text, "error": error}
        if self.viewer.layers.get("pending"):
            self.note(text, error)

    def note(self, text: str, error: bool = False) -> None:
        """Say something with the next whole picture."""
        self._notes.append(text)
        self._failed |= error

    def _about(self, state: ExplorerState) -> str:
        labels = self.explorer.subject(state).labels
        if labels is None:
            parts = ["no image-level labels: all classes compete"]
        else:
            parts = ["labels: " + ", ".join(self.explorer.class_set.names[c] for c in labels.nonzero().flatten())]
        unknown = self.explorer.unknown_words(state)
        if unknown:
            parts.append(f"this CLIP never saw: {', '.join(unknown)}")
        return " · ".join([*self._notes, *parts])

    # --- the page asks one thing at a time, and waits ----------------------------------------------------------------

    def asked(self, time: float) -> None:
        """Remember what the page waits for."""
        self._unanswered = time

    def answer(self) -> None:
        """Tell the page that it may ask for the next thing."""
        if self._unanswered is not None:
            self.viewer.answered, self._unanswered = self._unanswered, None

    # --- pictures ----------------------------------------------------------------------------------------------------

    def draw(self, state: ExplorerState | None, wait: float = PAUSE) -> None:
        """Show a state, None where no image is listed; CLIP begins `wait` seconds later, 0 while a box is dragged."""
        with self.saying():
            try:
                if state is None:
                    self._blank()
                    self.listing.show_place()
                    self.say("no image is listed: clear a filter")
                else:
                    self._draw(state, wait)
            except Exception:
                # No picture rather than one of something else than the controls say.
                self._blank()
                raise

    def _draw(self, state: ExplorerState, wait: float) -> None:
        explorer = copy.copy(self.explorer)  # whose indices stay, where a picture is uploaded while CLIP looks
        ready, picture = explorer.ready(state), picture_of(explorer, state)
        same = picture["key"] == self.viewer.layers.get("key")
        with self.viewer.hold_sync():
            self.viewer.picture = picture
            self.listing.show_place()
            if ready:
                self._finish(state, layers_of(explorer, state))
            elif not same:
                self.viewer.layers = first_layers(explorer, state)
            elif wait:
                self.viewer.layers = {**self.viewer.layers, "pending": True}
        if not same:
            self.answer()
            self.viewer.detail = detail_of(explorer, state)
            self._read_ahead(explorer, state)
        if not ready:
            self.viewer.status = {"text": self._about(state), "error": self._failed}
            self._looking.run(partial(layers_of, explorer, state), partial(self._looked, state), wait)

    def _blank(self) -> None:
        self._looking.forget()
        with self.viewer.hold_sync():
            self.viewer.picture, self.viewer.layers = {}, {}
        self.answer()

    def _looked(self, state: ExplorerState, outcome: dict[str, Any] | Exception) -> None:
        with self.saying():
            if isinstance(outcome, NetworkError):
                self.note(one_line(outcome), error=True)
                self.drop_networks(state)
            elif isinstance(outcome, Exception):
                self._blank()
                raise outcome
            else:
                self._finish(state, outcome)

    def _finish(self, state: ExplorerState, layers: dict[str, Any]) -> None:
        self._looking.forget()
        self.drawn += 1
        self.viewer.layers = layers
        self.viewer.status = {"text": self._about(state), "error": self._failed}
        self._notes, self._failed = [], False
        self.answer()

    def _read_ahead(self, explorer: Explorer, state: ExplorerState) -> None:
        """Read the images beside this one in the list, in a thread, so that going there takes no time."""
        images, place = self.listing.images, self.listing.place
        beside = [images[other] for other in (place + 1, place + 2, place - 1) if 0 <= other < len(images)]

        def read() -> None:
            for index in beside:
                for make in (picture_of, detail_of, first_layers):
                    make(explorer, replace(state, index=index))

        self._ahead.run(read, lambda _: None)
