from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from carblib.training.reliability import Reliability

NAMES = ("road", "car", "pole")
CLASS = st.integers(0, 2)


def ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def plain_row(pixels: list[tuple[int, int, int]], class_id: int | None) -> dict:
    """By the definition, over (pseudo-label, prediction, truth) of all pixels that count."""
    own = [p for p in pixels if class_id is None or p[0] == class_id]
    agreed, noisy = [p for p in own if p[0] == p[1]], [p for p in own if p[0] != p[1]]
    predicted = [p for p in pixels if class_id is None or p[1] == class_id]
    return {
        "share_consistent": ratio(len(agreed), len(own)),
        "precision_consistent": ratio(sum(p[0] == p[2] for p in agreed), len(agreed)),
        "precision_noisy": ratio(sum(p[0] == p[2] for p in noisy), len(noisy)),
        "predicted_share": ratio(len(predicted), len(pixels)),
        "pixels": len(own),
    }


@st.composite
def triples(draw):
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    maybe = CLASS | st.just(255)
    elements = (maybe, CLASS, maybe)  # a prediction names a class everywhere
    return [draw(arrays(np.uint8, shape, elements=values)) for values in elements]


@given(st.lists(triples(), max_size=3))
@settings(max_examples=60, deadline=None)
def test_rows_are_the_definition(images):
    meter, pixels = Reliability(NAMES), []
    for masks in images:
        meter.add(*masks)
        everything = zip(*(mask.ravel().tolist() for mask in masks), strict=True)
        pixels += [p for p in everything if p[0] != 255 and p[2] != 255]
    rows = meter.rows(40)
    assert [row["class"] for row in rows] == [*NAMES, "all"] and {row["iteration"] for row in rows} == {40}
    for row, class_id in zip(rows, (0, 1, 2, None), strict=True):
        for key, value in plain_row(pixels, class_id).items():
            assert row[key] == (None if value is None else pytest.approx(value))


def test_a_batch_counts_as_its_images():
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 3, (3, 4, 5, 7), np.uint8)
    batch, single = Reliability(NAMES), Reliability(NAMES)
    batch.add(*masks)
    for image in masks.swapaxes(0, 1):
        single.add(*image)
    assert batch.rows(0) == single.rows(0)


def test_a_network_that_repeats_clip_is_consistent_everywhere():
    meter = Reliability(NAMES)
    mask, truth = np.uint8([[0, 1], [2, 2]]), np.uint8([[0, 1], [1, 2]])
    meter.add(mask, mask, truth)
    total = meter.rows(0)[-1]
    assert total["share_consistent"] == 1 and total["precision_consistent"] == 0.75 and total["precision_noisy"] is None
