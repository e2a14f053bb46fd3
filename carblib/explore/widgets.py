"""Small pieces of the explorer's panel: a picture to click and drag on; legend and findings as HTML."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any

import anywidget
import numpy as np
import traitlets
from ipywidgets import Dropdown, Layout, Text
from PIL import Image

from carblib.base.errors import CarbError
from carblib.classes import IGNORE
from carblib.explore.explorer import Explorer, ExplorerState
from carblib.explore.views import View, heat_colours
from carblib.results.words import truth_name

QUALITY = 90  # of the JPEG shown; saved views are drawn anew
_JAVASCRIPT = """
function render({ model, el }) {
  const img = document.createElement("img");
  img.className = "carblib-picture";
  img.draggable = false;
  img.style.cssText = "display:block;width:100%;cursor:crosshair;touch-action:none";
  const queue = [];
  let url = null, pressed = null, moved = false, waiting = false;
  const show = () => {
    const old = url;
    url = URL.createObjectURL(new Blob([model.get("data")], { type: "image/jpeg" }));
    img.onload = () => old && URL.revokeObjectURL(old);
    img.src = url;
    img.alt = model.get("alt");
  };
  const flush = () => {
    // One event at a time: the next one waits until the kernel has answered, and of a drag only the newest waits.
    if (!queue.length || waiting) return;
    waiting = true;
    model.set("event", queue.shift());
    model.save_changes();
  };
  const send = (kind, e) => {
    const box = img.getBoundingClientRect();
    const x = (e.clientX - box.left) / box.width, y = (e.clientY - box.top) / box.height;
    if (queue.length && queue.at(-1).kind === "drag" && kind === "drag") queue.pop();
    queue.push({ kind, x, y, time: performance.now() });
    flush();
  };
  img.onpointerdown = (e) => { pressed = e; moved = false; img.setPointerCapture(e.pointerId); };
  img.onpointermove = (e) => {
    if (!pressed) return;
    moved = moved || Math.hypot(e.clientX - pressed.clientX, e.clientY - pressed.clientY) > 4;
    if (moved) send("drag", e);
  };
  img.onpointerup = (e) => { if (pressed) send(moved ? "drag" : "click", e); pressed = null; };
  img.onpointercancel = () => { pressed = null; };
  const answered = () => { waiting = false; flush(); };
  model.on("change:data", show);
  model.on("change:answered", answered);
  el.appendChild(img);
  show();
  return () => { model.off("change:data", show); model.off("change:answered", answered); };
}
export default { render };
"""


class PointerPicture(anywidget.AnyWidget):
    """A JPEG (`data`) that reports clicks and drags as `event` {kind, x, y, time}, x and y as shares (0–1) of it.

    `answered` is set to an event's time when it has been dealt with; only then the page sends the next one.
    """

    _esm = _JAVASCRIPT
    data = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    event = traitlets.Dict().tag(sync=True)
    answered = traitlets.Float(0).tag(sync=True)


def as_jpeg(picture: np.ndarray) -> bytes:
    """Encode a picture (H, W, 3) uint8 for the page."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=QUALITY, subsampling=0)
    return data.getvalue()


def pixel_table(explorer: Explorer, state: ExplorerState) -> str:
    """Return as HTML what is at the clicked pixel: truth, prediction, pseudo-mask, and the classes by similarity."""
    row, column = state.pixel
    masks = {"pseudo-mask": explorer.pseudo_mask(state)}
    predicted, truth = explorer.prediction(state), explorer.subject(state).truth
    masks |= {} if predicted is None else {"prediction": predicted[0]}
    masks |= {} if truth is None else {truth_name(explorer.params): truth}
    names = explorer.class_set.names
    named = [f"{what} <b>{_name(names, int(mask[row, column]))}</b>" for what, mask in masks.items()]
    cells = []
    for place, (name, value) in enumerate(explorer.similarity_at(state, state.pixel), 1):
        palette = explorer.class_set.palette[names.index(name)] if name in names else (255, 255, 255)
        text = f"{_swatch(_rgb(palette))}{html.escape(name)} {value:.2f}".replace(" -", " −")
        cells.append(_entry(f"{place}. {text}"))
    return f"<div>row {row}, column {column}: {', '.join(named)}</div><div>{' '.join(cells)}</div>"


def legend(view: View) -> str:
    """Return as HTML which colours a view has for which classes, and the scale of its similarity maps."""
    low, high = (f"{end:.2f}".replace("-", "−") for end in view.value_range)
    steps = ",".join(_rgb(colour) for colour in heat_colours()[::15])
    scale = f"{low} {_swatch(f'linear-gradient(to right,{steps})', 2.5)}{high} cosine similarity"
    entries = [_swatch(_rgb(colour)) + html.escape(name) for name, colour in view.legend]
    return "<div>" + " ".join(map(_entry, [*entries, scale])) + "</div>"


def _rgb(colour: Sequence[int]) -> str:
    return f"rgb{tuple(map(int, colour))}"


def _swatch(background: str, half: float = 0.5) -> str:
    style = f"background:{background};border:1px solid #767676;padding:0 {half}em;margin-right:.3em"
    return f"<span style='{style}'></span>"


def _entry(content: str) -> str:
    return f"<span style='white-space:nowrap;display:inline-block;margin-right:1.2em'>{content}</span>"


def no_picture(width: int) -> bytes:
    """Return a plain grey JPEG, to be shown where there is nothing to show."""
    return as_jpeg(np.full((width // 6, width, 3), 238, np.uint8))


def error_text(error: Exception | str) -> str:
    """Return an error or a message as HTML in the colour of errors, in one line."""
    known = isinstance(error, CarbError | str)
    message = " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())
    return f"<b style='color:#b00020'>{html.escape(message[:400])}</b>"


def dropdown(label: str, options: Sequence[Any], value: Any, width: str = "175px") -> Dropdown:
    """Return a labelled dropdown of values, or of (text, value) pairs."""
    look = {"layout": Layout(width=width), "style": {"description_width": "initial"}}
    return Dropdown(options=options, value=value, description=label, **look)


def text_field(label: str, value: str, placeholder: str, width: str = "270px") -> Text:
    """Return a labelled line of text that reports what was typed once Enter is pressed."""
    look = {"layout": Layout(width=width), "style": {"description_width": "initial"}}
    return Text(value, placeholder=placeholder, description=label, continuous_update=False, **look)


def _name(names: Sequence[str], train_id: int) -> str:
    return "void" if train_id == IGNORE else html.escape(names[train_id])
