"""One run of two ranks: one log, one checkpoint, one end; and killed, the run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.run import cli, shares
from agents.run.config import TrainConfig
from agents.run.folder import HOLDER
from agents.run.train import train
from scripts.studies.bench_faults import Settings, compare, small_run
from tests.agents.counting_agent import CountingAgent, CountingConfig
from tests.envs_for_tests import CountingEnv
from tests.rank_pairs import begin, end, together
from worldmodel import checkpoint, config
from worldmodel.accel.ranks import Ranks
from worldmodel.compose import compose_config
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import EnvConfig
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.replay.datasets.sources import open_source
from worldmodel.replay.delta import DELTA

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests.agents.test_run_ranks"
STEADY = "tests.envs_for_tests:SteadyEnv"
SILENT = lambda text: None  # noqa: E731


@dataclass
class JoiningConfig(CountingConfig):
    name: str = f"{HERE}:JoiningAgent"
    batch_size: int = 4


class JoiningAgent(CountingAgent):
    """Its weight is moved by what all ranks drew."""

    Config = JoiningConfig
    joins = True
    ranks = Ranks()

    def join(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def update(self, replay: Any) -> dict[str, Any]:
        bad, mine = None, torch.zeros_like(self.weight)
        before = self.weight.clone()
        try:
            told = super().update(replay)
            mine = self.weight - before
        except FloatingPointError as error:
            bad = error
        if self.ranks.agree(bad is not None):
            self.weight = before
            raise bad or FloatingPointError("elsewhere")
        self.ranks.all_reduce_mean(mine)
        self.weight = before + mine
        return {**told, "rank": float(self.ranks.rank)}


class FailingEnv(CountingEnv):
    """On rank 1 it fails after some steps, each time that it is made anew."""

    def step(self, action: Any) -> Any:
        if os.environ.get("RANK") == "1" and 5 * self.episode + self.count >= 6:
            raise RuntimeError("the gears jam")
        return super().step(action)


def settings(folder: Path, **changes: Any) -> TrainConfig:
    """80 steps of both ranks together, and after 20 of them one update each 4."""
    base = TrainConfig(
        run=str(folder),
        steps=80,
        prefill=20,
        train_ratio=4.0,  # of 4 x 4 rows
        log_every=20,
        eval_every=40,
        eval_episodes=1,
        video_every=0,
        final_episodes=1,
        device="cpu",
        threads=1,
        env=EnvConfig(id=STEADY, pixels=False, keys=["count"]),
        replay=ReplayConfig(capacity=500),
        agent=JoiningConfig(),
    )
    return replace(base, **changes)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.open() if line[-1] == "\n"] if path.is_file() else []


def run_of(settings: TrainConfig) -> Callable[[int], tuple[Any, list[str]]]:
    """A rank's whole life: its exit code, or its error, and what it said."""

    def call(rank: int) -> tuple[Any, list[str]]:
        said: list[str] = []
        try:
            return train(settings, said.append), said
        except (ConfigError, RunError) as error:
            return f"{type(error).__name__}: {error}", said

    return call


def unequal(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs of several ranks, apart from clocks."""
    found = compare(one, other)
    parts = [checkpoint.load(run)["ranks"] for run in (one, other)]
    for part in (part for each in parts for part in each):
        for name in ("series", "token", "generation"):  # by chance, and by how often it saved
            del part["replay"][name]
    found += [] if str(parts[0]) == str(parts[1]) else ["checkpoint: ranks"]
    replays = [Replay.open(run / "replay" / "rank-1") for run in (one, other)]
    for stream, start, stop in replays[0].episodes():
        rows = [replay.rows(stream, start, stop) for replay in replays]
        found += [f"replay: {k}" for k, v in rows[0].items() if (v != rows[1][k]).any()]
    return found


def test_two_ranks_count_as_one_run(tmp_path: Path) -> None:
    two, alone = tmp_path / "two", tmp_path / "alone"
    (code, said), (other, quiet) = together(run_of(settings(two)))
    assert (code, other) == (0, 0)
    assert quiet == []  # rank 0 speaks for both
    assert any("agent steps  80" in text for text in said)
    config = settings(alone)
    train(replace(config, env=replace(config.env, num_envs=2)), SILENT)
    told, counted = (checkpoint.load(run)["counters"] for run in (two, alone))
    for name in ("agent_steps", "updates", "episodes", "owed", "env_frames"):
        assert told[name] == counted[name], name
    first, second = lines_of(two), lines_of(alone)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    assert [line.get("replay_rows") for line in first] == [
        line.get("replay_rows") for line in second
    ]
    means = [line["rank"] for line in first if "rank" in line]
    assert means
    assert set(means) == {0.5}  # of both ranks' metrics
    assert len(list(two.glob("events.*"))) == 1
    # Each rank drew its own actions, and a recording of the run is that of both.
    shards = [Replay.open(shares.shard(two / "replay", rank)) for rank in (0, 1)]
    actions = [shard.rows(*shard.episodes()[0])["action"] for shard in shards]
    assert (actions[0] != actions[1]).any()
    source = open_source(str(two))
    assert source.own is not None
    assert len(list(source.own())) == sum(len(shard.episodes()) for shard in shards)
    # And two ranks learn from it: each holds all of it, and draws its own part.
    offline = settings(tmp_path / "offline", offline=str(two), updates=6, eval_every=0, log_every=3)
    assert [code for code, _ in together(run_of(offline))] == [0, 0]
    replays = [Replay.open(shares.shard(tmp_path / "offline/replay", rank)) for rank in (0, 1)]
    assert len({len(replay) for replay in replays}) == 1
    assert [line["updates"] for line in lines_of(tmp_path / "offline")][:2] == [3, 6]


def test_what_does_not_fit_is_said_once_and_clearly(tmp_path: Path) -> None:
    agent = JoiningConfig(batch_size=5)
    (words, _), (other, _) = together(run_of(settings(tmp_path / "a", agent=agent)))
    assert "agent.batch_size is 5" in words
    assert "for example 6" in words
    assert other == 1  # it has nothing to add
    (words, _), _ = together(run_of(settings(tmp_path / "b", agent=CountingConfig())))
    assert "learns in one process alone" in words
    together(run_of(settings(tmp_path / "c", steps=30)))
    with pytest.raises(ConfigError, match=r"belongs to 2 ranks, but now one process"):
        train(settings(tmp_path / "c"), SILENT)
    train(settings(tmp_path / "d", steps=30), SILENT)
    (words, _), _ = together(run_of(settings(tmp_path / "d")))
    assert "belongs to one process, but now 2 ranks" in words
    assert "the plain command" in words


def test_an_environment_that_fails_on_one_rank_ends_both(tmp_path: Path) -> None:
    env = EnvConfig(id=f"{HERE}:FailingEnv", pixels=False, keys=["count"], max_failures=2)
    (words, _), (code, _) = together(run_of(settings(tmp_path, env=env)))
    assert words.startswith("RunError: Rank 1: The environment failed")
    assert "the gears jam" in words
    assert code == 1
    saved = checkpoint.load(tmp_path)  # what was learned until then
    assert saved["counters"]["agent_steps"] >= 10
    assert len(saved["ranks"]) == 1


def test_an_update_that_is_not_finite_is_skipped_by_both(tmp_path: Path) -> None:
    agent = JoiningConfig(bad_from=5)
    config = settings(tmp_path, agent=agent, nonfinite_limit=2)
    (code, said), _ = together(run_of(config))
    assert code == 0
    assert sum("times the learning rate" in text for text in said) == 2
    counters = checkpoint.load(tmp_path)["counters"]
    assert counters["rollbacks"] == 2
    assert counters["agent_steps"] == 80


def test_a_signal_to_one_rank_stops_both_at_one_step(tmp_path: Path) -> None:
    config = settings(tmp_path, steps=10_000_000)
    ranks = begin(run_of(config))
    wait_for(lambda: lines_of(tmp_path))
    os.kill(ranks[1][0].pid, signal.SIGTERM)
    (code, said), (other, _) = end(ranks)
    assert code == other == 128 + signal.SIGTERM
    counters = checkpoint.load(tmp_path)["counters"]
    assert any(f"stopped at step {counters['agent_steps']:,}" in text for text in said)
    # It goes on from there with both.
    (code, said), _ = together(
        run_of(replace(config, steps=counters["agent_steps"] + 20, final_episodes=1))
    )
    assert code == 0
    assert any("continuing" in text for text in said)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_within_a_save_loses_that_save_alone(tmp_path: Path, moment: str) -> None:
    """Both ranks end right before, or right after, the checkpoint that they were saving for:
    their replays then hold what no checkpoint names, or what is not yet in its place."""
    alone = settings(tmp_path / "alone")
    together(run_of(alone))
    config = replace(alone, run=str(tmp_path / "killed"))
    both = [shares.shard(tmp_path / "killed" / "replay", rank) / DELTA for rank in (0, 1)]

    def killed(rank: int) -> None:
        from agents.run import checkpoints
        from agents.run.trainer import Trainer

        write, calls = checkpoints._write, []

        def dies(*args: Any) -> None:
            calls.append(1)
            if len(calls) == 3 and moment == "after":
                write(*args)
            if len(calls) == 3:
                assert all(path.is_file() for path in both)
                os.kill(os.getpid(), signal.SIGKILL)
            write(*args)

        checkpoints._write = dies
        Trainer(replace(config, checkpoint_minutes=0.02 / 60), SILENT, Ranks.join()).run()

    ranks = begin(killed)
    with pytest.raises(AssertionError, match="rank 0 died"):
        end(ranks)
    together(run_of(config))
    assert unequal(tmp_path / "alone", tmp_path / "killed") == []


def wait_for(there: Callable[[], Any], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


def torchrun(words: list[str]) -> subprocess.Popen[str]:
    """Two ranks, which it starts again once."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", "1", "scripts/train.py", *words,
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=-1, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_dreamer_killed_with_both_ranks_is_the_one_that_was_not(tmp_path: Path) -> None:
    config = small_run(tmp_path / "alone", Settings(steps=110))
    config = replace(config, replay=replace(config.replay, capacity=3000))
    killed = replace(config, run=str(tmp_path / "killed"), checkpoint_minutes=0.1 / 60)
    assert [code for code, _ in together(run_of(config))] == [0, 0]
    ranks = begin(run_of(killed))
    wait_for(lambda: len(lines_of(tmp_path / "killed")) >= 4)
    for process, _ in ranks:
        process.kill()
    with pytest.raises(AssertionError, match="rank 0 died"):
        end(ranks)
    (code, said), _ = together(run_of(killed))
    assert code == 0
    assert any("continuing" in text for text in said)
    assert unequal(tmp_path / "alone", tmp_path / "killed") == []


@pytest.mark.slow
def test_torchrun_survives_the_end_of_one_rank(tmp_path: Path) -> None:
    """Through scripts/train.py: rank 1 is killed, rank 0 ends, both are started again, and the run
    is the one that was not killed (and whose ranks no torchrun started)."""
    name = f"{HERE}:JoiningAgent"
    words = [
        "experiment=none", f"agent={name}", f"env.id={STEADY}",
        "env.pixels=false", "env.keys=[count]", "steps=400", "prefill=20", "train_ratio=4",
        "eval_every=0", "video_every=0", "final_episodes=1", "device=cpu", "threads=1",
        "replay.capacity=3000", "checkpoint_minutes=0.005", "log_every=20",
    ]  # fmt: skip
    cli.register(words)
    composed = config.build(compose_config(cli.CONFIGS, "train", words), TrainConfig)
    alone = replace(composed, run=str(tmp_path / "alone"), checkpoint_minutes=1.0)
    assert [code for code, _ in together(run_of(alone))] == [0, 0]

    words += [f"run={tmp_path / 'killed'}"]
    process = torchrun(words)
    try:
        holder = tmp_path / "killed" / "replay" / "rank-1" / HOLDER
        wait_for(lambda: len(lines_of(tmp_path / "killed")) >= 2)
        os.kill(json.loads(holder.read_text())["pid"], signal.SIGKILL)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert said.count("continuing") == 1
    assert unequal(tmp_path / "alone", tmp_path / "killed") == []
