"""The explorer in a real browser: JupyterLab on loopback, headless Chromium, controls moved as a person moves them.

With CARB_SCREENSHOT=1 the last test goes to the demo of this checkout (its params, data and trained network, as far as
they are there), times 30 moves of a slider from key press to new picture, and leaves figures/demo/explorer.png.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from carblib.base import files
from carblib.scenes.folders import write_scenes

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

from places import REPOSITORY

DEMO = str(REPOSITORY / "params" / "demo.yaml")
TINY = {"run": "tiny", "root": "data/tiny", "image_size": [64, 128], "crop": [64, 128], "patch": [32, 32]}
PATIENCE = 120_000  # ms; a quiet machine needs a tenth of it
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"autoStartDefaultKernel": True},
}
PICTURE = "img.carblib-picture"
# The picture's pixels, small: what a person would see, whatever address it is shown from.
PIXELS = """img => { const canvas = document.createElement('canvas'); canvas.width = 300; canvas.height = 150;
canvas.getContext('2d').drawImage(img, 0, 0, 300, 150); return canvas.toDataURL(); }"""


def chromium() -> str | None:
    return next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


@contextmanager
def jupyter_lab(root: Path, home: Path, folder: Path) -> Iterator[str]:
    """A JupyterLab of its own on loopback, serving `root`, for projects in `home`; yields its address and token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, own = secrets.token_hex(16), folder / "jupyter"
    for name, setting in SETTINGS.items():
        files.write_json(own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings", setting)
    variables = {"CARB_HOME": str(home), "OMP_NUM_THREADS": "1", "JUPYTERLAB_SETTINGS_DIR": str(own / "settings")}
    for name in ("CONFIG", "DATA", "RUNTIME"):
        variables[f"JUPYTER_{name}_DIR"] = str(own / name.lower())
    variables["JUPYTERLAB_WORKSPACES_DIR"] = str(own / "workspaces")
    options = f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0".split()
    options += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options], env=os.environ | variables, stdout=log, stderr=log
    )
    try:
        until = time.monotonic() + PATIENCE / 1000
        while True:
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < until, "JupyterLab did not start"
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


@contextmanager
def open_page(width: int, height: int) -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
    binary = chromium()
    if binary is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(PATIENCE)
            yield page
        finally:
            browser.close()


def run_all(page: object, address: str) -> None:
    """Run a notebook until the explorer's picture is there.

    JupyterLab on a busy machine may have no kernel yet, and asks which one to take; or it connects to its kernel twice,
    and what it was asked in between is lost: the cells, or the models of the widgets. Then the page is loaded anew.
    """
    idle = '.jp-NotebookPanel [data-status="idle"]'
    begun, asked = time.monotonic(), None
    while not page.locator(PICTURE).count():
        now = time.monotonic()
        assert now < begun + PATIENCE / 1000, "the explorer did not appear"
        if page.locator(".jp-Dialog").count():
            page.click(".jp-Dialog .jp-mod-accept")
        elif asked is None or now > asked + 15 and page.locator(idle).count():
            page.goto(address)
            page.wait_for_selector(idle)
            page.click('.lm-MenuBar-itemLabel:text-is("Run")')
            page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
            asked = time.monotonic()
        page.wait_for_timeout(200)
    page.wait_for_function(f"document.querySelector('{PICTURE}').naturalWidth > 0")
    page.locator(PICTURE).scroll_into_view_if_needed()


class Watched:
    """The explorer's picture on a page: tells when it has become another one."""

    def __init__(self, page: object):
        self.page, self.picture = page, page.locator(PICTURE)
        self.before = self.picture.evaluate(PIXELS)

    def wait_for_change(self) -> None:
        until = time.monotonic() + PATIENCE / 1000
        while (now := self.picture.evaluate(PIXELS)) == self.before:
            assert time.monotonic() < until, "the picture stayed as it was"
            self.page.wait_for_timeout(10)
        self.before = now

    def settle(self) -> None:
        """Wait until no late picture comes any more: what changes from here on answers what is done from here on."""
        now = None
        while now != self.before:
            self.before = now
            self.page.wait_for_timeout(500)
            now = self.picture.evaluate(PIXELS)

    def at(self, x: float, y: float) -> tuple[float, float]:
        box = self.picture.bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*end), steps=5)
        self.page.mouse.up()


def control(page: object, label: str) -> object:
    return page.locator(".jupyter-widgets", has=page.locator(f'.widget-label:text-is("{label}")')).last


def press_slider(page: object, label: str, key: str) -> None:
    control(page, label).locator(".noUi-handle").press(key)


def enter(page: object, label: str, text: str) -> None:
    field = control(page, label).locator("input")
    field.fill(text)
    field.press("Enter")


def test_explorer_in_jupyterlab(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "notebooks" / "00_explore.ipynb", tmp_path)
    files.write_text(
        tmp_path / "params" / "demo.yaml",
        yaml.safe_dump({"base": DEMO, **TINY, "scenes_train": 1, "scenes_val": 3, "scenes_test": 1}),
    )
    write_scenes(tmp_path / "data" / "tiny", "val", 3)
    started = time.monotonic()
    with open_page(1500, 1100) as page, jupyter_lab(tmp_path, tmp_path, tmp_path) as address:
        run_all(page, address.format("00_explore.ipynb"))
        picture = Watched(page)
        picture.settle()
        press_slider(page, "opacity", "ArrowLeft")
        picture.wait_for_change()
        enter(page, "words", "car")
        picture.wait_for_change()
        page.mouse.click(*picture.at(0.1, 0.2))
        picture.wait_for_change()
        found = page.locator(".widget-html", has_text=re.compile(r"row \d+, column \d+")).inner_text()
        assert "exact mask" in found and "“car”" in found
        page.locator('.widget-checkbox:has-text("local view") input').check()
        picture.wait_for_change()
        picture.drag((0.1, 0.2), (0.2, 0.3))
        picture.wait_for_change()
        enter(page, "words", "zebra crossing")
        page.locator("text=never saw: zebra, crossing").wait_for()
        find = control(page, "find").locator("input")
        find.fill("0000")
        picture.settle()
        assert page.locator("text=(1 of 3)").count(), "only Enter searches"
        for place in (2, 3):
            find.press("Enter")
            picture.wait_for_change()
            page.locator(f"text=“0000”: {place} of 3").wait_for()
            picture.settle()
        page.locator('button:has-text("previous")').click()
        picture.wait_for_change()
        enter(page, "checkpoint", "absent/final.pt")
        page.locator("text=absent/final.pt: no such file").wait_for()
        page.locator('button:has-text("save PNG and PDF")').click()
        page.locator("text=saved: figures/tiny/explorer/").wait_for()
        assert not page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count()
    assert len(list((tmp_path / "figures" / "tiny" / "explorer").glob("*.pdf"))) == 1
    print(f"browser test: {time.monotonic() - started:.1f} s")


@pytest.mark.skipif("CARB_SCREENSHOT" not in os.environ, reason="for the README, by hand: CARB_SCREENSHOT=1")
def test_screenshot_of_the_demo(tmp_path: Path) -> None:
    home = Path(os.environ.get("CARB_HOME", REPOSITORY))
    shutil.copy(REPOSITORY / "notebooks" / "00_explore.ipynb", tmp_path)
    with open_page(1600, 1300) as page, jupyter_lab(tmp_path, home, tmp_path) as address:
        run_all(page, address.format("00_explore.ipynb"))
        picture = Watched(page)
        picture.settle()
        seconds = []
        for move in range(30):
            begun = time.perf_counter()
            press_slider(page, "opacity", "ArrowLeft" if move % 2 else "ArrowRight")
            picture.wait_for_change()
            seconds.append(time.perf_counter() - begun)
        percentile = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
        print(f"30 moves in the browser: median {statistics.median(seconds):.3f} s, 95th percentile {percentile:.3f} s")
        enter(page, "words", "orange tree")
        picture.wait_for_change()
        page.locator('.widget-checkbox:has-text("local view") input').check()
        picture.wait_for_change()
        picture.drag(first_panel(picture, 0.4, 0.5), first_panel(picture, 0.53, 0.58))
        picture.wait_for_change()
        page.mouse.click(*picture.at(*first_panel(picture, 0.525, 0.54)))
        picture.wait_for_change()
        page.wait_for_timeout(1500)
        panel = page.locator(".jp-OutputArea-output .widget-vbox").first
        panel.screenshot(path=str(REPOSITORY / "figures" / "demo" / "explorer.png"))


def first_panel(picture: Watched, x: float, y: float) -> tuple[float, float]:
    """Where in the picture a point of the image is, as shares of both, in the first panel."""
    panels = int(picture.picture.get_attribute("alt").split()[0])
    height, width = picture.picture.evaluate("img => [img.naturalHeight, img.naturalWidth]")
    across = width / {4: 2, 6: 3, 8: 4}[panels] - 7
    return x * across / width, (24 + y * across / 2) / height
