"""Dreamer on a frozen world model: what stays, what learns, and where its dreams begin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from agents.base import parameters_count
from agents.dreamer import Dreamer, DreamerConfig
from agents.dreamer.gradient import GRADIENTS
from tests.agents.test_dreamer import filled
from tests.model_batches import SPECS, random_batch, scramble, tiny
from worldmodel.config import ConfigError
from worldmodel.optim import OptimConfig
from worldmodel.replay import Replay, ReplayConfig, RowIndex
from worldmodel.rssm.state import LatentState

CPU = torch.device("cpu")


def make(kind: str = "image", **overrides: Any) -> Dreamer:
    torch.manual_seed(0)
    model = tiny(**{"centre_images": True, **overrides.pop("model", {})})
    settings = {"batch_size": 4, "batch_length": 6, "horizon": 3, "freeze_model": True} | overrides
    optim = OptimConfig(lr=1e-3, warmup=0)
    agent = Dreamer(SPECS[kind], DreamerConfig(**settings, model=model, optim=optim), CPU)
    scramble(agent.module, scale=0.1)
    return agent


def all_rows(replay: Replay) -> RowIndex:
    count = int(replay.counts[0])
    return RowIndex(np.arange(replay.num_envs), np.zeros(replay.num_envs, np.int64), count)


def states_at(agent: Dreamer, replay: Replay, index: RowIndex) -> LatentState:
    return agent.model.unpack(replay.gather(index, columns=agent.columns).columns)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_updates_move_actor_and_critic_alone(gradient: str) -> None:
    agent = make(actor_gradient=gradient)
    replay = filled(agent)
    agent.prepare(replay)
    before = {k: v.clone() for k, v in agent.module.named_parameters()}
    before |= {k: v.clone() for k, v in agent.module.named_buffers()}
    stored = states_at(agent, replay, all_rows(replay))
    for _ in range(3):
        metrics = agent.update(replay)
    after = dict(agent.module.named_parameters()) | dict(agent.module.named_buffers())
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"actor", "critic", "slow_critic"} <= moved
    assert "model" not in moved  # the centre of the images included
    assert {name.split(".")[0] for name in agent.optim.names} == {"actor", "critic"}
    assert {k for k in metrics if k.startswith("loss/")} == {
        "loss/actor", "loss/critic", "loss/replay_value", "loss/total",
    }  # fmt: skip
    for ours, theirs in zip(stored, states_at(agent, replay, all_rows(replay)), strict=True):
        assert torch.equal(ours, theirs)


def test_prepared_states_follow_from_each_other() -> None:
    """Every stored recurrent state is the core's, from the stored state before and the action."""
    agent = make()
    replay = filled(agent, steps=90)  # longer than a chunk
    agent.prepare(replay)
    batch = replay.gather(all_rows(replay))
    states = states_at(agent, replay, all_rows(replay))
    assert batch.is_first.any(1).all()
    assert not batch.is_first.all()
    with torch.no_grad():
        for t in range(90):
            before = states.map(lambda x, t=t: x[:, t - 1] if t else torch.zeros_like(x[:, 0]))
            first = batch.is_first[:, t]
            before = LatentState(
                before.deter.masked_fill(first[:, None], 0),
                before.stoch.masked_fill(first[:, None, None], 0),
            )
            action = batch.action[:, t].masked_fill(first[:, None], 0)
            deter = agent.model.core.recur(before, agent.model.core.embed_action(action))
            assert torch.allclose(states.deter[:, t], deter, atol=2e-3), t


def test_an_episode_without_its_beginning_starts_from_nothing() -> None:
    agent = make("vector")
    replay = Replay(agent.spec, ReplayConfig(capacity=8), 1, agent.columns)
    rows = random_batch(agent.spec, 1, 12)
    for t in range(12):  # one episode, of which the last 8 rows are left
        names = ("action", "reward", "is_first", "is_last", "is_terminal")
        row: dict[str, Any] = {k: getattr(rows, k)[:, t].numpy() for k in names}
        replay.add(row | {k: v[:, t].numpy() for k, v in rows.obs.items()})
    agent.prepare(replay)
    start = RowIndex(np.zeros(1, np.int64), np.array([12 - len(replay)]), 1)
    with torch.no_grad():
        nothing = agent.model.core.embed_action(torch.zeros(1, 2))
        deter = agent.model.core.recur(agent.model.initial(1), nothing)
    assert torch.allclose(states_at(agent, replay, start).deter[:, 0], deter, atol=2e-3)


def test_preparing_repeats_itself_and_draws_no_global_numbers() -> None:
    agent = make()
    one, other = filled(agent), filled(agent)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    agent.prepare(one)
    assert torch.equal(torch.rand(3), expected)
    agent.prepare(other)
    found = [states_at(agent, replay, all_rows(replay)) for replay in (one, other)]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_frozen_agent_goes_on_from_its_state() -> None:
    agent = make()
    replay = filled(agent)
    agent.prepare(replay)
    agent.update(replay)
    other = make()
    other.load_state_dict(agent.state_dict())
    batch = replay.sample(4, 6, columns=agent.columns)
    metrics = []
    for one in (agent, other):
        torch.manual_seed(3)
        metrics.append(one.train_on(batch)[0])
    assert all(torch.equal(metrics[0][k], metrics[1][k]) for k in metrics[0])
    for a, b in zip(agent.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_counts_only_what_learns_and_needs_stored_latents() -> None:
    frozen, free = make(), make(freeze_model=False)
    ours = sum(p.numel() for m in (frozen.actor, frozen.critic) for p in m.parameters())
    assert parameters_count(frozen) == ours < parameters_count(free)
    with pytest.raises(ConfigError, match=r"agent\.store_latents=true"):
        make(store_latents=False)


def test_an_ordinary_agent_prepares_nothing() -> None:
    agent = make(freeze_model=False)
    replay = filled(agent)
    agent.prepare(replay)
    with pytest.raises(ValueError, match="have no columns"):
        states_at(agent, replay, all_rows(replay))
