"""MPC: a learned world, a plan at every step, and what a run asks of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import agents
from agents.deploy.decision import Decision, Tally
from agents.deploy.inference import AgentEngine
from agents.mpc import MPC, MPCConfig
from agents.planning.cem import CEMConfig
from agents.planning.mcts import MCTSConfig
from agents.run.config import TrainConfig
from tests.agents.small_runs import (
    check_learns_offline,
    check_resumes,
    check_starts_from,
    check_trains_and_evaluates,
    live,
    observed,
    small_config,
)
from tests.agents.small_worlds import LineConfig
from tests.model_batches import SPECS
from tests.test_scripts import composed
from worldmodel.config import ConfigError
from worldmodel.rssm import ModelConfig
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

CPU = torch.device("cpu")
LINE, AVERAGE = (f"tests.agents.small_worlds:{name}" for name in ("LineWorld", "AverageWorld"))
MODEL = ModelConfig(
    deter=16, hidden=8, groups=2, classes=4, depth=2, units=8, blocks=2, bins=15, mults=[1, 1],
    layers=1,
)  # fmt: skip
CEM = CEMConfig(horizon=3, iterations=2, candidates=8, elites=3)
TREE = MCTSConfig(simulations=4, rollout=2)
VECTOR = EnvSpec({"v": ObsSpec("vector", (5,))}, ActionSpec("continuous", (2,)))


def settings(**changes: Any) -> MPCConfig:
    base: dict[str, Any] = {"batch_size": 4, "batch_length": 5, "model": MODEL, "cem": CEM}
    return MPCConfig(**{**base, "mcts": TREE, **changes})


def small(folder: Path, agent: MPCConfig, actions: str = "box", **more: Any) -> TrainConfig:
    ratio = agent.batch_size * agent.batch_length / 2
    return small_config(folder, agent, actions, train_ratio=ratio, **more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mpc") / "run"
    live(small(folder, settings()))
    return folder


def test_a_run_trains_and_evaluates(tmp_path: Path) -> None:
    check_trains_and_evaluates(small(tmp_path / "run", settings()))
    assert '"plan/model_steps": 48' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_deployed_agent_says_how_it_planned(trained: Path) -> None:
    policy = agents.load(trained)
    engine, tally = AgentEngine(policy.agent), Tally(0.01, 0.005)
    obs = {
        key: np.zeros((1, *one.shape), np.uint8 if one.kind == "image" else np.float32)
        for key, one in policy.spec.obs.items()
    }
    action = np.zeros((1, policy.spec.action.size), np.float32)
    engine.step(obs, engine.initial(1), np.ones(1, bool), action)
    assert engine.search["model_steps"] == 48
    some = Decision(action[0], action[0], "policy", "ok", 0.001, 0, search=engine.search)
    tally.add([some])
    tally.add([replace(some, search={**engine.search, "model_steps": 0.0})])
    assert tally.summary()["search"]["model_steps"] == 48
    assert tally.summary()["unplanned"] == 1


@pytest.mark.parametrize(
    ("agent", "actions"),
    [
        (settings(), "box"),
        (settings(planner="mcts", noise=0.2), "discrete"),
        (settings(world=LINE, model=LineConfig()), "box"),
        (settings(world=AVERAGE, model=LineConfig(rate=0.3)), "box"),
    ],
    ids=["rssm, cem", "rssm, mcts", "own world", "own world that fits itself"],
)
def test_a_stopped_run_continues_to_the_bit(tmp_path: Path, agent: MPCConfig, actions: str) -> None:
    check_resumes(tmp_path, small(tmp_path, agent, actions))


def test_a_run_starts_from_another_or_a_recording(trained: Path, tmp_path: Path) -> None:
    check_starts_from(small(tmp_path / "next", settings()), trained)
    check_learns_offline(small(tmp_path / "offline", settings()), trained)


@pytest.mark.parametrize("name", ["mixed", "multidiscrete"])
def test_observations_and_actions_of_all_kinds(name: str) -> None:
    spec = SPECS[name]
    agent = MPC(spec, settings(), CPU)
    state = agent.initial(3)
    for seed in range(2):
        action, state, _ = agent.act(observed(spec, 3, seed), state)
        assert action.shape == (3, spec.action.size)
        assert (action.sum(-1) == len(spec.action.sizes)).all()


def test_the_world_s_settings_come_with_its_name(trained: Path) -> None:
    words = ("agent=mpc", "experiment=none", "env.id=X")
    given = composed(*words, f"world={LINE}", "agent.model.rate=0.25").agent
    assert (given.world, given.model) == (LINE, LineConfig(0.25))
    assert composed(*words, "size=1m").agent.model.deter == 512
    # A saved run has them as plain values.
    assert MPCConfig(world=LINE, model={"rate": 0.75}).model == LineConfig(0.75)
    assert MPCConfig().model == ModelConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": "rsm"}, "Unknown world 'rsm'. Known: .*rssm.*'module:Class'"),
        ({"world": LINE}, "holds the settings of another world .*Name it as world="),
        ({"world": "tests.agents.small_runs:live"}, "is no world that learns"),
        ({"planner": "icm"}, "Did you mean 'icem'"),
        ({"noise": -1.0}, "noise is -1.0"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_what_cannot_work_is_said_at_the_start() -> None:
    with pytest.raises(ConfigError, match="mcts searches discrete actions"):
        MPC(VECTOR, settings(planner="mcts"), CPU)
    nothing = replace(settings(model=None), world="tests.agents.small_worlds:NoWorld", model=None)
    with pytest.raises(ConfigError, match="must be a Dynamics"):
        MPC(VECTOR, nothing, CPU)
