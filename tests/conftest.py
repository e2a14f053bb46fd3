"""One thread each for test processes and their children, and what several test files share: tiny CLIP models."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

for library in ("OMP", "MKL"):  # before torch is imported; tests run side by side, and what they compute is small
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import pytest
import torch
from explorer_runs import explorer_home, tiny_params
from random_clip import tiny_clip

from carblib.base import processes
from carblib.clip_models import ClipModel, load_clip
from carblib.explore.explorer import Explorer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first: in several processes they are handed out whole, and a slow one must not be begun last."""
    slow = {item.path for item in items if any(item.iter_markers("slow")) or any(item.iter_markers("browser"))}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes that share work come from one that has imported torch and the rest, once for all tests.

    Each is a process of its own all the same; spawned ones, which import all by themselves, are tried in
    tests/base/test_processes.py.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["carblib.stages.pseudo_masks"])
    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda method: context)


@pytest.fixture(scope="session")
def random_clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict in OpenAI's format: ViT, patch 8, width 128, 4 layers, 64 px, 128 dimensions, random weights."""
    path = tmp_path_factory.mktemp("clip") / "random_clip.pt"
    torch.save(tiny_clip().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def random_clip(random_clip_file: Path) -> ClipModel:
    """The same, loaded. Tests must not change it."""
    return load_clip(str(random_clip_file))


@pytest.fixture(scope="session")
def random_resnet_clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    """A tiny CLIP with a ResNet image tower, random weights. Tests must not change it."""
    path = tmp_path_factory.mktemp("clip") / "random_resnet.pt"
    torch.save(tiny_clip((1, 1, 1, 1), 8).state_dict(), path)
    return load_clip(str(path))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project that the explorer's tests look at."""
    with explorer_home(tmp_path_factory.mktemp("home")) as root:
        yield root


@pytest.fixture(scope="module")
def explorer(home: Path) -> Explorer:
    """Its explorer. Tests must not change it."""
    return Explorer(tiny_params())
