"""The explorer on a page of a real JupyterLab, seen and moved as a person does: for its test and its screenshot."""

from __future__ import annotations

import json
import os
import re
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
    "notebook-extension/tracker": {"autoStartDefaultKernel": True, "windowingMode": "none"},
}
VIEWER = ".carblib-viewer"
IDLE = '.jp-NotebookPanel [data-status="idle"]'
NAMED = ("button combobox textbox slider spinbutton checkbox image img table toolbar group figure dialog "
         "DisclosureTriangle columnheader rowheader region complementary").split()  # fmt: skip
# What a panel's canvas shows, small: what a person would see of it.
PIXELS = """([viewer, panel, layer]) => { const canvas = document.createElement('canvas');
canvas.width = 300; canvas.height = 150; const shown = viewer.querySelector(`[data-panel=${panel}] .${layer}`);
canvas.getContext('2d').drawImage(shown, 0, 0, 300, 150); return canvas.toDataURL(); }"""


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
        files.write_text(own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings", json.dumps(setting))
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


def open_notebook(page: object, address: str) -> None:
    """Open a notebook and wait for its kernel: JupyterLab says "idle" before it has one, and may ask which."""
    name = re.search(r"/lab/tree/([^?]*)", address)[1]
    sessions = re.sub(r"/lab/tree/[^?]*", "/api/sessions", address)
    begun = time.monotonic()
    page.goto(address)
    while True:
        kernels = [one["kernel"] or {} for one in page.request.get(sessions).json() if one["path"] == name]
        ready = any(kernel.get("connections") and kernel["execution_state"] == "idle" for kernel in kernels)
        if ready and page.locator(IDLE).count():
            return
        assert time.monotonic() < begun + PATIENCE / 1000, "the notebook has no kernel"
        if page.locator(".jp-Dialog").count():
            page.click(".jp-Dialog .jp-mod-accept")
        page.wait_for_timeout(100)


def run_all(page: object, address: str) -> None:
    """Run a notebook until the explorer shows an image and what CLIP and the network say of it.

    JupyterLab on a busy machine may connect to its kernel twice, and what it was asked in between is lost: cells, or
    the models of the widgets. Then the page is loaded anew.
    """
    begun, asked = time.monotonic(), None
    while not page.locator(VIEWER).count():
        now = time.monotonic()
        assert now < begun + PATIENCE / 1000, "the explorer did not appear"
        if asked is None or now > asked + 15 and page.locator(IDLE).count():
            open_notebook(page, address)
            press_run_all(page)
            asked = time.monotonic()
        page.wait_for_timeout(200)
    Seen(page).whole()
    page.locator(VIEWER).scroll_into_view_if_needed()


def press_run_all(page: object) -> None:
    entry = page.locator('.lm-Menu-itemLabel:text-is("Run All Cells")')
    until = time.monotonic() + PATIENCE / 1000
    while not entry.is_visible():  # a menu closes when something else takes the focus
        assert time.monotonic() < until, "the menu does not open"
        page.click('.lm-MenuBar-itemLabel:text-is("Run")')
        page.wait_for_timeout(200)
    entry.click()


class Seen:
    """The explorer's viewer on a page, moved and read as a person does."""

    def __init__(self, page: object):
        self.page, self.viewer = page, page.locator(VIEWER)

    def whole(self) -> None:
        """Wait until an image and all of its maps are drawn."""
        self.settle()  # or what is said may be of the frame before
        self.until("viewer.dataset.drawn?.endsWith('whole')")
        self.settle()

    def until(self, condition: str, arg: object = None) -> None:
        """Wait for a condition on `viewer` (an element) and `arg`, in JavaScript."""
        wait = f"arg => {{ const viewer = document.querySelector('{VIEWER}'); return viewer && ({condition}); }}"
        self.page.wait_for_function(wait, arg=arg, polling=10)

    def settle(self) -> None:
        """Let the page draw what was asked of it."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def drawn(self) -> str:
        return self.viewer.get_attribute("data-drawn")

    def key(self, key: str) -> float:
        """Press a key and return the seconds until the next drawing, which a map that comes late may have asked for."""
        self.settle()
        before, begun = self.drawn(), time.perf_counter()
        self.page.keyboard.press(key)
        self.until("viewer.dataset.drawn !== arg", before)
        taken = time.perf_counter() - begun
        self.settle()  # the key's own
        return taken

    def go(self, key: str) -> float:
        """Press a key that leads to another image and return the seconds until it is drawn."""
        before, begun = self.drawn().split()[1], time.perf_counter()
        self.page.keyboard.press(key)
        self.until("viewer.dataset.drawn.split(' ')[1] !== arg", before)
        return time.perf_counter() - begun

    def pixels(self, panel: str, layer: str = "over") -> str:
        return self.page.evaluate(PIXELS, [self.viewer.element_handle(), panel, layer])

    def stage(self, panel: str) -> object:
        return self.viewer.locator(f'[data-panel="{panel}"] .stage')

    def at(self, panel: str, x: float, y: float) -> tuple[float, float]:
        """Where on the page a point of a panel is; x and y are shares of it and may lie outside."""
        box = self.stage(panel).bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def point(self, panel: str, x: float, y: float) -> str:
        """Point at a panel and return what the readout says."""
        self.page.mouse.move(*self.at(panel, x, y))
        return self.viewer.locator(".readout").inner_text()

    def drag(self, panel: str, *points: tuple[float, float]) -> None:
        self.page.mouse.move(*self.at(panel, *points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(panel, *point), steps=4)
        self.page.mouse.up()

    def panels(self) -> list[str]:
        """Return the ids of the panels that are shown."""
        return self.viewer.locator(".panel").evaluate_all("panels => panels.map(panel => panel.dataset.panel)")

    def look(self, name: str) -> str:
        return self.viewer.locator(name).first.inner_text()


def nameless(page: object, selector: str) -> list[str]:
    """Return what a screen reader meets without a name below an element, from Chromium's accessibility tree."""
    session = page.context.new_cdp_session(page)
    found = session.send("Runtime.evaluate", {"expression": f"document.querySelector({json.dumps(selector)})"})
    place, seen = {"objectId": found["result"]["objectId"]}, []
    for role in NAMED:
        nodes = session.send("Accessibility.queryAXTree", {**place, "role": role})["nodes"]
        bare = [node for node in nodes if not node["ignored"] and not node.get("name", {}).get("value", "").strip()]
        for node in bare:
            shown = session.send("DOM.getOuterHTML", {"backendNodeId": node["backendDOMNodeId"]})["outerHTML"]
            seen.append(f"{role}: {shown[:200]}")
    assert session.send("Accessibility.queryAXTree", {**place, "role": "button"})["nodes"]
    return seen


def control(page: object, label: str) -> object:
    return page.locator(".jupyter-widgets", has=page.locator(f'.widget-label:text-is("{label}")')).last


def enter(page: object, label: str, text: str) -> None:
    field = control(page, label).locator("input")
    field.fill(text)
    field.press("Enter")
