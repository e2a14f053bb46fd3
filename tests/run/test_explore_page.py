"""The explorer's page: served on loopback behind a token, and mistakes told before anything is served."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import nbformat
import pytest
from explorer_runs import tiny_params

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.run.explore_page import serve_explorer


@pytest.fixture
def served(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[list]:
    """What Voilà would have been started with: words, environment, the notebook's one cell; and what was said before.

    A stand-in listens at its port.
    """
    files.write_text(home / "params" / "page.yaml", tiny_params(run="page").to_yaml())
    started: list = []
    with contextlib.ExitStack() as listening:

        def popen(words: list[str], env: dict, cwd: Path) -> MagicMock:
            (page,) = [word for word in words if word.endswith(".ipynb")]
            (port,) = [int(word.removeprefix("--port=")) for word in words if word.startswith("--port=")]
            started.append((words, env, nbformat.read(page, 4).cells[0].source, capsys.readouterr().out))
            listening.enter_context(socket.create_server(("127.0.0.1", port)))
            return MagicMock(wait=lambda: 0, poll=lambda: None)

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(subprocess, "Popen", popen)
        yield started


def test_it_is_served_on_loopback_behind_a_token(
    served: list, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serve_explorer("params/page.yaml", {"gate": "none"}, [], None, browser=False) == 0
    (words, env, cell, said) = served[0]
    assert "http" not in said, "nothing listened there yet"
    token = re.search(r"^http://127\.0\.0\.1:\d+/\?token=(\w{32})  ", capsys.readouterr().out, re.MULTILINE)[1]
    assert {"--Voila.ip=127.0.0.1", "--token", "--no-browser"} < {*words}
    assert env["JUPYTER_TOKEN"] == token and token not in " ".join(words)
    monkeypatch.setattr("carblib.explore.panel.display", lambda *_, **__: MagicMock())
    names: dict = {}
    exec(cell, names)  # the page's own line
    assert names["panel"].state.gate == "none" and names["panel"].explorer.params.run == "page"


def test_a_port_is_free_just_after_it_was_served(served: list) -> None:
    with socket.create_server(("127.0.0.1", 0)) as earlier:
        port = earlier.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as page:
            earlier.accept()[0].close()  # who closes first keeps the port for a minute
            assert page.recv(1) == b""
    assert serve_explorer("params/page.yaml", {}, [], port, browser=False) == 0


def test_mistakes_are_told_before_anything_is_served(served: list, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CarbError, match=r"absent\.pt: no such file"):
        serve_explorer("params/page.yaml", {}, ["absent.pt"], None, False)
    with pytest.raises(CarbError, match="absent.yaml: no such file"):
        serve_explorer("params/absent.yaml", {}, [], None, False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CarbError, match="is taken"):
            serve_explorer("params/page.yaml", {}, [], taken.getsockname()[1], False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CarbError, match="needs Voilà"):
        serve_explorer("params/page.yaml", {}, [], None, False)
    assert not served
