"""The four notebooks, as they are, through papermill on six tiny scenes: they run, and what they leave is complete."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from places import REPOSITORY

from carblib.base import files
from carblib.params import Params
from carblib.run import batch

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))
TINY = {
    "run": "tiny",
    "root": "data/tiny",
    "scenes_train": 6,
    "scenes_val": 2,
    "scenes_test": 2,
    "image_size": [64, 128],
    "crop": [64, 128],
    "patch": [32, 32],
    "warmup": 2,
    "iterations": 4,
    "variants": ["plain", "paper"],
    "batch_size": 2,
    "log_every": 1,
    "val_every": 2,
    "checkpoint_every": 2,
    "monitor_images": 1,
    "bootstrap": 20,
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_begins_with_its_question_and_is_short(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ") and "**Question.**" in notebook.cells[0].source
    (tagged,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert "params_file" in tagged.source
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert len([line for line in code.splitlines() if line.strip()]) <= 80
    assert path.stat().st_size < 500_000


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").symlink_to(REPOSITORY / "notebooks")
    files.write_text(root / "params" / "tiny.yaml", yaml.safe_dump({"base": "demo.yaml", **TINY}))
    shutil.copy(REPOSITORY / "params" / "demo.yaml", root / "params")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARB_HOME", str(root))
        yield root


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_batch_runs_all_four_and_skips_them_the_second_time(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.run_batch(["params/tiny.yaml"], {}) == 0, capsys.readouterr().out
    run_dir, figures = project / "runs" / "tiny", project / "figures" / "tiny"
    for name in batch.NOTEBOOKS:
        executed = nbformat.read(run_dir / "notebooks" / f"{name}.ipynb", as_version=4)
        outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error"]
        noise = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
        assert not noise, f"{name} writes to stderr: {noise}"
        texts = [output.data.get("text/markdown", "") for output in outputs if "data" in output]
        assert not [text for text in texts if text.startswith("No figure")]
        assert (run_dir / "notebooks" / f"{name}.ipynb").stat().st_size < 500_000
        assert "data:image/" in (run_dir / "notebooks" / f"{name}.html").read_text()
        assert (run_dir / "done" / f"{name}.json").is_file()
    made = {path.stem for path in figures.glob("*.png")}
    assert {"samples", "similarity_maps", "mask_examples", "zoom_recovers"} <= made, "drawn in notebooks only"
    assert {"class_frequency", "reliability_curves", "region_maps", "qualitative_grid", "confusion"} <= made
    assert made == {path.stem for path in figures.glob("*.pdf")} == {path.stem for path in figures.glob("*.json")}
    assert Params(**files.read_json(run_dir / "done" / "03_train.json")["parameters"]).iterations == 4
    masks = {"pseudo_masks_global", "pseudo_masks_local"}
    assert {path.stem for path in (run_dir / "evaluation" / "val").glob("*.json")} == masks
    assert {path.stem for path in (run_dir / "evaluation" / "test").glob("*.json")} == masks | {
        "plain", "paper", "ceiling",
    }  # fmt: skip
    assert (run_dir / "report.html").is_file()
    first = capsys.readouterr().out
    assert "paper" in first and "report.html" in first

    assert batch.run_batch(["params/tiny.yaml"], {}) == 0
    assert capsys.readouterr().out.count("skipped") == len(batch.NOTEBOOKS)


@pytest.mark.slow
def test_plain_papermill_works_and_refuses_a_misspelt_key(project: Path) -> None:
    papermill = [sys.executable, "-m", "papermill", "--no-progress-bar"]
    notebook = str(project / "notebooks" / "01_dataset_analysis.ipynb")
    wrong = [notebook, "wrong.ipynb", "-p", "params_file", "params/tiny.yaml", "-p", "iteration", "3"]
    result = subprocess.run([*papermill, *wrong], cwd=project, capture_output=True, text=True)
    assert result.returncode != 0 and "did you mean 'iterations'?" in result.stderr

    # -f with a file of carblib's own form (but for a base), and -p over it.
    files.write_text(project / "own.yaml", yaml.safe_dump(TINY))
    right = [notebook, "right.ipynb", "-f", "own.yaml", "-p", "run", "by_hand", "-p", "scenes_train", "3"]
    result = subprocess.run(
        [*papermill, *right, "-p", "root", "data/by_hand"], cwd=project, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    done = files.read_json(project / "runs" / "by_hand" / "done" / "01_dataset_analysis.json")
    assert done["results"]["images"] == 3 and done["parameters"]["image_size"] == [64, 128]
