"""The network: shapes, what dilation must preserve, frozen backbones, and weights that fit or are refused."""

import os
from pathlib import Path
from typing import get_args
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from places import SHARED
from small import small_params
from torch import nn

from carblib.base.errors import CarbError
from carblib.network import (
    ASPP,
    BACKBONES,
    SMALL_BACKBONE,
    MobileNet,
    SegmentationNetwork,
    build_network,
    load_backbone_weights,
    load_weights,
    normalise,
    resnet_backbone,
)
from carblib.params import Params

RANDOM = {
    "backbone_weights": "random",
    "freeze_backbone": False,
    "cache_features": False,
    "aspp_dilations": [1, 2],
    "input_scale": 1,
}


def text(classes: int = 5, dimensions: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(classes, dimensions, generator=torch.Generator().manual_seed(1)), dim=1)


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def network(name: str = "mobilenet_v2", **changes) -> SegmentationNetwork:
    torch.manual_seed(0)
    return build_network(small_params(backbone=name, **(RANDOM | changes)), text())


def randomise(module: nn.Module) -> nn.Module:
    """Give BatchNorm statistics and weights other than 0 and 1, which would hide what is forgotten."""
    generator = torch.Generator().manual_seed(3)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low, high in (
                (layer.weight.data, 0.7, 1.3),
                (layer.bias.data, -0.2, 0.2),
                (layer.running_mean, -0.2, 0.2),
                (layer.running_var, 0.7, 1.3),
            ):
                values.uniform_(low, high, generator=generator)
    return module.eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_forward_and_backward_of_every_backbone_at_an_odd_size(name):
    net, images = network(name), pixels(2, 3, 37, 51)
    logits = net(images)
    assert logits.shape == (2, 5, 5, 7) and logits.dtype == torch.float32 and net.stride == 8
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert sum(bool(p.grad.any()) for p in net.parameters()) > 0.9 * len(list(net.parameters()))


@pytest.mark.parametrize("name", ["resnet50_v1c", "mobilenet_v2"])
def test_a_saved_network_gives_the_same_logits(name, tmp_path: Path):
    net, images = network(name), pixels(1, 3, 37, 51)
    torch.save(randomise(net).state_dict(), tmp_path / "network.pt")
    other = build_network(small_params(backbone=name, **RANDOM), torch.zeros(5, 6))
    other.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True))
    assert torch.equal(other.eval()(images), net(images))


def test_an_enlarged_input_has_a_finer_grid():
    net = network(input_scale=2).eval()
    assert net.stride == 4 and net(pixels(1, 3, 33, 51)).shape == (1, 5, 9, 13)
    doubled = F.interpolate(normalise(pixels(1, 3, 33, 51)), (66, 102), mode="bilinear")
    torch.testing.assert_close(net.features(pixels(1, 3, 33, 51)), net.backbone(doubled), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (9, 25), (64, 40), (3, 1)])
def test_features_have_stride_8_whatever_the_size(size):
    net = network().eval()
    features = net.features(pixels(1, 3, *size))
    assert features.shape == (1, net.backbone.channels, -(-size[0] // 8), -(-size[1] // 8))
    assert torch.equal(net.classify(features), net(pixels(1, 3, *size)))


def test_normalise_takes_bytes_to_imagenet_statistics():
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 / 255 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (255 / 255 - 0.406) / 0.225]
    assert normalise(image).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
@torch.no_grad()
def test_dilation_only_refines_the_grid_of_the_pretrained_network(name):
    """A trous: every second (fourth) feature of the dilated network is the undilated one's, weights unchanged."""
    torch.manual_seed(0)
    images = normalise(pixels(1, 3, 61, 90))
    if name == "resnet50":
        plain = randomise(torchvision.models.resnet50(weights=None))
        dilated = resnet_backbone(50, deep_stem=False)
        stages = [plain.conv1, plain.bn1, plain.relu, plain.maxpool, plain.layer1, plain.layer2]
        expected = nn.Sequential(*stages, plain.layer3, plain.layer4)(images)
        step, part = 4, slice(None)
    else:
        plain = randomise(torchvision.models.mobilenet_v2(weights=None))
        dilated = MobileNet()
        expected = plain.features[:14](images)
        step, part = 2, slice(32, None)
    load_weights(dilated, plain.state_dict(), "plain", ["fc.", "classifier.", "features.1"])
    found = dilated.eval()(images)
    assert found.shape[1] == dilated.channels
    limit = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(found[:, part, ::step, ::step], expected, rtol=1e-4, atol=limit)
    if name == "mobilenet_v2":
        torch.testing.assert_close(found[:, :32], plain.features[:7](images))


@pytest.mark.parametrize("depth", [50, 101])
def test_v1c_has_a_deep_stem_and_contracted_dilations(depth):
    backbone = resnet_backbone(depth, deep_stem=True)
    stem = [layer for layer in backbone.stem if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size, c.stride) for c in stem] == [
        (3, 32, (3, 3), (2, 2)),
        (32, 32, (3, 3), (1, 1)),
        (32, 64, (3, 3), (1, 1)),
    ]
    stages = [backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
    assert [len(stage) for stage in stages] == [3, 4, {50: 6, 101: 23}[depth], 3]
    assert [stage[0].conv2.dilation[0] for stage in stages] == [1, 1, 1, 2]
    assert [{block.conv2.dilation[0] for block in stage[1:]} for stage in stages] == [{1}, {1}, {2}, {4}]
    assert [stage[0].conv2.stride[0] for stage in stages] == [1, 2, 1, 1]


def test_logits_are_inner_products_of_summed_branches_with_the_text():
    torch.manual_seed(0)
    head = randomise(ASPP(4, 6, (1, 3)))
    features, expected = torch.randn(2, 4, 5, 7), 0
    for branch, dilation in zip(head.aspp_modules, (1, 3), strict=True):
        x = F.conv2d(features, branch.conv.weight, padding=dilation, dilation=dilation)
        shape = (1, -1, 1, 1)
        x = (x - branch.bn.running_mean.view(shape)) / (branch.bn.running_var.view(shape) + branch.bn.eps).sqrt()
        expected = expected + (x * branch.bn.weight.view(shape) + branch.bn.bias.view(shape)).clamp(min=0)
    torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-5)
    net = network().eval()
    features = torch.randn(1, net.backbone.channels, 4, 5)
    expected = torch.einsum("bdhw,cd->bchw", net.head(features), net.text)
    torch.testing.assert_close(net.classify(features), expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_backbone_neither_learns_nor_moves_its_statistics():
    net = network(freeze_backbone=True).train()
    before = {key: value.clone() for key, value in net.backbone.state_dict().items()}
    features = net.features(pixels(2, 3, 32, 32))
    assert not features.requires_grad
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net(pixels(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in net.backbone.state_dict().items())
    assert net.head.training and not net.backbone.training
    assert all(p.grad is not None for p in net.head.parameters())
    free = network().train()
    free(pixels(2, 3, 32, 32))
    moved = free.backbone.state_dict()
    assert not torch.equal(moved["features.0.1.running_mean"], before["features.0.1.running_mean"])


def test_text_is_a_buffer_and_normalisation_is_not_in_the_state_dict():
    net = network()
    assert "text" in net.state_dict() and not {"mean", "std"} & net.state_dict().keys()
    assert all(p is not net.text for p in net.parameters())


# --- weights ---------------------------------------------------------------------------------------------------------


def full_mobilenet() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return torchvision.models.mobilenet_v2(weights=None).state_dict()


@pytest.mark.parametrize("form", ["plain", "nested", "safetensors", "half"])
def test_a_file_of_weights_is_read_in_every_form(tmp_path: Path, form):
    weights = full_mobilenet()
    path = tmp_path / ("w.safetensors" if form in ("safetensors", "half") else "w.pth")
    if form == "half":
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    if form in ("safetensors", "half"):
        safetensors.torch.save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "meta": {}} if form == "nested" else weights, path)
    backbone = MobileNet()
    report = load_backbone_weights(backbone, "mobilenet_v2", str(path))
    own = backbone.state_dict()
    assert set(report.used) == set(own) and not report.missing
    assert all(key.startswith(("classifier.", "features.1")) for key in report.unused) and report.unused
    assert all(torch.equal(own[key], weights[key].to(own[key].dtype)) for key in report.used)


def broken(weights: dict[str, torch.Tensor], how: str) -> object:
    key = "features.3.conv.0.0.weight"
    if how == "missing":
        return {name: value for name, value in weights.items() if name != key}
    if how == "stray":
        return weights | {"layer1.0.weight": torch.zeros(1)}
    if how == "shape":
        return weights | {key: torch.zeros(3, 3)}
    if how == "finite":
        return weights | {key: weights[key] * float("nan")}
    if how == "no tensor":
        return weights | {key: "text"}
    return {"resnet": torchvision.models.resnet18(weights=None).state_dict(), "list": [1, 2], "empty": {}}[how]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "lacks features.3.conv.0.0.weight"),
        ("stray", "no place for layer1.0.weight"),
        ("shape", "shape (3, 3)"),
        ("finite", "not finite"),
        ("no tensor", "not a tensor"),
        ("resnet", "another model"),
        ("list", "no state dict"),
        ("empty", "no state dict"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(tmp_path: Path, how, says):
    path = tmp_path / "weights.pth"
    torch.save(broken(full_mobilenet(), how), path)
    backbone = MobileNet()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(CarbError) as error:
        load_backbone_weights(backbone, "mobilenet_v2", str(path))
    assert says in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_truncated_and_missing_files_are_refused(tmp_path: Path, name):
    path = tmp_path / name
    with pytest.raises(CarbError, match="no such file"):
        load_backbone_weights(MobileNet(), "mobilenet_v2", str(path))
    weights = full_mobilenet()
    safetensors.torch.save_file(weights, path) if name.endswith("safetensors") else torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(CarbError, match=name):
        load_backbone_weights(MobileNet(), "mobilenet_v2", str(path))


def test_a_failed_download_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(CarbError, match=r"mobilenet_v2.*could not be fetched.*give the file"):
        load_backbone_weights(MobileNet(), "mobilenet_v2", "torchvision")
    with pytest.raises(CarbError, match="torchvision has none for resnet50_v1c"):
        load_backbone_weights(MobileNet(), "resnet50_v1c", "torchvision")


def test_the_embedded_backbone_loads():
    if not SMALL_BACKBONE.is_file():
        pytest.skip("the embedded backbone has not been trained yet: carb pretrain backbone")
    net = build_network(small_params(backbone="small", backbone_weights="small", input_scale=1), text()).eval()
    assert net(pixels(1, 3, 40, 48)).isfinite().all()


def test_the_real_imagenet_mobilenet_loads():
    path = Path(os.environ.get("CARB_BACKBONE", SHARED / "weights" / "mobilenet_v2_imagenet_features.pth"))
    if not path.is_file():
        pytest.skip("no real MobileNetV2 weights: set CARB_BACKBONE to torchvision's mobilenet_v2 .pth")
    backbone = MobileNet()
    report = load_backbone_weights(backbone, "mobilenet_v2", str(path))
    assert not report.missing
    features = backbone.eval()(normalise(pixels(1, 3, 64, 64)))
    assert features.isfinite().all() and features.std() > 0.01


def test_every_backbone_can_be_asked_for():
    assert get_args(Params.model_fields["backbone"].annotation) == BACKBONES
