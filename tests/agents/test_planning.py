"""Planners: costs with known optima, and the faults that other planners have had."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.base import Evaluation
from agents.planning import PLANNERS, BoundsConfig, Planner, planner_class
from agents.planning.base import Meter
from agents.planning.cache import CacheConfig, CachedWorld
from agents.planning.imagine import Imagination
from agents.planning.space import ActionSpace, Sequences, coloured
from tests.model_batches import SPECS, random_state, scramble, tiny
from worldmodel.config import ConfigError
from worldmodel.distributions import Normal
from worldmodel.models.gaussian import Gaussian, GaussianConfig
from worldmodel.models.oracle import CartPole, Motion, Pendulum
from worldmodel.rssm import WorldModel
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec, Prediction

SEQUENCE = ("cem", "icem", "mppi", "shooting")
ONE = ActionSpec("continuous", (1,))
FOUR = ActionSpec("discrete", (4,))


class Place(NamedTuple):
    """x: [B, 1]."""

    x: Tensor


class Line:
    """x' = x + a for an action in [-1, 1]; each step costs (x' - goal)^2. It never ends."""

    discount, deterministic = 1.0, True

    def __init__(self, goal: float = 0.0) -> None:
        self.goal, self.rows = goal, 0

    def initial(self, batch_size: int) -> Place:
        return Place(torch.zeros(batch_size, 1))

    def observe(self, state: Place, obs: Any, action: Any, is_first: Any) -> Place:
        return Place(obs["x"])

    def step(self, state: Place, action: Tensor) -> Prediction[Place]:
        self.rows += len(action)
        x = state.x + action[:, :1]
        return Prediction(Place(x), -(x - self.goal).square().squeeze(-1), torch.ones(len(x)))


class Classes(Line):
    """Every class is worth `worth`, whatever came before; some may be forbidden."""

    def __init__(self, worth: list[float], mask: list[float] | None = None) -> None:
        super().__init__()
        self.worth = torch.tensor(worth)
        self.mask = None if mask is None else torch.tensor(mask)

    def step(self, state: Place, action: Tensor) -> Prediction[Place]:
        self.rows += len(action)
        return Prediction(state, action @ self.worth, torch.ones(len(action)))

    def action_mask(self, state: Place) -> Tensor | None:
        return None if self.mask is None else self.mask.expand(len(state.x), -1)


def make(name: str, action: ActionSpec = ONE, seed: int = 0, **settings: Any) -> Planner:
    """A small planner: quick, and good enough for one number."""
    cls = planner_class(name)
    small: dict[str, Any] = {"simulations": 60, "rollout": 3} if name == "mcts" else {
        "horizon": 3, "candidates": 200,
        "iterations": {"cem": 6, "icem": 4, "mppi": 6, "shooting": 1}[name],
        **({} if name == "shooting" else {"elites": 20}),
    }  # fmt: skip
    if name == "mppi":
        small |= {"gain": 20.0, "filter": 1.0, "fit_std": True}
    return cls(action, cls.Config(**{**small, **settings}), seed)


@pytest.mark.parametrize("name", SEQUENCE)
def test_a_known_optimum_of_a_continuous_action(name: str) -> None:
    """From x the best first action is -x, within the bounds: three environments at once."""
    state = Place(torch.tensor([[0.5], [-0.3], [4.0]]))
    plan = make(name).plan(Line(), state)
    near = 0.25 if name == "shooting" else 0.08
    assert plan.action.shape == (3, 1)
    assert torch.allclose(plan.action[:, 0], torch.tensor([-0.5, 0.3, -1.0]), atol=near)
    assert plan.action.abs().max() <= 1


@pytest.mark.parametrize("name", [*SEQUENCE, "mcts"])
def test_a_known_optimum_of_discrete_actions(name: str) -> None:
    """The class of greatest worth; with a mask, the greatest that is allowed; two factors."""
    state = Place(torch.zeros(2, 1))
    enough: dict[str, Any] = (
        {"simulations": 300, "rollout": 1} if name == "mcts" else {"horizon": 1}
    )
    best = make(name, FOUR, **enough).plan(Classes([0.1, 0.9, 0.5, -1.0]), state).action
    assert best.tolist() == [[0, 1, 0, 0]] * 2
    masked = Classes([0.1, 0.9, 0.5, -1.0], [1, 0, 1, 1])
    assert make(name, FOUR, **enough).plan(masked, state).action.tolist() == [[0, 0, 1, 0]] * 2
    # What the environment says of the next action comes before what the world believes.
    now = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 1]])
    first = make(name, FOUR, **enough).plan(masked, state, mask=now).action
    assert first.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    two = ActionSpec("discrete", (2, 3))
    worth = Classes([0.0, 1.0, 0.2, 0.0, 0.7])
    assert make(name, two, **enough).plan(worth, state).action.tolist() == [[0, 1, 0, 0, 1]] * 2


@pytest.mark.parametrize("name", [*SEQUENCE, "mcts"])
def test_a_candidate_that_is_not_finite_never_wins(name: str) -> None:
    """Where all returns are negative, a NaN that counts as 0 or as little would win."""

    class Broken(Classes):
        def step(self, state: Place, action: Tensor) -> Prediction[Place]:
            state, reward, cont = super().step(state, action)
            return Prediction(state, reward.masked_fill(action[:, 3] > 0, torch.nan), cont)

    enough = {"simulations": 300, "rollout": 1} if name == "mcts" else {}
    world = Broken([-9.0, -8.0, -9.0, 0.0])
    plan = make(name, FOUR, **enough).plan(world, Place(torch.zeros(2, 1)))
    assert plan.action.tolist() == [[0, 1, 0, 0]] * 2
    assert plan.stats["nonfinite"] > 0
    nothing = make(name, FOUR).plan(Broken([torch.nan] * 4), Place(torch.zeros(1, 1)))
    assert nothing.action.sum() == 1  # an action all the same


@pytest.mark.parametrize("name", SEQUENCE)
def test_an_episode_that_begins_leaves_nothing_behind(name: str) -> None:
    """A warm start of environment 1 counts; that of environment 0, which begins anew, does not."""
    state = Place(torch.zeros(2, 1))
    warm = make(name).plan(Line(goal=50.0), state).warm
    first = torch.tensor([True, False])
    options = {"iterations": 1, "candidates": 40}
    used = make(name, seed=3, **options).plan(Line(), state, None, warm, first)
    cold = make(name, seed=3, **options).plan(Line(), state)
    other = make(name, seed=3, **options).plan(Line(), state, None, warm)
    for after, expected in zip(used.warm, cold.warm, strict=True):
        assert torch.equal(after[0], expected[0])
    if name != "shooting":
        assert not torch.equal(used.warm.mean[1], cold.warm.mean[1])
        assert torch.equal(used.warm.mean[1], other.warm.mean[1])


@pytest.mark.parametrize("name", SEQUENCE)
def test_a_batch_is_as_its_environments_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise for all: eight decisions at once are eight decisions."""

    def noise(shape: tuple[int, int, int, int]) -> Tensor:
        generator = torch.Generator().manual_seed(shape[1])
        return torch.randn(shape[1:], generator=generator).expand(shape)

    states = torch.linspace(-2, 2, 8).unsqueeze(-1)
    planner = make(name)
    monkeypatch.setattr(planner, "noise", noise)
    together = planner.plan(Line(), Place(states)).action
    alone = [planner.plan(Line(), Place(row[None])).action[0] for row in states]
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)


@pytest.mark.parametrize("name", [*SEQUENCE, "mcts"])
def test_a_budget_is_never_exceeded(name: str) -> None:
    action = FOUR if name == "mcts" else ONE
    for budget in (7, 100, 333):
        world = Classes([0.0, 1.0, 0.0, 0.0]) if name == "mcts" else Line()
        plan = make(name, action, bounds=BoundsConfig(budget=budget)).plan(
            world, Place(torch.ones(2, 1))
        )
        assert world.rows == 2 * plan.stats["model_steps"] <= 2 * budget
        assert world.rows >= 2 * min(budget, 240) - 2 * 4  # and it is used
    with pytest.raises(ConfigError, match=r"budget is 2 .* one (rollout|simulation) takes \d"):
        make(name, action, bounds=BoundsConfig(budget=2))


@pytest.mark.parametrize("name", [*SEQUENCE, "mcts"])
def test_a_deadline_ends_the_search_with_the_best_so_far(name: str) -> None:
    """Every call of the world takes 1 ms of the injected clock; no call begins that would end
    after the deadline."""
    now = [0.0]

    class Slow(Classes):
        def step(self, state: Place, action: Tensor) -> Prediction[Place]:
            now[0] += 1e-3
            return super().step(state, action)

    cls = planner_class(name)
    settings = make(name, FOUR, bounds=BoundsConfig(deadline_ms=8.5)).config
    world = Slow([0.0, 1.0, 0.0, 0.0])
    plan = cls(FOUR, settings, 0, clock=lambda: now[0]).plan(world, Place(torch.zeros(1, 1)))
    assert plan.stats["ms"] <= 8.5
    assert plan.action.sum() == 1
    done = plan.stats["simulations" if name == "mcts" else "iterations"]
    assert done == {"shooting": 1}.get(name, 2)
    if name != "mcts":
        assert plan.action.tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("name", ["icem", "mcts"])
def test_a_deadline_holds_for_the_first_call_too(name: str) -> None:
    """What earlier decisions took is known: a call that would end late is not begun, a shorter one
    is, and what comes after the last call has its time."""
    now = [0.0]

    class Slow(Classes):
        def step(self, state: Place, action: Tensor) -> Prediction[Place]:
            now[0] += 3e-3
            return super().step(state, action)

        def unroll(self, state: Place, actions: Tensor) -> Any:
            now[0] += 2e-3 * actions.shape[1]
            found = [Classes.step(self, state, action) for action in actions.unbind(1)]
            reward, cont = (torch.stack([x[i] for x in found], 1) for i in (1, 2))
            return Place(state.x[:, None].expand(-1, len(found), -1)), reward, cont

    def valued(state: Place) -> Evaluation:
        now[0] += 1e-3
        return Evaluation(value=torch.zeros(len(state.x)))

    def took(deadline: float) -> list[float]:
        options = {} if name == "mcts" else {"horizon": 6}
        cls, small = planner_class(name), make(name, FOUR, **options).config
        settings = replace(small, bounds=BoundsConfig(deadline_ms=deadline))
        planner = cls(FOUR, settings, 0, clock=lambda: now[0])
        world, state = Slow([0.0, 1.0, 0.0, 0.0]), Place(torch.zeros(1, 1))
        plans = [planner.plan(world, state, valued) for _ in range(40)]
        assert all(plan.action.sum() == 1 for plan in plans)
        return [plan.stats["ms"] for plan in plans]

    # A call of each length is tried, then one more after 1, 2, 4, 8 and 16 decisions without.
    late = [i for i, ms in enumerate(took(2.5)) if ms > 2.5]
    assert late == ([0, 2, 5, 10, 19, 36] if name == "mcts" else [0, 1, 3, 6, 11, 20, 37])
    if name == "icem":  # one step of 3 ms, and the value of 1 ms
        assert took(5.0)[-1] == pytest.approx(4.0)


@pytest.mark.parametrize("name", ["icem", "mcts"])
def test_one_slow_call_does_not_end_planning(name: str) -> None:
    now, calls = [0.0], [0]

    class Cold(Classes):
        def step(self, state: Place, action: Tensor) -> Prediction[Place]:
            now[0] += 1e-4 if calls[0] else 20e-3
            calls[0] += 1
            return super().step(state, action)

    cls, small = planner_class(name), make(name, FOUR).config
    settings = replace(small, bounds=BoundsConfig(deadline_ms=5.0))
    planner = cls(FOUR, settings, 0, clock=lambda: now[0])
    world, state = Cold([0.0, 1.0, 0.0, 0.0]), Place(torch.zeros(1, 1))
    stats = [planner.plan(world, state).stats for _ in range(10)]
    planned = [found["model_steps"] > 1 for found in stats]
    assert not planned[1]
    assert all(planned[2:])
    assert all(found["ms"] <= 5.0 for found in stats[1:])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cem", {"elites": 50, "candidates": 20}, "candidates from 50 on"),
        ("icem", {"elites": 11, "candidates": 20}, "candidates from 22 on"),
        ("shooting", {"momentum": 0.1}, "momentum is 0.1; shooting"),
        (
            "cem",
            {"horizon": 5, "bounds": BoundsConfig(uncertainty_limit=0.1, least_horizon=5)},
            "least_horizon is 5 with horizon=5.*up to 4",
        ),
        ("mcts", {"bounds": BoundsConfig(least_horizon=4)}, "least_horizon belong"),
    ],
)
def test_settings_that_could_not_act_are_refused(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        planner_class(name).Config(**settings)


def test_nothing_counts_after_the_end() -> None:
    """A way that ends the episode keeps what it earned, and no value is added behind it."""

    class Cliff(Line):
        def step(self, state: Place, action: Tensor) -> Prediction[Place]:
            jumps = (action[:, 0] > 0.5).float()
            return Prediction(state, jumps - 0.1, 1 - jumps)

    state = Place(torch.zeros(1, 1))
    assert make("cem").plan(Cliff(), state).action.item() > 0.5  # 0.9 at once is best

    def worth(state: Place) -> Evaluation:
        return Evaluation(value=torch.full((len(state.x),), 5.0))

    assert make("cem").plan(Cliff(), state, worth).action.item() <= 0.5  # but 5 lie further on
    assert make("cem").plan(Cliff(), state, lambda state: Evaluation()).action.item() > 0.5
    unbothered = make("cem", value=False).plan(Cliff(), state, worth)
    assert unbothered.action.item() > 0.5


def test_the_policy_proposes_candidates() -> None:
    """Two candidates, both the policy's but one, find what two at random do not."""

    def evaluate(state: Place) -> Evaluation:
        return Evaluation(Normal(-state.x.clamp(-1, 1), torch.full_like(state.x, 1e-6)))

    state = Place(torch.tensor([[0.7], [-0.2]]))
    settings = {"candidates": 1, "elites": 1, "iterations": 1, "policy_candidates": 1}
    plan = make("cem", value=False, **settings).plan(Line(), state, evaluate)
    assert torch.allclose(plan.action, -state.x, atol=1e-3)
    with pytest.raises(ConfigError, match="policy over the states"):
        make("cem", **settings).plan(Line(), state)


def test_caution_and_the_adaptive_horizon() -> None:
    """A goal that lies where the world is unsure is left alone, with enough caution."""

    class Unsure(Line):
        uncertainty_unit = "made up"

        def uncertainty(self, state: Place, action: Tensor) -> Tensor:
            return (state.x + action).squeeze(-1).relu()

    state, world = Place(torch.zeros(1, 1)), Unsure(goal=1.0)
    assert make("cem").plan(world, state).action.item() > 0.9
    careful = make("cem", bounds=BoundsConfig(caution=20.0)).plan(world, state)
    assert careful.action.item() < 0.1
    # Rollouts end before an unsure step, and the value of where they are stands for the rest.
    limits = BoundsConfig(uncertainty_limit=0.5, least_horizon=0)

    def worth(state: Place) -> Evaluation:
        return Evaluation(value=torch.full((len(state.x),), -0.2))

    stopped = make("cem", bounds=limits).plan(world, state, worth)
    assert stopped.action.item() > 0.5  # -0.2 in all is better than three steps at -0.25
    with pytest.raises(ConfigError, match="knows its uncertainty"):
        make("cem", bounds=BoundsConfig(caution=1.0)).plan(Line(), state)
    with pytest.raises(ConfigError, match="gives states no value"):
        make("cem", bounds=limits).plan(world, state)


def test_a_stochastic_world_is_imagined_several_times() -> None:
    """A class that pays 3 once in four is worse than one that pays 1; lucky draws must not win."""

    class Lottery(Classes):
        deterministic = False

        def step(self, state: Place, action: Tensor) -> Prediction[Place]:
            won = (torch.rand(len(action)) < 0.25).float()
            return Prediction(state, 3 * won * action[:, 0] + action[:, 1], torch.ones(len(won)))

    settings = {"particles": 60, "horizon": 1, "iterations": 6}
    state = Place(torch.zeros(4, 1))
    for name in ("cem", "icem"):
        plan = make(name, FOUR, **settings).plan(Lottery([0.0] * 4), state)
        assert plan.action.argmax(-1).tolist() == [1] * 4
    tree = make("mcts", FOUR, simulations=300, rollout=1, depth=1, outcomes=16)
    assert tree.plan(Lottery([0.0] * 4), state).action.argmax(-1).tolist() == [1] * 4


def test_icem_counts_its_trajectories() -> None:
    """40 + 3, then 32, then 25, as the paper's own code; kept elites are not imagined again."""
    cls = planner_class("icem")
    planner = cls(ONE, cls.Config(), 0)
    world, state = Pendulum(), Motion(torch.tensor([[3.0, 0.0]]))
    assert planner.plan(world, state).stats["model_steps"] == 30 * (43 + 32 + 25)


def test_shifted_candidates_stay_in_bounds() -> None:
    planner = make("icem", std=5.0)
    warm = None
    for _ in range(3):
        plan = planner.plan(Line(goal=9.0), Place(torch.zeros(2, 1)), None, warm)
        warm = plan.warm
        assert plan.warm.elites[:, :, :-1].abs().max() <= 1


@pytest.mark.parametrize(("beta", "std"), [(0.0, 1.0), (0.25, 1.03), (3.5, 1.2)])
def test_coloured_noise(beta: float, std: float) -> None:
    """Its deviation, and how its power falls with frequency."""
    torch.manual_seed(0)
    noise = coloured((1, 4000, 30, 1), beta, torch.device("cpu"))[0, :, :, 0]
    assert noise.std().item() == pytest.approx(std, abs=0.06)
    power = torch.fft.rfft(noise).abs().square().mean(0)[1:-1]
    frequency = torch.arange(1, len(power) + 1).float()
    x, y = frequency.log(), power.log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope.item() == pytest.approx(-beta, abs=0.1)


@pytest.mark.parametrize("name", ["cem", "icem"])
def test_discrete_steps_are_taken_as_they_were_imagined(name: str) -> None:
    """Where steps must agree with one another, the likeliest class of each is a poor sequence."""

    class Agree(Line):
        def step(self, state: Place, action: Tensor) -> Prediction[Place]:
            place = action.argmax(-1, keepdim=True).float()
            same = (place == state.x).squeeze(-1).float()
            return Prediction(Place(place), same, torch.ones(len(same)))

    two, world, many = ActionSpec("discrete", (2,)), Agree(), 6
    state = Place(torch.full((many, 1), 9.0))
    planner = make(name, two, horizon=8, iterations=1, candidates=20, elites=10)
    plan = planner.plan(world, state)
    assert imagined(world, state, plan.sequence).tolist() == plan.searched.returns.amax(1).tolist()
    after = world.step(state, plan.action).state
    again = planner.plan(world, after, warm=plan.warm, is_first=torch.zeros(many).bool())
    kept = imagined(world, after, plan.sequence[:, 1:])
    assert (again.searched.returns.amax(1) >= kept).all()


def imagined(world: Line, state: Place, plan: Tensor) -> Tensor:
    """The return [B] of a plan [B, H, A]."""
    total = torch.zeros(len(plan))
    for action in plan.unbind(1):
        state, reward, _ = world.step(state, action)
        total += reward
    return total


def test_a_class_without_elites_comes_back() -> None:
    """Without smoothing a probability of 0 is for ever."""
    space = ActionSpace(FOUR)
    before = space.start(1, 1, 1.0, torch.device("cpu"))
    elites = torch.eye(4)[[2, 2]].reshape(1, 2, 1, 4)
    weights = torch.full((1, 2), 0.5)
    after = space.fit(before, elites, weights, 0.0, 0.1, (0.0, 9.0))
    assert after.mean.flatten().tolist() == pytest.approx([0.025, 0.025, 0.925, 0.025])
    nothing = space.fit(before, elites, 0 * weights, 0.0, 0.1, (0.0, 9.0))
    assert torch.equal(nothing.mean, before.mean)


def test_correlated_noise_draws_classes_by_their_probabilities() -> None:
    torch.manual_seed(0)
    space = ActionSpace(FOUR)
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(1, 12, 4)
    noise = coloured((1, 20_000, 12, 4), 1.0, torch.device("cpu"))
    drawn = space.resolve(space.draw(Sequences(probabilities, probabilities), noise / 1.1), None)
    assert torch.allclose(drawn.mean((0, 1, 2)), probabilities[0, 0], atol=0.02)


def test_planners_own_their_random_numbers() -> None:
    """The global generator is left alone, and a saved planner goes on as it would have."""
    state = Place(torch.ones(1, 1))
    for name in PLANNERS:
        planner = make(name, FOUR)
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        world = Classes([0.0, 0.0, 0.0, 0.0])
        planner.plan(world, state)
        assert torch.equal(torch.rand(3), expected)
        saved = planner.state_dict()
        again = make(name, FOUR, seed=7)
        again.load_state_dict(saved)
        a, b = planner.plan(world, state), again.plan(world, state)
        assert a.stats["return"] == b.stats["return"]
        assert torch.equal(a.action, b.action)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mcts searches discrete .* planner=icem"):
        make("mcts", ONE)
    with pytest.raises(ConfigError, match="at most 4,096 joint actions"):
        make("mcts", ActionSpec("discrete", (100, 100)))
    with pytest.raises(ConfigError, match=r"Did you mean 'icem'"):
        planner_class("icme")
    with pytest.raises(ConfigError, match="horizon is 0"):
        make("cem", horizon=0)
    with pytest.raises(ConfigError, match="gives states a value"):
        make("mcts", FOUR, rollout=0, value=True).plan(Classes([0.0] * 4), Place(torch.zeros(1, 1)))
    with pytest.raises(ConfigError, match="rule=puct needs"):
        make("mcts", FOUR, rule="puct").plan(Classes([0.0] * 4), Place(torch.zeros(1, 1)))


def test_the_tree_balances_a_pole() -> None:
    """The true equations, from a pole that falls: 15 steps without an end."""
    world = CartPole(discount=0.997)
    cls = planner_class("mcts")
    planner = cls(world.spec.action, cls.Config(simulations=12, rollout=10), 0)
    state = Motion(torch.tensor([[0.0, 0.0, 0.05, 0.3], [0.0, 0.0, -0.1, 0.0]]))
    for _ in range(15):
        state, _, cont = world.step(state, planner.plan(world, state).action)
        assert cont.min() == 1


def test_a_tree_counts_outcomes_of_a_drawn_world() -> None:
    """An action leads to two places, one time in four to the good one; the tree's mean says so."""

    class Coin(Classes):
        deterministic = False

        def step(self, state: Place, action: Tensor) -> Prediction[Place]:
            good = (torch.rand(len(action)) < 0.25).float()
            return Prediction(Place(good[:, None]), 4 * good * action[:, 0], 0 * good)

    planner = make("mcts", FOUR, simulations=400, rollout=1, c=0.2)
    plan = planner.plan(Coin([0.0] * 4), Place(torch.zeros(3, 1)))
    assert plan.action.argmax(-1).tolist() == [0, 0, 0]
    assert plan.stats["return"] == pytest.approx(1.0, abs=0.3)


def test_the_cache_remembers_what_was_asked() -> None:
    world = CachedWorld(Line(goal=1.0), CacheConfig(size=3, width=0.5, tolerance=1e-6))
    state = Place(torch.tensor([[0.0], [0.5], [0.0]]))
    action = torch.tensor([[0.1], [0.2], [0.1]])
    direct = Line(goal=1.0).step(state, action)
    for turn in range(2):
        asked = world.world.rows
        found = world.step(state, action)
        assert torch.equal(found.reward, direct.reward)
        assert torch.equal(found.state.x, direct.state.x)
        assert (world.world.rows == asked) is bool(turn)
    # Near, and perhaps of the same hash, but not the same.
    near = world.step(state, action + 1e-3)
    assert torch.equal(near.reward, Line(goal=1.0).step(state, action + 1e-3).reward)
    assert world.stats["stored"] <= 3
    assert 0 < world.stats["hit_rate"] < 1
    world.clear()
    before = world.misses
    world.step(state, action)
    assert world.misses == before + 2  # two rows are alike
    assert "gain" not in world.stats
    for _ in range(64):
        world.step(state, action)
    assert world.stats["gain"] > 0
    assert world.stats["saved_s"] > -1
    lottery = Line()
    lottery.deterministic = False
    for expect in (None, False, True):  # which it cannot
        with pytest.raises(ConfigError, match=r"draw nothing.*Leave the cache out\."):
            CachedWorld(lottery, CacheConfig(size=1), expect=expect)


def test_a_cache_of_expectations_of_an_ensemble() -> None:
    spec = EnvSpec({"state": ObsSpec("vector", (3,))}, ONE)
    world = Gaussian(spec, GaussianConfig(members=2, elites=2, units=8, decay=[0.0]))
    with pytest.raises(ConfigError, match="or plan with expect=true"):
        CachedWorld(world, CacheConfig(size=9), expect=False)
    cached = CachedWorld(world, CacheConfig(size=9), expect=True)
    state = world.initial(4)  # a vector, and the number of a member
    for _ in range(2):
        found = cached.step(state, torch.zeros(4, 1))
        assert torch.equal(found.reward, world.expect(state, torch.zeros(4, 1)).reward)
    assert (cached.hits, cached.misses) == (7, 1)


def test_a_full_cache_forgets_what_was_used_least() -> None:
    """As the plain steps, in calls of many rows, some alike, with a table that is too small."""
    world = CachedWorld(Line(), CacheConfig(size=5, width=0.5, tolerance=1e-6))
    for turn in range(30):
        rng = np.random.default_rng(turn)
        x = torch.from_numpy(rng.integers(0, 9, (7, 1)) / 10).float()
        action = torch.from_numpy(rng.integers(0, 2, (7, 1)) / 10).float()
        found, plain = world.step(Place(x), action), Line().step(Place(x), action)
        assert torch.equal(found.state.x, plain.state.x)
        assert torch.equal(found.reward, plain.reward)
        assert world.stats["stored"] <= 5
    assert 0.2 < world.stats["hit_rate"] < 0.9
    one = CachedWorld(Line(), CacheConfig(size=2))
    asked = [torch.tensor([[value]]) for value in (0.1, 0.5, 0.1, 0.9, 0.1, 0.5)]
    for action in asked:  # 0.5 was used least recently when 0.9 came
        one.step(Place(torch.zeros(1, 1)), action)
    assert (one.hits, one.misses) == (2, 4)


def test_bounds_of_numbers() -> None:
    for wrong in ({"budget": -1}, {"deadline_ms": np.nan}, {"caution": -0.1}):
        with pytest.raises(ConfigError, match="allowed"):
            BoundsConfig(**wrong)


def test_a_world_that_unrolls_gives_what_its_steps_give() -> None:
    spec = SPECS["vector"]
    world = WorldModel(spec, tiny())
    scramble(world)
    space = ActionSpace(spec.action)
    state = random_state(tiny(), 2)
    raw = torch.randn(2, 5, 4, spec.action.size)

    def value(state: Any) -> Evaluation:
        return Evaluation(None, state.feat.sum(-1))

    found = []
    for unrolls in (True, False):
        bounds = BoundsConfig(budget=20)
        meter = Meter(bounds, time.perf_counter)
        dreams = Imagination(world, state, value, space, bounds, meter)
        dreams.unrolls = unrolls
        torch.manual_seed(0)
        found.append(dreams.score(state, raw))
    assert meter.rows == 20
    torch.testing.assert_close(found[0], found[1])


def test_an_ending_that_is_not_finite_spoils_a_candidate() -> None:
    class Vague(Line):
        def step(self, state: Place, action: Tensor) -> Prediction[Place]:
            after, reward, cont = super().step(state, action)
            return Prediction(after, reward, torch.where(action[:, 0] > 0, torch.nan, cont))

    plan = make("cem").plan(Vague(1.0), Place(torch.zeros(1, 1)))
    assert plan.action <= 0
    assert plan.stats["nonfinite"] > 0


def test_a_cache_is_a_setting_and_changes_no_plan() -> None:
    plans = []
    for size in (0, 1000):
        # Classes are few, so that candidates share their first steps.
        planner = make("cem", FOUR, cache=CacheConfig(size=size))
        world = Classes([0.0, 1.0, 0.5, 0.2])
        for _ in range(2):
            plans.append(planner.plan(world, Place(torch.zeros(1, 1))))
        if size:
            stats = plans[-1].stats
            assert stats["cache_hit_rate"] > 0.9
            assert stats["cache_bound"] == pytest.approx(1 / (1 - stats["cache_hit_rate"]))
            assert stats["model_steps"] > world.rows / 2
            assert world.rows <= 4  # one for each class: the state never changes
            planner.forget()
            planner.plan(world, Place(torch.zeros(1, 1)))
            assert world.rows > 4
    for one, other in zip(plans[:2], plans[2:], strict=True):
        assert torch.equal(one.action, other.action)
        torch.testing.assert_close(one.searched.returns, other.searched.returns)


def test_a_deviation_is_no_variance() -> None:
    space = ActionSpace(ONE)
    before = Sequences(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 9.0))
    actions = torch.tensor([-0.2, 0.2]).view(1, 2, 1, 1)
    weights = torch.full((1, 2), 0.5)
    after = space.fit(before, actions, weights, 0.0, 0.0, (0.0, torch.inf))
    torch.testing.assert_close(after.std, torch.full((1, 1, 1), 0.2))  # the variance is 0.04


def test_elites_are_the_best_and_not_some_of_them() -> None:
    planner = make("icem", elites=4, keep=0.5, candidates=60, iterations=1)
    plan = planner.plan(Line(goal=1.0), Place(torch.zeros(1, 1)))
    pool = plan.searched
    best = pool.returns[0].topk(2).indices
    torch.testing.assert_close(plan.warm.elites[0, :, :-1], pool.actions[0, best, 1:])


def test_mppi_scores_what_it_would_execute() -> None:
    class Bound(Line):
        def step(self, state: Place, action: Tensor) -> Prediction[Place]:
            assert action.abs().max() <= 1
            return super().step(state, action)

    plan = make("mppi", std=5.0).plan(Bound(goal=9.0), Place(torch.zeros(2, 1)))
    assert plan.searched.actions.abs().max() <= 1
    # Candidates beyond the bounds would pull the mean beyond them.
    assert plan.warm.mean.abs().max() <= 1
    assert (plan.action > 0.5).all()
