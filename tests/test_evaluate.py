from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest
import torch
import trees
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from carblib.errors import CarbError
from carblib.evaluate import (
    bootstrap,
    class_rows,
    confusion,
    evaluate_folder,
    evaluate_masks,
    evaluation_path,
    iou,
    main,
    miou,
)
from carblib.readers import open_split

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


@pytest.fixture
def camvid(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    truth = trees.write_segnet(tmp_path / "camvid")
    params = trees.params(tmp_path / "camvid", "camvid", run="r", bootstrap=50)
    return params, open_split(params, "test"), truth["test"]


def test_a_split_is_measured_and_written(camvid):
    params, split, truth = camvid

    def predict(index: int) -> np.ndarray:
        mask = truth[split.names[index]].copy()
        mask[:, :9] = 3
        return np.where(mask == 255, 0, mask).astype(np.uint8)

    result = evaluate_masks(predict, split, params, "plain", iteration=7)
    assert result == json.loads(evaluation_path(params, "plain", split.name).read_text())
    total = sum(confusion(predict(i), split.mask(i), 11) for i in range(len(split)))
    assert result["confusion"] == total.tolist() and result["images"] == 3 and result["iteration"] == 7
    np.testing.assert_allclose(result["iou"], iou(total))
    assert result["miou"] == pytest.approx(np.mean(result["iou"]))
    assert result["small_miou"] == pytest.approx(np.mean([result["iou"][c] for c in (2, 6, 9, 10)]))
    low, high = result["miou_interval"]
    assert low <= result["miou"] <= high and len(result["iou_interval"]) == 11
    names = [row["name"] for row in result["per_image"]]
    assert names == split.names and all(0 < row["miou"] < 1 for row in result["per_image"])
    objects = sum(row["small_objects"] for row in result["per_image"])
    assert objects == result["objects"]["total"]["count"] > 0
    rows = list(csv.DictReader(evaluation_path(params, "plain", split.name).with_suffix(".csv").open()))
    assert [row["class"] for row in rows][-2:] == ["miou", "small_miou"] and len(rows) == 13
    assert float(rows[3]["iou"]) == pytest.approx(result["iou"][3]) and rows[2]["small"] == "True"
    assert class_rows(result)[0]["truth_pixels"] == total[0].sum()


def test_a_mask_of_another_size_is_refused_or_resized(camvid):
    params, split, truth = camvid
    half = [truth[name][::2, ::2] for name in split.names]
    with pytest.raises(CarbError, match=f"image {split.names[0]}: prediction is"):
        evaluate_masks(lambda i: half[i], split, params, "half")
    assert not evaluation_path(params, "half", split.name).exists()
    result = evaluate_masks(lambda i: half[i], split, params, "half", resize=True)
    pairs = [(np.kron(mask, np.ones((2, 2), np.uint8)), truth[n]) for mask, n in zip(half, split.names, strict=True)]
    assert result["confusion"] == sum(confusion(*pair, 11) for pair in pairs).tolist()


def test_any_folder_of_predictions_is_measured(camvid, tmp_path, monkeypatch, capsys):
    params, split, truth = camvid
    folder = tmp_path / "someone"
    for name, mask in truth.items():
        trees.save(folder / f"{name}.png", mask)
    assert evaluate_folder(folder, split, params, "someone")["miou"] == 1
    file = tmp_path / "run.yaml"
    file.write_text(params.to_yaml())
    monkeypatch.setattr(sys, "argv", ["x", str(file), "--folder", str(folder), "--split", "test"])
    assert main() == 0 and "mIoU 100.0 %" in capsys.readouterr().out
    Image.new("RGB", (32, 18)).save(folder / f"{split.names[1]}.png")
    with pytest.raises(CarbError, match=f"{split.names[1]}.png: not an index PNG"):
        evaluate_folder(folder, split, params, "someone")
    (folder / f"{split.names[2]}.png").unlink()
    with pytest.raises(CarbError, match=rf"{split.names[2]}.png: no such prediction \(1 of 3 missing\)"):
        evaluate_folder(folder, split, params, "someone")


def test_a_folders_evaluation_has_a_name_of_its_own(camvid, tmp_path, monkeypatch, capsys):
    params, split, truth = camvid
    file = tmp_path / "run.yaml"
    file.write_text(params.to_yaml())
    predictions = params.run_dir / "predictions"
    folders = [predictions / "plain/test", predictions / "full/test", tmp_path / "full", tmp_path / "other/full"]
    for shift, folder in enumerate(folders):
        for name, mask in truth.items():
            trees.save(folder / f"{name}.png", np.roll(mask, 3 * shift))

    def measured(folder, *more):
        monkeypatch.setattr(sys, "argv", ["x", str(file), "--folder", str(folder), "--split", "test", *more])
        assert main() == 0
        return json.loads(open(capsys.readouterr().out.splitlines()[-1]).read())

    results = [measured(folder) for folder in folders[:2] + folders[1:2]]
    assert [result["variant"] for result in results] == ["plain", "full", "full"]
    assert results[0]["miou"] == 1 > results[1]["miou"]
    assert results[1]["folder"] == "runs/r/predictions/full/test"
    with pytest.raises(CarbError, match=r"full\.json: is the evaluation of runs/r/predictions/full/test, .*--variant"):
        measured(folders[2])
    assert measured(folders[2], "--variant", "theirs")["folder"] == str(folders[2])
    # A network's own evaluation, made without any folder, may be made anew from its predictions, and from no other.
    evaluate_masks(lambda i: truth[split.names[i]], split, params, "full")
    with pytest.raises(CarbError, match="is the evaluation of a network of this run"):
        measured(folders[3])
    assert measured(folders[1])["miou"] < 1


def test_a_cityscapes_submission_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    trees.write_cityscapes(tmp_path / "city")
    params = trees.params(tmp_path / "city", "cityscapes", "cityscapes")
    split = open_split(params, "val")
    for path in (tmp_path / "city/gtFine/val").rglob("*_labelIds.png"):
        trees.save(tmp_path / "sub" / path.name, np.array(Image.open(path)))
    assert evaluate_folder(tmp_path / "sub", split, params, "sub", label_ids=True)["miou"] == 1
    trees.save(tmp_path / "sub" / f"{split.names[0]}_again.png", np.zeros((16, 32), np.uint8))
    with pytest.raises(CarbError, match="a second prediction"):
        evaluate_folder(tmp_path / "sub", split, params, "sub", label_ids=True)
