"""Which notebooks a batch runs, skips and runs again, and how it ends; the notebooks themselves are stand-ins here."""

from __future__ import annotations

import dataclasses
import re
import shutil
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cells import have_run
from commands import carb
from fake_run import evaluation, make_run
from places import REPOSITORY
from small import small_params

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.figures import draw, table
from carblib.figures.captions import Drawn, figure_record
from carblib.figures.style import new_figure
from carblib.params import load_params
from carblib.results.saved import RunResults, load_results
from carblib.run import batch, notebook
from carblib.run.headless import NotebookFailed

DEMO = REPOSITORY / "params" / "demo.yaml"


class Project:
    """A project folder with parameters files a and b, and stand-ins for notebooks, figures and report."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.ran, self.made = root, [], []
        self.sabotage: dict[tuple[str, str], Callable[[], None]] = {}
        for name in ("a", "b"):
            files.write_text(root / "params" / f"{name}.yaml", f"base: {DEMO}\nrun: {name}\nseed: 3\n")
        monkeypatch.setenv("CARB_HOME", str(root))
        monkeypatch.setattr(batch, "execute", self.execute)
        monkeypatch.setattr(batch, "render_html", lambda path: path)
        monkeypatch.setattr(batch, "figures", types.SimpleNamespace(make_all=lambda run_dir: []))
        monkeypatch.setattr(
            batch,
            "report",
            types.SimpleNamespace(write_report=self.write_report, write_index=lambda d: d / "index.html"),
        )

    def execute(self, source: Path, output: Path, parameters: dict) -> None:
        overrides = {key: value for key, value in parameters.items() if key != "params_file"}
        params = load_params(parameters["params_file"], overrides)
        self.ran.append((params.run, source.stem[:2]))
        self.sabotage.get((params.run, source.stem[:2]), lambda: None)()
        notebook.finish(params, source.stem, {})

    def write_report(self, run_dir: Path, params: object) -> None:
        self.made.append(run_dir.name)
        files.write_text(run_dir / "report.html", "report")

    def run(self, *arguments: object) -> int:
        self.ran, self.made = [], []
        return carb("batch", *arguments)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(tmp_path, monkeypatch)


ALL = ["01", "02", "03", "04"]


def test_runs_in_order_then_skips_what_is_finished(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.run("params/a.yaml", "params/b.yaml") == 0
    assert project.ran == [("a", n) for n in ALL] + [("b", n) for n in ALL]
    assert project.made == ["a", "b"]
    assert str(project.root / "runs/b/report.html") in capsys.readouterr().out

    assert project.run("params/a.yaml", "params/b.yaml") == 0
    assert project.ran == [] and project.made == ["a", "b"], "other commands may have added results"


def test_goes_on_after_a_failure_and_says_which(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise NotebookFailed("cell [3] CarbError: no CLIP")

    project.sabotage["a", "02"] = fail
    assert project.run("params/a.yaml", "params/b.yaml") == 1
    assert project.ran == [("a", "01"), ("a", "02")] + [("b", n) for n in ALL]
    last = capsys.readouterr().out.splitlines()[-3:]
    assert last[0].startswith("FAILED a: 02_pseudo_masks: cell [3] CarbError: no CLIP; see ")
    assert "runs/a/notebooks/02_pseudo_masks.ipynb" in last[0]
    assert last[1].startswith("report of b")

    project.sabotage.clear()
    assert project.run("params/a.yaml", "params/b.yaml") == 0
    assert project.ran == [("a", "02"), ("a", "03"), ("a", "04")], "goes on where it failed"


def test_notebook_without_done_marker_is_not_finished(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # papermill returning is not enough: a notebook that lost its closing cell must count as failed.
    with monkeypatch.context() as patch:
        patch.setattr(notebook, "finish", lambda *_: None)
        assert project.run("params/a.yaml") == 1
    assert project.ran == [("a", "01")] and "without its closing cell" in capsys.readouterr().out
    assert project.run("params/a.yaml") == 0
    assert project.ran == [("a", n) for n in ALL]


def test_stale_done_marker_does_not_hide_a_failure(project: Project) -> None:
    assert project.run("params/a.yaml") == 0
    project.sabotage["a", "02"] = lambda: (_ for _ in ()).throw(NotebookFailed("killed"))
    assert project.run("params/a.yaml", "--force") == 1
    project.sabotage.clear()
    assert project.run("params/a.yaml") == 0
    assert project.ran == [("a", "02")]
    assert project.made == ["a"], "the report is made again"


def test_changed_parameters_run_again(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.run("params/a.yaml") == 0
    assert project.run("params/a.yaml", "-p", "workers", "2", "-p", "device", "cpu") == 0
    assert project.ran == [], "neither changes a result"
    assert project.run("params/a.yaml", "-p", "seed", "4", "-p", "crop", "[256, 256]") == 0
    assert project.ran == [("a", n) for n in ALL]
    assert "03_train: runs again (crop, seed changed)" in capsys.readouterr().out


def test_chosen_notebooks(project: Project) -> None:
    for name in (*batch.NOTEBOOKS, "05_ablations"):
        files.write_text(project.root / "notebooks" / f"{name}.ipynb", "{}")
    assert project.run("params/a.yaml", "--notebooks", "05", "02") == 0
    assert project.ran == [("a", "02"), ("a", "05")]
    assert project.run("params/a.yaml") == 0
    assert ("a", "05") not in project.ran, "ablations only when asked for"
    with pytest.raises(CarbError, match="--notebooks 09.*05_ablations"):
        project.run("params/a.yaml", "--notebooks", "09")


def test_user_mistakes_stop_before_anything_runs(project: Project) -> None:
    files.write_text(project.root / "params/twin.yaml", "run: a\n")
    with pytest.raises(CarbError, match=r"run 'a' is also that of .*a\.yaml"):
        project.run("params/a.yaml", "params/twin.yaml")
    with pytest.raises(CarbError, match="learning_rate"):
        project.run("params/a.yaml", "-p", "learning_rate", "1")
    with pytest.raises(CarbError, match="nothere.yaml"):
        project.run("params/a.yaml", "params/nothere.yaml")
    assert project.ran == []


def test_failing_figures_fail_the_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run_dir: Path) -> list[Path]:
        raise CarbError("log.csv: damaged")

    with monkeypatch.context() as patch:
        patch.setattr(batch.figures, "make_all", broken)
        assert project.run("params/a.yaml") == 1
        assert project.made == ["a"], "the report is there all the same"
    assert project.run("params/a.yaml") == 0
    assert project.ran == [] and project.made == ["a"]


def test_a_refused_file_fails_its_run_in_one_line(project: Project, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def refused(run_dir: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", "/closed/a.png")

    monkeypatch.setattr(batch.figures, "make_all", refused)
    assert project.run("params/a.yaml") == 1
    assert "FAILED figures: /closed/a.png: permission denied; change" in capsys.readouterr().out


def test_a_batch_draws_each_figure_and_writes_each_table_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    made, drawn, written = make_run(tmp_path / "made"), Counter(), Counter()
    files.write_text(tmp_path / "params" / "tiny.yaml", (made / "params.yaml").read_text("utf-8"))

    def execute(source: Path, output: Path, parameters: dict) -> None:
        """Bring the results that the notebook's figures need, then show the figures that it names."""
        have_run(monkeypatch, **parameters)
        params = notebook.start(source.stem)
        for row in (row for row in table.TABLE if row.notebook == source.stem):
            for path in (path for need in row.needs for path in made.glob(need.format(val="val"))):
                target = params.run_dir / path.relative_to(made)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.exists() or shutil.copyfile(path, target)
        text = (REPOSITORY / "notebooks" / source.name).read_text("utf-8")
        for call in re.findall(r"show_saved\(params, ([^)]*)\)", text):
            notebook.show_saved(params, *re.findall(r"\w+", call))
        notebook.finish(params, source.stem, {})

    def counted(row: table.RunFigure) -> table.RunFigure:
        def draw_nothing(results: RunResults) -> Drawn:
            drawn[row.name] += 1
            return new_figure(1, 1), figure_record(results.params, "A caption.", "A text.")

        return dataclasses.replace(row, draw=draw_nothing)

    rows = [counted(row) for row in table.TABLE]
    monkeypatch.setattr(batch, "execute", execute)
    monkeypatch.setattr(notebook, "display", lambda *outputs: None)
    monkeypatch.setattr(notebook, "ensure_scenes", lambda params: None)  # the scenes of the fake run are not rendered
    monkeypatch.setattr(notebook, "FIGURES", {row.name: row for row in rows})
    monkeypatch.setattr(draw, "TABLE", rows)
    monkeypatch.setattr(draw, "write_tables", lambda results, folder: written.update([folder.name]))
    assert carb("batch", "params/tiny.yaml") == 0
    assert drawn == Counter(set(table.FIGURES) - {"ablations"}) and written == {"tiny": 1}
    assert f"figures: {len(table.FIGURES) - 1} in " in capsys.readouterr().out
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text("utf-8")
    assert "Older than" not in page and "No figure of: ablations (" in page


def test_interrupt_stops_everything(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.sabotage["a", "03"] = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    assert project.run("params/a.yaml", "params/b.yaml") == 130
    assert project.ran == [("a", n) for n in ALL[:3]]
    assert "the same command goes on" in capsys.readouterr().out


def test_overview_lists_every_run_and_variant(project: Project) -> None:
    for run, variant, score in (("a", "plain", 0.25), ("a", "paper", 0.5), ("b", "paper", None)):
        path = project.root / "runs" / run / "evaluation" / "test" / f"{variant}.json"
        full = evaluation(variant, 0.5, np.random.default_rng(0))
        files.write_json(path, full | {"miou": score, "small_miou": score})
    jobs = batch.plan([project.root / "params/a.yaml", project.root / "params/b.yaml"], {})
    table = [line.split() for line in batch.overview(jobs).splitlines()[1:]]
    assert table[0] == ["variant", "a", "b"]
    assert ["plain", "25.0", "/", "25.0"] in table
    assert ["paper", "50.0", "/", "50.0", "–", "/", "–"] in table


def test_a_damaged_evaluation_fails_its_run_alone(project: Project, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    files.write_text(project.root / "runs/a/evaluation/test/plain.json", "{")
    monkeypatch.setattr(batch.report, "write_report", load_results)
    assert project.run("params/a.yaml", "params/b.yaml") == 1
    said = capsys.readouterr().out
    assert "FAILED a: report: " in said and "plain.json" in said
    assert "report of b: " in said and "all runs: " in said


def test_done_marker_holds_what_was_run(project: Project) -> None:
    params = small_params(run="a", seed=5)
    assert notebook.read_done(params, "01_x") is None
    notebook.finish(params, "01_x", {"miou": 0.5})
    done = notebook.read_done(params, "01_x")
    assert done["results"] == {"miou": 0.5} and done["parameters"]["seed"] == 5
    assert notebook.changed_keys(done, params) == []
    assert notebook.changed_keys(done, params.updated(seed=6, interactive=True)) == ["seed"]
