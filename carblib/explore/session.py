"""What a person leaves behind in runs/<run>/explore: tags, saved views, and selections that a run can be made of."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from carblib.base import files
from carblib.base.errors import CarbError, nearest
from carblib.data.labels import read_labels, write_labels
from carblib.explore.explorer import GATES, Explorer, ExplorerState
from carblib.explore.order import Choice
from carblib.params import below_root, resolve

_PAIRS = ("centre", "pixel", "pair", "objects")  # JSON gives tuples back as lists


@dataclass(frozen=True)
class SavedView:
    """Everything that brings a view back: what is looked at, what is listed, and how the page shows it."""

    state: ExplorerState
    choice: Choice
    look: dict[str, Any]


class Tags:
    """The user's tags of images, {split: {name: [tag, …]}}, kept in runs/<run>/explore/tags.json at every change."""

    def __init__(self, explorer: Explorer):
        self._path = explorer.folder / "tags.json"
        self._tags = self._read()

    def _read(self) -> dict[str, dict[str, list[str]]]:
        return files.read_json(self._path) if self._path.is_file() else {}

    def of(self, split: str, name: str) -> list[str]:
        """Return an image's tags."""
        return self._tags.get(split, {}).get(name, [])

    def names(self, split: str, tag: str) -> set[str]:
        """Return the names of the images with a tag."""
        return {name for name, own in self._tags.get(split, {}).items() if tag in own}

    def known(self, split: str) -> list[str]:
        """Return all tags of a split, by name."""
        return sorted({tag for own in self._tags.get(split, {}).values() for tag in own})

    def change(self, split: str, name: str, tag: str, add: bool) -> None:
        """Give an image a tag, or take it away; tags that another kernel gave meanwhile are kept."""
        self._tags = self._read()
        own = [one for one in self.of(split, name) if one != tag] + [tag] * add
        self._tags.setdefault(split, {})[name] = sorted(own)
        files.write_json(self._path, self._tags)


def save_view(explorer: Explorer, name: str, view: SavedView) -> Path:
    """Write a view as runs/<run>/explore/views/<name>.json; the image is known by its name. Raises CarbError."""
    path = explorer.folder / "views" / f"{_file_name(name)}.json"
    state = asdict(view.state) | {"image": explorer.name(view.state)}
    del state["index"]
    files.write_json(path, {"state": state, "choice": asdict(view.choice), "look": view.look})
    return path


def saved_views(explorer: Explorer) -> list[str]:
    """Return the names of the saved views."""
    return sorted(path.stem for path in (explorer.folder / "views").glob("*.json"))


def open_view(explorer: Explorer, name: str) -> SavedView:
    """Read a saved view. Raises CarbError for one of a split, image or network that is not there any more."""
    path = explorer.folder / "views" / f"{name}.json"
    saved = files.read_json(path)
    try:
        state, choice, look = saved["state"], saved["choice"], saved["look"]
        split, image = state["split"], state.pop("image")
        unknown = {*state, *choice} - {field.name for kind in (ExplorerState, Choice) for field in fields(kind)}
    except (KeyError, TypeError) as error:
        raise CarbError(f"{path}: is no view of the explorer; remove it") from error
    if unknown:
        raise CarbError(f"{path}: {min(unknown)} is nothing a view has; remove it")
    if split not in explorer.splits or image not in explorer.splits[split].names:
        raise CarbError(f"{path}: image {image} of split {split} is not there any more; remove the view")
    for network in (state["network"], state["other"]):
        if network and network not in explorer.networks:
            raise CarbError(f"{path}: network {network}; {nearest(network, explorer.networks) or 'add its checkpoint'}")
    classes = range(len(explorer.class_set))
    offered = {"masker": explorer.maskers, "gate": GATES, "class_id": classes, "present": (None, *classes)}
    for key, values in offered.items():
        chosen = (choice | state).get(key)
        if chosen not in values:
            raise CarbError(f"{path}: {key} {chosen} is not there any more; remove the view")
    state["index"] = explorer.splits[split].names.index(image)
    made = [
        kind(**{key: tuple(value) if key in _PAIRS and value else value for key, value in values.items()})
        for kind, values in ((ExplorerState, state), (Choice, choice))
    ]
    return SavedView(*made, look)


def export(explorer: Explorer, split: str, indices: list[int], name: str, rows: list[dict[str, Any]]) -> list[Path]:
    """Write a selection of a split's images to runs/<run>/explore/<name>: images.csv, images.txt and params.yaml.

    params.yaml is the run's recipe on just these images, as run <run>_<name>: carb train, masks and evaluate take it.
    `rows` are more columns of the CSV, an entry per image. Raises CarbError for a name that is none, or no image.
    """
    if not indices:
        raise CarbError("export: the list holds no image; clear a filter")
    opened, params, stem = explorer.splits[split], explorer.params, _file_name(name)
    folder, names = explorer.folder / stem, [opened.names[index] for index in indices]
    table = [
        {"split": split, "name": opened.names[index], "file": str(opened.image_paths[index]), **row}
        for index, row in zip(indices, rows, strict=True)
    ]
    changes = {"run": f"{params.run}_{stem}", "images": below_root(folder / "images.txt")}
    written = [folder / "images.csv", folder / "images.txt", folder / "params.yaml"]
    files.write_csv(written[0], table)
    files.write_text(written[1], "".join(f"{split}/{one}\n" for one in names))
    if split == params.train_split and params.labels:
        path = resolve(params.labels)
        chosen = read_labels(path, explorer.class_set, opened.names, left_out=opened.left_out)[indices]
        write_labels(folder / "labels.csv", dict(zip(names, chosen, strict=True)), explorer.class_set)
        changes["labels"] = below_root(folder / "labels.csv")
        written.append(folder / "labels.csv")
    files.write_text(written[2], params.based_on(folder, **changes))
    return written


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise CarbError(f"{name!r}: give a plain name of letters, digits, '_', '-', '.'")
    return name
