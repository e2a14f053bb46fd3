"""Prompts and text embeddings of the classes (METHOD.md, 1).

The templates are OpenAI's 80 for ImageNet (published with CLIP, MIT licence) and CARB's five for scenes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from carblib.base.errors import CarbError
from carblib.base.files import load_torch, save_torch
from carblib.classes import ClassSet
from carblib.clip_models import ClipModel

# A template that exists with "a" and with "the" is written once, with "*" for the article.
_BOTH_ARTICLES = (
    "a bad photo of * {}.",
    "a low resolution photo of * {}.",
    "a photo of * hard to see {}.",
    "a cropped photo of * {}.",
    "a bright photo of * {}.",
    "a photo of * clean {}.",
    "a photo of * dirty {}.",
    "a photo of * cool {}.",
    "a close-up photo of * {}.",
    "a pixelated photo of * {}.",
    "a jpeg corrupted photo of * {}.",
    "a blurry photo of * {}.",
    "a photo of * {}.",
    "a good photo of * {}.",
    "a dark photo of * {}.",
    "a black and white photo of * {}.",
    "a photo of * nice {}.",
    "a photo of * small {}.",
    "a photo of * weird {}.",
    "a photo of * large {}.",
    "a sculpture of * {}.",
    "a rendering of * {}.",
    "graffiti of * {}.",
    "a tattoo of * {}.",
    "a drawing of * {}.",
    "a painting of * {}.",
    "a doodle of * {}.",
    "a sketch of * {}.",
    "a rendition of * {}.",
    "art of * {}.",
    "itap of * {}.",
    "* embroidered {}.",
    "* plastic {}.",
    "* origami {}.",
    "* toy {}.",
    "* cartoon {}.",
    "* plushie {}.",
    "* {} in a video game.",
)
_OTHERS = ("a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}.")
IMAGENET_TEMPLATES = (
    *(template.replace("*", article) for template in _BOTH_ARTICLES for article in ("a", "the")),
    *_OTHERS,
)
SCENE_TEMPLATES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
TEMPLATES = IMAGENET_TEMPLATES + SCENE_TEMPLATES


@dataclass(frozen=True)
class TextEmbeddings:
    """Unit-norm text embeddings of a class set: K words of C classes in a space of D dimensions.

    `vectors` (K, D) float32, word by word; `class_of` (K,) the class of each word, ascending; `mean_per_class` (C, D),
    the normalised mean over a class's words (with one word per class, the vectors themselves).
    """

    vectors: Tensor
    class_of: Tensor
    mean_per_class: Tensor


def text_embeddings(
    clip_model: ClipModel, class_set: ClassSet, synonyms: bool = False, cache_dir: str | Path | None = None
) -> TextEmbeddings:
    """Embed the words of a class set: the paper's word per class, or with `synonyms` all of them.

    Kept in `cache_dir`, where given. Raises CarbError for a class none of whose words the model knows: its masks would
    mean nothing.
    """
    words = [of_class if synonyms else of_class[:1] for of_class in class_set.words]
    for name, of_class in zip(class_set.names, words, strict=True):
        if not any(clip_model.known_words(word) for word in of_class):
            raise CarbError(
                f"class '{name}': CLIP '{clip_model.name}' never saw {' or '.join(map(repr, of_class))} in training; "
                "give the class another word, or use an OpenAI model"
            )
    vectors = embed_words(clip_model, [word for of_class in words for word in of_class], cache_dir)
    class_of = torch.repeat_interleave(torch.tensor([len(of_class) for of_class in words]))
    means = torch.stack([part.mean(0) for part in vectors.split([len(of_class) for of_class in words])])
    return TextEmbeddings(vectors, class_of.to(vectors.device), F.normalize(means, dim=-1) if synonyms else vectors)


def embed_words(clip_model: ClipModel, words: Sequence[str], cache_dir: str | Path | None = None) -> Tensor:
    """Embed K words or phrases: fill every template, encode, normalise; mean over templates, normalised (K, D).

    With `cache_dir` the result is kept there under a name made of weights, words and templates, and read back.
    """
    if cache_dir is None:
        return _embed(clip_model, words)
    key = json.dumps([clip_model.fingerprint, list(words), TEMPLATES])
    path = Path(cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.pt"
    vectors = _read_cached(path, (len(words), clip_model.dim))
    if vectors is None:
        vectors = _embed(clip_model, words)
        save_torch(path, vectors.cpu().contiguous())
    return vectors.to(clip_model.mean.device)


def _embed(clip_model: ClipModel, words: Sequence[str]) -> Tensor:
    # str.replace, not str.format: a user's word may hold a brace.
    prompts = [template.replace("{}", word) for word in words for template in TEMPLATES]
    vectors = clip_model.encode_text(prompts).view(len(words), len(TEMPLATES), -1)
    return F.normalize(vectors.mean(1), dim=-1)


def _read_cached(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """Return a cached table, or None where there is none that is whole: a cache may always be made again."""
    if not path.is_file():
        return None
    try:
        vectors = load_torch(path)
    except CarbError:
        vectors = None
    if isinstance(vectors, Tensor) and vectors.shape == shape and vectors.isfinite().all():
        return vectors
    print(f"{path}: damaged; the words are embedded again")
    return None
