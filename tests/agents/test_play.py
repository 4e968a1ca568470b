"""A walk through a dream: what undo, branches, reality and masks keep, and what is refused."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from agents.apps.play.driver import Driver
from agents.apps.play.session import Session
from agents.apps.play.show import film_of, save_film, shown, write_numbered
from agents.apps.play.walk import Node, label_of
from agents.apps.play.world import World, allowed, allows, bars, bars_words, picture_of
from agents.base import Policy
from agents.muzero.agent import MuZero
from agents.muzero.config import MuZeroConfig
from agents.planning.tree_config import MCTSConfig
from agents.random import Random, RandomConfig
from tests.agents.play_runs import CPU, counting, left_right, policy, session
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import EnvConfig, env_spec, make_env
from worldmodel.types import EnvSpec


def pushes(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).uniform(-1, 1, (count, 1)).astype(np.float32))


def walked(seed: int = 0, count: int = 6) -> Session:
    walk = session(left_right(actions="box"), steps=30, seed=seed)
    walk.start_recorded(1, 4)
    for action in pushes(count):
        walk.act(action)
    return walk


def same(one: Node, other: Node) -> bool:
    """Whether two moments are equal to the last bit."""
    latent = all(
        torch.equal(a, b) for a, b in zip(one.sight.latent, other.sight.latent, strict=True)
    )
    return latent and np.array_equal(one.sight.picture, other.sight.picture)


def test_undo_and_redo_lead_to_the_very_same_moments() -> None:
    walk = walked()
    before = walk.path()
    twin = walked()  # the same walk by somebody else
    assert all(same(a, b) for a, b in zip(before, twin.path(), strict=True))
    assert not same(before[2], before[3])
    walk.undo(4)
    assert walk.node is before[2]
    walk.redo()
    assert walk.node is before[3]
    walk.redo(50)
    assert walk.node is before[-1]
    walk.undo(50)
    assert walk.node is before[0]


def test_a_seed_is_a_dream_and_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    walk = session(left_right(actions="box"), steps=30)  # its agent is made from another seed
    torch.set_rng_state(state)
    walk.start_recorded(1, 4)
    for _ in range(3):
        walk.act(walk.policy_action(mode="sample"))
        walk.act(walk.random_action())
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(walked(seed=0).node, walked(seed=1).node)


def test_a_branch_shares_its_past_and_goes_its_own_way() -> None:
    walk = walked()
    main = walk.path()
    walk.undo(3)
    action = main[4].action
    other = walk.act(action)  # the same action from the same moment: another future
    assert other.parent == main[3].number
    assert not same(other, main[4])
    assert [b.label for b in walk.branches] == ["A", "B"]
    assert walk.path()[:4] == main[:4]
    walk.act(pushes(1)[0])
    assert len(walk.branches) == 2  # at the tip of B it goes on
    assert walk.path(walk.branches[0].tip) == main  # nothing of A is lost
    walk.jump_in(0, 6)
    assert walk.node is main[6]
    walk.jump_in(1, 2)  # on B, before it leaves A
    assert walk.node is main[2]
    assert walk.redo(2) is other
    walk.undo(3)
    third = walk.act(pushes(1)[0])
    assert (walk.branches[2].parent, walk.branches[2].fork) == (0, third.parent)


def test_branch_here_keeps_the_tip() -> None:
    walk = walked(count=2)
    tip = walk.node
    assert walk.branch() == "B"
    walk.act(pushes(1)[0])
    assert (walk.branches[0].tip, walk.branches[1].fork) == (tip.number, tip.number)
    walk.branch()
    walk.undo()  # who goes elsewhere no longer asks for a branch there
    walk.redo()
    walk.act(pushes(1)[0])
    assert len(walk.branches) == 2
    assert [label_of(i) for i in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


def test_the_real_environment_takes_the_same_actions_and_can_be_taken_back() -> None:
    walk = session(left_right(actions="box", length=20))
    walk.start_real(7, context=3)
    assert len(walk.lead) == 3
    for action in pushes(6):
        walk.act(action)
    main = walk.path()
    for node in main[1:]:
        assert node.real is not None
        assert node.action is not None
        shows_right = main[node.number - 1].real.moment.obs["image"][:, 16:].mean() > 100
        assert node.real.moment.reward == float((node.action[0] >= 0) == shows_right)
        assert np.isfinite([node.real.surprise, node.real.news]).all()
        assert node.real.surprise >= 0
    assert main[1].real.surprise == pytest.approx(main[1].real.news)  # both from the same state
    walk.undo(4)
    assert walk.reality.resets == 1  # going back alone costs nothing
    for node in main[3:]:
        walk.act(node.action)
    assert walk.reality.resets == 2
    assert walk.reality.exact
    for node, again in zip(main, walk.path(), strict=True):
        assert np.array_equal(node.real.moment.obs["image"], again.real.moment.obs["image"])
        assert node.real.moment.reward == again.real.moment.reward
    assert "repeat itself" not in shown(walk, "both")["note"]
    walk.close()
    assert walk.reality is None


def test_an_environment_that_does_not_repeat_itself_is_noticed() -> None:
    walk = session(counting(length=9))  # its picture counts the resets
    walk.start_real(0, context=1)
    for _ in range(3):
        walk.act(walk.random_action())
    walk.undo()
    assert walk.reality.exact
    walk.act(walk.random_action())
    assert not walk.reality.exact
    assert "did not repeat itself" in shown(walk, "both")["note"]
    walk.close()


def test_the_dream_goes_on_where_the_real_episode_ends() -> None:
    walk = session(counting(length=4))
    walk.start_real(0, context=2)
    for _ in range(5):
        walk.act(walk.random_action())
    ended = [node.real.moment.terminated if node.real else None for node in walk.path()]
    assert ended == [False, False, False, True, None, None]
    rewards = [node.real.moment.reward for node in walk.path() if node.real]
    assert rewards == [1, 2, 3, 4]  # the context took the first step
    assert shown(walk, "both")["note"] == "The real episode is over here; the dream goes on alone."
    assert "(ended)" in shown(walk, "real")["pictures"][0]["title"]
    assert walk.undo(2).real.moment.terminated
    assert walk.act(walk.random_action()).real is None
    walk.close()


def test_masks_are_obeyed_by_everybody() -> None:
    env = replace(counting(masked=True, length=50), keys=["image", "action_mask"])
    walk = session(env)
    walk.start_real(0, context=2)
    for step in range(1, 7):
        assert walk.mask.tolist() == np.eye(3)[step % 3].tolist()
        with pytest.raises(ValueError, match="mask does not allow"):
            walk.act(np.eye(3)[(step + 1) % 3])
        assert walk.random_action().argmax() == step % 3
        for eyes in ("dream", "real"):
            assert walk.policy_action(eyes, "sample").argmax() == step % 3
        walk.act(walk.policy_action(mode="sample"))
    walk.close()


def test_in_a_dream_the_foretold_mask_counts() -> None:
    env = replace(counting(masked=True, length=50), keys=["image", "action_mask"])
    walk = session(env, steps=20)
    walk.start_recorded(0, 5)
    seen = set()
    for _ in range(20):
        mask = walk.mask
        seen.add(tuple(mask))
        assert mask.any()
        assert mask[walk.random_action().argmax()] == 1
        assert mask[walk.policy_action(mode="sample").argmax()] == 1
        if not mask.all():
            with pytest.raises(ValueError, match="mask does not allow"):
                walk.act(np.eye(3)[mask.argmin()])
        walk.act(walk.random_action())
    assert any(not all(mask) for mask in seen)  # the untrained head does forbid something


def test_masks_of_several_factors() -> None:
    mask = np.array([0, 1, 1, 0, 1], np.float32)  # the first of two, and of three
    assert allows(mask, np.array([0, 1, 1, 0, 0]))
    assert not allows(mask, np.array([1, 0, 1, 0, 0]))
    assert not allows(mask, np.array([0, 1, 0, 1, 0]))
    assert allowed(np.array([0.0, 0, 1, 0, 1]), (2, 3)).tolist() == [1, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("env", "action"),
    [
        (left_right(actions="box"), [np.nan]),
        (left_right(actions="box"), [1.01]),
        (left_right(actions="box"), [0.0, 0.0]),
        (left_right(actions="box"), "left"),
        (left_right(actions="box"), [None]),
        (left_right(), [1.0, 1.0]),
        (left_right(), [0.0, 0.0]),
        (left_right(), [0.5, 0.5]),
        (counting(actions="multidiscrete"), [1, 0, 1, 1, 0]),
    ],
)
def test_impossible_actions_change_nothing(env: Any, action: Any) -> None:
    walk = session(env, steps=12)
    walk.start_recorded(0, 1)
    with pytest.raises(ValueError, match="action"):
        walk.act(action)
    assert len(walk.nodes) == 1


def test_impossible_places_are_named() -> None:
    walk = session(left_right(), steps=30)
    with pytest.raises(ValueError, match="Nothing has begun"):
        walk.undo()
    for episode in (-1, 99, "a", 1.0):
        with pytest.raises(ValueError, match=f"There is no episode {episode}: they are numbered"):
            walk.start_recorded(episode, 0)
    with pytest.raises(ValueError, match="no step 9 in episode 0: it has 0 to 8"):
        walk.start_recorded(0, 9)
    with pytest.raises(ValueError, match="must be 1 to 64"):
        walk.start_recorded(0, 1, context=0)
    with pytest.raises(ValueError, match="The seed is -1"):
        walk.start_real(-1)
    walk.start_recorded(0, 0)
    for call in (lambda: walk.jump(5), lambda: walk.jump_in(1, 0), lambda: walk.jump_in(0, None)):
        with pytest.raises(ValueError, match=r"There is no|A depth is"):
            call()
    with pytest.raises(ValueError, match="Start with a fresh reset"):
        session(left_right()).start_recorded(0, 0)
    broken = Session(World(replace(policy(left_right()), env=left_right(nonsense=1))))
    with pytest.raises(RunError, match="The real environment failed"):
        broken.start_real(0)


def test_context_is_what_the_model_saw_of_that_episode() -> None:
    walk = session(counting(length=8), steps=40)
    walk.start_recorded(2, 6, context=3)
    places = [frame[0, 0, :2].tolist() for frame in walk.lead]  # (episode, step)
    assert places == [[2, 4], [2, 5], [2, 6]]
    few = walk.node
    walk.start_recorded(2, 6, context=64)
    assert [frame[0, 0, 1] for frame in walk.lead] == list(range(7))  # none of the episode before
    assert not same(few, walk.node)
    assert (len(walk.nodes), len(walk.branches)) == (1, 1)  # a new start is a new walk


@pytest.mark.parametrize("view", ["dream", "both", "real"])
def test_a_film_shows_context_and_path(tmp_path: Path, view: str) -> None:
    walk = session(left_right(length=6))
    walk.start_real(1, context=3)
    for _ in range(6):  # longer than the real episode
        walk.act(walk.random_action())
    place, data = save_film(walk, tmp_path, view, fps=12)
    assert place == tmp_path / "play" / f"{view}-A-001.gif"
    assert place.read_bytes() == data
    frames = imageio.mimread(data)
    assert len(frames) > 3  # equal neighbours are one longer frame
    height, width = frames[0].shape[:2]
    tile = 224
    assert width == (2 * tile + 6 if view == "both" else tile)
    assert height > tile
    assert save_film(walk, tmp_path, view)[0].name == f"{view}-A-002.gif"
    assert film_of(walk, view)[:6] == b"GIF89a"
    walk.close()


def test_films_never_overwrite(tmp_path: Path) -> None:
    (tmp_path / "a-001.gif").write_bytes(b"mine")
    assert write_numbered(tmp_path, "a", b"new").name == "a-002.gif"
    assert (tmp_path / "a-001.gif").read_bytes() == b"mine"


def test_numbers_are_drawn_where_there_is_no_image() -> None:
    env = replace(counting(actions="multidiscrete"), pixels=False, keys=["count"])
    walk = session(env, steps=12)
    walk.start_recorded(0, 1)
    walk.act(walk.policy_action())
    assert walk.node.sight.picture.shape[0] == 64
    spec = walk.world.spec
    up = picture_of({"count": np.array([5.0, 0, 0, 0], np.float32)}, spec)
    down = picture_of({"count": np.array([-5.0, 0, 0, 0], np.float32)}, spec)
    first = slice(0, up.shape[1] // 4 - 1)
    assert up[:31, first].sum() > down[:31, first].sum()
    assert np.array_equal(up[::-1][:-1, first], down[1:, first])
    assert np.isfinite(bars(np.array([np.nan, np.inf]))).all()
    assert bars_words(spec)[0].startswith("bars from left to right: count (4); up is above 0")


def test_what_a_page_gets_is_plain_and_complete() -> None:
    walk = session(left_right(actions="box"), steps=30)
    walk.start_recorded(0, 2)
    state = shown(walk, "both")
    assert state["view"] == "dream"  # recorded frames have no reality beside them
    assert state["numbers"]["surprise"] is None
    assert state["numbers"]["reward"] is None
    assert isinstance(state["numbers"]["value"], float)
    walk.act([0.5])
    walk.undo()
    walk.act([-0.5])
    state = shown(walk, "dream")
    rows = state["branches"]["rows"]
    assert [(r["label"], r["fork"], r["tip"]) for r in rows] == [("A", 0, 1), ("B", 0, 1)]
    assert [len(state["curves"][name]) for name in ("reward", "goes_on", "value")] == [2, 2, 2]
    assert 0 <= state["numbers"]["goes_on"] <= 1


def test_worlds_without_a_dream_are_refused() -> None:
    spec: EnvSpec = policy(left_right()).spec
    agent = Random(spec, RandomConfig(), CPU)
    with pytest.raises(ConfigError, match="'random' of this run learned no world model"):
        World(Policy(agent, spec, left_right(), CPU))


def test_a_world_without_a_decoder_is_played_in_reality() -> None:
    """Tic-tac-toe against MuZero: pictures of the real board, and the agent answers."""
    config = EnvConfig("tic_tac_toe", "boards", pixels=False)
    with closing(make_env(config)) as env:
        spec = env_spec(env)
    agent = MuZero(spec, MuZeroConfig(search=MCTSConfig(rule="puct", simulations=4)), CPU)
    world = World(Policy(agent, spec, config, CPU))
    assert (world.shows, world.duels, world.context) == (False, True, 1)
    walk = Session(world)
    with pytest.raises(ValueError, match="has no decoder: from a recorded frame on"):
        walk.start_recorded(0, 0)
    walk.start_real(0, world.context)
    try:
        state = shown(walk, "both")
        assert state["view"] == "real"
        assert [picture["kind"] for picture in state["pictures"]] == ["real"]
        board = real_picture(walk)
        assert board.shape == (256, 256, 3)
        taken = []
        while walk.going:
            taken.append(int(walk.policy_action("dream").argmax()))  # it sees reality all the same
            walk.act(np.eye(9, dtype=np.float32)[taken[-1]])
            assert not np.array_equal(real_picture(walk), board)  # another stone
            board = real_picture(walk)
        assert len(set(taken)) == len(taken) >= 5
        assert shown(walk, "real")["note"] == "The episode ends here."
        with pytest.raises(ValueError, match="The episode is over"):
            walk.act(np.eye(9, dtype=np.float32)[0])
        walk.undo()
        assert walk.going
        walk.start_real(1, world.context)
        asyncio.run(against_the_agent(walk))
        assert film_of(walk).startswith(b"GIF")
    finally:
        walk.close()


async def against_the_agent(walk: Session) -> None:
    """One's own move, and the answer to it, in one step; or one's own alone."""

    async def at_once(call: Any) -> Any:
        return call()

    driver = Driver(walk, at_once, lambda state, n: None, lambda text, kind: None, lambda on: None)
    driver.set_choice("who", "duel")
    await driver.press("#4")
    mine, answer = walk.actions()
    assert mine.argmax() == 4
    assert answer.argmax() != 4
    driver.set_choice("who", "you")
    await driver.press(f"#{next(m for m in range(9) if m not in (4, answer.argmax()))}")
    assert len(walk.actions()) == 3


def real_picture(walk: Session) -> np.ndarray:
    assert walk.node.real is not None
    return walk.node.real.picture
