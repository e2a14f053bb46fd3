"""Fixtures that several test files share: tiny CLIP models of OpenAI's architecture with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from explorer_runs import explorer_home, tiny_params
from random_clip import tiny_clip

from carblib.clip_models import ClipModel, load_clip
from carblib.explore.explorer import Explorer


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
