"""A whole update with Triton's kernels, against one with the plain definitions of all of them.

`tests/worldmodel/test_gpu.py` runs this file in a process of its own; see `gpu_doubles`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from agents.dreamer import Dreamer, DreamerConfig
from tests.model_batches import SPECS, random_batch, scramble, tiny
from tests.recorded_ops import Recorder
from tests.worldmodel.gpu_doubles import DEVICE, launched, pretend
from worldmodel.accel import fused
from worldmodel.optim import OptimConfig
from worldmodel.rssm import scan
from worldmodel.rssm.gpu import Launches

KINDS: dict[str, dict[str, Any]] = {
    "image": {},
    "mixed": {"latent": "gaussian", "centre_images": True},
}


def make(kind: str) -> Dreamer:
    torch.manual_seed(0)
    config = DreamerConfig(
        batch_size=2,
        batch_length=4,
        horizon=2,
        model=tiny(**KINDS[kind]),
        optim=OptimConfig(lr=1e-3, warmup=0),
        precision="float32",
    )
    agent = Dreamer(SPECS[kind], config, torch.device(DEVICE))
    scramble(agent.module, scale=0.1)
    return agent


def update(kind: str, count: int = 1 if DEVICE == "cpu" else 2) -> dict[str, Tensor]:
    """Metrics and weights after so many updates."""
    agent, told = make(kind), {}
    for seed in range(count):
        batch = random_batch(agent.spec, 2, 4, seed).to(agent.device)
        metrics, states = agent.train_on(batch)
        told |= {f"{name} {seed}": value for name, value in metrics.items()}
        told |= {f"{name} {seed}": value for name, value in states._asdict().items()}
    return told | {name: value.clone() for name, value in agent.module.named_parameters()}


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(self: Launches, out: Tensor) -> Tensor:
        """All at once it would be other numbers than those of the definition."""
        for step in out.view(-1, *out.shape[-3:]):
            step.normal_() if self.gaussian else step.uniform_()
        return out

    if DEVICE == "cpu":
        pretend(monkeypatch)
    monkeypatch.setattr(Launches, "noise", noise)


@pytest.mark.parametrize("kind", ["image", pytest.param("mixed", marks=pytest.mark.slow)])
def test_an_update_is_that_of_the_definitions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(monkeypatch) as names:
        found = update(kind)
    assert {"norm_silu_back", "image_loss", "two_hot_log_prob_back", "gru", "embed_back"} <= {
        *names
    }
    for module in (fused, scan):
        monkeypatch.setattr(module, "on_gpu", lambda *tensors: False)
    with launched(monkeypatch) as names:
        expected = update(kind)
    assert names == []
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_in_bfloat16_an_update_finds_nearly_the_same_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nearly: rounding flips some of the draws."""
    exact = update("image", 1)
    half = torch.autocast(DEVICE, torch.bfloat16)
    monkeypatch.setattr("agents.dreamer.agent.autocast", lambda device, precision: half)
    rounded = update("image", 1)
    for name, value in exact.items():
        if name.startswith("loss/"):
            torch.testing.assert_close(rounded[name], value, rtol=0.05, atol=0.02, msg=name)
    assert any(not torch.equal(rounded[name], value) for name, value in exact.items())


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU's own recording fails where this would")
def test_nothing_is_read_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make("image")
    batch = random_batch(agent.spec, 2, 4)
    agent.train_on(batch)  # constants are made at the first call
    with launched(monkeypatch, run=False) as names, Recorder() as recorder:
        agent._learn(batch)
    assert names
    assert recorder.calls
