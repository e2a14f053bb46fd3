"""Confusion, IoU, mIoU and their intervals against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from carblib.base.errors import CarbError
from carblib.metrics import bootstrap, confusion, iou, miou

CLASSES = 4
VALUES = st.sampled_from([0, 1, 2, 3, 255])


@st.composite
def mask_pairs(draw, values=VALUES):
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    return draw(arrays(np.uint8, shape, elements=values)), draw(arrays(np.uint8, shape, elements=values))


def plain_iou(prediction: np.ndarray, truth: np.ndarray, class_id: int) -> float:
    """The definition, pixel by pixel: a predicted void is no class, a true void is no pixel."""
    pairs = [(int(p), int(t)) for p, t in zip(prediction.ravel(), truth.ravel(), strict=True) if t != 255]
    both = sum(p == t == class_id for p, t in pairs)
    either = sum(class_id in pair for pair in pairs)
    return both / either if either else float("nan")


@given(mask_pairs())
@settings(max_examples=60, deadline=None)
def test_iou_is_the_definition(pair):
    expected = [plain_iou(*pair, c) for c in range(CLASSES)]
    matrix = confusion(*pair, CLASSES)
    assert matrix.shape == (CLASSES, CLASSES + 1) and matrix.sum() == (pair[1] != 255).sum()
    np.testing.assert_allclose(iou(matrix), expected)
    known = [value for value in expected if value == value]
    np.testing.assert_allclose(miou(matrix), np.mean(known) if known else np.nan)


@given(mask_pairs(), st.permutations(range(CLASSES)))
@settings(max_examples=40, deadline=None)
def test_miou_does_not_change_under_relabelling(pair, order):
    table = np.arange(256, dtype=np.uint8)
    table[:CLASSES] = order
    before, after = (miou(confusion(*masks, CLASSES)) for masks in (pair, (table[pair[0]], table[pair[1]])))
    np.testing.assert_allclose(before, after)


@given(arrays(np.uint8, (5, 3), elements=VALUES))
@settings(max_examples=30, deadline=None)
def test_perfect_prediction_scores_one(mask):
    score = miou(confusion(mask, mask, CLASSES))
    assert np.isnan(score) if (mask == 255).all() else score == 1


def test_absent_class_is_left_out_and_void_prediction_is_a_miss():
    truth = np.array([[0, 0, 0, 1], [1, 1, 1, 255]], np.uint8)
    prediction = np.array([[0, 0, 255, 1], [1, 1, 2, 3]], np.uint8)
    values = iou(confusion(prediction, truth, 5))
    # 2/3: void is no hit. 3/4: a pixel went to class 2, which is predicted but not true. 3 is predicted on void only.
    np.testing.assert_allclose(values, [2 / 3, 3 / 4, 0, np.nan, np.nan])
    assert miou(confusion(prediction, truth, 5)) == pytest.approx((2 / 3 + 3 / 4 + 0) / 3)
    assert miou(confusion(prediction, truth, 5), [1, 4]) == pytest.approx(3 / 4)
    assert np.isnan(miou(confusion(prediction, truth, 5), [4]))


def test_confusion_is_summed_before_it_is_reduced():
    # Images of very different size: the mean of per-image IoUs is another number.
    pairs = [(np.zeros((1, 9), np.uint8), np.zeros((1, 9), np.uint8)), (np.array([[1]], np.uint8), np.uint8([[0]]))]
    total = sum(confusion(*pair, 2) for pair in pairs)
    assert iou(total)[0] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("prediction", "truth", "said"),
    [
        (np.uint8([[4]]), np.uint8([[0]]), "prediction holds the value 4"),
        (np.uint8([[0]]), np.uint8([[254]]), "truth holds the value 254"),
        (np.uint8([[0, 0]]), np.uint8([[0]]), "one size"),
        (np.int64([[0]]), np.uint8([[0]]), "uint8"),
    ],
)
def test_strange_masks_are_refused(prediction, truth, said):
    with pytest.raises(CarbError, match=said):
        confusion(prediction, truth, CLASSES)


def test_bootstrap_is_resampling_of_images():
    generator = np.random.default_rng(0)
    matrices = generator.integers(0, 30, (5, 3, 4))
    matrices[1:, 2], matrices[1:, :, 2] = 0, 0  # class 2 is in the first image alone: some draws lack it
    found = bootstrap(matrices, small_ids=(1, 2), samples=50, seed=3)
    drawn = torch.randint(5, (50, 5), generator=torch.Generator().manual_seed(3)).tolist()
    ious = np.array([iou(sum(matrices[i] for i in row)) for row in drawn])
    assert np.isnan(ious[:, 2]).any() and not np.isnan(ious[:, 2]).all()
    for c in range(3):
        there = ious[:, c][~np.isnan(ious[:, c])]
        np.testing.assert_allclose(found.iou[c], np.percentile(there, [2.5, 97.5]))
    small = [np.nanmean(row[1:]) for row in ious]
    np.testing.assert_allclose(found.small_miou, np.percentile(small, [2.5, 97.5]))
    np.testing.assert_allclose(found.miou, np.percentile(np.nanmean(ious, 1), [2.5, 97.5]))


def test_bootstrap_of_one_image_of_none_and_of_no_draw():
    matrix = confusion(np.uint8([[0, 1]]), np.uint8([[0, 0]]), 3)[None]
    one = bootstrap(matrix, (2,), samples=20, seed=0)
    np.testing.assert_allclose(one.miou, [0.25, 0.25])
    assert np.isnan(one.iou[2]).all() and np.isnan(one.small_miou).all()
    assert np.isnan(bootstrap(matrix, (0,), samples=0, seed=0).miou).all()
