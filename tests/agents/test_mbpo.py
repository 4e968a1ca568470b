"""MBPO: what is imagined and when, what a batch is made of, and what a run asks of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.dqn import DQNConfig
from agents.mbpo import MBPO, STALE, MBPOConfig
from agents.rollouts import RolloutConfig, branch, check_world
from agents.run.config import TrainConfig
from agents.sac import SACConfig
from tests.agents.small_runs import (
    check_exports_and_deploys,
    check_learns_offline,
    check_resumes,
    check_starts_from,
    check_trains_and_evaluates,
    filled_replay,
    observed,
    small_config,
)
from tests.model_batches import SPECS
from worldmodel import tree
from worldmodel.adam import AdamConfig
from worldmodel.config import ConfigError
from worldmodel.models.fitting import FitConfig
from worldmodel.models.gaussian import GaussianConfig
from worldmodel.models.oracle import CartPole, Pendulum
from worldmodel.types import MASK_KEY, ActionSpec, EnvSpec, ObsSpec

CPU = torch.device("cpu")
VECTOR = SPECS["vector"]
FLAGS = EnvSpec({"v": ObsSpec("vector", (5,))}, ActionSpec("discrete", (3,)))
MODEL = GaussianConfig(
    members=3, elites=2, layers=1, units=8, decay=[1e-5], particles="ts1",
    fit=FitConfig(epochs=2, batch_size=16),
)  # fmt: skip
ROLLOUTS = RolloutConfig(every=10, starts=12, schedule=[0, 1, 2, 2], epoch=20, real_share=0.25)


def settings(**changes: Any) -> MBPOConfig:
    base: dict[str, Any] = {
        "batch_size": 8, "model": MODEL, "rollouts": ROLLOUTS, "sac": SACConfig(units=8),
        "dqn": DQNConfig(units=8, layers=1),
    }  # fmt: skip
    return MBPOConfig(**{**base, **changes})


def make(spec: EnvSpec = VECTOR, seed: int = 0, **changes: Any) -> MBPO:
    torch.manual_seed(seed)
    return MBPO(spec, settings(**changes), CPU)


def right(obs: dict[str, Tensor]) -> Tensor:
    """The action 1 of two."""
    return torch.tensor([0.0, 1.0]).expand(len(obs["state"]), 2)


# Paths


def test_paths_end_where_the_episode_does() -> None:
    """True equations of the cart-pole, pushed to the right until it falls."""
    world, starts = CartPole(), {"state": 0.02 * torch.randn(6, 4)}
    starts["state"][0, 2] = 0.2  # nearly fallen: one step
    starts["state"][0, 3] = 2.0
    steps = [batch for batch, _ in branch(world, right, starts, 30, 0.9, RolloutConfig())]
    counts = [len(batch.reward) for batch in steps]
    assert counts[:2] == [6, 5]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) < 30  # all have fallen
    assert sum(int((batch.discount == 0).sum()) for batch in steps) == 6  # stored, then dropped
    for one, after in itertools.pairwise(steps):
        goes_on = one.discount > 0
        assert torch.equal(one.next_obs["state"][goes_on], after.obs["state"])
    assert all((batch.discount[batch.discount > 0] == 0.9).all() for batch in steps)


class Doubtful(Pendulum):
    """Unsure of what is fast."""

    uncertainty_unit = "speed"

    def uncertainty(self, state: Any, action: Tensor) -> Tensor:
        return state.values[..., 1].abs()


def test_paths_stop_where_the_world_is_unsure_and_pay_for_doubt() -> None:
    starts = {"state": torch.tensor([[-1.0, 0.0, 0.5], [-1.0, 0.0, 3.0], [0.0, 1.0, 1.9]])}
    still = lambda obs: torch.zeros(len(obs["state"]), 1)  # noqa: E731
    config = RolloutConfig(uncertainty_limit=2.0)
    steps = [batch for batch, _ in branch(Doubtful(), still, starts, 3, 0.9, config)]
    assert [len(batch.reward) for batch in steps] == [2, 1, 1]
    assert (steps[0].discount == 0.9).all()  # the value of its last state stands for the rest
    free, careful = (
        next(branch(Doubtful(), still, starts, 1, 0.9, RolloutConfig(pessimism=w)))[0]
        for w in (0.0, 2.0)
    )
    torch.testing.assert_close(free.reward - careful.reward, torch.tensor([1.0, 6.0, 3.8]))
    with pytest.raises(ConfigError, match="need a world that knows its uncertainty"):
        check_world(Pendulum(), config)


def test_what_is_not_finite_is_left_out() -> None:
    starts = {"state": torch.tensor([[-1.0, 0.0, 0.5], [-1.0, float("nan"), 0.0]])}
    still = lambda obs: torch.zeros(len(obs["state"]), 1)  # noqa: E731
    steps = list(branch(Pendulum(), still, starts, 2, 0.9, RolloutConfig()))
    assert [len(batch.reward) for batch, _ in steps] == [1, 1]
    assert steps[0][1]["rollout/nonfinite"] == 0.5


def test_the_length_grows_as_the_schedule_says() -> None:
    config = RolloutConfig(schedule=[20, 100, 1, 15], retain=2, starts=100)
    assert [config.length(1000 * e) for e in (0, 20, 26, 60, 100, 500)] == [1, 1, 2, 8, 15, 15]
    assert config.capacity(8) == 2 * 8 * 100 * 4
    assert RolloutConfig(schedule=[3, 3, 1, 5]).length(3000) == 1
    for schedule in ([1.0], [0.0, 1.0, 0.0, 5.0], [5.0, 1.0, 5.0, 1.0]):
        with pytest.raises(ConfigError, match=r"schedule is .* first epoch not after the last"):
            RolloutConfig(schedule=schedule)


# Updates


@pytest.mark.parametrize("learner", ["sac", "dqn"])
def test_a_batch_is_real_and_imagined(learner: str) -> None:
    spec = VECTOR if learner == "sac" else FLAGS
    agent, replay = make(spec, learner=learner), filled_replay(spec)
    metrics = agent.update(replay)
    assert metrics["model/rows"] == len(replay) - 2 * 8
    assert metrics["rollout/length"] == 2
    assert 12 < len(agent.pool) <= 24
    batch = agent._batch(replay)
    assert len(batch.reward) == 8
    real = replay.transitions(500).next_obs["v"]
    known = [bool((real == row).all(-1).any()) for row in batch.next_obs["v"]]
    assert known == [True] * 2 + [False] * 6  # int(0.25 x 8) are real
    assert all(np.isfinite(float(value)) for value in metrics.values())


def test_the_world_is_trained_as_often_as_the_setting_says() -> None:
    agent, replay = make(), filled_replay(VECTOR, num_envs=1)
    rows = observed(VECTOR, 1) | {
        "action": np.zeros((1, 2), np.float32), "reward": np.zeros(1, np.float32),
        "is_first": np.zeros(1, bool), "is_last": np.zeros(1, bool),
        "is_terminal": np.zeros(1, bool),
    }  # fmt: skip
    trained = []
    for step in range(25):
        trained.append("model/rows" in agent.update(replay) or step < 0)
        replay.add(rows)
    assert [i for i, one in enumerate(trained) if one] == [0, 10, 20]


def test_without_new_rows_paths_are_imagined_anew_and_the_world_stays() -> None:
    agent, replay = make(), filled_replay(VECTOR)
    agent.update(replay)
    agent._since = STALE - 1
    weights = agent.model.predictor.body.weights[0].clone()
    metrics = agent.update(replay)
    assert metrics["rollout/length"] == 2
    assert "model/rows" not in metrics
    assert torch.equal(agent.model.predictor.body.weights[0], weights)
    assert "rollout/length" not in agent.update(replay)


def test_it_acts_as_its_learner_and_its_state_is_the_world_s() -> None:
    agent, obs = make(), observed(VECTOR, 4)
    action, state, extras = agent.act(obs, mode="mode")
    np.testing.assert_array_equal(action, agent.learner.act(obs, mode="mode")[0])
    assert torch.equal(agent.model.decode(agent.world_state(state))["v"], torch.tensor(obs["v"]))
    evaluation = agent.evaluate(state)
    assert evaluation.value is not None
    assert evaluation.value.shape == (4,)
    assert evaluation.prior.mode().shape == (4, 2)
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    first = torch.ones(4, dtype=torch.bool)
    ticked, after = agent.tick()(tensors, agent.initial(4), first)
    np.testing.assert_allclose(ticked.detach().numpy(), action, atol=1e-6)
    assert torch.equal(after.values, state.values)
    assert extras == {}


@pytest.mark.parametrize(
    ("spec", "changes", "words"),
    [
        (VECTOR, {"learner": "ppo"}, "Unknown learner 'ppo'"),
        (VECTOR, {"learner": "dqn"}, "agent.learner=dqn needs one discrete action, but the actions "
         r"of this environment are continuous, 2 in \[-1, 1\]\. Set agent\.learner=sac\.$"),
        (FLAGS, {}, "agent.learner=sac needs continuous actions, but the actions of this "
         r"environment are discrete, 3\. Set agent\.learner=dqn\.$"),
        (SPECS["multidiscrete"], {}, "discrete, 2 x 3. No learner of agent=mbpo takes them: use"),
        (VECTOR, {"dqn": DQNConfig(n_step=3)}, "dqn.n_step is 3.*1 and 0"),
        (VECTOR, {"world": "rssm", "model": None}, "world 'rssm' must offer"),
        (VECTOR, {"model": GaussianConfig(members=1, elites=1),
                  "rollouts": RolloutConfig(pessimism=1.0)}, "need a world that knows"),
        (EnvSpec({**FLAGS.obs, MASK_KEY: ObsSpec("vector", (3,))}, FLAGS.action),
         {"learner": "dqn"}, "no world here knows which actions"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(spec: EnvSpec, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(spec, **changes)


# In a run


def config_of(folder: Path, learner: str = "sac", **changes: Any) -> TrainConfig:
    return small_config(
        folder, settings(learner=learner), "box" if learner == "sac" else "discrete", **changes
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mbpo") / "run"
    check_trains_and_evaluates(config_of(folder))
    return folder


@pytest.mark.parametrize("learner", ["sac", "dqn"])
def test_a_run_stopped_and_continued_is_the_same(tmp_path: Path, learner: str) -> None:
    config = config_of(tmp_path, learner)
    check_resumes(tmp_path, replace(config, env=replace(config.env, num_envs=2)))


def test_a_run_starts_from_another_one(tmp_path: Path, run: Path) -> None:
    check_starts_from(config_of(tmp_path), run)


def test_a_run_learns_from_a_recording(tmp_path: Path, run: Path) -> None:
    check_learns_offline(config_of(tmp_path), run)


@pytest.mark.slow
def test_it_is_exported_and_deployed(tmp_path: Path, run: Path) -> None:
    pytest.importorskip("onnxscript")
    check_exports_and_deploys(run, tmp_path)


def test_a_saved_agent_goes_on_as_it_would_have() -> None:
    agents_, replays = [make(seed=s) for s in (0, 1)], [filled_replay(VECTOR) for _ in range(2)]
    agents_[0].update(replays[0])
    replays[1].transitions(12, 1, 0.99), replays[1].transitions(2, 1, 0.99)  # the same draws
    agents_[1].load_state_dict(tree.to_plain(agents_[0].state_dict()))
    for _ in range(2):
        for one, replay in zip(agents_, replays, strict=True):
            one.update(replay)
    ours, theirs = (tree.to_plain(one.state_dict()) for one in agents_)
    for (name, a), (_, b) in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, name


def test_it_finds_the_best_action_of_a_bandit_from_few_rows() -> None:
    """Reward -(a - 0.6)^2 x 10 and no future; nine of ten transitions are imagined."""
    spec = EnvSpec({"v": ObsSpec("vector", (1,))}, ActionSpec("continuous", (1,)))
    replay = filled_replay(
        spec, 200, reward=lambda action: -10 * (action[:, 0] - 0.6) ** 2, terminal=True
    )
    fit = FitConfig(epochs=100, batch_size=32, lr=3e-3)
    model = replace(MODEL, units=32, layers=2, fit=fit)
    agent = make(
        spec, batch_size=64, model=model, sac=SACConfig(units=32, optim=AdamConfig(lr=1e-2)),
        rollouts=replace(ROLLOUTS, starts=1000, every=9999, schedule=[0, 1, 1, 1], real_share=0.1),
    )  # fmt: skip
    for _ in range(300):
        agent.update(replay)
    action = agent.act(observed(spec, 5), mode="mode")[0]
    np.testing.assert_allclose(action, 0.6, atol=0.2)  # the world's best is flat
