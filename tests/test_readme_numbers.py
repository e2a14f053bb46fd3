"""The README's table of the demo says what the published table of the demo says."""

from __future__ import annotations

import csv
import re

import pytest
from places import REPOSITORY

FOLDER = REPOSITORY / "figures" / "published"
# README's row (how it begins) → the row of figures/published/table_comparison.csv and .md.
ROWS = {
    "CLIP's masks without labels": "CLIP masks, no labels",
    "CLIP's masks of the whole image": "CLIP masks",
    "CLIP's masks from local views": "CLIP masks, local views",
    "plain cross-entropy": "plain cross-entropy",
    "GLV + CARB (paper)": "GLV + CARB (paper)",
    "GLV + CARB per class (ours)": "GLV + CARB per class (ours)",
    "true masks (ceiling)": "true masks (ceiling)",
}
VALUE = r"\d+\.\d \[\d+\.\d, \d+\.\d\]"  # "36.5 [35.4, 37.6]"


def cells(text: str, label: str) -> list[str]:
    """The values with intervals in the row of a Markdown text that begins with `label`; no bold, no italics."""
    (values,) = [
        found
        for line in text.splitlines()
        if line.startswith(f"| {label} ") and (found := re.findall(VALUE, line.replace("*", "")))
    ]
    return values


@pytest.mark.parametrize(("label", "method"), ROWS.items())
def test_the_readme_has_the_demo_s_numbers(label: str, method: str) -> None:
    with (FOLDER / "table_comparison.csv").open(encoding="utf-8", newline="") as lines:
        (row,) = [row for row in csv.DictReader(lines) if row["method"] == method]
    expected = []
    for score in ("miou", "small_miou"):
        value, low, high = (f"{100 * float(row[key]):.1f}" for key in (score, f"{score}_low", f"{score}_high"))
        expected.append(f"{value} [{low}, {high}]")
    assert cells((REPOSITORY / "README.md").read_text("utf-8"), label) == expected
    assert cells((FOLDER / "table_comparison.md").read_text("utf-8"), method) == expected
