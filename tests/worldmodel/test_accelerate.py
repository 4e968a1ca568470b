"""Devices, threads and precision."""

from __future__ import annotations

import pytest
import torch

from worldmodel.accel.devices import autocast, pick_device, set_threads


def test_auto_takes_a_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    assert pick_device("cpu").type == "cpu"


def test_a_device_that_torch_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Unknown device 'gpu'. Allowed: auto, cpu, cuda"):
        pick_device("gpu")


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="'cuda:1' is not there: 1 CUDA GPUs are visible"):
        pick_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="'cuda' is not there: 0 CUDA GPUs are visible"):
        pick_device("cuda")


def test_threads_are_set_or_left_alone() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == torch.get_num_threads() == 1
        assert set_threads(0) == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_cpu_computes_in_float32(precision: str) -> None:
    with autocast(torch.device("cpu"), precision):
        out = torch.ones(2, 2) @ torch.ones(2, 2)
    assert out.dtype == torch.float32


def test_an_unknown_precision_is_an_error_on_every_device() -> None:
    with pytest.raises(ValueError, match=r"Unknown precision 'fp8'. Known: bfloat16, float32."):
        autocast(torch.device("cpu"), "fp8")
