"""A tiny run with everything in it, and what each command says and leaves where one file of it is damaged."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
from commands import carb
from small import small_params

from carblib.base.errors import CarbError
from carblib.base.files import write_json, write_text
from carblib.data.readers import open_split
from carblib.params import Params, load_params
from carblib.run.notebook import finish
from carblib.stages.mask_examples import save_similarity

TINY = {"run": "r", "root": "data", "scenes_train": 3, "scenes_val": 2, "scenes_test": 1, "image_size": (64, 128)}
TINY |= {"crop": (64, 128), "patch": (32, 32), "input_scale": 1, "aspp_dilations": (1, 2), "device": "cpu"}
TINY |= {"iterations": 3, "warmup": 1, "batch_size": 1, "log_every": 1, "val_every": 2, "monitor_images": 1}
TINY |= {"checkpoint_every": 2, "bootstrap": 20, "path": "single", "variants": ["paper"], "ceiling": False}
FINAL = "runs/r/train/paper/final.pt"
TABLES = "figures runs/r --tables --out out"
# What a command reads, pattern by pattern below the project; the first file of each is damaged.
READ_BY = {
    "runs/r/labels/train.csv": "train p.yaml",
    "runs/r/labels/train.json": "labels p.yaml",
    "runs/r/analysis.json": TABLES,
    "runs/r/maskers.json": TABLES,
    "runs/r/ablations.json": TABLES,
    "runs/r/evaluation/test/paper.json": TABLES,
    "runs/r/evaluation/val/*.json": "report runs/r",
    "runs/r/train/paper/log.csv": "report runs/r",
    "runs/r/train/paper/reliability.csv": TABLES,
    "runs/r/train/paper/region_weights.csv": "train p.yaml",
    "runs/r/train/paper/regions/*/*.npz": "figures runs/r --only region_maps --out out",
    "runs/r/train/paper/done.json": "train p.yaml",
    "runs/r/train/paper/stamp.json": "status p.yaml",
    FINAL: f"predict p.yaml --checkpoint {FINAL}",
    "runs/r/similarity_maps.npz": "figures runs/r --only similarity_maps --out out",
    "runs/r/pseudo_masks/val/stamp.json": "masks p.yaml --split val",
    "runs/r/pseudo_masks/val/*.png": "evaluate p.yaml --split val --folder runs/r/pseudo_masks/val --resize",
    "runs/r/predictions/paper/test/stamp.json": f"predict p.yaml --checkpoint {FINAL}",
    "runs/r/predictions/paper/test/*.png": "evaluate p.yaml --folder runs/r/predictions/paper/test",
    "runs/r/done/*.json": "report runs/r",
    "runs/r/params.yaml": TABLES,
    "runs/.cache/contents.json": "train p.yaml",
    "data/val.scenes.json": "evaluate p.yaml --split val --folder runs/r/pseudo_masks/val --resize",
    "data/valannot/*.png": "evaluate p.yaml --split val --folder runs/r/pseudo_masks/val --resize",
}


def make(home: Path) -> Params:
    """Make the run in the project `home`, which CARB_HOME names."""
    write_text(home / "p.yaml", small_params(**TINY).to_yaml())
    params = load_params(home / "p.yaml")
    write_text(params.run_dir / "params.yaml", params.to_yaml())
    for words in (
        "labels p.yaml", "analyse p.yaml", "quality p.yaml --images 1", "train p.yaml", "masks p.yaml --split val",
        f"predict p.yaml --checkpoint {FINAL}", "evaluate p.yaml --folder runs/r/predictions/paper/test",
        "evaluate p.yaml --split val --folder runs/r/pseudo_masks/val --resize",
    ):  # fmt: skip
        run(home, words)
    save_similarity(params, open_split(params, "val"))
    scores = {"miou": 0.5, "small_miou": None, "iou": [], "split": "test", "images": 1}
    rows = [{"masker": "m", "path": "dual", "variant": name, "seed": 0, **scores} for name in ("plain", "paper")]
    write_json(params.run_dir / "ablations.json", rows)
    finish(params, "01_dataset_analysis", {})
    return params


def run(home: Path, words: str) -> str:
    """Run a command; returns what it says, its one line of error included; any other exception is not caught."""
    said, before = io.StringIO(), os.getcwd()
    os.chdir(home)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            carb(*words.split())
    except CarbError as error:
        said.write(f"error: {error}")
    finally:
        os.chdir(before)
    return said.getvalue()


class Project:
    """A project as it was: what a command says and leaves, and everything back in its place afterwards."""

    def __init__(self, home: Path):
        self.home = home
        self.kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in self._files()}
        self.usual: dict[str, tuple[str, dict[Path, bytes]]] = {}

    def _files(self) -> list[Path]:
        return [path for path in self.home.rglob("*") if path.is_file() and path.name != ".lock"]

    def outcome(self, words: str, damaged: Path | None = None) -> tuple[str, dict[Path, bytes]]:
        """Run a command: what it says, and every file it changed but the damaged one and dated ones."""
        said = run(self.home, words)
        now = {path: path.read_bytes() for path in self._files()}
        left = {path: data for path, data in now.items() if self.kept.get(path, [b""])[0] != data}
        caches = {path for path in left if path.name == "contents.json"}  # files grow old enough to be remembered
        for path in left.keys() - self.kept.keys():
            path.unlink()
        for path, (data, when) in self.kept.items():
            if path in left or path not in now or path == damaged:
                path.write_bytes(data)
                os.utime(path, ns=(when, when))
        undated = {".html", ".pdf", ".png"} if words.startswith(("figures", "report")) else set()
        return said, {
            path: data
            for path, data in left.items()
            if path != damaged and path.suffix not in undated and path not in caches
        } | {path: b"gone" for path in self.kept.keys() - now.keys() - {damaged}}

    def verdict(self, path: Path, words: str, data: bytes) -> str:
        """Damage a file and run a command: "told", "same", or "silent" where the outcome is another one unsaid."""
        if words not in self.usual:
            self.outcome(words)
            self.usual[words] = self.outcome(words)
        said_before, left_before = self.usual[words]
        path.write_bytes(data)
        said, left = self.outcome(words, path)
        new = [line for line in said.splitlines() if line not in said_before.splitlines()]
        if any(path.name in line or "made anew" in line for line in new):
            return "told"
        return "same" if not new and left == left_before else f"silent: {new} {[str(one) for one in left]}"


def damages(data: bytes, flips: int, rng: np.random.Generator) -> dict[str, bytes]:
    """Ways in which a file dies: {name: what is left of it}."""
    found: dict[str, bytes] = {
        "cut": data[: len(data) // 2],
        "emptied": b"",
        "noise": rng.bytes(200),
        "list": b"[]",
    }
    if data[:1] == b"{":
        content = json.loads(data)
        for key in list(content)[:: max(1, len(content) // 3)]:
            found[f"no {key}"] = json.dumps({name: value for name, value in content.items() if name != key}).encode()
            found[f"{key} odd"] = json.dumps({**content, key: [["odd"]]}).encode()
    for place in rng.integers(0, 8 * len(data), flips):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << (place % 8)
        found[f"bit {place}"] = bytes(flipped)
    return found
