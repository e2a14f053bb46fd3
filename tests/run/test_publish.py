"""What git keeps of a run is put there by one command; nothing else writes to it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from commands import carb
from fake_run import make_run
from places import REPOSITORY

from carblib.base.errors import CarbError
from carblib.base.files import write_json
from carblib.figures import draw
from carblib.figures.table import FIGURES
from carblib.params import load_params


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one run, one executed notebook, one figure, and what was published before."""
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    run = make_run(tmp_path)
    (run / "analysis.json").unlink()  # of other masks
    for place in ("params", "notebooks"):
        (tmp_path / place).mkdir()
    executed = nbformat.read(REPOSITORY / "notebooks" / "03_train.ipynb", as_version=4)
    for cell in executed.cells:
        cell.metadata.setdefault("tags", [])  # as papermill leaves them
    nbformat.write(executed, run / "notebooks" / "03_train.ipynb")
    published = tmp_path / "figures" / "published"
    published.mkdir(parents=True)
    for name in ("README.md", "explorer.png", "ablations.png", "confusion.png"):
        (published / name).write_text("old")
    (run / "ablations.json").unlink()
    monkeypatch.setattr(draw, "TABLE", [FIGURES["confusion"]])
    assert carb("figures", run) == 0 and carb("report", run) == 0
    return tmp_path


def test_a_run_is_published_whole_and_what_it_did_not_make_stays(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(project / "runs/tiny/done/00_explore.json", {})  # looking at a run changes nothing that a report shows
    capsys.readouterr()
    assert carb("publish", "runs/tiny") == 0
    said, published = capsys.readouterr().out, project / "figures" / "published"
    assert "left as they were, since this run has not made them: README.md, ablations.png, explorer.png" in said
    assert (published / "confusion.png").read_bytes() == (project / "figures/tiny/confusion.png").read_bytes()
    assert (published / "explorer.png").read_text() == "old" and (published / "table_comparison.md").is_file()
    assert nbformat.read(project / "notebooks" / "03_train.ipynb", as_version=4).cells
    assert not (published / "report.html").exists()


def test_a_notebook_that_failed_keeps_all_from_being_published(project: Path) -> None:
    executed = project / "runs/tiny/notebooks/03_train.ipynb"
    failed = nbformat.read(executed, as_version=4)
    last = [cell for cell in failed.cells if cell.cell_type == "code"][-1]
    last.outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    nbformat.write(failed, executed.with_name("04_small_object_evaluation.ipynb"))
    with pytest.raises(CarbError, match=r"04_small_object_evaluation.ipynb: holds an error"):
        carb("publish", "runs/tiny")
    assert not (project / "notebooks" / "03_train.ipynb").exists()


def test_what_is_stale_is_not_published(project: Path) -> None:
    log = project / "runs/tiny/evaluation/test/plain.json"
    log.write_text(log.read_text() + " ")
    with pytest.raises(
        CarbError, match=r"figures is stale: confusion \(other evaluation.*; carb figures \S+/runs/tiny/"
    ):
        carb("publish", "runs/tiny")
    assert (project / "figures/published/confusion.png").read_text() == "old"
    assert not (project / "notebooks" / "03_train.ipynb").exists()


@pytest.mark.parametrize("file", sorted((REPOSITORY / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_git_keeps_nothing_that_a_run_writes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("CITYSCAPES_DATASET", "/data")
    params = load_params(file)
    places = [params.run_dir / "report.html", params.run_dir.parent / ".cache" / "contents.json",
              params.run_dir.parent / "index.html", params.figures_dir / "confusion.png"]  # fmt: skip
    if params.dataset == "scenes":
        places.append(params.data_root / "train" / "000001.png")
    if not shutil.which("git"):
        pytest.skip("no git")
    done = subprocess.run(["git", "check-ignore", *places], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("not a checkout of git")
    assert len(done.stdout.splitlines()) == len(places)
    with pytest.raises(CarbError, match="figures/published is what git keeps"):
        params.updated(run="published")
