"""Work shared out to processes, one share each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch


def in_processes(work: Callable[..., None], shares: Sequence[Any], *common: Any) -> None:
    """Call `work(share, show, *common)` for all shares at once, each in its own process; a single one runs in this one.

    `show` is true for the first share alone: shares are alike, so its progress tells that of all.

    Processes are spawned, not forked: torch's threads and CUDA do not survive a fork. A share's error is raised here.
    """
    if len(shares) == 1:
        work(shares[0], True, *common)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(shares), mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in [pool.submit(work, share, place == 0, *common) for place, share in enumerate(shares)]:
            future.result()


def deal(items: Sequence[Any], processes: int) -> list[list[Any]]:
    """Deal items to at most `processes` shares of nearly equal length; at least one share, which may be empty."""
    return [list(items[start::processes]) for start in range(max(1, min(processes, len(items))))]
