"""What a run begins with: a replay of its own, wherever the user wants it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.base import Agenda
from agents.run import setup
from agents.run.cli import train_command
from agents.run.config import TrainConfig
from tests.agents.counting_agent import CountingConfig
from tests.fuzz import runs
from tests.replay_rows import COLUMNS, SPEC, add, make
from worldmodel.config import ConfigError
from worldmodel.replay import ReplayConfig

AGENT: Any = SimpleNamespace(columns=COLUMNS, priority_exponent=0.0)


def settings(folder: Path, place: Path) -> TrainConfig:
    replay = ReplayConfig(capacity=60, directory=str(place))
    return replace(runs.settings(folder, CountingConfig()), replay=replay)


def test_a_new_run_takes_no_replay_of_others_away(tmp_path: Path) -> None:
    place, other = tmp_path / "named", make()
    add(other, 20)
    other.save(place)
    other.commit()
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(ConfigError, match=r"replay.directory=.*holds a replay already.*empty"):
        setup.make_replay(settings(tmp_path / "run", place), SPEC, AGENT, fresh=True)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def learner(**changes: Any) -> Any:
    """Of batches 32 x 16, as the small Dreamer."""
    about = {"learns": True, "min_rows": 512, "batch_size": 32, "batch_length": 16, "agenda": None}
    about |= {"in_a_row": 16, "window_words": "agent.batch_length", "both_sides": False}
    return SimpleNamespace(**about | changes)


def check(steps: int, agent: Any, say: Any = None, spec: Any = SPEC, **changes: Any) -> None:
    wanted = {"steps": steps, "prefill": 200, "train_ratio": 160.0} | changes
    config = replace(runs.settings(Path("none"), CountingConfig()), **wanted)
    replay: Any = SimpleNamespace(capacity=10_000, num_envs=1, spec=spec)
    setup.check_can_learn(config, agent, replay, say=say)


def test_a_game_of_two_is_refused_by_who_plays_for_one() -> None:
    with pytest.raises(ConfigError, match=r"agent=.* as its own. Use agent=muzero; .*alternates="):
        check(1000, learner(), spec=SimpleNamespace(obs={"to_play": None}))
    check(1000, learner(both_sides=True), spec=SimpleNamespace(obs={"to_play": None}))


def test_a_run_in_which_no_update_can_come_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"steps=450 is less than .* hold 512 rows .*batch_size"):
        check(450, learner())
    with pytest.raises(ConfigError, match=r"less than one update .* each takes 5,120 steps"):
        check(600, learner(), train_ratio=0.1)
    phases = learner(agenda=Agenda(10, True, False, "collect", 1000))
    with pytest.raises(ConfigError, match=r"steps=1000 must be more than the 1,000 that agent="):
        check(1000, phases)
    check(1001, phases)
    check(201, learner(min_rows=1, batch_size=1, batch_length=1))
    check(450, learner(learns=False))


def test_updates_that_begin_later_than_asked_are_announced() -> None:
    said: list[str] = []
    check(600, learner(), said.append)
    assert [line[:54] for line in said] == [
        "updates begin at about step 512, not at prefill=200: r"
    ]
    check(600, learner(), said.append, prefill=512)
    assert len(said) == 1


def test_what_is_not_ours_stays_where_a_new_run_begins(tmp_path: Path) -> None:
    place, killed = tmp_path / "named", make()
    add(killed, 20)
    killed.save(place)  # and then no checkpoint: nothing rests on it
    (place / "weights.0001.bin").write_bytes(b"mine")
    (place / "action.0000.bin").mkdir()
    setup.make_replay(settings(tmp_path / "run", place), SPEC, AGENT, fresh=True)
    assert {path.name for path in place.iterdir()} == {"weights.0001.bin", "action.0000.bin"}
    (place / "delta.bin").mkdir()
    with pytest.raises(ValueError, match=r"delta.bin' is a folder, where a replay has a file"):
        setup.make_replay(settings(tmp_path / "run", place), SPEC, AGENT, fresh=True)


def test_what_a_replay_lost_is_said(tmp_path: Path) -> None:
    replay = make()
    add(replay, 20)
    state = replay.save(tmp_path)
    replay.commit()
    path = tmp_path / "reward.0001.bin"
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setup.load_replay(make(), tmp_path, state, said.append)
    assert len(said) == 1
    assert said[0].startswith("warning: Replay at")
    assert "dropped the oldest 20 rows of 20; reward.0001.bin is damaged" in said[0]


def test_a_setting_of_hydras_own_that_it_only_asserts_is_one_line() -> None:
    said: list[str] = []
    assert train_command(said.append, ["hydra.verbose=3"]) == 2
    assert said[-1].startswith("error: Hydra does not take this: hydra.verbose=3.")


def test_a_choice_with_a_name_that_no_file_can_have_is_one_line() -> None:
    said: list[str] = []
    assert train_command(said.append, [f"agent={'x' * 5000}"]) == 2
    assert said[-1].startswith(f"error: 'agent={'x' * 54}...' is too long")
