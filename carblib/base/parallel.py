"""One thing done to many items by threads, in order, a few at a time: what every stage that goes image by image uses.

Decoding, resizing, encoding and most of counting hold no lock of Python's, so threads are enough, and hand arrays over
without copying them. Generators chain: `in_order(write, map(compute, in_order(read, names)))` reads ahead and writes
behind while this thread computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from carblib.base.processes import cores

A, B = TypeVar("A"), TypeVar("B")

MOST = 4  # threads where none are asked for: decoding and counting hold Python's lock for a fifth of their time


def in_order(work: Callable[[A], B], items: Iterable[A], workers: int = 0) -> Iterator[B]:
    """Yield `work(item)` of every item, in the items' order, computed by `workers` threads.

    workers: 0 = one per core, at most 4; 1 = this thread, one item after the other. At most two items per thread are
    under way, however many there are. `items` are drawn in this thread, as results are taken. An error of `work` or of
    `items` is raised here, at its item's turn. Whatever ends it, an interrupt too, items that are under way are done
    first: files are whole, and what was computed is written.
    """
    threads = workers or min(cores(), MOST)
    if threads == 1:
        yield from map(work, items)
        return
    pending: deque[Future[B]] = deque()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) == 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    finally:
        torch.set_num_threads(torch.get_num_threads())  # else threads that others begin later would have one, too
