from __future__ import annotations

import pytest
import torch

from carblib.base.device import torch_device
from carblib.base.errors import CarbError


def test_a_missing_device_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto") == torch_device("cpu") == torch.device("cpu")
    with pytest.raises(CarbError, match="device: cuda"):
        torch_device("cuda")


def test_auto_is_cuda_where_there_is_any(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_device("auto") == torch_device("cuda") == torch.device("cuda") != torch_device("cpu")
