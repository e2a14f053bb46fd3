"""The whole official training step, from pixels to gradients and λ, against the formulas written out plainly."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from plain_clip import normalised, plain_features
from small import small_params
from torch.utils._python_dispatch import TorchDispatchMode

from carblib import step
from carblib.data.batches import train_loader
from carblib.data.labels import training_labels
from carblib.data.readers import open_split
from carblib.params import Params
from carblib.scenes.folders import write_scenes
from carblib.training import loop as train
from carblib.training.state import bare
from carblib.transforms import IMAGENET_MEAN, IMAGENET_STD, distorted, mix_seed

SIZE, CROP, PATCH = (64, 128), (56, 96), (32, 24)
OFFICIAL = {
    "gate": "official", "clip_pixels": "official", "official_clip": True, "official_views": True,
    "official_loss": True, "path": "dual", "photometric": True, "resize_ratio": (0.5, 1.0),
}  # fmt: skip


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_clip_file: Path) -> Params:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    write_scenes(tmp_path / "data/scenes", "train", 3, 0, SIZE)
    return small_params(
        image_size=SIZE, crop=CROP, patch=PATCH, patch_rate=1.0, patch_offset=0.7, clip=str(random_clip_file),
        backbone_weights="random", freeze_backbone=False, cache_features=False, input_scale=1, aspp_dilations=(1, 2),
        lr=0.02, iterations=8, warmup=2, batch_size=1, val_every=0, device="cpu", seed=2, **OFFICIAL,
    )  # fmt: skip


def plain_mask(state: dict, text: torch.Tensor, pixels: torch.Tensor, labels: torch.Tensor, size) -> torch.Tensor:
    """CLIP's mask (1, H, W) of normalised pixels (3, h, w) as the official code makes it (METHOD.md, 2 and 7.4)."""
    height, width = (-(-side // 8) * 8 for side in pixels.shape[1:])
    padded = F.pad(pixels, (0, width - pixels.shape[2], 0, height - pixels.shape[1]))
    features = plain_features(state, padded, 8, 4, "value_path", 1e-6, F.gelu)
    scores = torch.einsum("dhw,cd->chw", features, text) * labels[0, :, None, None]
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False).argmax(1)


class PlainLoss:
    """Method, section 5, as written there: four means over regions, and queues of five that begin with zeros."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.consistent, self.noisy, self.weight = warmup, [0.0] * 5, [0.0] * 5, None

    def __call__(self, logits, masks, boxes, labels, iteration) -> torch.Tensor:
        losses = [
            F.cross_entropy(logits[:, :, t:b, le:r], m, reduction="none")
            for m, (t, le, b, r) in zip(masks, boxes, strict=True)
        ]
        if iteration < self.warmup:
            return losses[0].mean() + losses[1].mean()
        predicted = (logits * labels[:, :, None, None]).argmax(1)
        same = [m == predicted[:, t:b, le:r] for m, (t, le, b, r) in zip(masks, boxes, strict=True)]
        # An empty region makes the formula NaN. With this seed none is near it, however many threads add up floats.
        assert all(50 < s.sum() < s.numel() - 50 for s in same)
        self.consistent = [*self.consistent[1:], losses[0][same[0]].mean().item()]
        self.noisy = [*self.noisy[1:], losses[0][~same[0]].mean().item()]
        self.weight = (sum(self.consistent) / 5) / (sum(self.noisy) / 5)
        return sum(loss[s].mean() + self.weight * loss[~s].mean() for loss, s in zip(losses, same, strict=True))


def plain_view(params: Params, iteration: int) -> tuple[tuple[int, int, int, int], float]:
    """One box and one zoom, drawn in the official order from the iteration's generator; the last place never."""
    draws = torch.Generator().manual_seed(mix_seed(params.seed, 2, iteration))
    top = int(torch.randint(CROP[0] - PATCH[0], (1,), generator=draws))
    left = int(torch.randint(CROP[1] - PATCH[1], (1,), generator=draws))
    zoom = float(params.patch_rate * torch.rand((), generator=draws) + params.patch_offset)
    return (top, left, top + PATCH[0], left + PATCH[1]), zoom


def test_masks_losses_lambda_and_gradients_equal_the_formulas(params: Params, monkeypatch) -> None:
    params, logits = params.variant("paper"), []

    def kept(training: step.Training, batch: dict) -> torch.Tensor:
        logits.append(crop_logits(training, batch))
        logits[-1].retain_grad()
        return logits[-1]

    crop_logits = step.crop_logits
    monkeypatch.setattr(step, "crop_logits", kept)
    split = open_split(params, "train")
    loader = train_loader(params, split, training_labels(params, split))
    training = train.assemble(params, train.share(params))
    training.network.train()
    masker = training.masker
    state, text = masker.clip.clip.state_dict(), masker.text.mean_per_class
    plain, padded, weights = PlainLoss(params.warmup), 0, []
    for iteration, batch in zip(range(6), loader, strict=False):
        parts = step.step(training, batch)
        rate = training.optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(1e-4 + (0.02 - 1e-4) * (1 - iteration / 8) ** 0.9)

        box, zoom = plain_view(params, iteration)
        pixels = normalised(batch["image"][0], IMAGENET_MEAN, IMAGENET_STD)
        patch = pixels[:, box[0] : box[2], box[1] : box[3]]
        size = [int(side * zoom) for side in PATCH]
        near = F.interpolate(patch[None], size=size, mode="bilinear", align_corners=False)[0]
        labels = batch["labels"]
        masks = [plain_mask(state, text, pixels, labels, CROP), plain_mask(state, text, near, labels, PATCH)]
        low = logits[-1].detach().clone().requires_grad_()
        full = F.interpolate(low, size=CROP, mode="bilinear", align_corners=False)
        loss = plain(full, masks, [(0, 0, *CROP), box], labels, iteration)
        loss.backward()
        torch.testing.assert_close(parts.total.detach(), loss.detach(), rtol=1e-4, atol=0)
        torch.testing.assert_close(logits[-1].grad, low.grad, rtol=1e-4, atol=1e-4 * float(low.grad.abs().max()))
        if iteration >= params.warmup:
            weights.append(plain.weight)
            torch.testing.assert_close(float(parts.weight), plain.weight, rtol=1e-4, atol=0)
        padded += int((~batch["valid"]).sum())
    assert padded > 0 and len(set(weights)) == 4


# --- a device that has no answers -------------------------------------------------------------------------------------


class Unwaiting(TorchDispatchMode):
    """Raises where the host would wait for a device, of which torch's "meta" is one: its tensors have no values.

    torch itself raises where a value, or a size that depends on values, is asked for: item, tolist, bool, nonzero,
    boolean indices, bincount. What is left are copies to and fro that are not let go ahead, and indices on the host.
    (What neither sees: Python's numbers made a tensor of the device's, by torch.tensor or as a list for an index.)
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result, name = function(*args, **(kwargs or {})), str(function)
        tensors = [value for value in torch.utils._pytree.tree_leaves(args) if isinstance(value, torch.Tensor)]
        if "index" in name and args[0].is_meta:
            assert all(value.is_meta for value in tensors), f"{name}: an index on the host"
        elif "copy" in name and len({value.is_meta for value in [*tensors, result]}) == 2:
            ahead = (kwargs or {}).get("non_blocking", args[-1] is True)
            assert ahead and result.is_meta, f"{name} of {[tuple(value.shape) for value in tensors]} is waited for"
        return result


KINDS = {
    "paper": {},
    "ours, synonyms, windows": {"region_weight": "class", "synonyms": True, "mask_window": (32, 32), "mask_flip": True},
    "official": OFFICIAL,
    "kept features, no gate": {
        "freeze_backbone": True, "backbone_weights": "small", "cache_features": True, "photometric": False,
        "resize_ratio": (1.0, 1.0), "gate": "none", "mask_scales": (1.0, 0.5),
    },
}  # fmt: skip
CLEAN = {
    "gate": "labels", "clip_pixels": "clean", "official_clip": False, "official_views": False, "official_loss": False,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_iteration_waits_for_the_device(params: Params, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    params = params.updated(batch_size=2, warmup=1, log_every=8, checkpoint_every=8, **CLEAN | KINDS[kind])
    training = train.assemble(params, train.share(params))
    meta, done = torch.device("meta"), []
    training.masker, training.loss = copy.deepcopy(training.masker).to(meta), training.loss.to(meta)
    training.network = bare(training.network).to(meta)
    training.optimizer = torch.optim.SGD([p for p in training.network.parameters() if p.requires_grad], 0.1, 0.9)
    training.fabric = SimpleNamespace(
        device=meta, world_size=1, global_rank=0, is_global_zero=True, backward=lambda total: total.backward()
    )
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know this device

    def two(training: step.Training, batch: dict) -> step.LossParts:
        done.append(step.step(training, batch))
        if len(done) == 2:
            raise StopIteration  # before the loop logs, for which it may wait
        return done[-1]

    monkeypatch.setattr(train, "step", two)
    with Unwaiting(), pytest.raises(StopIteration):
        train.run(training, params.run_dir / "train" / "paper", None)
    assert [parts.total.device for parts in done] == [meta] * 2 and training.iteration == 2


def test_what_counts_as_waiting_does() -> None:
    there = torch.ones(4, device="meta")
    for wait in (
        lambda: there.sum().item(),
        lambda: bool((there > 0).any()),
        lambda: there.nonzero(),
        lambda: there[there > 0],
        lambda: there.cpu(),
        lambda: torch.ones(4).to("meta"),
        lambda: there.copy_(torch.ones(4)),
        lambda: torch.ones(4).copy_(there, non_blocking=True),
        lambda: there[torch.tensor([0, 2])],
        lambda: there.long().bincount(),
    ):
        with Unwaiting(), pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
            wait()
    with Unwaiting():
        there.copy_(torch.ones(4), non_blocking=True)


# --- bfloat16, and torch.compile --------------------------------------------------------------------------------------


def test_bfloat16_leaves_no_product_of_matrices_in_float32_but_the_similarities(params: Params) -> None:
    seen = set()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result, name = function(*args, **(kwargs or {})), function.name()
            if any(word in name for word in ("mm", "convolution", "attention")):
                seen.add((name, *[value.dtype for value in args if isinstance(value, torch.Tensor)][:2]))
            return result

    params = params.updated(precision="bf16-mixed", warmup=0, **CLEAN)
    split, training = open_split(params, "train"), train.assemble(params, train.share(params))
    batch = next(iter(train_loader(params, split, training_labels(params, split))))
    with Products():
        step.step(training, batch)
    exact = {name for name, *kinds in seen if torch.float32 in kinds}
    assert {torch.bfloat16} == {kind for name, *kinds in seen - {("aten::bmm", *[torch.float32] * 2)} for kind in kinds}
    assert exact == {"aten::bmm"}, exact


def test_a_compiled_network_is_compiled_once_whatever_the_local_view(params: Params, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs, sizes = [], set()
    params = params.updated(compile=True, **CLEAN)
    split, training = open_split(params, "train"), train.assemble(params, train.share(params))
    features = type(training.masker)._pixels
    monkeypatch.setattr(
        type(training.masker),
        "_pixels",
        lambda self, images, scale: sizes.add(features(self, images, scale).shape) or features(self, images, scale),
    )
    for _, batch in zip(range(4), train_loader(params, split, training_labels(params, split)), strict=False):
        step.step(training, batch)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(sizes) > 2, "CLIP sees patches of several sizes, uncompiled"
    assert graphs[0] > 0 and set(graphs) == {graphs[0]}


def test_the_distortion_waits_for_no_device(params: Params) -> None:
    loader = train_loader(params, open_split(params, "train"), np.ones((3, len(params.class_set)), bool))
    loader.dataset.on_device = True
    batch = {key: value.to("meta") for key, value in next(iter(loader)).items() if torch.is_tensor(value)}
    with Unwaiting():
        found = distorted(batch, params)
    assert found["image"].shape == batch["image"].shape and found["image"].is_meta


def test_what_the_loader_leaves_to_the_device_the_step_does(params: Params) -> None:
    split, shared, totals = open_split(params, "train"), train.share(params), []
    assert params.photometric
    for on_device in (False, True):
        loader = train_loader(params, split, training_labels(params, split))
        loader.dataset.on_device = on_device
        training = train.assemble(params, shared)
        training.network.train()
        totals.append(
            [float(step.step(training, batch).total.detach()) for _, batch in zip(range(2), loader, strict=False)]
        )
    assert totals[0] == totals[1]
