from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import trees
from commands import carb
from PIL import Image

from carblib.base.errors import CarbError
from carblib.base.files import read_json
from carblib.data.readers import open_split
from carblib.metrics import confusion, iou
from carblib.stages.evaluate import (
    class_rows,
    evaluate_folder,
    evaluate_masks,
    evaluation_path,
    evaluation_split,
    read_per_image,
)

CLASSES = 4


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
    assert result == read_json(evaluation_path(params, "plain", split.name))
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


def test_hidden_test_masks_leave_the_validation_split(camvid, tmp_path):
    params = camvid[0]
    assert evaluation_split(params).name == "test"
    shutil.rmtree(tmp_path / "camvid" / "testannot")
    assert evaluation_split(params).name == "val"


def test_a_mask_of_another_size_is_refused_or_resized(camvid):
    params, split, truth = camvid
    half = [truth[name][::2, ::2] for name in split.names]
    with pytest.raises(CarbError, match=f"image {split.names[0]}: prediction is"):
        evaluate_masks(lambda i: half[i], split, params, "half")
    assert not evaluation_path(params, "half", split.name).exists()
    result = evaluate_masks(lambda i: half[i], split, params, "half", resize=True)
    pairs = [(np.kron(mask, np.ones((2, 2), np.uint8)), truth[n]) for mask, n in zip(half, split.names, strict=True)]
    assert result["confusion"] == sum(confusion(*pair, 11) for pair in pairs).tolist()


def test_images_of_another_evaluation_are_not_taken_for_its_own(camvid):
    params, split, truth = camvid
    path = evaluation_path(params, "x", split.name)
    evaluate_masks(lambda i: truth[split.names[i]], split, params, "x")
    before = path.read_bytes()
    evaluate_masks(lambda i: np.zeros_like(truth[split.names[i]]), split, params, "x")
    assert len(read_per_image(path)["confusion"]) == 3
    path.write_bytes(before)  # killed before it wrote the JSON
    with pytest.raises(CarbError, match=r"x.npz: is of another evaluation than x.json"):
        read_per_image(path)


def test_any_folder_of_predictions_is_measured(camvid, tmp_path, capsys):
    params, split, truth = camvid
    folder = tmp_path / "someone"
    for name, mask in truth.items():
        trees.save(folder / f"{name}.png", mask)
    assert evaluate_folder(folder, split, params, "someone")["miou"] == 1
    file = tmp_path / "run.yaml"
    file.write_text(params.to_yaml())
    assert carb("evaluate", file, "--folder", folder, "--split", "test") == 0
    assert "mIoU 100.0 %" in capsys.readouterr().out
    Image.new("RGB", (32, 18)).save(folder / f"{split.names[1]}.png")
    with pytest.raises(CarbError, match=f"{split.names[1]}.png: not an index PNG"):
        evaluate_folder(folder, split, params, "someone")
    (folder / f"{split.names[2]}.png").unlink()
    with pytest.raises(CarbError, match=rf"{split.names[2]}.png: no such prediction \(1 of 3 missing\)"):
        evaluate_folder(folder, split, params, "someone")


def test_a_folders_evaluation_has_a_name_of_its_own(camvid, tmp_path, capsys):
    params, split, truth = camvid
    file = tmp_path / "run.yaml"
    file.write_text(params.to_yaml())
    predictions = params.run_dir / "predictions"
    folders = [predictions / "plain/test", predictions / "paper/test", tmp_path / "paper", tmp_path / "other/paper"]
    for shift, folder in enumerate(folders):
        for name, mask in truth.items():
            trees.save(folder / f"{name}.png", np.roll(mask, 3 * shift))

    def measured(folder, *more):
        assert carb("evaluate", file, "--folder", folder, "--split", "test", *more) == 0
        return read_json(capsys.readouterr().out.splitlines()[-1])

    results = [measured(folder) for folder in folders[:2] + folders[1:2]]
    assert [result["variant"] for result in results] == ["plain", "paper", "paper"]
    assert results[0]["miou"] == 1 > results[1]["miou"]
    assert results[1]["folder"] == "runs/r/predictions/paper/test"
    with pytest.raises(
        CarbError, match=r"paper\.json: is the evaluation of runs/r/predictions/paper/test, .*--variant"
    ):
        measured(folders[2])
    assert measured(folders[2], "--variant", "theirs")["folder"] == str(folders[2])
    # A network's own evaluation, made without any folder, may be made anew from its predictions, and from no other.
    evaluate_masks(lambda i: truth[split.names[i]], split, params, "paper")
    with pytest.raises(CarbError, match="is the evaluation of a network of this run"):
        measured(folders[3])
    assert measured(folders[1])["miou"] < 1


def test_what_others_predicted_is_never_shown_as_a_row_of_ours(camvid, tmp_path):
    params, _, truth = camvid
    file = tmp_path / "run.yaml"
    file.write_text(params.to_yaml())
    theirs, other = tmp_path / "ours", params.run_dir / "predictions/plain/test"
    own, masks = params.run_dir / "predictions/ours/test", params.run_dir / "pseudo_masks/test"
    local, submission = params.run_dir / "pseudo_masks_local/test", own.with_name("test_labelIds")
    for folder in (theirs, other, own, masks, local, submission):
        for name, mask in truth.items():
            trees.save(folder / f"{name}.png", mask)

    def evaluate(folder, *variant):
        return carb("evaluate", file, "--folder", folder, "--split", "test", *variant)

    for folder, *variant in (
        (theirs,), (theirs, "ours"), (theirs, "ceiling"), (theirs, "pseudo_masks_global"), (theirs, "pseudo_masks_x"),
        (other, "ours"), (masks, "ours"), (own, "pseudo_masks_global"), (masks, "pseudo_masks_local"),
    ):  # fmt: skip
        name = variant[0] if variant else "ours"
        with pytest.raises(CarbError, match=f"variant '{name}': .*, and {folder} is not; .* --variant"):
            evaluate(folder, *(["--variant", name] if variant else []))
    assert not (params.run_dir / "evaluation").exists()
    for folder, name in (
        (own, "ours"), (submission, "ours"), (masks, "pseudo_masks_global"), (local, "pseudo_masks_local"),
        (theirs, "theirs"),
    ):  # fmt: skip
        assert evaluate(folder, "--variant", name) == 0 and evaluation_path(params, name, "test").is_file()


def test_predictions_that_are_no_folder(camvid, tmp_path):
    (tmp_path / "file").touch()
    for name, said in (("nowhere", "no such folder"), ("file", "is a file")):
        with pytest.raises(CarbError, match=f"{name}: {said}; ") as error:
            evaluate_folder(tmp_path / name, camvid[1], camvid[0], "x")
        assert "missing" not in str(error.value)


def test_a_cityscapes_submission_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    trees.write_cityscapes(tmp_path / "city")
    params = trees.params(tmp_path / "city", "cityscapes", "cityscapes")
    split = open_split(params, "val")
    for path in (tmp_path / "city/gtFine/val").rglob("*_labelIds.png"):
        trees.save(tmp_path / "sub" / path.name, np.array(Image.open(path)))
        trees.save(tmp_path / "cities" / path.parent.name / path.name, np.array(Image.open(path)))
    for folder in (tmp_path / "sub", tmp_path / "cities"):
        assert evaluate_folder(folder, split, params, "sub", label_ids=True)["miou"] == 1
    for again in (f"sub/{split.names[0]}_again.png", f"cities/{split.names[0]}.png"):
        trees.save(tmp_path / again, np.zeros((16, 32), np.uint8))
        with pytest.raises(CarbError, match=f"a second prediction of image {split.names[0]}, beside"):
            evaluate_folder((tmp_path / again).parent, split, params, "sub", label_ids=True)


def test_predictions_are_found_however_a_system_writes_their_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    truth = trees.write_folder(tmp_path / "d/train", ["é.png", "b.png"], tmp_path / "d/trainannot")
    params = trees.params(tmp_path / "d", "folder", [{"name": name} for name in ("sky", "road", "tram")], bootstrap=0)
    split = open_split(params, "train")
    trees.save(tmp_path / "p" / "b.PNG", truth["b"])
    trees.save(tmp_path / "p" / "e\u0301.png", truth["é"])
    trees.save(tmp_path / "p" / "c.png", truth["b"])
    trees.save(tmp_path / "p" / "colour" / "b.png", truth["b"])
    assert evaluate_folder(tmp_path / "p", split, params, "p")["miou"] == 1
    assert "p: one file, c.png, of no image of the split" in capsys.readouterr().out
    for variant in ("../../evil", "a/b", ".x"):
        with pytest.raises(CarbError, match="no plain name of a file"):
            evaluate_folder(tmp_path / "p", split, params, variant)
