"""The report: whole in one file, no network, honest about what went wrong; the index sorts in a real browser."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import carb
from fake_run import NAMES, SCORES, evaluation, make_run
from PIL import Image
from small import small_params

from carblib.base.errors import CarbError
from carblib.base.files import read_json, write_json, write_text
from carblib.base.images import write_image
from carblib.data.readers import open_split
from carblib.figures import captions, draw
from carblib.figures.table import FIGURES
from carblib.params import Params, load_params
from carblib.results.findings import conclusion
from carblib.results.saved import load_results
from carblib.run import index, report, report_checks, status
from carblib.stages.evaluate import evaluate_folder
from carblib.variants import variant_label

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


class Page(HTMLParser):
    """The parts of a page that could load something, and what it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.images: list[dict] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.links += [values[key] for key in ("src", "href", "srcset", "data", "poster", "action") if key in values]
        if tag == "img":
            self.images.append(values)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    make_run(root)
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with one run and two of its figures."""
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    run = shutil.copytree(made / "runs", tmp_path / "runs") / "tiny"
    add_figure(tmp_path, "confusion", "A matrix of 3 < 4 & more.")
    add_figure(tmp_path, "my_own", "Mine.")
    (run / "train" / "plain" / "done.json").unlink()
    return tmp_path


def add_figure(project: Path, name: str, caption: str, size: int = 20) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3)).astype(np.uint8)
    write_image(project / "figures" / "tiny" / f"{name}.png", noise)
    record = captions.figure_record(small_params(run="tiny"), caption, f'Alt of "{name}".', "test", 5)
    if name in FIGURES:
        made_from = FIGURES[name].made_from(load_results(project / "runs" / "tiny"))
        record = dataclasses.replace(record, made_from=made_from)
    write_json(project / "figures" / "tiny" / f"{name}.json", vars(record))


def test_report_is_self_contained(project: Path) -> None:
    path = report.write_report(project / "runs" / "tiny")
    text = path.read_text("utf-8")
    page = Page(text)
    assert path == project / "runs" / "tiny" / "report.html" and path.stat().st_size < 15_000_000
    outside = [link for link in page.links if not link.startswith(("data:", "#", "notebooks/"))]
    assert not outside and "script" not in page.tags and "iframe" not in page.tags
    assert not re.search(r"@import|url\(|https?://", text), "nothing may point to a network"
    assert "default-src 'none'" in text and "@media print" in text
    assert all((path.parent / link).is_file() for link in page.links if link.startswith("notebooks/"))
    assert all(link[1:] in re.findall(r'id="([^"]+)"', text) for link in page.links if link.startswith("#"))


def test_report_holds_what_a_reader_needs(project: Path) -> None:
    page = Page(report.write_report(project / "runs" / "tiny").read_text("utf-8"))
    assert [image["alt"] for image in page.images] == ['Alt of "confusion".', 'Alt of "my_own".']
    for wanted in (
        "A matrix of 3 < 4 & more. Data: rendered scenes, split test (5 images);",
        "CLIP: a small one trained on rendered scenes only", "Further figures",
        "Measured on split test (5 images)", "GLV only", "Ablations", "iterations", "Python", "torch", "carblib",
    ):  # fmt: skip
        assert wanted in page.text, wanted
    assert "OpenAI" not in re.sub(r"an OpenAI name", "", page.text)
    assert "03_train (did not finish)" in " ".join(page.text.split()) and "01_dataset_analysis (did" not in page.text
    main = read_json(project / "runs" / "tiny" / "evaluation" / "test" / "ours.json")
    assert f"{100 * main['miou']:.1f}" in page.text
    assert not re.search(r"\d\.\d{5,}", re.sub(r"\+\S+", "", page.text)), "numbers with too many digits"


def test_parameters_that_differ_from_the_defaults_are_set_off() -> None:
    params = Params(run="x", warmup=7, crop=(64, 64), patch=(32, 32), adaptive=False)
    rows = {row["key"]: row for row in report._parameters(params)}
    assert set(rows) == set(Params.model_fields) and all(row["meaning"] for row in rows.values())
    assert {key for key, row in rows.items() if row["changed"]} == {"run", "warmup", "crop", "patch", "adaptive"}
    assert rows["crop"]["value"] == "[64, 64]" and rows["adaptive"]["value"] == "false"
    assert rows["pseudo_masks"]["value"] == '""' and rows["mask_window"]["value"] == "null"


def test_changed_parameters_come_first_and_defaults_once(project: Path) -> None:
    text = report.write_report(project / "runs" / "tiny").read_text("utf-8")
    table, rest = text.split('id="parameters"')[1].split("All others have their default")
    assert '<th class="key" scope="row">warmup</th><td class="value">60</td><td class="value faint">16000</td>' in table
    assert '<th class="key" scope="row">flip</th>' not in table and "<code>flip: <b>0.5</b></code>" in rest
    assert "warmup:" not in rest
    page = report.template("report.html.j2").render(
        run="x", made_from="", conclusion="", comparison=None, first=None, badges=[], warnings=[], trainings=[],
        evaluations=None, notebooks=[], sections=[],
        all_tables={}, parameters=report._parameters(Params()), versions={"carblib": "1"}, result_versions="1",
        written="",
    )  # fmt: skip
    assert "All have their default" in page and "differ" not in page


def test_text_from_results_is_escaped(project: Path) -> None:
    add_figure(project, "confusion", "<script>alert(1)</script>")
    text = report.write_report(project / "runs" / "tiny").read_text("utf-8")
    assert "<script>" not in text and "&lt;script&gt;alert(1)" in text


def test_large_figures_are_made_smaller(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_figure(project, "confusion", "Noise that no PNG makes small.", size=2000)
    path = report.write_report(project / "runs" / "tiny")
    text = path.read_text("utf-8")
    assert (project / "figures" / "tiny" / "confusion.png").stat().st_size > 10_000_000
    assert "data:image/jpeg;base64," in text and path.stat().st_size < 2_500_000
    assert 'width="1500" height="1500"' in text, "it is shown at the size of the figure all the same"
    monkeypatch.setattr(report, "MOST_BYTES", 1_000_000)
    with pytest.raises(CarbError, match="the report would exceed 1 MB"):
        report.write_report(project / "runs" / "tiny")


def test_a_figure_that_was_cut_is_left_out_and_named(project: Path) -> None:
    picture = project / "figures" / "tiny" / "confusion.png"
    add_figure(project, "confusion", "Of which half is lost.")
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    text = report.write_report(project / "runs" / "tiny").read_text("utf-8")
    assert "Of which half is lost." not in text and "confusion (its file is damaged)" in text


def test_report_without_any_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    write_text(tmp_path / "runs" / "tiny" / "params.yaml", small_params(run="tiny").to_yaml())
    page = Page(report.write_report(tmp_path / "runs" / "tiny").read_text("utf-8"))
    assert "Nothing was evaluated yet." in page.text and "No training was logged." in page.text
    with pytest.raises(CarbError, match="no such run folder"):
        report.write_report(tmp_path / "runs" / "tinny")
    (tmp_path / "runs" / "tiny" / "params.yaml").unlink()
    with pytest.raises(CarbError, match="--params"):
        report.write_report(tmp_path / "runs" / "tiny")


def test_warnings_say_what_numbers_do_not(project: Path) -> None:
    run = project / "runs" / "tiny"
    before = " ".join(report_checks.find_warnings(load_results(run)))
    assert "“plain cross-entropy” is not finished" in before and re.search(
        "No figure of: samples, .*, ablations", before
    )
    assert "small CLIP knows" not in before and "λ" not in before and "older" not in before
    log = pd.read_csv(run / "train" / "ours" / "log.csv")
    log["weight"], log.loc[3, "loss"] = np.where(log["iteration"] > 60, 0.01, np.nan), np.nan
    log.to_csv(run / "train" / "ours" / "log.csv", index=False)
    poor = evaluation("ours", 0.3, np.random.default_rng(0))
    poor["iou"][2], poor["iou"][4], poor["version"], poor["seed"] = 0.0, None, "0.0.1", 3
    write_json(run / "evaluation" / "test" / "ours.json", poor)
    on_camvid = small_params(run="tiny", dataset="camvid", iterations=100, warmup=60)
    after = " ".join(report_checks.find_warnings(load_results(run, on_camvid)))
    for wanted in (
        "small CLIP knows rendered scenes only", "fell to 0.01", "not finite at iteration 40", "never finds: pole",
        "left out of the mean: sidewalk", "different seeds: 0, 3", "0.0.1",
        "Left out, since they do not show these results: confusion (other parameters, other evaluation/*/*.json)",
        f"“{variant_label('ours')}” is below “CLIP masks”", "below “plain cross-entropy”",
    ):  # fmt: skip
        assert wanted in after, wanted


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ("analysis.json", "cooccurrence"),
        ("maskers.json", ""),
        ("train/plain/log.csv", "training_curves"),
        ("train/ours/reliability.csv", "reliability_curves"),
        ("train/ours/regions/000100/000001.npz", "region_maps"),
        ("evaluation/test/paper.json", "confusion"),
        ("params.yaml", ""),
    ],
)
def test_a_figure_of_other_results_is_left_out_and_named(project: Path, changed: str, stale: str) -> None:
    run = project / "runs" / "tiny"
    names = ["cooccurrence", "confusion", "training_curves", "reliability_curves", "region_maps"]
    for name in names:
        add_figure(project, name, "x")
    with (run / changed).open("ab") as file:
        file.write(b"\n")
    text = report.write_report(run).read_text("utf-8")
    assert set(re.findall(r'<figure id="(\w+)"', text)) == {*names, "my_own"} - {stale}
    told = [line for line in text.splitlines() if "Left out" in line]
    assert len(told) == bool(stale)
    if stale:
        assert f"{stale.replace('_', ' ')} (other " in told[0]


def test_a_figure_of_another_run_is_never_shown(project: Path) -> None:
    for name in ("confusion", "my_own"):
        path = project / "figures" / "tiny" / f"{name}.json"
        write_json(path, read_json(path) | {"run": "another"})
    page = report.write_report(project / "runs" / "tiny").read_text("utf-8")
    assert "<figure" not in page and "confusion (of run another)" in page


def test_the_report_says_which_results_are_stale(project: Path) -> None:
    run = project / "runs" / "tiny"
    params, folder = load_results(run).params, run / "predictions" / "plain" / "test"
    evaluate_folder(folder, open_split(params, "test"), params, "plain", resize=True)
    assert "evaluation plain test" not in report.write_report(run).read_text("utf-8")
    shutil.copy(folder / f"{NAMES[0]}.png", folder / f"{NAMES[1]}.png")
    assert "evaluation plain test (other predictions)" in report.write_report(run).read_text("utf-8")


@pytest.mark.parametrize("overrides", [{}, {"seed": "3"}])
def test_parameters_that_are_given_are_those_used_and_named(
    project: Path, overrides: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, file = project / "runs" / "tiny", project / "params" / "m.yaml"
    monkeypatch.chdir(project)
    for module in (draw, status):
        monkeypatch.setattr(module, "TABLE", [FIGURES["training_curves"]])
    assert carb("figures", run) == 0 and carb("report", run) == 0
    write_text(file, load_results(run).params.updated(iterations=120).to_yaml())
    given = load_params("params/m.yaml", overrides)
    rows = [*status.shown_status(given)]
    assert [row.state for row in rows] == ["stale", "stale"] and "other parameters" in rows[0].why
    for row in rows:
        assert carb(*shlex.split(row.command)[1:]) == 0
    assert [row.state for row in status.shown_status(given)] == ["up to date", "up to date"]
    row = status.Row("training plain", status.STALE, "other data", "")
    monkeypatch.setattr(report_checks, "results_status", lambda params: [row])
    told = " ".join(report_checks.find_warnings(load_results(run, given)))
    assert f"Not what would be made now: training plain (other data). {given.command('status')} says" in told
    assert given.command("figures") in told


def test_a_run_that_was_moved_is_named_by_its_folder(project: Path) -> None:
    moved = (project / "runs" / "tiny").rename(project / "runs" / "moved")
    assert load_results(moved).command("figures") == "carb figures runs/moved"


def test_the_report_shows_this_run_s_figures_in_the_table_s_order(project: Path) -> None:
    # Pictures of an earlier run of that name may lie in the folder: what this run has no results for is not shown.
    for name in ("ablations", "cooccurrence", "samples", "confusion", "iou_per_class", "dataset_difficulty"):
        add_figure(project, name, "x")
    (project / "runs" / "tiny" / "ablations.json").unlink()
    text = report.write_report(project / "runs" / "tiny").read_text("utf-8")
    shown = re.findall(r'<figure id="(\w+)"', text)
    assert shown == ["samples", "dataset_difficulty", "iou_per_class", "confusion", "my_own"], (
        "dataset_difficulty holds cooccurrence"
    )
    assert re.findall(r"<h3[^>]*>([^<]+)<", text)[:3] == ["The data", "Results", "Further figures"]
    assert re.search(r"No figure of: .*, ablations \(", text)
    (project / "figures" / "tiny" / "dataset_difficulty.png").unlink()
    text = report.write_report(project / "runs" / "tiny").read_text("utf-8")
    assert re.findall(r'<figure id="(\w+)"', text)[:2] == ["samples", "cooccurrence"]


def test_the_first_screen_is_conclusion_table_and_picture(project: Path) -> None:
    add_figure(project, "closer_look", "A small thing.")
    text = report.write_report(project / "runs" / "tiny").read_text("utf-8")
    first = text.split("<h2")[0]
    assert re.findall(r'<figure id="(\w+)"', first) == ["closer_look"] and text.count('id="closer_look"') == 1
    assert conclusion(load_results(project / "runs" / "tiny")) in Page(first).text
    assert first.count('<th scope="row"') == len(SCORES) and "[" in first.split("<tbody>")[1]


def test_pages_can_be_read_aloud(project: Path) -> None:
    pages = [report.write_report(project / "runs" / "tiny"), index.write_index(project / "runs")]
    for text in (path.read_text("utf-8") for path in pages):
        levels = [int(level) for level in re.findall(r"<h(\d)", text)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), (
            "no level is skipped"
        )
        assert all(image["alt"] for image in Page(text).images)
        cells = re.findall(r"<th [^>]*>", text)
        assert cells and all('scope="' in cell for cell in cells)
        ids = re.findall(r' id="([^"]+)"', text)
        assert len(ids) == len(set(ids))


# --- the index ---------------------------------------------------------------------------------------------------


@pytest.fixture
def many(project: Path) -> Path:
    """Three runs of different scores, one of them unreadable besides."""
    runs = project / "runs"
    for name, score in (("better", 0.8), ("none", None)):
        shutil.copytree(runs / "tiny", runs / name)
        shutil.rmtree(runs / name / "evaluation")
        (runs / name / "ablations.json").unlink()
        if score:
            write_json(
                runs / name / "evaluation" / "test" / "paper.json", evaluation("paper", score, np.random.default_rng(0))
            )
    shutil.copytree(runs / "tiny", runs / "broken")
    (runs / "broken" / "evaluation" / "test" / "paper.json").write_text("{")
    report.write_report(runs / "tiny")
    return runs


def test_index_lists_all_runs(many: Path) -> None:
    write_json(many / "tiny" / "done" / "00_explore.json", {"finished": "2027-01-02T03:04:05+00:00"})  # a look around
    page = Page(index.write_index(many).read_text("utf-8"))
    assert [link for link in page.links if not link.startswith("data:")] == ["tiny/report.html"]
    text = " ".join(page.text.split())
    assert "broken:" in text and "paper.json" in text and "better" in text and "2026\u201101\u201102 03:04" in text
    assert "2027" not in text and "single + CRF" in text, "ablations of all runs stand below"
    (many / "empty").mkdir()
    assert "No run here yet" in index.write_index(many / "empty").read_text("utf-8")


def test_a_run_that_cannot_be_read_costs_no_other_its_page(many: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (many / "tiny" / "report.html").unlink()
    write_text(many / "better" / "done" / "01_dataset_analysis.json", "{")
    with pytest.raises(CarbError, match=r"^\S*broken/evaluation/test/paper.json: [^;]*; delete the file and evaluate"):
        carb("report", many / "broken", many / "tiny", many / "better")
    assert (many / "better" / "report.html").is_file() and "index without better: " in capsys.readouterr().out
    page = Page((many / "index.html").read_text("utf-8"))
    assert "better: " in page.text and "broken: " in page.text
    assert [link for link in page.links if not link.startswith("data:")] == ["tiny/report.html"]


def test_index_leaves_empty_columns_out_and_breaks_no_plus(many: Path) -> None:
    shutil.rmtree(many / "broken")
    for path in many.glob("*/evaluation/test/glv.json"):
        path.unlink()
    text = index.write_index(many).read_text("utf-8")
    head = text.split("<thead>")[1].split("</thead>")[0]
    titles = re.findall(r"<button[^>]*>([^<]*)<", head)
    spoken = [title.replace("\xa0", " ") for title in titles]
    assert variant_label("glv") not in spoken and variant_label("pseudo_masks_local") in spoken
    assert spoken[:3] == ["Run", "Score", "Data"] and spoken[-2:] == ["small classes", "Finished"]
    assert not [title for title in titles if "+ " in title] and any("+\xa0" in title for title in titles)
    row = next(row for row in text.split("<tr>") if "tiny/report.html" in row)
    assert row.count("<td") + 1 == len(titles)
    local = read_json(many / "tiny" / "evaluation" / "test" / "pseudo_masks_local.json")["miou"]
    cells = re.findall(r"<td[^>]*>([^<]*)<", row)
    assert cells[titles.index("CLIP masks, local views") - 1] == f"{100 * local:.1f}"


def chromium(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    quiet = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", *quiet, "--disable-sync", "--disable-dev-shm-usage",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", *arguments],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip


@browser
@pytest.mark.browser
def test_index_sorts_in_a_browser(many: Path, tmp_path: Path) -> None:
    page = index.write_index(many)
    titles = [cell["title"] for cell in index._runs_table([load_results(many / "tiny")], {"tiny": "now"})["columns"]]
    click = f"document.querySelectorAll('th button')[{titles.index(variant_label('paper'))}].click();"
    orders = []
    for clicks in (1, 2):
        text = page.read_text("utf-8").replace("</body>", f"<script>{click * clicks}</script></body>")
        write_text(tmp_path / "clicked.html", text)
        shown = chromium(tmp_path, "--dump-dom", (tmp_path / "clicked.html").as_uri()).stdout
        body = shown.split("<tbody>")[1].split("</tbody>")[0]
        orders.append(re.findall(r'<tr><th scope="row" class="l" data-title="Run" data-value="(\w+)"', body))
    assert orders == [["better", "tiny", "none"], ["tiny", "better", "none"]], "runs without a score stay last"


@browser
@pytest.mark.browser
@pytest.mark.parametrize("paper", ["screen", "paper"])
def test_index_fits_its_page(many: Path, tmp_path: Path, paper: str) -> None:
    page = index.write_index(many)
    # As wide as a laptop's window, or as a landscape sheet of letter paper between its margins.
    style = "<style>@media screen { .scroll { overflow: visible } }</style>" if paper == "screen" else ""
    print_rules = page.read_text("utf-8").replace("@media print", "@media all") if paper == "paper" else None
    write = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    text = (print_rules or page.read_text("utf-8")).replace("</body>", style + write)
    write_text(tmp_path / "measured.html", text)
    size = "--window-size=1100,900" if paper == "screen" else "--window-size=957,700"
    shown = chromium(tmp_path, size, "--dump-dom", (tmp_path / "measured.html").as_uri()).stdout
    wide, window = map(int, re.search(r"<title>(\d+) of (\d+)</title>", shown).groups())
    assert wide <= window


@browser
@pytest.mark.browser
@pytest.mark.parametrize("page", ["report", "index"])
def test_pages_fit_a_phone(many: Path, tmp_path: Path, page: str) -> None:
    path = many / "tiny" / "report.html" if page == "report" else index.write_index(many)
    write = """<iframe id="phone" style="width: 390px; height: 844px" src="{}"></iframe><script>onload = () => {{
    const root = document.getElementById("phone").contentDocument.documentElement;
    document.title = root.scrollWidth + " of " + root.clientWidth }}</script>"""
    write_text(tmp_path / "phone.html", write.format(path.as_uri()))
    shown = chromium(
        tmp_path, "--allow-file-access-from-files", "--dump-dom", (tmp_path / "phone.html").as_uri()
    ).stdout
    wide, window = map(int, re.search(r"<title>(\d+) of (\d+)</title>", shown).groups())
    assert 300 < window <= 390 and wide <= window


@browser
@pytest.mark.browser
def test_the_index_shows_only_the_runs_asked_for(many: Path, tmp_path: Path) -> None:
    ask = """<script>const box = document.querySelector("#filter"); box.value = "BETT";
    box.dispatchEvent(new Event("input"))</script></body>"""
    write_text(tmp_path / "asked.html", index.write_index(many).read_text("utf-8").replace("</body>", ask))
    shown = chromium(tmp_path, "--dump-dom", (tmp_path / "asked.html").as_uri()).stdout
    rows = re.findall(r'<tr( hidden="")?><th scope="row" class="l" data-title="Run" data-value="(\w+)"', shown)
    assert {name for hidden, name in rows if not hidden} == {"better"} and len(rows) > 2


def test_two_runs_stand_side_by_side_with_the_keys_that_differ(many: Path) -> None:
    path = many / "better" / "params.yaml"
    write_text(path, path.read_text("utf-8").replace("lr: 0.3", "lr: 0.7"))
    beside = index.write_index(many, ["tiny", "better"]).read_text("utf-8").split("Side by side: ")[1]
    assert beside.startswith("tiny, better<")
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in beside.split("<tbody>")[1].split("<tr>")[1:]]
    assert rows[-1] == ["lr", "0.3", "0.7"] and "seed" not in [row[0] for row in rows]
    score = read_json(many / "better" / "evaluation" / "test" / "paper.json")["miou"]
    (paper,) = [row for row in rows if row[0] == variant_label("paper")]
    assert paper[2].startswith(f"{100 * score:.1f} / ")


@browser
@pytest.mark.browser
def test_printed_report_wastes_no_page(project: Path, tmp_path: Path) -> None:
    for place in range(6):
        add_figure(project, f"wide_{place}", "Wide.")
        picture = np.full((1150, 1375, 3), 200, np.uint8)
        write_image(project / "figures" / "tiny" / f"wide_{place}.png", picture)
    target, pdf = report.write_report(project / "runs" / "tiny"), tmp_path / "report.pdf"
    chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", target.as_uri())
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert 3 <= pages <= 8, "six figures of half a page, four tables and a hundred parameters, thirty in a table"


@browser
@pytest.mark.browser
def test_report_opens_without_console_errors(project: Path, tmp_path: Path) -> None:
    path, picture = report.write_report(project / "runs" / "tiny"), tmp_path / "report.png"
    said = chromium(
        tmp_path, "--enable-logging=stderr", "--window-size=1200,1600", f"--screenshot={picture}", path.as_uri()
    )  # fmt: skip
    assert "CONSOLE" not in said.stderr
    with Image.open(picture) as shown:
        colours = len(shown.convert("RGB").resize((120, 160)).getcolors(20000))
    assert colours > 50, "the page is empty"
