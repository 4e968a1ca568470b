"""The worked example of docs/ADD_AN_AGENT.md does what that page says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import agents
from agents.run.config import TrainConfig
from docs.examples.soft_q import SoftQ, SoftQConfig
from tests.agents.small_runs import (
    check_exports_and_deploys,
    check_learns_offline,
    check_resumes,
    check_starts_from,
    check_trains_and_evaluates,
    filled_replay,
    small_config,
)
from worldmodel.adam import AdamConfig
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

SPEC = EnvSpec({"v": ObsSpec("vector", (5,))}, ActionSpec("discrete", (3,)))


def config_of(folder: Path, **changes: Any) -> TrainConfig:
    return small_config(folder, SoftQConfig(batch_size=8, units=8), **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soft_q") / "run"
    check_trains_and_evaluates(config_of(folder))
    return folder


def test_it_is_named_by_its_module_and_short(run: Path) -> None:
    assert isinstance(agents.load(run).agent, SoftQ)
    source = Path(__file__).parents[2] / "docs" / "examples" / "soft_q.py"
    assert len(source.read_text().splitlines()) < 100


def test_it_does_all_that_a_run_can(tmp_path: Path, run: Path) -> None:
    check_resumes(tmp_path, config_of(tmp_path))
    check_starts_from(config_of(tmp_path / "warm"), run)
    check_learns_offline(config_of(tmp_path / "offline"), run)


def test_it_is_exported_and_deployed(tmp_path: Path, run: Path) -> None:
    pytest.importorskip("onnxscript")
    check_exports_and_deploys(run, tmp_path)


def test_it_learns_what_actions_are_worth() -> None:
    """Each action pays its number, and nothing follows."""
    torch.manual_seed(0)
    config = SoftQConfig(batch_size=32, optim=AdamConfig(lr=1e-2))
    agent = SoftQ(SPEC, config, torch.device("cpu"))
    replay = filled_replay(SPEC, 200, lambda action: action.argmax(-1), terminal=True)
    for _ in range(200):
        agent.update(replay)
    obs = {"v": np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)}
    assert agent.act(obs, mode="mode")[0].argmax(-1).tolist() == [2] * 20
    q = agent.q({"v": torch.as_tensor(obs["v"])})
    torch.testing.assert_close(q, torch.tensor([[0.0, 1.0, 2.0]]).expand(20, 3), rtol=0, atol=0.3)
