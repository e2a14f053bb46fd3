"""What is not installed is told before any work begins, with what to do; what is not needed is not asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import carb
from small import small_params

from carblib.base.errors import CarbError
from carblib.base.files import write_text
from carblib.stages import tools
from carblib.stages.tools import check_tools

NEEDS = {
    "pydensecrf.densecrf": ({"path": "single", "crf": True}, "crf: pydensecrf is not installed"),
    "tensorboard": ({"tensorboard": True}, "tensorboard: true needs a package; pip install tensorboard"),
    "open_clip": ({"clip": "open_clip:ViT-B-32/laion400m_e32"}, "pip install open_clip_torch"),
}


@pytest.mark.parametrize("module", NEEDS)
@pytest.mark.parametrize("command", ["train", "batch"])
def test_what_is_missing_is_told_before_any_work(tmp_path: Path, monkeypatch, module, command) -> None:
    keys, told = NEEDS[module]
    params = small_params(run="r", root="data", **keys, scenes_train=1, scenes_val=1, scenes_test=1)
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    write_text(tmp_path / "p.yaml", params.to_yaml())
    write_text(tmp_path / "notebooks" / "01_dataset_analysis.ipynb", "{}")
    hidden(monkeypatch, module)
    with pytest.raises(CarbError) as error:
        carb(command, tmp_path / "p.yaml")
    assert told in str(error.value)
    assert not list((tmp_path / "runs").rglob("*.png")), "no mask was made"
    check_tools(small_params())


def hidden(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("carblib.clip_files", "carblib.training.log"):
        find = sys.modules[name].find_spec
        monkeypatch.setattr(f"{name}.find_spec", lambda asked, find=find: None if asked == module else find(asked))


def test_the_remedy_fits_the_python_and_the_compiler(monkeypatch) -> None:
    hidden(monkeypatch, "pydensecrf.densecrf")
    params = small_params(path="single", crf=True)
    monkeypatch.setattr(sys, "version_info", (3, 13, 1))
    with pytest.raises(CarbError, match="cannot be built on Python .*: install carblib under Python 3.12"):
        check_tools(params)
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    with pytest.raises(CarbError, match="pip install pydensecrf2==1.1; or do without"):
        check_tools(params, trains=False)
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    with pytest.raises(CarbError, match=r"apt install g\+\+\), then pip install pydensecrf2"):
        check_tools(params)
    with pytest.raises(CarbError, match="compile: true needs a C"):
        check_tools(small_params(compile=True))
    check_tools(small_params(compile=True), trains=False)
    with pytest.raises(CarbError, match="no single_crf among ablation_paths"):
        check_tools(small_params(ablation_paths=["single_crf"]), ablates=True)
