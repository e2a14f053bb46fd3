"""Memory: what there is of it, and one line where it ran out, whoever says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carblib.base import memory
from carblib.base.errors import CarbError
from carblib.base.files import write_text


def numpy_wants_too_much() -> None:
    np.empty(1 << 60, np.uint8)


def torch_wants_too_much() -> None:
    torch.empty(1 << 60)


def the_gpu_has_too_little() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("work", [numpy_wants_too_much, torch_wants_too_much, the_gpu_has_too_little])
def test_memory_that_ran_out_is_one_line(work) -> None:
    with pytest.raises(CarbError, match="memory ran out; lower crop") as error:
        memory.lowering("crop")(work)()
    assert ("GPU" in str(error.value)) == (work is the_gpu_has_too_little)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory.lowering("crop"):
        raise RuntimeError("shapes differ")


TWO = ("memory.max", "memory.current", "inactive_file")
ONE = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.mark.parametrize(
    ("line", "folder", "names"), [("0::/job_7/step_0", "job_7", TWO), ("5:memory:/job_7/step_0", "memory/job_7", ONE)]
)
def test_the_limit_of_a_container_or_job_counts(line, folder, names, tmp_path, monkeypatch) -> None:
    assert 1 << 20 < memory.available()
    limit, used, files = names
    for path, text in {
        "own": f"9:cpuset:/\n{line}\n",
        f"{folder}/{limit}": "5000000",
        f"{folder}/{used}": "1000000",
        f"{folder}/memory.stat": f"anon 700000\n{files} 300000\n",
        f"{folder}/step_0/{limit}": "max",
    }.items():
        write_text(tmp_path / path, text)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    assert memory.available() == 4_300_000
    write_text(tmp_path / folder / limit, "max")
    assert memory.available() > 4_300_000
