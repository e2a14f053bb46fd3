"""What notebooks do first and last: parameters checked in one line, and what makes a finished notebook run again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from places import REPOSITORY

from carblib.base.errors import CarbError
from carblib.params import Params
from carblib.run import notebook


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    return tmp_path


ELSEWHERE = {"device": "cpu", "workers": 2, "interactive": True, "log_every": 1, "checkpoint_every": 9}


@pytest.mark.parametrize("name", ["01_dataset_analysis", "05_ablations"])
def test_what_changes_no_result_runs_nothing_again(name: str) -> None:
    notebook.finish(Params(), name, {})
    done = notebook.read_done(Params(), name)
    assert notebook.changed_keys(done, Params(tensorboard=True, **ELSEWHERE)) == []
    assert notebook.changed_keys(done, Params(lr=0.2, precision="bf16-mixed", **ELSEWHERE)) == ["lr", "precision"]
    ablated = notebook.changed_keys(done, Params(ablation_seeds=(7,)))
    assert ablated == (["ablation_seeds"] if name == "05_ablations" else [])


def test_markers_of_earlier_versions_still_count() -> None:
    # They hold every parameter, also those that are no longer compared.
    done = {"notebook": "01_x", "parameters": Params(**ELSEWHERE).model_dump(mode="json")}
    assert notebook.changed_keys(done, Params()) == []


def test_start_says_in_one_line_what_cannot_be_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/closed/x.yaml")

    monkeypatch.setattr(notebook, "notebook_params", refused)
    with pytest.raises(CarbError, match="^/closed/x.yaml: permission denied; "):
        notebook.start({}, "01_x")


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_lab_starts_for_root_too() -> None:
    said = subprocess.run(["make", "-n", "lab"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert ("--allow-root" in said) == (os.getuid() == 0)
