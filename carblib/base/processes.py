"""Work shared out to processes, one share each: those of a launcher (torchrun, srun), and those started here."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from carblib.base.errors import CarbError
from carblib.base.interrupts import deaf_children

T = TypeVar("T")

_AGAIN = 300  # seconds after which it is said again what is waited for


def place() -> tuple[int, int]:
    """Return which one this is of the processes that share out the images of a stage, and how many there are.

    As torchrun says (RANK, WORLD_SIZE), or SLURM in a step of srun; (0, 1) where nobody does. What SLURM says of a
    whole job (SLURM_NTASKS) counts for nothing: its batch script itself runs once.
    """
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def local_rank() -> int:
    """Return which one this is of a launcher's processes on this machine; 0 where nobody says."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))


def is_first() -> bool:
    """Tell whether this is the first of a launcher's processes, and of those that a training starts by itself."""
    return place()[0] == 0 and int(os.environ.get("LOCAL_RANK", 0)) == 0


def wait_until(done: Callable[[], T], what: str) -> T:
    """Ask `done` twice a second until it says something true, which is returned; tell every 5 minutes what for.

    Processes of a launcher do not talk to each other: one that is late, or was killed and starts again, is waited for.
    """
    started, told = time.monotonic(), 0
    while not (said := done()):
        gone = time.monotonic() - started
        if gone >= told * _AGAIN:
            so_far = f", {gone / 60:.0f} min so far" if told else ""
            print(f"waiting for the other processes{so_far}: {what}", flush=True)
            told += 1
        time.sleep(0.5)
    return said


def in_processes(work: Callable[..., None], shares: Sequence[Any], *common: Any) -> None:
    """Call `work(share, show, *common)` for all shares at once, each in its own process; a single one runs in this one.

    `show` is true for the first share of the first process alone: shares are alike, so its progress tells that of all.

    Processes are spawned, not forked: torch's threads and CUDA do not survive a fork. They end with this one,
    whatever ends it. A share's error is raised here, and ends the others; CarbError where a process was killed.
    """
    if len(shares) == 1:
        work(shares[0], is_first(), *common)
        return
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    with ProcessPoolExecutor(len(shares), mp_context=context, initializer=_begin) as pool:
        try:
            with deaf_children():
                futures = [pool.submit(work, share, n == 0 and is_first(), *common) for n, share in enumerate(shares)]
            for future in as_completed(futures):
                future.result()
        except BaseException as error:
            for process in {*multiprocessing.active_children()} - {*others}:
                process.terminate()  # files are written whole or not at all
            if not isinstance(error, BrokenProcessPool):
                raise
            raise CarbError(
                f"--processes {len(shares)}: one of them was killed, most often because memory ran out; give fewer, "
                "and the same command goes on from here"
            ) from error


def _begin() -> None:
    """Begin a process that works for another one: with one thread, and no longer than that one lives."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a process that is ended would leave behind
    import torch  # takes seconds, and whoever asks for its place need not wait for it

    torch.set_num_threads(1)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def deal(items: Sequence[Any], processes: int) -> list[list[Any]]:
    """Deal items to at most `processes` shares of nearly equal length; at least one share, which may be empty."""
    return [list(items[start::processes]) for start in range(max(1, min(processes, len(items))))]
