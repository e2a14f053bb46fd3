"""The explorer without a browser: what it shows is what the library computes, and every state has its picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from explorer_runs import SIZE, picture, tiny_params, write_evaluation
from PIL import Image
from scipy import ndimage

from carblib.base import files, images
from carblib.base.errors import CarbError
from carblib.data.labels import labels_path, write_labels
from carblib.data.mask_folders import pseudo_mask_folder, write_mask
from carblib.explore.explorer import GATES, Explorer
from carblib.explore.kept import Kept
from carblib.explore.networks import trained_networks
from carblib.explore.order import CLASS, DISAGREEMENT, MIOU, NAME, RECALL, first_state, order, sorts
from carblib.explore.panel import ExplorerPanel
from carblib.explore.views import short_name, view_figure, view_of, view_record
from carblib.figures.captions import save_figure
from carblib.infer import predict_mask
from carblib.masker import Masker, pseudo_mask
from carblib.stages.evaluate import evaluation_path
from carblib.stages.predict import prediction_folder
from carblib.views import LocalView, local_pseudo_mask

# --- states and pictures -----------------------------------------------------------------------------------------


def test_first_state_is_the_runs_own_settings(explorer: Explorer) -> None:
    state = first_state(explorer)
    assert list(explorer.splits) == ["val"] and list(explorer.networks) == ["plain", "paper"]
    assert explorer.networks["paper"].name == "checkpoint.pt" and trained_networks(tiny_params(run="none")) == {}
    assert (state.split, state.network, state.masker, state.gate) == ("val", "paper", "value_path", "labels")
    # Class and local view are on the largest small object: in scipy's words as well.
    truth = explorer.subject(state).truth
    pieces = {c: ndimage.label(truth == c, np.ones((3, 3)))[0] for c in explorer.class_set.small_ids}
    largest = max(np.bincount(labels.ravel())[1:].max(initial=0) for labels in pieces.values())
    (piece,) = {n for n in range(1, pieces[state.class_id].max() + 1) if (pieces[state.class_id] == n).sum() == largest}
    rows, columns = np.nonzero(pieces[state.class_id] == piece)
    assert state.centre == (int(np.median(rows)), int(np.median(columns)))


@pytest.mark.parametrize(
    "change",
    [
        {"index": 1},
        {"class_id": 0},
        {"masker": "naclip"},
        {"network": "plain"},
        {"network": ""},
        {"other": "plain"},
        {"local": True},
        {"opacity": 0.2},
        {"text": "car"},
        {"pixel": (10, 10)},
    ],
    ids=str,
)
def test_every_change_of_state_changes_the_picture(explorer: Explorer, change: dict) -> None:
    before = first_state(explorer)
    one, other = picture(explorer, before), picture(explorer, replace(before, **change))
    assert one != other and one == picture(explorer, before)


def test_local_view_is_made_as_in_training_and_only_inside_its_box(explorer: Explorer) -> None:
    state = replace(first_state(explorer), local=True, centre=(40, 5), zoom=1.7)
    top, left, bottom, right = explorer.box(state)
    assert (bottom - top, right - left) == (32, 24) and left == 0
    subject, masker = explorer.subject(state), explorer.masker(state.masker)
    view = LocalView(torch.tensor([[top, left, bottom, right]]), 1.7)
    expected = local_pseudo_mask(masker, subject.pixels[None], subject.labels[None], view)[0].numpy()
    whole = masker(subject.pixels[None], subject.labels[None])[0].numpy()
    mask = explorer.pseudo_mask(state)
    np.testing.assert_array_equal(mask[top:bottom, left:right], expected)
    np.testing.assert_array_equal(explorer.pseudo_mask(replace(state, local=False)), whole)
    mask[top:bottom, left:right] = whole[top:bottom, left:right]
    np.testing.assert_array_equal(mask, whole)
    assert explorer.box(replace(state, centre=(63, 127))) == (32, 104, 64, 128)


@pytest.mark.parametrize("pixel", [(0, 0), (63, 127), (30, 61)])
@pytest.mark.parametrize("local", [False, True])
def test_similarity_at_a_pixel_is_that_of_the_maps(explorer: Explorer, pixel: tuple, local: bool) -> None:
    state = replace(first_state(explorer), local=local, centre=(30, 61), text="car")
    found = explorer.similarity_at(state, pixel)
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
    values = dict(found)
    for class_id, name in enumerate(explorer.class_set.names):
        expected = explorer.similarity(replace(state, class_id=class_id))[pixel]
        assert values[name] == pytest.approx(expected, abs=1e-5)
    assert values["“car”"] == pytest.approx(explorer.text_similarity(state)[pixel], abs=1e-5)
    assert values["“car”"] == pytest.approx(values["car"], abs=1e-5)  # the class's own word


def test_gate_uses_the_labels_on_disk(home: Path) -> None:
    params = tiny_params(run="gated")
    few = np.array([name in ("sky", "road") for name in params.class_set.names])
    write_labels(labels_path(params, "val"), dict.fromkeys(("000001", "000002", "000003"), few), params.class_set)
    explorer = Explorer(params)
    state = first_state(explorer)
    masks = {gate: explorer.pseudo_mask(replace(state, gate=gate)) for gate in GATES}
    assert set(np.unique(masks["labels"])) <= set(np.flatnonzero(few)) and len(np.unique(masks["none"])) > 2
    pixels, labels = explorer.subject(state).pixels[None], torch.from_numpy(few)[None]
    for gate, mask in masks.items():
        similarity = explorer.masker(state.masker).similarity(pixels)
        np.testing.assert_array_equal(mask, pseudo_mask(similarity, labels, SIZE, gate)[0])
    assert picture(explorer, state) != picture(explorer, replace(state, gate="none"))


def test_words_against_the_class_list(explorer: Explorer) -> None:
    state = replace(first_state(explorer), text="zebra crossing")
    assert explorer.unknown_words(state) == ["zebra", "crossing"] and not explorer.has_words(state)
    assert len(view_of(explorer, state).panels) == len(view_of(explorer, replace(state, text="")).panels)
    known = replace(state, text="red car")
    assert not explorer.unknown_words(known) and len(view_of(explorer, known).panels) == 8
    own = replace(state, text=explorer.class_set.words[3][0])
    assert explorer.text_margin(own).max() == pytest.approx(0, abs=1e-6)  # a class never beats itself
    assert not explorer.has_words(replace(state, text="")) and not explorer.unknown_words(replace(state, text=""))


def test_prediction_and_regions_are_those_of_training(explorer: Explorer) -> None:
    state = replace(first_state(explorer), network="plain")
    everything, gated = explorer.prediction(state)
    subject = explorer.subject(state)
    network = explorer._network("plain")
    np.testing.assert_array_equal(everything, predict_mask(network, subject.image, explorer.params))
    assert set(np.unique(gated)) <= set(subject.labels.nonzero().flatten().tolist())
    np.testing.assert_array_equal(explorer.consistent(state), gated == explorer.pseudo_mask(state))
    assert explorer.consistent(replace(state, network="")) is None


def test_clip_and_network_look_once_at_an_image(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("similarity", "features"):
        original = getattr(Masker, name)
        monkeypatch.setattr(
            Masker, name, lambda *a, original=original, name=name: (calls.append(name), original(*a))[1]
        )
    explorer = Explorer(tiny_params())
    monkeypatch.setattr(explorer, "_predict", lambda s, real=explorer._predict: (calls.append("network"), real(s))[1])
    state = first_state(explorer)
    cheap = [{}, {"class_id": 1}, {"gate": "none"}, {"gate": "official"}, {"opacity": 0.1}, {"pixel": (3, 4)}]
    for change in [*cheap, {"text": "car"}, {"text": "tree"}]:
        view_of(explorer, replace(state, **change))
    assert sorted(calls) == ["features", "network", "similarity"]
    view_of(explorer, replace(state, local=True))
    assert sorted(calls) == ["features", "network", "similarity", "similarity"]


def test_kept_results_are_bounded_by_their_bytes() -> None:
    kept, made = Kept(limit=250), []
    for key in "abac":
        kept.get((key,), lambda key=key: made.append(key) or (np.zeros(60, np.uint8), torch.zeros(10)))
    assert made == ["a", "b", "c"] and kept.bytes == 200
    kept.get(("a",), lambda: pytest.fail("a was used last before c: it must have been kept"))
    kept.get(("b",), lambda: made.append("b again"))
    assert made[-1] == "b again"
    assert Kept(limit=1).get(("big",), lambda: np.ones(100)).sum() == 100


# --- pictures ----------------------------------------------------------------------------------------------------


def test_networks_are_told_apart_by_short_names(explorer: Explorer) -> None:
    names = ["runs/a/train/b/final.pt", "runs/a/train/b/checkpoint.pt", "runs/c/train/b/final.pt", "paper"]
    assert [*map(short_name, names)] == ["a/b", "a/b/checkpoint", "c/b", "paper"]
    state = replace(first_state(explorer), other="plain")
    titles = [panel.title for panel in view_of(explorer, state).panels]
    assert {"prediction of paper (ungated)", "prediction of plain (ungated)"} < {*titles}
    assert "compared with plain" in view_record(explorer, state).caption


def test_legend_names_the_classes_in_view_and_no_others(explorer: Explorer) -> None:
    state = first_state(explorer)
    view = view_of(explorer, replace(state, network=""))
    seen = np.unique(np.concatenate([explorer.pseudo_mask(state), explorer.subject(state).truth]))
    names = [name for name, _ in view.legend]
    assert names == ["void" if c == 255 else explorer.class_set.names[c] for c in seen]
    assert "noisy region" in dict(view_of(explorer, state).legend)


@pytest.mark.parametrize("opacity", [0.0, 0.35, 1.0])
def test_colours_are_those_of_the_legend(explorer: Explorer, opacity: float) -> None:
    """Similarities read off their scale whatever the opacity; a mask's mean colour is the legend's."""
    state = replace(first_state(explorer), opacity=opacity, text="car")
    view = view_of(explorer, state)
    panels = {panel.title.split(" (")[0]: panel.picture for panel in view.panels}
    low, high = view.value_range
    for title, values in [(view.panels[1].title, explorer.similarity(state))] + [
        ("similarity to “car”", explorer.text_similarity(state))
    ]:
        scale = matplotlib.colormaps["cividis"](np.clip((values - low) / (high - low), 0, 1), bytes=True)[..., :3]
        assert np.abs(panels[title].astype(int) - scale).max() <= 6  # a step of 256
    grey = explorer.subject(state).image.mean(-1)
    mask, legend = explorer.pseudo_mask(state), dict(view.legend)
    for class_id in np.unique(mask):
        inside = mask == class_id
        shift = (1 - opacity) * (grey[inside].mean() - grey.mean())  # how much brighter than the image the region is
        painted = panels["pseudo-mask"][inside].mean(0) - shift
        np.testing.assert_allclose(painted, legend[explorer.class_set.names[class_id]], atol=2)
    assert (panels["reliable"][~explorer.consistent(state)] == legend["noisy region"]).all()


def test_a_view_is_saved_as_png_and_pdf_with_its_caption(explorer: Explorer, tmp_path: Path) -> None:
    state = replace(first_state(explorer), local=True, text="red unicorn", pixel=(5, 5))
    record = view_record(explorer, state)
    assert "masker value_path" in record.caption and "70 %" in record.caption and "row 5, column 5" in record.caption
    assert f"similarity map of “{explorer.class_set.words[state.class_id][0]}”" in record.caption
    assert "reliable (gated prediction)" in record.alt
    assert "never saw unicorn" in record.caption and "“red unicorn”" in record.caption and "enlarged" in record.caption
    paths = save_figure(view_figure(view_of(explorer, state)), tmp_path / "view", record)
    assert [path.suffix for path in paths] == [".png", ".pdf", ".json"]
    with Image.open(paths[0]) as image:
        assert image.width == pytest.approx(6.875 * 200, abs=2)


# --- other data --------------------------------------------------------------------------------------------------


def test_photographs_without_masks_labels_or_network(home: Path) -> None:
    params = tiny_params(run="bare", dataset="folder", root="data/bare")
    images.write_image(params.data_root / "one" / "a.png", np.full((50, 70, 3), 120, np.uint8))
    with pytest.raises(CarbError):
        Explorer(params)
    explorer = Explorer(params.updated(val_split="one"))
    view = view_of(explorer, first_state(explorer))
    assert [panel.title for panel in view.panels][::2] == ["image", "pseudo-mask"] and len(view.panels) == 3
    assert "all classes compete" in ExplorerPanel(explorer).viewer.status["text"]
    files.write_text(params.data_root / "one" / "0.png", "damaged")
    panel = ExplorerPanel(Explorer(params.updated(val_split="one")))
    assert "0.png" in panel.viewer.status["text"] and panel.viewer.status["error"] and not panel.viewer.picture
    panel.viewer.event = {"kind": "go", "by": 1, "time": 1.0}
    assert panel.viewer.picture["key"] == "one/a" and not panel.viewer.status["error"]


def test_order_by_results(home: Path) -> None:
    params = tiny_params(run="ordered")
    explorer = Explorer(params)
    split, names = explorer.splits["val"], explorer.splits["val"].names
    assert sorts(params, split, "") == [NAME] and order(params, split, "") == [0, 1, 2]
    write_evaluation(params, "paper", "val", [0.5, None, 0.2], [None, 0.1, 0.9])
    assert sorts(params, split, "paper") == [NAME, MIOU, CLASS, RECALL] and sorts(params, split, "") == [NAME]
    assert order(params, split, "paper", MIOU) == [2, 0, 1]
    assert order(params, split, "paper", RECALL) == [1, 2, 0]
    evaluation_path(params, "paper", "val").rename(home / "another split.json")
    assert sorts(params, split, "paper") == [NAME], "results of another split order nothing"
    for index, name in enumerate(names):
        mask = np.zeros((8, 8), np.uint8)
        write_mask(pseudo_mask_folder(params, "val"), name, mask, split.class_set)
        mask.flat[: 10 * (index + 1)] = 4
        large = mask.repeat(2, 0).repeat(2, 1)
        write_mask(prediction_folder(params, "paper", "val"), name, large, split.class_set)
    assert sorts(params, split, "paper") == [NAME, DISAGREEMENT]
    assert order(params, split, "paper", DISAGREEMENT) == [2, 1, 0]
