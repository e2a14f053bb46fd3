"""The explorer without a browser: what it shows is what the library computes, and every control changes the picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from carblib import files
from carblib.errors import CarbError
from carblib.evaluate import evaluation_path
from carblib.explore import GATES, Explorer, ExplorerState, Kept, trained_networks
from carblib.explore_order import DISAGREEMENT, MIOU, NAME, RECALL, order, sorts
from carblib.explore_panel import ExplorerPanel, time_moves
from carblib.explore_views import _legend, _places, pixel_under, render_view, view_figure, view_of, view_record
from carblib.headless import execute
from carblib.infer import predict_mask
from carblib.labels import labels_path, write_labels
from carblib.mask_folders import pseudo_mask_folder, write_mask
from carblib.masker import Masker, pseudo_mask
from carblib.network import build_network
from carblib.params import Params
from carblib.predict import prediction_folder
from carblib.scenes import write_scenes
from carblib.style import save_figure
from carblib.views import LocalView, local_pseudo_mask

SIZE = (64, 128)
REPOSITORY = Path(__file__).resolve().parent.parent


def tiny_params(**changes: object) -> Params:
    tiny = {"run": "tiny", "root": "data/tiny", "image_size": SIZE, "crop": SIZE, "patch": (32, 24), "scenes_val": 3}
    return Params(**{**tiny, "backbone_weights": "random", "aspp_dilations": (1, 2)}).updated(**changes)


def save_network(path: Path, params: Params, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(params, F.normalize(torch.randn(len(params.class_set), 128), dim=-1))
    state = {"params": params.model_dump(mode="json"), "iteration": 1, "network": network.state_dict()}
    files.save_torch(path, state)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARB_HOME", str(root))
        params = tiny_params()
        write_scenes(params.data_root, "val", 3, size=SIZE)
        save_network(params.run_dir / "train" / "plain" / "final.pt", params, 0)
        save_network(params.run_dir / "train" / "full" / "checkpoint.pt", params, 1)
        yield root


@pytest.fixture(scope="module")
def explorer(home: Path) -> Explorer:
    return Explorer(tiny_params())


@pytest.fixture
def panel(explorer: Explorer) -> ExplorerPanel:
    return ExplorerPanel(explorer)


def picture(explorer: Explorer, state: ExplorerState) -> np.ndarray:
    return render_view(view_of(explorer, state))


# --- states and pictures -----------------------------------------------------------------------------------------


def test_first_state_is_the_runs_own_settings(explorer: Explorer) -> None:
    state = explorer.first_state()
    assert list(explorer.splits) == ["val"] and list(explorer.networks) == ["plain", "full"]
    assert explorer.networks["full"].name == "checkpoint.pt" and trained_networks(tiny_params(run="none")) == {}
    assert (state.split, state.network, state.masker, state.gate) == ("val", "full", "value_path", "labels")
    assert state.class_id in explorer.class_set.small_ids and explorer.subject(state).labels[state.class_id]


@pytest.mark.parametrize(
    "change",
    [
        {"index": 1},
        {"class_id": 0},
        {"masker": "naclip"},
        {"network": "plain"},
        {"network": ""},
        {"local": True},
        {"opacity": 0.2},
        {"text": "car"},
        {"pixel": (10, 10)},
    ],
    ids=str,
)
def test_every_change_of_state_changes_the_picture(explorer: Explorer, change: dict) -> None:
    before = explorer.first_state()
    one, other = picture(explorer, before), picture(explorer, replace(before, **change))
    assert one.dtype == np.uint8 and one.shape[2] == 3
    assert one.shape != other.shape or (one != other).any()
    np.testing.assert_array_equal(one, picture(explorer, before))


def test_local_view_is_made_as_in_training_and_only_inside_its_box(explorer: Explorer) -> None:
    state = replace(explorer.first_state(), local=True, centre=(40, 5), zoom=1.7)
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
    state = replace(explorer.first_state(), local=local, centre=(30, 61), text="car")
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
    state = explorer.first_state()
    masks = {gate: explorer.pseudo_mask(replace(state, gate=gate)) for gate in GATES}
    assert set(np.unique(masks["labels"])) <= set(np.flatnonzero(few)) and len(np.unique(masks["none"])) > 2
    pixels, labels = explorer.subject(state).pixels[None], torch.from_numpy(few)[None]
    for gate, mask in masks.items():
        similarity = explorer.masker(state.masker).similarity(pixels)
        np.testing.assert_array_equal(mask, pseudo_mask(similarity, labels, SIZE, gate)[0])
    assert (picture(explorer, state) != picture(explorer, replace(state, gate="none"))).any()


def test_words_against_the_class_list(explorer: Explorer) -> None:
    state = replace(explorer.first_state(), text="zebra crossing")
    assert explorer.unknown_words(state) == ["zebra", "crossing"] and not explorer.has_words(state)
    assert len(view_of(explorer, state).panels) == len(view_of(explorer, replace(state, text="")).panels)
    known = replace(state, text="red car")
    assert not explorer.unknown_words(known) and len(view_of(explorer, known).panels) == 8
    own = replace(state, text=explorer.class_set.words[3][0])
    assert explorer.text_margin(own).max() == pytest.approx(0, abs=1e-6)  # a class never beats itself
    assert not explorer.has_words(replace(state, text="")) and not explorer.unknown_words(replace(state, text=""))


def test_prediction_and_regions_are_those_of_training(explorer: Explorer) -> None:
    state = replace(explorer.first_state(), network="plain")
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
    state = explorer.first_state()
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
    assert made == ["a", "b", "c"] and len(kept) == 2 and kept.bytes == 200
    kept.get(("a",), lambda: pytest.fail("a was used last before c: it must have been kept"))
    kept.get(("b",), lambda: made.append("b again"))
    assert made[-1] == "b again"
    assert Kept(limit=1).get(("big",), lambda: np.ones(100)).sum() == 100


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"network": ""}, {}, {"text": "car"}])
def test_a_point_of_the_picture_is_a_pixel_of_the_image(explorer: Explorer, change: dict) -> None:
    view = view_of(explorer, replace(explorer.first_state(), **change))
    height, width = render_view(view).shape[:2]
    for left, top, across, down in _places(view, width):
        at = ((left + across * 100.5 / 128) / width, (top + down * 20.5 / 64) / height)
        assert pixel_under(view, *at) == (20, 100)
        assert pixel_under(view, (left + across - 0.5) / width, (top + down - 0.5) / height) == (63, 127)
        assert pixel_under(view, (left + 3) / width, (top - 3) / height) is None
    assert pixel_under(view, 0.5, 0.999) is None


def test_legend_names_the_classes_in_view_and_no_others(explorer: Explorer) -> None:
    state = explorer.first_state()
    view = view_of(explorer, replace(state, network=""))
    seen = np.unique(np.concatenate([explorer.pseudo_mask(state), explorer.subject(state).truth]))
    names = [name for name, _ in _legend(view)][:-1]
    assert names == ["void" if c == 255 else explorer.class_set.names[c] for c in seen]
    assert "noisy region" in [name for name, _ in _legend(view_of(explorer, state))]


def test_a_view_is_saved_as_png_and_pdf_with_its_caption(explorer: Explorer, tmp_path: Path) -> None:
    state = replace(explorer.first_state(), local=True, text="red unicorn", pixel=(5, 5))
    record = view_record(explorer, state)
    assert "never saw unicorn" in record.caption and "“red unicorn”" in record.caption and "enlarged" in record.caption
    paths = save_figure(view_figure(view_of(explorer, state)), tmp_path / "view", record)
    assert [path.suffix for path in paths] == [".png", ".pdf", ".json"]
    with Image.open(paths[0]) as image:
        assert image.width == pytest.approx(6.875 * 200, abs=2)


# --- other data --------------------------------------------------------------------------------------------------


def test_photographs_without_masks_labels_or_network(home: Path) -> None:
    params = tiny_params(run="bare", dataset="folder", root="data/bare")
    files.write_image(params.data_root / "one" / "a.png", np.full((50, 70, 3), 120, np.uint8))
    with pytest.raises(CarbError):
        Explorer(params)
    explorer = Explorer(params.updated(val_split="one"))
    view = view_of(explorer, explorer.first_state())
    assert [panel.title for panel in view.panels][::2] == ["image", "pseudo-mask"] and len(view.panels) == 3
    assert "all classes compete" in ExplorerPanel(explorer).status.value


def test_any_checkpoint_and_a_wrong_one(home: Path, tmp_path: Path) -> None:
    params = tiny_params()
    save_network(tmp_path / "other.pt", params, 2)
    save_network(tmp_path / "wrong.pt", params.updated(classes="cityscapes"), 2)
    explorer = Explorer(params, [tmp_path / "other.pt", tmp_path / "wrong.pt"])
    panel = ExplorerPanel(explorer)
    before = panel.picture.data
    panel.network.value = str(tmp_path / "other.pt")
    assert panel.picture.data != before and "other.pt" in view_record(explorer, panel.state).caption
    panel.network.value = str(tmp_path / "wrong.pt")
    assert "cityscapes" in panel.status.value and "wrong.pt" in panel.status.value


def test_order_by_results(home: Path) -> None:
    params = tiny_params(run="ordered")
    explorer = Explorer(params)
    split, names = explorer.splits["val"], explorer.splits["val"].names
    assert sorts(params, split, "") == [NAME] and order(params, split, "") == [0, 1, 2]
    scores = zip(names, (0.5, None, 0.2), (None, 0.1, 0.9), strict=True)
    rows = [{"name": name, "miou": miou, "small_recall": recall} for name, miou, recall in scores]
    evaluation = {"split": "val", "class_names": list(split.class_set.names), "per_image": rows}
    files.write_json(evaluation_path(params, "full", "val"), evaluation)
    assert sorts(params, split, "full") == [NAME, MIOU, RECALL] and sorts(params, split, "") == [NAME]
    assert order(params, split, "full", MIOU) == [2, 0, 1]
    assert order(params, split, "full", RECALL) == [1, 2, 0]
    files.write_json(evaluation_path(params, "full", "test"), evaluation)
    evaluation_path(params, "full", "val").unlink()
    assert sorts(params, split, "full") == [NAME], "results of another split order nothing"
    for index, name in enumerate(names):
        mask = np.zeros((8, 8), np.uint8)
        write_mask(pseudo_mask_folder(params, "val"), name, mask, split.class_set)
        mask.flat[: 10 * (index + 1)] = 4
        large = mask.repeat(2, 0).repeat(2, 1)
        write_mask(prediction_folder(params, "full", "val"), name, large, split.class_set)
    assert sorts(params, split, "full") == [NAME, DISAGREEMENT]
    assert order(params, split, "full", DISAGREEMENT) == [2, 1, 0]


# --- the panel ---------------------------------------------------------------------------------------------------


def test_controls_move_the_picture(panel: ExplorerPanel) -> None:
    seen = {panel.picture.data}

    def changed() -> bool:
        new = panel.picture.data not in seen
        seen.add(panel.picture.data)
        return new

    panel.next.click()
    assert changed() and panel.state.index == 1
    panel.previous.click()
    panel.previous.click()
    assert not changed() and panel.state.index == 0
    panel.search.value = "3"
    assert changed() and panel.explorer.name(panel.state) == "000003"
    panel.search.value = "nowhere"
    assert "nowhere" in panel.status.value and panel.state.index == 2
    panel.words.value = "zebra"
    assert not changed() and "never saw: zebra" in panel.status.value
    panel.words.value = "tree"
    assert changed() and "never saw" not in panel.status.value
    panel.local.value = True
    assert changed()
    drawn = panel.drawn
    panel.picture.event = {"kind": "drag", "x": 0.1, "y": 0.2, "time": 7.0}
    assert changed() and panel.picture.answered == 7.0 and panel.drawn == drawn + 1
    assert panel.state.centre == pixel_under(panel.view, 0.1, 0.2)
    assert panel.found.value == ""
    panel.picture.event = {"kind": "click", "x": 0.12, "y": 0.2, "time": 8.0}
    row, column = panel.state.pixel
    truth = panel.explorer.class_set.names[panel.explorer.subject(panel.state).truth[row, column]]
    assert changed() and f"row {row}, column {column}" in panel.found.value and "“tree”" in panel.found.value
    assert f"exact mask <b>{truth}</b>" in panel.found.value and "prediction <b>" in panel.found.value
    panel.picture.event = {"kind": "drag", "x": 0.5, "y": 0.999, "time": 9.0}
    assert not changed() and panel.picture.answered == 9.0


def test_another_network_keeps_the_image(panel: ExplorerPanel) -> None:
    panel.image.value = 2
    before = panel.picture.data
    panel.network.value = "plain"
    assert panel.state.index == 2 and panel.picture.data != before


def test_one_button_saves_the_view(panel: ExplorerPanel, home: Path) -> None:
    panel.save.click()
    second = panel.save_view()
    assert [Path(path).suffix for path in second] == [".png", ".pdf", ".json"]
    assert all((home / path).is_file() for path in second) and second[0] in panel.status.value
    assert len(list((home / "figures" / "tiny" / "explorer").glob("*.pdf"))) == 2


def test_thirty_moves_are_timed(panel: ExplorerPanel) -> None:
    drawn = panel.drawn
    seconds = time_moves(panel)
    print(f"30 moves: median {np.median(seconds):.3f} s, 95th percentile {np.percentile(seconds, 95):.3f} s")
    assert len(seconds) == 30 and (seconds > 0).all() and panel.drawn >= drawn + 30


@pytest.mark.slow
def test_headless_the_notebook_shows_a_figure_instead(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "a page that runs the tests")
    changes = {"run": "still", "root": "data/still", "image_size": [*SIZE], "crop": [*SIZE], "patch": [32, 24]}
    files.write_text(home / "params" / "still.yaml", tiny_params(**changes).to_yaml())
    executed = home / "out.ipynb"
    execute(REPOSITORY / "notebooks" / "00_explore.ipynb", executed, {"params_file": "params/still.yaml"})
    outputs = [o for cell in nbformat.read(executed, 4).cells for o in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/jpeg"} and "application/vnd.jupyter.widget-view+json" not in kinds
    assert executed.stat().st_size < 500_000
    assert (home / "figures" / "still" / "explorer_view.pdf").is_file()
    assert (home / "runs" / "still" / "done" / "00_explore.json").is_file()
