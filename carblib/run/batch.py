"""Batch runs: the ordered notebooks over one parameters file per dataset, headless, through papermill.

    carb batch params/demo.yaml params/camvid_small.yaml [-p KEY VALUE]

A notebook counts as finished when papermill returned *and* the notebook's own closing cell wrote its done marker: after
a killed kernel every cell of the saved notebook says "completed", so nothing else can be trusted. What is finished with
the same parameters is skipped; what was interrupted goes on from its last checkpoint, because every step does.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from carblib.base.errors import CarbError, one_line
from carblib.figures import draw as figures
from carblib.params import Params, below_root, find_params, load_params, project_root
from carblib.results.saved import read_evaluations
from carblib.results.words import duration, percent
from carblib.run import index, report
from carblib.run.headless import NotebookFailed, execute, render_html
from carblib.run.notebook import changed_keys, done_path, read_done
from carblib.run.status import STALE, TRAINING, UNKNOWN, Row, results_status
from carblib.stages.tools import check_tools
from carblib.training.state import discard_stale
from carblib.variants import in_order

ABLATIONS = "05_ablations"
NOTEBOOKS = ("01_dataset_analysis", "02_pseudo_masks", "03_train", "04_small_object_evaluation")


@dataclass
class Job:
    """One parameters file with the overrides given on the command line, and what became of it."""

    file: Path
    overrides: dict[str, str]
    params: Params
    failure: str = ""

    def parameters(self) -> dict[str, str]:
        """What papermill gives to a notebook; inside the project the file's name is relative, as a person types it."""
        return {"params_file": below_root(self.file), **self.overrides}


# --- one dataset -------------------------------------------------------------------------------------------------


def run_notebook(job: Job, notebook: str, force: bool, where: str = "") -> None:
    """Run one notebook of a job unless it is finished with the same parameters and what it made is what it would make.

    `where` it stands in the batch is said first. Raises NotebookFailed, and CarbError for trainings on other things,
    which only `force` trains anew; the executed notebook and its page are in `runs/<run>/notebooks/`.
    """
    params, output = job.params, job.params.run_dir / "notebooks" / f"{notebook}.ipynb"
    done = read_done(params, notebook)
    changed = changed_keys(done, params) if done else []
    stale = stale_rows(params, notebook)
    if notebook == TRAINING:
        renew_trainings(job, stale, force)
    if done and not changed and not stale and not force:
        say(f"  {where}{notebook}: finished before, skipped")
        return
    reasons = [f"{', '.join(changed)} changed"] * bool(changed) + [f"{row.what}: {row.why}" for row in stale[:3]]
    why = f" again ({'; '.join(reasons)})" if reasons else " again" if done else ""
    say(f"  {where}{notebook}: runs{why}")
    done_path(params, notebook).unlink(missing_ok=True)
    started = time.monotonic()
    try:
        execute(project_root() / "notebooks" / f"{notebook}.ipynb", output, job.parameters())
        if read_done(params, notebook) is None:
            raise NotebookFailed("ended without its closing cell; was it cut short?")
    finally:
        if output.is_file():
            render_html(output)
    say(f"  {notebook}: done in {duration(time.monotonic() - started)}")


def stale_rows(params: Params, notebook: str) -> list[Row]:
    """Return what a notebook made that is stale, or may be; nothing where the data are not there to be compared."""
    if not params.data_root.is_dir():
        return []
    try:
        return [row for row in results_status(params) if row.notebook == notebook and row.state in (STALE, UNKNOWN)]
    except CarbError as error:
        say(f"  {notebook}: cannot tell whether all is up to date: {error}")
        return []


def renew_trainings(job: Job, stale: Sequence[Row], force: bool) -> None:
    """Delete trainings on other things if that was asked for (`force`), and raise CarbError for them if not."""
    stale = [row for row in stale if row.state == STALE]  # of the others the notebook itself tells
    if stale and not force:
        again = job.params.command("batch", "--force")
        raise CarbError(f"{stale[0].what}: on other things: {stale[0].why}; to train anew: {again}")
    for variant in job.params.trainings if stale else ():
        discard_stale(job.params.run_dir / "train" / variant, job.params.variant(variant))


def is_finished(params: Params, notebook: str) -> bool:
    """Tell whether a notebook's done marker says that it is finished with these parameters."""
    try:
        done = read_done(params, notebook)
        return done is not None and not changed_keys(done, params)
    except (CarbError, KeyError):  # a damaged marker, which is told where it is this notebook's turn
        return False


def run_job(job: Job, notebooks: Sequence[str], force: bool) -> None:
    """Run one dataset's notebooks, then make figures (with tables) and report; a failure goes to `job.failure`."""
    run_dir = job.params.run_dir
    say(f"{job.params.run} ({job.file}), results in {run_dir}")
    step = ""
    try:
        for number, step in enumerate(notebooks, start=1):
            run_notebook(job, step, force, f"step {number} of {len(notebooks) + 1}, ")
        step, started = "figures", time.monotonic()
        say(f"  step {len(notebooks) + 1} of {len(notebooks) + 1}, figures and report")
        try:
            count = len(figures.make_all(run_dir))  # most were drawn by the notebooks
            say(f"  figures: {count} in {job.params.figures_dir}, {duration(time.monotonic() - started)}")
        except Exception as error:  # a run without one of its figures has its report
            job.failure = f"figures: {one_line(error)}"
        step = "report"
        report.write_report(run_dir, job.params)
    except NotebookFailed as error:
        job.failure = f"{step}: {error}; see {run_dir / 'notebooks' / step}.ipynb"
    except Exception as error:  # the next dataset must still have its turn
        job.failure = f"{step}: {one_line(error)}"
    if job.failure:
        say(f"  FAILED {job.failure}")


# --- all of them -------------------------------------------------------------------------------------------------


def plan(params_files: Sequence[Path], overrides: dict[str, str]) -> list[Job]:
    """Read and check every parameters file before anything runs; CarbError for a bad one or a run named twice."""
    jobs: list[Job] = []
    for file in params_files:
        params = load_params(file, overrides)
        twin = next((job for job in jobs if job.params.run == params.run), None)
        if twin:
            raise CarbError(f"{file}: run '{params.run}' is also that of {twin.file}; give each its own 'run'")
        jobs.append(Job(file, overrides, params))
    return jobs


def choose_notebooks(wanted: Sequence[str]) -> list[str]:
    """Return the notebooks whose names begin with one of `wanted` ("02"), in order; all of `NOTEBOOKS` when empty."""
    if not wanted:
        return list(NOTEBOOKS)
    known = sorted(path.stem for path in (project_root() / "notebooks").glob("[0-9]*.ipynb"))
    for word in wanted:
        if not any(name.startswith(word) for name in known):
            raise CarbError(f"--notebooks {word}: no such notebook; there are {', '.join(known)}")
    return [name for name in known if name.startswith(tuple(wanted))]


def overview(jobs: Sequence[Job]) -> str:
    """Return a text table, a column per run: mIoU / mean IoU of the small classes (%) of each evaluated variant."""
    columns = {}
    for job in jobs:
        with contextlib.suppress(CarbError):  # one that cannot be read has failed, which is said below
            measured = next(iter(read_evaluations(job.params.run_dir, job.params).values()), {})
            scores = {name: f"{percent(one['miou'])} / {percent(one['small_miou'])}" for name, one in measured.items()}
            columns[job.params.run] = pd.Series(scores, dtype=str)
    table = pd.DataFrame(columns)
    if table.empty:
        return "no evaluation yet"
    table = table.reindex(in_order(table.index)).rename_axis(columns="variant")
    return f"mIoU / mean IoU of the small classes, %\n{table.to_string(na_rep='')}"


def say(text: str) -> None:
    """Print a progress line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run_batch(
    params_files: Sequence[str], overrides: dict[str, str], wanted: Sequence[str] = (), force: bool = False
) -> int:
    """Run the notebooks `wanted` of every parameters file; return 0, or 1 when a dataset failed, or 130 after Ctrl-C.

    `overrides` are text, which Params converts, here and in the notebooks; `force`: run also what is finished.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of every parameter that is only in the file
    jobs = plan([find_params(name).absolute() for name in params_files], overrides)
    notebooks = choose_notebooks(wanted)
    for job in jobs:
        waiting = [name for name in notebooks if force or not is_finished(job.params, name)]
        if waiting:
            check_tools(job.params, ablates=ABLATIONS in waiting)
    started = time.monotonic()
    try:
        for job in jobs:
            run_job(job, notebooks, force)
    except KeyboardInterrupt:
        say("stopped; what is finished is kept, and the same command goes on from here")
        return 130
    print(f"\n{overview(jobs)}\n")
    for runs_dir in dict.fromkeys(job.params.run_dir.parent for job in jobs):
        print(f"all runs: {index.write_index(runs_dir)}")
    for job in jobs:
        print(f"FAILED {job.params.run}: {job.failure}" if job.failure
              else f"report of {job.params.run}: {job.params.run_dir / 'report.html'}")  # fmt: skip
    print(f"finished in {duration(time.monotonic() - started)}")
    return 1 if any(job.failure for job in jobs) else 0
