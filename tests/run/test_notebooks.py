"""The notebooks on six tiny scenes: through papermill, and in one real kernel as a person works in it.

They are run as they are; what they leave is complete. In the kernel: Run All twice, edit and run, scratch variables,
cells in any order, stop and run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from places import REPOSITORY

from carblib.base import files
from carblib.params import Params
from carblib.run import batch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
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
INJECTED = "# Parameters"  # how the cell begins that papermill puts in
ABLATIONS = {"ablation_variants": ["plain"], "ablation_paths": ["single"], "ablation_seeds": [0]}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_begins_with_its_question_and_is_short(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ") and "**Question.**" in notebook.cells[0].source
    (tagged,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert "params_file" in tagged.source
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert len([line for line in code.splitlines() if line.strip()]) <= 95
    assert path.stat().st_size < 500_000


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").symlink_to(REPOSITORY / "notebooks")
    files.write_text(root / "params" / "tiny.yaml", yaml.safe_dump({"base": "demo.yaml", **TINY, **ABLATIONS}))
    shutil.copy(REPOSITORY / "params" / "demo.yaml", root / "params")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARB_HOME", str(root))
        yield root


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
    masks = {"pseudo_masks_no_labels", "pseudo_masks_global", "pseudo_masks_local"}
    assert {path.stem for path in (run_dir / "evaluation" / "val").glob("*.json")} == masks
    assert {path.stem for path in (run_dir / "evaluation" / "test").glob("*.json")} == masks | {
        "plain", "paper", "ceiling",
    }  # fmt: skip
    assert (run_dir / "report.html").is_file()
    first = capsys.readouterr().out
    assert "paper" in first and "report.html" in first

    assert batch.run_batch(["params/tiny.yaml"], {}) == 0
    assert capsys.readouterr().out.count("skipped") == len(batch.NOTEBOOKS)


def test_plain_papermill_runs_the_ablations(project: Path) -> None:
    papermill = [sys.executable, "-m", "papermill", "--no-progress-bar"]
    notebook = str(project / "notebooks" / "05_ablations.ipynb")
    # -f with a file of carblib's own form (but for a base), and -p over it.
    own = TINY | {"iterations": 2, "warmup": 1, "ablation_variants": ["plain", "paper", "ceiling"]}
    own |= {"ablation_paths": ["single"], "ablation_seeds": [0, 1]}
    files.write_text(project / "own.yaml", yaml.safe_dump(own))
    right = [notebook, "right.ipynb", "-f", "own.yaml", "-p", "run", "by_hand", "-p", "scenes_train", "3"]
    result = subprocess.run(
        [*papermill, *right, "-p", "root", "data/by_hand"], cwd=project, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    done = files.read_json(project / "runs" / "by_hand" / "done" / "05_ablations.json")
    assert done["results"] == {"cells": 7, "seeds": [0, 1]} and done["parameters"]["image_size"] == [64, 128]
    assert len(list((project / "data" / "by_hand" / "train").glob("*.png"))) == 3
    executed = nbformat.read(project / "right.ipynb", as_version=4)
    (injected,) = (cell for cell in executed.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert injected.source.startswith(INJECTED)
    outputs = [one for cell in executed.cells for one in cell.get("outputs", [])]
    texts = "\n".join(one.data.get("text/markdown", "") for one in outputs if "data" in one)
    assert "mean ± standard deviation over seeds" in texts and "No figure" not in texts
    tables = [one.data["text/html"] for one in outputs if "text/html" in one.get("data", {})]
    assert any("of 2</td>" in table for table in tables), "gains over plain cross-entropy, seed by seed"
    assert [path.suffix for path in sorted((project / "figures" / "by_hand").glob("ablations.*"))] == [
        ".json", ".pdf", ".png"
    ]  # fmt: skip


# --- one real kernel, in which a person works with what the batch has made -------------------------------------------


class Kernel:
    """A kernel that a person works in; all notebooks share it, which is harder than what a person does."""

    def __init__(self, folder: Path):
        self.client = NotebookClient(nbformat.v4.new_notebook(), timeout=900, resources={"metadata": {"path": folder}})

    def run(self, source: str) -> str:
        """Run a cell; return what it printed."""
        cell = nbformat.v4.new_code_cell(source)
        self.client.nb.cells.append(cell)
        self.client.execute_cell(cell, len(self.client.nb.cells) - 1)
        return "".join(output.text for output in cell.outputs if output.output_type == "stream")

    def run_all(self, notebook: Path, **changed: object) -> str:
        """Run all cells of a notebook, the values `changed` in its parameters cell; return what they printed."""
        said, self.client.nb.cells[:] = [], []
        for cell in nbformat.read(notebook, 4).cells:
            if cell.cell_type == "code":
                here = "parameters" in cell.metadata.get("tags", [])
                said.append(self.run(cell.source + "".join(f"\n{k} = {v!r}" for k, v in changed.items()) * here))
        return "".join(said)


@pytest.fixture(scope="module")
def kernel(project: Path) -> Iterator[Kernel]:
    kernel = Kernel(project)
    with kernel.client.setup_kernel():
        kernel.run("from carblib.figures import captions\ncaptions.PNG_DPI = 40")  # the batch drew at full size
        yield kernel


FILE = "params/tiny.yaml"


def trained(project: Path) -> dict[Path, int]:
    """When each finished training of the project was finished."""
    return {path: path.stat().st_mtime_ns for path in project.glob("runs/*/train/*/done.json")}


def test_run_all_twice(kernel: Kernel, project: Path) -> None:
    before: dict[Path, int] = {}
    for _ in range(2):
        before, started = trained(project), time.time()
        for number in (2, 4, 5):  # the tests below run the others twice
            kernel.run_all(NOTEBOOKS[number], params_file=FILE)
            done = project / "runs" / "tiny" / "done" / f"{NOTEBOOKS[number].stem}.json"
            assert done.stat().st_mtime >= started, done
    assert trained(project) == before, "the second time nothing is trained again"
    assert project / "runs/tiny.value_path.single/train/plain-seed0/done.json" in before


def test_without_a_page_the_explorer_is_a_figure_each_time(kernel: Kernel, project: Path) -> None:
    for run in ("tiny", "still"):
        kernel.run_all(NOTEBOOKS[0], params_file=FILE, run=run)
        assert (project / "runs" / run / "done" / "00_explore.json").is_file()
    outputs = [output for cell in kernel.client.nb.cells for output in cell.outputs]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/jpeg"} and "application/vnd.jupyter.widget-view+json" not in kinds
    assert len(nbformat.writes(kernel.client.nb)) < 500_000
    assert (project / "figures" / "still" / "explorer_view.pdf").is_file()
    assert not (project / "runs" / "still" / "params.yaml").exists()


def test_edit_and_run_with_scratch_variables(kernel: Kernel) -> None:
    kernel.run("seed = 5\nbits = 3\nlrr = 0.1")
    said = kernel.run_all(NOTEBOOKS[1], params_file=FILE, run="edited", masker="naclip")
    assert "run 'edited'" in said and "seed 0" in said and "changed here: masker naclip, run edited" in said
    said = kernel.run_all(NOTEBOOKS[1], params_file=FILE)
    assert "run 'tiny'" in said and "changed here" not in said, "what is deleted from the cell no longer counts"
    first, then = [cell.source for cell in nbformat.read(NOTEBOOKS[1], 4).cells if cell.cell_type == "code"][:2]
    for sources in ([f"{first}\niteration = 3"], [first, f"{INJECTED}\niteration = 3\n"]):  # in the cell, by papermill
        with pytest.raises(CellExecutionError, match="did you mean 'iterations'"):
            for source in (*sources, then):
                kernel.run(source)
    kernel.run(INJECTED)  # the last one counts, for the tests below


def test_cells_run_in_any_order(kernel: Kernel, project: Path) -> None:
    kernel.run_all(NOTEBOOKS[3], params_file=FILE)
    before, started = trained(project), time.time()
    cells = [cell.source for cell in nbformat.read(NOTEBOOKS[3], 4).cells if cell.cell_type == "code"]
    for source in (*reversed(cells[1:-1]), cells[-1]):
        kernel.run(source)
    assert trained(project) == before and project / "runs/tiny/train/paper/done.json" in before
    assert (project / "runs/tiny/done/03_train.json").stat().st_mtime >= started


def test_the_iteration_by_hand_takes_batches_as_a_gpu_gets_them(kernel: Kernel) -> None:
    kernel.run("import torch\nimport carblib.data.batches as there\nkept = there.torch_device")
    kernel.run("there.torch_device = lambda name: torch.device('cuda')")  # asked by the loader alone
    cells = [cell.source for cell in nbformat.read(NOTEBOOKS[3], 4).cells if cell.cell_type == "code"]
    try:
        for source in (f"{cells[0]}\nparams_file = {FILE!r}", *cells[1:6]):
            kernel.run(source)
    finally:
        kernel.run("there.torch_device = kept")
    assert "clip_image" not in kernel.run("print(*other)").split(), "of the last batch it was left to the device"


def test_stop_and_run(kernel: Kernel, project: Path) -> None:
    longer = {"params_file": FILE, "run": "stopped", "variants": ["plain"], "iterations": 150}
    longer |= {"val_every": 0, "ceiling": False, "checkpoint_every": 100}
    process = int(kernel.run("import os\nprint(os.getpid())"))
    folder = project / "runs" / "stopped" / "train" / "plain"

    def stop_button() -> None:
        log = folder / "log.csv"
        while not log.exists() or log.read_text().count("\n") < 2:  # the first row: signals are held back by then
            time.sleep(0.01)
        os.kill(process, signal.SIGINT)

    pressing = threading.Thread(target=stop_button, daemon=True)
    pressing.start()
    with pytest.raises(CellExecutionError, match="stopped|nterrupt"):
        kernel.run_all(NOTEBOOKS[3], **longer)
    assert not (folder / "done.json").exists() and (folder / "checkpoint.pt").exists()
    assert "resuming at iteration" in kernel.run_all(NOTEBOOKS[3], **longer)
    assert files.read_json(folder / "done.json")["iteration"] == 150
