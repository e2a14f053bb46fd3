"""The CARB loss: both views' cross-entropy, balanced between consistent and noisy region (paper, Region Balancing).

Where the network's own prediction agrees with the pseudo-mask lies the consistent region R, elsewhere the noisy region
N. After a warm-up the loss is CE_R + λ·CE_N for the global view plus the same for the local view, each CE a mean over
its own region (METHOD.md, 5). One log-sum-exp over the upsampled logits serves all four.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carblib.base.device import sent
from carblib.base.errors import CarbError
from carblib.classes import IGNORE
from carblib.views import LocalView, paste_view

if TYPE_CHECKING:
    from carblib.params import Params

QUEUE = 5  # iterations over which the losses in λ are averaged


@dataclass(frozen=True)
class LossParts:
    """What one step's loss is made of: scalars, all but `total` detached.

    The four means are unweighted, and 0 for an empty region or an absent view. weight: λ, or with a λ per class its
    mean over the noisy pixels; NaN while nothing is balanced. consistent_share: of the global view's valid pixels.
    """

    total: Tensor
    consistent: Tensor
    noisy: Tensor
    local_consistent: Tensor
    local_noisy: Tensor
    weight: Tensor
    consistent_share: Tensor


def gated_prediction(logits: Tensor, labels: Tensor, official: bool = False) -> Tensor:
    """Return the likeliest class among those present: (B, C, H, W), (B, C) bool -> (B, H, W) long.

    official: an absent class scores 0 instead of -inf, and so wins wherever every present class is negative.
    """
    present = labels[:, :, None, None]
    gated = logits * present if official else logits.masked_fill(~present, -torch.inf)
    return gated.max(1).indices


def consistent_region(pseudo_mask: Tensor, prediction: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return R, where pseudo-mask and prediction name the same class: (B, H, W) each -> (B, H, W) bool.

    Ignored (255) and invalid pixels are in neither region.
    """
    agree = (pseudo_mask == prediction) & (pseudo_mask != IGNORE)
    return agree if valid is None else agree & valid


class _PixelCrossEntropy(torch.autograd.Function):
    """Cross-entropy of upsampled logits for several targets per pixel, and where each target is the likeliest class.

    Images are upsampled one at a time, in the backward pass anew, so that full-size logits exist for one image only.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, labels: Tensor, official: bool) -> tuple[Tensor, Tensor]:
        """Logits (B, C, h, w), targets (B, T, H, W) long, labels (B, C) -> losses and agreement, both (B, T, H, W)."""
        known, present = sent(labels, logits.device), [row.nonzero().flatten().tolist() for row in labels.cpu()]
        losses = torch.empty(targets.shape, dtype=logits.dtype, device=logits.device)
        agree = torch.empty_like(targets, dtype=torch.bool)
        normaliser = losses.new_empty(len(targets), *targets.shape[2:])
        for b, target in enumerate(targets):
            full = _upsample(logits[b : b + 1], target.shape[1:])
            torch.logsumexp(full[0], 0, out=normaliser[b])
            picked = full[0].gather(0, target)
            losses[b] = normaliser[b] - picked
            if official:
                agree[b] = target == gated_prediction(full, known[b : b + 1], official=True)
            else:
                # The same question without an argmax: does any present class score higher?
                agree[b] = (picked >= _highest(full[0], present[b])) & known[b][target]
        ctx.save_for_backward(logits, targets, normaliser)
        ctx.mark_non_differentiable(agree)
        return losses, agree

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        """Softmax times the sum of a pixel's gradients, less each gradient at its target."""
        logits, targets, normaliser = ctx.saved_tensors
        result = torch.empty_like(logits)
        for b, target in enumerate(targets):
            with torch.enable_grad():
                low = logits[b : b + 1].detach().requires_grad_()
                full = _upsample(low, target.shape[1:])
            gradient = (full.detach()[0] - normaliser[b]).exp_().mul_(grad[b].sum(0))
            gradient.scatter_add_(0, target, -grad[b])
            result[b] = torch.autograd.grad(full, low, gradient[None])[0][0]
        return result, None, None, None


def _highest(scores: Tensor, classes: list[int]) -> Tensor:
    """The highest score of some classes at every pixel: (C, H, W) -> (H, W); -inf where there is none."""
    highest = torch.full_like(scores[0], -torch.inf)
    for one in classes:  # twice as fast as gathering them, and a device is asked nothing
        torch.maximum(highest, scores[one], out=highest)
    return highest


def _upsample(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def _means(losses: Tensor, region: Tensor, pixels: Tensor) -> Tensor:
    """Per view, the mean over a region of all images: (B, T, H, W) and its pixel count (T,) -> (T,); 0 if empty."""
    return (losses * region).sum((0, 2, 3)) / pixels.clamp(min=1e-6)


class RegionBalancedLoss(nn.Module):
    """The loss of one training step, and λ's queues, which are buffers and so part of the state dict.

    warmup: iterations with plain CE(S, M_G) + CE(S_patch, M_L). balancing: False keeps to that for good.
    λ = coeff · mean_5(CE_R) / mean_5(CE_N), from the global view's losses; adaptive=False: λ = coeff.
    floor: the least adaptive λ; ours, not the paper's (0 = the paper).
    region_weight: "paper" is the λ above. "class" is ours: one λ per class c of the pseudo-mask, from the pixels that
    it calls c, pooled over the last five iterations, λ_c = min(1, coeff · CE_R(c) / CE_N(c)), and 1 for a class without
    a consistent pixel in them. So a class that the network does not find (yet, or any more) keeps full supervision,
    where one λ for all lets the well-known classes switch it off.
    official: absent classes are gated as in `gated_prediction`, and padding counts. An empty region makes the
    official loss NaN from then on; here it is 0 in either mode, and says nothing about λ.
    """

    history: Tensor  # (5, 4, K) float64: per iteration and class sum of CE_R, pixels of R, both of N; of a mean image

    def __init__(
        self,
        warmup: int,
        coeff: float = 1.0,
        adaptive: bool = True,
        floor: float = 0.0,
        balancing: bool = True,
        official: bool = False,
        region_weight: str = "paper",
        classes: int = 1,
    ):
        super().__init__()
        if region_weight not in ("paper", "class"):
            raise CarbError(f"region_weight: '{region_weight}' is unknown; use 'paper' or 'class'")
        self.warmup, self.coeff, self.adaptive, self.floor = warmup, coeff, adaptive, floor
        self.balancing, self.official, self.per_class = balancing, official, region_weight == "class"
        self.register_buffer("history", torch.zeros(QUEUE, 4, classes if self.per_class else 1, dtype=torch.float64))

    def weights(self) -> Tensor:
        """Return λ as it stands: (1,), or per class (C,)."""
        sums_r, pixels_r, sums_n, pixels_n = self.history.unbind(1)
        if not self.adaptive:
            return torch.full_like(sums_r[0], self.coeff)
        if self.per_class:
            mean_r = sums_r.sum(0) / pixels_r.sum(0)
            mean_n = sums_n.sum(0) / pixels_n.sum(0)
            weights = (self.coeff * mean_r / mean_n).nan_to_num(1.0, 1.0).clamp(max=1.0)
        else:
            # A step with an empty region says nothing about the ratio; until one does, λ is coeff.
            known = (pixels_r > 0) & (pixels_n > 0)
            mean_r = (sums_r / pixels_r).masked_fill(~known, 0.0).mean(0)
            mean_n = (sums_n / pixels_n).masked_fill(~known, 0.0).mean(0)
            weights = (self.coeff * mean_r / mean_n).masked_fill(~(mean_n > 0), self.coeff)
        return weights.clamp(min=self.floor)

    def forward(
        self,
        logits: Tensor,
        global_mask: Tensor,
        labels: Tensor,
        iteration: int,
        *,
        valid: Tensor | None = None,
        view: LocalView | None = None,
        local_mask: Tensor | None = None,
        reduce: Callable[[Tensor], Tensor] = lambda statistics: statistics,
    ) -> LossParts:
        """Compare logits (B, C, h, w) with the global (B, H, W) and the local (B, p, q) pseudo-mask, train ids or 255.

        logits: at any size, upsampled here to (H, W). labels: (B, C) bool, best left on the host, which then waits for
        no device. valid: (B, H, W) bool, False on padding.
        view: where local_mask lies; both or neither. iteration: counted from 0, over resumed runs too.
        reduce: mean over processes, so that all share λ and the regions' sizes, as if one process held all images
        (official: each has means of its own); every process must call with the same iteration.
        """
        masks = global_mask[:, None]
        if local_mask is not None:
            masks = torch.stack([global_mask, paste_view(local_mask, view, global_mask.shape[1:], IGNORE)], dim=1)
        use = masks != IGNORE
        if valid is not None and not self.official:
            use &= valid[:, None]
        targets = masks.long().masked_fill_(masks == IGNORE, 0)
        losses, agree = _PixelCrossEntropy.apply(logits.float().contiguous(), targets, labels, self.official)
        consistent, noisy = use & agree, use & ~agree
        # With counts averaged over processes, the mean of their losses is that of one process with all the images.
        counts = torch.stack([region.sum((0, 2, 3)) for region in (consistent, noisy)]).double()
        in_r, in_n = (counts if self.official else reduce(counts)).to(losses.dtype)
        mean_r, mean_n = _means(losses, consistent, in_r), _means(losses, noisy, in_n)
        if self.balancing and iteration >= self.warmup:
            if self.adaptive:
                self._remember(iteration, losses[:, 0], consistent[:, 0], noisy[:, 0], targets[:, 0], reduce)
            weights = self.weights().to(losses.dtype)
            if self.per_class:
                weights = weights[targets]
                total = mean_r.sum() + _means(losses * weights, noisy, in_n).sum()
                weight = _means(weights, noisy, in_n)[0]
            else:
                weight = weights[0]
                total = mean_r.sum() + weight * mean_n.sum()
        else:
            total, weight = _means(losses, use, in_r + in_n).sum(), losses.new_full((), torch.nan)
        none = losses.new_zeros(())
        return LossParts(
            total=total,
            consistent=mean_r[0].detach(),
            noisy=mean_n[0].detach(),
            local_consistent=none if local_mask is None else mean_r[1].detach(),
            local_noisy=none if local_mask is None else mean_n[1].detach(),
            weight=weight,
            consistent_share=in_r[0] / (in_r[0] + in_n[0]).clamp(min=1e-6),
        )

    @torch.no_grad()
    def _remember(
        self,
        iteration: int,
        losses: Tensor,
        consistent: Tensor,
        noisy: Tensor,
        targets: Tensor,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        """Put the global view's sums and pixel counts into the iteration's place of the queue."""
        rows = []
        for region in (consistent, noisy):
            for values in (losses * region, region):
                if self.per_class:
                    sums = self.history.new_zeros(self.history.shape[2])
                    rows.append(sums.index_add_(0, targets.flatten(), values.flatten().double()))
                else:
                    rows.append(values.sum()[None].double())
        self.history[iteration % QUEUE] = reduce(torch.stack(rows) / len(losses))


def build_loss(params: Params) -> RegionBalancedLoss:
    """Return the loss that the parameters describe."""
    return RegionBalancedLoss(
        warmup=params.warmup,
        coeff=params.carb_coeff,
        adaptive=params.adaptive,
        floor=params.carb_floor,
        balancing=params.balancing,
        official=params.official_loss,
        region_weight=params.region_weight,
        classes=len(params.class_set),
    )
