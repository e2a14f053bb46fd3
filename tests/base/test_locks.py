"""One writer per folder, and signals that wait."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from carblib.base import locks
from carblib.base.errors import CarbError
from carblib.base.interrupts import SIGNALS, deaf_children, end_like_interrupt, held_back
from carblib.base.locks import one_of_writers, only_writer

HOLDS = """
import sys, time
from pathlib import Path
from carblib.base.locks import one_of_writers, only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_and_a_killed_one_holds_nothing(tmp_path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(CarbError, match=f"process {first.pid} on .* is writing here"), only_writer(tmp_path):
            pass
    finally:
        first.kill()
        first.wait()
    with only_writer(tmp_path):
        pass


def test_what_a_killed_process_left_unfinished_is_swept(tmp_path) -> None:
    old, young = tmp_path / ".final.pt.0123.tmp", tmp_path / ".log.csv.4567.tmp"
    within = tmp_path / "overlay" / ".a.jpg.89ab.tmp"
    within.parent.mkdir()
    for path in (old, within, young):
        path.write_bytes(b"half")
    for path in (old, within):
        os.utime(path, (time.time() - 7200,) * 2)
    with only_writer(tmp_path):
        assert not old.exists() and not within.exists() and young.exists()


def test_who_holds_a_lock_can_be_read_on_other_machines(tmp_path, monkeypatch) -> None:
    stored = []
    monkeypatch.setattr("os.fsync", lambda number: stored.append(os.pread(number, 99, 0).decode()))
    with only_writer(tmp_path):
        assert stored == [f"process {os.getpid()} on {socket.gethostname()}"]


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_are_held_back_however_many_come(number) -> None:
    before = signal.getsignal(number)
    with held_back() as asked:
        assert not asked()
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert asked()
    assert signal.getsignal(number) == before


def test_ctrl_c_while_children_start_comes_after_the_block() -> None:
    started = []
    with pytest.raises(KeyboardInterrupt), deaf_children():
        os.kill(os.getpid(), signal.SIGINT)
        started.append(1)
    assert started


def test_processes_of_a_launcher_write_together_and_never_beside_one_that_is_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "_SETTLING", 0.2)
    settled = []
    with one_of_writers(tmp_path, lambda: settled.append(1)):
        with one_of_writers(tmp_path, lambda: settled.append(2)):  # a second open file is as another process
            with pytest.raises(CarbError, match=f"process {os.getpid()} on .*, one of several, is writing here"):
                only_writer(tmp_path).__enter__()
        assert settled == [1], "while others write nothing is settled"
    with (
        only_writer(tmp_path),
        pytest.raises(CarbError, match="is writing here alone"),
        one_of_writers(tmp_path, lambda: settled.append(3)),
    ):
        pass
    with one_of_writers(tmp_path, lambda: settled.append(4)):
        pass
    assert settled == [1, 4]


def test_one_that_settles_is_waited_for(tmp_path) -> None:
    order, begun, written = [], threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        time.sleep(0.3)
        order.append("settled")

    def first() -> None:
        with one_of_writers(tmp_path, slow):
            assert written.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait(10)
    with one_of_writers(tmp_path, lambda: order.append("again")):
        order.append("writes")
        written.set()
    thread.join()
    assert order == ["settled", "writes"]


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unknown)
    told = pytest.raises(CarbError, match="cannot be locked against a second writer .* knows flock")
    with told, only_writer(tmp_path):
        pass


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_a_training_all_signals_are_interrupts(number) -> None:
    before = {one: signal.getsignal(one) for one in SIGNALS}
    try:
        end_like_interrupt()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
