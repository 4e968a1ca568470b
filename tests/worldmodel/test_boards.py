"""Board games: rules, both sides, perfect play and the searching opponent."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.envs import EnvConfig, EnvError, env_spec, make_env
from worldmodel.envs.boards import GAMES, BoardGame, Exact, draw, legal, place, winning

TIC, FOUR = GAMES["tic_tac_toe"], GAMES["connect_four"]


def board(text: str) -> np.ndarray:
    rows = text.split()
    return np.array([[{"x": 1, "o": -1, ".": 0}[c] for c in row] for row in rows], np.int8)


def test_lines_in_all_directions() -> None:
    b = board("....... ....... ...x... ..xo... .xoo... xooo...")
    assert len(winning(FOUR, b, 2, 3)) == 4
    assert winning(FOUR, b, 5, 3) == []
    assert len(winning(TIC, board("..o .o. o.."), 1, 1)) == 3
    assert len(winning(TIC, board("xxx ... ..."), 0, 2)) == 3
    assert len(winning(TIC, board(".x. .x. .x."), 0, 1)) == 3


def test_stones_fall() -> None:
    b = np.zeros((6, 7), np.int8)
    assert [place(FOUR, b, 2, 1)[0] for _ in range(6)] == [5, 4, 3, 2, 1, 0]
    assert legal(FOUR, b).tolist() == [True, True, False, True, True, True, True]


def test_self_play_is_seen_from_the_side_of_who_moves() -> None:
    env = BoardGame(TIC)
    obs, _ = env.reset(seed=0)
    assert obs["to_play"] == 0
    assert obs["action_mask"].tolist() == [1] * 9
    obs, reward, *_ = env.step(4)
    assert (obs["to_play"], reward) == (1, 0.0)
    assert obs["board"][:9].sum() == 0  # nothing of one's own yet
    assert obs["board"][9:].argmax() == 4
    with pytest.raises(EnvError, match=r"Move 4 is not legal"):
        env.step(4)
    for move in (0, 3, 1):
        obs, reward, ended, *_ = env.step(move)
        assert (reward, ended) == (0.0, False)
    obs, reward, ended, cut, _ = env.step(5)
    assert (reward, ended, cut) == (1.0, True, False)  # to who moved
    assert env.render().shape == draw(env.board).shape
    env.reset()
    for move in (0, 1, 2, 4, 3, 5, 7, 6):
        *_, reward, ended, _, _ = env.step(move)
        assert not ended
    _, reward, ended, *_ = env.step(8)
    assert (reward, ended) == (0.0, True)  # a draw


def test_perfect_play() -> None:
    exact = Exact(TIC)
    assert max(exact.worth(np.zeros((3, 3), np.int8), 1)) == 0
    assert len(exact._known) < 5478  # of both sides as one
    rng = np.random.default_rng(0)
    assert exact.best(board("xx. oo. ..."), 1, rng) == 2
    assert exact.best(board("xx. .o. ..."), -1, rng) == 2
    with pytest.raises(EnvError, match="Take opponent=mcts"):
        BoardGame(FOUR, "minimax")


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("opponent", ["self", "minimax", "mcts", "random"])
def test_whole_games(game: str, opponent: str) -> None:
    if opponent == "minimax" and game == "connect_four":
        return
    kwargs = {"opponent": opponent, "simulations": 30}
    env = make_env(EnvConfig(game, "boards", pixels=False, kwargs=kwargs), seed=1)
    spec = env_spec(env)
    assert spec.has_mask
    assert set(spec.obs) == {"board", "to_play", "action_mask"}
    rng, totals = np.random.default_rng(0), []
    for _ in range(20):
        obs, _ = env.reset()
        assert obs["action_mask"].any()
        total, ended = 0.0, False
        while not ended:
            move = rng.choice(np.flatnonzero(obs["action_mask"]))
            obs, reward, ended, _, _ = env.step(move)
            total += reward
        totals.append(total)
    assert set(totals) <= {-1.0, 0.0, 1.0}
    if opponent == "minimax":
        assert max(totals) <= 0  # nobody wins against perfect play
        assert min(totals) == -1
    if opponent == "mcts":
        assert np.mean(totals) < -0.3
    if opponent == "self":
        assert min(totals) >= 0
        assert max(totals) == 1


def test_an_opponent_may_begin() -> None:
    for start, stones in (("agent", 0), ("opponent", 1)):
        env = BoardGame(TIC, "random", start)
        obs, _ = env.reset(seed=0)
        assert obs["board"].sum() == stones
    counts = [BoardGame(TIC, "random").reset(seed=s)[0]["board"].sum() for s in range(20)]
    assert set(counts) == {0, 1}


def test_wrong_words() -> None:
    with pytest.raises(EnvError, match="Did you mean 'minimax'"):
        BoardGame(TIC, "minmax")
    with pytest.raises(EnvError, match="simulations is 0"):
        BoardGame(TIC, "mcts", simulations=0)
    with pytest.raises(EnvError, match="alternates=true"):
        BoardGame(TIC, alternates=False)
    for name, kwargs in (("chess", {}), ("tic_tac_toe", {"oponent": "self"})):
        with pytest.raises(EnvError, match="Unknown"):
            make_env(EnvConfig(name, "boards", pixels=False, kwargs=kwargs))
