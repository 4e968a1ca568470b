"""`what=planners`: planners in the true equations of Pendulum-v1 and CartPole-v1, apart from any
learned world; and how fast they step a run's world beside the world alone.

Pendulum: the return of 200 steps from fixed starts (angle uniform over the circle, speed in
[-1, 1]), undiscounted; the optimum by dynamic programming is -149.9 for seed 0 and 100 starts.
CartPole: how long the pole stands, of 500 steps.
FrozenLake 8x8, slippery: MCTS in a table that was learned from 1,000 outcomes of each state and
action, with the values that Dyna-Q planned from it (discount 1 - 1/200, for the limit of 200
steps). What it decides in each state, 40 times, gives the share of episodes that reach the goal in
the true world, by dynamic programming (the optimum, which counts the steps left, is 0.913).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import agents
from agents.dyna import DynaQ
from agents.dyna.config import DynaQConfig
from agents.planning import planner_class
from agents.planning.tree_config import MCTSConfig
from scripts.studies.bench import check_known
from scripts.studies.bench_timing import rounded
from worldmodel import tree
from worldmodel.accel.devices import set_threads
from worldmodel.config import ConfigError, check_ranges
from worldmodel.envs import EnvConfig, env_spec, make_env
from worldmodel.envs.table import world_table
from worldmodel.models.oracle import CartPole, Motion, Pendulum, TableOracle
from worldmodel.models.tabular import TabularState
from worldmodel.seeding import Stream

CPU = torch.device("cpu")
# About 100 trajectories of 30 steps for each action.
CEM = {"horizon": 30, "iterations": 3, "candidates": 32, "elites": 10}
MPPI = {"horizon": 30, "iterations": 3, "candidates": 32, "elites": 32}
CHOSEN = {
    "horizon": 24, "iterations": 5, "candidates": 30, "elites": 5, "keep": 0.6, "beta": 1.0,
}  # fmt: skip
PENDULUM: dict[str, tuple[str, dict[str, Any]]] = {
    "icem": ("icem", {}),
    # Chosen on other starts (seed 1).
    "icem, chosen": ("icem", CHOSEN),
    "icem, beta 1": ("icem", {"beta": 1.0}),
    "icem, beta 2": ("icem", {"beta": 2.0}),
    "cem": ("cem", CEM),
    "cem, std 0.5": ("cem", {**CEM, "std": 0.5}),
    "cem, cold": ("cem", {**CEM, "warm_start": False}),
    "mppi": ("mppi", MPPI),
    "mppi, horizon 15": ("mppi", {**MPPI, "horizon": 15}),
    "shooting": ("shooting", {"horizon": 30, "candidates": 100}),
}
CARTPOLE: dict[str, tuple[str, dict[str, Any]]] = {
    # Both chosen on other starts (seed 1).
    "mcts": ("mcts", {"simulations": 48, "rollout": 10}),
    "cem": (
        "cem",
        {"horizon": 50, "iterations": 4, "candidates": 60, "smoothing": 0.2, "elites": 10},
    ),
}
SPEED = {"horizon": 12, "candidates": 1000, "iterations": 3}
TASKS = ("pendulum", "cartpole", "frozenlake", "speed")
LAKE = EnvConfig("FrozenLake-v1", pixels=False, kwargs={"map_name": "8x8", "is_slippery": True})
OUTCOMES, UPDATES = 1000, 2_000_000  # of each pair, and of planning, for the learned table
LIMIT = 200  # steps of an episode, by gymnasium
DECISIONS = 40  # in each state


@dataclass
class Settings:
    """tasks: pendulum, cartpole (the true equations), frozenlake, speed (in the world of `run`).
    planners: by their names in the table; none: all. seed, starts: of pendulum; cartpole has
    `episodes`."""

    tasks: list[str] = field(default_factory=lambda: ["pendulum", "cartpole"])
    planners: list[str] = field(default_factory=list)
    run: str = ""
    seed: int = 0
    starts: int = 100
    episodes: int = 20
    threads: int = 1

    def __post_init__(self) -> None:
        check_known("task", self.tasks, TASKS)
        check_known("planner", self.planners, {**PENDULUM, **CARTPOLE})
        check_ranges(self, {"starts": (2, 1e5), "episodes": (1, 1e5), "threads": (0, 1024)})
        if "speed" in self.tasks and not self.run:
            raise ConfigError("tasks=[speed] needs run=RUN, whose world is stepped.")


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for each planner and task."""
    set_threads(settings.threads)
    for task in settings.tasks:
        if task == "speed":
            yield from _speed(settings.run)
            continue
        if task == "frozenlake":
            yield {"figure": task, "planner": "mcts", **_lake(settings)}
            continue
        rng = np.random.default_rng(settings.seed)
        if task == "pendulum":
            angles = rng.uniform(-np.pi, np.pi, settings.starts)
            starts = np.stack([angles, rng.uniform(-1, 1, settings.starts)], 1)
        else:
            starts = rng.uniform(-0.05, 0.05, (settings.episodes, 4))
        table = PENDULUM if task == "pendulum" else CARTPOLE
        for name, (planner, options) in table.items():
            if not settings.planners or name in settings.planners:
                world: Any = Pendulum() if task == "pendulum" else CartPole(discount=0.997)
                steps = 200 if task == "pendulum" else 500
                found = _play(world, planner, options, torch.from_numpy(starts).float(), steps)
                yield {"figure": task, "planner": name, **found}


def _play(
    world: Any, name: str, options: dict[str, Any], starts: torch.Tensor, steps: int
) -> dict[str, Any]:
    """The returns of a planner from all starts at once, undiscounted."""
    cls = planner_class(name)
    planner = cls(world.spec.action, cls.Config(**options), 0)
    state, warm, rows = Motion(starts), None, 0.0
    returns, stands = torch.zeros(len(starts)), torch.ones(len(starts))
    began = time.process_time()
    for step in range(steps):
        first = torch.full((len(starts),), step == 0)
        plan = planner.plan(world, state, None, warm, first)
        warm, rows = plan.warm, rows + plan.stats["model_steps"]
        state, reward, cont = world.step(state, plan.action)
        returns, stands = returns + stands * reward, stands * cont
        if not stands.any():
            break
    error = float(returns.std()) / len(starts) ** 0.5
    return {
        "return": rounded(float(returns.mean())), "error": rounded(error),
        "worst": rounded(float(returns.min())), "model_steps": rounded(rows / (step + 1)),
        "cpu_s": rounded(time.process_time() - began),
    }  # fmt: skip


def _lake(settings: Settings) -> dict[str, Any]:
    """How often MCTS reaches the goal of the slippery lake."""
    env = make_env(LAKE)
    spec = env_spec(env)
    env.close()
    world = TableOracle(spec, world_table(LAKE))
    states, actions = world.feat_size, world.actions
    with Stream(settings.seed):
        agent = DynaQ(
            spec, DynaQConfig(table="counts", gamma=1 - 1 / LIMIT, backup="expected"), CPU
        )
        pairs = torch.arange(states * actions).repeat_interleave(OUTCOMES)
        state = TabularState(torch.eye(states)[pairs // actions])
        after, reward, cont = world.step(state, torch.eye(actions)[pairs % actions])
        falls = (world.probability * world.terminal).sum(-1).view(states, actions)
        ends = (falls > 0.999).all(-1)  # holes and the goal, never acted from
        kept = ~ends[pairs // actions]
        found = (pairs // actions, pairs % actions, reward, after.place.argmax(-1), cont == 0)
        agent.model.record(*(x[kept].numpy() for x in found))
        agent.plan(UPDATES)
        planner = planner_class("mcts")(spec.action, MCTSConfig(rule="puct", simulations=50), 0)
        everywhere = TabularState(torch.eye(states))
        taken = torch.zeros(states, actions)
        for _ in range(DECISIONS):
            taken += planner.plan(agent.plan_in(), everywhere, agent.evaluate).action
    return {"goals": rounded(_goals(world, taken / DECISIONS)), "decisions": DECISIONS}


def _goals(world: TableOracle, policy: torch.Tensor) -> float:
    """The share of episodes from state 0 that reach the goal within gymnasium's limit, if action a
    is taken in state s with probability policy[s, a]; by dynamic programming."""
    value = torch.zeros(world.feat_size, dtype=torch.float64)
    for _ in range(LIMIT):
        after = world.reward + (1 - world.terminal.double()) * value[world.next]
        worth = (world.probability * after).sum(-1).view(policy.shape)
        value = (policy * worth).sum(-1)
    return float(value[0])


def _speed(run: str) -> Iterator[Mapping[str, Any]]:
    """Rows a second that each planner steps, in turn with the bare world."""
    policy = agents.load(run)
    world = policy.model
    if world is None:
        raise ConfigError(f"The agent of '{run}' has no world to plan in.")
    state = world.initial(1)
    rows, horizon = SPEED["candidates"], SPEED["horizon"]
    action = torch.zeros(rows, policy.spec.action.size, device=policy.device)
    many = tree.map(lambda x: x.repeat_interleave(rows, 0), state)
    names = ("cem", "icem", "mppi", "shooting")
    planners = [planner_class(name) for name in names]
    made = [c(policy.spec.action, c.Config(**SPEED), 0, policy.device) for c in planners]
    rates: dict[str, list[float]] = {name: [] for name in ("world", *names)}
    for _ in range(6):
        began = time.perf_counter()
        with torch.no_grad():
            after = many
            for _ in range(horizon):
                after = world.step(after, action).state
        rates["world"].append(rows * horizon / (time.perf_counter() - began))
        for name, planner in zip(names, made, strict=True):
            began = time.perf_counter()
            plan = planner.plan(world, state)
            rates[name].append(plan.stats["model_steps"] / (time.perf_counter() - began))
    bare = float(np.median(rates["world"][1:]))
    for name, found in rates.items():
        rate = float(np.median(found[1:]))
        yield {
            "figure": "speed", "planner": name, "model_steps_per_s": rounded(rate),
            "of_the_world": rounded(rate / bare),
        }  # fmt: skip
