"""Official checkpoints: read, reported, refused, written back; logits against a plain functional network."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import carb
from small import small_params
from test_network import pixels, randomise

from carblib.base.errors import CarbError
from carblib.network import SegmentationNetwork, resnet_backbone
from carblib.params import Params
from carblib.training import official as checkpoints
from carblib.training.official import (
    empty_network,
    from_official,
    load_official,
    read_official,
    report_official,
    to_official,
    write_official,
)

CLASSES, DIMENSIONS = 11, 8


def params(depth: int = 50, **changes) -> Params:
    values = {"backbone": f"resnet{depth}_v1c", "backbone_weights": "random", "freeze_backbone": False}
    official = {"cache_features": False, "input_scale": 1, "aspp_dilations": [6, 12, 18, 24]}
    return small_params(**values, **official, **changes)


def official_weights(depth: int = 50) -> dict[str, torch.Tensor]:
    """An official state dict with random values; keys and shapes as mmsegmentation names them, CLIP's included."""
    generator = torch.Generator().manual_seed(depth)
    weights: dict[str, torch.Tensor] = {}

    def convolution(name, outside, inside, size):
        scale = (2 / (inside * size * size)) ** 0.5
        weights[f"{name}.weight"] = scale * torch.randn(outside, inside, size, size, generator=generator)

    def norm(name, channels):
        for part, low, high in (
            ("weight", 0.5, 1.0),
            ("bias", -0.2, 0.2),
            ("running_mean", -0.2, 0.2),
            ("running_var", 0.7, 1.3),
        ):
            weights[f"{name}.{part}"] = low + (high - low) * torch.rand(channels, generator=generator)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    for i, (inside, outside) in enumerate([(3, 32), (32, 32), (32, 64)]):
        convolution(f"backbone.stem.{3 * i}", outside, inside, 3)
        norm(f"backbone.stem.{3 * i + 1}", outside)
    inside = 64
    for stage, blocks in enumerate([3, 4, {50: 6, 101: 23}[depth], 3]):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"backbone.layer{stage + 1}.{block}"
            for i, (a, b, size) in enumerate([(inside, width, 1), (width, width, 3), (width, 4 * width, 1)], 1):
                convolution(f"{name}.conv{i}", b, a, size)
                norm(f"{name}.bn{i}", b)
            if block == 0:
                convolution(f"{name}.downsample.0", 4 * width, inside, 1)
                norm(f"{name}.downsample.1", 4 * width)
            inside = 4 * width
    for i in range(4):
        convolution(f"decode_head.decode_module.aspp_modules.{i}.conv", DIMENSIONS, 2048, 3)
        norm(f"decode_head.decode_module.aspp_modules.{i}.bn", DIMENSIONS)
    weights["decode_head.text_embeddings"] = F.normalize(torch.randn(CLASSES, DIMENSIONS, generator=generator), dim=1)
    weights["decode_head._iter_counter"] = torch.tensor(30000)
    weights["decode_head.clip.cls_token"] = torch.randn(1, 1, 6, generator=generator)
    weights["decode_head.clip.layers.0.attn.attn.in_proj_weight"] = torch.randn(18, 6, generator=generator)
    weights["decode_head.proj.weight"] = torch.randn(DIMENSIONS, 6, 1, 1, generator=generator)
    return weights


def plain_logits(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The official network (METHOD.md, 3), function by function on its own key names."""

    def cbn(x, conv, bn, stride=1, dilation=1, relu=True):
        kernel = weights[f"{conv}.weight"]
        x = F.conv2d(x, kernel, None, stride, dilation * (kernel.shape[2] // 2), dilation)
        names = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *(weights[f"{bn}.{name}"] for name in names))
        return x.relu() if relu else x

    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    x = (images.float() - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    for i, stride in enumerate((2, 1, 1)):
        x = cbn(x, f"backbone.stem.{3 * i}", f"backbone.stem.{3 * i + 1}", stride)
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, (stride, dilation) in enumerate(zip((1, 2, 1, 1), (1, 1, 2, 4), strict=True), 1):
        block = 0
        while f"backbone.layer{stage}.{block}.conv1.weight" in weights:
            name, first = f"backbone.layer{stage}.{block}", block == 0
            y = cbn(x, f"{name}.conv1", f"{name}.bn1")
            contracted = max(dilation // 2, 1) if first else dilation
            y = cbn(y, f"{name}.conv2", f"{name}.bn2", stride if first else 1, contracted)
            y = cbn(y, f"{name}.conv3", f"{name}.bn3", relu=False)
            if first:
                x = cbn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride, relu=False)
            x, block = (x + y).relu(), block + 1
    head = "decode_head.decode_module.aspp_modules"
    x = sum(cbn(x, f"{head}.{i}.conv", f"{head}.{i}.bn", dilation=d) for i, d in enumerate((6, 12, 18, 24)))
    return torch.einsum("bdhw,cd->bchw", x, weights["decode_head.text_embeddings"])


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return official_weights()


@pytest.fixture(scope="module")
def official_file(tmp_path_factory, weights) -> Path:
    path = tmp_path_factory.mktemp("official") / "official.pth"
    meta = {"mmseg_version": "0.20.2", "config": "model = dict()", "CLASSES": ("sky",), "PALETTE": [[1, 2, 3]]}
    torch.save({"meta": meta, "state_dict": weights}, path)
    return path


@pytest.fixture(scope="module")
def network(official_file) -> SegmentationNetwork:
    return empty_network(read_official(official_file), params()).eval()


@pytest.mark.parametrize("depth", [50, 101])
def test_logits_equal_the_official_network_on_the_same_weights_and_pixels(tmp_path: Path, depth):
    path, weights = tmp_path / "official.pth", official_weights(depth)
    torch.save({"meta": {}, "state_dict": weights}, path)
    checkpoint = read_official(path)
    assert checkpoint.backbone == f"resnet{depth}_v1c"
    network = empty_network(checkpoint, params(depth)).eval()
    load_official(network, checkpoint)
    with torch.no_grad():
        for size in ((33, 50), (64, 72)):
            images = pixels(1, 3, *size)
            found, expected = network(images), plain_logits(weights, images)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_every_key_is_reported(official_file: Path, network):
    checkpoint = read_official(official_file)
    report = load_official(network, checkpoint)
    assert report == report_official(network, checkpoint)
    assert set(report.used) | set(report.unused) == set(checkpoint.weights) and not report.missing
    assert not set(report.used) & set(report.unused)
    assert sorted(report.unused) == [
        "decode_head._iter_counter",
        "decode_head.clip.cls_token",
        "decode_head.clip.layers.0.attn.attn.in_proj_weight",
        "decode_head.proj.weight",
    ]
    assert torch.equal(network.text, checkpoint.text)
    fewer = {key: value for key, value in checkpoint.weights.items() if not key.startswith("backbone.stem.3")}
    report = report_official(network, checkpoints.OfficialCheckpoint(official_file, fewer, "", checkpoint.text))
    assert report.missing == ("backbone.stem.3.weight",)


def test_names_are_translated_both_ways(weights):
    for key in weights:
        assert to_official(from_official(key)) == key
    assert from_official("decode_head.decode_module.aspp_modules.2.bn.bias") == "head.aspp_modules.2.bn.bias"


def test_written_and_read_back_logits_are_equal(tmp_path: Path, weights):
    torch.manual_seed(0)
    network = SegmentationNetwork(resnet_backbone(50, True), torch.randn(CLASSES, DIMENSIONS), (6, 12, 18, 24))
    randomise(network)
    path = tmp_path / "written.pth"
    write_official(path, network, params().class_set)
    loaded = torch.load(path, weights_only=True)
    ours = {key for key in weights if "clip" not in key and "proj" not in key and "_iter" not in key}
    assert loaded.keys() == {"meta", "state_dict"} and loaded["state_dict"].keys() == ours
    assert loaded["meta"]["CLASSES"] == tuple(params().class_set.names)
    checkpoint = read_official(path)
    other = empty_network(checkpoint, params()).eval()
    report = load_official(other, checkpoint)
    assert not report.unused and not report.missing
    with torch.no_grad():
        assert torch.equal(other(pixels(1, 3, 40, 33)), network(pixels(1, 3, 40, 33)))


def test_only_v1c_networks_are_written(tmp_path: Path):
    network = SegmentationNetwork(resnet_backbone(50, False), torch.randn(CLASSES, DIMENSIONS), (6,))
    with pytest.raises(CarbError, match="v1c only"):
        write_official(tmp_path / "x.pth", network, params().class_set)
    assert not list(tmp_path.iterdir())


class Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("form", ["meta with scalars", "state dict", "module.", "module. alone"])
def test_official_checkpoints_as_they_are_passed_on(tmp_path: Path, weights, form):
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    meta = {"lr": np.float64(0.01), "iter": np.int64(30000), "best": {"mIoU": np.float32(0.5)}, "seed": np.uint8(3)}
    content = {
        "meta with scalars": {"meta": meta, "state_dict": weights},
        "state dict": weights,
        "module.": {"meta": {}, "state_dict": prefixed},
        "module. alone": prefixed,
    }[form]
    torch.save(content, tmp_path / "official.pth")
    assert read_official(tmp_path / "official.pth").weights.keys() == weights.keys()


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path):
    target, zipped, bare = tmp_path / "owned", tmp_path / "zipped.pth", tmp_path / "bare.pth"
    content = {"meta": Malicious(target), "state_dict": {"decode_head.text_embeddings": torch.zeros(2, 3)}}
    torch.save(content, zipped)
    with bare.open("wb") as file:
        pickle.dump(content["meta"], file, protocol=2)
    for path in (zipped, bare):
        with pytest.raises(CarbError, match=path.name):
            read_official(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1], "no official CARB checkpoint"),
        ({"state_dict": {"fc.weight": torch.zeros(2)}}, "no official CARB checkpoint"),
        ({"state_dict": {"decode_head.text_embeddings": torch.zeros(3)}}, "no official CARB checkpoint"),
        ({"decode_head.text_embeddings": torch.zeros(3, 4)}, "no ResNet-50 or -101 v1c"),
        ({"state_dict": {"decode_head.text_embeddings": torch.zeros(3, 4)}}, "no ResNet-50 or -101"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content, says):
    path = tmp_path / "wrong.pth"
    torch.save(content, path)
    with pytest.raises(CarbError) as error:
        read_official(path)
    assert says in str(error.value) and str(path) in str(error.value)


KERNEL = "decode_head.decode_module.aspp_modules.1.conv.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({KERNEL: None}, "lacks head.aspp_modules.1.conv.weight"),
        ({"auxiliary_head.conv.weight": torch.zeros(2)}, "no place for auxiliary_head.conv.weight"),
        ({KERNEL: torch.zeros(DIMENSIONS, 2048, 1, 1)}, "head.aspp_modules.1.conv.weight has shape"),
        ({KERNEL: torch.full((DIMENSIONS, 2048, 3, 3), torch.inf)}, "not finite"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(weights, network, change, says):
    wrong = {key: value for key, value in (weights | change).items() if value is not None}
    before = network.head.aspp_modules[1].conv.weight.clone()
    checkpoint = checkpoints.OfficialCheckpoint(Path("some.pth"), wrong, "resnet50_v1c", network.text)
    with pytest.raises(CarbError, match="some.pth") as error:
        load_official(network, checkpoint)
    assert says in str(error.value)
    assert torch.equal(network.head.aspp_modules[1].conv.weight, before)


def test_truncated_missing_and_mismatched_checkpoints_are_refused(tmp_path: Path, official_file: Path):
    with pytest.raises(CarbError, match="no such file"):
        read_official(tmp_path / "none.pth")
    short = tmp_path / "short.pth"
    short.write_bytes(official_file.read_bytes()[:1_000_000])
    with pytest.raises(CarbError, match="short.pth"):
        read_official(short)
    checkpoint = read_official(official_file)
    with pytest.raises(CarbError, match="made with resnet50_v1c, not with resnet101_v1c; set backbone"):
        empty_network(checkpoint, params(101))
    with pytest.raises(CarbError, match="made for 11 classes, not for the 19"):
        empty_network(checkpoint, params(classes="cityscapes"))


def test_a_key_of_another_shape_is_reported_and_nothing_written(tmp_path, weights, capsys):
    settings, path, kernel = tmp_path / "p.yaml", tmp_path / "other.pth", torch.zeros(DIMENSIONS, 2048, 1, 1)
    settings.write_text(params().to_yaml())
    arguments = ("checkpoints", "import", path, settings, "--output", tmp_path / "final.pt")
    torch.save({"meta": {}, "state_dict": weights | {KERNEL: kernel}}, path)
    with pytest.raises(CarbError, match="has shape"):
        carb(*arguments)
    listing = capsys.readouterr().out.splitlines()
    assert f"used    {KERNEL}" not in listing and f"unused  {KERNEL}" in listing and f"missing {KERNEL}" in listing
    assert f"{KERNEL} has shape (8, 2048, 1, 1), expected (8, 2048, 3, 3)" in listing
    assert any(line.endswith("5 unused, 1 missing") for line in listing)
    torch.save({"meta": {}, "state_dict": weights | {"auxiliary_head.conv.weight": torch.zeros(2)}}, path)
    with pytest.raises(CarbError, match="no place for auxiliary_head.conv.weight"):
        carb(*arguments)
    assert "unused  auxiliary_head.conv.weight" in capsys.readouterr().out
    assert not (tmp_path / "final.pt").exists()


def test_parameters_can_be_changed_on_the_command_line(tmp_path, official_file, monkeypatch, capsys):
    settings, final = tmp_path / "p.yaml", tmp_path / "runs/other/train/official/final.pt"
    settings.write_text(params(101).to_yaml())
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    change = ("-p", "backbone", "resnet50_v1c", "-p", "run", "other")
    assert carb("checkpoints", "import", official_file, settings, *change) == 0
    assert str(final) in capsys.readouterr().out and final.is_file()


def test_the_command_imports_reports_and_exports(tmp_path: Path, official_file: Path, capsys):
    settings, final, back = tmp_path / "p.yaml", tmp_path / "final.pt", tmp_path / "back.pth"
    settings.write_text(params().to_yaml())
    assert carb("checkpoints", "import", official_file, settings, "--output", final) == 0
    listing = capsys.readouterr().out
    assert "used    backbone.stem.0.weight" in listing and "unused  decode_head.proj.weight" in listing
    assert "4 unused, 0 missing" in listing and str(final) in listing
    assert carb("checkpoints", "export", final, back) == 0
    theirs, ours = (torch.load(path, weights_only=True)["state_dict"] for path in (official_file, back))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    with pytest.raises(CarbError, match="no checkpoint of carblib"):
        carb("checkpoints", "export", official_file, back)
