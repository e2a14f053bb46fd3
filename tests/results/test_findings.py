"""What notebooks say beside the figures: the numbers are right, and missing ones are no numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from small import small_params

from carblib.classes import CAMVID
from carblib.results import findings
from carblib.results.saved import RunResults
from carblib.variants import variant_label


def test_points() -> None:
    assert findings.points(0.5, 0.25) == "+25.0" and findings.points(0.25, 0.5) == "-25.0"
    assert findings.points(None, 0.5) == findings.points(0.5, None) == "–"


def test_label_bits_are_entropies() -> None:
    labels = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    np.testing.assert_allclose(findings.label_bits(labels), [0, 1, 0, quarter], atol=1e-5)
    found = re.findall(r"[\d.]+\d|\d", findings.of_labels(labels))
    assert found == ["1.8", "4", "1.8", "4", "3", "4"], "classes per image, bits, different sets of labels"


def test_label_table_is_sorted_by_bits() -> None:
    labels = np.ones((4, len(CAMVID)), bool)
    labels[:2, CAMVID.index("car")] = False
    table = findings.label_table(labels, CAMVID)
    assert table.index[0] == "car" and table["bits"].iloc[0] == 1 and table["bits"].iloc[1:].max() == 0


def evaluation(variant: str, ious: list[float], low: float = 0.0, high: float = 1.0) -> dict:
    return {
        "variant": variant, "split": "test", "images": 5, "class_names": list(CAMVID.names), "iou": ious,
        "miou": float(np.mean(ious)), "small_miou": ious[CAMVID.small_ids[0]], "miou_interval": [low, high],
        "objects": {"total": {"recall": 0.5}},
    }  # fmt: skip


def test_masks_are_told_by_scores_and_objects() -> None:
    zoomed = evaluation("l", [0.3] * 11) | {"small_miou": None, "objects": {"total": {"recall": 0.75}}}
    whole = evaluation("g", [0.2] * 11)
    said = findings.of_masks({"pseudo_masks_global": whole, "pseudo_masks_local": zoomed})
    numbers = re.findall(r"[\d.]+\d|–", said)
    assert numbers == ["20.0", "20.0", "50.0", "30.0", "–", "75.0"]


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
        params=small_params(),
        evaluations=evaluations or {},
        validation={"ceiling": evaluation("ceiling", [0.6] * 11) | {"split": "val"}},
        analysis=None,
        maskers=None,
        ablations=None,
        logs=logs,
        reliability=reliability,
    )


def test_training_table() -> None:
    table = findings.training_table(run())
    row = table.loc[variant_label("paper")]
    assert (row["iterations"], row["time"], row["loss"], row["λ"]) == ("20", "1 min 0 s", "1.00", "0.5")
    assert (row["best val mIoU"], row["last val mIoU"]) == ("25.0", "25.0")
    regions = ["consistent", "right inside", "right outside"]
    assert [*row[regions]] == ["50.0", "80.0", "40.0"]
    assert [*table.loc[variant_label("ceiling"), regions]] == ["–"] * 3, "it learns from true masks"
    assert findings.training_table(run(weight=np.nan))["λ"].unique().tolist() == ["–"]


def test_the_conclusion_names_the_best_network_and_is_honest_about_it() -> None:
    def scored(**scores: float) -> str:
        return findings.conclusion(run({v: evaluation(v, [x] * 11, x - 0.02, x + 0.02) for v, x in scores.items()}))

    said = scored(pseudo_masks_global=0.5, plain=0.2, paper=0.4, ours=0.3, ceiling=0.6)
    assert said.startswith("On 5 images of rendered scenes, GLV + CARB (paper) reaches 40.0 % mIoU, 40.0 % on small")
    gaps = "20.0 above plain cross-entropy, 10.0 below CLIP's masks (which are told each image's labels) and 20.0 below"
    assert gaps in said and "overlap" not in said
    assert "1.0 above plain cross-entropy (intervals overlap)." in scored(plain=0.39, paper=0.4)
    assert "not clearly better than GLV + CARB per class (ours)" in scored(ours=0.39, paper=0.4)
    assert (
        scored(pseudo_masks_global=0.5)
        == "On 5 images of rendered scenes, CLIP masks reaches 50.0 % mIoU, 50.0 % on small classes."
    )
    assert scored() == ""


def test_evaluation_compares_on_one_split_and_says_where_intervals_overlap() -> None:
    evaluations = {
        "pseudo_masks_global": evaluation("pseudo_masks_global", [0.2] * 11, 0.19, 0.21),
        "plain": evaluation("plain", [0.25] * 11, 0.2, 0.31),
        "paper": evaluation("paper", [0.3] * 11, 0.29, 0.31),
    }
    text = findings.of_evaluation(run(evaluations))
    best, compared = text.split("Points of mIoU: ")
    assert re.findall(r"[\d.]+ %|\d+ images", best) == ["30.0 %", "30.0 %", "50.0 %", "5 images"]
    masks, plain = compared.split(", ")
    assert masks == f"+10.0 against {variant_label('pseudo_masks_global')}", "the ceiling is measured on another split"
    assert plain.startswith("+5.0") and "overlap" in plain
    alone = findings.of_evaluation(run({"paper": evaluations["paper"]}))
    assert "30.0 %" in alone and "Points" not in alone
    assert not re.search(r"\d", findings.of_evaluation(run())), "nothing measured, no number"


def ablated(variant: str, scores: list[float | None], path: str = "single") -> list[dict]:
    return [
        {"masker": "value_path", "path": path, "variant": variant, "seed": None if variant == "pseudo_masks" else seed,
         "miou": score, "small_miou": None if variant == "carb" else score and score / 2}
        for seed, score in enumerate(scores)
    ]  # fmt: skip


def test_gains_are_those_of_the_same_seed() -> None:
    scores = {"pseudo_masks": [0.3], "plain": [0.40, 0.50], "paper": [0.39, 0.53], "carb": [0.38, 0.44],
              "glv": [0.42, 0.54, 0.9], "ceiling": [0.8, 0.9]}  # fmt: skip
    rows = [row for variant, values in scores.items() for row in ablated(variant, values)]
    table = findings.gain_table([*rows, *ablated("plain", [0.5], "dual"), *ablated("glv", [0.4], "dual")])
    assert [*table.index] == [
        *(("value path", "single path", variant_label(variant)) for variant in ("glv", "carb", "paper")),
        ("value path", "dual path", variant_label("glv")),
    ], "in reading order, without masks, ceiling and the one compared with"
    assert table.to_numpy().tolist() == [
        ["+3.0", "2 of 2", "+1.5"],  # the third seed has nothing to be compared with
        ["-4.0", "0 of 2", "–"],
        ["+1.0", "1 of 2", "+0.5"],
        ["-10.0", "0 of 1", "-5.0"],
    ]
    assert findings.gain_table(ablated("glv", [0.4])).empty
    failed = findings.gain_table(ablated("plain", [0.2, 0.2]) + ablated("glv", [None, 0.3]))
    assert failed.to_numpy().tolist() == [["+10.0", "1 of 1", "+5.0"]]
