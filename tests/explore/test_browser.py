"""The explorer in a real browser: JupyterLab on loopback, headless Chromium, moved as a person moves it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from explorer_page import (
    IDLE,
    PATIENCE,
    VIEWER,
    Seen,
    control,
    enter,
    jupyter_lab,
    nameless,
    open_notebook,
    open_page,
    press_run_all,
    run_all,
)
from explorer_runs import save_network
from places import REPOSITORY

from carblib.base import files
from carblib.data.readers import open_split
from carblib.params import load_params
from carblib.scenes.folders import write_scenes
from carblib.stages.evaluate import evaluate_masks

# On a busy machine JupyterLab and its kernel lose each other's messages (see `run_all`), wherever a test is just then:
# what fails is tried once more, with a server and a project of its own, and what fails again is ours.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.flaky(reruns=1)]


DEMO = str(REPOSITORY / "params" / "demo.yaml")
TINY = {"run": "tiny", "root": "data/tiny", "image_size": [64, 128], "crop": [64, 128], "patch": [32, 32]}
COUNTS = {"scenes_train": 1, "scenes_val": 3, "scenes_test": 1}
WORK = {**TINY, "run": "work", "root": "data/work", "scenes_train": 4, "scenes_val": 2, "scenes_test": 1}
WORK |= {"iterations": 4, "warmup": 2, "variants": ["plain"], "ceiling": False, "batch_size": 2, "log_every": 10}
WORK |= {"val_every": 1000, "checkpoint_every": 10, "monitor_images": 1, "aspp_dilations": [1, 2]}
EARLIER = "runs/tiny/train/paper/checkpoint.pt"
PANEL = ".widget-vbox:has(> * .carblib-viewer)"
MARKER = "done/03_train.json"
NETWORK = {"backbone_weights": "random", "aspp_dilations": [1, 2]}


def project(root: Path) -> None:
    """Three scenes, two networks, and an evaluation of one of them that takes all cars for trees."""
    shutil.copy(REPOSITORY / "notebooks" / "00_explore.ipynb", root)
    path = root / "params" / "demo.yaml"
    files.write_text(path, yaml.safe_dump({"base": DEMO, **TINY, **COUNTS, **NETWORK}))
    write_scenes(root / "data" / "tiny", "val", 3)
    params = load_params(path)
    for seed, path in enumerate((*(f"runs/tiny/train/{name}/final.pt" for name in ("plain", "paper")), EARLIER)):
        save_network(root / path, params, seed)
    split = open_split(params, "val")
    car, tree = (split.class_set.index(name) for name in ("car", "tree"))

    def mistaken(index: int) -> np.ndarray:
        mask = split.mask(index)
        return np.where((mask == car) & (index == 1), np.uint8(tree), mask)

    evaluate_masks(mistaken, split, params, "paper")


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[object, str, Path]]:
    """A page, the address of a JupyterLab, and the project that it serves."""
    root = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARB_HOME", str(root))
        project(root)
        with open_page(1500, 1400) as page, jupyter_lab(root, root, root) as address:
            yield page, address, root


def test_explorer_in_jupyterlab(lab: tuple[object, str, Path]) -> None:
    page, address, root = lab
    started = time.monotonic()
    run_all(page, address.format("00_explore.ipynb"))
    errors: list[str] = []  # from here on: JupyterLab has its own when a page is loaded anew
    page.on("pageerror", lambda error: "ResizeObserver loop" in str(error) or errors.append(str(error)))  # JupyterLab's
    seen = Seen(page)
    seen.viewer.focus()
    check_zoom_and_readout(seen)
    check_masks_and_legend(seen)
    check_images_and_lists(seen)
    check_local_view_and_words(seen)
    check_comparison(seen)
    check_names_and_help(seen)
    check_what_is_kept(seen, root)
    assert not page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count()
    assert not errors
    check_reopened(page, address, root)
    print(f"browser test: {time.monotonic() - started:.1f} s")


def test_working_in_jupyterlab(lab: tuple[object, str, Path]) -> None:
    """Run All twice, another value in the parameters cell, the stop button and Run All, as a person presses them."""
    page, address, root = lab
    started = time.monotonic()
    notebook = nbformat.read(REPOSITORY / "notebooks" / "03_train.ipynb", 4)
    # Without what takes longest and has nothing to do with it, figures: `tests/run/test_notebooks.py` runs all of it.
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and "show_saved(" not in cell.source]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    cells[0].source = cells[0].source.replace("params/demo.yaml", "params/work.yaml")
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata), root / "03_train.ipynb")
    files.write_text(root / "params" / "work.yaml", yaml.safe_dump({"base": DEMO, **WORK}))
    work, longer = (root / "runs" / name for name in ("work", "longer"))

    def made(run: Path, file: str) -> float:
        return (run / file).stat().st_mtime

    open_notebook(page, address.format("03_train.ipynb"))
    run_to_the_end(page)
    marker, trained = made(work, MARKER), made(work, "train/plain/done.json")
    run_to_the_end(page)
    assert made(work, MARKER) > marker and made(work, "train/plain/done.json") == trained, "nothing is trained again"
    page.locator('.jp-CodeCell .cm-content:has-text("params_file")').first.click()
    page.keyboard.press("Control+End")
    page.keyboard.type("\nrun = 'longer'\niterations = 1500")
    press_run_all(page)
    until = time.monotonic() + PATIENCE / 1000
    while not (longer / "train" / "plain" / "checkpoint.pt").exists():
        assert time.monotonic() < until, "the edited parameters are not trained"
        page.wait_for_timeout(20)
    page.locator('[data-jp-item-name="interrupt"]').click()
    output = page.locator(".jp-OutputArea-output")
    output.filter(has_text="start again to go on").first.wait_for()
    assert output.filter(has_text="changed here: iterations 1500, run longer").count() == 1
    assert not (longer / MARKER).exists()
    run_to_the_end(page)
    assert output.filter(has_text="resuming at iteration").count()
    assert files.read_json(longer / "train" / "plain" / "done.json")["iteration"] == 1500 and (longer / MARKER).exists()
    assert made(work, "train/plain/done.json") == trained, "the other run is as it was"
    print(f"working test: {time.monotonic() - started:.1f} s")


def test_explorer_as_a_page(lab: tuple[object, str, Path]) -> None:
    """`carb explore`: nothing without the token, nothing from elsewhere, and the panel with names for everything."""
    pytest.importorskip("voila", reason="needs Voilà: pip install -e '.[explore]'")
    page, _, root = lab
    command = [sys.executable, "-u", "-m", "carblib", "explore", "params/demo.yaml", "--no-browser"]
    with (root / "voila.log").open("w") as log:
        server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        address = re.match(r"http://127\.0\.0\.1:\d+/\?token=\w{32}", server.stdout.readline())[0]
        asked, refused = set(), set()
        page.goto("about:blank")
        page.on("request", lambda request: asked.add(request.url))
        page.on("requestfailed", lambda request: refused.add(request.url) if request.failure == "csp" else None)
        until = time.monotonic() + PATIENCE / 1000
        while not (answer := reached(page, address.split("?")[0])):
            assert time.monotonic() < until and server.poll() is None, (root / "voila.log").read_text()
            page.wait_for_timeout(200)
        assert answer.status == 403 or "token" in page.content(), "without the token there is nothing to see"
        assert not page.locator(VIEWER).count()
        page.goto(address)
        seen = Seen(page)
        seen.whole()
        seen.viewer.focus()
        seen.go("n")
        assert "2 of 3 · 000002" in seen.look(".where")
        assert not nameless(page, PANEL)
        own = ("http://127.0.0.1:", "data:", "blob:")
        assert not [url for url in asked - refused if not url.startswith(own)], "nothing comes from elsewhere"
    finally:
        server.terminate()
        server.wait(30)


def reached(page: object, address: str) -> object:
    try:
        return page.goto(address)
    except Exception:  # nobody listens yet
        return None


def run_to_the_end(page: object) -> None:
    """Run all cells, and wait until the last one has run; ask again where JupyterLab loses them (see run_all)."""
    cell = page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt")
    before, begun, asked = cell.inner_text(), time.monotonic(), None
    while (text := cell.inner_text()) == before or not re.search(r"\d", text):
        now = time.monotonic()
        assert now < begun + PATIENCE / 1000 and not page.locator(".jp-RenderedText[data-mime-type$=error]").count()
        if asked is None or now > asked + 15 and page.locator(IDLE).count():
            press_run_all(page)
            asked = now
        page.wait_for_timeout(50)


def check_zoom_and_readout(seen: Seen) -> None:
    page = seen.page
    hovers = {seen.point(panel, 0.3, 0.7) for panel in seen.panels()}
    assert len(hovers) == 1 and len(seen.panels()) >= 5, "the same is said in every panel"
    text = seen.point("truth", 0.5, 0.99)
    assert re.search(r"row 6[23], column (63|64)\b", text) and "exact mask: road" in text
    assert "pseudo-mask:" in text and "prediction of paper" in text and re.search(r"road −?0\.\d\d", text)
    assert seen.viewer.locator(".cross:not([hidden])").count() == len(seen.viewer.locator(".stage").all())
    before = seen.pixels("truth"), seen.pixels("image", "base")
    seen.settle()
    drawn = seen.drawn()
    page.mouse.wheel(0, -600)
    seen.until("viewer.dataset.drawn !== arg", drawn)
    assert seen.pixels("truth") != before[0] and seen.pixels("image", "base") != before[1], "all panels zoom"
    assert "column 63" in seen.point("truth", 0.5, 0.99) or "column 64" in seen.point("truth", 0.5, 0.99)
    zoomed = seen.pixels("mask")
    seen.drag("image", (0.5, 0.5), (0.7, 0.4))
    seen.settle()
    assert seen.pixels("mask") != zoomed, "all panels are moved by one"
    seen.stage("mask").dblclick()
    page.mouse.move(0, 0)
    seen.settle()
    assert (seen.pixels("truth"), seen.pixels("image", "base")) == before


def check_masks_and_legend(seen: Seen) -> None:
    seen.whole()  # a map that comes late is drawn as well, and would be taken for the answer to a key
    fill = seen.pixels("truth")
    seen.key("f")
    outline = seen.pixels("truth")
    seen.key("f")
    assert len({fill, outline, seen.pixels("truth")}) == 3 and seen.pixels("prediction") != fill
    seen.key("f")
    assert seen.pixels("truth") == fill
    seen.viewer.get_by_label("show road", exact=True).click()
    seen.settle()
    assert seen.pixels("truth") != fill
    seen.viewer.get_by_label("show road", exact=True).click()
    histogram = seen.viewer.locator("canvas.histogram")
    drawn = histogram.evaluate("canvas => canvas.toDataURL()")
    heat, name = seen.pixels("similarity"), seen.look('[data-panel="similarity"] figcaption')
    seen.key("c")
    seen.whole()
    assert seen.pixels("similarity") != heat and seen.look('[data-panel="similarity"] figcaption') != name
    assert histogram.evaluate("canvas => canvas.toDataURL()") != drawn
    assert "histogram of the similarity to" in histogram.get_attribute("aria-label")
    seen.key("s")
    alone = seen.pixels("truth")
    seen.key("s")
    assert alone != fill == seen.pixels("truth")
    opacity = "getComputedStyle(viewer.querySelector('[data-panel=truth] .over')).opacity"
    seen.key("o")
    seen.until(f"{opacity} === '0.65'")
    seen.key("B")
    seen.until("getComputedStyle(viewer.querySelector('.base')).filter === 'brightness(1.2)'")
    assert re.search(r"mIoU of this image\s+\d+\.\d\s+\d+\.\d", seen.look(".legend"))
    shown = "viewer.querySelector('[data-panel=image] .stage')"
    for condition in (f"!{shown}", shown):
        seen.page.keyboard.press("1")
        seen.until(condition)


def check_images_and_lists(seen: Seen) -> None:
    page = seen.page
    seen.go("n")
    assert "2 of 3 · 000002" in seen.look(".where")
    for _ in range(15):
        page.keyboard.press("n")
    seen.until("viewer.dataset.drawn.split(' ')[1] === 'val/000003'")
    seen.go("Home")
    seen.whole()
    seen.viewer.locator("[data-place]").nth(2).click()
    seen.until("viewer.dataset.drawn.split(' ')[1] === 'val/000003'")
    assert seen.viewer.locator('[data-place][aria-current="true"]').inner_text().startswith("000003")
    control(page, "order").locator("select").select_option("lowest IoU of car")
    seen.until("viewer.querySelector('.where').textContent.includes('000002')")
    seen.viewer.locator("summary").click()
    seen.viewer.get_by_role("button", name=re.compile("images where car is taken for tree")).click()
    seen.until("viewer.querySelector('.where').textContent.startsWith('1 of 1')")
    assert "images car taken for tree" in seen.look(".gallery")
    clear_filters(seen)
    seen.viewer.get_by_role("button", name=re.compile("images with missed")).first.click()
    seen.until("viewer.querySelector('.gallery').textContent.includes('images missed ')")
    clear_filters(seen)
    seen.viewer.locator("summary").click()
    check_table(seen)
    find = control(page, "find").locator("input")
    find.fill("0000")
    assert "of 3:" not in seen.look(".status"), "only Enter searches"
    find.press("Enter")
    page.locator("text=“0000”: 2 of 3").wait_for()
    seen.viewer.get_by_label("tag for this image, then Enter").fill("odd")
    seen.viewer.get_by_label("tag for this image, then Enter").press("Enter")
    seen.viewer.get_by_label("odd ×: remove this tag").wait_for()
    control(page, "tagged").locator("select").select_option("odd")
    seen.until("viewer.querySelector('.where').textContent.startsWith('1 of 1')")


def check_table(seen: Seen) -> None:
    """Images in rows, sorted by a click on a column's title, with what is worst in each."""
    page = seen.page
    seen.viewer.get_by_role("button", name="list as a table").click()
    table = seen.viewer.locator("table.list")
    order = control(page, "order").locator("select")
    table.get_by_role("button", name="small recall").click()
    table.locator('th[aria-sort="ascending"]:has-text("small recall")').wait_for()
    assert order.evaluate("node => node.selectedOptions[0].text").split() == "lowest small-object recall".split()
    assert re.search(r"000002 \t?.*car → tree \d+\.\d %", re.sub(r"\s+", " ", table.inner_text()))
    assert re.search(r"\d+ of \d+", table.inner_text())
    table.get_by_role("button", name=re.compile("000003 .*: go to")).click()
    seen.until("viewer.dataset.drawn.split(' ')[1] === 'val/000003'")
    order.select_option("name")
    table.locator('th[aria-sort="ascending"]:has-text("image")').wait_for()
    control(page, "with class").locator("select").select_option("car")
    seen.until("viewer.querySelector('.gallery').textContent.includes('images with car')")
    clear_filters(seen)
    seen.viewer.get_by_role("button", name="list as a table").click()
    seen.viewer.locator(".thumbs").wait_for()


def clear_filters(seen: Seen) -> None:
    seen.page.locator('button:text-is("clear filters")').click()
    seen.until("!/images (missed|with|car)/.test(viewer.querySelector('.gallery').textContent)")
    seen.until("viewer.querySelector('.where').textContent.startsWith('1 of 3')")
    seen.whole()


def check_local_view_and_words(seen: Seen) -> None:
    page = seen.page
    enter(page, "words", "car")
    seen.stage("words").wait_for()
    seen.whole()
    assert "“car”" in seen.point("image", 0.1, 0.2)
    enter(page, "words", "zebra crossing")
    page.locator("text=never saw: zebra, crossing").wait_for()
    seen.viewer.focus()
    page.keyboard.press("l")
    seen.stage("patch").wait_for()
    seen.whole()
    box = seen.viewer.locator('[data-panel="image"] .box')
    frame, mask, stage = box.bounding_box(), seen.pixels("mask"), seen.stage("image").bounding_box()
    middle = [
        (frame["x"] + frame["width"] / 2 - stage["x"]) / stage["width"],
        (frame["y"] + frame["height"] / 2 - stage["y"]) / stage["height"],
    ]
    seen.drag("image", (middle[0], middle[1]), (1.4, 0.5), (3.0, 2.0))  # over other panels and past the edge
    after = box.bounding_box()
    assert after["x"] + after["width"] == pytest.approx(stage["x"] + stage["width"], abs=3), "stops at the border"
    assert after["y"] + after["height"] == pytest.approx(stage["y"] + stage["height"], abs=3)
    until = time.monotonic() + 60
    while seen.pixels("mask") == mask:
        assert time.monotonic() < until, "CLIP does not follow the box"
        page.wait_for_timeout(20)
    seen.viewer.focus()
    page.keyboard.press("l")
    seen.until("!viewer.querySelector('[data-panel=patch]')")


def check_comparison(seen: Seen) -> None:
    other = control(seen.page, "compare with").locator("select")
    enter(seen.page, "checkpoint", EARLIER)
    other.locator('option:text-is("tiny/paper/checkpoint")').wait_for(state="attached")
    network = control(seen.page, "network").locator("select")
    network.locator('option:checked:text-is("tiny/paper/checkpoint")').wait_for(state="attached")
    seen.viewer.locator('[data-panel="prediction"] figcaption:has-text("tiny/paper/checkpoint")').wait_for()
    seen.whole()
    network.select_option("paper")
    seen.viewer.locator('[data-panel="prediction"] figcaption:has-text("of paper")').wait_for()
    other.select_option("tiny/paper/checkpoint")
    seen.stage("other").wait_for()
    seen.whole()
    captions = [seen.look(f'[data-panel="{panel}"] figcaption') for panel in ("prediction", "other")]
    assert "of paper" in captions[0] and "of tiny/paper/checkpoint" in captions[1], "two steps of one training"
    earlier = seen.pixels("other")
    assert earlier != seen.pixels("prediction")
    other.select_option("plain")
    seen.viewer.locator('[data-panel="other"] figcaption:has-text("of plain")').wait_for()
    seen.whole()
    assert seen.pixels("other") != earlier
    seen.viewer.focus()
    seen.key("w")
    seen.viewer.get_by_label("left of the line").select_option("prediction")
    seen.viewer.get_by_label("right of the line").select_option("other")
    seen.settle()
    seen.viewer.focus()
    half = seen.pixels("swipe")
    seen.drag("swipe", (0.5, 0.5), (0.2, 0.5))
    seen.settle()
    assert len({half, seen.pixels("swipe"), seen.pixels("other"), seen.pixels("prediction")}) == 4
    seen.drag("swipe", (0.2, 0.5), (-0.1, 0.5))
    seen.settle()
    assert seen.pixels("swipe") == seen.pixels("other"), "all of it right of the line"
    seen.viewer.focus()
    seen.key("w")


def check_names_and_help(seen: Seen) -> None:
    page = seen.page
    page.keyboard.press("?")
    assert "next, previous image" in seen.viewer.locator("dialog[open]").inner_text()
    page.keyboard.press("Escape")
    assert not seen.viewer.locator("dialog[open]").count()
    assert not nameless(page, PANEL)
    assert seen.viewer.locator('[role="status"][aria-live="polite"]').count() == 1
    panels = seen.viewer.locator(".stage").all()
    assert all("of image 0000" in panel.get_attribute("aria-label") for panel in panels)


def check_what_is_kept(seen: Seen, root: Path) -> None:
    page = seen.page
    seen.whole()
    enter(page, "save view", "mine")
    page.locator("text=view saved: runs/tiny/explore/views/mine.json").wait_for()
    saved = json.loads((root / "runs" / "tiny" / "explore" / "views" / "mine.json").read_text())
    assert saved["state"]["other"] == "plain" and saved["choice"]["tag"] == "odd" and saved["look"]["brightness"] == 1.2
    seen.viewer.focus()
    page.keyboard.press("+")
    control(page, "tagged").locator("select").select_option("any")
    seen.until("viewer.querySelector('.where').textContent.startsWith('1 of 3')")
    seen.whole()
    control(page, "compare with").locator("select").select_option("none")
    seen.until("!viewer.querySelector('[data-panel=other]')")
    control(page, "open view").locator("select").select_option("mine")
    seen.until("viewer.querySelector('.where').textContent.startsWith('1 of 1')")
    seen.stage("other").wait_for()
    seen.whole()
    assert control(page, "tagged").locator("select").input_value() == "odd", "the view is back"
    assert "1 of 1" in seen.look(".where")
    enter(page, "selection", "odd_ones")
    page.locator("text=runs/tiny/explore/odd_ones/params.yaml").wait_for()
    chosen = root / "runs" / "tiny" / "explore" / "odd_ones"
    (row,) = csv.DictReader((chosen / "images.csv").read_text("utf-8").splitlines())
    assert row["tags"] == "odd" and load_params(chosen / "params.yaml").run == "tiny_odd_ones"
    enter(page, "checkpoint", "absent/final.pt")
    page.locator("text=absent/final.pt: no such file").wait_for()
    look = "node => { const look = getComputedStyle(node); return [look.color, look.backgroundColor]; }"
    colours = seen.viewer.locator(".status").evaluate(look)
    assert contrast(*colours) > 7
    picture = root / "dashcam.png"
    shutil.copy(root / "data" / "tiny" / "val" / "000001.png", picture)
    with page.expect_file_chooser() as chooser:
        page.locator('button:has-text("own picture")').click()
    chooser.value.set_files(picture)
    seen.until("viewer.querySelector('.where').textContent.includes('1 of 1 · dashcam')")
    seen.until("viewer.dataset.drawn.endsWith('uploaded/dashcam whole')")
    page.locator('button:has-text("save PNG and PDF")').click()
    page.locator("text=saved: figures/tiny/explorer/").wait_for()
    assert len(list((root / "figures" / "tiny" / "explorer").glob("*.pdf"))) == 1
    page.locator(".carblib-still").wait_for(state="attached")  # it comes when nothing moves for a while
    until = time.monotonic() + 60
    page.keyboard.press("Control+s")
    while not has_still(root / "00_explore.ipynb"):
        assert time.monotonic() < until, "the notebook's file has no picture of the explorer"
        page.wait_for_timeout(100)


def has_still(notebook: Path) -> bool:
    try:
        saved = json.loads(notebook.read_text("utf-8"))
    except ValueError:  # it is being written
        return False
    return "carblib-still" in (text := json.dumps(saved)) and "image/jpeg" in text


def check_reopened(page: object, address: str, root: Path) -> None:
    """The saved notebook in a kernel that has never run it shows the picture, and no error of the widget."""
    shutil.copy(root / "00_explore.ipynb", root / "reopened.ipynb")
    open_notebook(page, address.format("reopened.ipynb"))
    still = page.locator(".carblib-still")
    still.wait_for()
    assert still.bounding_box()["width"] > 400 and still.evaluate("image => image.naturalWidth") > 400
    dead = page.locator(".jp-OutputArea-output.jupyter-widgets")
    dead.wait_for(state="attached")
    page.wait_for_timeout(500)
    assert "Error displaying widget" in dead.inner_text() and not dead.is_visible()


def contrast(ink: str, paper: str) -> float:
    """The contrast of two colours after WCAG, from their CSS text."""

    def luminance(colour: str) -> float:
        shares = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(ink), luminance(paper)))
    return (high + 0.05) / (low + 0.05)
