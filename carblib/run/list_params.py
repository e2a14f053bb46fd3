"""What `carb params` prints: every parameter with default, type and meaning, or what a file sets otherwise."""

from __future__ import annotations

import json
import shutil
import textwrap
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from carblib.params import Params

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
_COLUMN = 28  # where a meaning begins
_WIDEST = 120


def list_params(changed: Params | None = None) -> str:
    """Return a line for each parameter, in groups; of `changed` only for those whose values are not the defaults."""
    lines, title, width = [], "", min(shutil.get_terminal_size().columns, _WIDEST)
    for key, field in Params.model_fields.items():
        title = GROUPS.get(key, title)
        value = field.default if changed is None else getattr(changed, key)
        if changed is not None and value == field.default:
            continue
        if title:
            lines += ["", title]
            title = ""
        meaning = f"{field.description} ({kind(field.annotation)})"
        if changed is not None:
            meaning = f"{field.description} (default {_text(field.default)})"
        lines += _entry(f"  {key}: {_text(value)}", meaning, width)
    return "\n".join(lines).strip("\n") or "every key has its default"


def _entry(start: str, meaning: str, width: int) -> list[str]:
    indent = " " * _COLUMN
    if len(start) >= _COLUMN:
        return [start, *textwrap.wrap(meaning, width, initial_indent=indent, subsequent_indent=indent)]
    return textwrap.wrap(meaning, width, initial_indent=start.ljust(_COLUMN), subsequent_indent=indent)


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


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
