"""The explorer's controls around the viewer: what is looked at, what is listed, what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ipywidgets import BoundedFloatText, Button, Checkbox, Dropdown, FileUpload, HBox, Layout, Text, VBox

from carblib.data.pictures import IMAGE_SUFFIXES
from carblib.explore.explorer import GATES, Explorer, ExplorerState
from carblib.explore.order import NAME
from carblib.explore.session import saved_views
from carblib.explore.views import short_name

ANY = "any"


class Controls:
    """Widgets by name; each has a label, which is its name to a screen reader as well."""

    def __init__(self, explorer: Explorer, first: ExplorerState):
        low, rate = explorer.params.patch_offset, explorer.params.patch_rate
        classes = [(name, c) for c, name in enumerate(explorer.class_set.names)]
        self.split = _dropdown("split", list(explorer.splits), first.split)
        self.sort = _dropdown("order", [(NAME, (NAME, 0))], (NAME, 0), "270px")
        self.present = _dropdown("with class", [(ANY, -1), *classes], -1)
        self.tag = _dropdown("tagged", [ANY], ANY)
        self.clear = Button(description="clear filters", layout=Layout(width="110px"))
        self.search = _text("find", "", "part of a name, then Enter", "230px")
        self.next_hit = Button(description="next hit", layout=Layout(width="80px"))
        self.shown_class = _dropdown("class", classes, first.class_id)
        self.masker = _dropdown("masker", explorer.maskers, first.masker)
        self.gate = _dropdown("gating", GATES, first.gate)
        self.words = _text("words", first.text, "any words, then Enter", "230px")
        self.network = _dropdown("network", network_options(explorer), first.network, "230px")
        self.other = _dropdown("compare with", network_options(explorer), first.other, "250px")
        self.checkpoint = _text("checkpoint", "", "path of a final.pt, then Enter", "300px")
        self.local = Checkbox(first.local, description="local view", indent=False, layout=Layout(width="100px"))
        self.zoom = BoundedFloatText(
            first.zoom, min=low, max=max(low + rate, first.zoom), step=0.05, description="enlarged by"
        )
        _labelled(self.zoom, "150px")
        self.upload = FileUpload(accept=",".join(IMAGE_SUFFIXES), description="own picture", icon="")
        self.save = Button(description="save PNG and PDF", layout=Layout(width="180px"))
        self.selection = _text("selection", "", "a name: export this list", "260px")
        self.view_name = _text("save view", "", "a name, then Enter", "230px")
        self.open_view = _dropdown("open view", view_options(explorer), "", "200px")

    def layout(self) -> VBox:
        """Return the controls in rows that wrap."""
        rows = [
            [self.split, self.sort, self.present, self.tag, self.clear, self.search, self.next_hit],
            [self.network, self.other, self.checkpoint, self.masker, self.gate],
            [self.shown_class, self.words, self.local, self.zoom, self.upload],
            [self.save, self.selection, self.view_name, self.open_view],
        ]
        return VBox([HBox(row, layout=Layout(flex_flow="row wrap", align_items="center")) for row in rows])


def network_options(explorer: Explorer) -> list[tuple[str, str]]:
    """Return the networks by names that tell them apart, none first."""
    return [("none", ""), *((short_name(name), name) for name in explorer.networks)]


def view_options(explorer: Explorer) -> list[tuple[str, str]]:
    """Return the saved views, none first."""
    return [("none", ""), *((name, name) for name in saved_views(explorer))]


def _dropdown(label: str, options: Sequence[Any], value: Any, width: str = "180px") -> Dropdown:
    return _labelled(Dropdown(options=options, value=value, description=label), width)


def _text(label: str, value: str, placeholder: str, width: str) -> Text:
    return _labelled(Text(value, placeholder=placeholder, description=label, continuous_update=False), width)


def _labelled(control: Any, width: str) -> Any:
    control.layout.width, control.style.description_width = width, "initial"
    return control
