"""What `carb params` prints: every parameter with default, type and meaning, or what a file sets otherwise."""

from __future__ import annotations

import shutil
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click

from carblib.params import Params, as_text

# The first key of each group of `Params`.
GROUPS = {
    "run": "Data",
    "image_size": "Images",
    "clip": "CLIP masker",
    "path": "Pseudo-masks of the global view",
    "local_view": "Global-local views",
    "backbone": "Network",
    "balancing": "Consistency-aware region balancing",
    "iterations": "Training",
    "infer_window": "Inference and evaluation",
    "ablation_variants": "Ablations",
    "seed": "Machine",
}
_WIDEST, _COLUMN = 120, 24  # letters of a line, and of a key with its value, beside which the meaning stands


def list_params(changed: Params | None = None) -> str:
    """Return a line for each parameter, in groups; of `changed` only for those whose values are not the defaults."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, field in Params.model_fields.items():
        if key in GROUPS:
            rows = groups.setdefault(GROUPS[key], [])
        value = field.default if changed is None else getattr(changed, key)
        more = kind(field.annotation) if changed is None else f"default {as_text(field.default)}"
        if changed is None or value != field.default:
            rows.append((f"{key}: {as_text(value)}", f"{field.description} ({more})"))
    page = click.HelpFormatter(width=min(shutil.get_terminal_size().columns, _WIDEST))
    for title, rows in groups.items():
        if rows:
            with page.section(title):
                page.write_dl(rows, col_max=_COLUMN)
    return page.getvalue().strip("\n") or "every key has its default"


def kind(annotation: Any) -> str:
    """Return the type of a key as a person writes it: "true or false", "[H, W] or null", "dual, single"."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(parts[0])
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return " or ".join(map(kind, parts))
    if origin is tuple and parts[-1] is not ...:
        return "[H, W]" if kind(parts[0]) == "integer" else "[low, high]"
    if origin is tuple:
        return f"list of {kind(parts[0])}"
    names = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null"}
    return names.get(annotation, "list")
