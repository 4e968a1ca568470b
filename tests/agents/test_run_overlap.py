"""Updates while environments step: the same rows and counts, and safe to kill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.run.config import TrainConfig
from agents.run.train import train
from agents.run.trainer import Trainer
from scripts.studies import bench_overlap
from scripts.studies.bench_faults import compare
from tests.agents.counting_agent import CountingConfig
from worldmodel import checkpoint
from worldmodel.config import RunError
from worldmodel.envs import EnvConfig, EnvError, Vector, make_vector
from worldmodel.replay import Replay, ReplayConfig

STEADY = "tests.envs_for_tests:SteadyEnv"
SILENT = lambda text: None  # noqa: E731
TINY = [
    "agent.model.deter=16", "agent.model.hidden=8", "agent.model.groups=4",
    "agent.model.units=8", "agent.model.blocks=4", "agent.model.mults=[1,1,1]",
]  # fmt: skip


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
        agent=CountingConfig(),
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


def test_updates_are_done_while_a_step_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows, their order, and how much is learned are as without."""
    told, under_way = {}, {}
    for overlap in (True, False):
        config = settings(tmp_path / str(overlap), overlap=overlap, checkpoint_minutes=0.002)
        trainer = Trainer(config, SILENT)
        update, save = trainer.state.agent.update, trainer.save
        during: list[bool] = []

        def noted(replay: Replay, do: Any = update, run: Any = trainer, to: Any = during) -> Any:
            to.append(run.state.collector.acted is not None)
            return do(replay)

        def saved(trainer: Any = trainer, do: Any = save) -> None:
            assert trainer.state.collector.acted is None  # nothing is under way
            do()

        monkeypatch.setattr(trainer.state.agent, "update", noted)
        monkeypatch.setattr(trainer, "save", saved)
        trainer.run()
        trainer.close()
        counters = checkpoint.load(config.folder)["counters"]
        names = ("agent_steps", "updates", "owed", "episodes")
        told[overlap], under_way[overlap] = {name: counters[name] for name in names}, during
        replay = Replay.open(config.folder / "replay")
        for row in (replay.rows(*episode) for episode in replay.episodes()):
            live = ~row["is_first"]  # each action stands with the row that it led to
            assert (row["count"][live, 2] == row["action"][live].argmax(-1)).all()
            assert (row["count"][:, 1] == np.arange(len(row["reward"])) % 6).all()
    assert told[True] == told[False]
    assert told[True]["updates"] >= 20
    assert not any(under_way[False])
    assert sum(under_way[True]) >= len(under_way[True]) - 1  # all but what the last step earned


@pytest.mark.slow  # environments that import all of this
def test_the_measure_tells_what_overlap_saves() -> None:
    small = bench_overlap.Settings(
        device="cpu", image=32, batch=2, length=4, horizon=2, ratio=8.0, milliseconds=10.0,
        windows=1, steps=20, set=TINY,
    )  # fmt: skip
    (figure,) = bench_overlap.measure(small)
    assert 0.01 < figure["with"]["seconds"] < figure["without"]["seconds"]
    assert figure["speed_up"] > 1


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
        if trainer.state.counters.updates > 20:
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
