"""The report: one self-contained page per run, and one index over all runs, sortable.

`carb report runs/demo` writes runs/demo/report.html and runs/index.html from saved results and figures.
Pages are static and need no network: pictures are inline, there is no font, script or style from elsewhere.
"""

from __future__ import annotations

import base64
import datetime
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from carblib import __version__
from carblib.base.errors import CarbError
from carblib.base.files import read_json, write_text
from carblib.figures.style import compact
from carblib.figures.table import FIGURES, SECTIONS, TABLE
from carblib.params import Params, as_text
from carblib.results.findings import training_table
from carblib.results.saved import RunResults, load_results
from carblib.results.tables import ablation_table, run_tables
from carblib.results.words import clip_name, data_name, percent
from carblib.run.report_checks import find_warnings, result_versions
from carblib.variants import VARIANTS, abbreviations, variant_label

LARGE_PNG = 400_000  # bytes; pictures beyond it (photographs) are shown as JPEG, no wider than a page
MOST_BYTES = 15_000_000  # of a page
PACKAGES = ("torch", "torchvision", "numpy", "clip-anytorch", "lightning-fabric", "matplotlib", "pydantic", "papermill")
TABLES = {
    "comparison": "Comparison",
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
    page = _template("report.html.j2").render(
        run=results.run,
        badges=_badges(results),
        cards=_cards(results),
        warnings=find_warnings(results),
        trainings=training_table(results),
        evaluations=_evaluated(results),
        notebooks=_notebooks(results),
        sections=_sections(results, folder),
        all_tables={TABLES[name]: table for name, table in run_tables(results).items()},
        parameters=_parameters(results.params),
        versions=_versions(),
        result_versions=", ".join(result_versions(results)) or __version__,
        written=_now(),
    )
    if len(page.encode()) > MOST_BYTES:
        size = f"{MOST_BYTES // 1_000_000} MB"
        raise CarbError(f"{target}: the report would exceed {size}; move figures that are not needed out of {folder}")
    write_text(target, page)
    return target


def _template(name: str) -> jinja2.Template:
    # Everything is escaped, whatever a run, a class or a caption is called; only our own style sheet is included raw.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("carblib", "assets"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def _now() -> str:
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


def _cards(results: RunResults) -> list[dict[str, str]]:
    scores = results.evaluations
    main = scores.get(results.main_variant or "")
    if main is None:
        return []
    cards = [_card(main, "miou", "mIoU"), _card(main, "small_miou", "small classes")]
    for variant, title in (("pseudo_masks_global", "mIoU of CLIP's masks"), ("ceiling", "mIoU with true masks")):
        if variant in scores and scores[variant]["miou"] is not None and main["miou"] is not None:
            gap = 100 * (main["miou"] - scores[variant]["miou"])
            note = f"{variant_label(main['variant'])} is {abs(gap):.1f} points {'above' if gap >= 0 else 'below'}"
            cards.append({"value": percent(scores[variant]["miou"]), "title": title, "note": note})
    return cards


def _card(evaluation: dict[str, Any], key: str, title: str) -> dict[str, str]:
    low, high = evaluation[f"{key}_interval"]
    between = "" if low is None else f", 95 % between {percent(low)} and {percent(high)}"
    return {
        "value": percent(evaluation[key]),
        "title": title,
        "note": f"{variant_label(evaluation['variant'])}, {evaluation['images']} images{between}",
    }


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


def _sections(results: RunResults, folder: Path) -> list[dict[str, Any]]:
    """Gather the figures of this run by the table's sections; what the table does not know comes last."""
    there = {path.stem for path in folder.glob("*.json") if path.with_suffix(".png").is_file()}
    shown = [figure for figure in TABLE if figure.name in there and not figure.missing(results)]
    names = {section: [figure.name for figure in shown if figure.section == section] for section in SECTIONS}
    held = [figure.name for figure in shown if figure.part_of in names[figure.section]]
    names["Further figures"] = sorted(there - FIGURES.keys())
    sections = []
    for title, members in names.items():
        figures = [_figure(folder / f"{name}.json") for name in members if name not in held]
        if figures:
            word = title.lower().replace(" ", "-").replace("'", "")
            sections.append({"title": title, "id": word, "figures": figures})
    return sections


def _figure(record_path: Path) -> dict[str, Any]:
    record, name = read_json(record_path), record_path.stem
    with Image.open(record_path.with_suffix(".png")) as picture:
        width, height = picture.size
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


# --- the index ---------------------------------------------------------------------------------------------------


def write_index(runs_dir: str | Path) -> Path:
    """Write <runs_dir>/index.html: a sortable table over all runs, and one over all ablations; return its path.

    A run that cannot be read is named on the page, with the reason, and does not keep the others from it.
    """
    runs_dir = Path(runs_dir)
    runs, problems = [], []
    for params_file in sorted(runs_dir.glob("*/params.yaml")):
        try:
            runs.append(load_results(params_file.parent))
        except CarbError as error:
            problems.append(f"{params_file.parent.name}: {error}")
    tables = [_runs_table(runs)] if runs else []
    ablated = [results for results in runs if results.ablations]
    if ablated:
        tables.append(_ablations_table(ablated))
    page = _template("index.html.j2").render(tables=tables, problems=problems, written=_now(), version=__version__)
    target = runs_dir / "index.html"
    write_text(target, page)
    return target


def _runs_table(runs: Sequence[RunResults]) -> dict[str, Any]:
    """Build the table of all runs, a row each."""
    shown = [variant for variant in VARIANTS if variant != "pseudo_masks"]
    rows = []
    for results in runs:
        params, scores = results.params, results.evaluations
        main = scores.get(results.main_variant or "", {})
        link = f"{results.run}/report.html" if (results.folder / "report.html").is_file() else ""
        rows.append(
            {
                "Run": _cell(results.run, href=link),
                "Data": _cell(data_name(params)),
                "CLIP": _cell(params.clip),
                "Masker": _cell(params.masker.replace("_", " ")),
                "Path": _cell(params.path + (" + CRF" if params.crf else "")),
                "Images": _cell(main.get("images")),
                "Seed": _cell(params.seed),
                **{variant_label(variant): _cell(scores.get(variant, {}).get("miou")) for variant in shown},
                "small classes": _cell(main.get("small_miou")),
                "Finished": _cell(_finished(results)),
            }
        )
    note = (
        "mIoU of CLIP's masks, which are told each image's labels, and of each training, which is not; small classes: "
        f"mean IoU of the run's best-equipped training. {abbreviations(shown)}"
    )
    return _table("Runs", rows, note)


def _ablations_table(runs: Sequence[RunResults]) -> dict[str, Any]:
    """Build the table of all runs' ablations: means and standard deviations over seeds."""
    rows = []
    for results in runs:
        table = ablation_table(results.ablations)
        for cells, values in zip(table.rows, table.frame[[*table.titles]].to_numpy(), strict=True):
            shown = [
                _cell(value, f"{cell.text} {cell.beside}".strip()) for cell, value in zip(cells, values, strict=True)
            ]
            rows.append({"Run": _cell(results.run), **dict(zip(table.columns, shown, strict=True))})
    return _table("Ablations", rows, "Mean ± standard deviation over seeds, in percent.")


def _table(title: str, rows: Sequence[dict[str, dict[str, Any]]], note: str) -> dict[str, Any]:
    """Put rows {column: cell} into the template's form; a column that is empty in all of them is left out."""
    values = {name: [row[name]["value"] for row in rows if row[name]["value"] != ""] for name in rows[0]}
    columns = [{"title": name, "text": isinstance(given[0], str)} for name, given in values.items() if given]
    cells = [[row[column["title"]] for column in columns] for row in rows]
    return {"title": title, "columns": columns, "rows": cells, "note": note}


def _cell(value: str | float | None, text: str = "", href: str = "") -> dict[str, Any]:
    """A score (float) in percent, a count or word as it is, or `text`; – for nothing. `value` is sorted by."""
    if pd.isna(value) or value == "":
        return {"text": "–", "value": "", "href": href}
    shown = percent(value) if isinstance(value, float) else str(value)
    return {"text": text or shown, "value": value, "href": href}


def _finished(results: RunResults) -> str:
    """When the last notebook of a run finished (its done marker), as a date that is not broken into two lines."""
    markers = [read_json(path).get("finished", "") for path in (results.folder / "done").glob("*.json")]
    return max(markers, default="")[:16].replace("T", " ").replace("-", "\u2011")
