"""The ordered map of all stages: order, how far ahead it runs, errors, interrupts, threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from carblib.base.errors import CarbError
from carblib.base.parallel import in_order


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 47])
def test_results_come_in_order_whatever_the_threads(count: int, workers: int) -> None:
    pauses = np.random.default_rng(count).uniform(0, 0.003, count)

    def late(i: int) -> int:
        time.sleep(pauses[i])
        return i * i

    assert [*in_order(late, range(count), workers)] == [i * i for i in range(count)]


def test_two_are_done_at_the_same_time_and_no_more() -> None:
    together, most, now, lock = threading.Barrier(2, timeout=20), 0, 0, threading.Lock()

    def meet(_: int) -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        together.wait()  # breaks where one comes alone
        with lock:
            now -= 1

    assert len([*in_order(meet, range(10), 2)]) == 10 and most == 2


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 4), (3, 6)])
def test_no_more_than_two_items_a_thread_are_drawn_ahead_of_what_is_taken(workers: int, ahead: int) -> None:
    drawn = []
    results = in_order(lambda i: i, (drawn.append(i) or i for i in range(1000)), workers)
    for taken in range(1, 50):
        next(results)
        assert len(drawn) <= taken + ahead - 1
    results.close()


def test_reading_and_writing_overlap_with_computing() -> None:
    seen: dict[str, set[int]] = {"read": set(), "compute": set(), "write": set()}

    def done(what: str, item: int) -> int:
        seen[what].add(threading.get_ident())
        return item

    read = in_order(lambda i: done("read", i), range(20), 2)
    computed = (done("compute", i) for i in read)
    assert [*in_order(lambda i: done("write", i), computed, 2)] == [*range(20)]
    assert seen["compute"] == {threading.get_ident()} and not seen["read"] & seen["write"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_an_error_is_raised_at_its_items_turn(stage: str, workers: int) -> None:
    written = []

    def step(what: str, i: int) -> int:
        if (what, i) == (stage, 7):
            raise CarbError("7.png: is bad")
        if what == "write":
            time.sleep(0.001)
            written.append(i)
        return i

    before = threading.active_count()
    read = in_order(lambda i: step("read", i), range(100), workers)
    with pytest.raises(CarbError, match="^7.png: is bad$"):
        for _ in in_order(lambda i: step("write", i), (step("compute", i) for i in read), workers):
            pass
    # What came before it is done, and little of what came after.
    assert {*range(7)} <= {*written} and len(written) < 12 and 7 not in written
    assert threading.active_count() <= before + 4


def test_after_an_interrupt_what_was_begun_is_whole_and_no_more_is_drawn(tmp_path) -> None:
    def write(i: int) -> None:
        path = tmp_path / str(i)
        path.write_text("begun")
        time.sleep(0.02)
        path.write_text("whole")

    with pytest.raises(KeyboardInterrupt):
        for place, _ in enumerate(in_order(write, range(1000), 2)):
            if place == 3:
                raise KeyboardInterrupt
    count = len([*tmp_path.iterdir()])
    time.sleep(0.06)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"whole"}
    assert len([*tmp_path.iterdir()]) == count < 12


def test_torch_has_one_thread_in_each_and_as_many_as_before_elsewhere() -> None:
    before, later = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        assert {*in_order(lambda _: torch.get_num_threads(), range(9), 2)} == {1}
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert torch.get_num_threads() == 3 and later == [3]
    finally:
        torch.set_num_threads(before)
