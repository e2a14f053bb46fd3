from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from carblib.base.errors import CarbError
from carblib.classes import CAMVID
from carblib.small_objects import components, join, match_objects, object_table, size_edges

SMALL = (1, 3)
VALUES = st.sampled_from([0, 1, 3, 255])


def islands(mask: np.ndarray, class_id: int) -> list[frozenset]:
    """8-connected components of a class by flood fill, as sets of (row, column)."""
    left = {tuple(map(int, place)) for place in np.argwhere(mask == class_id)}
    found = []
    while left:
        island, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            island.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.append(frozenset(island))
    return found


def plain_objects(prediction: np.ndarray, truth: np.ndarray) -> list[tuple]:
    """(class, pixels, found, IoU) of every object, by the definition, in sets."""
    prediction = np.where(truth == 255, 255, prediction)
    rows = []
    for class_id in SMALL:
        objects, guesses = islands(truth, class_id), islands(prediction, class_id)
        for one in objects:
            touching = frozenset().union(*[guess for guess in guesses if guess & one])
            others = frozenset().union(*[other for other in objects if other is not one])
            touching -= others
            share = len(one & touching) / len(one)
            rows.append((class_id, len(one), share >= 0.5, len(one & touching) / len(one | touching)))
    return sorted(rows)


@st.composite
def mask_pairs(draw):
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    return draw(arrays(np.uint8, shape, elements=VALUES)), draw(arrays(np.uint8, shape, elements=VALUES))


@given(mask_pairs())
@settings(max_examples=120, deadline=None)
def test_objects_are_the_definition(pair):
    # In an image this small every component counts as an object: the smallest edge is one pixel.
    found = match_objects(*pair, SMALL)
    rows = sorted(zip(found.class_ids, found.pixels, found.found, found.iou, strict=True))
    expected = plain_objects(*pair)
    assert [row[:3] for row in rows] == [row[:3] for row in expected]
    np.testing.assert_allclose([row[3] for row in rows], [row[3] for row in expected])


def test_components_touching_at_corners_are_one_and_classes_are_apart():
    mask = np.uint8([[1, 0, 3], [0, 1, 3], [255, 0, 1]])
    found = components(mask, SMALL)
    assert sorted(zip(found.class_ids.tolist(), found.pixels.tolist(), strict=True)) == [(1, 3), (3, 2)]
    assert (found.labels == 0).sum() == 4
    assert len(components(mask, ()).pixels) == 0


def test_two_people_that_the_prediction_joins_are_not_held_against_each_other():
    truth = np.zeros((20, 60), np.uint8)
    truth[5:15, 5:15], truth[5:15, 25:35] = 1, 1
    prediction = truth.copy()
    prediction[5:15, 15:25] = 1
    found = match_objects(prediction, truth, SMALL)
    np.testing.assert_allclose(found.iou, 0.5)  # 100 pixels of its own, 100 of the bridge, none of the neighbour
    assert found.found.all()


def test_found_from_half_the_pixels_on():
    truth, prediction = np.zeros((30, 30), np.uint8), np.zeros((30, 30), np.uint8)
    truth[10:20, 10:20] = 3
    prediction[10:20, 10:15] = 3
    assert match_objects(prediction, truth, SMALL).found.all()
    prediction[10, 10] = 1
    assert not match_objects(prediction, truth, SMALL).found.any()


def test_enlarged_images_keep_bins_recall_and_iou():
    generator = np.random.default_rng(0)
    truth, prediction = np.zeros((2, 256, 512), np.uint8)
    for place, side in enumerate([2, 4, 7, 13, 26, 30]):
        top, left = 40 * place + 3, int(generator.integers(0, 400))
        truth[top : top + side, left : left + side] = 1
        prediction[top + 1 : top + 1 + side, left : left + side] = 1
    once = match_objects(prediction, truth, SMALL)
    twice = match_objects(*(np.kron(mask, np.ones((2, 2), np.uint8)) for mask in (prediction, truth)), SMALL)
    assert sorted(once.bins) == [0, 1, 2, 3, 3]  # the 4-pixel speck is no object
    assert list(size_edges(512, 1024)) == [4 * edge for edge in size_edges(256, 512)] == [40, 160, 640, 2560]
    for field in ("bins", "found", "iou"):
        np.testing.assert_allclose(getattr(once, field), getattr(twice, field))


def test_the_table_counts_by_class_and_size():
    truth, prediction = np.zeros((2, 256, 512), np.uint8)
    pole, pedestrian = CAMVID.index("pole"), CAMVID.index("pedestrian")
    truth[0:2, 0:5], truth[100:103, 0:13], truth[200:240, 100:140] = pole, pole, pedestrian
    truth[150:154, 0:10], truth[170:173, 0:3] = pole, pole  # exactly 40 pixels; 9 are no object
    prediction[0:2, 0:5], prediction[150:154, 0:10] = pole, pole
    empty = match_objects(prediction[:9, 60:69], truth[:9, 60:69], CAMVID.small_ids)
    objects = join([match_objects(prediction, truth, CAMVID.small_ids), empty])
    table = object_table(objects, CAMVID, (256, 512))
    assert table["labels"] == ["10–39 px", "40–159 px", "160–639 px", "≥ 640 px"]
    assert table["per_class"]["pole"] == {
        "count": [2, 1, 0, 0],
        "recall": [0.5, 1.0, None, None],
        "iou": [0.5, 1.0, None, None],
    }
    assert table["per_class"]["pedestrian"]["count"] == [0, 0, 0, 1]
    assert table["per_class"]["bicyclist"]["recall"] == [None] * 4
    assert table["all_small"]["count"] == [2, 1, 0, 1] and table["all_small"]["recall"] == [0.5, 1.0, None, 0.0]
    assert table["total"] == {"count": 4, "recall": 0.5, "iou": 0.5}
    assert empty.recall is None and object_table(empty, CAMVID, (9, 9))["total"]["iou"] is None


def test_sizes_must_agree():
    with pytest.raises(CarbError, match="resize the prediction"):
        match_objects(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), SMALL)
