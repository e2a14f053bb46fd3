"""Joint transforms: image and mask stay aligned, a seed gives a sample, padding is marked, draws cover their ranges."""

import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_params

from carblib.transforms import (
    TrainTransform,
    distorted,
    load_part,
    load_sized,
    photometric_distortion,
    photometric_draws,
    random_box,
    resize_maps,
    resize_mask,
    resize_mask_part,
    resized_argmax,
    window_starts,
)


def is_padding(pixels: torch.Tensor) -> bool:
    """Whether pixels (3, N) uint8 are 0 after the networks' normalisation, as near as whole numbers come."""
    mean, std = torch.tensor([[0.485], [0.456], [0.406]]), torch.tensor([[0.229], [0.224], [0.225]])
    return bool((((pixels / 255 - mean) / std).abs() < 0.01).all())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def params(**keys):
    base = {"cache_features": False, "image_size": [40, 60], "crop": [24, 32], "patch": [8, 8]}
    return small_params(**{**base, **keys})


def sample_of(params, image, mask, seed):
    return distorted(TrainTransform(params)(image, mask, generator(seed)), params)


def picture(height, width, seed=0):
    """An image whose red channel is its mask's train id, so that alignment can be seen."""
    mask = np.random.default_rng(seed).integers(0, 11, (height, width)).astype(np.uint8)
    image = np.stack([mask, mask + 20, np.full_like(mask, 99)], -1)
    return image, mask


@pytest.mark.parametrize("size", [(7, 5), (20, 30), (41, 13), (8, 64)])
def test_resize_mask_takes_the_pixel_under_the_centre(size):
    _, mask = picture(20, 30)
    result = resize_mask(mask, size)
    expected = np.empty(size, np.uint8)
    for row in range(size[0]):
        for column in range(size[1]):
            expected[row, column] = mask[int((row + 0.5) * 20 / size[0]), int((column + 0.5) * 30 / size[1])]
    np.testing.assert_array_equal(result, expected)


def test_load_sized():
    image, _ = picture(20, 30)
    same = load_sized(image, (20, 30))
    np.testing.assert_array_equal(same.permute(1, 2, 0).numpy(), image)
    assert load_sized(image, (7, 9)).shape == (3, 7, 9) and load_sized(image, (7, 9)).dtype == torch.uint8
    flat = np.full((5, 5, 3), 77, np.uint8)
    assert (load_sized(flat, (11, 3)) == 77).all()


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    crop=st.tuples(st.integers(8, 50), st.integers(8, 50)),
    seed=st.integers(0, 2**40),
)
def test_image_mask_and_valid_are_cropped_and_flipped_alike(size, crop, seed):
    image, mask = picture(*size)
    transform = TrainTransform(params(image_size=size, crop=crop))
    sample = transform(image, mask, generator(seed))
    valid = sample["valid"]
    assert sample["image"].shape == (3, *crop) and sample["mask"].shape == crop == tuple(valid.shape)
    assert torch.equal(sample["image"][0][valid], sample["mask"][valid])
    assert (sample["mask"][~valid] == 255).all() and is_padding(sample["image"][:, ~valid])
    assert valid.sum() == min(size[0], crop[0]) * min(size[1], crop[1])
    # The box says where the crop came from in the flipped image.
    top, left = sample["box"].tolist()
    source = mask[:, ::-1] if sample["flipped"] else mask
    part = source[top : top + crop[0], left : left + crop[1]]
    np.testing.assert_array_equal(sample["mask"].numpy()[: part.shape[0], : part.shape[1]], part)


def test_a_mask_or_its_absence_changes_nothing_else():
    image, mask = picture(30, 50)
    transform = TrainTransform(params(resize_ratio=[0.5, 2.0], photometric=True))
    for seed in range(5):
        with_mask = transform(image, mask, generator(seed))
        without = transform(image, None, generator(seed))
        assert (without["mask"] == 255).all()
        for key in ("image", "draws", "valid", "box", "flipped"):
            assert torch.equal(with_mask[key], without[key])


def test_a_seed_gives_one_sample_and_seeds_differ():
    image, mask = picture(80, 120)
    transform = TrainTransform(params(resize_ratio=[0.5, 2.0], photometric=True))
    first, again = transform(image, mask, generator(3)), transform(image, mask, generator(3))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], transform(image, mask, generator(4))["image"])


def test_the_global_random_state_is_not_touched():
    image, mask = picture(80, 120)
    before = torch.get_rng_state()
    TrainTransform(params(resize_ratio=[0.5, 2.0], photometric=True))(image, mask, generator())
    assert torch.equal(before, torch.get_rng_state())


def test_the_ratio_is_applied_to_the_base_size():
    # A resized flat image shows its size by its valid pixels, when the crop holds it whole.
    image, mask = np.full((30, 40, 3), 9, np.uint8), np.zeros((30, 40), np.uint8)
    transform = TrainTransform(params(resize_ratio=[0.5, 2.0], image_size=[20, 30], crop=[200, 200]))
    heights = []
    for seed in range(60):
        valid = transform(image, mask, generator(seed))["valid"]
        height, width = int(valid.any(1).sum()), int(valid.any(0).sum())
        assert abs(width - height * 1.5) <= 2
        heights.append(height)
    assert min(heights) >= 10 and max(heights) <= 40 and min(heights) < 14 and max(heights) > 36


def test_every_position_is_drawn_the_last_included():
    draw = generator()
    boxes = {random_box((10, 12), (8, 8), 1, draw) for _ in range(400)}
    assert boxes == {(top, left) for top in range(3) for left in range(5)}
    boxes = {random_box((24, 33), (8, 16), 8, draw) for _ in range(400)}
    assert boxes == {(top, left) for top in (0, 8, 16) for left in (0, 8, 16)}
    assert random_box((5, 5), (8, 8), 1, draw) == (0, 0)


def test_crops_of_cached_features_lie_on_the_grid():
    image, mask = picture(64, 96)
    transform = TrainTransform(params(cache_features=True, image_size=[64, 96], crop=[32, 48]))
    boxes = torch.stack([transform(image, mask, generator(seed))["box"] for seed in range(40)])
    assert (boxes % 8 == 0).all() and boxes.amax(0).tolist() == [32, 48]


@pytest.mark.parametrize(("flip", "expected"), [(0.0, 0), (1.0, 50)])
def test_flip_probability(flip, expected):
    image, mask = picture(40, 60)
    transform = TrainTransform(params(flip=flip))
    assert sum(bool(transform(image, mask, generator(seed))["flipped"]) for seed in range(50)) == expected


@settings(max_examples=300, deadline=None)
@given(
    whole=st.tuples(st.integers(1, 90), st.integers(3, 90)),
    ratio=st.floats(0.4, 2.2),
    stretch=st.sampled_from([1.0, 1.0, 0.7, 1.3]),
    draws=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_part_is_resized_as_within_the_whole(whole, ratio, stretch, draws):
    size = tuple(max(1, round(side * ratio * by)) for side, by in zip(whole, (1, stretch), strict=True))
    part = [1 + round(draw * (side - 1)) for draw, side in zip(draws[:2], size, strict=True)]
    box = [round(draw * (side - own)) for draw, side, own in zip(draws[2:], size, part, strict=True)]
    rng = np.random.default_rng(whole[0] * 100 + whole[1])
    image, mask = rng.integers(0, 256, (*whole, 3), np.uint8), rng.integers(0, 11, whole, np.uint8)
    rows, columns = (slice(start, start + length) for start, length in zip(box, part, strict=True))
    shown = load_part(image, size, box, part)
    apart = (shown.int() - load_sized(image, size)[:, rows, columns].int()).abs().max()
    vectors = torch.backends.cpu.get_cpu_capability().startswith("AVX")  # without them torch may round the other way
    assert shown.is_contiguous() and apart <= (0 if vectors else 1)
    if min(whole) > 4:  # of a side of two pixels torch rounds the middle either way
        np.testing.assert_array_equal(resize_mask_part(mask, size, box, part), resize_mask(mask, size)[rows, columns])


def test_little_of_an_image_is_resized_for_a_part(monkeypatch):
    seen = []
    plain = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda pixels, **keys: seen.append(pixels.shape) or plain(pixels, **keys))
    load_part(np.zeros((100, 200, 3), np.uint8), (200, 400), (150, 20), (50, 60))
    assert seen == [(1, 3, 27, 42)]


def test_clip_sees_clean_pixels_unless_the_official_way_is_asked_for():
    image, mask = picture(40, 60)
    keys = {"photometric": True, "crop": [40, 60], "flip": 0.0}
    clean = sample_of(params(**keys), image, mask, 1)
    assert not torch.equal(clean["image"], clean["clip_image"])
    np.testing.assert_array_equal(clean["clip_image"].permute(1, 2, 0).numpy(), image)
    official = sample_of(params(**keys, clip_pixels="official"), image, mask, 1)
    assert torch.equal(official["image"], official["clip_image"])


def reference_distortion(pixel, brightness, contrast, saturation, turn, contrast_first):
    """The distortion of one RGB pixel, by Python's own colour conversion."""

    def clip(values):
        return [min(max(value, 0.0), 255.0) for value in values]

    pixel = clip([value + brightness for value in pixel])
    if contrast_first:
        pixel = clip([value * contrast for value in pixel])
    hue, sat, value = colorsys.rgb_to_hsv(*(v / 255 for v in pixel))
    pixel = [255 * v for v in colorsys.hsv_to_rgb((hue + turn) % 1.0, min(sat * saturation, 1.0), value)]
    if not contrast_first:
        pixel = clip([value * contrast for value in pixel])
    return pixel


def test_photometric_distortion_is_the_fields():
    image = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (3, 6, 7)).astype(np.uint8))
    seen, kept = set(), []
    for seed in range(40):
        draw = generator(seed)

        def uniform(low, high, draw=draw):
            return low + (high - low) * torch.rand((), generator=draw, dtype=torch.float64).item()

        def coin(uniform=uniform):
            return uniform(0, 1) < 0.5

        brightness = uniform(-32, 32) if coin() else 0.0
        contrast = uniform(0.5, 1.5) if coin() else 1.0
        contrast_first = coin()
        saturation = uniform(0.5, 1.5) if coin() else 1.0
        turn = uniform(-18, 18) / 180 if coin() else 0.0
        seen.add((brightness != 0, contrast != 1, contrast_first, saturation != 1, turn != 0))
        drawn = photometric_draws(generator(seed))
        result = photometric_distortion(image, drawn)
        assert result.dtype == torch.uint8
        for row in range(6):
            for column in range(7):
                expected = reference_distortion(
                    image[:, row, column].tolist(), brightness, contrast, saturation, turn, contrast_first
                )
                assert np.abs(result[:, row, column].numpy() - np.array(expected)).max() <= 1.0
        kept.append((drawn, result))
    assert len(seen) > 15
    batch = photometric_distortion(image.expand(40, -1, -1, -1), torch.stack([drawn for drawn, _ in kept]))
    assert (batch.int() - torch.stack([result for _, result in kept]).int()).abs().max() <= 1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_windows_cover_everything_once_or_more(length, window, stride):
    window, stride = min(window, length), min(stride, window)
    starts = window_starts(length, window, stride)
    assert {place for start in starts for place in range(start, start + window)} == set(range(length))
    assert len(set(starts)) == len(starts)


def test_maps_of_the_size_asked_for_are_not_copied():
    maps = torch.rand(1, 2, 3, 4)
    assert resize_maps(maps, (3, 4)) is maps
    larger = resize_maps(maps, (6, 8))
    assert larger.shape == (1, 2, 6, 8) and larger[0, 0, 0, 0] == maps[0, 0, 0, 0]


@given(
    st.integers(1, 9),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 200), st.integers(1, 50)),
)
@settings(max_examples=60, deadline=None)
def test_resized_argmax_is_the_argmax_of_resized_maps(classes, coarse, size):
    maps = torch.rand(classes, *coarse, generator=torch.Generator().manual_seed(size[0]))
    plain = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    found = resized_argmax(maps, size)
    assert found.dtype == torch.uint8 and found.shape == size
    # Rounding may decide between two that are equal: what was chosen must be as high as the highest.
    chosen = plain.gather(0, found.long()[None])[0]
    torch.testing.assert_close(chosen, plain.amax(0), rtol=1e-5, atol=1e-6)


def test_resized_argmax_takes_the_first_of_equals():
    assert not resized_argmax(torch.ones(4, 3, 3), (130, 7)).any()
