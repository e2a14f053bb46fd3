"""The explorer on a page of a real JupyterLab, seen and moved as a person does: for its test and its screenshot."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from carblib.base import files

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
