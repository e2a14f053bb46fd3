"""The loss against the four cross-entropies of the method's formulas, written out plainly with boolean indexing."""

from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from carblib.base.errors import CarbError
from carblib.loss import RegionBalancedLoss, _PixelCrossEntropy, consistent_region, gated_prediction
from carblib.views import LocalView, crop_view, sample_local_view


class PlainLoss:
    """Section 5 of the method, one cross-entropy per region and view; per class where `per_class`."""

    def __init__(self, warmup, coeff=1.0, official=False, per_class=False):
        self.warmup, self.coeff, self.official, self.per_class = warmup, coeff, official, per_class
        self.queue, self.weight = deque(maxlen=5), None

    def __call__(self, low, mask, labels, iteration, valid=None, view=None, local=None):
        logits = F.interpolate(low, mask.shape[1:], mode="bilinear", align_corners=False)
        if self.official:
            prediction = (logits.detach() * labels[:, :, None, None]).argmax(1)
        else:
            prediction = torch.zeros_like(mask, dtype=torch.long)
            for image, present in enumerate(labels):
                ids = present.nonzero()[:, 0]
                prediction[image] = ids[logits[image, ids].detach().argmax(0)]
        if valid is None or self.official:
            valid = torch.ones_like(mask, dtype=torch.bool)
        views = [(logits, mask.long(), prediction, (mask != 255) & valid)]
        if view is not None:
            local_use = (local != 255) & crop_view(valid, view)
            views.append((crop_view(logits, view), local.long(), crop_view(prediction, view), local_use))
        if iteration < self.warmup:
            return sum(self.mean(x, m, u) for x, m, _, u in views)
        agree = [m == p for _, m, p, _ in views]
        regions = [(x, m, u & a, u & ~a) for (x, m, _, u), a in zip(views, agree, strict=True)]
        x, m, consistent, noisy = regions[0]
        self.remember(x.detach(), m, consistent, noisy)
        self.weight = self.class_weights(logits.shape[1]) if self.per_class else self.scalar_weight()
        return sum(self.mean(x, m, r) + self.mean(x, m, n, self.weight) for x, m, r, n in regions)

    def remember(self, x, m, consistent, noisy):
        if self.per_class:
            losses = [(self.losses(x, m, r), m[r]) for r in (consistent, noisy)]
            self.queue.append(losses)
        elif consistent.any() and noisy.any():
            self.queue.append((self.mean(x, m, consistent), self.mean(x, m, noisy)))
        else:
            self.queue.append((0.0, 0.0))

    def scalar_weight(self):
        queue = [(0.0, 0.0)] * (5 - len(self.queue)) + list(self.queue)
        mean_r, mean_n = sum(r for r, _ in queue) / 5, sum(n for _, n in queue) / 5
        return self.coeff * mean_r / mean_n if mean_n else torch.tensor(self.coeff)

    def class_weights(self, classes):
        weights = torch.ones(classes)
        for c in range(classes):
            r, n = (torch.cat([step[i][0][step[i][1] == c] for step in self.queue]) for i in (0, 1))
            if len(r) and len(n):
                weights[c] = min(1.0, self.coeff * float(r.mean() / n.mean()))
        return weights

    @staticmethod
    def losses(x, m, region):
        return F.cross_entropy(x.permute(0, 2, 3, 1)[region], m[region], reduction="none")

    def mean(self, x, m, region, weight=1.0):
        if not region.any():
            return torch.zeros(())
        weight = torch.as_tensor(weight)
        return (self.losses(x, m, region) * (weight[m[region]] if weight.dim() else weight)).mean()


def random_step(generator, batch=2, classes=5, size=(13, 17), patch=(6, 5), shift=0.0, single=False, absent=False):
    """Logits, global mask, labels, valid, view and local mask; unless `absent`, masks name present classes only."""
    labels = torch.rand(batch, classes, generator=generator) < 0.6
    if single:
        labels[:] = False
    labels[torch.arange(batch), torch.randint(classes, (batch,), generator=generator)] = True
    logits = torch.randn(batch, classes, *(-(-side // 4) for side in size), generator=generator) + shift

    def mask(*shape):
        scores = torch.rand(batch, classes, *shape, generator=generator) * (labels | absent)[:, :, None, None]
        return scores.argmax(1).byte()

    view = sample_local_view(batch, size, patch, 1.0, 1.0, generator)
    valid = torch.rand(batch, *size, generator=generator) < 0.9
    return logits, mask(*size), labels, valid, view, mask(*patch)


CASES = {
    "usual": {},
    "official": {"official": True, "shift": -1.0},
    "official, labels all present": {"official": True, "shift": 3.0},
    "one image": {"batch": 1},
    "patch is the crop": {"patch": (13, 17)},
    "one class per image": {"single": True},
    "weight per class": {"per_class": True},
    "weight per class, coeff 0.7": {"per_class": True, "coeff": 0.7},
    "weight per class, at most 1": {"per_class": True, "coeff": 9.0},
    "masks of others name absent classes": {"absent": True},
    "official, masks of others name absent classes": {"absent": True, "official": True},
    "coeff 0.5": {"coeff": 0.5},
    "no warm-up": {"warmup": 0},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("local", [True, False])
def test_losses_weights_and_gradients_equal_four_plain_cross_entropies(case, local):
    options = dict(CASES[case])
    warmup, coeff = options.pop("warmup", 2), options.pop("coeff", 1.0)
    official, per_class = options.pop("official", False), options.pop("per_class", False)
    plain = PlainLoss(warmup, coeff, official, per_class)
    ours = RegionBalancedLoss(
        warmup, coeff, official=official, region_weight="class" if per_class else "paper", classes=5
    )
    generator, weights = torch.Generator().manual_seed(1), []
    for iteration in range(10):
        logits, mask, labels, valid, view, local_mask = random_step(generator, **options)
        mask[:, 2, 3:6] = 255
        arguments = {"view": view, "local_mask": local_mask} if local else {}
        mine, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        parts = ours(mine, mask, labels, iteration, valid=valid, **arguments)
        expected = plain(theirs, mask, labels, iteration, valid, view if local else None, local_mask)
        torch.testing.assert_close(parts.total, expected, rtol=1e-4, atol=0)
        parts.total.backward()
        expected.backward()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4 * float(theirs.grad.abs().max()))
        if iteration >= warmup:
            torch.testing.assert_close(
                ours.weights().float(), torch.as_tensor(plain.weight).float().view(-1), rtol=1e-4, atol=0
            )
            weights.append(ours.weights().tolist())
        else:
            assert parts.weight.isnan()
    assert len(weights) == 10 - warmup
    constant = case in ("one class per image", "weight per class, at most 1")
    assert constant or len({tuple(weight) for weight in weights}) == len(weights)


def test_total_is_made_of_the_parts():
    logits, mask, labels, valid, view, local_mask = random_step(torch.Generator().manual_seed(2))
    loss = RegionBalancedLoss(warmup=0)
    parts = loss(logits, mask, labels, 0, valid=valid, view=view, local_mask=local_mask)
    parts_sum = parts.consistent + parts.local_consistent + parts.weight * (parts.noisy + parts.local_noisy)
    torch.testing.assert_close(parts.total, parts_sum)
    assert all(0 < float(value) < 10 for value in vars(parts).values())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_regions_are_disjoint_and_cover_the_valid_pixels(seed, official, single):
    generator = torch.Generator().manual_seed(seed)
    logits, mask, labels, valid, *_ = random_step(generator, size=(5, 7), patch=(2, 3), shift=-0.5, single=single)
    mask[0, 0, :3] = 255
    full = F.interpolate(logits, mask.shape[1:], mode="bilinear", align_corners=False)
    prediction = gated_prediction(full, labels, official)
    if official:
        valid = torch.ones_like(valid)
    consistent = consistent_region(mask, prediction, valid)
    noisy = valid & (mask != 255) & ~consistent
    assert not (consistent & noisy).any()
    assert torch.equal(consistent | noisy, valid & (mask != 255))
    assert torch.equal(consistent_region(mask, prediction), (mask == prediction) & (mask != 255))
    assert official or labels.gather(1, prediction.flatten(1)).all(), "only classes that are present are predicted"
    share = RegionBalancedLoss(0, official=official)(logits, mask, labels, 0, valid=valid).consistent_share
    torch.testing.assert_close(share, consistent.sum() / (consistent | noisy).sum())


def test_the_official_gate_lets_absent_classes_win_where_present_ones_are_negative():
    logits = torch.tensor([-1.0, -2.0, 5.0]).view(1, 3, 1, 1)
    labels = torch.tensor([[True, True, False]])
    assert gated_prediction(logits, labels).item() == 0
    assert gated_prediction(logits, labels, official=True).item() == 2


@pytest.mark.parametrize("region_weight", ["paper", "class"])
@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize("empty", ["noisy", "consistent", "both", "local"])
def test_an_empty_region_contributes_nothing_and_spares_the_weight(region_weight, official, empty):
    loss = RegionBalancedLoss(0, official=official, region_weight=region_weight, classes=4)
    generator = torch.Generator().manual_seed(3)
    labels = torch.ones(2, 4, dtype=torch.bool)
    logits = torch.randn(2, 4, 6, 8, generator=generator)
    mask = torch.randint(0, 4, (2, 6, 8), generator=generator).byte()
    loss(logits, mask, labels, 0)
    before = loss.weights()
    best, worst = logits.argmax(1).byte(), logits.argmin(1).byte()
    special = {"noisy": best, "consistent": worst, "both": torch.full_like(best, 255), "local": best}[empty]
    view = LocalView(torch.tensor([[0, 0, 3, 4]] * 2), 1.0)
    local = torch.full((2, 3, 4), 255).byte() if empty == "local" else None
    for iteration in range(1, 8):
        low = logits.clone().requires_grad_()
        parts = loss(low, special, labels, iteration, view=view if local is not None else None, local_mask=local)
        parts.total.backward()
        assert all(value.isfinite() for value in vars(parts).values()) and low.grad.isfinite().all()
        if iteration < 5 and region_weight == "paper":
            assert torch.equal(loss.weights(), before)
    assert torch.equal(loss.weights(), torch.ones_like(before)), "nothing is known any more: full supervision"
    assert float(parts.total.detach()) > 0 or empty == "both"
    if region_weight == "paper":
        loss(logits, mask, labels, 8)
        torch.testing.assert_close(loss.weights(), before)


def test_a_better_prediction_has_a_lower_loss():
    mask = torch.randint(0, 4, (2, 8, 8), generator=torch.Generator().manual_seed(4))
    labels = torch.ones(2, 4, dtype=torch.bool)
    right = F.one_hot(mask, 4).permute(0, 3, 1, 2).float()
    for warmup in (0, 1):
        losses = []
        for strength in (-2.0, 0.0, 1.0, 3.0, 9.0):
            loss = RegionBalancedLoss(warmup)
            losses.append(float(loss(strength * right, mask.byte(), labels, 0).total))
        assert losses == sorted(losses, reverse=True) and losses[-1] < 0.01


@pytest.mark.parametrize("region_weight", ["paper", "class"])
def test_the_state_dict_carries_the_weight_over(region_weight):
    def make():
        return RegionBalancedLoss(0, region_weight=region_weight, classes=5)

    steps = [random_step(torch.Generator().manual_seed(seed)) for seed in range(8)]
    whole, first, resumed = make(), make(), make()
    expected = [whole(*steps[i][:3], i).total for i in range(8)]
    for i in range(4):
        first(*steps[i][:3], i)
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(resumed.weights(), first.weights())
    assert [resumed(*steps[i][:3], i).total for i in range(4, 8)] == expected[4:]
    assert not torch.equal(make().weights(), first.weights())


@pytest.mark.parametrize("region_weight", ["paper", "class"])
def test_processes_share_weight_and_loss_of_their_joint_batch(region_weight):
    logits, mask, labels, *_ = random_step(torch.Generator().manual_seed(5), batch=4)

    def make():
        return RegionBalancedLoss(0, region_weight=region_weight, classes=5)

    joint, gathered = make(), ([], [])  # what the processes give to the first and the second reduction
    whole = joint(logits, mask, labels, 0)
    halves = [(logits[i], mask[i], labels[i]) for i in (slice(0, 2), slice(2, 4))]
    for half in halves:
        calls = iter(gathered)
        make()(*half, 0, reduce=lambda value, calls=calls: next(calls).append(value) or value)
    losses, parts = [make(), make()], []
    for loss, half in zip(losses, halves, strict=True):
        calls = iter(gathered)
        parts.append(loss(*half, 0, reduce=lambda value, calls=calls: torch.stack(next(calls)).mean(0)))
    torch.testing.assert_close(losses[0].history, joint.history, rtol=1e-6, atol=0)  # any number goes on with it
    torch.testing.assert_close(losses[0].weights(), joint.weights())
    assert torch.equal(losses[0].weights(), losses[1].weights())
    torch.testing.assert_close((parts[0].total + parts[1].total) / 2, whole.total)


def test_ignored_and_invalid_pixels_have_no_influence_unless_official():
    logits, mask, labels, valid, view, local_mask = random_step(torch.Generator().manual_seed(6))
    logits = torch.randn(2, 5, 13, 17)  # full size: every pixel has logits of its own
    mask[:, :3] = 255
    out = ~valid | (mask == 255)
    out &= crop_free(view, out)
    changed = torch.where(out[:, None], logits.flip(1) * 3, logits)
    for official in (False, True):
        totals = []
        for values in (logits, changed):
            low = values.clone().requires_grad_()
            loss = RegionBalancedLoss(0, official=official)
            parts = loss(low, mask, labels, 0, valid=valid, view=view, local_mask=local_mask)
            parts.total.backward()
            totals.append(float(parts.total.detach()))
            assert official or not low.grad[out[:, None].expand_as(low)].any()
        assert (totals[0] == pytest.approx(totals[1])) != official


def crop_free(view: LocalView, like: torch.Tensor) -> torch.Tensor:
    """True outside the local view's boxes."""
    free = torch.ones_like(like)
    for image, (top, left, bottom, right) in enumerate(view.boxes.tolist()):
        free[image, top:bottom, left:right] = False
    return free


def test_padding_in_the_local_view_is_left_out():
    logits, mask, labels, _, view, local_mask = random_step(torch.Generator().manual_seed(7))
    valid = crop_free(view, mask.bool())  # the boxes are padding
    with_local = RegionBalancedLoss(0)(logits, mask, labels, 0, valid=valid, view=view, local_mask=local_mask)
    without = RegionBalancedLoss(0)(logits, mask, labels, 0, valid=valid)
    torch.testing.assert_close(with_local.total, without.total)
    assert with_local.local_noisy == 0 == with_local.local_consistent


def test_floor_fixed_weight_and_plain_cross_entropy():
    logits, mask, labels, *_ = random_step(torch.Generator().manual_seed(8))
    full = F.interpolate(logits, mask.shape[1:], mode="bilinear", align_corners=False)
    paper = RegionBalancedLoss(0, coeff=0.01)
    assert float(paper(logits, mask, labels, 0).weight) < 0.02
    assert float(RegionBalancedLoss(0, coeff=0.01, floor=0.2)(logits, mask, labels, 0).weight) == pytest.approx(0.2)
    fixed = RegionBalancedLoss(0, coeff=0.03, adaptive=False)
    assert float(fixed(logits, mask, labels, 0).weight) == pytest.approx(0.03)
    assert not fixed.history.any() and RegionBalancedLoss(0, 0.03, adaptive=False, floor=0.1).weights() == 0.03
    unbalanced = RegionBalancedLoss(0, balancing=False)(logits, mask, labels, 10)
    torch.testing.assert_close(unbalanced.total, F.cross_entropy(full, mask.long()))


def test_a_class_the_network_does_not_find_keeps_full_supervision_with_a_weight_per_class():
    # Class 0 is known well, but for a few pixels; class 2 is never predicted.
    mask = torch.zeros(1, 10, 10, dtype=torch.uint8)
    mask[0, 0], mask[0, 1], mask[0, 2] = 1, 2, 2
    logits = torch.zeros(1, 3, 10, 10)
    logits[0, 0] = 6.0
    logits[0, 1, 0, :5] = 12.0
    logits[0, 1, 5, :5] = 12.0  # class 1 is also seen where the mask says 0
    labels = torch.ones(1, 3, dtype=torch.bool)
    paper, ours = RegionBalancedLoss(0), RegionBalancedLoss(0, region_weight="class", classes=3)
    paper(logits, mask, labels, 0), ours(logits, mask, labels, 0)
    assert float(paper.weights()) < 0.01
    assert ours.weights()[2] == 1.0 and ours.weights()[0] < 0.01 and ours.weights()[1] < 0.01
    mask[0, 1:3] = 0
    for iteration in range(1, 6):
        ours(logits, torch.where(mask == 1, 0, mask), labels, iteration)
    assert ours.weights()[1] == 1.0, "forgotten after five iterations without a consistent pixel"


def test_gradients_of_the_pixel_cross_entropy_are_those_of_autograd():
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(2, 3, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 3, (2, 2, 5, 4), generator=generator)
    labels = torch.ones(2, 3, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x: _PixelCrossEntropy.apply(x, targets, labels, False)[0], logits)


def test_half_precision_and_channels_last_logits_are_taken():
    logits, mask, labels, *_ = random_step(torch.Generator().manual_seed(10))
    expected = RegionBalancedLoss(0)(logits, mask, labels, 0).total
    last = RegionBalancedLoss(0)(logits.to(memory_format=torch.channels_last), mask, labels, 0).total
    torch.testing.assert_close(last, expected)
    half = RegionBalancedLoss(0)(logits.bfloat16(), mask, labels, 0).total
    assert half.dtype == torch.float32 and float(half) == pytest.approx(float(expected), rel=0.05)


def test_an_unknown_region_weight_is_refused():
    with pytest.raises(CarbError, match="region_weight"):
        RegionBalancedLoss(0, region_weight="clas")
