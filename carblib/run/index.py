"""The index over all runs: a table that sorts and filters, and two runs side by side.

`carb report` and `carb batch` write runs/index.html. It is static and needs no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from carblib import __version__
from carblib.base.errors import CarbError
from carblib.base.files import read_json, write_text
from carblib.params import Params, as_text
from carblib.results.saved import RunResults, load_results
from carblib.results.tables import ablation_table
from carblib.results.words import data_name, percent
from carblib.run.report import now, template
from carblib.run.status import MARKERS
from carblib.variants import VARIANTS, abbreviations, in_order, variant_label


def write_index(runs_dir: str | Path, beside: Sequence[str] = ()) -> Path:
    """Write <runs_dir>/index.html: a sortable table over all runs, and one over all ablations; return its path.

    `beside` names runs that are put side by side, with the keys that differ; by default the two that finished last. A
    run that cannot be read is named, here and on the page, with the reason, and does not keep the others from it.
    """
    runs_dir = Path(runs_dir)
    runs, finished, problems = [], {}, []
    for params_file in sorted(runs_dir.glob("*/params.yaml")):
        try:
            results = load_results(params_file.parent)
            finished[results.run] = _finished(results)
            runs.append(results)
        except CarbError as error:
            problems.append(f"{params_file.parent.name}: {error}")
            print(f"index without {problems[-1]}")
    tables = [_runs_table(runs, finished)] if runs else []
    ablated = [results for results in runs if results.ablations]
    if ablated:
        tables.append(_ablations_table(ablated))
    recent = sorted((results for results in runs if results.evaluations), key=lambda one: finished[one.run])[-2:]
    by_name = {results.run: results for results in runs}
    chosen = [by_name[name] for name in beside if name in by_name] if len(beside) > 1 else recent
    pair = _side_by_side(chosen) if len(chosen) > 1 else None
    page = template("index.html.j2").render(
        tables=tables, pair=pair, problems=problems, written=now(), version=__version__
    )
    target = runs_dir / "index.html"
    write_text(target, page)
    return target


def _runs_table(runs: Sequence[RunResults], finished: Mapping[str, str]) -> dict[str, Any]:
    """Build the table of all runs, a row each."""
    shown = [variant for variant in VARIANTS if variant not in ("pseudo_masks", "pseudo_masks_no_labels")]  # for width
    rows = []
    for results in runs:
        params, scores = results.params, results.evaluations
        main = scores.get(results.main_variant or "", {})
        link = f"{results.run}/report.html" if (results.folder / "report.html").is_file() else ""
        rows.append(
            {
                "Run": _cell(results.run, href=link),
                "Score": _cell(main.get("miou")),
                "Data": _cell(data_name(params)),
                "CLIP": _cell(params.clip),
                "Masker": _cell(params.masker.replace("_", " ")),
                "Path": _cell(params.path + (" + CRF" if params.crf else "")),
                "Images": _cell(main.get("images")),
                **{variant_label(variant): _cell(scores.get(variant, {}).get("miou")) for variant in shown},
                "small classes": _cell(main.get("small_miou")),
                "Finished": _cell(finished[results.run]),
            }
        )
    note = (
        "Score: mIoU of the run's best-equipped training; mIoU of CLIP's masks, which are told each "
        "image's labels, and of each training, which is not; small classes: "
        f"mean IoU of that training. {abbreviations(shown)}"
    )
    return _table("Runs", rows, note)


def _side_by_side(runs: Sequence[RunResults]) -> dict[str, Any]:
    """Build a table with a column per run: mIoU and small-class mean of each variant, then the keys that differ."""
    variants = in_order({variant for results in runs for variant in results.evaluations})
    rows = [(variant_label(name), [_scores(results, name) for results in runs]) for name in variants]
    keys = [key for key in Params.model_fields if key != "run"]
    values = {key: [as_text(getattr(results.params, key)) for results in runs] for key in keys}
    keys = [(key, own) for key, own in values.items() if len(set(own)) > 1]
    return {"runs": [results.run for results in runs], "scores": rows, "keys": keys}


def _scores(results: RunResults, variant: str) -> str:
    one = results.evaluations.get(variant)
    return f"{percent(one['miou'])} / {percent(one['small_miou'])}" if one else "–"


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
    markers = [read_json(path).get("finished", "") for path in results.folder.glob(MARKERS)]
    return max(markers, default="")[:16].replace("T", " ").replace("-", "\u2011")
