"""The two training commands of the embedded weights in seconds, and what the embedded weights can do."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import small_params

from carblib.classes import CAMVID
from carblib.clip_files import SMALL_CLIP, clip
from carblib.clip_models import load_clip
from carblib.masker import build_masker
from carblib.metrics import confusion, iou, mean_of
from carblib.network import SMALL_BACKBONE, load_backbone_weights, small_backbone
from carblib.scenes import pretrain_backbone, pretrain_clip
from carblib.scenes.folders import USES, Scene, render_scene, scene_seed


@pytest.fixture(scope="module")
def pool() -> list[Scene]:
    return [render_scene(scene_seed("clip", index, 99)) for index in range(2)]


@pytest.fixture(scope="module")
def random_model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = pretrain_clip.build_clip().eval()
        for block in model.transformer.resblocks:  # attention that a fresh model's tiny weights would hide
            block.attn.in_proj_weight.data.mul_(3)
    return model


# --- the commands ----------------------------------------------------------------------------------------------------
def test_tiny_clip_training_writes_a_loadable_model(
    tmp_path: Path, pool: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = Mock(return_value=pool)
    monkeypatch.setattr(pretrain_clip, "render_pool", rendered)
    path = pretrain_clip.train_clip(0.03, 2, 32, 1e-3, 0, tmp_path / "clip.pt")
    rendered.assert_called_once_with("clip", 2, 0)
    assert path.stat().st_size < 8e6
    model = load_clip(str(path))
    assert model.patch == 8 and model.resolution == 64
    assert not model.unknown_words(" ".join(own[0] for own in CAMVID.words)) and model.unknown_words("zebra")


def test_tiny_backbone_training_writes_loadable_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rendered = Mock(wraps=pretrain_clip.render_pool)
    monkeypatch.setattr(pretrain_backbone, "render_pool", rendered)
    path = pretrain_backbone.pretrain(0.03, 4, 8, 1e-3, 0, tmp_path / "backbone.safetensors")
    rendered.assert_called_once_with("backbone", 4, 0)
    assert "accuracy" in capsys.readouterr().out and path.stat().st_size < 8e6
    report = load_backbone_weights(small_backbone(), "small", str(path))
    assert report is not None and not report.missing and not report.unused
    features = small_backbone()(torch.randn(1, 3, 48, 64))
    assert features.shape == (1, 64, 6, 8)


# --- crops, captions and losses --------------------------------------------------------------------------------------
def test_captions_name_what_the_crop_shows(pool: list) -> None:
    sampler = pretrain_clip.PairSampler(pool, np.random.default_rng(0))
    crops, captions, words = sampler.batch(6, (32, 48))
    assert crops.shape == (6, 3, 32, 48) and crops.dtype == torch.uint8
    assert len(captions) == 6 and words.shape == (6, len(CAMVID)) and words.any(1).all()
    again = pretrain_clip.PairSampler(pool, np.random.default_rng(0)).batch(6, (32, 48))
    assert torch.equal(again[0], crops) and again[1] == captions


def test_centre_pool_is_the_mean_of_the_middle() -> None:
    features = torch.arange(64.0).view(1, 1, 8, 8)
    assert pretrain_backbone.centre_pool(features) == features[0, 0, 2:6, 2:6].mean()


def test_caption_word_loss_of_one_patch_by_hand() -> None:
    """One patch halfway between two words: p = 1/2 each, so q = 1/2 and either answer costs log 2."""
    words = torch.eye(2)
    dense = F.normalize(torch.ones(1, 1, 2), dim=-1)
    loss = pretrain_clip.caption_word_loss(dense, words, torch.tensor([[True, False]]), torch.tensor(5.0))
    assert float(loss) == pytest.approx(math.log(2))


def test_caption_word_loss_of_two_patches_by_hand() -> None:
    """Two patches, one per word, scale s: p = σ(s) or 1 - σ(s); q = ((p^6 + (1-p)^6) / 2)^(1/6) for both words."""
    scale = 2.0
    p = 1 / (1 + math.exp(-scale))
    q = ((p**6 + (1 - p) ** 6) / 2) ** (1 / 6)
    dense, present = torch.eye(2)[None], torch.tensor([[True, False]])
    loss = pretrain_clip.caption_word_loss(dense, torch.eye(2), present, torch.tensor(scale))
    assert float(loss) == pytest.approx(-(math.log(q) + math.log(1 - q)) / 2, rel=1e-5)
    both = pretrain_clip.caption_word_loss(dense, torch.eye(2), torch.tensor([[True, True]]), torch.tensor(scale))
    assert float(both) == pytest.approx(-math.log(q), rel=1e-5) and both < loss


def test_contrastive_loss_rewards_matching_pairs() -> None:
    image, scale = torch.eye(3), torch.tensor(4.0)
    expected = -math.log(math.exp(4) / (math.exp(4) + 2))
    assert float(pretrain_clip.contrastive_loss(image, image, scale)) == pytest.approx(expected, rel=1e-5)
    assert pretrain_clip.contrastive_loss(image, image.roll(1, 0), scale) > expected


@torch.inference_mode()
def test_text_features_equal_clip_s_own(random_model: torch.nn.Module) -> None:
    tokens = clip.tokenize(["a road", "a photo of a small traffic sign and a pole", "sky"])
    expected = F.normalize(random_model.encode_text(tokens), dim=-1)
    torch.testing.assert_close(pretrain_clip.text_features(random_model, tokens.long()), expected, rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@torch.inference_mode()
def test_class_token_equals_clip_s_own_at_its_resolution(random_model: torch.nn.Module) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    token, dense = pretrain_clip.image_features(random_model, pixels)
    expected = F.normalize(random_model.encode_image(pixels), dim=-1)
    torch.testing.assert_close(token, expected, rtol=1e-4, atol=1e-5)
    assert dense.shape == (2, 64, 128)


# --- seeds -----------------------------------------------------------------------------------------------------------
def test_pretraining_never_sees_a_scene_of_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds that the two uses render are their own, and no two uses share one."""
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(pretrain_clip, "ProcessPoolExecutor", lambda _: ThreadPoolExecutor(1))
    monkeypatch.setattr(pretrain_clip, "render_scene", seen.append)
    for use in ("clip", "backbone"):
        pretrain_clip.render_pool(use, 2, 3)
    splits = {
        scene_seed(use, index, seed) for use in ("train", "val", "test") for index in range(50) for seed in (0, 3)
    }
    assert seen == [scene_seed(use, index, 3) for use in ("clip", "backbone") for index in (0, 1)]
    assert len(set(seen)) == 4 and not set(seen) & splits
    assert len({scene_seed(use, 0)[0] for use in USES}) == len(USES)


# --- the embedded weights --------------------------------------------------------------------------------------------
def test_embedded_weights_are_small_and_have_a_card() -> None:
    for path in (SMALL_CLIP, SMALL_BACKBONE):
        assert path.stat().st_size < 8e6
        card = path.with_suffix(".md").read_text("utf-8")
        assert path.name in card and "rendered" in card and "carb pretrain " in card
    report = load_backbone_weights(small_backbone(), "small", "small")
    assert report is not None and not report.missing and not report.unused


def test_embedded_clip_knows_the_classes_and_its_masks_beat_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    model = load_clip("small")
    words = [word for own in CAMVID.words for word in own[0].split()]
    assert not model.unknown_words(" ".join(words))
    scenes = [render_scene(scene_seed("val", index)) for index in range(3)]
    images = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes])
    labels = torch.tensor([[bool((scene.mask == c).any()) for c in range(len(CAMVID))] for scene in scenes])
    with torch.inference_mode():
        masks = build_masker(small_params(clip="small"))(images, labels, images.shape[2:]).numpy()
    rng, scores = np.random.default_rng(0), []
    chance = np.stack([rng.choice(np.flatnonzero(present), size=masks.shape[1:]) for present in labels])
    for predicted in (masks, chance.astype(np.uint8)):
        counts = sum(confusion(p, scene.mask, len(CAMVID)) for p, scene in zip(predicted, scenes, strict=True))
        scores.append(mean_of(iou(counts)))
    assert scores[0] > 0.2 and scores[0] > 3 * scores[1], scores
