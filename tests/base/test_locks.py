"""One writer per folder, and signals that wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from carblib.base.errors import CarbError
from carblib.base.interrupts import SIGNALS, held_back
from carblib.base.locks import only_writer

HOLDS = """
import sys, time
from pathlib import Path
from carblib.base.locks import only_writer
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
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    with only_writer(tmp_path):
        assert not old.exists() and young.exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_are_held_back_however_many_come(number) -> None:
    before = signal.getsignal(number)
    with held_back() as asked:
        assert not asked()
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert asked()
    assert signal.getsignal(number) == before
