"""Every world means the same: what it answers, what it may be asked, and what a plan is worth in
it; and the true equations are those of the environments."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.model_batches import SPECS, tiny
from worldmodel import dream, tree
from worldmodel.capabilities import (
    Decodes,
    Expects,
    Features,
    Learns,
    Masks,
    Packs,
    Relabels,
    Surprises,
    Uncertain,
)
from worldmodel.dream import DreamEnv
from worldmodel.envs import EnvConfig, env_spec, make_env
from worldmodel.envs.table import from_outcomes, world_table
from worldmodel.models.ensemble import EnsembleConfig
from worldmodel.models.oracle import CartPole, Pendulum, TableOracle
from worldmodel.models.tabular import TabularConfig, TabularModel
from worldmodel.rssm import HeadConfig, LatentState, WorldModel
from worldmodel.types import ActionSpec, Batch, Dynamics, EnvSpec, ObsSpec

# A corridor of four places. Action 1 goes on, action 0 stays; a step on is worth 1, and the step
# into the last place 5, and it ends the episode.
PLACES, DISCOUNT, HORIZON = 4, 0.8, 4
SPEC = EnvSpec({"place": ObsSpec("discrete", (PLACES,), (PLACES,))}, ActionSpec("discrete", (2,)))


def outcome(place: int, action: int) -> list[tuple[float, int, float, bool]]:
    after = min(place + action, PLACES - 1)
    last = after == PLACES - 1
    return [(1.0, after, (5.0 if last else 1.0) * (after > place), last)]


TABLE = from_outcomes(PLACES, 2, outcome, np.eye(PLACES)[0])
PLANS = torch.eye(2)[torch.tensor(list(product(range(2), repeat=HORIZON)))]  # [16, H, 2]


def objective(world: Any, plans: Tensor) -> Tensor:
    """What a planner maximises: discounted reward, as far as the episode goes on."""
    count = len(plans)
    obs = {"place": torch.eye(PLACES)[torch.zeros(count, dtype=torch.long)]}
    first = torch.ones(count, dtype=torch.bool)
    state = world.observe(world.initial(count), obs, torch.zeros(count, 2), first)
    total, weight = torch.zeros(count), torch.ones(count)
    for h in range(plans.shape[1]):
        state, reward, cont = world.step(state, plans[:, h])
        total = total + weight * reward
        weight = weight * world.discount * cont
    return total


def by_hand(plan: Tensor) -> float:
    """The same, along one plan of the corridor."""
    place, total = 0, 0.0
    for h, action in enumerate(plan.argmax(-1).tolist()):
        ((_, place, reward, ends),) = outcome(place, action)
        total += DISCOUNT**h * reward
        if ends:
            break
    return total


class Eyes(nn.Module):
    """An encoder that hands on what it sees."""

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return obs["place"]


class Corridor(nn.Module):
    """A core that knows the corridor. deter: the place, and the reward of having come there."""

    def state(self, place: Tensor, reward: Tensor) -> LatentState:
        deter = torch.cat([place, reward.unsqueeze(-1)], -1)
        return LatentState(deter, torch.ones(*reward.shape, 1, 1))

    def initial(self, batch_size: int) -> LatentState:
        return self.state(torch.zeros(batch_size, PLACES), torch.zeros(batch_size))

    def observe(self, state: LatentState, seen: Tensor, *_: Tensor) -> tuple[LatentState, None]:
        return self.state(seen, torch.zeros(seen.shape[:-1])), None

    def step(self, state: LatentState, action: Tensor) -> LatentState:
        places = state.deter[:, :PLACES].argmax(-1).tolist()
        steps = [outcome(*pair)[0] for pair in zip(places, action.argmax(-1).tolist(), strict=True)]
        after = torch.eye(PLACES)[torch.tensor([new for _, new, _, _ in steps])]
        return self.state(after, torch.tensor([reward for *_, reward, _ in steps]))


def corridor() -> WorldModel:
    """A WorldModel that is right: encoder and core know the corridor, and the heads' weights are
    set by hand. The continue head has its discount in it, as if it had been learned."""
    heads = {"reward": HeadConfig("reward", "mse", 0), "cont": HeadConfig("cont", "bernoulli", 0)}
    sizes = {"deter": PLACES + 1, "groups": 1, "classes": 1, "blocks": 1}
    model = WorldModel(SPEC, tiny(**sizes, heads=heads, discount_horizon=5))
    assert model.discount == DISCOUNT
    model.encoder, model.core = Eyes(), Corridor()  # type: ignore[assignment]
    reward, cont = (model.heads[name].out for name in ("reward", "cont"))
    for linear in (reward, cont):
        linear.weight.zero_()
        linear.bias.zero_()
    reward.weight[0, PLACES] = 1.0
    cont.bias.fill_(math.log(DISCOUNT / (1 - DISCOUNT)))
    cont.weight[0, PLACES - 1] = -100.0
    return model


@torch.no_grad()
def test_one_plan_is_worth_the_same_in_the_rssm_the_table_and_the_true_equations() -> None:
    right = torch.tensor([by_hand(plan) for plan in PLANS])
    oracle = TableOracle(SPEC, TABLE, DISCOUNT)
    table = TabularModel(SPEC, TabularConfig(discount=DISCOUNT))
    for place, action in product(range(PLACES - 1), range(2)):
        ((_, after, reward, ends),) = outcome(place, action)
        table.record(place, action, reward, after, ends)
    # After an end a table knows nothing: weights are 0 there, but the step must be possible.
    for action in range(2):
        table.record(PLACES - 1, action, 0.0, PLACES - 1, True)
    torch.testing.assert_close(objective(oracle, PLANS), right)
    torch.testing.assert_close(objective(table, PLANS), right)
    torch.testing.assert_close(objective(corridor(), PLANS), right)
    assert right.max() == pytest.approx(1 + DISCOUNT + DISCOUNT**2 * 5)


PLAIN = {Dynamics, Decodes, Features}
RSSM = PLAIN | {Expects, Learns, Masks, Packs, Relabels, Surprises}
ALL = (*RSSM, Uncertain)


@pytest.mark.parametrize(
    ("make", "offers"),
    [
        (lambda: WorldModel(SPECS["mixed"], tiny()), RSSM),
        (
            lambda: WorldModel(SPECS["mixed"], tiny(ensemble=EnsembleConfig(3, units=8))),
            RSSM | {Uncertain},
        ),
        (lambda: TabularModel(SPEC), PLAIN),
        (lambda: TableOracle(SPEC, TABLE), PLAIN),
        (Pendulum, PLAIN),
        (CartPole, PLAIN),
    ],
    ids=["rssm", "rssm with an ensemble", "table", "oracle", "pendulum", "cart pole"],
)
def test_a_world_offers_what_it_can_do(make: Any, offers: set[Any]) -> None:
    world = make()
    assert {protocol for protocol in ALL if isinstance(world, protocol)} == offers
    state = world.initial(3)
    assert tree.batch_size(state) == 3
    assert world.feat(state).shape == (3, world.feat_size)
    assert world.feat(state).abs().max() <= world.feat_bound
    assert 0 < world.discount <= 1
    if Uncertain in offers:
        action = torch.zeros(3, world.spec.action.size)
        assert world.uncertainty(state, action).shape == (3,)
        assert isinstance(world.uncertainty_unit, str)


@pytest.mark.parametrize(
    ("name", "world"), [("Pendulum-v1", Pendulum()), ("CartPole-v1", CartPole())]
)
def test_the_equations_are_those_of_the_environment(name: str, world: Any) -> None:
    env = make_env(EnvConfig(id=name, pixels=False, state=True))
    spec = env_spec(env)
    assert spec == world.spec
    env.action_space.seed(0)
    obs, _ = env.reset(seed=1)
    state = world.initial(1)
    for t in range(40):
        tensors = {"state": torch.from_numpy(obs["state"])[None]}
        nothing = torch.zeros(1, spec.action.size), torch.tensor([t == 0])
        state = world.observe(state, tensors, *nothing)
        native = env.action_space.sample()
        action = torch.from_numpy(spec.action.encode(native))[None]
        prediction = world.step(state, action)
        obs, reward, terminated, _, _ = env.step(native)
        shown = world.decode(prediction.state)["state"][0]
        torch.testing.assert_close(shown, torch.from_numpy(obs["state"]), atol=1e-4, rtol=1e-4)
        assert float(prediction.reward) == pytest.approx(float(reward), abs=1e-4)
        assert float(prediction.cont) == float(not terminated)
        if terminated:
            break
    env.close()


def test_the_oracle_of_a_table_draws_outcomes_as_often_as_they_come() -> None:
    config = EnvConfig(id="FrozenLake-v1", pixels=False)
    env = make_env(config)
    spec, table = env_spec(env), world_table(config)
    env.close()
    world = TableOracle(spec, table)
    torch.manual_seed(0)
    obs = {world.key: torch.eye(16)[torch.full((6000,), 14)]}
    state = world.observe(world.initial(6000), obs, *[torch.zeros(6000)] * 2)
    after, reward, cont = world.step(state, torch.eye(4)[torch.full((6000,), 2)])  # to the right
    places = after.place.argmax(-1).bincount(minlength=16) / 6000
    assert places[[14, 15, 10]].tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert torch.equal(reward, (after.place.argmax(-1) == 15).float())
    assert torch.equal(cont, 1 - reward)
    with pytest.raises(ValueError, match="Call observe first"):
        world.step(world.initial(1), torch.eye(4)[:1])
    with pytest.raises(ValueError, match="phases, states and actions"):
        TableOracle(SPEC, table)


@pytest.mark.parametrize("world", [Pendulum(), CartPole(), TableOracle(SPEC, TABLE)])
def test_any_world_can_be_dreamt_in(world: Any) -> None:
    spec = SPEC if isinstance(world, TableOracle) else world.spec
    key, size = next((k, o.shape[0]) for k, o in spec.obs.items())
    start = dream.rows_of_frames(spec, {key: np.eye(size, dtype=np.float32)[:1]})
    env = DreamEnv(world, spec, start, horizon=3)
    obs, info = env.reset(seed=0)
    assert obs in env.observation_space
    assert info["cont"] == 1.0
    env.action_space.seed(0)
    obs, reward, _, _, info = env.step(env.action_space.sample())
    assert obs in env.observation_space
    assert np.isfinite(reward)
    assert info["cont"] in (0.0, 1.0)
    rows = Batch(
        {key: torch.eye(size)[:1].expand(1, 4, -1)},
        torch.eye(spec.action.size)[:1].expand(1, 4, -1),
        *[torch.zeros(1, 4)],
        *[torch.zeros(1, 4, dtype=torch.bool)] * 3,
    )
    loop = dream.open_loop(world, rows, context=2)
    assert loop.shown[key].shape == (1, 4, size)
    assert ((loop.cont >= 0) & (loop.cont <= 1)).all()
