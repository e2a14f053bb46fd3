"""The whole official training step, from pixels to gradients and λ, against the formulas written out plainly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from plain_clip import normalised, plain_features
from small import small_params

from carblib import step
from carblib.data.batches import train_loader
from carblib.data.labels import training_labels
from carblib.data.readers import open_split
from carblib.params import Params
from carblib.scenes.folders import write_scenes
from carblib.training import loop as train
from carblib.transforms import IMAGENET_MEAN, IMAGENET_STD, mix_seed

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
        lr=0.02, iterations=8, warmup=2, batch_size=1, val_every=0, device="cpu", seed=1, **OFFICIAL,
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
