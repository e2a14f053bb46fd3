"""The explorer's panel without a browser: what is sent to the page, what it asks for, and no mistake ends it."""

from __future__ import annotations

import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from cells import have_run
from explorer_runs import SIZE, save_network, tiny_params, write_evaluation

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.explore import listing as explore_listing
from carblib.explore import panel as explore_panel
from carblib.explore import showing
from carblib.explore.explorer import Explorer
from carblib.explore.order import DISAGREEMENT, MIOU, NAME, first_state, order
from carblib.explore.panel import ExplorerPanel
from carblib.explore.viewer import layers_of, picture_of
from carblib.explore.views import view_record
from carblib.metrics import confusion, iou
from carblib.network import build_network
from carblib.params import Params
from carblib.run import notebook
from carblib.scenes.folders import write_scenes


@pytest.fixture
def panel(explorer: Explorer) -> ExplorerPanel:
    return ExplorerPanel(explorer)


def ask(panel: ExplorerPanel, kind: str, **event: object) -> None:
    """Ask what the page asks, and see that it is answered."""
    asked = panel.viewer.answered + 1
    panel.viewer.event = {"kind": kind, **event, "time": asked}
    assert panel.viewer.answered == asked


def said(panel: ExplorerPanel) -> str:
    return panel.viewer.status["text"]


def test_what_two_threads_of_a_kernel_ask_is_done_one_after_the_other(
    panel: ExplorerPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JupyterLab sends clicks to a kernel's main thread and other messages to a subshell, a thread of its own."""
    inside, go_on, renew = threading.Event(), threading.Event(), panel.listing.renew

    def slow(*told: object) -> None:
        if threading.current_thread() is clicked:
            inside.set()
            assert go_on.wait(60)
        renew(*told)
        if threading.current_thread() is asked:
            clicked.join(60)  # who came first leaves first

    monkeypatch.setattr(panel.listing, "renew", slow)
    clicked = threading.Thread(target=panel.controls.clear.click)
    asked = threading.Thread(target=ask, args=(panel, "confusion"), kwargs={"truth": 0, "predicted": 1})
    clicked.start()
    assert inside.wait(60)
    asked.start()
    asked.join(0.3)
    go_on.set()
    clicked.join(60)
    asked.join(60)
    assert not panel.listing.quiet, "the controls act"


def test_the_page_gets_what_the_library_computes(explorer: Explorer) -> None:
    state = replace(first_state(explorer), other="plain", local=True, text="car")
    layers = layers_of(explorer, state)
    maps = {one["id"]: np.frombuffer(zlib.decompress(one["data"]), np.uint8).reshape(SIZE) for one in layers["maps"]}
    assert list(maps) == ["mask", "prediction", "other", "truth", "reliable", "wins"]
    np.testing.assert_array_equal(maps["mask"], explorer.pseudo_mask(state))
    np.testing.assert_array_equal(maps["prediction"], explorer.prediction(state)[0])
    np.testing.assert_array_equal(maps["other"], explorer.prediction(replace(state, network="plain"))[0])
    np.testing.assert_array_equal(maps["reliable"] != 254, explorer.consistent(state))
    np.testing.assert_array_equal(maps["wins"] == 253, explorer.text_margin(state) > 0)
    local, whole = layers["similarity"]
    assert local["box"] == layers["box"] == explorer.box(state) and whole["box"] is None
    values = np.frombuffer(whole["data"], np.float32).reshape(whole["shape"])
    np.testing.assert_array_equal(values[:-1], explorer._seen(state, "similarity", False).numpy())
    assert layers["names"][-1] == "car" and len(layers["names"]) == len(values)
    truth = explorer.subject(state).truth
    wanted = [iou(confusion(maps[name], truth, 11)) for name in ("prediction", "other", "mask")]
    for score, ious in zip(layers["scores"], wanted, strict=True):
        np.testing.assert_array_equal(np.array(score["iou"], float), ious)
        assert score["miou"] == pytest.approx(np.nanmean(ious))
    stamps = {layers_of(explorer, one)["maps"][0]["stamp"] for one in (state, replace(state, gate="none"))}
    assert len(stamps) == 2, "another mask is another one to the page"
    turned = layers_of(explorer, replace(state, network="plain", other="paper"))["maps"]
    roles = {(one["stamp"], one["id"]) for one in (*layers["maps"], *turned)}
    assert len({stamp for stamp, _ in roles}) == len(roles), "so is one that is compared with another"


def test_the_patch_is_what_clip_sees_of_the_local_view(explorer: Explorer) -> None:
    state = replace(first_state(explorer), local=True, centre=(40, 5), zoom=2.0)
    top, left, bottom, right = explorer.box(state)
    patch, cut = explorer.patch(state), explorer.subject(state).image[top:bottom, left:right]
    assert patch.shape == (64, 48, 3)
    assert np.abs(patch.reshape(32, 2, 24, 2, 3).mean((1, 3)) - cut).mean() < 6
    assert layers_of(explorer, state)["patch"] and not layers_of(explorer, replace(state, local=False))["patch"]


def test_first_split_is_one_that_can_be_sorted(home: Path) -> None:
    params = tiny_params(run="opened", root="data/two")
    for split in ("val", "test"):
        write_scenes(params.data_root, split, 2, size=SIZE)
    assert first_state(Explorer(params)).split == "val"
    write_evaluation(params, "pseudo_masks_global", "test", [0.5, 0.4], [0.1, 0.2])
    explorer = Explorer(params)
    assert list(explorer.splits) == ["val", "test"] and first_state(explorer).split == "test"
    panel = ExplorerPanel(explorer)
    assert (MIOU, 0) in dict(panel.controls.sort.options).values() and "order:" not in said(panel)
    panel.controls.sort.value = (MIOU, 0)
    assert panel.state.index == 1 and [row["text"] for row in panel.viewer.gallery["rows"]] == [
        "mIoU 40.0",
        "mIoU 50.0",
    ]
    panel.controls.split.value = "val"
    assert panel.controls.sort.options == ((NAME, (NAME, 0)),) and "by name only; 02_pseudo_masks makes" in said(panel)
    panel.controls.gate.value = "none"
    assert "order:" not in said(panel), "said once"


def test_any_checkpoint_and_a_wrong_one(home: Path, tmp_path: Path) -> None:
    params = tiny_params()
    save_network(tmp_path / "other.pt", params, 2)
    save_network(tmp_path / "wrong.pt", params.updated(classes="cityscapes"), 2)
    explorer = Explorer(params, [tmp_path / "other.pt", tmp_path / "wrong.pt"])
    panel = ExplorerPanel(explorer)
    before = panel.viewer.layers
    panel.controls.network.value = str(tmp_path / "other.pt")
    assert panel.viewer.layers != before and "other.pt" in view_record(explorer, panel.state).source
    here = panel.state
    panel.controls.other.value = str(tmp_path / "wrong.pt")
    assert "cityscapes" in said(panel) and "wrong.pt" in said(panel) and panel.state == here
    panel.controls.network.value = str(tmp_path / "wrong.pt")
    assert "cityscapes" in said(panel) and panel.viewer.status["error"]
    assert panel.state == replace(here, network="") and panel.viewer.layers == layers_of(explorer, panel.state)
    drawn = panel.showing.drawn
    panel.controls.gate.value = "none"
    assert panel.showing.drawn == drawn + 1 and "wrong.pt" not in said(panel) and not panel.viewer.status["error"]


def test_a_wrong_first_network_leaves_a_picture(home: Path) -> None:
    params = tiny_params(run="broken")
    files.write_text(params.run_dir / "train" / "paper" / "final.pt", "no weights")
    panel = ExplorerPanel(Explorer(params))
    assert "final.pt" in said(panel) and panel.viewer.status["error"] and panel.state.network == ""
    assert panel.showing.drawn == 1 and "prediction" not in [one["id"] for one in panel.viewer.layers["maps"]]


def test_a_checkpoint_is_added_by_its_path(home: Path, tmp_path: Path) -> None:
    params = tiny_params()
    save_network(home / "given" / "one.pt", params, 5)
    explorer = Explorer(params)
    panel = ExplorerPanel(explorer)
    controls = panel.controls
    ask(panel, "go", by=1)
    before = panel.viewer.layers
    controls.checkpoint.value = " given/one.pt "
    assert controls.network.value == "given/one.pt" and panel.state.index == 1 and controls.checkpoint.value == ""
    assert panel.viewer.layers != before and "given/one.pt" in view_record(explorer, panel.state).source
    earlier = {one["stamp"]: one["data"] for one in panel.viewer.layers["maps"]}
    save_network(home / "given" / "one.pt", params, 6)
    controls.checkpoint.value = "given/one.pt"
    maps = {one["id"]: one for one in panel.viewer.layers["maps"]}
    trained_on = Explorer(params, ["given/one.pt"])
    assert maps["prediction"]["data"] == layers_of(trained_on, panel.state)["maps"][1]["data"], "its file is read anew"
    assert {one["id"] for one in maps.values() if one["stamp"] not in earlier} == {"prediction", "reliable"}
    before = panel.viewer.layers, controls.network.options
    files.write_text(tmp_path / "code.py", "print()")
    files.save_torch(tmp_path / "official.pth", {"meta": {}, "state_dict": {"decode_head.text_embeddings": 1}})
    files.save_torch(tmp_path / "clip.pt", build_network(params, torch.zeros(11, 128)).state_dict())
    for bad in ("code.py", "official.pth", "clip.pt", "absent.pt", "."):
        controls.checkpoint.value = str(tmp_path / bad)
        assert str(tmp_path / bad).rstrip("/.") in said(panel) and panel.viewer.status["error"], bad
        assert bad != "official.pth" or said(panel).count("carb checkpoints import") == 1
        assert (panel.viewer.layers, controls.network.options) == before and controls.network.value == "given/one.pt"
    assert list(Explorer(params, ["given/one.pt"]).networks) == ["plain", "paper", "given/one.pt"]
    controls.checkpoint.value = "given/late.pt"
    save_network(home / "given" / "late.pt", params, 7)
    controls.checkpoint._handle_custom_msg({"event": "submit"}, [])  # Enter, the text being the same
    assert controls.network.value == "given/late.pt" and controls.checkpoint.value == ""


def test_masks_are_read_once_for_an_order(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore_listing, "sorts", lambda *_: [NAME, MIOU, DISAGREEMENT])
    panel, calls = ExplorerPanel(explorer), []

    def told(params: Params, split: object, network: str, by: str = NAME, class_id: int = 0) -> list[int]:
        if by == DISAGREEMENT:
            calls.append((network, said(panel)))
        return [2, 0, 1] if by == DISAGREEMENT else [0, 1, 2]

    monkeypatch.setattr(explore_listing, "order", told)
    panel.controls.network.value = "paper"
    panel.controls.sort.value = (DISAGREEMENT, 0)
    assert panel.state.index == 2 and calls == [("paper", "reading 3 pseudo-masks and as many predictions …")]
    panel.controls.sort.value = (NAME, 0)
    panel.controls.sort.value = (DISAGREEMENT, 0)
    ask(panel, "go", by=1)
    assert panel.state.index == 0 and len(calls) == 1
    panel.controls.network.value = "plain"
    panel.controls.network.value = "paper"
    assert [network for network, _ in calls] == ["paper", "plain"] and panel.state.index == 0


def test_unreadable_results_leave_the_order_by_name(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore_listing, "sorts", lambda *_: [NAME, DISAGREEMENT])
    panel, real = ExplorerPanel(explorer), order

    def damaged(params: Params, split: object, network: str, by: str = NAME, class_id: int = 0) -> list[int]:
        if by == NAME:
            return real(params, split, network)
        raise CarbError("mask.png: truncated")

    monkeypatch.setattr(explore_listing, "order", damaged)
    panel.controls.sort.value = (DISAGREEMENT, 0)
    assert panel.controls.sort.value == (NAME, 0) and panel.state.index == 0 and "mask.png: truncated" in said(panel)


def test_controls_and_the_page_move_the_picture(panel: ExplorerPanel) -> None:
    explorer, controls, viewer = panel.explorer, panel.controls, panel.viewer
    ask(panel, "go", by=1)
    assert panel.state.index == 1 and viewer.picture == picture_of(explorer, panel.state)
    assert viewer.place == {"place": 1, "count": 3, "name": "000002", "tags": []}
    ask(panel, "go", by=-15)
    assert panel.state.index == 0 and viewer.layers["key"] == viewer.picture["key"] == "val/000001"
    ask(panel, "goto", place=2)
    controls.search.value = "2"
    assert explorer.name(panel.state) == "000002"
    controls.search.value = "nowhere"
    assert "nowhere" in said(panel) and panel.state.index == 1
    controls.words.value = "zebra"
    assert len(viewer.layers["names"]) == 11 and "never saw: zebra" in said(panel)
    controls.words.value = "tree"
    assert viewer.layers["names"][-1] == "tree" and "never saw" not in said(panel)
    drawn = panel.showing.drawn
    controls.shown_class.value = 3
    assert viewer.class_id == 3 and panel.showing.drawn == drawn, "another class needs nothing from the kernel"
    viewer.class_id = 2
    assert panel.state.class_id == 2
    controls.local.value = True
    assert viewer.layers["patch"] and viewer.local
    mask, drawn = viewer.layers["maps"][0]["data"], panel.showing.drawn
    ask(panel, "box", row=30, column=100)
    assert panel.state.centre == (30, 100) and viewer.layers["box"] == explorer.box(panel.state)
    assert panel.showing.drawn == drawn + 1 and viewer.layers["maps"][0]["data"] != mask
    viewer.look = {**viewer.look, "pin": {"key": "val/000002", "x": 4, "y": 3}}
    assert panel.state.pixel == (3, 4) and panel.showing.drawn == drawn + 1
    assert ExplorerPanel(explorer, panel.state).state == panel.state
    ask(panel, "go", by=1)
    assert panel.state.pixel is None, "it is another image's"


def test_a_button_goes_to_the_next_hit(panel: ExplorerPanel) -> None:
    ask(panel, "goto", place=1)
    drawn = panel.showing.drawn
    panel.controls.search.value = "0000"
    for index, place in [(2, "3 of 3"), (0, "1 of 3"), (1, "2 of 3")]:
        assert panel.state.index == index and f"“0000”: {place}" in said(panel)
        panel.controls.next_hit.click()
    assert panel.showing.drawn == drawn + 1 + 3
    panel.controls.search.value = "  "
    panel.controls.next_hit.click()
    assert panel.showing.drawn == drawn + 4


@pytest.mark.parametrize("error", [KeyError("odd"), RuntimeError("CUDA\nout of memory"), CarbError("a.png: truncated")])
def test_an_error_leaves_no_old_picture_and_the_page_is_answered(
    panel: ExplorerPanel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(showing, "layers_of", MagicMock(side_effect=error))
        broken.setattr(explore_panel, "view_of", MagicMock(side_effect=error))
        if isinstance(error, KeyError):
            with pytest.raises(KeyError):
                panel.viewer.event = {"kind": "go", "by": 1, "time": 5.0}
        else:
            panel.viewer.event = {"kind": "go", "by": 1, "time": 5.0}
            assert " ".join(str(error).split()) in said(panel) and "\n" not in said(panel)
            assert panel.save_figure() == [] and " ".join(str(error).split()) in said(panel)
        assert panel.viewer.answered == 5.0 and panel.viewer.picture == panel.viewer.layers == {}
    ask(panel, "go", by=1)
    assert panel.viewer.picture["key"] == "val/000003" and not panel.viewer.status["error"]


def test_another_network_keeps_the_image(panel: ExplorerPanel) -> None:
    ask(panel, "goto", place=2)
    before = panel.viewer.layers
    panel.controls.network.value = "plain"
    assert panel.state.index == 2 and panel.viewer.layers != before
    panel.controls.other.value = "paper"
    assert [score["title"] for score in panel.viewer.layers["scores"]] == ["plain", "paper", "pseudo-mask"]


def test_one_button_saves_the_view(panel: ExplorerPanel, home: Path) -> None:
    panel.controls.save.click()
    second = panel.save_figure()
    assert [Path(path).suffix for path in second] == [".png", ".pdf", ".json"]
    assert all((home / path).is_file() for path in second) and second[0] in said(panel)
    assert len(list((home / "figures" / "tiny" / "explorer").glob("*.pdf"))) == 2


def test_each_of_thirty_moves_draws_once(panel: ExplorerPanel) -> None:
    """Their times are printed (-s): of two images that were visited before, so that their features are kept."""
    panel.controls.local.value, panel.controls.words.value = True, "tree"
    for place in (1, 0):
        ask(panel, "goto", place=place)
    moves = [
        lambda turn: setattr(panel.controls.gate, "value", ("none", "labels")[turn % 2]),
        lambda turn: setattr(panel.controls.words, "value", ("sky", "tree")[turn % 2]),
        lambda turn: ask(panel, "box", row=20 + turn, column=30 + turn),
        lambda turn: setattr(panel.controls.zoom, "value", 1.1 + 0.05 * turn),
        lambda turn: ask(panel, "goto", place=(turn + 1) % 2),
    ]
    seconds = []
    for number in range(30):
        drawn, started = panel.showing.drawn, time.perf_counter()
        moves[number % 5](number // 5)
        seconds.append(time.perf_counter() - started)
        assert panel.showing.drawn == drawn + 1, f"move {number}: {said(panel)}"
    print(f"30 moves: median {np.median(seconds):.3f} s, 95th percentile {np.percentile(seconds, 95):.3f} s")


def test_looking_does_not_change_what_results_were_made_with(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_text(home / "params" / "kept.yaml", tiny_params(run="kept").to_yaml())
    have_run(monkeypatch, params_file="params/kept.yaml")
    record = notebook.start("04_small_object_evaluation").run_dir / "params.yaml"
    before = record.read_text()
    have_run(monkeypatch, params_file="params/kept.yaml", masker="naclip")
    looked = notebook.start("00_explore", writes=False)
    assert looked.masker == "naclip" and record.read_text() == before and "naclip" not in before
