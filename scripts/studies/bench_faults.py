"""`what=faults`: a run is killed again and again; what it becomes equals the run that was not.

The same small run is trained twice, once left alone and once with SIGKILL at random moments,
each time started again by the same call. Every line of metrics, every tensor of the checkpoint
and every row of the replay must be the same to the bit; only clocks may differ.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import agents
from agents.dreamer import DreamerConfig
from agents.run.config import TrainConfig
from agents.run.train import train
from worldmodel import checkpoint, tree
from worldmodel.config import RunError
from worldmodel.envs import EnvConfig
from worldmodel.replay import ReplayConfig
from worldmodel.replay.delta import DELTA, FOLDING, FRESH
from worldmodel.rssm import ModelConfig

CLOCKS = ("wall_clock_s", "steps_per_s", "updates_per_s", "train_seconds", "eval_seconds")


@dataclass
class Settings:
    """How often to kill, and what."""

    kills: int = 50
    seed: int = 0  # of the moments
    steps: int = 3000  # agent steps of one run; another one begins where it ends too soon
    longest: float = 2.5  # seconds between a start and a kill, at most
    storage: str = "memory"  # of the replay: memory | disk
    num_envs: int = 1
    vector: str = "sync"


@dataclass
class Killed:
    """What happened to a run: how often it was killed, and at which moments of it."""

    kills: int = 0
    while_saving: int = 0  # kills that left an unfinished checkpoint or uncommitted rows
    repeated: int = 0  # agent steps that were done more than once, over all kills


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure: kills, those that fell into a save, and every difference that was found."""
    rng, runs = np.random.default_rng(settings.seed), list[Killed]()
    differences: list[str] = []
    began = time.monotonic()
    while (kills := sum(run.kills for run in runs)) < settings.kills:
        with tempfile.TemporaryDirectory() as folder:
            alone, killed = Path(folder) / "alone", Path(folder) / "killed"
            config = small_run(alone, settings, seed=len(runs))
            live(config)
            config = replace(config, run=str(killed))
            runs.append(kill(config, settings.kills - kills, rng, settings.longest))
            differences += compare(alone, killed)
    yield {
        "kills": kills,
        "while_saving": sum(run.while_saving for run in runs),
        "runs": len(runs),
        "repeated_steps": sum(run.repeated for run in runs),
        "differences": differences,
        "seconds": round(time.monotonic() - began, 1),
    }


def small_run(folder: Path, settings: Settings, seed: int = 0) -> TrainConfig:
    """A Dreamer on Pendulum from pixels, small in every part, that saves many times a minute."""
    model = ModelConfig(
        deter=32, hidden=16, groups=4, classes=4, depth=4, units=16, mults=[1, 2, 2]
    )
    return TrainConfig(
        run=str(folder), seed=seed, device="cpu", threads=1, steps=settings.steps,
        train_ratio=4.0, prefill=40, log_every=20, eval_every=settings.steps // 3, eval_episodes=1,
        final_episodes=1, video_every=0, checkpoint_minutes=0.3 / 60,
        env=EnvConfig(
            id="Pendulum-v1", image_size=[32, 32], action_repeat=2, time_limit=40,
            num_envs=settings.num_envs, vector=settings.vector,
        ),
        replay=ReplayConfig(capacity=1500, storage=settings.storage),  # it wraps around
        agent=DreamerConfig(batch_size=4, batch_length=8, horizon=4, model=model),
    )  # fmt: skip


def live(config: TrainConfig, longest: float | None = None, begun: bool = True) -> int | None:
    """Train in a process of its own, killed after `longest` seconds; its exit code (-9: killed).

    begun: whether the seconds count from the moment at which the run goes on, not from the start
    of its process. Raises RunError where the process failed by itself.
    """
    context = multiprocessing.get_context("fork")
    goes_on = context.Event()
    process = context.Process(target=_life, args=(config, goes_on))
    process.start()
    while begun and longest is not None and process.is_alive() and not goes_on.wait(0.05):
        pass
    process.join(longest)
    process.kill()
    process.join()
    if process.exitcode not in (0, -9):
        raise RunError(f"The run in '{config.run}' ended with the code {process.exitcode}.")
    return process.exitcode


def _life(config: TrainConfig, goes_on: Any) -> None:
    def say(text: str) -> None:
        if text.startswith(("continuing", "memory:")):
            goes_on.set()

    torch.set_num_threads(1)
    raise SystemExit(train(config, say))


def kill(
    config: TrainConfig,
    kills: int,
    rng: np.random.Generator,
    longest: float,
    start: Callable[..., int | None] = live,
) -> Killed:
    """Start a run and kill it, `kills` times or until it is done; then let it end. One kill in
    five falls somewhere into the start, the others into what follows."""
    found, folder = Killed(), Path(config.run)
    while found.kills < kills:
        if start(config, float(rng.uniform(0.0, longest)), bool(rng.random() < 0.8)) == 0:
            break
        found.kills += 1
        found.while_saving += _was_saving(folder)
        found.repeated += _repeated(folder)
    start(config)
    return found


def _was_saving(folder: Path) -> bool:
    """Whether a kill left something of a save unfinished."""
    logs = [folder / "replay" / name for name in (DELTA, FRESH, FOLDING)]
    return any(path.exists() for path in (folder / checkpoint.FOLDER / "unfinished", *logs))


def _repeated(folder: Path) -> int:
    """Logged agent steps that are later than the last checkpoint."""
    if not checkpoint.exists(folder) or not (folder / "metrics.jsonl").exists():
        return 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if line[-1] == "}"]
    saved = checkpoint.load(folder)["counters"]["agent_steps"]
    return max(0, (steps[-1] if steps else 0) - saved)


def compare(one: Path, other: Path) -> list[str]:
    """Everything in which two finished runs differ, apart from clocks."""
    found = []
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (one, other)]
    states = [checkpoint.load(run) for run in (one, other)]
    for values in (*logs[0], *logs[1], *(state["counters"] for state in states)):
        for name in CLOCKS:
            values.pop(name, None)
    if logs[0] != logs[1]:
        steps = [[line["step"] for line in log] for log in logs]
        found.append(f"metrics: {steps[0]} against {steps[1]}")
    for key in ("agent", "rng", "collector", "means", "scores", "counters"):
        found += [f"checkpoint: {name}" for name in _unequal(states[0][key], states[1][key], key)]
    replays = [agents.load_replay(run) for run in (one, other)]
    episodes = replays[0].episodes()
    if episodes != replays[1].episodes():
        return [*found, "replay: other episodes"]
    for stream, start, stop in episodes:
        rows = [replay.rows(stream, start, stop) for replay in replays]
        found += [f"replay: {name}" for name in _unequal(rows[0], rows[1], f"{stream}.{start}")]
    return found


def _unequal(one: Any, other: Any, name: str) -> list[str]:
    """Dotted names of the parts of two nested values that are not equal to the bit."""
    ours, theirs = (dict(tree.leaves(values, name)) for values in (one, other))
    return [
        part
        for part in ours | theirs
        if part not in ours or part not in theirs or not _same(ours[part], theirs[part])
    ]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)
