"""Numbers as every table, figure and page writes them."""

from __future__ import annotations

import pytest

from carblib.results.words import duration, percent


def test_percent() -> None:
    assert (percent(0.4482), percent(0.4482, 0), percent(0.0), percent(1)) == ("44.8", "45", "0.0", "100.0")
    assert percent(None) == percent(float("nan")) == "–"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words
