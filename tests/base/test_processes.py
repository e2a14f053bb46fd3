from __future__ import annotations

import os
import time

import pytest

from carblib.base.errors import CarbError
from carblib.base.processes import deal, in_processes


@pytest.mark.parametrize(("count", "processes"), [(0, 3), (1, 4), (7, 3), (6, 1)])
def test_work_is_dealt_out_evenly_and_whole(count, processes):
    shares = deal(range(count), processes)
    assert sorted(item for share in shares for item in share) == list(range(count))
    assert 1 <= len(shares) <= processes and max(map(len, shares)) - min(map(len, shares)) <= 1


def write_pid(share, show, folder, others):
    (folder / share[0]).write_text(f"{os.getpid()} {show}")
    for _ in range(600):  # a share that returned at once could leave its process to the next one
        if all((folder / name).is_file() for name in others):
            break
        time.sleep(0.1)
    if not show:
        raise CarbError(f"{share[0]}.png: is bad")


def test_shares_run_in_processes_of_their_own_and_raise_here(tmp_path):
    with pytest.raises(CarbError, match="b.png: is bad"):
        in_processes(write_pid, [["a"], ["b"]], tmp_path, "ab")
    (first, shows), (second, silent) = ((tmp_path / name).read_text().split() for name in "ab")
    assert len({first, second, str(os.getpid())}) == 3 and (shows, silent) == ("True", "False")
    in_processes(write_pid, [["c"]], tmp_path, "c")
    assert (tmp_path / "c").read_text() == f"{os.getpid()} True"
