from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from carblib.base import processes
from carblib.base.errors import CarbError
from carblib.base.processes import deal, in_processes, is_first, local_rank, place, wait_until


@pytest.mark.parametrize(("count", "processes"), [(0, 3), (1, 4), (7, 3), (6, 1)])
def test_work_is_dealt_out_evenly_and_whole(count, processes):
    shares = deal(range(count), processes)
    assert sorted(item for share in shares for item in share) == list(range(count))
    assert 1 <= len(shares) <= processes and max(map(len, shares)) - min(map(len, shares)) <= 1


def write_pid(share, show, folder, others):
    (folder / f".{share[0]}").write_text(f"{os.getpid()} {show}")
    (folder / f".{share[0]}").rename(folder / share[0])  # who sees it ends the others, and may read it at once
    for _ in range(3000):  # a share that returned at once could leave its process to the next one
        if all((folder / name).is_file() for name in others):
            break
        time.sleep(0.1)
    if not show:
        raise CarbError(f"{share[0]}.png: is bad")


def killed(share, show):
    os.kill(os.getpid(), signal.SIGKILL)


def endless(share, show):
    tqdm(disable=True)  # as all work
    print(share[0], flush=True)
    if share[0] == "bad":
        raise CarbError("b.png: is bad")
    time.sleep(600)


def test_an_error_of_one_ends_the_others(quick_processes):
    started = time.monotonic()
    with pytest.raises(CarbError, match="b.png: is bad"):
        in_processes(endless, [["a"], ["bad"]])
    assert time.monotonic() - started < 300


PARENT = """
from test_processes import endless
from carblib.base.interrupts import end_like_interrupt
from carblib.base.processes import in_processes
end_like_interrupt()
in_processes(endless, [["a"], ["b"]])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(number):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=Path(__file__).parent, **pipes)
    assert {parent.stdout.readline() for _ in "ab"} == {b"a\n", b"b\n"}
    parent.send_signal(number)
    _, said = parent.communicate(timeout=300)  # what the others write ends, too
    assert number == signal.SIGKILL or b"leaked" not in said


def test_a_process_that_is_killed_is_one_line():
    with pytest.raises(CarbError, match="--processes 2: one of them was killed.*; give fewer"):
        in_processes(killed, [["a"], ["b"]])


def test_shares_run_in_processes_of_their_own_and_raise_here(tmp_path):
    with pytest.raises(CarbError, match="b.png: is bad"):
        in_processes(write_pid, [["a"], ["b"]], tmp_path, "ab")
    (first, shows), (second, silent) = ((tmp_path / name).read_text().split() for name in "ab")
    assert len({first, second, str(os.getpid())}) == 3 and (shows, silent) == ("True", "False")
    in_processes(write_pid, [["c"]], tmp_path, "c")
    assert (tmp_path / "c").read_text() == f"{os.getpid()} True"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}, (2, 3)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8"}, (1, 4)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, (0, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # a batch script, which runs once
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, (0, 1)),  # a training of two devices was started in this process
    ],
)
def test_the_launcher_says_which_of_how_many(environment, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place() == expected and is_first() is (expected[0] == 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_first() and local_rank() == 1


def test_what_is_waited_for_is_said_again(monkeypatch, capsys):
    gone = []
    clock = SimpleNamespace(monotonic=lambda: sum(gone), sleep=gone.append)
    monkeypatch.setattr(processes, "time", clock)
    assert wait_until(lambda: sum(gone) > 700, "masks")
    said = ["", ", 5 min so far", ", 10 min so far"]
    assert capsys.readouterr().out.splitlines() == [f"waiting for the other processes{more}: masks" for more in said]
