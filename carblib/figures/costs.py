"""What `carb bench` measured: every stage beside the official formulation, and how ours grows."""

from __future__ import annotations

import math
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from carblib.figures.style import FAINT, GRID, INK, PALE, SPARE_COLOURS, new_figure, paper_style
from carblib.results.words import PAGE

TICKS = (0.5, 1, 2, 4, 8, 16, 32)
COLOURS, MARKS = (*SPARE_COLOURS, INK), ("o", "s", "^", "v", "D", "P", "X", "*", "d")


@paper_style()
def costs(result: dict[str, Any]) -> Figure:
    """Bars from 1 on a logarithmic axis, with quartiles; `result` as in bench.json: `stages`, rows of ratio, low, high.

    Beside each bar stands the memory of ours over that of the official formulation, in MiB.
    """
    rows = result["stages"]
    figure = new_figure(PAGE, 0.7 + 0.24 * max(len(rows), 1))
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    for place, row in zip(places, rows, strict=True):
        axes.barh(place, row["ratio"] - 1, left=1, height=0.6, color=PALE if row["ratio"] >= 1 else FAINT)
        axes.hlines(place, row["low"], row["high"], color=INK, linewidth=0.9)
        words = f"{row['ratio']:.1f}×"
        if row["our_bytes"] is not None:
            words += f"   {row['our_bytes'] / 2**20:.0f} / {row['official_bytes'] / 2**20:.0f} MiB"
        beside = {"textcoords": "offset points", "va": "center", "fontsize": 7}
        axes.annotate(words, (max(row["high"], row["ratio"], 1), place), (5, 0), **beside)
    axes.axvline(1, color=INK, linewidth=0.8)
    most = max([row["high"] for row in rows], default=2)
    axes.set_xscale("log")
    axes.set_xlim(min([0.5, *(0.9 * row["low"] for row in rows)]), 3 * most)  # room for the words
    axes.set_xticks([tick for tick in TICKS if tick <= most * 1.5], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_yticks(places, [row["stage"] for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", color=GRID)
    axes.set_xlabel("times as fast as the official formulation")
    return figure


@paper_style()
def growth(result: dict[str, Any]) -> Figure:
    """Seconds above and MiB below over what is changed; `growth` of bench.json: rows of stage, axis, value, seconds."""
    rows = result["growth"]
    axes_named, stages = (list(dict.fromkeys(row[key] for row in rows)) for key in ("axis", "stage"))
    looks = {stage: (colour, mark) for stage, colour, mark in zip(stages, cycle(COLOURS), cycle(MARKS), strict=False)}
    figure = new_figure(PAGE, 3.6)
    panels = figure.subplots(2, len(axes_named), squeeze=False, sharex="col")
    for (upper, lower), axis in zip(panels.T, axes_named, strict=True):
        mine = [row for row in rows if row["axis"] == axis]
        for panel, key, unit in ((upper, "seconds", 1), (lower, "bytes", 2**20)):
            for stage in dict.fromkeys(row["stage"] for row in mine):
                points = [row for row in mine if row["stage"] == stage and row[key]]
                heights = [row[key] / unit for row in points]
                panel.plot([*map(_number, points)], heights, color=looks[stage][0], marker=looks[stage][1])
            ticks = {_number(row): row["value"] for row in mine}
            panel.set(xscale="log", yscale="log", xticks=[*ticks], xlim=(0.8 * min(ticks), 1.25 * max(ticks)))
            panel.set_xticklabels([*ticks.values()], rotation=90 if max(map(len, ticks.values())) > 2 else 0)
            panel.xaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.grid(axis="y", color=GRID)
        upper.set_title(axis)
        if not any(row["bytes"] for row in mine):
            lower.set(yticks=[], ylabel="not measured")
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("MiB on top")
    handles = [Line2D([], [], color=colour, marker=mark, label=stage) for stage, (colour, mark) in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def _number(row: dict[str, Any]) -> int:
    return math.prod(int(part) for part in row["value"].split("×"))
