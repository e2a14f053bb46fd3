"""Times and memory of both ways of a stage, in turn in one process, and how ours grows: `carb bench`."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carblib import __version__
from carblib.base import files
from carblib.base.errors import CarbError, nearest
from carblib.base.processes import cores
from carblib.figures.captions import FigureRecord, save_figure
from carblib.figures.costs import costs, growth
from carblib.run.bench.stages import QUICK, STAGES, Setting, Stage, Ways

LEAST, MOST = 3, 25  # times that both ways are run
SETTINGS = {
    "quick": {"size": (256, 512), "crop": (64, 128), "images": 8},
    "cpu": {"size": (512, 1024), "crop": (128, 256), "images": 12},
    "cuda": {"size": (1024, 2048), "crop": (512, 1024), "images": 24, "batch": 8},
}
SECONDS = {"quick": 1.5, "cpu": 12.0, "cuda": 12.0}  # that a stage is repeated for, once it is warm
# How ours grows: what is changed, to which values, at which sizes of image and crop, and of which stages.
GROWTH: tuple[tuple[str, tuple, dict[str, Any], tuple[str, ...]], ...] = (
    (
        "size",
        ((256, 512), (512, 1024), (1024, 2048)),
        {"images": 4},
        ("masks, value path", "loss", "prediction", "evaluation"),
    ),
    ("classes", (10, 20, 40, 80, 160), {"size": (256, 512)}, ("loss", "upsampling, argmax")),
    ("batch", (1, 2, 4, 8), {"size": (256, 512), "crop": (64, 128)}, ("loss", "training step", "loader")),
    (
        "images",
        (100, 1000, 3000),
        {"size": (64, 128), "crop": (64, 128)},
        ("mask export", "prediction", "evaluation", "analysis"),
    ),
    ("processes", (1, 2), {"size": (256, 512), "images": 400}, ("mask export",)),
)
GROW = "growth"  # what `only` calls it


@dataclass(frozen=True)
class Measured:
    """One stage at one setting: seconds (medians), how much faster ours is (median and quartiles), bytes needed.

    Bytes are what the process, or on a GPU its allocator, needed on top at the most; None where the system cannot tell.
    """

    stage: str
    about: str
    ours: float
    official: float
    ratio: float
    low: float
    high: float
    times: int
    our_bytes: int | None
    official_bytes: int | None


@dataclass(frozen=True)
class Grown:
    """Ours at one value of what is changed: seconds (the median of three, or of one that is long) and bytes needed."""

    stage: str
    axis: str
    value: str
    seconds: float
    bytes: int | None


def measure(stage: Stage, setting: Setting, seconds: float) -> Measured:
    """Measure a stage both ways, in turn. Raises CarbError where they do not give the same."""
    ways = stage.ready(setting)
    ours, official = ways[1:3]
    ways.before()
    results = [_quietly(way) for way in (ours, official)]  # which also warms both up
    if setting.precision == "32-true" and not stage.same(*results):
        raise CarbError(f"{stage.name}: ours and the official formulation do not give the same; nothing is measured")
    del results
    peaks = [_peak(way, ways, setting) for way in (ours, official)]
    pairs = [(_timed(ours, ways, setting), _timed(official, ways, setting))]
    times = min(max(LEAST, int(seconds / sum(pairs[0]))), MOST)
    for turn in range(times - 1):
        order = (ours, official) if turn % 2 else (official, ours)
        taken = {way: _timed(way, ways, setting) for way in order}
        pairs.append((taken[ours], taken[official]))
    pairs = np.array(pairs)
    low, middle, high = np.percentile(pairs[:, 1] / pairs[:, 0], [25, 50, 75])
    return Measured(stage.name, ways.about, *np.median(pairs, 0), middle, low, high, times, *peaks)


def grow(setting: Setting) -> Iterator[Grown]:
    """Measure ours over the values of `GROWTH`."""
    known = {stage.name: stage for stage in STAGES}
    for axis, values, fixed, names in GROWTH:
        for name in names:
            for value in values:
                changed = dataclasses.replace(setting, **fixed | {axis: value})
                if axis == "size":
                    changed = dataclasses.replace(changed, crop=(value[0] // 2, value[1] // 2))
                ways = known[name].ready(changed)
                peak = _peak(ways.ours, ways, changed) if axis != "processes" else None  # theirs is not seen here
                seconds = [_timed(ways.ours, ways, changed)]
                seconds += [_timed(ways.ours, ways, changed) for _ in range(LEAST - 1) if seconds[0] < 2]
                shown = "×".join(map(str, value)) if isinstance(value, tuple) else str(value)
                yield Grown(name, axis, shown, float(np.median(seconds)), peak)


# --- one way, once ---------------------------------------------------------------------------------------------------


def _quietly(way: Callable[[], Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return way()


def _timed(way: Callable[[], Any], ways: Ways, setting: Setting) -> float:
    ways.before()
    if setting.device.type != "cuda":
        started = time.perf_counter()
        _quietly(way)
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    _quietly(way)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def _peak(way: Callable[[], Any], ways: Ways, setting: Setting) -> int | None:
    """Bytes needed on top of what was there: of CUDA's allocator, or by Linux's high-water mark of this process."""
    ways.before()
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _quietly(way)
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed but kept would hide what is needed
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        _quietly(way)
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(key: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024


# --- the whole of it -------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, Any]:
    """Say what is measured on."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    busy = {"load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}
    versions = {"torch": torch.__version__, "python": platform.python_version(), "carblib": __version__}
    return {"device": name, "cores": cores(), "threads": torch.get_num_threads(), **busy, **versions}


def run(out: Path | None, device: torch.device, quick: bool, precision: str, only: Sequence[str] = ()) -> list[Path]:
    """Measure stages, print the table as it comes, and write it: JSON, Markdown and a figure. Returns the files.

    out: the JSON; None writes nothing. only: beginnings of names, of which each must be a stage's, or GROW's.
    """
    wanted, growing = _chosen(QUICK if quick else STAGES, only), GROW.startswith(tuple(only)) or not (quick or only)
    about = machine(device) | {"precision": precision}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    if device.type == "cpu" and about.get("load", 0) > about["cores"] / 2:
        print(f"note: others use this machine (load {about['load']} on {about['cores']} cores): short stages are noisy")
    kind = "quick" if quick else device.type
    rows, grown = [], []
    with tempfile.TemporaryDirectory(prefix="carb_bench_") as scratch, contextlib.ExitStack() as after:
        after.callback(os.environ.update, CARB_HOME=os.environ.get("CARB_HOME", ""))  # empty is as good as none
        os.environ["CARB_HOME"] = scratch
        setting = Setting(Path(scratch), device=device, precision=precision, **SETTINGS[kind])
        print(" | ".join(COLUMNS) if wanted else "ours, as it grows:")
        for stage in wanted:
            try:
                rows.append(measure(stage, setting, SECONDS[kind]))
            except CarbError as error:  # what is not installed, say, keeps nothing else from being measured
                print(f"{stage.name}: left out: {error}")
                continue
            print(" | ".join(cells(rows[-1])), flush=True)
        for point in grow(setting) if growing else ():
            grown.append(point)
            memory = "" if point.bytes is None else f", {point.bytes / 2**20:.0f} MiB"
            print(f"{point.stage}: {point.axis} {point.value}: {point.seconds:.3f} s{memory}", flush=True)
    if out is None:
        return []
    result = {"machine": about, "stages": [asdict(row) for row in rows], "growth": [asdict(point) for point in grown]}
    files.write_json(out, result)
    files.write_text(out.with_suffix(".md"), markdown(rows))
    return [out, out.with_suffix(".md"), *_draw(result, out)]


def _chosen(stages: Sequence[Stage], only: Sequence[str]) -> list[Stage]:
    names = [*(stage.name for stage in stages), GROW]
    for word in only:
        if not any(name.startswith(word) for name in names):
            hint = nearest(word, names) or "there are " + "; ".join(names)
            raise CarbError(f"--only {word}: no stage begins so; {hint}")
    return [stage for stage in stages if not only or stage.name.startswith(tuple(only))]


COLUMNS = ("stage", "what", "faster", "quartiles", "official", "ours", "its memory", "ours")


def cells(row: Measured) -> list[str]:
    """One line of the table."""
    taken = [f"{1000 * seconds:.1f} ms" for seconds in (row.official, row.ours)]
    memory = ["?" if size is None else f"{size / 2**20:.0f} MiB" for size in (row.official_bytes, row.our_bytes)]
    return [row.stage, row.about, f"{row.ratio:.2f}×", f"{row.low:.2f}–{row.high:.2f}", *taken, *memory]


def markdown(rows: Sequence[Measured]) -> str:
    """The table as Markdown."""
    lines = [COLUMNS, ["---", "---", *["---:"] * (len(COLUMNS) - 2)], *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _draw(result: dict[str, Any], out: Path) -> list[Path]:
    about, data, paths = result["machine"], "random pixels and weights, rendered scenes", []
    source = f"{about['device']}, {about['threads']} threads, torch {about['torch']}; carblib {__version__}."
    ratios = "; ".join(f"{row['stage']} {row['ratio']:.2f} times as fast" for row in result["stages"])
    ways = (
        "How many times as fast as the official formulation, written out plainly, each stage is: medians and "
        "quartiles of runs in turn in one process. Beside the bars the memory that ours needs on top, over the "
        "official one's."
    )
    grown = "; ".join(
        f"{row['stage']}, {row['axis']} {row['value']}: {row['seconds']:.3g} s" for row in result["growth"]
    )
    ours = "Seconds that stages take, and memory they need on top, as what they work on grows."
    for name, make, alt, caption in (("figure", costs, ratios, ways), ("growth", growth, grown, ours)):
        if alt:
            record = FigureRecord("bench", data, "", 0, "none", 0, __version__, caption, source, alt)
            paths += save_figure(make(result), out.with_name(f"{out.stem}_{name}"), record)
    return paths
