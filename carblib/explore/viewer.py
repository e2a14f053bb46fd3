"""The viewer on the page (`viewer.js`), and what it is given: an image, its maps, CLIP's similarities, scores."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from carblib.explore.explorer import Explorer, ExplorerState
from carblib.explore.kept import as_jpeg
from carblib.explore.views import MARK, Map, heat_colours, maps_of, truth_of
from carblib.metrics import confusion, iou, miou

SMALL = 1024  # pixels across the picture that is shown first, and until one zooms
PAGE = 12  # images on a page of the gallery
LOOK = {
    **{"opacity": 0.7, "brightness": 1.0, "mode": "fill", "hidden": [], "closed": [], "alone": ""},
    **{"scale": 1.0, "x": 0.5, "y": 0.5, "swipe": False, "a": "", "b": "", "at": 0.5, "pin": None, "table": False},
}


class Viewer(anywidget.AnyWidget):
    """Pictures, legend, gallery and confusions on the page; zoom, legend and the like need no answer from here.

    `look` is how the page shows it. `event` {kind, …, time} is what it asks for, one at a time: the next one is sent
    when `answered` has become an event's time.
    """

    _esm = Path(__file__).with_name("viewer.js")
    _css = Path(__file__).with_name("viewer.css")
    setup = traitlets.Dict().tag(sync=True)
    picture = traitlets.Dict().tag(sync=True)
    detail = traitlets.Dict().tag(sync=True)
    layers = traitlets.Dict().tag(sync=True)
    place = traitlets.Dict({"place": 0, "count": 0, "name": "", "tags": []}).tag(sync=True)
    gallery = traitlets.Dict().tag(sync=True)
    results = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict({"text": "", "error": False}).tag(sync=True)
    look = traitlets.Dict(LOOK).tag(sync=True)
    class_id = traitlets.Int(0).tag(sync=True)
    local = traitlets.Bool(False).tag(sync=True)
    event = traitlets.Dict().tag(sync=True)
    answered = traitlets.Float(0).tag(sync=True)


def setup_of(explorer: Explorer) -> dict[str, Any]:
    """Return what the page needs once: classes, their colours, the scale of similarity maps."""
    classes = explorer.class_set
    palette, heat = np.asarray(classes.palette).tolist(), heat_colours().tolist()
    return {"classes": list(classes.names), "palette": palette, "heat": heat, "mark": list(MARK), "page": PAGE}


def picture_of(explorer: Explorer, state: ExplorerState) -> dict[str, Any]:
    """Return the image for the page, at most SMALL wide: enough for a panel."""
    size = list(explorer.params.image_size)
    return {"key": explorer.key(state), "size": size, "data": explorer.jpeg(state, SMALL)}


def detail_of(explorer: Explorer, state: ExplorerState) -> dict[str, Any]:
    """Return the image at its base size, {} where `picture_of` has it at that already."""
    width = explorer.params.image_size[1]
    return {"key": explorer.key(state), "data": explorer.jpeg(state, width)} if width > SMALL else {}


def first_layers(explorer: Explorer, state: ExplorerState) -> dict[str, Any]:
    """Return what can be shown of an image before CLIP and the network have looked at it: the truth."""
    maps = [_packed(explorer, one) for one in truth_of(explorer, state)]
    names, key = list(explorer.class_set.names), explorer.key(state)
    return {"key": key, "maps": maps, "similarity": [], "names": names, "scores": [], "pending": True}


def layers_of(explorer: Explorer, state: ExplorerState) -> dict[str, Any]:
    """Return the maps, similarities and scores of an image for the page."""
    grids = [
        {"box": box, "shape": list(values.shape), "data": np.ascontiguousarray(values, np.float32).tobytes()}
        for box, values in explorer.grids(state)
    ]
    maps = maps_of(explorer, state)
    return {
        "key": explorer.key(state),
        "maps": [_packed(explorer, one) for one in maps],
        "similarity": grids,
        "names": [words[0] for words in explorer.class_set.words] + [state.text] * explorer.has_words(state),
        "range": explorer.similarity_range(state),
        "box": explorer.box(state),
        "patch": as_jpeg(explorer.patch(state)) if state.local else None,
        "scores": scores_of(explorer, maps),
        "pending": False,
    }


def scores_of(explorer: Explorer, maps: list[Map]) -> list[dict[str, Any]]:
    """Return IoU per class and mIoU (0–1, None where undefined) of an image's maps against its truth, if it has one."""
    by_id, found = {one.id: one for one in maps}, []
    if "truth" not in by_id:
        return found
    for name in ("prediction", "other", "mask"):
        if name in by_id:
            matrix = confusion(by_id[name].ids, by_id["truth"].ids, len(explorer.class_set))
            title = by_id[name].title.removeprefix("prediction of ").removesuffix(" (ungated)")
            ious = [None if np.isnan(value) else float(value) for value in iou(matrix)]
            mean = float(miou(matrix))
            found.append({"title": title, "iou": ious, "miou": None if np.isnan(mean) else mean})
    return found


def _packed(explorer: Explorer, one: Map) -> dict[str, Any]:
    data = explorer.packed(one.stamp, lambda: zlib.compress(np.ascontiguousarray(one.ids).data, 1))
    return {"id": one.id, "title": one.title, "stamp": one.stamp, "data": data}
