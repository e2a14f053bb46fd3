"""A run's notebooks, figures and tables, put where git keeps them: `carb publish runs/demo`."""

from __future__ import annotations

from pathlib import Path

import nbformat

from carblib.base.errors import CarbError
from carblib.base.files import write_bytes
from carblib.figures.table import FIGURES
from carblib.params import Params, project_root
from carblib.results.saved import load_results
from carblib.run.headless import as_read
from carblib.run.status import STALE, UP_TO_DATE, status

PUBLISHED = "published"  # a folder of figures/ that no run writes to but by this command


def publish(run_dir: Path, params: Params | None = None) -> tuple[list[Path], list[str]]:
    """Copy a run's executed notebooks to notebooks/ and its figures and tables to figures/published.

    `params` default to the run's own params.yaml. Returns what was written, and the names that lie in figures/published
    and that this run did not make; they stay. Raises CarbError, before anything is written, where
    results, figures or report are not what would be made now, and where a notebook holds an error.
    """
    results = load_results(run_dir, params)
    for row in status(results.params):
        if row.state == STALE or (row.what in ("figures", "report") and row.state != UP_TO_DATE):
            raise CarbError(f"{run_dir}: {row.what} is {row.state}{': ' * bool(row.why)}{row.why}; {row.command}")
    place = run_dir / "notebooks"
    executed = sorted(place.glob("[0-9]*.ipynb"))
    if not executed:
        raise CarbError(f"{place}: no executed notebook in it; make them with carb batch params/<run>.yaml")
    folder = project_root() / "figures" / PUBLISHED
    pictures = [results.figures_dir / f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf", "json")]
    sources = [path for path in (*pictures, *sorted(results.figures_dir.glob("table_*"))) if path.is_file()]
    contents = {project_root() / "notebooks" / path.name: kept(path).encode() for path in executed}
    contents |= {folder / source.name: source.read_bytes() for source in sources}
    for target, content in contents.items():
        write_bytes(target, content)
    return [*contents], sorted({path.name for path in folder.iterdir()} - {path.name for path in sources})


def kept(executed: Path) -> str:
    """Return an executed notebook without papermill's traces: its parameters cell, times and paths of this machine.

    Raises CarbError for a notebook that failed, whose outputs nobody should read as results.
    """
    notebook = as_read(executed)
    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec", "language_info")}
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.tags]
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.tags else {}
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        if any(output.output_type == "error" for output in cell.outputs):
            raise CarbError(f"{executed}: holds an error; run it to its end first")
        for numbered in (cell, *(output for output in cell.outputs if "execution_count" in output)):
            numbered.execution_count = count
    return nbformat.writes(notebook) + "\n"
