from __future__ import annotations

import pytest
import torch

from carblib.base.device import computing, sent, torch_device
from carblib.base.errors import CarbError


def test_a_missing_device_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto") == torch_device("cpu") == torch.device("cpu")
    with pytest.raises(CarbError, match="device: cuda"):
        torch_device("cuda")


def test_auto_is_cuda_where_there_is_any(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert torch_device("cpu") == torch.device("cpu") and torch.backends.cudnn.allow_tf32
    assert torch_device("auto") == torch_device("cuda") == torch.device("cuda")
    assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.allow_tf32, "float32 is float32"
    assert torch.get_float32_matmul_precision() == "highest"


def test_precision_is_a_word_for_all():
    matrix, cpu = torch.rand(3, 3), torch.device("cpu")
    with computing(cpu, "bf16-mixed"):
        assert (matrix @ matrix).dtype == torch.bfloat16
        with computing(cpu, "32-true"):
            assert (matrix @ matrix).dtype == torch.float32


def test_what_is_sent_to_cuda_goes_by_pinned_memory():
    class Told:
        device, pinned, calls = torch.device("cpu"), False, []

        def is_pinned(self):
            return self.pinned

        def pin_memory(self):
            self.calls.append("pinned")
            return self

        def to(self, device, non_blocking):
            self.calls.append((device.type, non_blocking))

    told = Told()
    sent(told, torch.device("cuda"))
    told.pinned = True
    sent(told, torch.device("cuda"))
    sent(told, torch.device("cpu"))
    assert told.calls == ["pinned", ("cuda", True), ("cuda", True), ("cpu", True)]
    tensor = torch.ones(2)
    assert sent(tensor, torch.device("cpu")) is tensor
