"""The explorer's panel: controls around the viewer, and what comes of every one of them and of the page's questions.

Nothing here waits for a page, so that a headless run that builds a panel goes on.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import traitlets
from IPython.display import HTML, display
from ipywidgets import Text, VBox

from carblib.base.errors import CarbError
from carblib.base.progress import is_live
from carblib.explore import session
from carblib.explore.controls import ANY, Controls, network_options, view_options
from carblib.explore.explorer import UPLOADED, Explorer, ExplorerState
from carblib.explore.listing import Listing
from carblib.explore.order import MIOU, first_state, scores
from carblib.explore.showing import Showing
from carblib.explore.viewer import LOOK, Viewer, setup_of
from carblib.explore.views import view_figure, view_of, view_record
from carblib.figures.captions import save_figure
from carblib.params import below_root

# A notebook's file keeps the widget's address, not the widget: where no kernel runs, the picture is shown instead.
_STILL = (
    "<style>.jp-OutputArea:has(.carblib-still):not(:has(.carblib-viewer)) .jupyter-widgets {{ display: none }}</style>"
    '<img class="carblib-still" style="max-width: 100%" alt="The explorer, image {name}" '
    'src="data:image/jpeg;base64,{data}">'
)


class ExplorerPanel:
    """Controls and viewer of an `Explorer`; `widget` is what a notebook displays.

    Every control is an attribute of `controls` (`shown_class`, `words`, …) that can be set from a cell as well.
    """

    def __init__(self, explorer: Explorer, state: ExplorerState | None = None):
        self.explorer = explorer
        first = state or first_state(explorer)
        self.tags = session.Tags(explorer)
        self.controls = Controls(explorer, first)
        pin = first.pixel and {"key": explorer.key(first), "x": first.pixel[1], "y": first.pixel[0]}
        self.viewer = Viewer(setup=setup_of(explorer), look={**LOOK, "opacity": first.opacity, "pin": pin})
        traitlets.link((self.controls.shown_class, "value"), (self.viewer, "class_id"))
        traitlets.link((self.controls.local, "value"), (self.viewer, "local"))
        self.widget = VBox([self.controls.layout(), self.viewer])
        self.lock = threading.RLock()  # held by whatever changes what is shown
        self.listing = Listing(explorer, self.controls, self.viewer, self.tags, self.lock)
        self.showing = Showing(explorer, self.viewer, self.listing, self._drop_networks, self.lock)
        self._centre = first.centre
        self._handle: Any = None
        self.listing.renew(self.showing.note, first.index)
        self._observe()
        self.redraw()

    def show(self) -> None:
        """Display the panel, and keep a picture of it in the notebook for where no kernel runs."""
        display(self.widget)
        self._handle = display(HTML(""), display_id=True)

    def _observe(self) -> None:
        controls, alone = self.controls, self._alone
        for control in (controls.masker, controls.gate, controls.local, controls.words, controls.zoom):
            control.observe(alone(self.redraw), "value")
        controls.shown_class.observe(alone(lambda _: self.listing.refresh()), "value")
        for control in (controls.split, controls.sort, controls.present, controls.tag):
            control.observe(alone(self._regroup), "value")
        for control in (controls.network, controls.other):
            control.observe(alone(self._renetwork), "value")
        controls.search.observe(alone(self._find), "value")
        controls.next_hit.on_click(alone(self._find))
        controls.clear.on_click(alone(lambda _: self._filter()))
        self._on_text(controls.checkpoint, self._add_network)
        controls.upload.observe(alone(self._upload), "value")
        controls.save.on_click(alone(lambda _: self.save_figure()))
        self._on_text(controls.selection, self._export)
        self._on_text(controls.view_name, self._save_view)
        controls.open_view.observe(alone(self._open_view), "value")
        self.viewer.observe(alone(self._asked), "event")
        self.viewer.on_msg(self._still)

    def _alone(self, act: Callable[..., None]) -> Callable[..., None]:
        """Let a handler run when no other does: JupyterLab has the kernel answer clicks and values in two threads."""

        def one(*told: Any) -> None:
            with self.lock:
                act(*told)

        return one

    def _on_text(self, control: Text, act: Callable[[str], None]) -> None:
        """Act on a text and clear it; one that failed stays, and Enter tries it again."""

        def entered(*_: Any) -> None:
            text = control.value.strip().strip("\"'")
            if text:
                with self.showing.saying():
                    act(text)
                    control.value = ""

        entered = self._alone(entered)
        control.observe(entered, "value")
        control.on_msg(lambda _, content, __: entered() if content.get("event") == "submit" else None)

    # --- what the controls say ---------------------------------------------------------------------------------------

    @property
    def state(self) -> ExplorerState | None:
        """What is looked at; None where the list holds no image."""
        controls, pin = self.controls, self.viewer.look["pin"]
        if not self.listing.images:
            return None
        state = ExplorerState(
            split=controls.split.value,
            index=self.listing.index,
            class_id=controls.shown_class.value,
            masker=controls.masker.value,
            gate=controls.gate.value,
            network=controls.network.value,
            other=controls.other.value,
            local=controls.local.value,
            centre=self._centre,
            zoom=controls.zoom.value,
            opacity=self.viewer.look["opacity"],
            text=controls.words.value.strip(),
        )
        pinned = pin and pin["key"] == self.explorer.key(state)
        return replace(state, pixel=(pin["y"], pin["x"])) if pinned else state

    def _listed(self) -> ExplorerState:
        """What is looked at. Raises CarbError where the list holds no image."""
        state = self.state
        if state is None:
            raise CarbError("no image is listed: clear a filter")
        return state

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Change several controls, then redraw once."""
        with self.listing.quietly():
            yield
        self.redraw()

    def redraw(self, _: Any = None) -> None:
        """Show what the controls say."""
        if not self.listing.quiet:
            self.showing.draw(self.state)

    # --- the list ----------------------------------------------------------------------------------------------------

    def _filter(self, pair: tuple[int, int] | None = None, objects: tuple[int, int] | None = None) -> None:
        """List the images of a confusion or of missed objects; of neither: clear all filters."""
        with self.showing.saying(), self._together():
            if pair is None and objects is None:
                self.listing.clear()
            self.listing.pair, self.listing.objects = pair, objects
            self.listing.renew(self.showing.note)

    def _regroup(self, _: Any) -> None:
        if not self.listing.quiet:
            with self.showing.saying(), self._together():
                self.listing.renew(self.showing.note)

    def _renetwork(self, change: dict[str, Any]) -> None:
        if self.listing.quiet:
            return
        with self.showing.saying(), self._together():
            here = self.listing.index
            if change["owner"] is self.controls.network:
                self.listing.renew(self.showing.note, here)

    def _go_to(self, place: int) -> None:
        self.listing.place = min(max(place, 0), max(len(self.listing.images) - 1, 0))
        self.redraw()

    def _find(self, _: Any = None) -> None:
        """Go to the next image after this one with the text in its name, and from the last to the first."""
        wanted = self.controls.search.value.strip()
        hits = self.listing.hits(wanted)
        if wanted and not hits:
            self.showing.say(f"no image of the list has “{wanted}” in its name", error=True)
        elif wanted:
            place = next((place for place in hits if place > self.listing.place), hits[0])
            self.showing.note(f"“{wanted}”: {hits.index(place) + 1} of {len(hits)}")
            self._go_to(place)

    # --- what the page asks for --------------------------------------------------------------------------------------

    def _asked(self, change: dict[str, Any]) -> None:
        event = change["new"]
        self.showing.asked(event["time"])
        actions = {
            "go": lambda: self._go_to(self.listing.place + event["by"]),
            "goto": lambda: self._go_to(event["place"]),
            "box": lambda: self._move_box(event["row"], event["column"]),
            "tag": lambda: self._tag(event["text"], True),
            "untag": lambda: self._tag(event["text"], False),
            "page": lambda: self.listing.show_gallery(event["first"]),
            "order": lambda: self._sort(event["by"], event["class_id"]),
            "confusion": lambda: self._filter(pair=(event["truth"], event["predicted"])),
            "objects": lambda: self._filter(objects=(event["class_id"], event["bin"])),
        }
        try:
            with self.showing.saying():
                actions[event["kind"]]()
        finally:  # whatever happened: the page sends nothing more until then
            if event["kind"] != "box":
                self.showing.answer()

    def _sort(self, by: str, class_id: int) -> None:
        if (by, class_id) in [value for _, value in self.controls.sort.options]:  # there are results for it
            self.controls.sort.value = (by, class_id)

    def _move_box(self, row: int, column: int) -> None:
        self._centre = (row, column)
        self.showing.draw(self.state, wait=0)

    def _tag(self, text: str, add: bool) -> None:
        state = self._listed()
        self.tags.change(state.split, self.explorer.name(state), text, add)
        self.listing.offer_tags()
        self.listing.show_place()
        self.listing.refresh()

    def _still(self, _: Any, content: dict[str, Any], buffers: list[memoryview]) -> None:
        if self._handle and content.get("kind") == "still" and buffers:
            data = base64.b64encode(bytes(buffers[0])).decode()
            self._handle.update(HTML(_STILL.format(name=content["name"], data=data)))

    # --- what is added and kept --------------------------------------------------------------------------------------

    def _add_network(self, path: str) -> None:
        name, here = self.explorer.add_network(path), self.listing.index
        with self._together():
            for control in (self.controls.network, self.controls.other):
                chosen = control.value
                control.options = network_options(self.explorer)
                control.value = chosen
            self.controls.network.value = name
            self.listing.renew(self.showing.note, here)

    def _drop_networks(self, state: ExplorerState) -> None:
        """Go on without the networks that cannot be read."""
        with self._together():
            for control, name in ((self.controls.network, state.network), (self.controls.other, state.other)):
                if name and not self.explorer.loads(name):
                    control.value = ""
            self.listing.renew(self.showing.note, state.index)

    def _upload(self, change: dict[str, Any]) -> None:
        with self.showing.saying():
            for picture in change["new"]:
                index = self.explorer.add_picture(picture["name"], bytes(picture["content"]))
                with self._together():
                    self.controls.split.options = list(self.explorer.splits)
                    self.controls.split.value = UPLOADED
                    self.listing.renew(self.showing.note, index)

    def _export(self, name: str) -> None:
        params, split, images = self.explorer.params, self.controls.split.value, self.listing.images
        opened = self.explorer.splits[split]
        values = scores(params, opened, self.controls.network.value, MIOU)
        rows = [{"tags": " ".join(self.tags.of(split, opened.names[i])), "miou": _plain(values[i])} for i in images]
        before = " in place of the earlier ones" * (self.explorer.folder / name / "images.txt").is_file()
        written = session.export(self.explorer, split, images, name, rows)
        self.showing.say(f"{len(images)} images{before}: {', '.join(map(below_root, written))}")

    def _save_view(self, name: str) -> None:
        view = session.SavedView(self._listed(), self.listing.choice, self.viewer.look)
        done = "replaced" if name in session.saved_views(self.explorer) else "saved"
        path = session.save_view(self.explorer, name, view)
        with self.listing.quietly():
            self.controls.open_view.options = view_options(self.explorer)
        self.showing.say(f"view {done}: {below_root(path)}")

    def _open_view(self, change: dict[str, Any]) -> None:
        if not change["new"] or self.listing.quiet:
            return
        with self.showing.saying():
            view = session.open_view(self.explorer, change["new"])
            with self._together():
                self._set(view)

    def _set(self, view: session.SavedView) -> None:
        state, choice, controls = view.state, view.choice, self.controls
        for name in ("split", "masker", "gate", "network", "other", "local", "zoom"):
            getattr(controls, name).value = getattr(state, name)
        controls.words.value, controls.shown_class.value = state.text, state.class_id
        self._centre = state.centre
        self.listing.pair, self.listing.objects = choice.pair, choice.objects
        self.viewer.look = {**LOOK, **view.look}
        self.listing.renew(self.showing.note)  # which offers the orders of that split and network
        controls.present.value = -1 if choice.present is None else choice.present
        controls.tag.value = choice.tag if choice.tag in controls.tag.options else ANY
        self._sort(choice.by, choice.class_id)
        self.listing.renew(self.showing.note, state.index)

    def save_figure(self) -> list[str]:
        """Save the view in figures/<run>/explorer as PNG, PDF and JSON; say and return where, nothing if it failed."""
        saved: list[str] = []
        with self.showing.saying():
            saved = [below_root(path) for path in self._save(self._listed())]
            self.showing.say("saved: " + ", ".join(saved))
        return saved

    def _save(self, state: ExplorerState) -> list[Path]:
        stem = f"{state.split}_{self.explorer.name(state)}"
        folder = self.explorer.params.figures_dir / "explorer"
        free = next(n for n in itertools.count(1) if not (folder / f"{stem}_{n}.png").exists())
        figure, record = view_figure(view_of(self.explorer, state)), view_record(self.explorer, state)
        return save_figure(figure, folder / f"{stem}_{free}", record)


def watched(explorer: Explorer) -> bool:
    """Tell whether a panel is of use: a page watches, or `interactive` says so; else a figure is shown instead."""
    return explorer.params.interactive or is_live()


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
