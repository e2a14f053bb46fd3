"""CLIP's weights: found, downloaded, verified, and built into OpenAI's architecture (METHOD.md, 1).

Weights are never trusted for their name: OpenAI's files must have OpenAI's checksum, every key must be used, every
value be finite. Nothing runs with weights that are missing, wrong or partly loaded.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carblib.base.contents import Contents
from carblib.base.errors import CarbError, nearest
from carblib.base.files import load_torch, sha256, state_dict_of
from carblib.params import resolve

try:
    with warnings.catch_warnings():
        # clip reads its own version through pkg_resources, which announces its deprecation at every import.
        warnings.simplefilter("ignore")
        import clip
except ModuleNotFoundError as error:
    if error.name != "pkg_resources":
        raise
    raise CarbError("clip needs pkg_resources, which setuptools 82 left out; pip install 'setuptools<82'") from error

SMALL_CLIP = Path(__file__).parent / "assets" / "small_clip.pt"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in 0–1, by clip's own preprocessing
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_CACHE = "~/.cache/clip"
_OPEN_CLIP = "open_clip:"
_DOWNLOAD_SILENCE = 30.0  # seconds without a byte after which a download counts as failed
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # plain numbers in OpenAI's archives


class ClipWeights(NamedTuple):
    """A CLIP in float32, the SHA-256 of its weights, and mean and standard deviation (of RGB in 0–1) of its pixels."""

    model: nn.Module
    fingerprint: str
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD


def read_clip(name: str, folder: str = "") -> ClipWeights:
    """Find, verify and read a CLIP by its name, downloading it where it is not on disk; see `clip_models.load_clip`."""
    if name.startswith(_OPEN_CLIP):
        return _read_open_clip(name)
    path, fingerprint = _find(name, folder)
    return ClipWeights(build_clip(_read_state(path, fingerprint), str(path)), fingerprint)


def clip_digest(name: str, folder: str, contents: Contents) -> str:
    """Return what tells a CLIP's weights from others without loading them: a digest, or what its name vouches for.

    OpenAI's weights are verified when they are loaded, open_clip's are known by their tag, or are a file.
    """
    if name.startswith(_OPEN_CLIP):
        weights = resolve(name.partition("/")[2])
        return f"{name} {contents.digest(weights)}" if weights.is_file() else name
    if name in clip.clip._MODELS:
        return name
    path = SMALL_CLIP if name == "small" else resolve(name)
    return contents.digest(path if path.is_file() else _find(name, folder)[0])


def build_clip(state: dict[str, Tensor], source: str) -> nn.Module:
    """Build OpenAI's CLIP of the shape its state dict implies and load it in float32, every key used.

    `source` names the weights in errors. Raises CarbError for a state dict of another model or with NaN or infinity.
    """
    state = {key: value for key, value in state.items() if key not in _NOT_WEIGHTS}
    for key, value in state.items():
        if not value.isfinite().all():
            raise CarbError(f"{source}: not finite in '{key}', the weights are damaged; download or train them again")
    try:
        model = clip.model.build_model(dict(state)).float()
        # build_model rounds to float16 on the way; load once more in full precision. Strict: no key may be left over.
        model.load_state_dict(state)
    except Exception as error:  # whatever a foreign set of keys and shapes leads to
        reason = f"no '{error.args[0]}'" if isinstance(error, KeyError) else " ".join(str(error).split())[:240]
        raise CarbError(f"{source}: not the weights of a CLIP model ({reason}); give a CLIP checkpoint") from error
    return model.eval()


def use_gelu(tower: nn.Module) -> None:
    """Give the blocks of a tower GELU in place of OpenAI's QuickGELU."""
    for module in tower.modules():
        if isinstance(module, clip.model.ResidualAttentionBlock):
            module.mlp.gelu = nn.GELU()


# --- finding and reading -----------------------------------------------------------------------------------------


def _find(name: str, folder: str) -> tuple[Path, str]:
    """Return the file of a model's weights and its SHA-256."""
    if name in clip.clip._MODELS:
        return _find_openai(name, folder)
    path = SMALL_CLIP if name == "small" else resolve(name)
    if not path.is_file():
        known = ["small", *clip.available_models()]
        hint = nearest(name, known) or "known are " + ", ".join(known)
        raise CarbError(f"clip '{name}': neither a file nor a known model; {hint}")
    return path, sha256(path)


def _find_openai(name: str, folder: str) -> tuple[Path, str]:
    url = clip.clip._MODELS[name]
    expected, file = url.split("/")[-2:]
    places = [Path(_CACHE).expanduser()]
    if folder:
        places.insert(0, resolve(folder))
        if not places[0].is_dir():
            raise CarbError(f"clip_folder {places[0]}: no such folder; make it, or leave clip_folder empty")
    for place in places:
        if (place / file).is_file():
            if sha256(place / file) != expected:
                raise CarbError(f"{place / file}: not OpenAI's {name} (another SHA-256); move it away and run again")
            return place / file, expected
    return _download(name, url, places[0]), expected


def _download(name: str, url: str, folder: Path) -> Path:
    """Download by clip's own function, which checks the checksum; a broken download leaves nothing behind."""
    target = folder / url.split("/")[-1]
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_SILENCE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            os.replace(clip.clip._download(url, unfinished), target)
    except (OSError, RuntimeError, TypeError, http.client.HTTPException) as error:
        raise CarbError(
            f"clip '{name}': download failed ({error}); fetch {url} on another machine and put it into {folder}"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return target


def _read_state(path: Path, fingerprint: str) -> dict[str, Tensor]:
    if _is_jit_archive(path):
        # A TorchScript archive is a program: only those of OpenAI, known by their checksum, are opened.
        if fingerprint not in {url.split("/")[-2] for url in clip.clip._MODELS.values()}:
            raise CarbError(f"{path}: refused, a TorchScript archive that is none of OpenAI's; give a plain state dict")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, OpenAI's files are as they are
            state = torch.jit.load(path, map_location="cpu").state_dict()
    else:
        state = state_dict_of(load_torch(path))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CarbError(f"{path}: not a state dict (names and tensors); give the state dict of a CLIP model")
    return state


def _is_jit_archive(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


# --- open_clip (an extra) ----------------------------------------------------------------------------------------


def check_open_clip(name: str) -> None:
    """Raise CarbError where a CLIP is open_clip's, and its package is not installed."""
    if name.startswith(_OPEN_CLIP) and find_spec("open_clip") is None:
        raise CarbError(f"clip '{name}': needs another package; pip install open_clip_torch, or choose another clip")


def _read_open_clip(name: str) -> ClipWeights:
    """Load an open_clip model of OpenAI's architecture into clip's own modules, so that one masker serves both."""
    architecture, _, weights = name.removeprefix(_OPEN_CLIP).partition("/")
    check_open_clip(name)
    import open_clip

    if not weights:
        raise CarbError(f"clip '{name}': must read open_clip:<architecture>/<tag or file>")
    if resolve(weights).is_file():
        weights = str(resolve(weights))
    try:
        source = open_clip.create_model(architecture, pretrained=weights, require_pretrained=True).eval()
    except Exception as error:  # open_clip raises many types, about names, files and downloads
        reason = " ".join(str(error).split())[:240]
        raise CarbError(f"clip '{name}': not loaded ({reason}); `open_clip.list_pretrained()` lists names") from error
    model = _rebuild(source, name)
    if not _agree(open_clip.get_tokenizer(architecture), source, model):
        raise CarbError(f"clip '{name}': not of OpenAI's architecture; choose a plain CLIP ViT or ResNet")
    pixels = open_clip.get_model_preprocess_cfg(source)
    return ClipWeights(model, _fingerprint(model, architecture), pixels["mean"], pixels["std"])


def _rebuild(source: nn.Module, name: str) -> nn.Module:
    model = build_clip(source.state_dict(), f"clip '{name}'")
    for ours, theirs in ((model, source), (model.visual, source.visual)):
        if not hasattr(ours, "transformer"):
            continue
        blocks = theirs.transformer.resblocks
        for block in ours.transformer.resblocks:
            # OpenAI's heads are always 64 wide; some of open_clip's are not.
            block.attn.num_heads = blocks[0].attn.num_heads
            block.attn.head_dim = block.attn.embed_dim // block.attn.num_heads
        if isinstance(blocks[0].mlp.gelu, nn.GELU):
            use_gelu(ours.transformer)
    return model


@torch.no_grad()
def _agree(tokenizer: object, source: nn.Module, model: nn.Module) -> bool:
    """Tell whether both models embed a text and a picture alike: what a rebuilt model missed would show here."""
    tokens = clip.tokenize(["a photo of the road."], context_length=model.context_length)
    if not torch.equal(tokenizer(["a photo of the road."]), tokens.long()):
        return False
    side = model.visual.input_resolution
    picture = torch.linspace(-1, 1, 3 * side * side).sin().view(1, 3, side, side)
    pairs = [
        (source.encode_text(tokens), model.encode_text(tokens)),
        (source.encode_image(picture), model.encode_image(picture)),
    ]
    return all(float((F.normalize(a) - F.normalize(b)).abs().max()) < 1e-4 for a, b in pairs)


def _fingerprint(model: nn.Module, architecture: str) -> str:
    digest = hashlib.sha256(architecture.encode())  # of the same weights there are several
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.contiguous().reshape(-1).numpy())
    return digest.hexdigest()
