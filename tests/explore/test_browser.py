"""The explorer in a real browser: JupyterLab on loopback, headless Chromium, controls moved as a person moves them."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
import yaml
from explorer_page import Watched, control, enter, jupyter_lab, open_page, press_slider, run_all
from places import REPOSITORY

from carblib.base import files
from carblib.scenes.folders import write_scenes

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


DEMO = str(REPOSITORY / "params" / "demo.yaml")
TINY = {"run": "tiny", "root": "data/tiny", "image_size": [64, 128], "crop": [64, 128], "patch": [32, 32]}


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
        next_hit = page.locator('button:has-text("next hit")')
        for place, ask in ((2, lambda: find.press("Enter")), (3, next_hit.click)):
            ask()
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
