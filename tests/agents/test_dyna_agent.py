"""The Dyna family in the training loop: every row once and in order, resumed exactly, by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import agents
from agents.dyna import Dyna, Dyna2Config, DynaConfig, DynaQConfig, PrioritizedSweepingConfig
from agents.dyna.experiment import Experiment
from agents.run import cli
from agents.run.config import TrainConfig
from agents.run.train import train
from agents.run.trainer import Trainer
from tests.test_scripts import command, composed
from worldmodel import checkpoint
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig, env_spec, make_env
from worldmodel.envs.grid import GRIDS, GridWorld
from worldmodel.models.tables import TIME, random_state
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

CPU = torch.device("cpu")
SPEC = EnvSpec({"state": ObsSpec("discrete", (54,), (54,))}, ActionSpec("discrete", (4,)))
SILENT = lambda text: None  # noqa: E731


def row(state: int, action: int = -1, reward: float = 0.0, **flags: bool) -> dict[str, Any]:
    """One row of one environment as replay takes it; action -1 begins an episode."""
    hot = np.zeros((1, 4), np.float32)
    if action >= 0:
        hot[0, action] = 1
    told = {"is_first": action < 0, "is_last": False, "is_terminal": False, **flags}
    return {
        "state": np.eye(54, dtype=np.float32)[[state]],
        "action": hot,
        "reward": np.array([reward], np.float32),
        **{name: np.array([value]) for name, value in told.items()},
    }


def run_config(folder: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        run=str(folder), steps=160, train_ratio=1.0, log_every=40, eval_every=0, video_every=0,
        final_episodes=1, eval_envs=1, device="cpu", threads=1,
        env=EnvConfig("dyna_maze", suite="grid", pixels=False, time_limit=50),
        replay=ReplayConfig(capacity=2000), agent=DynaQConfig(),
    )  # fmt: skip
    return replace(base, **changes)


def live(config: TrainConfig) -> None:
    """Train without the evaluation at the end."""
    trainer = Trainer(config, SILENT)
    try:
        trainer.run()
    finally:
        trainer.close()


@pytest.mark.parametrize("config", [
    DynaQConfig(n=9), PrioritizedSweepingConfig(), Dyna2Config(n=5, table="counts"),
], ids=lambda c: c.name)  # fmt: skip
def test_the_agent_is_the_experiment(config: DynaConfig) -> None:
    """Fed with the same steps through replay, it ends with the same bits."""
    world = GridWorld(GRIDS["dyna_maze"])
    run = Experiment(world.table(), config, 4, time_limit=300).advance(1500)
    agent, replay = Dyna(SPEC, config, CPU), Replay(SPEC, ReplayConfig(capacity=100), 1)
    agent.learner.memory.rng[:] = random_state([4, 0])
    state, length = world.reset(seed=0)[0], 0
    replay.add(row(state))
    agent.update(replay)
    rewards = []
    while True:
        obs = {"state": np.eye(54, dtype=np.float32)[[state]]}
        action = int(agent.act(obs)[0].argmax())
        state, reward, terminal, _, _ = world.step(action)
        rewards.append(reward)
        length += 1
        last = terminal or length == 300
        replay.add(row(state, action, reward, is_last=last, is_terminal=terminal))
        metrics = agent.update(replay)
        if len(rewards) == 1500:
            break
        if last:
            state, length = world.reset()[0], 0
            replay.add(row(state))
            agent.update(replay)
    assert np.array_equal(rewards, run.rewards)
    assert np.array_equal(agent.q, run.q)
    assert metrics["known_pairs"] == run.model.known_pairs
    assert agent.update(replay) == {}  # nothing new


def test_reads_several_environments_once_and_in_turn() -> None:
    agent = Dyna(SPEC, DynaQConfig(n=0, alpha=1.0, gamma=0.0), CPU)
    replay = Replay(SPEC, ReplayConfig(capacity=100), 2)

    def both(first: dict[str, Any], second: dict[str, Any]) -> None:
        replay.add({k: np.concatenate([first[k], second[k]]) for k in first})

    both(row(10), row(20))
    assert agent.update(replay).get("td_error") is None  # two beginnings, and no step
    both(row(11, 1, 0.5), row(11, 2, 0.25))
    both(row(12, 1, 1.0), row(12, 1, 2.0, is_last=True))  # both leave 11 by action 1
    told = agent.update(replay)
    assert told["td_error"] == pytest.approx((0.5 + 0.25 + 1.0 + 1.0) / 4)
    assert agent.q[11, 1] == 2.0  # the second environment's came last
    assert agent.q[20, 2] == 0.25
    both(row(13, 0, 3.0), row(5))
    both(row(14, 0, 4.0), row(6, 3, 5.0))
    agent.update(replay)
    assert agent.q[12].tolist() == [3.0, 0, 0, 0]  # the new episode does not begin in 12
    assert agent.q[5, 3] == 5.0
    assert agent.model.tables.counters[TIME] == 7
    outcomes = [agent.model.outcomes(*pair) for pair in ((11, 1), (10, 1), (12, 0), (12, 3))]
    assert [len(found) for found in outcomes] == [1, 1, 1, 0]


def test_rows_that_were_lost_are_missed() -> None:
    agent, replay = Dyna(SPEC, DynaQConfig(), CPU), Replay(SPEC, ReplayConfig(capacity=3), 1)
    for i in range(5):
        replay.add(row(i) if i == 0 else row(i, 0))
    with pytest.raises(ValueError, match=r"raise replay.capacity"):
        agent.update(replay)
    again, fresh = Dyna(SPEC, DynaQConfig(), CPU), Replay(SPEC, ReplayConfig(capacity=9), 1)
    fresh.add(row(0))
    again.update(fresh)
    with pytest.raises(ValueError, match=r"Go on with the replay"):
        again.update(Replay(SPEC, ReplayConfig(capacity=9), 1))


def test_planning_needs_something_to_plan_with() -> None:
    agent = Dyna(SPEC, DynaQConfig(alpha=1.0), CPU)
    with pytest.raises(ValueError, match="There is nothing to plan with"):
        agent.plan(10)
    agent.model.record([0, 1], [1, 1], [0.0, 1.0], [1, 2], [False, True])
    assert agent.plan(200) == 200
    assert agent.q[0, 1] == pytest.approx(0.95)
    with pytest.raises(ValueError, match=r"state is 54; it must lie in \[0, 54\)"):
        agent.plan(1, state=54)
    swept = Dyna(SPEC, PrioritizedSweepingConfig(), CPU)
    swept.model.record([0], [1], [1.0], [1], [True])
    assert swept.plan(10) == 0  # its queue is empty


def test_the_plain_learner_in_the_loop_is_the_compiled_one(tmp_path: Path) -> None:
    """The same run to the bit: what was drawn, learned, and known of the world."""
    configs = [Dyna2Config(n=5, table="counts", compiled=compiled) for compiled in (True, False)]
    runs = []
    for agent in configs:
        config = run_config(tmp_path / str(agent.compiled), agent=agent)
        live(config)
        runs.append(checkpoint.load(config.folder)["agent"])
    for key in ("model", "place"):
        assert _flat(runs[0][key]) == _flat(runs[1][key])
    compiled, plain = (run["memory"] for run in runs)
    assert torch.equal(compiled["q"], plain["q"].reshape(-1))
    assert torch.equal(compiled["rng"], plain["rng"])


@pytest.mark.parametrize("changes", [
    {},
    {"agent": PrioritizedSweepingConfig(compiled=False)},
    {"agent": Dyna2Config(n=8, table="counts"), "num_envs": 2, "id": "slippery_grid"},
    {"agent": PrioritizedSweepingConfig(), "id": "blocking_maze", "kwargs": {"change_after": 60}},
], ids=["dyna_q", "sweeping-plain", "dyna_2-two_envs", "sweeping-in_a_changing_maze"])  # fmt: skip
def test_a_continued_run_is_the_same_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    agent = changes.pop("agent", DynaQConfig())
    config = run_config(tmp_path / "whole", agent=agent)
    config = replace(config, env=replace(config.env, **changes))
    live(config)
    parts = replace(config, run=str(tmp_path / "parts"))
    for steps in (70, 110, 160):
        live(replace(parts, steps=steps))
    whole, again = (checkpoint.load(tmp_path / name)["agent"] for name in ("whole", "parts"))
    assert _flat(whole) == _flat(again)
    assert whole["memory"]["counters"][2] > 0 or agent.select == "prioritized"  # it planned
    assert whole["model"]["tables"]["counters"][TIME] >= 150


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {k: v for name in tree for k, v in _flat(tree[name], f"{path}.{name}").items()}
    return {path: tree.tolist() if isinstance(tree, torch.Tensor) else tree}


def test_load_plays_the_learned_policy(tmp_path: Path) -> None:
    env = EnvConfig("dyna_maze", suite="grid", pixels=False, time_limit=400)
    config = run_config(tmp_path, steps=3000, env=env, agent=DynaQConfig(n=30))
    live(config)
    policy = agents.load(tmp_path, device="cpu")
    assert isinstance(policy.agent, Dyna)
    world = make_env(policy.env, seed=0)
    (obs, _), steps, terminal = world.reset(), 0, False
    before = policy.agent.learner.memory.rng.copy()
    while not terminal and steps < 100:
        action, _ = policy.act(obs)
        obs, _, terminal, _, _ = world.step(action)
        steps += 1
    assert 14 <= steps <= 20
    assert policy.agent.learner.memory.rng == before  # looking changes nothing
    state = policy.model.observe(
        policy.model.initial(1), {"state": torch.eye(54)[[18]]}, torch.zeros(1, 4), torch.ones(1)
    )
    after = policy.model.step(state, torch.eye(4)[[1]])
    assert after.state.place.argmax() == 19
    assert after.cont == 1


def test_sampled_actions_explore_and_chosen_ones_are_greedy() -> None:
    agent = Dyna(SPEC, DynaQConfig(epsilon=0.5), CPU)
    agent.learner.q[:] = 0
    agent.learner.q[7, 2] = 1.0
    obs = {"state": np.eye(54, dtype=np.float32)[np.full(4000, 7)]}
    share = agent.act(obs)[0].mean(0)
    assert share == pytest.approx([0.125, 0.125, 0.625, 0.125], abs=0.03)
    assert agent.act(obs, mode="mode")[0].mean(0).tolist() == [0, 0, 1, 0]
    other = {"state": np.eye(54, dtype=np.float32)[np.full(4000, 8)]}
    assert agent.act(other, mode="mode")[0].mean(0) == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.parametrize(("env", "spec"), [
    (EnvConfig("Pendulum-v1", pixels=False), "vector"),
    (EnvConfig("dyna_maze", suite="grid"), "image"),
])  # fmt: skip
def test_worlds_without_a_table_are_refused(tmp_path: Path, env: EnvConfig, spec: str) -> None:
    with pytest.raises(ConfigError, match=rf"agent=dyna_q .*\({spec}\).*env.pixels=false"):
        train(run_config(tmp_path, env=env), SILENT)


@pytest.mark.parametrize(("name", "size", "options"), [
    ("dyna_maze", 54, ()), ("dyna_maze", 216, ("env.kwargs.resolution=2",)),
    ("blocking_maze", 54, ()), ("shortcut_maze", 54, ()), ("corridor_maze", 81, ()),
    ("slippery_grid", 63, ()), ("frozenlake", 16, ("env.kwargs.is_slippery=false",)),
    ("frozenlake8x8", 64, ()), ("taxi", 500, ()), ("cliffwalking", 48, ()),
])  # fmt: skip
def test_every_table_world_is_known_by_name(name: str, size: int, options: tuple[str, ...]) -> None:
    config = composed("agent=dyna_q", "experiment=none", f"env={name}", *options)
    env = make_env(config.env, seed=0)
    agent = agents.make(config.agent.name, env_spec(env), config.agent, CPU)
    assert isinstance(agent, Dyna)
    assert agent.q.shape[0] == size
    obs, _ = env.reset()
    action = agent.act({k: v[None] for k, v in obs.items()})[0]
    env.step(int(action.argmax()))
    env.close()


def test_short_commands_are_written_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["agent=dyna_q", "env=dyna_maze", "n=50"]
    assert cli.complete_words(words) == [*words[:2], "agent.n=50", "experiment=none"]
    own = ["agent=q_learning", "experiment=none", "steps=7", "agent.alpha=1"]
    assert cli.complete_words(own) == own
    assert cli.complete_words(["seed=1"]) == ["seed=1"]
    monkeypatch.chdir(tmp_path)
    code, said = command(
        monkeypatch, *words, "steps=40", "final_episodes=1", "run=r", "env.time_limit=20"
    )
    assert code == 0, said
    assert (tmp_path / "r" / "summary.json").is_file()
    code, said = command(monkeypatch, "agent=dyna_q", "n=-3", "run=s")
    assert code == 2
    assert said.splitlines()[-1] == "error: agent.n is -3; it must be at least 0."
