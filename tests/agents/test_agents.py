"""Agents by name, trained ones from their folder, and the baseline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import agents
from agents.base import Policy, random_actions
from agents.dreamer import DreamerConfig
from agents.run.config import TrainConfig
from agents.run.train import train
from tests.agents.counting_agent import ENV, CountingAgent, CountingConfig
from worldmodel import checkpoint
from worldmodel.checkpoint import CheckpointError
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig, make_env
from worldmodel.replay import ReplayConfig
from worldmodel.rssm import ModelConfig
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

CPU = torch.device("cpu")
TINY = DreamerConfig(
    batch_size=2,
    batch_length=8,
    horizon=3,
    model=ModelConfig(deter=16, hidden=8, groups=2, classes=4, depth=8, units=8, mults=[1, 1, 1]),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short Dreamer run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = TrainConfig(
        run=str(folder),
        steps=40,
        train_ratio=4.0,
        log_every=10,
        eval_every=0,
        video_every=30,
        final_episodes=2,
        device="cpu",
        threads=1,
        env=EnvConfig("tests.envs_for_tests:LeftRightEnv", image_size=[32, 32]),
        replay=ReplayConfig(capacity=500),
        agent=TINY,
    )
    assert train(config, lambda text: None) == 0
    return folder


def test_a_run_leaves_its_pictures(trained: Path) -> None:
    for name in ("eval.mp4", "dream.png", "summary.json", "config.yaml"):
        assert (trained / name).stat().st_size > 100, name
    assert checkpoint.found(trained)
    assert list((trained / "videos").glob("dream_film_*.mp4"))
    assert list(trained.glob("events.out.tfevents.*"))


def test_four_lines_play_an_episode(trained: Path) -> None:
    policy = agents.load(trained, device="cpu")
    env = make_env(policy.env, seed=0)
    (obs, _), state, steps, ended = env.reset(), None, 0, False
    while not ended:
        action, state = policy.act(obs, state)
        assert env.action_space.contains(action)
        obs, _, terminated, truncated, _ = env.step(action)
        steps, ended = steps + 1, terminated or truncated
    assert steps == 8
    assert policy.model is policy.agent.model


def test_a_batch_is_its_single_observations(trained: Path) -> None:
    policy = agents.load(trained, device="cpu")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    torch.manual_seed(0)
    together, _ = policy.act({"image": images})
    assert together.shape == (3,)
    one, _ = policy.act({"image": images[0]})
    bare, _ = policy.act(images[0])
    assert one.shape == bare.shape == ()


def test_a_wrong_observation_is_explained(trained: Path) -> None:
    policy = agents.load(trained, device="cpu")
    with pytest.raises(ValueError, match=r"lacks the key 'image'. Given: \['picture'\]"):
        policy.act({"picture": np.zeros((32, 32, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"shape \(16, 32, 3\); allowed: \(32, 32, 3\)"):
        policy.act(np.zeros((16, 32, 3), np.uint8))
    for odd in (np.zeros((32, 32, 3)), np.zeros((32, 32, 3), np.int64)):
        with pytest.raises(ValueError, match=r"'image': type (float|int)64; uint8 needed"):
            policy.act(odd)
    with pytest.raises(ValueError, match="Unknown action mode 'greedy'"):
        policy.act(np.zeros((32, 32, 3), np.uint8), mode="greedy")


def test_load_explains_what_is_missing(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        agents.load(tmp_path)
    (tmp_path / "config.yaml").write_text((trained / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        agents.load(tmp_path)
    newest = checkpoint.found(trained)[0]
    (tmp_path / "checkpoints").mkdir()
    copy = tmp_path / "checkpoints" / newest.name
    copy.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        agents.load(tmp_path)
    copy.write_bytes(newest.read_bytes())
    text = (trained / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("deter: 16", "deter: 24"))
    with pytest.raises(CheckpointError, match=r"needed \[.*24.*\], checkpoint has \[.*16.*\]"):
        agents.load(tmp_path)


def test_clips_and_decodes_what_the_agent_chose() -> None:
    class Wild(CountingAgent):
        def act(self, obs, state=None, mode="sample"):  # type: ignore[no-untyped-def]
            return np.array([[5.0, -5.0]], np.float32), None, {}

    spec = EnvSpec({"count": ObsSpec("vector", (4,))}, ActionSpec("continuous", (2,)))
    policy = Policy(Wild(spec, CountingConfig(), CPU), spec, EnvConfig(id=ENV), CPU)
    action, _ = policy.act(np.zeros(4, np.float32))
    assert action.tolist() == [1.0, -1.0]


def test_unknown_agents_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"Unknown agent 'dreamr'. .*Did you mean 'dreamer'"):
        agents.agent_class("dreamr")
    with pytest.raises(ConfigError, match=r"no module 'nowhere.at_all'"):
        agents.agent_class("nowhere.at_all:Agent")
    with pytest.raises(ConfigError, match="has no 'Absent'"):
        agents.agent_class("agents.random:Absent")
    assert agents.agent_class("tests.agents.counting_agent:CountingAgent") is CountingAgent


def test_registered_agents_know_their_own_names() -> None:
    for name in agents.AGENTS:
        assert agents.agent_class(name).Config().name == name  # type: ignore[attr-defined]


@pytest.mark.parametrize("action", [ActionSpec("continuous", (3,)), ActionSpec("discrete", (2, 3))])
def test_random_actions_are_uniform(action: ActionSpec) -> None:
    spec = EnvSpec({"x": ObsSpec("vector", (1,))}, action)
    drawn = random_actions(spec, {}, 6000, np.random.default_rng(0))
    if action.kind == "continuous":
        assert np.abs(drawn).max() <= 1
        assert np.allclose(drawn.mean(0), 0, atol=0.03)
        assert np.allclose(drawn.var(0), 1 / 3, atol=0.02)
    else:
        assert np.allclose(drawn.mean(0), [0.5, 0.5, 1 / 3, 1 / 3, 1 / 3], atol=0.03)
        assert (drawn.sum(1) == 2).all()


def test_random_actions_respect_masks() -> None:
    spec = EnvSpec({"x": ObsSpec("vector", (1,))}, ActionSpec("discrete", (2, 3)))
    mask = np.array([[0, 1, 1, 0, 1]] * 500)
    drawn = random_actions(spec, {"action_mask": mask}, 500, np.random.default_rng(0))
    assert drawn.mean(0)[[0, 3]].tolist() == [0, 0]
    assert drawn.mean(0)[1] == 1
    assert 0.4 < drawn.mean(0)[2] < 0.6


def test_a_run_of_the_baseline_learns_nothing(tmp_path: Path) -> None:
    from agents.random import RandomConfig

    config = TrainConfig(
        run=str(tmp_path),
        steps=20,
        final_episodes=1,
        env=EnvConfig(id=ENV, kwargs={"length": 4}),
        replay=ReplayConfig(capacity=100),
        agent=RandomConfig(),
    )
    said: list[str] = []
    train(replace(config), said.append)
    assert "updates      0" in said[-1]
