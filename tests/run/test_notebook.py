"""What notebooks do first and last: parameters checked in one line, and what makes a finished notebook run again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cells import have_run
from places import REPOSITORY
from small import small_params

from carblib import __version__
from carblib.base import files
from carblib.base.errors import CarbError
from carblib.figures.captions import figure_record
from carblib.figures.style import new_figure
from carblib.figures.table import RunFigure
from carblib.params import Params
from carblib.run import notebook


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    return tmp_path


ELSEWHERE = {"device": "cpu", "workers": 2, "interactive": True, "log_every": 1, "checkpoint_every": 9}


@pytest.mark.parametrize("name", ["01_dataset_analysis", "05_ablations"])
def test_what_changes_no_result_runs_nothing_again(name: str) -> None:
    notebook.finish(small_params(), name, {})
    done = notebook.read_done(small_params(), name)
    assert notebook.changed_keys(done, small_params(tensorboard=True, **ELSEWHERE)) == []
    assert notebook.changed_keys(done, small_params(lr=0.2, precision="bf16-mixed", **ELSEWHERE)) == ["lr", "precision"]
    ablated = notebook.changed_keys(done, small_params(ablation_seeds=(7,)))
    assert ablated == (["ablation_seeds"] if name == "05_ablations" else [])


def test_markers_of_earlier_versions_still_count() -> None:
    # They hold every parameter, also those that are no longer compared.
    done = {"notebook": "01_x", "parameters": small_params(**ELSEWHERE).model_dump(mode="json")}
    assert notebook.changed_keys(done, small_params()) == []


def test_start_says_in_one_line_what_cannot_be_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/closed/x.yaml")

    monkeypatch.setattr(notebook, "notebook_params", refused)
    have_run(monkeypatch, params_file="x.yaml")
    with pytest.raises(CarbError, match="^/closed/x.yaml: permission denied; "):
        notebook.start("01_x")


def test_start_asks_for_what_the_work_needs_before_it_begins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    have_run(monkeypatch, params_file=write_params(home), path="single", crf=True)
    with pytest.raises(CarbError, match="^crf: pydensecrf is not installed"):
        notebook.start("02_x")
    notebook.start("00_x", writes=False)


def test_start_says_what_captions_need_not_repeat(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    have_run(monkeypatch, params_file=write_params(home))
    params = notebook.start("01_x")
    said = "run 'tiny'; data: rendered scenes; CLIP: a small one trained on rendered scenes only; seed 3; carblib "
    assert capsys.readouterr().out == f"01_x: {said}{__version__}\n"
    path = params.run_dir / "params.yaml"
    os.utime(path, (1, 1))
    notebook.start("02_x")
    assert path.stat().st_mtime == 1, "what did not change keeps its age, by which pictures are judged"


def test_parameters_are_what_the_parameters_cells_hold() -> None:
    cell, injected = 'params_file: str = "a.yaml"  # which\nlr: float = None\nrun = "x"', '# Parameters\nrun = "y"\n'
    assert notebook.parameters_in([cell, "seed = 5\nbits = 3.0"]) == {"params_file": "a.yaml", "lr": None, "run": "x"}
    assert notebook.parameters_in([cell, injected, "run = 'scratch'"])["run"] == "y"
    edited = 'params_file = "b.yaml"\nseed = -1'
    assert notebook.parameters_in([cell, injected, edited]) == {"run": "y", "params_file": "b.yaml", "seed": -1}
    later = notebook.parameters_in([cell, injected, cell])
    assert later["run"] == "x", "the cell that ran last wins"
    assert notebook.parameters_in(["%matplotlib", "not python", cell])["params_file"] == "a.yaml"


@pytest.mark.parametrize("cell, words", [("run = 'x'", "run the parameters cell"), ("params_file = name()", "name()")])
def test_cells_without_parameters_are_refused(cell: str, words: str) -> None:
    with pytest.raises(CarbError, match="^params_file: ") as refusal:
        notebook.parameters_in([cell])
    assert words in str(refusal.value)


def test_start_says_what_the_notebook_changes(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    have_run(monkeypatch, params_file=write_params(home), lr=0.02, seed=None)
    assert notebook.start("01_x").lr == 0.02
    assert capsys.readouterr().out.endswith("; changed here: lr 0.02\n")


def write_params(home: Path) -> str:
    files.write_text(
        home / "tiny.yaml", small_params(run="tiny", seed=3, scenes_train=1, scenes_val=1, scenes_test=1).to_yaml()
    )
    return str(home / "tiny.yaml")


def test_a_shown_figure_has_its_alternative_text_and_one_caption(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, params = [], Params(run="tiny")
    monkeypatch.setattr(notebook, "display", lambda *outputs: shown.extend(outputs))
    figure = new_figure(2, 1)
    figure.subplots().plot([0, 1])
    notebook.show(figure, params, "line", figure_record(params, "1 < 2.", 'A "line".', "val", 3))
    picture, caption = shown
    assert picture.alt == 'A "line".' and picture.format == "png" and picture.data.startswith(b"\x89PNG")
    assert caption.data == "<small>1 &lt; 2.</small>", "data, seed and version stand at the notebook's start"
    assert {path.suffix for path in params.figures_dir.iterdir()} == {".png", ".pdf", ".json"}


def test_a_look_has_its_alternative_text_and_leaves_no_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(notebook, "display", shown.append)
    notebook.look(new_figure(2, 1), "An empty page.")
    assert [picture.alt for picture in shown] == ["An empty page."] and not list(home.iterdir())


def test_a_figure_that_is_missing_says_which_notebook_makes_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, params = [], Params(run="tiny")
    monkeypatch.setattr(notebook, "say", said.append)
    params.run_dir.mkdir(parents=True)
    notebook.show_saved(params, "ablations")
    assert said == ["No figure *ablations* here: ablations.json is missing; notebook 05_ablations makes it."]


def test_a_figure_that_fails_stops_no_notebook(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, params = [], Params(run="tiny")
    row = RunFigure("ablations", "Ablations", "05_ablations", (), lambda results: 1 / 0)
    monkeypatch.setattr(notebook, "say", said.append)
    monkeypatch.setattr(notebook, "FIGURES", {"ablations": row})
    params.run_dir.mkdir(parents=True)
    notebook.show_saved(params, "ablations")
    assert len(said) == 1 and said[0].startswith("Figure *ablations* failed: ZeroDivisionError: division by zero; how ")
    assert "1 / 0" in (params.run_dir / "errors" / "figure_ablations.txt").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_lab_starts_for_root_too() -> None:
    said = subprocess.run(["make", "-n", "lab"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert ("--allow-root" in said) == (os.getuid() == 0)
