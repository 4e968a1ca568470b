"""Grid worlds: their tables are what they do, they change when they should, and can be seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from worldmodel.envs import EnvConfig, EnvError, env_spec, make_env, make_vector
from worldmodel.envs.grid import GRIDS, MAZE, Grid, GridWorld, draw, refine
from worldmodel.envs.table import WorldTable, from_outcomes, in_turn, table_of, world_table


def grid(name: str, pixels: bool = False, **kwargs: Any) -> EnvConfig:
    return EnvConfig(name, suite="grid", pixels=pixels, kwargs=kwargs)


def shortest(table: WorldTable) -> int:
    """Steps to a reward above 0, by widening the circle of what can be reached."""
    reached = {int(table.start[0].argmax())}
    for step in range(1, table.states):
        pairs = [(s, a, k) for s in reached for a in range(4) for k in range(table.next.shape[-1])]
        real = [place for place in pairs if table.probability[0][place] > 0]
        if any(table.reward[0][place] > 0 for place in real):
            return step
        reached |= {int(table.next[0][p]) for p in real if not table.terminal[0][p]}
    return -1


@pytest.mark.parametrize(("config", "steps"), [
    (grid("dyna_maze"), 14), (grid("dyna_maze", resolution=2), 27),
    (grid("dyna_maze", resolution=3), 40), (grid("blocking_maze"), 10),
    (grid("blocking_maze", change_after=0), 16), (grid("shortcut_maze"), 16),
    (grid("shortcut_maze", change_after=0), 10), (grid("corridor_maze"), 32),
    (grid("slippery_grid"), 8),
    (EnvConfig("FrozenLake-v1", pixels=False, kwargs={"is_slippery": False}), 6),
], ids=lambda x: str(getattr(x, "id", x)))  # fmt: skip
def test_the_shortest_way_is_as_long_as_in_the_book(config: EnvConfig, steps: int) -> None:
    assert shortest(world_table(config)) == steps


def test_refined_mazes_keep_their_shape() -> None:
    for times in range(1, 9):
        env = GridWorld(Grid((refine(MAZE, times),)))
        assert env.cells.shape == (1, 6 * times, 9 * times)
        walls = env.cells[0] == "#"
        assert (walls[::times, ::times] == (np.array([list(r) for r in MAZE]) == "#")).all()
        assert walls.sum() == 7 * times**2
        assert (env.cells == "G").sum() == times**2
        assert divmod(env.starts[0], 9 * times) == (2 * times, 0)


@pytest.mark.parametrize("name", GRIDS)
def test_keeps_gymnasiums_promises(name: str) -> None:
    check_env(GridWorld(GRIDS[name], render_mode="rgb_array"), skip_render_check=True)


@pytest.mark.parametrize("name", ["slippery_grid", "dyna_maze"])
def test_the_table_is_what_the_grid_does(name: str) -> None:
    """Frequencies of outcomes against their probabilities, for every pair."""
    env = GridWorld(replace(GRIDS[name], slip=0.3))
    table, tries = env.table(), 400
    env.reset(seed=0)
    for s in range(0, table.states, 5):
        for a in range(4):
            seen = np.zeros(table.next.shape[-1])
            for _ in range(tries):
                env.state = s
                after, reward, terminal, truncated, _ = env.step(a)
                same = (table.next[0, s, a] == after) & (table.probability[0, s, a] > 0)
                same &= (table.reward[0, s, a] == reward) & (table.terminal[0, s, a] == terminal)
                assert same.sum() == 1
                assert not truncated
                seen += same
            chance = table.probability[0, s, a]
            bound = 5 * np.sqrt(chance * (1 - chance) / tries) + 1e-9
            assert (np.abs(seen / tries - chance) < bound).all()


def test_walls_edges_and_rewards() -> None:
    env = GridWorld(GRIDS["dyna_maze"])
    assert env.reset()[0] == 18
    assert env.step(3)[:3] == (18, 0.0, False)  # over the edge
    env.state = 19
    assert env.step(1)[:3] == (19, 0.0, False)  # into the wall
    env.state = 17
    assert env.step(0)[:3] == (8, 1.0, True)  # the goal
    pits = GridWorld(replace(GRIDS["slippery_grid"], slip=0.0))
    pits.state = 3 * 9 + 4
    assert pits.step(0)[:3] == (2 * 9 + 4, -1.0, True)


def test_seeds_decide_where_one_slips() -> None:
    def walk(seed: int) -> list[int]:
        env = GridWorld(replace(GRIDS["slippery_grid"], slip=0.5))
        env.reset(seed=seed)
        path = []
        for _ in range(30):
            env.state = 0 if env.step(1)[2] else env.state
            path.append(env.state)
        return path

    assert walk(1) == walk(1) != walk(2)


@pytest.mark.parametrize("change_at", ["step", "episode"])
def test_the_blocking_maze_changes_after_so_many_steps(change_at: str) -> None:
    env = make_env(grid("blocking_maze", change_after=5, change_at=change_at), seed=0)
    inner = env.unwrapped
    assert isinstance(inner, GridWorld)
    env.reset()
    open_end = 3 * 9 + 8
    for _ in range(5):
        env.step(2)
    inner.state = open_end + 9
    env.step(0)  # the sixth step
    assert inner.state == (open_end if change_at == "episode" else open_end + 9)
    env.reset()  # goes on: the clock is not set back
    assert (inner.phase, inner.clock) == (1, 6)
    env.reset(seed=0)
    assert (inner.phase, inner.clock) == (0, 0)


def test_a_changing_maze_is_restored_with_its_clock() -> None:
    config = grid("shortcut_maze", change_after=30)
    config.num_envs, config.time_limit = 2, 12
    envs, again = make_vector(config, seed=1), make_vector(config, seed=1)
    envs.reset()
    rng = np.random.default_rng(0)
    for _ in range(40):
        envs.step(rng.integers(0, 4, 2))
    again.restore(envs.snapshot())
    for _ in range(20):
        actions = rng.integers(0, 4, 2)
        ours, theirs = envs.step(actions), again.step(actions)
        assert np.array_equal(ours[0]["state"], theirs[0]["state"])
        assert np.array_equal(ours[1], theirs[1])


def test_pictures_show_agent_and_layout() -> None:
    env = make_env(grid("blocking_maze", pixels=True, change_after=1), seed=0)
    assert env_spec(env).obs["image"].shape == (64, 64, 3)
    start = env.reset()[0]["image"]
    moved = env.step(1)[0]["image"]
    changed = env.step(1)[0]["image"]
    assert start.std() > 20
    assert (start != moved).any()
    closed = (slice(34, 38), slice(58, 62))  # the right end of the wall
    assert np.abs(moved[closed].astype(int) - start[closed]).max() < 10
    assert np.abs(changed[closed].astype(int) - start[closed]).max() > 100
    fine = draw(np.array([list(r) for r in refine(MAZE, 8)]), 0)
    assert fine.shape == (192, 288, 3)
    assert fine.dtype == np.uint8


def test_tables_of_gymnasiums_small_worlds() -> None:
    lake = world_table(EnvConfig("FrozenLake-v1", pixels=False, time_limit=7))
    assert (lake.states, lake.actions) == (16, 4)
    assert lake.probability[0, 0, 0] == pytest.approx([2 / 3, 1 / 3, 0])  # equal ones are merged
    taxi = world_table(EnvConfig("Taxi-v4", pixels=False))
    assert (taxi.states, taxi.actions) == (500, 6)
    assert (taxi.start[0] > 0).sum() == 300
    cliff = world_table(EnvConfig("CliffWalking-v1", pixels=False))
    assert cliff.reward[0, 36, 1, 0] == -100
    for table in (lake, taxi, cliff):
        assert np.allclose(table.probability.sum(-1), 1)
        assert table.start.sum() == pytest.approx(1)


def test_worlds_in_turn_share_one_table() -> None:
    def loop(reward: float, chance: float) -> WorldTable:
        outcomes = [(chance, 0, reward, False), (1 - chance, 0, 0.0, True)]
        return from_outcomes(1, 1, lambda s, a: outcomes, np.ones(1))

    both = in_turn([loop(1.0, 1.0), loop(2.0, 0.5)], [0, 10])
    assert len(both.next) == 2
    assert both.probability[:, 0, 0].tolist() == [[1, 0], [0.5, 0.5]]
    assert both.reward[1, 0, 0].tolist() == [2, 0]
    with pytest.raises(EnvError, match="begin with 0 and rise"):
        in_turn([loop(1.0, 1.0), loop(2.0, 0.5)], [0, 0])


@pytest.mark.parametrize(("config", "message"), [
    (grid("dyna_mase"), r"Unknown grid 'dyna_mase'.*Did you mean 'dyna_maze'"),
    (grid("dyna_maze", resolution=0), r"resolution is 0, but must be a whole number of at least 1"),
    (grid("dyna_maze", slip=1.0), r"slip is 1.0, but must lie in \[0, 1\)"),
    (grid("dyna_maze", change_after=3), r"Unknown argument of 'dyna_maze' 'change_after'"),
    (grid("blocking_maze", change_at="night"), r"Unknown moment of change 'night'"),
    (grid("blocking_maze", change_after=-1), r"change_after is -1"),
])  # fmt: skip
def test_mistakes_are_explained(config: EnvConfig, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(config)


@pytest.mark.parametrize("layout", [("..", "S"), ("S.", ".X"), ("SS", ".G"), ("S.", ".."), "S.G"])
def test_layouts_are_checked(layout: Any) -> None:
    with pytest.raises(EnvError, match="A layout has"):
        GridWorld(Grid((layout,)))


def test_worlds_without_a_table_say_so() -> None:
    with pytest.raises(EnvError, match="CartPoleEnv has no transition table"):
        table_of(gymnasium.make("CartPole-v1"))
