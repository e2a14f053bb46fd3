"""The explorer's inside: what is chosen (`ExplorerState`) and what is to be seen of it (`Explorer`), without widgets.

Everything works at the base size (`image_size`). What is slow (reading an image, CLIP, the network) is done once per
image and kept; class, gate, opacity and words only need what is quick. Every part can be used alone in a cell.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from carblib.base.device import torch_device
from carblib.base.errors import CarbError
from carblib.classes import ClassSet
from carblib.clip_attention import STRATEGIES
from carblib.data.labels import ensure_labels, labels_of, labels_path, read_labels
from carblib.data.readers import Split, open_split
from carblib.infer import probabilities
from carblib.loss import consistent_region
from carblib.masker import Masker, build_masker, pseudo_mask
from carblib.params import Params, project_root, resolve
from carblib.prompts import embed_words
from carblib.training.state import load_trained
from carblib.transforms import load_sized, resize_maps, resize_mask
from carblib.variants import in_order
from carblib.views import LocalView, crop_view, zoom

GATES = ("labels", "official", "none")

Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels of the base size
Pixel = tuple[int, int]  # row, column


class NetworkError(CarbError):
    """A checkpoint that cannot be shown; without it, everything else still can."""


@dataclass(frozen=True)
class ExplorerState:
    """What a view shows; `dataclasses.replace` makes another one.

    `index` counts the split's images by name. `network` is a key of `Explorer.networks`, "" for none. With `local`,
    CLIP sees the patch around `centre` (row, column) enlarged by `zoom`. `opacity` 0–1 is that of colours over the
    image. `text` are words to look for, "" for none; `pixel` (row, column) the one that was clicked.
    """

    split: str
    index: int = 0
    class_id: int = 0
    masker: str = "value_path"
    gate: str = "labels"
    network: str = ""
    local: bool = False
    centre: Pixel = (0, 0)
    zoom: float = 1.0
    opacity: float = 0.7
    text: str = ""
    pixel: Pixel | None = None


class Subject(NamedTuple):
    """One image at the base size.

    `pixels` (3, H, W) uint8; `truth` (H, W) uint8 train ids and `labels` (C,) bool, None where there are none.
    """

    pixels: Tensor
    truth: np.ndarray | None
    labels: Tensor | None

    @property
    def image(self) -> np.ndarray:
        """The image (H, W, 3) uint8."""
        return self.pixels.permute(1, 2, 0).numpy()


class Kept:
    """Results by key; those not asked for longest go first once all together exceed `limit` bytes."""

    def __init__(self, limit: int = 512 * 2**20):
        self.limit, self.bytes = limit, 0
        self._items: OrderedDict[tuple, Any] = OrderedDict()

    def get(self, key: tuple, make: Callable[[], Any]) -> Any:
        """Return the result kept under `key`, making it where there is none. The newest is always kept."""
        if key not in self._items:
            self._items[key] = make()
            self.bytes += _bytes(self._items[key])
            while self.bytes > self.limit and len(self._items) > 1:
                self.bytes -= _bytes(self._items.popitem(last=False)[1])
        self._items.move_to_end(key)
        return self._items[key]


class Explorer:
    """A run's splits, CLIP maskers and trained networks, and what they say about an image.

    `networks` {name: file} are the run's trainings and the `checkpoints` given, any `final.pt` or `checkpoint.pt`, by
    their paths; relative ones count from the project root. Raises CarbError where no split can be opened.
    """

    def __init__(self, params: Params, checkpoints: Sequence[str | Path] = ()):
        self.params, self.class_set = params, params.class_set
        self.device = torch_device(params.device)
        self.splits = open_splits(params)
        self.networks = trained_networks(params) | {_path_name(path): resolve(path) for path in checkpoints}
        self._masker = build_masker(params, self.device)
        self.maskers = tuple(STRATEGIES) if self._masker.clip.is_vit else (params.masker,)
        self._kept = Kept()
        self._networks: dict[str, torch.nn.Module] = {}

    def name(self, state: ExplorerState) -> str:
        """Return the image's name."""
        return self.splits[state.split].names[state.index]

    def subject(self, state: ExplorerState) -> Subject:
        """Return the image with truth and image-level labels, where there are any."""
        return self._kept.get(("subject", state.split, state.index), lambda: self._read(state))

    def _read(self, state: ExplorerState) -> Subject:
        split, size = self.splits[state.split], self.params.image_size
        mask = split.mask(state.index) if split.mask_paths[state.index] is not None else None
        if labels_path(self.params, split.name).is_file():
            table = ensure_labels(self.params, split)
            rows = self._kept.get(("labels", split.name), lambda: read_labels(table, split.class_set, split.names))
            labels = torch.from_numpy(rows[state.index])
        else:
            labels = None if mask is None else torch.from_numpy(labels_of(mask, len(self.class_set)))
        pixels = load_sized(split.image(state.index), size)
        return Subject(pixels, None if mask is None else resize_mask(mask, size), labels)

    def box(self, state: ExplorerState) -> Box:
        """Return the local view: the run's `patch` around the state's centre, moved to lie within the image."""
        corners = []
        for middle, side, whole in zip(state.centre, self.params.patch, self.params.image_size, strict=True):
            side = min(side, whole)
            corners.append((min(max(middle - side // 2, 0), whole - side), side))
        (top, height), (left, width) = corners
        return top, left, top + height, left + width

    # --- CLIP --------------------------------------------------------------------------------------------------------

    def masker(self, name: str) -> Masker:
        """Return the run's masker, with another strategy in CLIP's last block."""
        masker = copy.copy(self._masker)  # shares CLIP and the text embeddings
        masker.strategy = name
        return masker

    def _view(self, state: ExplorerState) -> LocalView:
        return LocalView(torch.tensor([self.box(state)]), state.zoom)

    def _seen(self, state: ExplorerState, what: str, local: bool) -> Tensor:
        """What CLIP makes of the whole image or of the local view, kept: its similarity (C, h, w) or features."""

        def look() -> Tensor:
            pixels = self.subject(state).pixels[None]
            pixels = zoom(crop_view(pixels, self._view(state)), state.zoom) if local else pixels
            return getattr(self.masker(state.masker), what)(pixels.to(self.device))[0].cpu()

        place = (self.box(state), state.zoom) if local else ()
        return self._kept.get((what, state.split, state.index, state.masker, *place), look)

    def _composed(self, state: ExplorerState, maps: Callable[[bool], Tensor]) -> np.ndarray:
        """Bring a map (h, w) of the whole image to the base size, that of the local view in its place."""
        whole = _resized(maps(False), self.params.image_size).clone()  # the map is kept for other views
        if state.local:
            top, left, bottom, right = self.box(state)
            whole[top:bottom, left:right] = _resized(maps(True), (bottom - top, right - left))
        return whole.numpy()

    def similarity(self, state: ExplorerState) -> np.ndarray:
        """Return cosine similarities (H, W) float32 of the chosen class, as CLIP sees the local view inside it."""
        return self._composed(state, lambda local: self._seen(state, "similarity", local)[state.class_id])

    def similarity_range(self, state: ExplorerState) -> tuple[float, float]:
        """Return the 1st and 99th percentile over all classes of the whole image: one scale for all maps."""
        low, high = np.percentile(self._seen(state, "similarity", False).numpy(), (1, 99))
        return float(low), float(high)

    def gate(self, state: ExplorerState) -> str:
        """Return the gate in force: without image-level labels there is nothing to gate with."""
        return state.gate if self.subject(state).labels is not None else "none"

    def pseudo_mask(self, state: ExplorerState) -> np.ndarray:
        """Return CLIP's pseudo-mask (H, W) uint8; inside the local view the one made there."""
        mask = self._mask(state, False)
        if state.local:
            top, left, bottom, right = self.box(state)
            mask = mask.copy()
            mask[top:bottom, left:right] = self._mask(state, True)
        return mask

    def _mask(self, state: ExplorerState, local: bool) -> np.ndarray:
        gate, labels = self.gate(state), self.subject(state).labels
        size, place = self.params.image_size, ()
        if local:
            size, place = self._view(state).size, (self.box(state), state.zoom)

        def make() -> np.ndarray:
            similarity = self._seen(state, "similarity", local)[None]
            return pseudo_mask(similarity, None if labels is None else labels[None], size, gate)[0].numpy()

        return self._kept.get(("mask", gate, state.split, state.index, state.masker, *place), make)

    # --- words -------------------------------------------------------------------------------------------------------

    def unknown_words(self, state: ExplorerState) -> list[str]:
        """Return those of the state's words that this CLIP never saw in training."""
        return self._masker.clip.unknown_words(state.text)

    def has_words(self, state: ExplorerState) -> bool:
        """Tell whether there are words to look for that this CLIP knows at least one of."""
        return bool(self._masker.clip.known_words(state.text))

    def text_similarity(self, state: ExplorerState) -> np.ndarray:
        """Return cosine similarities (H, W) float32 of the state's words; one unknown word says nothing, see above."""
        return self._composed(state, lambda local: self._words(state, local)[-1])

    def text_margin(self, state: ExplorerState) -> np.ndarray:
        """Return by how much the words' similarity exceeds that of the best class: (H, W), positive where they win."""

        def margin(local: bool) -> Tensor:
            similarity = self._words(state, local)
            return similarity[-1] - similarity[:-1].amax(0)

        return self._composed(state, margin)

    def _words(self, state: ExplorerState, local: bool) -> Tensor:
        """Similarities (C + 1, h, w) of the classes' words and the state's, whatever windows or scales masks have."""
        word = self._kept.get(("words", state.text), lambda: embed_words(self._masker.clip, [state.text]).cpu())
        vectors = torch.cat([self._masker.text.mean_per_class.cpu(), word])
        return torch.einsum("dhw,kd->khw", self._seen(state, "features", local), vectors)

    # --- the network, and a pixel ------------------------------------------------------------------------------------

    def add_network(self, path: str | Path) -> str:
        """Add a checkpoint to `networks`, return its name there. Raises NetworkError, and adds none, for a bad one."""
        name, file = _path_name(path), resolve(path)
        self._networks[name] = read_network(file, self.class_set).to(self.device)
        self.networks[name] = file
        return name

    def prediction(self, state: ExplorerState) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the network's masks (H, W) uint8: over all classes, and over those in the image's labels.

        None without a network. Raises NetworkError for a file that is no network of these classes.
        """
        if not state.network:
            return None
        return self._kept.get(("prediction", state.network, state.split, state.index), lambda: self._predict(state))

    def _predict(self, state: ExplorerState) -> tuple[np.ndarray, np.ndarray]:
        subject = self.subject(state)
        scores = probabilities(self._network(state.network), subject.image, self.params).cpu()
        gated = scores if subject.labels is None else scores.masked_fill(~subject.labels[:, None, None], -1)
        return scores.argmax(0).byte().numpy(), gated.argmax(0).byte().numpy()

    def _network(self, name: str) -> torch.nn.Module:
        if name not in self._networks:
            self._networks[name] = read_network(self.networks[name], self.class_set).to(self.device)
        return self._networks[name]

    def consistent(self, state: ExplorerState) -> np.ndarray | None:
        """Return the consistent region (H, W) bool, as training sees it: prediction among the image's labels."""
        predicted = self.prediction(state)
        if predicted is None:
            return None
        return consistent_region(torch.from_numpy(self.pseudo_mask(state)), torch.from_numpy(predicted[1])).numpy()

    def similarity_at(self, state: ExplorerState, pixel: Pixel) -> list[tuple[str, float]]:
        """Return (class, cosine similarity) at a pixel (row, column), highest first; the state's words in quotes."""
        top, left, bottom, right = self.box(state)
        local = state.local and top <= pixel[0] < bottom and left <= pixel[1] < right
        where, size = (pixel[0] - top, pixel[1] - left), (bottom - top, right - left)
        where, size = (where, size) if local else (pixel, self.params.image_size)
        values = _at(self._seen(state, "similarity", local), where, size).tolist()
        found = list(zip(self.class_set.names, values, strict=True))
        if self.has_words(state):
            found.append((f"“{state.text}”", _at(self._words(state, local)[-1:], where, size).item()))
        return sorted(found, key=lambda pair: -pair[1])


def open_splits(params: Params) -> dict[str, Split]:
    """Open the run's val, test and train split, as far as they are there: {name: split}. CarbError if none is."""
    found, problems = {}, []
    for name in dict.fromkeys((params.val_split, params.test_split, params.train_split)):
        try:
            found[name] = open_split(params, name)
        except CarbError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    return found


def trained_networks(params: Params) -> dict[str, Path]:
    """Return the run's trained networks, {variant: final.pt, or checkpoint.pt of a training that is not finished}."""
    folder, kinds = params.run_dir / "train", ("checkpoint.pt", "final.pt")
    files = {file.parent.name: file for kind in kinds for file in folder.glob(f"*/{kind}")}
    return {name: files[name] for name in in_order(files)}


def read_network(path: Path, class_set: ClassSet) -> torch.nn.Module:
    """Return the network of a `final.pt` or `checkpoint.pt`, ready to predict, on the CPU.

    Raises NetworkError where the file is no checkpoint of carblib or its network knows other classes.
    """
    try:
        network, trained = load_trained(path)
    except CarbError as error:
        raise NetworkError(str(error)) from error
    if trained.class_set.names != class_set.names:
        raise NetworkError(
            f"{path}: its network knows the classes of {trained.class_set.name}, not of {class_set.name}; "
            "set `classes` to those it was trained with"
        )
    return network


def _path_name(path: str | Path) -> str:
    file, root = resolve(path), project_root()
    return str(file.relative_to(root) if file.is_relative_to(root) else file)


def _bytes(value: Any) -> int:
    return sum(map(_bytes, value)) if isinstance(value, tuple) else getattr(value, "nbytes", 0)


def _resized(one: Tensor, size: tuple[int, int]) -> Tensor:
    return resize_maps(one[None, None], size)[0, 0]


def _at(maps: Tensor, pixel: Pixel, size: tuple[int, int]) -> Tensor:
    """Values (K,) of maps (K, h, w) at one pixel, as if they had been resized to `size` bilinearly."""
    row, column = ((2 * place + 1) / side - 1 for place, side in zip(pixel, size, strict=True))
    point = torch.tensor([[[[column, row]]]], dtype=maps.dtype)
    return F.grid_sample(maps[None], point, padding_mode="border", align_corners=False).flatten()
