import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carblib.base.errors import CarbError
from carblib.views import LocalView, crop_view, local_pseudo_mask, paste_view, sample_local_view, zoom


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def views(draw) -> tuple[tuple[int, int], LocalView]:
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    patch = draw(st.integers(1, height)), draw(st.integers(1, width))
    view = sample_local_view(batch, (height, width), patch, 1.0, 0.5, seeded(draw(st.integers(0, 999))))
    return (height, width), view


@settings(max_examples=40, deadline=None)
@given(views(), st.sampled_from([(), (3,), (2, 4)]))
def test_crop_is_plain_slicing_of_every_image(drawn, between):
    (height, width), view = drawn
    shape = (len(view.boxes), *between, height, width)
    tensor = torch.arange(int(np.prod(shape))).view(shape)
    expected = [tensor[i][..., t:b, left:r] for i, (t, left, b, r) in enumerate(view.boxes.tolist())]
    assert torch.equal(crop_view(tensor, view), torch.stack(expected))


@settings(max_examples=40, deadline=None)
@given(views())
def test_cropping_commutes_for_image_and_mask_and_pasting_undoes_it(drawn):
    size, view = drawn
    mask = torch.randint(0, 256, (len(view.boxes), *size), generator=seeded(), dtype=torch.uint8)
    image = mask[:, None].repeat(1, 3, 1, 1)
    assert torch.equal(crop_view(image, view)[:, 1], crop_view(mask, view))
    pasted = paste_view(crop_view(mask, view), view, size, 255)
    inside = paste_view(torch.ones(len(mask), *view.size, dtype=torch.bool), view, size, False)
    assert inside.sum() == len(mask) * view.size[0] * view.size[1]
    assert torch.equal(pasted, torch.where(inside, mask, 255))


@settings(max_examples=40, deadline=None)
@given(views())
def test_boxes_lie_in_the_crop_and_have_the_patch_size(drawn):
    (height, width), view = drawn
    top, left, bottom, right = view.boxes.unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= height).all() and (right <= width).all()
    assert ((bottom - top) == view.size[0]).all() and ((right - left) == view.size[1]).all()


def test_a_crop_equal_to_the_image_is_the_image():
    view = sample_local_view(2, (5, 7), (5, 7), 1.0, 1.0, seeded())
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    assert torch.equal(crop_view(images, view), images)
    assert sample_local_view(2, (5, 7), (5, 7), 1.0, 1.0, seeded(), official=True).boxes.tolist() == [[0, 0, 5, 7]] * 2


def test_crop_passes_gradients_to_the_patch_only():
    view = LocalView(torch.tensor([[1, 0, 3, 2]]), 1.0)
    images = torch.zeros(1, 4, 3, requires_grad=True)
    crop_view(images, view).sum().backward()
    assert images.grad[0].tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_every_position_is_drawn_and_images_have_their_own_boxes():
    generator = seeded()
    tops, lefts, own = set(), set(), 0
    for _ in range(60):
        view = sample_local_view(4, (6, 5), (3, 4), 1.0, 1.0, generator)
        tops |= set(view.boxes[:, 0].tolist())
        lefts |= set(view.boxes[:, 1].tolist())
        own += len(view.boxes.unique(dim=0)) > 1
    assert tops == {0, 1, 2, 3} and lefts == {0, 1} and own > 50


def test_official_views_share_one_box_and_never_reach_the_last_position():
    generator, tops = seeded(), set()
    for _ in range(60):
        view = sample_local_view(4, (6, 5), (3, 4), 1.0, 1.0, generator, official=True)
        assert len(view.boxes.unique(dim=0)) == 1
        tops.add(int(view.boxes[0, 0]))
    assert tops == {0, 1, 2}


@pytest.mark.parametrize("patch", [(31, 26), (37, 53), (30, 53)])
def test_official_draws_follow_the_official_order(patch):
    crop, rate, offset = (37, 53), 2.0, 0.5
    for seed in range(20):
        found, generator = sample_local_view(4, crop, patch, rate, offset, seeded(seed), official=True), seeded(seed)
        # Row, column, factor; nothing is drawn where the patch has the crop's height or width.
        top = 0 if crop[0] == patch[0] else int(torch.randint(0, crop[0] - patch[0], (), generator=generator))
        left = 0 if crop[1] == patch[1] else int(torch.randint(0, crop[1] - patch[1], (), generator=generator))
        factor = rate * torch.rand((), generator=generator) + offset
        assert found.boxes.tolist() == [[top, left, top + patch[0], left + patch[1]]] * 4
        enlarged = zoom(torch.zeros(1, 3, *patch), found.scale, found.official)
        assert enlarged.shape[-2:] == (int(patch[0] * factor), int(patch[1] * factor))


def test_the_same_generator_state_gives_the_same_view_and_the_scale_is_uniform():
    first, second = (sample_local_view(3, (20, 30), (4, 5), 2.0, 0.5, seeded(7)) for _ in range(2))
    assert torch.equal(first.boxes, second.boxes) and first.scale == second.scale
    generator = seeded()
    scales = [sample_local_view(1, (4, 4), (2, 2), 2.0, 0.5, generator).scale for _ in range(2000)]
    assert min(scales) >= 0.5 and max(scales) <= 2.5
    assert np.allclose(np.quantile(scales, [0.25, 0.5, 0.75]), [1.0, 1.5, 2.0], atol=0.08)


@pytest.mark.parametrize(("patch", "rate", "offset"), [((9, 4), 1, 1), ((4, 9), 1, 1), ((4, 4), 1, 0), ((4, 4), -1, 1)])
def test_wrong_settings_are_refused(patch, rate, offset):
    with pytest.raises(CarbError, match="patch"):
        sample_local_view(1, (8, 8), patch, rate, offset, seeded())


def test_views_of_another_batch_or_image_are_refused():
    view = LocalView(torch.tensor([[0, 0, 3, 3]]), 1.0)
    with pytest.raises(ValueError, match="boxes"):
        crop_view(torch.zeros(2, 5, 5), view)
    with pytest.raises(ValueError, match="reaches out"):
        crop_view(torch.zeros(1, 5, 2), view)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.37, 2.0])
def test_zoom_keeps_bytes_and_follows_the_bilinear_formula(scale):
    images = torch.randint(0, 256, (2, 3, 7, 5), generator=seeded(), dtype=torch.uint8)
    zoomed = zoom(images, scale)
    assert zoomed.dtype == torch.uint8 and zoomed.shape[-2:] == (round(7 * scale), round(5 * scale))
    height, width = zoomed.shape[-2:]
    for row, column in [(0, 0), (height - 1, width - 1), (height // 2, width // 3)]:
        y = min(max((row + 0.5) * 7 / height - 0.5, 0), 6)
        x = min(max((column + 0.5) * 5 / width - 0.5, 0), 4)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, 6), min(x0 + 1, 4)
        image = images.double()
        upper = image[..., y0, x0] * (1 - (x - x0)) + image[..., y0, x1] * (x - x0)
        lower = image[..., y1, x0] * (1 - (x - x0)) + image[..., y1, x1] * (x - x0)
        expected = upper * (1 - (y - y0)) + lower * (y - y0)
        assert (zoomed[..., row, column] - expected).abs().max() < 0.51
    assert zoom(images.float(), scale).dtype == torch.float32


def test_a_tiny_scale_leaves_at_least_one_pixel():
    assert zoom(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 0.01).shape[-2:] == (1, 1)


def test_the_local_mask_comes_from_the_zoomed_patch_at_its_own_size():
    images = torch.randint(0, 256, (2, 3, 12, 16), generator=seeded(), dtype=torch.uint8)
    labels = torch.tensor([[True, False], [True, True]])
    view = sample_local_view(2, (12, 16), (4, 6), 1.0, 1.5, seeded(3))
    seen = []

    def masker(pixels, present, size):
        seen.append((pixels, present, size))
        return torch.zeros(len(pixels), *size, dtype=torch.uint8)

    mask = local_pseudo_mask(masker, images, labels, view)
    (pixels, present, size), *more = seen
    assert not more, "one CLIP call for the batch"
    assert mask.shape == (2, 4, 6) and size == (4, 6) and present is labels
    assert torch.equal(pixels, zoom(crop_view(images, view), view.scale))
    assert pixels.shape[-2:] == (round(4 * view.scale), round(6 * view.scale))
