"""The explorer's panel without a browser: every control changes the picture, and no mistake ends it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import nbformat
import numpy as np
import pytest
import torch
from explorer_runs import SIZE, picture, save_network, tiny_params, write_evaluation
from places import REPOSITORY

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.explore import panel as explore_panel
from carblib.explore.explorer import Explorer
from carblib.explore.order import DISAGREEMENT, MIOU, NAME, first_state, order
from carblib.explore.panel import ExplorerPanel
from carblib.explore.views import pixel_under, view_record
from carblib.explore.widgets import as_jpeg
from carblib.network import build_network
from carblib.params import Params
from carblib.run import notebook
from carblib.run.headless import execute
from carblib.scenes.folders import write_scenes


@pytest.fixture
def panel(explorer: Explorer) -> ExplorerPanel:
    return ExplorerPanel(explorer)


def test_first_split_is_one_that_can_be_sorted(home: Path) -> None:
    params = tiny_params(run="opened", root="data/two")
    for split in ("val", "test"):
        write_scenes(params.data_root, split, 2, size=SIZE)
    assert first_state(Explorer(params)).split == "val"
    write_evaluation(params, "pseudo_masks_global", "test", [0.5, 0.4], [0.1, 0.2])
    explorer = Explorer(params)
    assert list(explorer.splits) == ["val", "test"] and first_state(explorer).split == "test"
    panel = ExplorerPanel(explorer)
    assert MIOU in panel.sort.options and "order:" not in panel.status.value
    panel.split.value = "val"
    assert panel.sort.options == (NAME,) and "by name only; 02_pseudo_masks makes" in panel.status.value
    panel.opacity.value = 0.5
    assert "order:" not in panel.status.value, "said once"


def test_any_checkpoint_and_a_wrong_one(home: Path, tmp_path: Path) -> None:
    params = tiny_params()
    save_network(tmp_path / "other.pt", params, 2)
    save_network(tmp_path / "wrong.pt", params.updated(classes="cityscapes"), 2)
    explorer = Explorer(params, [tmp_path / "other.pt", tmp_path / "wrong.pt"])
    panel = ExplorerPanel(explorer)
    before = panel.picture.data
    panel.network.value = str(tmp_path / "other.pt")
    assert panel.picture.data != before and "other.pt" in view_record(explorer, panel.state).source
    here = panel.state
    panel.network.value = str(tmp_path / "wrong.pt")
    assert "cityscapes" in panel.status.value and "wrong.pt" in panel.status.value
    assert panel.state == replace(here, network="") and panel.picture.data == as_jpeg(picture(explorer, panel.state))
    drawn = panel.drawn
    panel.opacity.value = 0.3
    assert panel.drawn == drawn + 1 and "wrong.pt" not in panel.status.value


def test_a_wrong_first_network_leaves_a_picture(home: Path) -> None:
    params = tiny_params(run="broken")
    files.write_text(params.run_dir / "train" / "paper" / "final.pt", "no weights")
    panel = ExplorerPanel(Explorer(params))
    assert "final.pt" in panel.status.value and "#b00020" in panel.status.value and panel.state.network == ""
    assert panel.drawn == 1 and "prediction" not in panel.picture.alt


def test_a_checkpoint_is_added_by_its_path(home: Path, tmp_path: Path) -> None:
    params = tiny_params()
    save_network(home / "given" / "one.pt", params, 5)
    explorer = Explorer(params)
    panel = ExplorerPanel(explorer)
    panel.image.value, before = 1, panel.picture.data
    panel.checkpoint.value = " given/one.pt "
    assert panel.network.value == "given/one.pt" and panel.state.index == 1 and panel.checkpoint.value == ""
    assert panel.picture.data != before and "given/one.pt" in view_record(explorer, panel.state).source
    before = panel.picture.data, panel.network.options
    files.write_text(tmp_path / "code.py", "print()")
    files.save_torch(tmp_path / "official.pth", {"meta": {}, "state_dict": {"decode_head.text_embeddings": 1}})
    files.save_torch(tmp_path / "clip.pt", build_network(params, torch.zeros(11, 128)).state_dict())
    for bad in ("code.py", "official.pth", "clip.pt", "absent.pt", "."):
        panel.checkpoint.value = str(tmp_path / bad)
        assert str(tmp_path / bad).rstrip("/.") in panel.status.value and "#b00020" in panel.status.value, bad
        assert bad != "official.pth" or panel.status.value.count("carb checkpoints import") == 1
        assert (panel.picture.data, panel.network.options) == before and panel.network.value == "given/one.pt"
    assert list(Explorer(params, ["given/one.pt"]).networks) == ["plain", "paper", "given/one.pt"]


def test_masks_are_read_once_for_an_order(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore_panel, "sorts", lambda *_: [NAME, MIOU, DISAGREEMENT])
    panel, calls = ExplorerPanel(explorer), []

    def told(params: Params, split: object, network: str, by: str = NAME) -> list[int]:
        if by == DISAGREEMENT:
            calls.append((network, panel.status.value))
        return [2, 0, 1] if by == DISAGREEMENT else [0, 1, 2]

    monkeypatch.setattr(explore_panel, "order", told)
    panel.network.value = "paper"
    panel.sort.value = DISAGREEMENT
    assert panel.state.index == 2 and calls == [("paper", "reading 3 pseudo-masks and as many predictions …")]
    panel.sort.value = NAME
    panel.sort.value = DISAGREEMENT
    panel.next.click()
    assert panel.state.index == 0 and len(calls) == 1
    panel.network.value = "plain"
    panel.network.value = "paper"
    assert [network for network, _ in calls] == ["paper", "plain"] and panel.state.index == 0


def test_unreadable_results_leave_the_order_by_name(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore_panel, "sorts", lambda *_: [NAME, DISAGREEMENT])
    panel, real = ExplorerPanel(explorer), order

    def damaged(params: Params, split: object, network: str, by: str = NAME) -> list[int]:
        if by == NAME:
            return real(params, split, network)
        raise CarbError("mask.png: truncated")

    monkeypatch.setattr(explore_panel, "order", damaged)
    panel.sort.value = DISAGREEMENT
    assert panel.sort.value == NAME and panel.state.index == 0 and "mask.png: truncated" in panel.status.value


def test_controls_move_the_picture(panel: ExplorerPanel) -> None:
    seen = {panel.picture.data}

    def changed() -> bool:
        new = panel.picture.data not in seen
        seen.add(panel.picture.data)
        return new

    assert all(name in panel.legend.value for name, _ in panel.view.legend)
    assert "rgb(0, 34, 77)" in panel.legend.value and "cosine similarity" in panel.legend.value  # cividis' lowest
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


def test_a_button_goes_to_the_next_hit(panel: ExplorerPanel) -> None:
    panel.image.value, drawn = 1, panel.drawn
    panel.search.value = "0000"
    for index, said in [(2, "3 of 3"), (0, "1 of 3"), (1, "2 of 3")]:
        assert panel.state.index == index and f"“0000”: {said}" in panel.status.value
        panel.next_hit.click()
    assert panel.drawn == drawn + 1 + 4
    panel.search.value = "  "
    panel.next_hit.click()
    assert panel.drawn == drawn + 5


@pytest.mark.parametrize("error", [KeyError("odd"), RuntimeError("CUDA\nout of memory"), CarbError("a.png: truncated")])
def test_an_error_leaves_no_old_picture_and_clicks_go_on(
    panel: ExplorerPanel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before = panel.picture.data
    with monkeypatch.context() as broken:
        broken.setattr(explore_panel, "view_of", MagicMock(side_effect=error))
        click = {"kind": "click", "x": 0.1, "y": 0.2, "time": 5.0}
        if isinstance(error, KeyError):
            with pytest.raises(KeyError):
                panel.picture.event = click
        else:
            panel.picture.event = click
            assert " ".join(str(error).split()) in panel.status.value and "\n" not in panel.status.value
            assert panel.save_view() == [] and " ".join(str(error).split()) in panel.status.value
        assert panel.picture.answered == 5.0 and panel.picture.data not in (before, b"") and panel.view is None
        assert not panel.legend.value
        panel.picture.event = {**click, "time": 6.0}
        assert panel.picture.answered == 6.0
    panel.opacity.value = 0.2
    panel.picture.event = {**click, "time": 7.0}
    assert panel.picture.answered == 7.0 and "row " in panel.found.value


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


def move(panel: ExplorerPanel, kind: int, turn: int, other_image: int) -> None:
    """Move one control, whichever of the eight; `turn` counts the rounds, so that no move repeats the last one."""
    share = (turn + 1) / 8
    point = {"x": 0.25 * share, "y": 0.1 + 0.1 * share, "time": 8 * turn + kind + 1.0}
    if kind == 0:
        panel.opacity.value = 0.3 + 0.1 * (turn % 4)
    elif kind == 1:
        panel.shown_class.value = (panel.shown_class.value + 1) % len(panel.explorer.class_set)
    elif kind == 2:
        panel.gate.value = "labels" if panel.gate.value == "none" else "none"
    elif kind == 3:
        panel.words.value = "sky" if panel.words.value == "tree" else "tree"
    elif kind == 4:
        panel.picture.event = {**point, "kind": "click"}
    elif kind == 5:
        panel.picture.event = {**point, "kind": "drag"}
    elif kind == 6:
        panel.zoom.value = 1.1 + 0.1 * turn
    else:
        panel.image.value = other_image if panel.image.value == 0 else 0


def test_each_of_thirty_moves_draws_one_picture(panel: ExplorerPanel) -> None:
    """Their times are printed (-s): of two images that were visited before, so that their features are kept."""
    panel.local.value, panel.words.value = True, "tree"
    for image in (1, 0):
        panel.image.value = image
    seconds = []
    for turn, kind in [divmod(number, 8) for number in range(30)]:
        drawn, started = panel.drawn, time.perf_counter()
        move(panel, kind, turn, other_image=1)
        seconds.append(time.perf_counter() - started)
        assert panel.drawn == drawn + 1, f"kind {kind}, turn {turn}: {panel.status.value}"
    print(f"30 moves: median {np.median(seconds):.3f} s, 95th percentile {np.percentile(seconds, 95):.3f} s")


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
    assert not (home / "runs" / "still" / "params.yaml").exists()


def test_looking_does_not_change_what_results_were_made_with(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_text(home / "params" / "kept.yaml", tiny_params(run="kept").to_yaml())
    given = {"params_file": "params/kept.yaml"}
    record = notebook.start(given, "04_small_object_evaluation").run_dir / "params.yaml"
    before = record.read_text()
    looked = notebook.start({**given, "masker": "naclip"}, "00_explore", writes=False)
    assert looked.masker == "naclip" and record.read_text() == before and "naclip" not in before
