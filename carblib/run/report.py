"""The report: one self-contained page per run, and one index over all runs, sortable.

`carb report runs/demo` writes runs/demo/report.html and runs/index.html from saved results and figures.
Pages are static and need no network: pictures are inline, there is no font, script or style from elsewhere.
"""

from __future__ import annotations

import base64
import datetime
import io
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

from carblib import __version__
from carblib.base.errors import CarbError
from carblib.base.files import read_json, write_text
from carblib.figures.all import FIGURES
from carblib.params import Params, project_root
from carblib.results.saved import RunResults, load_results, numbers
from carblib.results.tables import ablation_table, run_tables
from carblib.results.words import data_name
from carblib.run.report_checks import find_warnings, training_states
from carblib.variants import abbreviations, variant_label

MOST_BYTES = 14_000_000  # of a page; beyond it figures are shown as smaller JPEGs
PACKAGES = ("torch", "torchvision", "numpy", "clip-anytorch", "lightning-fabric", "matplotlib", "pydantic", "papermill")
# Which figures stand in which section; any other figure of the run's folder comes last.
SECTIONS = {
    "The data": ("samples", "dataset_difficulty"),
    "CLIP's masks": ("similarity_maps", "mask_examples", "pseudo_mask_iou", "zoom_recovers", "masker_comparison"),
    "Training": ("training_curves", "compare_trainings", "region_weights", "reliability_curves", "region_maps"),
    "Results": ("qualitative_grid", "iou_per_class", "object_size_curves", "gain_over_pseudo_masks", "confusion"),
    "Ablations": ("ablations",),
}
PARTS_OF_DIFFICULTY = ("class_frequency", "cooccurrence", "classes_per_image", "object_sizes")
TABLES = {
    "comparison": "Comparison",
    "per_class": "IoU per class",
    "maskers": "Ways of making pseudo-masks",
    "ablations": "Ablations",
}


def write_report(
    run_dir: str | Path,
    params: Params | None = None,
    figures_dir: str | Path | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write the report of a run (default runs/<run>/report.html) from its results and figures; return its path.

    Figures are those in `figures_dir` (default figures/<run>), with captions and alternative texts from their records.
    """
    results = load_results(run_dir, params)
    folder = Path(figures_dir) if figures_dir else project_root() / "figures" / results.run
    target = Path(out) if out else results.folder / "report.html"
    page = _template("report.html.j2").render(
        run=results.run,
        badges=_badges(results),
        cards=_cards(results),
        warnings=find_warnings(results, folder, [name for name, _ in FIGURES]),
        trainings=training_states(results),
        evaluations=_evaluated(results),
        notebooks=_notebooks(results, target),
        sections=_sections(folder),
        all_tables={TABLES[name]: table for name, table in run_tables(results).items()},
        parameters=_parameters(results.params),
        versions=_versions(),
        result_versions=", ".join(_result_versions(results)) or __version__,
        written=_now(),
    )
    if len(page.encode()) > 15_000_000:
        raise CarbError(f"{target}: the report would exceed 15 MB; move figures that are not needed out of {folder}")
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
    clip = "small CLIP (trained on rendered scenes)" if params.clip == "small" else f"CLIP {params.clip}"
    return [
        data_name(params),
        f"{len(params.class_set)} classes",
        clip,
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
            cards.append({"value": _percent(scores[variant]["miou"]), "title": title, "note": note})
    return cards


def _card(evaluation: dict[str, Any], key: str, title: str) -> dict[str, str]:
    span = evaluation.get(f"{key}_interval") or [None, None]
    between = "" if None in span else f", 95 % between {100 * span[0]:.1f} and {100 * span[1]:.1f}"
    return {
        "value": _percent(evaluation[key]),
        "title": title,
        "note": f"{variant_label(evaluation['variant'])}, {evaluation['images']} images{between}",
    }


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _evaluated(results: RunResults) -> dict[str, Any] | None:
    scores = results.evaluations
    if not scores:
        return None
    first = next(iter(scores.values()))
    return {"split": first["split"], "images": first["images"], "names": "; ".join(map(variant_label, scores))}


def _notebooks(results: RunResults, target: Path) -> list[dict[str, Any]]:
    pages = sorted((results.folder / "notebooks").glob("*.html"))
    # The report may be written elsewhere; then only absolute paths lead back.
    beside = target.resolve().parent == results.folder
    return [
        {
            "name": page.stem,
            "href": f"notebooks/{page.name}" if beside else page.as_uri(),
            "finished": (results.folder / "done" / f"{page.stem}.json").is_file(),
        }
        for page in pages
    ]


def _sections(folder: Path) -> list[dict[str, Any]]:
    paths = {path.stem: path for path in sorted(folder.glob("*.json")) if path.with_suffix(".png").is_file()}
    if "dataset_difficulty" in paths:  # it holds these four
        paths = {name: path for name, path in paths.items() if name not in PARTS_OF_DIFFICULTY}
    named = [name for names in SECTIONS.values() for name in names]
    wanted = SECTIONS | {"Further figures": tuple(name for name in paths if name not in named)}
    if "dataset_difficulty" not in paths:
        wanted["The data"] = ("samples", *PARTS_OF_DIFFICULTY)
        wanted["Further figures"] = tuple(n for n in wanted["Further figures"] if n not in PARTS_OF_DIFFICULTY)
    limit = int(0.72 * MOST_BYTES / max(len(paths), 1))  # base64 makes 4 bytes of 3
    sections = []
    for title, names in wanted.items():
        figures = [_figure(name, paths[name], limit) for name in names if name in paths]
        if figures:
            sections.append(
                {"title": title, "id": title.lower().replace(" ", "-").replace("'", ""), "figures": figures}
            )
    return sections


def _figure(name: str, record_path: Path, limit: int) -> dict[str, Any]:
    record, data = read_json(record_path), record_path.with_suffix(".png").read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
        kind = "png"
        if len(data) > limit:
            data, kind = _smaller(picture.convert("RGB"), limit), "jpeg"
    return {
        "name": name,
        "title": name.replace("_", " ").capitalize().replace("iou", "IoU").replace("Iou", "IoU"),
        "src": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
        "alt": record.get("alt", ""),
        "caption": record.get("caption", ""),
        # Saved at 200 dpi; shown so that a page-wide figure fills the column.
        "width": round(width * 0.75),
        "height": round(height * 0.75),
        "small": width < 800,  # a figure of one column of a paper: two stand side by side
    }


def _smaller(picture: Image.Image, limit: int) -> bytes:
    """Encode as JPEG of at most `limit` bytes, halving the picture as often as it takes."""
    while True:
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=85, optimize=True)
        if len(data.getvalue()) <= limit or min(picture.size) < 64:
            return data.getvalue()
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)


def _parameters(params: Params) -> list[dict[str, Any]]:
    defaults, values = Params().model_dump(mode="json"), params.model_dump(mode="json")
    return [
        {
            "key": key,
            "value": _shown(value),
            "default": _shown(defaults[key]),
            "changed": value != defaults[key],
            "meaning": Params.model_fields[key].description or "",
        }
        for key, value in values.items()
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        return f"[{', '.join(map(_shown, value))}]"
    return '""' if value == "" else str(value)


def _versions() -> dict[str, str]:
    versions = {"carblib": __version__, "Python": platform.python_version(), "platform": platform.platform(terse=True)}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _result_versions(results: RunResults) -> list[str]:
    return sorted({str(e["version"]) for e in results.evaluations.values() if e.get("version")})


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
    """Build the table of all runs; a column that is empty for all of them is left out."""
    shown = ("pseudo_masks_global", "pseudo_masks_local", "plain", "glv", "carb", "paper", "ours", "ceiling")
    texts = ("Run", "Data", "CLIP", "Masker", "Path")
    titles = [*texts, "Images", "Seed", *(variant_label(v) for v in shown), "small classes", "Finished"]
    rows = []
    for results in runs:
        params, scores = results.params, results.evaluations
        main = scores.get(results.main_variant or "", {})
        report = results.folder / "report.html"
        cells = [_cell(results.run, href=f"{results.run}/report.html" if report.is_file() else "")]
        path = params.path + (" + CRF" if params.crf else "")
        cells += [_cell(text) for text in (data_name(params), params.clip, params.masker.replace("_", " "), path)]
        cells += [_number(main.get("images"), "{:.0f}"), _number(params.seed, "{:.0f}")]
        cells += [_number(scores.get(variant, {}).get("miou"), "{:.1f}", 100) for variant in shown]
        finished = _finished(results)
        # A hyphen at which the date is not broken into two lines.
        cells += [_number(main.get("small_miou"), "{:.1f}", 100), _cell(finished.replace("-", "\u2011"), finished)]
        rows.append(cells)
    filled = [place for place in range(len(titles)) if any(row[place]["text"] not in ("", "–") for row in rows)]
    columns = [{"title": titles[place], "text": titles[place] in texts} for place in filled]
    note = (
        "mIoU of CLIP's masks, which are told each image's labels, and of each training, which is not; small classes: "
        f"mean IoU of the run's best-equipped training. {abbreviations(shown)}"
    )
    return {"title": "Runs", "columns": columns, "rows": [[row[i] for i in filled] for row in rows], "note": note}


def _ablations_table(runs: Sequence[RunResults]) -> dict[str, Any]:
    tables = {results.run: ablation_table(results.ablations or []) for results in runs}
    first = next(iter(tables.values()))
    columns = [{"title": "Run", "text": True}]
    columns += [{"title": t, "text": a == "l"} for t, a in zip(first.columns, first.align, strict=True)]
    rows = []
    for run, table in tables.items():
        plain = table.frame[[*table.titles]].itertuples(index=False)
        for row, values in zip(table.rows, plain, strict=True):
            cells = [
                _cell(f"{cell.text} {cell.beside}".strip(), "" if pd.isna(value) else value)
                for cell, value in zip(row, values, strict=True)
            ]
            rows.append([_cell(run), *cells])
    return {"title": "Ablations", "columns": columns, "rows": rows, "note": "Mean ± standard deviation over seeds."}


def _cell(text: str, value: Any = None, href: str = "") -> dict[str, Any]:
    return {"text": text, "value": text if value is None else value, "href": href}


def _number(value: float | None, form: str, scale: float = 1) -> dict[str, Any]:
    number = float("nan") if value is None else float(numbers(value)) * scale
    return _cell("–", "") if np.isnan(number) else _cell(form.format(number), number)


def _finished(results: RunResults) -> str:
    """When the last notebook of a run finished (its done marker), as a date."""
    markers = [read_json(path).get("finished", "") for path in (results.folder / "done").glob("*.json")]
    return max(markers, default="")[:16].replace("T", " ")
