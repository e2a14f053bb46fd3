"""What every notebook does first and last, so that a notebook defines nothing and only tells its story.

`start` reads and checks the parameters; `show` saves a figure and displays it; `finish` writes the done marker, the
only proof that a notebook ran to its end (`carblib.run.batch` skips what is finished by it).
"""

from __future__ import annotations

import datetime
import html
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from carblib import __version__
from carblib.base import files
from carblib.base.errors import refusals
from carblib.figures.captions import FigureRecord, save_figure
from carblib.figures.draw import note_failure
from carblib.figures.style import compact, rendered
from carblib.figures.table import FIGURES
from carblib.params import Params, notebook_params
from carblib.results.saved import Missing, load_results
from carblib.results.words import clip_name, data_name
from carblib.scenes.folders import ensure_scenes

_ABLATIONS = "05_ablations"  # the only notebook that the keys ablation_… concern
_SHOWN_DPI = 110  # in the notebook; the saved files have more
_LARGE_PNG = 80_000  # bytes; photographs beyond it are shown as JPEG, which keeps a notebook small enough for the web


@refusals()
def start(namespace: Mapping[str, Any], notebook: str, *, writes: bool = True) -> Params:
    """Return the checked parameters of a notebook: `params = start(globals(), "01_dataset_analysis")`.

    Writes them to runs/<run>/params.yaml, which says what the run's results were made with, unless the notebook
    `writes` none; renders missing scenes; says in one line what runs, on what and with which CLIP, which captions then
    need not repeat; and keeps packages' warnings out of the page.
    Raises CarbError for a name that is no parameter, a value that cannot be one, or a file that cannot be read.
    """
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    params = notebook_params(namespace)
    path = params.run_dir / "params.yaml"
    if writes and not (path.is_file() and path.read_text("utf-8") == params.to_yaml()):  # its age is the parameters'
        files.write_text(path, params.to_yaml())
    ensure_scenes(params)
    print(
        f"{notebook}: run '{params.run}'; data: {data_name(params)}; CLIP: {clip_name(params)}; "
        f"seed {params.seed}; carblib {__version__}"
    )
    return params


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
