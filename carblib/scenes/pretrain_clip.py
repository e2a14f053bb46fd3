"""Train the small embedded CLIP on rendered image-caption pairs: ``carb pretrain clip``.

The model is OpenAI's architecture (`clip.model.CLIP`) at a small size. It sees crops of rendered scenes, each with a
caption that names what the crop shows, and learns from two losses, neither of which reads a mask:

* the symmetric contrastive loss over image-caption pairs (Radford et al. 2021, Sec. 2.3);
* a caption-word loss on the value-path patch features: words compete for each patch (softmax), and a word of the
  caption must win some patches (a smooth maximum over patches), an absent word none. It is what makes patch features
  speak the language of the text tower, which web-scale training gives the real CLIP for free.

A class is worth a word when it covers a twenty-fifth of a crop. The scenes come from a seed range of their own,
disjoint from every split of the demo.
"""

from __future__ import annotations

import io
import math
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from carblib.base import files
from carblib.base.progress import bar_options
from carblib.classes import CAMVID
from carblib.clip_attention import tokens_before_last_block, value_path
from carblib.clip_files import CLIP_MEAN, CLIP_STD, clip
from carblib.prompts import TEMPLATES
from carblib.scenes.paint import pick
from carblib.scenes.render import Scene, SceneObject, render_scene, scene_seed

Box = tuple[int, int, int, int]  # top, left, bottom, right; ends exclusive

CONTEXT, VOCABULARY = 77, 49408
WORD_WEIGHT = 4.0  # of the caption-word loss beside the contrastive loss
FIRST = 0.4  # share of the time spent on 32 x 32 crops: four times as many pairs while features are still crude
SIZES = {  # crop size in pixels -> share of the later steps; the demo's local views have grids of these proportions
    (32, 32): 0.25,
    (64, 64): 0.45,
    (96, 96): 0.10,
    (128, 64): 0.20,
}
# What captions say instead of a class's first word. Not the synonyms of `ClassSet.words`: the embedded CLIP was
# trained with these.
SYNONYMS = {
    "road": ("street",),
    "sidewalk": ("pavement",),
    "signsymbol": ("traffic sign", "sign"),
    "pedestrian": ("person",),
    "bicyclist": ("cyclist",),
    "pole": ("post",),
    "tree": ("vegetation",),
}


def build_clip() -> nn.Module:
    """OpenAI's CLIP class at the embedded size: patch 8, grid 8x8, embedding 128, text width 64 with 2 layers."""
    return clip.model.CLIP(128, 64, 4, 128, 8, CONTEXT, VOCABULARY, 64, 1, 2).float()


# --- shared with the backbone ----------------------------------------------------------------------------------------
def render_pool(use: str, count: int, seed: int) -> list[Scene]:
    """Render the training scenes of a use ("clip", "backbone": a seed range of its own) with a progress bar."""
    with ProcessPoolExecutor(2) as pool:
        scenes = pool.map(render_scene, [scene_seed(use, index, seed) for index in range(count)], chunksize=16)
        return list(tqdm(scenes, total=count, desc="rendering", **bar_options()))


def cut(image: np.ndarray, box: Box, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Cut a box out of an image (H, W, 3), resize it to `size` and mirror half of them: (3, h, w) uint8."""
    top, left, bottom, right = box
    pixels = torch.from_numpy(image[top:bottom, left:right]).permute(2, 0, 1)[None].float()
    shrinks = size[0] < bottom - top
    crop = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=shrinks)
    return (crop.flip(3) if rng.random() < 0.5 else crop)[0].round().clamp(0, 255).byte()


def steps_in(minutes: float) -> Iterator[tuple[int, float]]:
    """Count steps, from 1, for a time budget, each with the share of the time that has passed."""
    start, step = time.time(), 0
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        step += 1
        yield step, done


def learning_rate(peak: float, done: float) -> float:
    """Linear warm-up over the first 4 %, then cosine to 2 % of the peak; `done` in [0, 1]."""
    return peak * min(1.0, done / 0.04) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


# --- image-caption pairs ---------------------------------------------------------------------------------------------


class PairSampler:
    """Draws (crop, caption, words) from a pool of rendered scenes; half of the crops are centred on an object."""

    def __init__(self, pool: list[Scene], rng: np.random.Generator):
        self.pool, self.rng = pool, rng
        self.by_class: dict[int, list[tuple[int, SceneObject]]] = {}
        for index, scene in enumerate(pool):
            for item in scene.objects:
                if item.visible_pixels >= 25:
                    self.by_class.setdefault(item.class_id, []).append((index, item))

    def batch(self, count: int, size: tuple[int, int]) -> tuple[Tensor, list[str], Tensor]:
        """Return crops (B, 3, h, w) uint8, captions, and the words each caption holds as multi-hot (B, C) bool."""
        crops, captions, words = [], [], torch.zeros(count, len(CAMVID), dtype=torch.bool)
        for row in range(count):
            scene, box, item = self._crop(size)
            part = scene.mask[box[0] : box[2], box[1] : box[3]]
            shares = np.bincount(part.ravel(), minlength=256)[: len(CAMVID)] / part.size
            named = [c for c in np.argsort(-shares) if shares[c] > 0.04 or (item and c == item.class_id)]
            words[row, named] = True
            captions.append(self._caption(named, item))
            crops.append(cut(scene.image, box, size, self.rng))
        return torch.stack(crops), captions, words

    def _crop(self, size: tuple[int, int]) -> tuple[Scene, Box, SceneObject | None]:
        rng, aspect = self.rng, size[1] / size[0]
        item = None
        if rng.random() < 0.5:
            entries = pick(rng, [self.by_class[c] for c in sorted(self.by_class)])
            index, item = pick(rng, entries)
            top, left, bottom, right = item.box
            side = max(bottom - top, (right - left) / aspect, 10) * rng.uniform(1.05, 2.5)
            centre = ((top + bottom) / 2 + rng.normal(0, side / 12), (left + right) / 2 + rng.normal(0, side / 12))
        else:
            index, side = int(rng.integers(len(self.pool))), math.exp(rng.uniform(math.log(28), math.log(256)))
            centre = None
        scene = self.pool[index]
        height, width = scene.mask.shape
        high = int(min(max(side, 8), height))
        wide = int(min(max(round(high * aspect), 4), width))
        if centre is None:
            centre = (rng.uniform(high / 2, height - high / 2), rng.uniform(wide / 2, width - wide / 2))
        top = int(np.clip(centre[0] - high / 2, 0, height - high))
        left = int(np.clip(centre[1] - wide / 2, 0, width - wide))
        return scene, (top, left, top + high, left + wide), item

    def _caption(self, named: list[int], item: SceneObject | None) -> str:
        nouns = [self._noun(c, item) for c in named[:5]]
        text = nouns[0] if len(nouns) == 1 else ", a ".join(nouns[:-1]) + " and a " + nouns[-1]
        return pick(self.rng, TEMPLATES).format(text)

    def _noun(self, class_id: int, item: SceneObject | None) -> str:
        name = CAMVID.words[class_id][0]
        about = item is not None and item.class_id == class_id
        options = SYNONYMS.get(name, ())
        if about and item.kind and self.rng.random() < 0.3:
            name = item.kind
        elif options and self.rng.random() < 0.3:
            name = pick(self.rng, options)
        return f"{item.colour} {name}" if about and item.colour and self.rng.random() < 0.3 else name


# --- the two losses --------------------------------------------------------------------------------------------------
def image_features(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Class-token embedding (B, D) and value-path patch features (B, N, D), both unit norm, of normalised pixels."""
    visual = model.visual
    x, grid = tokens_before_last_block(visual, pixels)
    last = visual.transformer.resblocks[-1]
    token = visual.ln_post(last(x.transpose(0, 1))[0]) @ visual.proj
    dense = visual.ln_post(value_path(last, x, grid)) @ visual.proj
    return F.normalize(token, dim=-1), F.normalize(dense, dim=-1)


def text_features(model: nn.Module, tokens: Tensor) -> Tensor:
    """Text embeddings (N, D), unit norm, with the context cut after the longest text (the attention is causal)."""
    length = int(tokens.argmax(1).max()) + 1
    return F.normalize(model.encode_text(tokens[:, :length]), dim=-1)


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over image-caption pairs (Radford et al. 2021); image and text are (B, D), unit norm."""
    logits = scale * image @ text.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def caption_word_loss(dense: Tensor, words: Tensor, present: Tensor, scale: Tensor, sharpness: float = 6.0) -> Tensor:
    """Word-from-patches loss: binary cross-entropy between a word's strongest patches and whether the caption holds it.

    dense (B, N, D) and words (C, D) unit norm, present (B, C) bool. p = softmax_c(scale <f_n, t_c>) per patch, then
    q_c = (mean_n p_nc^s)^(1/s), a smooth maximum over patches taken as a log-sum-exp.
    """
    log_p = torch.log_softmax(scale * dense @ words.T, -1)
    log_q = (torch.logsumexp(sharpness * log_p, 1) - math.log(dense.shape[1])) / sharpness
    q = log_q.exp().clamp(max=1 - 1e-4)
    return -torch.where(present, log_q, torch.log1p(-q)).mean()


# --- training and writing --------------------------------------------------------------------------------------------
def optimisers(model: nn.Module, extra: nn.Parameter, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the transformers' matrices, AdamW for everything else."""
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "resblocks" in name}
    others = [p for name, p in model.named_parameters() if name not in matrices]
    return [
        torch.optim.Muon(matrices.values(), lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*others, extra], lr=lr, weight_decay=0.01),
    ]


def next_size(done: float, rng: np.random.Generator) -> tuple[int, int]:
    """Crop size of the next step; `done` in [0, 1] is the share of the time that has passed."""
    if done < FIRST:
        return (32, 32)
    return list(SIZES)[int(rng.choice(len(SIZES), p=list(SIZES.values())))]


def train_clip(minutes: float, scenes: int, batch_size: int, lr: float, seed: int, output: Path) -> Path:
    """Train for a time budget and write the checkpoint in OpenAI's state-dict format; returns its path."""
    torch.manual_seed(seed)
    sampler = PairSampler(render_pool("clip", scenes, seed), np.random.default_rng([seed, 7]))
    model = build_clip()
    word_scale = nn.Parameter(torch.tensor(15.0).log())
    optims = optimisers(model, word_scale, lr)
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    seen = torch.zeros(VOCABULARY, dtype=torch.bool)
    for step, done in steps_in(minutes):
        for optim in optims:
            optim.param_groups[0]["lr"] = learning_rate(lr, done)
        size = next_size(done, sampler.rng)
        count = max(32, int(batch_size * min(1.0, 64 * 64 / (size[0] * size[1]))))
        crops, captions, present = sampler.batch(count, size)
        template = pick(sampler.rng, TEMPLATES)
        tokens = clip.tokenize(captions + [template.format(w[0]) for w in CAMVID.words]).long()
        seen[tokens.unique()] = True
        with torch.autocast("cpu", torch.bfloat16):
            token, dense = image_features(model, (crops.float() / 255 - mean) / std)
            text = text_features(model, tokens)
        token, dense, text = token.float(), dense.float(), text.float()
        pairs = contrastive_loss(token, text[:count], model.logit_scale.exp().clamp(max=100))
        named = caption_word_loss(dense, text[count:], present, word_scale.exp().clamp(max=100))
        for optim in optims:
            optim.zero_grad(set_to_none=True)
        (pairs + WORD_WEIGHT * named).backward()
        for optim in optims:
            optim.step()
        if step % 100 == 0:
            print(f"step {step}  {100 * done:.0f} %  contrastive {pairs:.3f}  words {named:.3f}", flush=True)
            save_clip(model, seen, output)
    save_clip(model, seen, output)
    print(f"{output}: {step} steps, {output.stat().st_size / 1e6:.1f} MB")
    return output


def save_clip(model: nn.Module, seen: Tensor, path: Path) -> None:
    """Write OpenAI's state-dict format in float16, deflated; token rows that no caption used are zero."""
    state = {name: value.detach().half() for name, value in model.state_dict().items()}
    state["token_embedding.weight"] = state["token_embedding.weight"] * seen[:, None]
    state |= {"input_resolution": torch.tensor(64), "context_length": torch.tensor(CONTEXT)}
    state["vocab_size"] = torch.tensor(VOCABULARY)
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(state, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    files.write_bytes(path, packed.getvalue())
