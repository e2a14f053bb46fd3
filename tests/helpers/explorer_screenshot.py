"""Make figures/published/explorer.png: `python tests/helpers/explorer_screenshot.py` after the demo has run.

The explorer is opened in JupyterLab on this checkout's demo. Also prints how long a key takes to a new picture.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

from explorer_page import Seen, control, enter, jupyter_lab, open_page, run_all
from places import REPOSITORY


def main() -> None:
    """Move the controls as the README's picture shows them, and take it."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder)
        shutil.copy(REPOSITORY / "notebooks" / "00_explore.ipynb", own)
        with open_page(1700, 1500) as page, jupyter_lab(own, REPOSITORY, own) as address:
            run_all(page, address.format("00_explore.ipynb"))
            seen = Seen(page)
            time_keys(seen)
            enter(page, "words", "orange tree")
            seen.stage("words").wait_for()
            control(page, "compare with").locator("select").select_option("plain")
            page.locator('.widget-checkbox:has-text("local view") input').check()
            seen.stage("patch").wait_for()
            seen.whole()
            seen.point("image", 0.525, 0.54)
            page.wait_for_timeout(1500)
            panel = page.locator(".jp-OutputArea-output .widget-vbox").first
            panel.screenshot(path=str(REPOSITORY / "figures" / "published" / "explorer.png"))


def time_keys(seen: Seen) -> None:
    """Print the time from a key to the new picture, over 30 moves of the view and 20 to another image."""
    seen.viewer.focus()
    views = [seen.key("+0fOcBCbo-"[move % 10]) for move in range(30)]
    images = []
    for move in range(20):
        images.append(seen.go("n" if move < 10 else "p"))
        seen.page.wait_for_timeout(500)
    for what, seconds in (("the view", views), ("the image", images)):
        percentile = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
        print(f"{what}, in the browser: median {statistics.median(seconds):.3f} s, 95th percentile {percentile:.3f} s")


if __name__ == "__main__":
    main()
