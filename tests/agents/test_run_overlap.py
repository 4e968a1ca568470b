"""Updates while environments step: the same rows and counts, in less time, and safe to kill."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.run.settings import TrainConfig
from agents.run.train import train
from agents.run.trainer import Trainer
from agents.studies.bench_faults import compare
from tests.agents.counting_agent import CountingAgent, CountingConfig
from worldmodel import checkpoint
from worldmodel.config import RunError
from worldmodel.envs import EnvConfig, EnvError, Vector, make_vector
from worldmodel.replay import Replay, ReplayConfig

HERE = "tests.agents.test_run_overlap"
STEADY = "tests.envs_for_tests:SteadyEnv"
SILENT = lambda text: None  # noqa: E731
PAUSE = 0.03  # seconds of a step, and of an update


@dataclass
class SlowConfig(CountingConfig):
    name: str = f"{HERE}:SlowAgent"
    pause: float = 0.0


class SlowAgent(CountingAgent):
    """Its updates take their time."""

    Config = SlowConfig

    def update(self, replay: Replay) -> dict[str, Any]:
        time.sleep(self.config.pause)  # type: ignore[attr-defined]
        return super().update(replay)


def settings(folder: Path, **changes: Any) -> TrainConfig:
    """Two environments in processes of their own; after 10 steps one update for every two."""
    base = TrainConfig(
        run=str(folder),
        steps=60,
        prefill=10,
        train_ratio=4.0,  # of 2 x 4 rows
        log_every=20,
        eval_every=0,
        video_every=0,
        final_episodes=1,
        device="cpu",
        env=EnvConfig(id=STEADY, pixels=False, num_envs=2, vector="async"),
        replay=ReplayConfig(capacity=500),
        agent=SlowConfig(),
    )
    return replace(base, **changes)


@pytest.fixture
def envs() -> Iterator[Vector]:
    made = make_vector(EnvConfig(id=STEADY, pixels=False), 2, seed=0)
    yield made
    made.close()


def test_a_step_under_way_has_not_happened_yet(envs: Vector) -> None:
    actions = np.ones(2, int)
    with pytest.raises(EnvError, match="before the first reset"):
        envs.step_async(actions)
    envs.reset()
    with pytest.raises(EnvError, match="without step_async"):
        envs.step_wait()
    rows = envs.step(actions)
    before = envs.snapshot()
    envs.step_async(actions)
    assert str(envs.snapshot()) == str(before)
    with pytest.raises(EnvError, match="interrupted"):  # there is one under way
        envs.step_async(actions)
    again = envs.restore(before, rows[0])
    np.testing.assert_array_equal(again[0]["count"], rows[0]["count"])
    assert envs.step(actions)[0]["count"][:, 1].tolist() == [2, 2]


def test_updates_and_environments_take_their_time_together(tmp_path: Path) -> None:
    """Per step 30 ms there and one update of 30 ms here, which is half of it all."""
    slow = settings(tmp_path, steps=50, agent=SlowConfig(pause=PAUSE))
    slow = replace(slow, env=replace(slow.env, kwargs={"pause": PAUSE}))
    seconds, told = {}, {}
    for overlap in (True, False):
        folder = tmp_path / str(overlap)
        assert train(replace(slow, run=str(folder), overlap=overlap), SILENT) == 0
        saved = checkpoint.load(folder)
        seconds[overlap] = saved["counters"]["train_seconds"]
        told[overlap] = {
            name: saved["counters"][name] for name in ("agent_steps", "updates", "owed", "episodes")
        }
        replay = Replay.open(folder / "replay")
        rows = [replay.rows(*episode) for episode in replay.episodes()]
        for row in rows:  # each action stands with the row that it led to
            live = ~row["is_first"]
            assert (row["count"][live, 2] == row["action"][live].argmax(-1)).all()
            assert (row["count"][:, 1] == np.arange(len(row["reward"])) % 6).all()
    assert told[True] == told[False]
    assert told[True]["updates"] >= 15
    assert seconds[True] < 0.8 * seconds[False]


def test_environments_in_this_process_go_first(tmp_path: Path) -> None:
    config = settings(tmp_path)
    trainer = Trainer(replace(config, env=replace(config.env, vector="sync")), SILENT)
    assert not trainer.overlap
    trainer.close()


def test_a_kill_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a save in the middle, with updates still owed."""
    config = settings(tmp_path / "alone", train_ratio=12.0)
    train(config, SILENT)
    config = replace(config, run=str(tmp_path / "killed"))
    trainer = Trainer(replace(config, checkpoint_minutes=1e-9), SILENT)

    class Killed(BaseException):
        pass

    save = trainer.save

    def dies() -> None:
        save()
        if trainer.counters.updates > 20:
            raise Killed

    monkeypatch.setattr(trainer, "save", dies)
    with pytest.raises(Killed):
        trainer.run()
    trainer.close()
    assert checkpoint.load(tmp_path / "killed")["counters"]["owed"] >= 1
    train(config, SILENT)
    assert compare(tmp_path / "alone", tmp_path / "killed") == []


def test_a_failure_while_updates_are_done_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    config = settings(tmp_path)
    env = replace(config.env, kwargs={"last": 15}, max_failures=1)
    with pytest.raises(RunError, match="the gears jam"):
        train(replace(config, env=env), SILENT)
    saved = checkpoint.load(tmp_path)
    assert saved["counters"]["agent_steps"] == saved["collector"]["steps"] == 30
    # 15 steps of each, the first rows of 4 episodes, and not the row that is yet to be acted on.
    assert Replay.open(tmp_path / "replay").counts.tolist() == [18, 18]
    train(replace(config, accept_changes=True, steps=40), SILENT)  # mended
    assert checkpoint.load(tmp_path)["counters"]["agent_steps"] == 40
