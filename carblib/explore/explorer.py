"""The explorer's inside: what is chosen (`ExplorerState`) and what is to be seen of it (`Explorer`), without widgets.

Everything works at the base size (`image_size`). What is slow (reading an image, CLIP, the network) is done once per
image and kept; class, gate, opacity and words only need what is quick. Every part can be used alone in a cell, and
from a thread beside the one that draws.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from carblib.base.device import torch_device
from carblib.base.errors import CarbError
from carblib.base.files import write_bytes
from carblib.base.images import read_image
from carblib.clip_attention import STRATEGIES
from carblib.data.labels import ensure_labels, labels_of, labels_path, read_labels
from carblib.data.pictures import IMAGE_SUFFIXES, pictures_in
from carblib.data.readers import open_pictures
from carblib.explore.kept import Kept, as_jpeg
from carblib.explore.networks import NetworkError, open_splits, path_name, read_network, trained_networks
from carblib.infer import probabilities
from carblib.loss import consistent_region
from carblib.masker import Masker, build_masker, pseudo_mask
from carblib.params import Params, resolve
from carblib.prompts import embed_words
from carblib.transforms import load_sized, resize_maps, resize_mask
from carblib.views import LocalView, crop_view, zoom

GATES = ("labels", "official", "none")
UPLOADED = "uploaded"  # the split of the user's own pictures

Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels of the base size
Pixel = tuple[int, int]  # row, column


@dataclass(frozen=True)
class ExplorerState:
    """What a view shows; `dataclasses.replace` makes another one.

    `index` counts the split's images by name. `network` and `other`, compared with it, are keys of
    `Explorer.networks`, "" for none. With `local`, CLIP sees the patch around `centre` (row, column) enlarged by
    `zoom`. `opacity` 0–1 is that of colours over the image. `text` are words to look for, "" for none; `pixel` (row,
    column) the one that was clicked.
    """

    split: str
    index: int = 0
    class_id: int = 0
    masker: str = "value_path"
    gate: str = "labels"
    network: str = ""
    other: str = ""
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


class Explorer:
    """A run's splits, CLIP maskers and trained networks, and what they say about an image.

    `networks` {name: file} are the run's trainings and the `checkpoints` given, any `final.pt` or `checkpoint.pt`, by
    their paths; relative ones count from the project root. Raises CarbError where no split can be opened.
    """

    def __init__(self, params: Params, checkpoints: Sequence[str | Path] = ()):
        self.params, self.class_set = params, params.class_set
        self.device = torch_device(params.device)
        self.splits = open_splits(params)
        self._open_uploads()
        self.networks = trained_networks(params) | {path_name(path): resolve(path) for path in checkpoints}
        self._masker = build_masker(params, self.device)
        self.maskers = tuple(STRATEGIES) if self._masker.clip.is_vit else (params.masker,)
        self._kept = Kept()
        self._networks: dict[str, torch.nn.Module] = {}
        self._added: Counter[str] = Counter()

    @property
    def folder(self) -> Path:
        """Where tags, saved views, selections and uploaded pictures of the run lie: runs/<run>/explore."""
        return self.params.run_dir / "explore"

    def _open_uploads(self) -> None:
        folder = self.folder / UPLOADED
        if pictures_in(folder, deep=True):
            self.splits = self.splits | {UPLOADED: open_pictures(folder, self.class_set)}

    def add_picture(self, name: str, data: bytes) -> int:
        """Keep a picture of the user's in the split `UPLOADED` and return its index there.

        Raises CarbError, and keeps nothing, for a file that is no picture.
        """
        path = self.folder / UPLOADED / Path(name).name
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise CarbError(f"{name}: is no picture ({', '.join(IMAGE_SUFFIXES)}); convert it to PNG or JPEG")
        same = [one for one in path.parent.glob("*") if one.stem == path.stem]
        if same:
            raise CarbError(f"{name}: {same[0].name} was uploaded before; rename the new one")
        write_bytes(path, data)
        try:
            read_image(path)
            self._open_uploads()
        except CarbError:
            path.unlink()
            raise
        return self.splits[UPLOADED].image_paths.index(path)

    def name(self, state: ExplorerState) -> str:
        """Return the image's name."""
        return self.splits[state.split].names[state.index]

    def key(self, state: ExplorerState) -> str:
        """Return what an image is known by, split/name: its index is another one once a picture was uploaded."""
        return f"{state.split}/{self.name(state)}"

    def subject(self, state: ExplorerState) -> Subject:
        """Return the image with truth and image-level labels, where there are any."""
        return self._kept.get(("subject", self.key(state)), lambda: self._read(state))

    def _read(self, state: ExplorerState) -> Subject:
        split, size = self.splits[state.split], self.params.image_size
        mask = split.mask(state.index) if split.mask_paths[state.index] is not None else None
        rows = self.labels(split.name)
        if rows is not None:
            labels = torch.from_numpy(rows[state.index])
        else:
            labels = None if mask is None else torch.from_numpy(labels_of(mask, len(self.class_set)))
        pixels = load_sized(split.image(state.index), size)
        return Subject(pixels, None if mask is None else resize_mask(mask, size), labels)

    def labels(self, split: str) -> np.ndarray | None:
        """Return a split's image-level labels (N, C) bool, None where no CSV of them is on disk."""
        opened = self.splits[split]
        if not labels_path(self.params, split).is_file():
            return None

        def read() -> np.ndarray:
            path = ensure_labels(self.params, opened)
            return read_labels(path, self.class_set, opened.names, left_out=opened.left_out)

        return self._kept.get(("labels", split), read)

    def jpeg(self, state: ExplorerState, width: int) -> bytes:
        """Return the image as a JPEG at the base size, or smaller where that is wider than `width`."""

        def make() -> bytes:
            image = self.subject(state).image
            factor = -(-image.shape[1] // width)
            return as_jpeg(image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor)))

        return self._kept.get(("jpeg", self.key(state), width), make)

    def thumb(self, split: str, index: int, width: int = 160) -> bytes:
        """Return a small JPEG of an image."""

        def make() -> bytes:
            picture = Image.fromarray(self.splits[split].image(index))
            picture.thumbnail((width, width))
            return as_jpeg(np.asarray(picture))

        return self._kept.get(("thumb", split, self.splits[split].names[index], width), make)

    def packed(self, stamp: str, make: Callable[[], bytes]) -> bytes:
        """Return what was made ready for the page under a stamp."""
        return self._kept.get(("packed", stamp), make)

    def ready(self, state: ExplorerState) -> bool:
        """Tell whether everything slow of a state is kept, so that it can be shown at once."""
        image, place = self.key(state), (self.box(state), state.zoom)
        keys = [("subject", image), ("similarity", image, state.masker)]
        keys += [("prediction", self.version(name), image) for name in (state.network, state.other) if name]
        keys += [("similarity", image, state.masker, *place)] if state.local else []
        if self.has_words(state):
            keys += [("features", image, state.masker), ("words", state.text)]
            keys += [("features", image, state.masker, *place)] if state.local else []
        return all(key in self._kept for key in keys)

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
            pixels = self._enlarged(state) if local else self.subject(state).pixels[None]
            return getattr(self.masker(state.masker), what)(pixels.to(self.device))[0].cpu()

        place = (self.box(state), state.zoom) if local else ()
        return self._kept.get((what, self.key(state), state.masker, *place), look)

    def _enlarged(self, state: ExplorerState) -> Tensor:
        return zoom(crop_view(self.subject(state).pixels[None], self._view(state)), state.zoom)

    def patch(self, state: ExplorerState) -> np.ndarray:
        """Return the local view as CLIP sees it, enlarged: (h, w, 3) uint8."""
        return self._enlarged(state)[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()

    def grids(self, state: ExplorerState) -> list[tuple[Box | None, np.ndarray]]:
        """Return similarities as CLIP gives them, (C, h, w) float32, one more channel for words, with the box they lie
        in: that of the local view first, then the whole image (None)."""
        found = []
        for local in (True, False) if state.local else (False,):
            maps = self._seen(state, "similarity", local)
            if self.has_words(state):
                maps = torch.cat([maps, _resized_all(self._words(state, local)[-1:], maps.shape[-2:])])
            found.append((self.box(state) if local else None, maps.numpy()))
        return found

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

        return self._kept.get(("mask", gate, self.key(state), state.masker, *place), make)

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
        name, file = path_name(path), resolve(path)
        self._networks[name] = read_network(file, self.class_set).to(self.device)
        self.networks[name] = file
        self._added[name] += 1
        return name

    def version(self, network: str) -> str:
        """Return a network's name with how often it was added: its file may hold another one by then."""
        return f"{network}:{self._added[network]}"

    def prediction(self, state: ExplorerState) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the network's masks (H, W) uint8: over all classes, and over those in the image's labels.

        None without a network. Raises NetworkError for a file that is no network of these classes.
        """
        if not state.network:
            return None
        key = "prediction", self.version(state.network), self.key(state)
        return self._kept.get(key, lambda: self._predict(state))

    def _predict(self, state: ExplorerState) -> tuple[np.ndarray, np.ndarray]:
        subject = self.subject(state)
        scores = probabilities(self._network(state.network), subject.image, self.params).cpu()
        gated = scores if subject.labels is None else scores.masked_fill(~subject.labels[:, None, None], -1)
        return scores.argmax(0).byte().numpy(), gated.argmax(0).byte().numpy()

    def loads(self, name: str) -> bool:
        """Tell whether a network can be read."""
        try:
            self._network(name)
        except NetworkError:
            return False
        return True

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


def _resized(one: Tensor, size: tuple[int, int]) -> Tensor:
    return resize_maps(one[None, None], size)[0, 0]


def _resized_all(maps: Tensor, size: Sequence[int]) -> Tensor:
    return resize_maps(maps[None], tuple(size))[0]


def _at(maps: Tensor, pixel: Pixel, size: tuple[int, int]) -> Tensor:
    """Values (K,) of maps (K, h, w) at one pixel, as if they had been resized to `size` bilinearly."""
    row, column = ((2 * place + 1) / side - 1 for place, side in zip(pixel, size, strict=True))
    point = torch.tensor([[[[column, row]]]], dtype=maps.dtype)
    return F.grid_sample(maps[None], point, padding_mode="border", align_corners=False).flatten()
