"""Sentences that are put together from results must say what came out, whichever way it came out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carblib.classes import CAMVID
from carblib.params import Params
from carblib.results import findings
from carblib.results.saved import RunResults
from carblib.variants import variant_label


def test_percent_and_points() -> None:
    assert findings.percent(0.1234) == "12.3 %" and findings.percent(None) == findings.percent(float("nan")) == "–"
    assert findings.points(0.5, 0.25) == "+25.0" and findings.points(0.25, 0.5) == "-25.0"
    assert findings.points(None, 0.5) == "–"


def test_label_bits_are_entropies() -> None:
    labels = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    np.testing.assert_allclose(findings.label_bits(labels), [0, 1, 0, quarter], atol=1e-5)
    assert "2.0 of 4 classes" not in findings.of_labels(labels)
    text = findings.of_labels(labels)
    assert "1.8 of 4 classes" in text and "1.8 bits" in text and "3 different sets" in text


def test_label_table_is_sorted_by_bits() -> None:
    labels = np.ones((4, len(CAMVID)), bool)
    labels[:2, CAMVID.index("car")] = False
    table = findings.label_table(labels, CAMVID)
    assert table.index[0] == "car" and table["bits"].iloc[0] == 1 and table["bits"].iloc[1:].max() == 0


def evaluation(variant: str, ious: list[float | None], low: float = 0.0, high: float = 1.0) -> dict:
    known = [iou for iou in ious if iou is not None]
    return {
        "variant": variant, "split": "test", "images": 5, "class_names": list(CAMVID.names), "iou": ious,
        "miou": float(np.mean(known)), "small_miou": ious[CAMVID.small_ids[0]], "miou_interval": [low, high],
        "objects": {"total": {"recall": 0.5}},
    }  # fmt: skip


def test_zooming_names_best_and_worst_class() -> None:
    before, after = [0.2] * 11, [0.2] * 11
    after[2], after[0], before[5] = 0.5, 0.1, None
    text = findings.of_zooming(evaluation("g", before), evaluation("l", after))
    assert "*pole* (+30.0 points" in text and "*sky* (-10.0)" in text


@pytest.mark.parametrize(("small", "words"), [(0.3, "which is why"), (0.1, "do not help"), (None, "do not help")])
def test_masks_conclusion_follows_the_numbers(small: float | None, words: str) -> None:
    zoomed = evaluation("l", [0.2, 0.2, small, *[0.2] * 8])
    ways = [{"masker": "value_path", "miou": 0.2, "images": 3}, {"masker": "key_key", "miou": 0.4, "images": 3}]
    text = findings.of_masks(evaluation("g", [0.2] * 11), zoomed, ways)
    assert words in text and "*key key*" in text and "40.0 %" in text


def run(evaluations: dict | None = None, inside: float = 0.8, weight: float = 0.5) -> RunResults:
    rows = [
        {"iteration": i, "class": name, "share_consistent": 0.5, "precision_consistent": inside,
         "precision_noisy": 0.4, "pixels": 100} for i in (10, 20) for name in CAMVID.names
    ]  # fmt: skip
    log = pd.DataFrame({
        "iteration": [10, 20], "loss": [2.0, 1.0], "weight": [np.nan, weight], "consistent_share": [0.5, 0.6],
        "seconds": [30.0, 60.0], "val_miou": [np.nan, 0.25],
    })  # fmt: skip
    reliability = {variant: pd.DataFrame(rows) for variant in ("plain", "paper", "ceiling")}
    logs = {variant: log for variant in reliability}
    return RunResults(
        folder=Path("runs/x"),
        params=Params(),
        evaluations=evaluations or {},
        validation={"ceiling": evaluation("ceiling", [0.6] * 11) | {"split": "val"}},
        analysis=None,
        maskers=None,
        ablations=None,
        logs=logs,
        reliability=reliability,
    )


@pytest.mark.parametrize(("inside", "words"), [(0.8, "is a sign of truth"), (0.3, "is not a sign of truth")])
def test_training_conclusion_follows_the_numbers(inside: float, words: str) -> None:
    text = findings.of_training(run(inside=inside))
    assert words in text and f"{100 * abs(inside - 0.4):.0f} points" in text
    assert text.count("- ") == 2, "plain and full, not the ceiling"


@pytest.mark.parametrize(("weight", "words"), [(0.01, "switched off"), (0.5, "keeps a say")])
def test_lambda_is_told_for_balanced_trainings_only(weight: float, words: str) -> None:
    lines = findings.of_training(run(weight=weight)).splitlines()
    assert words in lines[1] and "λ" not in lines[0]


def test_training_table() -> None:
    table = findings.training_table(run())
    row = table.loc[variant_label("paper")]
    assert (row["λ at the end"], row["best val mIoU"], row["minutes"]) == ("0.5", "25.0 %", "1.0")


def test_evaluation_compares_on_one_split_and_says_when_intervals_overlap() -> None:
    evaluations = {
        "pseudo_masks_global": evaluation("pseudo_masks_global", [0.2] * 11, 0.19, 0.21),
        "plain": evaluation("plain", [0.25] * 11, 0.2, 0.31),
        "paper": evaluation("paper", [0.3] * 11, 0.29, 0.31),
    }
    lines = findings.of_evaluation(run(evaluations)).splitlines()
    assert "The paper's method against CLIP's masks: +10.0 points" in lines[0] and "do not overlap" in lines[0]
    assert "+5.0 points" in lines[1] and lines[1].endswith("overlap.") and "do not" not in lines[1]
    assert not any("true masks" in line for line in lines), "measured on another split"
    assert "30.0 % mIoU" in lines[-1] and "20.0 %" in lines[-1]


@pytest.mark.parametrize(
    ("local", "words"),
    [
        (None, "; CLIP's masks have 20.0 %, which is less, but are told each image's labels"),
        (0.5, "; CLIP's masks from local views, the better of the two kinds, have 50.0 %, which is more, but are told"),
        (0.1, "; CLIP's masks, the better of the two kinds, have 20.0 %, which is less, but are told"),
    ],
)
def test_evaluation_concludes_with_the_better_of_the_pseudo_masks(local: float | None, words: str) -> None:
    scores = {"pseudo_masks_global": 0.2, "pseudo_masks_local": local, "paper": 0.3}
    evaluations = {v: evaluation(v, [score] * 11) for v, score in scores.items() if score}
    assert words in findings.of_evaluation(run(evaluations)).splitlines()[-1]
    untold = findings.of_evaluation(dataclasses.replace(run(evaluations), params=Params(gate="none")))
    assert "told" not in untold.splitlines()[-1]


def test_nothing_measured_is_said() -> None:
    assert "nothing to conclude" in findings.of_evaluation(run())
