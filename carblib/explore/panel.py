"""The explorer's panel in JupyterLab: controls, one picture to click and drag on, and what is under the click.

Widgets with `observe` only. Nothing here waits for a page, so that a headless run that builds a panel goes on.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ipywidgets import HTML, Button, Checkbox, FloatSlider, HBox, IntSlider, Layout, VBox

from carblib.base.errors import CarbError
from carblib.base.progress import is_live
from carblib.data.readers import Split
from carblib.explore.explorer import GATES, Explorer, ExplorerState, NetworkError
from carblib.explore.order import DISAGREEMENT, NAME, first_state, order, sorts
from carblib.explore.views import WIDTH, View, pixel_under, render_view, view_figure, view_of, view_record
from carblib.explore.widgets import (
    PointerPicture,
    as_jpeg,
    dropdown,
    error_text,
    legend,
    no_picture,
    pixel_table,
    text_field,
)
from carblib.figures.captions import save_figure
from carblib.params import project_root

_BY_NAME = (
    "order: by name only; 02_pseudo_masks makes results of CLIP on the val split, 04_small_object_evaluation of the "
    "run's networks on the test split, and both need true masks"
)


class ExplorerPanel:
    """Controls, picture and findings of an `Explorer`; `widget` is what a notebook displays.

    Every control is an attribute (`image`, `shown_class`, `words`, …) that can be set from a cell as well.
    """

    def __init__(self, explorer: Explorer, state: ExplorerState | None = None):
        self.explorer = explorer
        first = state or first_state(explorer)
        self._order: list[int] = []
        self._disagreement: dict[tuple[str, str], list[int]] = {}  # (split, network): order, read from masks once
        self._notes: list[str] = []  # HTML to be said with the next picture
        self._pixel = first.pixel
        self._quiet = True
        self.view: View | None = None
        self.drawn = 0  # pictures so far
        self.picture, self.status, self.legend, self.found = PointerPicture(), HTML(), HTML(), HTML()
        self._choices(first)
        self._switches(first)
        self._reorder(first.index)
        self.widget = self._layout()
        self._observe()
        self._quiet = False
        self.redraw()

    # --- controls ----------------------------------------------------------------------------------------------------

    def _choices(self, first: ExplorerState) -> None:
        explorer = self.explorer
        self.split = dropdown("split", list(explorer.splits), first.split)
        self.sort = dropdown("order", [NAME], NAME, "250px")
        self.image = IntSlider(0, 0, 0, description="image", continuous_update=False, readout=False)
        self.previous = Button(description="◀ previous", layout=Layout(width="100px"))
        self.next = Button(description="next ▶", layout=Layout(width="100px"))
        self.search = text_field("find", "", "part of a name, then Enter", "240px")
        self.next_hit = Button(description="next hit", layout=Layout(width="90px"))
        self.shown_class = dropdown("class", [(n, c) for c, n in enumerate(explorer.class_set.names)], first.class_id)
        self.masker = dropdown("masker", explorer.maskers, first.masker)
        self.gate = dropdown("gating", GATES, first.gate)
        self.network = dropdown("network", self._networks(), first.network)
        self.checkpoint = text_field("checkpoint", "", "path of a final.pt, Enter")

    def _switches(self, first: ExplorerState) -> None:
        height, width = self.explorer.params.image_size
        low, rate = self.explorer.params.patch_offset, self.explorer.params.patch_rate
        self.local = Checkbox(first.local, description="local view", indent=False, layout=Layout(width="110px"))
        self.column = IntSlider(first.centre[1], 0, width - 1, description="across")
        self.row = IntSlider(first.centre[0], 0, height - 1, description="down")
        self.zoom = FloatSlider(first.zoom, min=low, max=max(low + rate, first.zoom), step=0.05, description="zoom")
        self.opacity = FloatSlider(first.opacity, min=0, max=1, step=0.05, description="opacity")
        self.words = text_field("words", first.text, "any words, then Enter")
        self.save = Button(description="save PNG and PDF", icon="download", layout=Layout(width="160px"))

    def _layout(self) -> VBox:
        rows = [
            [self.split, self.sort, self.previous, self.image, self.next, self.search, self.next_hit],
            [self.shown_class, self.masker, self.gate, self.words],
            [self.network, self.checkpoint, self.opacity, self.save],
            [self.local, self.column, self.row, self.zoom],
        ]
        for control in (self.image, self.opacity, self.column, self.row, self.zoom):
            control.style.description_width = "initial"
            control.layout.width = "270px" if control is self.image else "240px"
        wrapping = Layout(flex_flow="row wrap", align_items="center")
        return VBox([*(HBox(row, layout=wrapping) for row in rows), self.status, self.picture, self.legend, self.found])

    def _observe(self) -> None:
        redrawing = [self.image, self.shown_class, self.masker, self.gate, self.local, self.opacity, self.words]
        for control in [*redrawing, self.column, self.row, self.zoom]:
            control.observe(self.redraw, "value")
        for control in (self.split, self.network, self.sort):
            control.observe(self._regroup, "value")
        self.search.observe(self._find, "value")
        self.next_hit.on_click(self._find)
        self.checkpoint.observe(self._add_network, "value")
        self.previous.on_click(lambda _: self._step(-1))
        self.next.on_click(lambda _: self._step(1))
        self.save.on_click(lambda _: self.save_view())
        self.picture.observe(self._pointed, "event")

    @property
    def state(self) -> ExplorerState:
        """What the controls say."""
        return ExplorerState(
            split=self.split.value,
            index=self._order[self.image.value],
            class_id=self.shown_class.value,
            masker=self.masker.value,
            gate=self.gate.value,
            network=self.network.value,
            local=self.local.value,
            centre=(self.row.value, self.column.value),
            zoom=self.zoom.value,
            opacity=self.opacity.value,
            text=self.words.value.strip(),
            pixel=self._pixel,
        )

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Change several controls, then redraw once."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before
        self.redraw()

    def _reorder(self, index: int) -> None:
        """Offer the orders there are results for and stay at an image, whatever place it has in the order now."""
        params, split, network = self.explorer.params, self.explorer.splits[self.split.value], self.network.value
        by = self.sort.value
        try:
            self.sort.options = sorts(params, split, network)
            by = by if by in self.sort.options else NAME
            self._order = self._ordered(split, network, by)
        except CarbError as error:
            self._notes.append(error_text(error))
            by, self._order = NAME, order(params, split, network)
        self.sort.value = by
        if len(self.sort.options) == 1:
            self._notes.append(_BY_NAME)
        self.image.max = len(self._order) - 1
        self.image.value = self._order.index(min(index, len(self._order) - 1))

    def _ordered(self, split: Split, network: str, by: str) -> list[int]:
        if by != DISAGREEMENT:
            return order(self.explorer.params, split, network, by)
        key = split.name, network
        if key not in self._disagreement:
            self.status.value = f"reading {len(split)} pseudo-masks and as many predictions …"
            self._disagreement[key] = order(self.explorer.params, split, network, by)
        return self._disagreement[key]

    def _networks(self) -> list[tuple[str, str]]:
        return [("none", ""), *((name, name) for name in self.explorer.networks)]

    def _add_network(self, change: dict[str, Any]) -> None:
        path = change["new"].strip().strip("\"'")
        if not path:
            return
        with self._said():
            name = self.explorer.add_network(path)
            with self._together():
                self.network.options = self._networks()
                self._switch_network(name)
                self.checkpoint.value = ""

    def _switch_network(self, name: str) -> None:
        """Choose a network and stay at the image."""
        here = self._order[self.image.value]
        self.network.value = name
        self._reorder(here)

    def _regroup(self, change: dict[str, Any]) -> None:
        if self._quiet:
            return
        with self._said(), self._together():
            # Another order is asked for to see its first image, another network to see the same one.
            here = self._order[self.image.value] if change["owner"] is self.network else 0
            self._reorder(here)
            if change["owner"] is not self.network:
                self.image.value = 0

    def _step(self, by: int) -> None:
        self.image.value = min(max(self.image.value + by, 0), self.image.max)

    def _find(self, _: Any = None) -> None:
        """Go to the next image after this one with the text in its name, and from the last to the first."""
        wanted, names = self.search.value.strip(), self.explorer.splits[self.split.value].names
        hits = [place for place, i in enumerate(self._order) if wanted.lower() in names[i].lower()]
        if wanted and not hits:
            self.status.value = error_text(f"no image of split {self.split.value} has “{wanted}” in its name")
        elif wanted:
            later = [place for place in hits if place > self.image.value]
            place = (later or hits)[0]
            self._notes.append(f"“{html.escape(wanted)}”: {hits.index(place) + 1} of {len(hits)}")
            with self._together():
                self.image.value = place

    def _pointed(self, change: dict[str, Any]) -> None:
        event = change["new"]
        try:
            pixel = pixel_under(self.view, event["x"], event["y"]) if self.view else None
            if pixel is not None and event["kind"] == "click":
                self._pixel = pixel
                self.redraw()
            elif pixel is not None and self.local.value:
                with self._together():
                    self.row.value, self.column.value = pixel
        finally:  # whatever happened: the page sends nothing more until then
            self.picture.answered = event["time"]

    # --- what they show ----------------------------------------------------------------------------------------------

    def redraw(self, _: Any = None) -> None:
        """Show what the controls say, at once."""
        if self._quiet:
            return
        with self._said():
            try:
                self._draw()
            except NetworkError as error:
                self._notes.append(error_text(error))
                with self._together():
                    self._switch_network("")
            except Exception:
                # No picture rather than one of something else than the controls say.
                self.view, self.picture.data = None, no_picture(WIDTH)
                self.legend.value = self.found.value = ""
                raise

    def _draw(self) -> None:
        started, state = time.perf_counter(), self.state
        self.view = view_of(self.explorer, state)
        self.picture.alt = f"{len(self.view.panels)} panels: " + ", ".join(p.title for p in self.view.panels)
        self.picture.data = as_jpeg(render_view(self.view))
        self.legend.value = legend(self.view)
        self.drawn += 1
        self.found.value = pixel_table(self.explorer, state) if state.pixel else ""
        self.status.value = self._about(state, time.perf_counter() - started)
        self._notes.clear()

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Say in the panel what went wrong: nobody would see it elsewhere."""
        try:
            yield
        except (CarbError, RuntimeError, OSError, ValueError) as error:
            self.status.value = error_text(error)

    def _about(self, state: ExplorerState, seconds: float) -> str:
        explorer, labels = self.explorer, self.explorer.subject(state).labels
        place = f"<b>{html.escape(explorer.name(state))}</b> ({self.image.value + 1} of {len(self._order)})"
        if labels is None:
            parts = [place, "no image-level labels: all classes compete"]
        else:
            parts = [place, "labels: " + ", ".join(explorer.class_set.names[c] for c in labels.nonzero().flatten())]
        unknown = explorer.unknown_words(state)
        if unknown:
            parts.append(error_text(f"this CLIP never saw: {', '.join(unknown)}"))
        hint = "click: what is here" + ("; drag: move the local view" if state.local else "")
        return " · ".join([*parts, *self._notes, f"<i>{hint}</i>", f"{1000 * seconds:.0f} ms"])

    def save_view(self) -> list[str]:
        """Save the view in figures/<run>/explorer as PNG, PDF and JSON; say and return where, nothing if it failed."""
        saved: list[str] = []
        with self._said():
            saved = [str(path.relative_to(project_root())) for path in self._save(self.state)]
            self.status.value = "saved: " + ", ".join(map(html.escape, saved))
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
