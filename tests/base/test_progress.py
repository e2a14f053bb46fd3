"""A log gets a line an interval and nothing for short work; a person gets a bar."""

from __future__ import annotations

import io
import sys
import types

import pytest
from tqdm import tqdm

from carblib.base import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(seconds_per_step: float, monkeypatch: pytest.MonkeyPatch, out: io.StringIO) -> str:
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(sys, "stdout", out)
    for _ in (bar := tqdm(range(10), desc="work", miniters=1, **progress.bar_options())):
        now[0] += seconds_per_step
        bar.set_postfix(loss=0.5, refresh=False)
    return out.getvalue()


def test_short_work_leaves_no_line_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(0.5, monkeypatch, io.StringIO()) == ""


def test_long_work_writes_lines_not_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(11.0, monkeypatch, io.StringIO())
    lines = [line.strip("\r ") for line in text.splitlines() if line.strip("\r ")]
    assert lines[0].startswith("work: 1 of 10, 00:11 gone")
    assert 9 <= len(lines) <= 11 and lines[-1].startswith("work: 10 of 10")


def test_lines_can_be_told_from_other_text(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(11.0, monkeypatch, io.StringIO())
    kept = "03_train: run 'demo', 2 of 3 left\n"
    assert progress.without_progress(kept + lines + kept) == kept + kept
    assert progress.without_progress("scenes: 3 of ?, 1:02:03 gone, ? left\n") == ""


def test_a_person_sees_a_bar_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert "work:   0%|" in shown(0.5, monkeypatch, Terminal())


@pytest.mark.parametrize(("name", "live"), [("JPY_SESSION_NAME", True), ("VSCODE_PID", True), ("OTHER", False)])
def test_kernels_are_live_only_behind_a_page(name: str, live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    for key in ("JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv(name, "x")
    assert progress.is_live() is live


def test_a_note_is_said_once_and_by_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        progress.note("a folder that only this test has")
    assert capsys.readouterr().out == "note: a folder that only this test has\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    progress.note("another")
    assert capsys.readouterr().out == ""
