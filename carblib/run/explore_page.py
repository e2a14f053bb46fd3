"""`carb explore`: the explorer as a page of its own, served by Voilà on this machine only."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat

from carblib.base.errors import CarbError
from carblib.explore.explorer import Explorer
from carblib.explore.networks import open_splits, read_network
from carblib.explore.panel import ExplorerPanel
from carblib.params import find_params, load_params, project_root, resolve
from carblib.scenes.folders import ensure_scenes

_CELL = """from carblib.run.explore_page import show_panel

panel = show_panel({file!r}, {overrides!r}, {checkpoints!r})"""

# Voilà's page would fetch a font of icons from elsewhere; the explorer needs none, and nothing from anywhere.
_OWN = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob: ws://127.0.0.1:* ws://localhost:*"


def show_panel(file: str, overrides: Mapping[str, str], checkpoints: Sequence[str]) -> ExplorerPanel:
    """Display the panel of a run: what the page's kernel does."""
    panel = ExplorerPanel(Explorer(load_params(file, overrides), checkpoints))
    panel.show()
    return panel


def serve_explorer(
    file: str, overrides: Mapping[str, str], checkpoints: Sequence[str], port: int | None, browser: bool
) -> int:
    """Serve the page at 127.0.0.1, behind a token, until Ctrl-C; say where, once it is up. Return Voilà's exit code.

    `port` None takes a free one. Raises CarbError, before anything is served, for parameters, data or checkpoints that
    cannot be opened, a port that is taken, or where Voilà is not installed.
    """
    if importlib.util.find_spec("voila") is None:
        raise CarbError("carb explore needs Voilà: pip install 'carblib[explore]'; or make lab, and open 00_explore")
    params = load_params(file, overrides)
    ensure_scenes(params)
    open_splits(params)
    for checkpoint in checkpoints:
        read_network(resolve(checkpoint), params.class_set)
    port, token = _free(port), secrets.token_hex(16)
    # Other users see a process's words, not its environment.
    variables = {"CARB_HOME": str(project_root()), "JUPYTER_TOKEN": token}
    cell = _CELL.format(file=str(find_params(file).resolve()), overrides=dict(overrides), checkpoints=list(checkpoints))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "explorer.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), page)
        words = [
            "--Voila.ip=127.0.0.1",
            f"--port={port}",
            "--Voila.port_retries=0",
            "--token",
            "--show_tracebacks=True",
            f"--Voila.tornado_settings={{'headers': {{'Content-Security-Policy': {_OWN!r}}}}}",
        ]
        command = [sys.executable, "-m", "voila", str(page), *words, *([] if browser else ["--no-browser"])]
        server = subprocess.Popen(command, env=os.environ | variables, cwd=Path.cwd())
        try:
            while server.poll() is None:
                with socket.socket() as attempt:
                    if attempt.connect_ex(("127.0.0.1", port)) == 0:
                        print(f"http://127.0.0.1:{port}/?token={token}  (Ctrl-C ends it)", flush=True)
                        break
                time.sleep(0.1)
            return server.wait()
        finally:
            server.terminate()
            server.wait()


def _free(port: int | None) -> int:
    try:
        with socket.create_server(("127.0.0.1", port or 0)) as attempt:  # as Voilà does, just after an earlier one too
            return attempt.getsockname()[1]
    except OSError as error:
        raise CarbError(f"--port: {port} is taken; leave it out, or choose another") from error
