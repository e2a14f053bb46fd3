from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_clip import normalised, plain_features
from random_clip import tiny_clip
from small import small_params

from carblib import masker as masker_module
from carblib.base.errors import CarbError
from carblib.clip_attention import STRATEGIES, neighbourhood, position_embeddings
from carblib.clip_files import clip
from carblib.clip_models import ClipModel, load_clip
from carblib.masker import Masker, build_masker, pseudo_mask
from carblib.prompts import TextEmbeddings
from carblib.scenes.render import render_scene
from carblib.transforms import IMAGENET_MEAN, IMAGENET_STD


def _images(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures: noise alone would make all patches alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(shape[0], 3, 5, 5, generator=generator)
    return (F.interpolate(coarse, size=shape[1:], mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def _text(dim: int = 128, classes: int = 5, seed: int = 1, class_of: list[int] | None = None) -> TextEmbeddings:
    words = class_of or list(range(classes))
    vectors = F.normalize(torch.randn(len(words), dim, generator=torch.Generator().manual_seed(seed)), dim=-1)
    index = torch.tensor(words)
    means = torch.stack([F.normalize(vectors[index == c].mean(0), dim=0) for c in range(max(words) + 1)])
    return TextEmbeddings(vectors, index, means)


@pytest.mark.parametrize("strategy", [*STRATEGIES])
@pytest.mark.parametrize("size", [(64, 64), (40, 72), (8, 8)])
def test_features_equal_the_reference(random_clip, strategy, size):
    images = _images(2, *size)
    got = Masker(random_clip, _text(), strategy).features(images)
    state = random_clip.clip.state_dict()
    for image, features in zip(images, got, strict=True):
        expected = plain_features(state, normalised(image), 8, 4, strategy)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (45, 60)])
def test_official_settings_equal_the_reference(random_clip_file, size):
    """GELU, LayerNorm eps 1e-6, ImageNet's normalisation, zeros appended in the corner, labels multiplied."""
    model = load_clip(str(random_clip_file), official=True)
    text = _text()
    masker = Masker(model, text, gate="official", clip_pixels="official")
    images = _images(2, *size)
    labels = torch.tensor([[1, 0, 0, 1, 1], [0, 1, 0, 0, 0]], dtype=torch.bool)
    masks = masker(images, labels)
    for image, label, features, mask in zip(images, labels, masker.features(images), masks, strict=True):
        pixels = normalised(image, IMAGENET_MEAN, IMAGENET_STD)
        padded = torch.zeros(3, -(-size[0] // 8) * 8, -(-size[1] // 8) * 8)
        padded[:, : size[0], : size[1]] = pixels
        gelu = lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))  # noqa: E731
        expected = plain_features(model.clip.state_dict(), padded, 8, 4, "value_path", 1e-6, gelu)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
        scores = torch.einsum("dhw,cd->chw", expected, text.vectors) * label[:, None, None]
        wide = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
        # Where the two best scores are equal to rounding, either may win.
        top = wide.topk(2, dim=0).values
        clear = (top[0] - top[1]) > 1e-5
        assert clear.float().mean() > 0.5 and torch.equal(mask[clear].long(), wide.argmax(0)[clear])


def test_resnet_features_equal_one_by_one_convolutions(random_resnet_clip):
    images = _images(2, 64, 96)
    visual = random_resnet_clip.visual
    caught = {}
    handle = visual.layer4.register_forward_hook(lambda _, __, output: caught.update(x=output))
    pixels = torch.stack([normalised(image) for image in images])
    with torch.no_grad():
        try:
            visual(pixels)
        except RuntimeError:  # the attention pool itself cannot take another size than its own
            pass
        handle.remove()
        pool = visual.attnpool
        value = F.conv2d(caught["x"], pool.v_proj.weight[:, :, None, None], pool.v_proj.bias)
        expected = F.conv2d(value, pool.c_proj.weight[:, :, None, None], pool.c_proj.bias)
        expected = expected / expected.norm(dim=1, keepdim=True)
    got = Masker(random_resnet_clip, _text()).features(images)
    assert got.shape == (2, 128, 2, 3)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_value_path_of_one_patch_is_clips_own_last_block_when_it_attends_to_itself(random_clip):
    """With one token attention is the value path: clip's own forward on the class token says the same."""
    block = random_clip.visual.transformer.resblocks[-1]
    x = torch.randn(1, 2, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = block(x[:, 1:].transpose(0, 1)).transpose(0, 1)
        torch.testing.assert_close(STRATEGIES["value_path"](block, x, (1, 1)), own, rtol=0, atol=1e-5)


# --- position embeddings, sizes ----------------------------------------------------------------------------------


def test_position_embeddings_are_their_own_at_the_native_grid(random_clip):
    table = random_clip.visual.positional_embedding
    assert position_embeddings(random_clip.visual, (8, 8)) is table
    assert position_embeddings(random_clip.visual, (4, 16)).shape == table.shape  # as many patches, another grid
    assert not torch.allclose(position_embeddings(random_clip.visual, (4, 16)), table)
    assert torch.equal(position_embeddings(random_clip.visual, (3, 5))[0], table[0])


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (45, 61), (64, 64), (129, 70)])
@pytest.mark.parametrize("pixels", ["clean", "official"])
def test_any_size_gives_a_mask_of_that_size(random_clip, random_resnet_clip, size, pixels):
    labels = torch.ones(1, 5, dtype=torch.bool)
    for model in (random_clip, random_resnet_clip):
        if model is random_resnet_clip and pixels == "official" and min(size) < 32:
            continue  # a ResNet cannot see less than one cell
        mask = Masker(model, _text(), clip_pixels=pixels)(_images(1, *size), labels)
        assert mask.shape == (1, *size) and mask.dtype == torch.uint8 and mask.max() < 5


def test_grid_covers_exactly_the_image(random_clip):
    """A vertical edge in an image of odd width is found at its own column, not shifted by padding."""
    model = ClipModel(copy.deepcopy(random_clip.clip), "x", "x")
    masker = Masker(model, _text())
    image = torch.zeros(1, 3, 52, 100, dtype=torch.uint8)
    image[..., 50:] = 255
    assert masker.features(image).shape[-2:] == (6, 12)  # 52 → 48, 100 → 96: the nearest multiples of 8
    # What CLIP is shown has its edge in the middle, too.
    assert torch.equal(masker._pixels(image, 1.0)[0, 0, 0] > 0, torch.arange(96) >= 48)
    padded = Masker(model, _text(), clip_pixels="official")._pixels(image, 1.0)
    assert padded.shape[-2:] == (56, 104) and not padded[..., 52:, :].any() and not padded[..., 100:].any()


def test_mask_size_can_differ_from_the_image(random_clip):
    masker, labels = Masker(random_clip, _text()), torch.ones(2, 5, dtype=torch.bool)
    images = _images(2, 40, 48)
    mask = masker(images, labels, (97, 31))
    assert mask.shape == (2, 97, 31)
    assert torch.equal(mask, pseudo_mask(masker.similarity(images), labels, (97, 31)))


def test_images_of_a_batch_do_not_meet(random_clip):
    masker, images = Masker(random_clip, _text(), window=(32, 32), flip=True), _images(3, 48, 72)
    together = masker.similarity(images)
    for i in range(3):
        torch.testing.assert_close(masker.similarity(images[i : i + 1])[0], together[i], rtol=0, atol=1e-5)


# --- gating ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_mask_names_only_classes_present(data):
    batch, classes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 25))
    h, w = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    size = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    similarity = torch.randn(batch, classes, h, w, generator=generator) - data.draw(st.floats(0, 3))
    labels = torch.rand(batch, classes, generator=generator) < data.draw(st.sampled_from([0.1, 0.5, 1.0]))
    masks = pseudo_mask(similarity, labels, size)
    assert masks.shape == (batch, *size) and masks.dtype == torch.uint8
    for mask, present in zip(masks, labels, strict=True):
        named = set(mask.flatten().tolist())
        assert named <= set(present.nonzero().flatten().tolist()) if present.any() else named == {255}
    # By definition: absent classes at −∞ after resizing.
    wide = F.interpolate(similarity, size=size, mode="bilinear", align_corners=False)
    wide = wide.masked_fill(~labels[:, :, None, None], -torch.inf)
    expected = wide.argmax(1)
    expected[~labels.any(1)] = 255
    assert torch.equal(masks.long(), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_official_gate_multiplies_before_resizing(seed):
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(2, 6, 3, 4, generator=generator)
    labels = torch.rand(2, 6, generator=generator) < 0.5
    gated = F.interpolate(
        similarity * labels[:, :, None, None].float(), size=(20, 17), mode="bilinear", align_corners=False
    )
    assert torch.equal(pseudo_mask(similarity, labels, (20, 17), "official").long(), gated.argmax(1))


def test_gates_differ_where_every_present_class_is_negative():
    similarity = torch.tensor([-0.1, -0.2, 0.3]).view(1, 3, 1, 1)
    labels = torch.tensor([[False, True, False]])
    assert pseudo_mask(similarity, labels, (2, 2), "labels").unique().tolist() == [1]
    # Classes 0 and 2 both score 0 then: the lowest id.
    assert pseudo_mask(similarity, labels, (2, 2), "official").unique().tolist() == [0]
    assert pseudo_mask(similarity, None, (2, 2), "none").unique().tolist() == [2]


def test_an_image_of_one_class_is_that_class(random_clip):
    labels = torch.zeros(1, 5, dtype=torch.bool)
    labels[0, 3] = True
    assert (Masker(random_clip, _text())(_images(1, 24, 24), labels) == 3).all()


def test_no_labels_stop_unless_nothing_is_gated(random_clip):
    images = _images(1, 24, 24)
    assert Masker(random_clip, _text(), gate="none")(images).shape == (1, 24, 24)
    for gate in ("labels", "official"):
        with pytest.raises(CarbError, match="needs image-level labels"):
            Masker(random_clip, _text(), gate=gate)(images)


# --- similarity: words, windows, scales, flip --------------------------------------------------------------------


def test_similarity_is_the_cosine_and_takes_a_classs_best_word(random_clip):
    images, text = _images(2, 40, 56), _text(class_of=[0, 1, 1, 2, 2, 2])
    features = Masker(random_clip, text).features(images)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, 5, 7))
    words = torch.stack([(features * v[:, None, None]).sum(1) for v in text.vectors], dim=1)
    expected = torch.stack([words[:, 0], words[:, 1:3].amax(1), words[:, 3:].amax(1)], dim=1)
    torch.testing.assert_close(Masker(random_clip, text).similarity(images), expected, rtol=0, atol=1e-6)


def test_windows_average_what_each_window_sees(random_clip):
    images, text = _images(2, 48, 72), _text()
    whole = Masker(random_clip, text)
    got = Masker(random_clip, text, window=(32, 32), stride=(16, 24)).similarity(images)
    total, times = torch.zeros(2, 5, 6, 9), torch.zeros(6, 9)
    for top in (0, 16):
        for left in (0, 24, 40):  # the last one moved back to end with the image
            y, x = slice(top // 8, top // 8 + 4), slice(left // 8, left // 8 + 4)
            total[:, :, y, x] += whole.similarity(images[:, :, top : top + 32, left : left + 32])
            times[y, x] += 1
    torch.testing.assert_close(got, total / times, rtol=0, atol=1e-5)


def test_window_as_large_as_the_image_is_the_image(random_clip):
    images = _images(1, 40, 56)
    whole = Masker(random_clip, _text()).similarity(images)
    for window in ((40, 56), (64, 512)):
        got = Masker(random_clip, _text(), window=window).similarity(images)
        torch.testing.assert_close(got, whole, rtol=0, atol=1e-6)


def test_few_windows_at_once_change_nothing(random_clip, monkeypatch):
    images, masker = _images(2, 64, 64), Masker(random_clip, _text(), window=(32, 32))
    assert masker.stride == (2, 2)  # half a window, in patches
    expected = masker.similarity(images)
    seen, classify = [], masker._classify
    monkeypatch.setattr(masker, "_classify", lambda pixels: seen.append(len(pixels)) or classify(pixels))
    monkeypatch.setattr(masker_module, "_WINDOWS_AT_ONCE", 4)
    torch.testing.assert_close(masker.similarity(images), expected, rtol=0, atol=1e-5)
    assert seen == [4, 4, 4, 4, 2]  # nine windows of two images


def test_flip_averages_the_mirrored_view(random_clip):
    images, text = _images(2, 40, 56), _text()
    plain, flipped = Masker(random_clip, text), Masker(random_clip, text, flip=True)
    expected = (plain.similarity(images) + plain.similarity(images.flip(-1)).flip(-1)) / 2
    torch.testing.assert_close(flipped.similarity(images), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        flipped.similarity(images.flip(-1)), flipped.similarity(images).flip(-1), rtol=0, atol=1e-5
    )


def test_scales_are_averaged_on_the_finest_grid(random_clip):
    images, text = _images(1, 40, 56), _text()
    got = Masker(random_clip, text, scales=(1.0, 2.0)).similarity(images)
    one = F.interpolate(Masker(random_clip, text).similarity(images), size=(10, 14), mode="bilinear")
    big = F.interpolate(images.float(), size=(80, 112), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got, (one + Masker(random_clip, text).similarity(big)) / 2, rtol=0, atol=1e-5)


# --- all strategies ----------------------------------------------------------------------------------------------


def test_strategies_are_finite_and_differ(random_clip):
    images, seen = _images(2, 40, 56), {}
    for name in STRATEGIES:
        seen[name] = Masker(random_clip, _text(), name).similarity(images)
        assert seen[name].shape == (2, 5, 5, 7) and seen[name].isfinite().all() and seen[name].abs().max() <= 1.0001
    names = [*seen]
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not torch.allclose(seen[one], seen[other], atol=1e-3), (one, other)


def test_bfloat16_stays_close_and_the_masker_alone_decides_on_it(random_clip):
    images = _images(2, 40, 56)
    for name in STRATEGIES:
        exact = Masker(random_clip, _text(), name).similarity(images)
        masker = Masker(random_clip, _text(), name, precision="bf16-mixed")
        rough = masker.similarity(images)
        assert rough.dtype == masker.features(images).dtype == torch.float32
        assert not torch.equal(rough, exact)
        torch.testing.assert_close(rough, exact, rtol=0, atol=0.05)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(Masker(random_clip, _text(), name).similarity(images), exact)
        with torch.autocast("cpu", torch.float16):
            assert torch.equal(masker.similarity(images), rough)


def test_bfloat16_changes_few_pixels_of_the_embedded_clips_masks():
    # 99.8 % of pixels of rendered scenes are equal.
    params = small_params(precision="bf16-mixed")
    images = torch.stack(
        [torch.from_numpy(render_scene(i, params.image_size).image).permute(2, 0, 1) for i in range(3)]
    )
    labels = torch.ones(3, len(params.class_set), dtype=torch.bool)
    exact, rough = (build_masker(params.updated(precision=own))(images, labels) for own in ("32-true", "bf16-mixed"))
    share = (exact == rough).double().mean()
    assert 0.99 < share < 1, share


def test_neighbourhood_is_a_gaussian_of_the_distance():
    table = neighbourhood((3, 4), deviation=2.0)
    assert table.shape == (12, 12) and torch.equal(table, table.T) and torch.equal(table.diag(), torch.ones(12))
    # From row 0, column 1 (patch 1) to row 2, column 3 (patch 11): distance² = 8.
    assert math.isclose(table[1, 11], math.exp(-1.0), rel_tol=1e-6)


def test_vit_b16_of_random_weights_has_the_right_shapes():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        visual = clip.model.VisionTransformer(224, 16, 768, 1, 12, 512)
    # One block twelve times: drawing twelve would take longer than everything else here.
    visual.transformer.resblocks = torch.nn.Sequential(*[visual.transformer.resblocks[0]] * 12)
    model = tiny_clip(1)
    model.visual, model.text_projection = visual, torch.nn.Parameter(torch.randn(64, 512))
    model = ClipModel(model, "ViT-B/16", "x")
    masker = Masker(model, _text(512, classes=19))
    assert (model.patch, model.resolution, model.dim) == (16, 224, 512)
    assert masker.features(_images(1, 224, 224)).shape == (1, 512, 14, 14)
    assert masker(_images(1, 100, 210), torch.ones(1, 19, dtype=torch.bool)).shape == (1, 100, 210)


# --- building, mistakes ------------------------------------------------------------------------------------------


def test_masker_is_frozen_and_keeps_no_weights_of_its_own(random_clip):
    masker = Masker(random_clip, _text()).train()
    assert not any(p.requires_grad for p in masker.parameters()) and not masker.clip.visual.training
    assert all(key.startswith("clip.") for key in masker.state_dict())
    assert not masker.similarity(_images(1, 16, 16)).requires_grad


def test_mistakes_stop(random_clip, random_resnet_clip):
    with pytest.raises(CarbError, match="did you mean 'value_path'"):
        Masker(random_clip, _text(), "valuepath")
    with pytest.raises(CarbError, match="is a ResNet, which has value_path only"):
        Masker(random_resnet_clip, _text(), "naclip")
    with pytest.raises(CarbError, match=r"mask_window \[30, 64\]: must be multiples of CLIP's patch of 8.*\[32, 64\]"):
        Masker(random_clip, _text(), window=(30, 64))
    with pytest.raises(CarbError, match="mask_stride"):
        Masker(random_clip, _text(), window=(32, 64), stride=(8, 3))


def test_build_masker_follows_the_parameters(tmp_path, monkeypatch, random_clip_file):
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    params = small_params(
        clip=str(random_clip_file),
        masker="sclip",
        gate="none",
        clip_pixels="official",
        official_clip=True,
        synonyms=True,
        mask_window=[32, 32],
        mask_stride=[16, 32],
        mask_scales=[1.0, 1.5],
        mask_flip=True,
    )
    masker = build_masker(params)
    assert (masker.strategy, masker.gate, masker.official_pixels) == ("sclip", "none", True)
    assert (masker.window, masker.stride, masker.scales, masker.flip) == ((4, 4), (2, 4), (1.0, 1.5), True)
    assert masker.clip.visual.ln_post.eps == 1e-6
    assert len(masker.text.class_of) > len(masker.text.mean_per_class) == len(params.class_set)
    assert masker(_images(1, 40, 40)).shape == (1, 40, 40)
    assert len(list((tmp_path / "runs" / ".cache" / "text").iterdir())) == 1
