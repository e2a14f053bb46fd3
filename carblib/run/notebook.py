"""What every notebook does first and last, so that a notebook defines nothing and only tells its story.

`start` reads and checks the parameters; `show` saves a figure and displays it; `finish` writes the done marker, the
only proof that a notebook ran to its end (`carblib.run.batch` skips what is finished by it).
"""

from __future__ import annotations

import ast
import datetime
import html
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from IPython import get_ipython
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from carblib import __version__
from carblib.base import files
from carblib.base.errors import CarbError, refusals
from carblib.figures.captions import FigureRecord, save_figure
from carblib.figures.draw import note_failure
from carblib.figures.style import compact, rendered
from carblib.figures.table import FIGURES
from carblib.params import Params, as_text, notebook_params
from carblib.results.saved import Missing, load_results
from carblib.results.words import clip_name, data_name
from carblib.scenes.folders import ensure_scenes
from carblib.stages.tools import check_tools

_ABLATIONS = "05_ablations"  # the only notebook that the keys ablation_… concern
_TRAINING = ("03_train", _ABLATIONS)
_SHOWN_DPI = 100  # in the notebook; the saved files have more
_LARGE_PNG = 80_000  # bytes; photographs beyond it are shown as JPEG, which keeps a notebook small enough for the web


@refusals()
def start(notebook: str, *, writes: bool = True) -> Params:
    """Return the checked parameters of a notebook: `params = start("01_dataset_analysis")`.

    They are what the parameters cell holds, and the one that papermill puts in; no other variable of the kernel counts.
    Writes them to runs/<run>/params.yaml, which says what the run's results were made with, unless the notebook
    `writes` none; renders missing scenes; says in one line what runs, on what and with which CLIP, which captions then
    need not repeat; and keeps packages' warnings out of the page.
    Raises CarbError for a name that is no parameter, a value that cannot be one, a file that cannot be read, or a
    package that the work needs and that is not installed.
    """
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    shell = get_ipython()
    given = parameters_in(shell.user_ns["In"] if shell else [])
    params = notebook_params(given)
    if writes:
        check_tools(params, trains=notebook in _TRAINING, ablates=notebook == _ABLATIONS)
    path = params.run_dir / "params.yaml"
    if writes and not (path.is_file() and path.read_text("utf-8") == params.to_yaml()):  # its age is the parameters'
        files.write_text(path, params.to_yaml())
    ensure_scenes(params)
    changed = [f"{key} {as_text(given[key])}" for key in given.keys() - {"params_file"} if given[key] is not None]
    print(
        f"{notebook}: run '{params.run}'; data: {data_name(params)}; CLIP: {clip_name(params)}; "
        f"seed {params.seed}; carblib {__version__}{'; changed here: ' * bool(changed)}{', '.join(sorted(changed))}"
    )
    return params


def parameters_in(executed: Sequence[str]) -> dict[str, Any]:
    """Return what the parameters cell and papermill's injected one hold, given the sources of the cells that have run.

    The parameters cell is the one that sets `params_file`; of each the last run counts, and of the two the later one
    wins. Raises CarbError where no such cell has run, or where one holds more than plain values.
    """
    last: dict[bool, dict[str, Any]] = {}
    for source in executed:
        injected = source.startswith("# Parameters")  # papermill's own mark
        values = _assigned(source) if injected or "params_file" in source else {}
        if injected or "params_file" in values:
            last.pop(injected, None)  # so that the order is that of the last runs
            last[injected] = values
    given = {name: value for values in last.values() for name, value in values.items()}
    if "params_file" not in given:
        raise CarbError("params_file: no cell that sets it has run; run the parameters cell first")
    for name, node in given.items():
        try:
            given[name] = ast.literal_eval(node)
        except ValueError:
            raise CarbError(f"{name}: {ast.unparse(node)} is no plain value; write the value itself") from None
    return given


def _assigned(source: str) -> dict[str, ast.expr]:
    """What the lines of a cell assign to plain names."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return {}
    return {
        target.id: line.value
        for line in body
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None
        for target in (line.targets if isinstance(line, ast.Assign) else [line.target])
        if isinstance(target, ast.Name)
    }


def show(figure: Figure, params: Params, name: str, record: FigureRecord) -> None:
    """Save a figure as figures/<run>/<name>.png, .pdf and .json, and display it with its caption.

    The alternative text goes where screen readers look for it, the picture's own `alt`.
    """
    save_figure(figure, params.figures_dir / name, record)
    look(figure, record.alt)
    say(f"<small>{html.escape(record.caption, quote=False)}</small>")


def look(figure: Figure, alt: str) -> None:
    """Display a figure that is not kept, a step on the way to a result, with its alternative text."""
    data, kind = compact(rendered(figure, "png", _SHOWN_DPI, {}), _LARGE_PNG)
    display(Image(data, format=kind, alt=alt))


def show_saved(params: Params, *names: str) -> None:
    """Draw figures of the run from its saved results (names of `carblib.figures.table`), save and display them.

    Where results are missing, a line says which notebook makes them.
    """
    results = load_results(params.run_dir, params)
    for name in names:
        try:
            figure, record = FIGURES[name].make(results)
            show(figure, params, name, record)
        except Missing as missing:
            say(f"No figure *{name}* here: {html.escape(str(missing), quote=False)}.")
        except Exception as error:  # a drawing that fails must not stop a notebook
            say(f"Figure *{name}* failed: {html.escape(note_failure(results, name, error), quote=False)}.")


def say(text: str) -> None:
    """Display a sentence that was put together from results, as Markdown, so that a rendered page reads as text."""
    display(Markdown(text))


# --- done markers ------------------------------------------------------------------------------------------------


def done_path(params: Params, notebook: str) -> Path:
    """Return runs/<run>/done/<notebook>.json."""
    return params.run_dir / "done" / f"{notebook}.json"


def finish(params: Params, notebook: str, results: Mapping[str, Any]) -> None:
    """Write the done marker: parameters, version, time and `results` (plain numbers and text). Call it last of all."""
    marker = {
        "notebook": notebook,
        "run": params.run,
        "version": __version__,
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "parameters": params.that_affect("ablations"),
        "results": dict(results),
    }
    files.write_json(done_path(params, notebook), marker)
    print(f"{notebook}: finished; figures in figures/{params.run}, results in runs/{params.run}")


def read_done(params: Params, notebook: str) -> dict[str, Any] | None:
    """Return a notebook's done marker, or None where it never ran to its end."""
    path = done_path(params, notebook)
    return files.read_json(path) if path.is_file() else None


def changed_keys(done: Mapping[str, Any], params: Params) -> list[str]:
    """Return the keys that its notebook depends on and whose values differ between a done marker and these parameters.

    Sorted by name.
    """
    what = "ablations" if done.get("notebook") == _ABLATIONS else "results"
    before, now = done["parameters"], params.that_affect(what)
    unknown = before.keys() - Params.model_fields.keys()  # keys that this version no longer has
    return sorted(unknown | {key for key, value in now.items() if before.get(key) != value})
