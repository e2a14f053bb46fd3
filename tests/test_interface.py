"""The Python interface: what `import carblib` gives, and the README's lines."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from places import REPOSITORY

import carblib
from carblib.base.errors import CarbError


def test_every_name_is_there_and_import_is_light() -> None:
    assert 8 <= len(carblib.__all__) <= 14
    for name in carblib.__all__:
        assert getattr(carblib, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'build_maske'"):
        carblib.build_maske  # noqa: B018
    heavy = "import sys, carblib; sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0


def test_a_mask_names_only_what_it_is_told(tmp_path) -> None:
    params = carblib.load_params(REPOSITORY / "params" / "demo.yaml")
    masker, classes = carblib.build_masker(params), params.class_set
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    mask = carblib.mask_image(masker, image, classes.labels("road", "sky"))
    assert mask.shape == (70, 90) and mask.dtype == np.uint8
    assert {*np.unique(mask)} <= {classes.index("road"), classes.index("sky")}
    free = carblib.mask_image(masker, image)
    assert len(np.unique(free)) > 2
    assert (carblib.mask_image(masker, image, np.ones(len(classes), bool)) == free).all()
    with pytest.raises(CarbError, match="did you mean 'road'"):
        classes.labels("raod")


def test_the_readme_s_python_runs(tmp_path, monkeypatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text("utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 6
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "street.png")
    monkeypatch.setenv("CARB_HOME", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)  # the README's own lines
    assert names["mask"].shape == (64, 96)
