from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_params
from torch import nn

from carblib.infer import predict_mask, probabilities, window_logits
from carblib.params import Params
from carblib.transforms import load_sized

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


class Pointwise(nn.Module):
    """Logits of a pixel depend on that pixel alone, and are given at a stride."""

    def __init__(self, stride: int = 1, classes: int = 5):
        super().__init__()
        torch.manual_seed(0)
        self.stride, self.head, self.seen = stride, nn.Conv2d(3, classes, 1), []

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[:2] == (1, 3)
        self.seen.append(tuple(images.shape[-2:]))
        return self.head(images[..., :: self.stride, :: self.stride].float() / 255)


class Directed(Pointwise):
    """A network that treats left and right differently."""

    def forward(self, images):
        return super().forward(images) + torch.linspace(0, 3, images.shape[-1])


def params(**changed) -> Params:
    return small_params(image_size=(37, 53), crop=(37, 53), patch=(8, 8), cache_features=False, **changed)


@given(st.tuples(st.integers(3, 60), st.integers(3, 60)), st.tuples(st.integers(1, 30), st.integers(1, 30)))
@settings(max_examples=25, deadline=None)
def test_windows_equal_the_whole_for_a_pointwise_network(window, stride):
    network = Pointwise()
    stride = min(stride[0], window[0]), min(stride[1], window[1])
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
    with torch.inference_mode():
        torch.testing.assert_close(window_logits(network, pixels, window, stride), network(pixels))


def test_overlapping_windows_are_averaged():
    class Place(nn.Module):
        def forward(self, images):
            return images[:, :1].float().mean((2, 3), keepdim=True).expand(-1, 2, *images.shape[-2:])

    pixels = torch.arange(6, dtype=torch.uint8).view(1, 1, 1, 6).expand(1, 3, 2, 6)
    found = window_logits(Place(), pixels, (2, 4), (2, 2))  # windows 0–3 (mean 1.5) and 2–5 (mean 3.5)
    assert found[0, 1, 1].tolist() == [1.5, 1.5, 2.5, 2.5, 3.5, 3.5]


def test_the_mask_has_the_size_of_the_image_whatever_the_network_sees():
    network = Pointwise(stride=8)
    small = params().updated(image_size=(16, 24), crop=(16, 24))
    mask = predict_mask(network, IMAGE, small)
    assert mask.shape == (37, 53) and mask.dtype == np.uint8 and network.seen == [(16, 24)]
    logits = F.interpolate(network(load_sized(IMAGE, (16, 24))[None]), (37, 53), mode="bilinear", align_corners=False)
    assert np.array_equal(mask, logits[0].argmax(0).numpy())


def test_several_views_are_the_mean_of_their_probabilities():
    network, expected = Directed(), []
    for size in ((37, 53), (18, 26)):
        for flip in (False, True):
            pixels = load_sized(IMAGE, size)[None]
            logits = network(pixels.flip(-1)).flip(-1) if flip else network(pixels)
            expected.append(F.interpolate(logits, (37, 53), mode="bilinear", align_corners=False).softmax(1)[0])
    several = params(infer_scales=(1.0, 0.5), infer_flip=True)
    found = probabilities(network, IMAGE, several)
    torch.testing.assert_close(found, torch.stack(expected).mean(0).detach())
    torch.testing.assert_close(found.sum(0), torch.ones(37, 53))
    assert np.array_equal(predict_mask(network, IMAGE, several), found.argmax(0).numpy())
    one = probabilities(network, IMAGE, params())
    assert np.array_equal(predict_mask(network, IMAGE, params()), one.argmax(0).numpy())
    assert not torch.allclose(one, found, atol=0.01)


def test_flip_changes_nothing_for_a_pointwise_network_and_mirrors_with_the_image():
    flipped = params(infer_flip=True)
    torch.testing.assert_close(probabilities(Pointwise(), IMAGE, flipped), probabilities(Pointwise(), IMAGE, params()))
    mirrored = probabilities(Directed(), IMAGE[:, ::-1], flipped).flip(-1)
    torch.testing.assert_close(probabilities(Directed(), IMAGE, flipped), mirrored)


def test_sliding_windows_are_used_and_default_to_half_a_window():
    network = Pointwise()
    mask = predict_mask(network, IMAGE, params(infer_window=(37, 20)))
    assert network.seen == [(37, 20)] * 5  # at 0, 10, 20, 30, 33
    assert np.array_equal(mask, predict_mask(Pointwise(), IMAGE, params()))


def test_the_network_is_in_evaluation_mode_and_left_as_it_was():
    network = nn.Sequential(Pointwise(), nn.BatchNorm2d(5)).train()
    before = network[1].running_mean.clone()
    predict_mask(network, IMAGE, params())
    assert network.training and network[1].training and torch.equal(network[1].running_mean, before)


def test_precision_is_that_of_the_networks_products_and_the_probabilities_are_float32():
    network, kinds = Pointwise(), []
    network.head.register_forward_hook(lambda _, inputs, output: kinds.append(output.dtype))
    exact, rough = (probabilities(network, IMAGE, params(precision=own)) for own in ("32-true", "bf16-mixed"))
    assert kinds == [torch.float32, torch.bfloat16] and exact.dtype == rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.02)
    assert not torch.equal(rough, exact)
