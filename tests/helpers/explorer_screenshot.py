"""Make figures/published/explorer.png: `python tests/helpers/explorer_screenshot.py` after the demo has run.

The explorer is opened in JupyterLab on this checkout's demo. Also prints how long a slider takes to a new picture.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from explorer_page import Watched, enter, jupyter_lab, open_page, press_slider, run_all
from places import REPOSITORY


def main() -> None:
    """Move the controls as the README's picture shows them, and take it."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder)
        shutil.copy(REPOSITORY / "notebooks" / "00_explore.ipynb", own)
        with open_page(1600, 1300) as page, jupyter_lab(own, REPOSITORY, own) as address:
            run_all(page, address.format("00_explore.ipynb"))
            picture = Watched(page)
            picture.settle()
            time_slider(page, picture)
            enter(page, "words", "orange tree")
            picture.wait_for_change()
            page.locator('.widget-checkbox:has-text("local view") input').check()
            picture.wait_for_change()
            picture.drag(first_panel(picture, 0.4, 0.5), first_panel(picture, 0.53, 0.58))
            picture.wait_for_change()
            page.mouse.click(*picture.at(*first_panel(picture, 0.525, 0.54)))
            picture.wait_for_change()
            page.wait_for_timeout(1500)
            panel = page.locator(".jp-OutputArea-output .widget-vbox").first
            panel.screenshot(path=str(REPOSITORY / "figures" / "published" / "explorer.png"))


def time_slider(page: object, picture: Watched) -> None:
    """Print the time from a key press on the opacity slider to the new picture, over 30 moves."""
    seconds = []
    for move in range(30):
        begun = time.perf_counter()
        press_slider(page, "opacity", "ArrowLeft" if move % 2 else "ArrowRight")
        picture.wait_for_change()
        seconds.append(time.perf_counter() - begun)
    percentile = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
    print(f"30 moves in the browser: median {statistics.median(seconds):.3f} s, 95th percentile {percentile:.3f} s")


def first_panel(picture: Watched, x: float, y: float) -> tuple[float, float]:
    """Where in the picture a point of the image is, as shares of both, in the first panel."""
    panels = int(picture.picture.get_attribute("alt").split()[0])
    height, width = picture.picture.evaluate("img => [img.naturalHeight, img.naturalWidth]")
    across = width / {4: 2, 6: 3, 8: 4}[panels] - 7
    return x * across / width, (24 + y * across / 2) / height


if __name__ == "__main__":
    main()
