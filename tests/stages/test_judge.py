"""cityscapesScripts' own evaluator is the judge: on a tree in Cityscapes' form its scores are ours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import trees
from PIL import Image

from carblib.classes import CITYSCAPES
from carblib.data.mask_folders import write_mask
from carblib.data.readers import open_split
from carblib.stages.evaluate import evaluate_folder
from carblib.stages.predict import write_submission

judge = pytest.importorskip(
    "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
    reason="cityscapesScripts is not installed (extra 'judge')",
)

TRAIN, MOTORCYCLE = 31, 32  # label ids


@pytest.fixture
def city(tmp_path, monkeypatch):
    """A val split without trains and motorcycles, and predictions a third wrong: void, and motorcycles, among them."""
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    trees.write_cityscapes(tmp_path / "city", (24, 48))
    params = trees.params(tmp_path / "city", "cityscapes", "cityscapes", bootstrap=10)
    for path in (tmp_path / "city/gtFine").rglob("*_labelIds.png"):
        label_ids = np.array(Image.open(path))
        label_ids[(label_ids == TRAIN) | (label_ids == MOTORCYCLE)] = 0
        trees.save(path, label_ids)
    split, generator = open_split(params, "val"), np.random.default_rng(0)
    guesses = [*range(16), 17, 18, 255, 255]  # not 16, train
    for i, name in enumerate(split.names):
        truth = split.mask(i)
        guess = generator.choice(np.uint8(guesses), truth.shape)
        mask = np.where((generator.random(truth.shape) < 0.33) | (truth == 255), guess, truth)
        write_mask(tmp_path / "masks", name, mask, CITYSCAPES)
    return params, split, tmp_path


def judged(predictions: list, truths: list) -> dict:
    judge.args.evalInstLevelScore = False  # needs numpy < 2.4 and Pillow < 13
    judge.args.JSONOutput, judge.args.quiet = False, True
    return judge.evaluateImgLists([str(path) for path in predictions], [str(path) for path in truths], judge.args)


def test_class_scores_and_mean_are_the_judge_s(city):
    params, split, root = city
    submission = write_submission(root / "masks", split, root / "submission")
    predictions = [next(submission.glob(f"{name}*.png")) for name in split.names]
    assert max(np.array(Image.open(path)).max() for path in predictions) == 33
    theirs = judged(predictions, split.mask_paths)
    for ours in (
        evaluate_folder(root / "masks", split, params, "index"),
        evaluate_folder(submission, split, params, "submission", label_ids=True),
    ):
        for name, value in zip(CITYSCAPES.names, ours["iou"], strict=True):
            score = theirs["classScores"][name]
            assert math.isnan(score) if value is None else score == pytest.approx(value, abs=1e-6), name
        assert theirs["averageScoreClasses"] == pytest.approx(ours["miou"], abs=1e-6)
        # The three cases that tell evaluators apart: in neither, only predicted, and void predicted on valid pixels.
        assert ours["iou"][CITYSCAPES.index("train")] is None and ours["iou"][CITYSCAPES.index("motorcycle")] == 0
        assert np.array(ours["confusion"])[:, -1].sum() > 10 and 0.3 < ours["miou"] < 0.9


def test_the_judge_takes_the_files_by_their_names(city, monkeypatch):
    params, split, root = city
    submission = write_submission(root / "masks", split, root / "submission")
    monkeypatch.setattr(judge.args, "predictionPath", str(submission))
    monkeypatch.setattr(judge.args, "predictionWalk", None)
    for i, name in enumerate(split.names):
        assert judge.getPrediction(judge.args, str(split.mask_paths[i])) == str(
            submission / f"{name}_pred_labelIds.png"
        )
