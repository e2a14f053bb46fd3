"""The report: one self-contained page per run, which begins with what came out.

`carb report runs/demo` writes runs/demo/report.html from saved results and figures, and the index over all runs
(`carblib.run.index`). Pages are static and need no network: pictures are inline, there is no font, script or style from
elsewhere.
"""

from __future__ import annotations

import base64
import datetime
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from carblib import __version__
from carblib.base.errors import CarbError
from carblib.base.files import read_json, write_text
from carblib.base.images import read_image
from carblib.figures.style import compact
from carblib.figures.table import FIGURES, SECTIONS, TABLE
from carblib.params import Params, as_text
from carblib.results.findings import conclusion, training_table
from carblib.results.saved import RunResults, load_results
from carblib.results.tables import run_tables
from carblib.results.words import clip_name, data_name
from carblib.run.report_checks import find_warnings, result_versions
from carblib.run.status import report_digest
from carblib.variants import variant_label

LARGE_PNG = 400_000  # bytes; pictures beyond it (photographs) are shown as JPEG, no wider than a page
FIRST = "closer_look"  # the figure that a page begins with
MOST_BYTES = 15_000_000  # of a page
PACKAGES = ("torch", "torchvision", "numpy", "clip-anytorch", "lightning-fabric", "matplotlib", "pydantic", "papermill")
FURTHER = "Further figures"
TABLES = {
    "per_class": "IoU per class",
    "maskers": "Ways of making pseudo-masks",
    "ablations": "Ablations",
}


def write_report(run_dir: str | Path, params: Params | None = None) -> Path:
    """Write runs/<run>/report.html from the run's results and the pictures in figures/<run>; return its path.

    Captions and alternative texts come from the figures' records. Raises CarbError where results cannot be read.
    """
    results = load_results(run_dir, params)
    folder, target = results.figures_dir, results.folder / "report.html"
    figures, tables = _figures(results, folder), run_tables(results)
    page = template("report.html.j2").render(
        run=results.run,
        made_from=report_digest(results),
        conclusion=conclusion(results),
        comparison=tables.pop("comparison", None),
        first=figures.pop(FIRST, None),
        badges=_badges(results),
        warnings=find_warnings(results),
        trainings=training_table(results),
        evaluations=_evaluated(results),
        notebooks=_notebooks(results),
        sections=_sections(figures),
        all_tables={TABLES[name]: table for name, table in tables.items()},
        parameters=_parameters(results.params),
        versions=_versions(),
        result_versions=", ".join(result_versions(results)) or __version__,
        written=now(),
    )
    if len(page.encode()) > MOST_BYTES:
        size = f"{MOST_BYTES // 1_000_000} MB"
        raise CarbError(f"{target}: the report would exceed {size}; move figures that are not needed out of {folder}")
    write_text(target, page)
    return target


def template(name: str) -> jinja2.Template:
    """Return one of the page templates in carblib/assets."""
    # Everything is escaped, whatever a run, a class or a caption is called; only our own style sheet is included raw.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("carblib", "assets"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def now() -> str:
    """Write the time, as a page says when it was written."""
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


# --- parts of a run's page ---------------------------------------------------------------------------------------


def _badges(results: RunResults) -> list[str]:
    params = results.params
    return [
        data_name(params),
        f"{len(params.class_set)} classes",
        f"CLIP: {clip_name(params)}",
        f"{params.masker.replace('_', ' ')} masker",
        f"{params.path} path" + (" + CRF" if params.crf else ""),
        f"backbone {params.backbone}",
        f"seed {params.seed}",
    ]


def _evaluated(results: RunResults) -> dict[str, Any] | None:
    scores = results.evaluations
    if not scores:
        return None
    first = next(iter(scores.values()))
    return {"split": first["split"], "images": first["images"], "names": "; ".join(map(variant_label, scores))}


def _notebooks(results: RunResults) -> list[dict[str, Any]]:
    pages = sorted((results.folder / "notebooks").glob("*.html"))
    done = {path.stem for path in (results.folder / "done").glob("*.json")}
    return [{"name": p.stem, "href": f"notebooks/{p.name}", "finished": p.stem in done} for p in pages]


def _figures(results: RunResults, folder: Path) -> dict[str, dict[str, Any]]:
    """Read the figures that this run made of these very results, by name, in the table's order; others come last.

    A figure of other results, or of another run of that name, is left out; `report_checks` says so.
    """
    there = {path.stem for path in folder.glob("*.json") if path.with_suffix(".png").is_file()}
    shown = [figure for figure in TABLE if figure.is_current(results, folder / f"{figure.name}.png")]
    held = {figure.name for figure in shown if figure.part_of in {one.name for one in shown}}
    further = [name for name in sorted(there - FIGURES.keys()) if _is_of(results, folder / f"{name}.json")]
    names = [figure.name for figure in shown if figure.name not in held] + further
    return {name: _figure(folder / f"{name}.json") for name in names}


def _is_of(results: RunResults, record: Path) -> bool:
    """Tell whether a picture that is no row of the table, the explorer's view or the user's, is of this run."""
    return read_json(record).get("run") == results.run


def _sections(figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Group figures by the table's sections."""
    titles = {name: FIGURES[name].section if name in FIGURES else FURTHER for name in figures}
    return [
        {
            "title": title,
            "id": title.lower().replace(" ", "-").replace("'", ""),
            "figures": [figures[name] for name in figures if titles[name] == title],
        }
        for title in (*SECTIONS, FURTHER)
        if title in titles.values()
    ]


def _figure(record_path: Path) -> dict[str, Any]:
    record, name = read_json(record_path), record_path.stem
    height, width = read_image(record_path.with_suffix(".png")).shape[:2]
    data, kind = compact(record_path.with_suffix(".png").read_bytes(), LARGE_PNG)
    return {
        "name": name,
        "title": name.replace("_", " ").capitalize().replace("iou", "IoU").replace("Iou", "IoU"),
        "src": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
        "alt": record["alt"],
        "caption": f"{record['caption']} {record['source']}",
        # Saved at 200 dpi; shown so that a page-wide figure fills the column.
        "width": round(width * 0.75),
        "height": round(height * 0.75),
        "small": width < 800,  # a figure of one column of a paper: two stand side by side
    }


def _parameters(params: Params) -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            "value": as_text(getattr(params, key)),
            "default": as_text(field.default),
            "changed": getattr(params, key) != field.default,
            "meaning": field.description,
        }
        for key, field in Params.model_fields.items()
    ]


def _versions() -> dict[str, str]:
    versions = {"carblib": __version__, "Python": platform.python_version(), "platform": platform.platform(terse=True)}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
