"""The segmentation network: backbone of stride 8, DeepLabV2's ASPP head, text embeddings as classifier (METHOD.md, 3).

Logits are inner products of the head's features with the frozen text embeddings, without a bias and without
normalising the features; so the head has as many channels as the text embeddings have dimensions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed.nn.functional
import torch.nn.functional as F
import torchvision.models as zoo
from safetensors import SafetensorError
from torch import Tensor, nn

from carblib.base.errors import CarbError
from carblib.base.files import load_torch, state_dict_of
from carblib.params import Params, resolve
from carblib.transforms import IMAGENET_MEAN, IMAGENET_STD

SMALL_BACKBONE = Path(__file__).parent / "assets" / "small_backbone.safetensors"
STRIDE = 8

BACKBONES = ("resnet50_v1c", "resnet101_v1c", "resnet50", "resnet101", "mobilenet_v2", "small")
# torchvision's first ImageNet recipe: the weights that published segmentation results started from.
DOWNLOADS = {
    "resnet50": zoo.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": zoo.ResNet101_Weights.IMAGENET1K_V1,
    "mobilenet_v2": zoo.MobileNet_V2_Weights.IMAGENET1K_V1,
}


def normalise(images: Tensor, mean: Tensor = IMAGENET_MEAN, std: Tensor = IMAGENET_STD) -> Tensor:
    """Return (B, 3, H, W) uint8 RGB as float32 of ImageNet's mean and standard deviation; mean, std: (3,) of 0–1."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


# --- backbones: (B, 3, H, W) normalised -> (B, channels, ceil(H / 8), ceil(W / 8)) ----------------------------------


def resnet_backbone(depth: int, deep_stem: bool) -> nn.Sequential:
    """Return a dilated ResNet of depth 50 or 101, 2048 channels; the first block of a stage has half its dilation.

    deep_stem: v1c, three 3×3 convolutions in place of the 7×7 one. Keys are torchvision's, with mmsegmentation's
    `stem.*` for the deep stem.
    """
    build = {50: zoo.resnet50, 101: zoo.resnet101}[depth]
    net = build(weights=None, replace_stride_with_dilation=[False, True, True])
    stem = {"stem": _deep_stem()} if deep_stem else {"conv1": net.conv1, "bn1": net.bn1, "relu": net.relu}
    stages = {name: getattr(net, name) for name in ("maxpool", "layer1", "layer2", "layer3", "layer4")}
    backbone = nn.Sequential(OrderedDict(stem | stages))
    backbone.channels = 2048
    return backbone


def _deep_stem() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside, outside, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
        convolution = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class MobileNet(nn.Module):
    """MobileNetV2 up to its 96-channel stage, dilated to stride 8, joined with the 32-channel stage that has stride 8.

    The later stages are left out: frozen, on CamVid (true masks, 300 iterations, one seed) a head on their 320 channels
    reached 38 % mIoU, on the 96 channels 39 % in under half the time, and 42 % with the 32 finer ones joined.
    Keys are torchvision's `features.*`.
    width: torchvision's `width_mult`; the channels named above are those of width 1.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.features = zoo.mobilenet_v2(weights=None, width_mult=width).features[:14]
        self.channels = self.features[6].out_channels + self.features[13].out_channels
        for layer in self.features[7].modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
        for block in self.features[8:]:
            for layer in block.modules():
                if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                    layer.dilation = layer.padding = (2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Run on normalised images (B, 3, H, W)."""
        fine = self.features[:7](x)
        return torch.cat([fine, self.features[7:](fine)], dim=1)


def small_backbone() -> MobileNet:
    """Return the architecture of the embedded small backbone, untrained: half of MobileNetV2's width."""
    return MobileNet(width=0.5)


def _backbone(name: str) -> nn.Module:
    if name == "small":
        return small_backbone()
    if name == "mobilenet_v2":
        return MobileNet()
    return resnet_backbone(101 if "101" in name else 50, deep_stem=name.endswith("v1c"))


# --- weights ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyReport:
    """What became of the keys of a weights file: used, in the file but unused, and missing from it."""

    used: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.used)} keys used, {len(self.unused)} unused, {len(self.missing)} missing"


def compare_keys(module: nn.Module, keys: Collection[str]) -> KeyReport:
    """Report which of a file's keys a module would use. BatchNorm's batch counters may be missing: none are needed."""
    wanted = module.state_dict().keys()
    return KeyReport(
        used=tuple(key for key in keys if key in wanted),
        unused=tuple(key for key in keys if key not in wanted),
        missing=tuple(key for key in wanted if key not in keys and not key.endswith("num_batches_tracked")),
    )


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str, spare: Sequence[str] = ()) -> KeyReport:
    """Load weights into a module, all or nothing, and report their keys.

    spare: beginnings of keys that may stay unused. Raises CarbError naming `source` where a key is missing, unused
    without leave, of another shape, or not finite.
    """
    report = compare_keys(module, weights.keys())
    stray = [key for key in report.unused if not key.startswith(tuple(spare))]
    own = module.state_dict()
    for problem, keys in (
        ("weights of another model: it lacks", report.missing),
        ("weights of another model: no place for", stray),
        ("not a tensor:", [key for key in report.used if not isinstance(weights[key], Tensor)]),
    ):
        if keys:
            more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
            raise CarbError(f"{source}: {problem} {', '.join(keys[:2])}{more} ({report}); choose matching weights")
    for key in report.used:
        if weights[key].shape != own[key].shape:
            found, expected = tuple(weights[key].shape), tuple(own[key].shape)
            raise CarbError(f"{source}: {key} has shape {found}, expected {expected}; choose matching weights")
        if not weights[key].isfinite().all():
            raise CarbError(f"{source}: {key} holds values that are not finite; download or train it again")
    module.load_state_dict({key: weights[key] for key in report.used}, strict=False)
    return report


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file or a torch file of tensors, the latter also as {"state_dict": …}. Raises CarbError."""
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CarbError(f"{path}: no such file, or a damaged one ({error}); check backbone_weights") from error
    loaded = state_dict_of(load_torch(path))
    if not isinstance(loaded, dict) or not loaded:
        raise CarbError(f"{path}: holds no state dict (names with tensors); choose a file of weights")
    return loaded


def load_backbone_weights(backbone: nn.Module, name: str, source: str) -> KeyReport | None:
    """Load weights into the backbone `name`: "small", "torchvision" (its download), a file, or "random" (none).

    Every weight of the backbone must be in the file; only later stages and the classifier may stay unused. Raises
    CarbError.
    """
    if source == "random":
        return None
    spare = ("classifier.", "fc.", *(f"features.{i}." for i in range(14, 19)))
    if source == "torchvision":
        return load_weights(backbone, _download(name), f"torchvision's {name}", spare)
    path = backbone_file(source)
    return load_weights(backbone, read_weights(path), str(path), spare)


def backbone_file(source: str) -> Path:
    """Return the file that `backbone_weights` names; there is none of "torchvision" and "random"."""
    return SMALL_BACKBONE if source == "small" else resolve(source)


def _download(name: str) -> Mapping[str, Tensor]:
    if name not in DOWNLOADS:
        raise CarbError(
            f"backbone_weights: torchvision has none for {name}, only for {', '.join(DOWNLOADS)}; "
            "give a file, or random to train from scratch"
        )
    try:
        return DOWNLOADS[name].get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong checksum is a RuntimeError
        raise CarbError(
            f"backbone_weights: {DOWNLOADS[name].url} could not be fetched ({error}); "
            "fetch it by hand and give the file"
        ) from error


# --- head and network ------------------------------------------------------------------------------------------------


class ASPP(nn.Module):
    """DeepLabV2's head: parallel dilated 3×3 convolutions, each with BatchNorm and ReLU, summed."""

    def __init__(self, channels: int, dimensions: int, dilations: Sequence[int]):
        super().__init__()
        self.aspp_modules = nn.ModuleList()
        for dilation in dilations:
            convolution = nn.Conv2d(channels, dimensions, 3, padding=dilation, dilation=dilation, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers = {"conv": convolution, "bn": nn.BatchNorm2d(dimensions), "relu": nn.ReLU(inplace=True)}
            self.aspp_modules.append(nn.Sequential(OrderedDict(layers)))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, F, h, w) to (B, D, h, w)."""
        return sum(branch(features) for branch in self.aspp_modules)


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose batch is that of all processes: torch's SyncBatchNorm, which has no CPU, written plainly."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, F, h, w) by the statistics of every process's batch, differentiably."""
        if not self.training or not torch.distributed.is_initialized():
            return super().forward(features)
        values = features.double()
        ones = torch.ones_like(values[:1, :, :1, :1]) * values[:, 0].numel()
        sums = torch.stack([part.sum((0, 2, 3)) for part in (ones, values, values.square())])
        count, total, squares = torch.distributed.nn.functional.all_reduce(sums)
        mean, variance = total / count, squares / count - (total / count).square()
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        scale, shift = scale.to(features)[:, None, None], (self.bias - mean * scale).to(features)[:, None, None]
        return features * scale + shift


def share_batch_statistics(network: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm of a network take its statistics over the batches of all processes (`sync_bn`)."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm  # the same state, another forward
    return network


class SegmentationNetwork(nn.Module):
    """Backbone, ASPP head and text embeddings (C, D): uint8 images -> logits at stride 8 / input_scale.

    frozen: the backbone is not trained, keeps its BatchNorm statistics and has no gradients.
    input_scale: images are enlarged by 1, 2, 4 or 8 for the backbone; ours, for images whose objects are few pixels
    wide (1 = the paper).
    """

    text: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, text: Tensor, dilations: Sequence[int], frozen: bool = False, input_scale: int = 1
    ):
        super().__init__()
        self.backbone = backbone
        self.head = ASPP(backbone.channels, text.shape[1], dilations)
        self.register_buffer("text", text.detach().float().cpu().clone())
        self.register_buffer("mean", IMAGENET_MEAN.clone(), persistent=False)
        self.register_buffer("std", IMAGENET_STD.clone(), persistent=False)
        self.stride = STRIDE // input_scale
        self.frozen, self.input_scale = frozen, input_scale
        if frozen:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """Switch to training or evaluation; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return features (B, F, ceil(H / stride), ceil(W / stride)) of images (B, 3, H, W) uint8 RGB."""
        pixels = normalise(images, self.mean, self.std)
        if self.input_scale > 1:
            pixels = F.interpolate(pixels, scale_factor=self.input_scale, mode="bilinear", align_corners=False)
        return self.backbone(pixels.contiguous(memory_format=torch.channels_last))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (B, C, h, w) of backbone features (B, F, h, w)."""
        dense = self.head(features.contiguous(memory_format=torch.channels_last))
        return F.conv2d(dense, self.text[:, :, None, None])

    def forward(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Return logits (B, C, ceil(H / stride), ceil(W / stride)) of images (B, 3, H, W) uint8 RGB.

        features: what `features` gives of them, where it is kept.
        """
        return self.classify(self.features(images) if features is None else features)


def build_network(params: Params, text: Tensor) -> SegmentationNetwork:
    """Return the network the parameters describe, with its backbone's weights; text: (C, D), D the head's channels.

    Raises CarbError for weights that are missing or do not fit.
    """
    backbone = _backbone(params.backbone)
    load_backbone_weights(backbone, params.backbone, params.backbone_weights)
    network = SegmentationNetwork(backbone, text, params.aspp_dilations, params.freeze_backbone, params.input_scale)
    # Convolutions on a CPU, and mixed precision on a GPU, are up to twice as fast in this memory format.
    return network.to(memory_format=torch.channels_last)
