from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
import trees

from carblib.base.errors import CarbError
from carblib.classes import CAMVID
from carblib.data.mask_folders import read_mask, write_mask
from carblib.data.readers import open_split
from carblib.stages import crf
from carblib.stages.crf import refine, refine_folder, unary

needs_densecrf = pytest.mark.skipif(
    importlib.util.find_spec("pydensecrf") is None, reason="pydensecrf is not installed (extra 'crf', Python < 3.13)"
)
# A bright square on dark ground.
IMAGE = np.full((41, 53, 3), 30, np.uint8)
IMAGE[10:30, 12:40] = 220
TRUTH = np.where(IMAGE[..., 0] > 100, np.uint8(7), np.uint8(2))


def ragged(seed: int = 0) -> np.ndarray:
    """The true mask with a fifth of its pixels wrong."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(TRUTH.shape) < 0.2, np.uint8(9) - TRUTH, TRUTH).astype(np.uint8)


@needs_densecrf
def test_a_ragged_mask_is_drawn_to_the_edges_of_the_image():
    mask = ragged()
    refined = refine(IMAGE, mask, 11)
    assert refined.dtype == np.uint8 and set(np.unique(refined)) <= {2, 7}
    assert (mask == TRUTH).mean() < 0.85 and (refined == TRUTH).mean() > 0.99


@needs_densecrf
def test_compact_labels_are_the_library_s_own_result(monkeypatch):
    import pydensecrf.densecrf as dense
    from pydensecrf.utils import unary_from_labels

    compact = np.where(ragged() == 7, 1, 0)
    compact[30:35, 5:9] = 2
    field = dense.DenseCRF2D(53, 41, 3)
    field.setUnaryEnergy(unary_from_labels(compact, 3, 0.7, zero_unsure=False))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=IMAGE, compat=10)
    expected = np.argmax(field.inference(10), 0).reshape(41, 53)
    assert np.array_equal(refine(IMAGE, np.uint8([2, 7, 18])[compact], 3), np.uint8([2, 7, 18])[expected])
    monkeypatch.setattr(crf, "SETTINGS", crf.SETTINGS | {"gt_prob": 0.999, "iterations": 1})
    stronger = refine(IMAGE, np.uint8([2, 7, 18])[compact], 3)
    assert (stronger == np.uint8([2, 7, 18])[compact]).mean() > (expected == compact).mean()


@needs_densecrf
@pytest.mark.parametrize("classes", [11, 19, 25])
def test_leaving_out_absent_classes_gives_what_the_official_script_gives_with_all(classes):
    import pydensecrf.densecrf as dense
    from pydensecrf.utils import unary_from_labels

    generator = np.random.default_rng(classes)
    ramp = np.linspace(0, 90, 53)[None, :, None] + generator.normal(0, 25, (*TRUTH.shape, 3))
    image = np.ascontiguousarray(np.clip(IMAGE / 3 + ramp, 0, 255).astype(np.uint8))
    mask = ragged(classes)
    mask[25:38, 5:20] = 4
    field = dense.DenseCRF2D(53, 41, classes)
    field.setUnaryEnergy(unary_from_labels(mask.astype(np.int32), classes, gt_prob=0.7, zero_unsure=False))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=image, compat=10)
    expected = np.argmax(field.inference(10), 0).reshape(TRUTH.shape)
    refined = refine(image, mask, classes)
    assert (refined != mask).mean() > 0.02 and (refined == expected).mean() >= 0.999
    assert (refine(image, mask, 3) == expected).mean() < 0.999, "the number of classes matters"


def test_unary_energies_are_the_formula():
    energies = unary(np.uint8([[3, 9], [12, 255]]), np.uint8([3, 9, 12]), 16, 0.7)
    expected = [[0.7, 0.02, 0.02, 1 / 16], [0.02, 0.7, 0.02, 1 / 16], [0.02, 0.02, 0.7, 1 / 16]]
    np.testing.assert_allclose(np.exp(-energies), expected, rtol=1e-6)


@needs_densecrf
def test_ignored_pixels_stay_ignored():
    mask = ragged()
    mask[0:5] = 255
    refined = refine(IMAGE, mask, 11)
    assert (refined[:5] == 255).all() and not (refined[5:] == 255).any()


def test_one_class_needs_no_refinement_and_no_library(monkeypatch):
    monkeypatch.setattr(crf, "load_densecrf", None)
    mask = np.full((41, 53), 4, np.uint8)
    mask[3] = 255
    assert np.array_equal(refine(IMAGE, mask, 11), mask)
    with pytest.raises(CarbError, match=r"image is \(41, 53\), its mask \(4, 4\)"):
        refine(IMAGE, mask[:4, :4], 11)


@needs_densecrf
def test_a_folder_is_refined_once_and_resumed(tmp_path, monkeypatch, quick_processes):
    trees.write_segnet(tmp_path / "camvid")
    params = trees.params(tmp_path / "camvid", "camvid", image_size=(24, 40), crop=(24, 40), patch=(8, 8))
    split = open_split(params, "test")
    raw, folder = tmp_path / "raw", tmp_path / "refined"
    for seed, name in enumerate(split.names):
        write_mask(raw, name, np.random.default_rng(seed).choice(np.uint8([1, 4, 8]), (24, 40)), split.class_set)
    labels = np.ones((len(split), 11), bool)
    refine_folder(raw, folder, split, labels, params)
    first, second, third = (folder / f"{name}.png" for name in split.names)
    before = {path: path.read_bytes() for path in (first, second, third)}
    for path in (second, third):
        path.unlink()
    os.utime(first, (1, 1))
    refine_folder(raw, folder, split, labels, params, processes=2)
    assert {path: path.read_bytes() for path in before} == before and first.stat().st_mtime == 1
    image = crf.load_sized(split.image(0), (24, 40)).permute(1, 2, 0).numpy()
    expected = refine(image, read_mask(raw, split.names[0], CAMVID), 11)
    assert np.array_equal(read_mask(folder, split.names[0], CAMVID), expected)
    monkeypatch.setattr(crf, "SETTINGS", crf.SETTINGS | {"iterations": 3})
    with pytest.raises(CarbError, match="refined pseudo-masks made otherwise: crf .* → .* --crf --renew"):
        refine_folder(raw, folder, split, labels, params)
    assert first.stat().st_mtime == 1
    refine_folder(raw, folder, split, labels, params, renew=True)
    assert first.stat().st_mtime > 1
    expected = refine(image, read_mask(raw, split.names[0], CAMVID), 11)
    assert np.array_equal(read_mask(folder, split.names[0], CAMVID), expected)
