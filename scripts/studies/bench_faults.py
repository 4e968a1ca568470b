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
from worldmodel import checkpoint
from worldmodel.config import RunError
from worldmodel.envs import EnvConfig
from worldmodel.replay import ReplayConfig
from worldmodel.replay.delta import DELTA, FOLDING, FRESH
from worldmodel.rssm import ModelConfig

CLOCKS = ("wall_clock_s", "steps_per_s", "updates_per_s")
SECONDS = ("train_seconds", "eval_seconds")


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
    rng, total, differences, runs = np.random.default_rng(settings.seed), Killed(), [], 0
    began = time.monotonic()
    while total.kills < settings.kills:
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder)
            config = small_run(here / "alone", settings, seed=runs)
            live(config)
            killed = replace(config, run=str(here / "killed"))
            one = kill(killed, settings.kills - total.kills, rng, settings.longest)
            differences += compare(here / "alone", here / "killed")
        total.kills += one.kills
        total.while_saving += one.while_saving
        total.repeated += one.repeated
        runs += 1
    yield {
        "kills": total.kills,
        "while_saving": total.while_saving,
        "runs": runs,
        "repeated_steps": total.repeated,
        "differences": differences,
        "seconds": round(time.monotonic() - began, 1),
    }


def small_run(folder: Path, settings: Settings, seed: int = 0) -> TrainConfig:
    """A Dreamer on Pendulum from pixels, small in every part, that saves many times a minute."""
    model = ModelConfig(
        deter=32, hidden=16, groups=4, classes=4, depth=4, units=16, mults=[1, 2, 2]
    )
    return TrainConfig(
        run=str(folder),
        seed=seed,
        device="cpu",
        threads=1,
        steps=settings.steps,
        train_ratio=4.0,
        prefill=40,
        log_every=20,
        eval_every=settings.steps // 3,
        eval_episodes=1,
        final_episodes=1,
        video_every=0,
        checkpoint_minutes=0.3 / 60,
        env=EnvConfig(
            id="Pendulum-v1",
            image_size=[32, 32],
            action_repeat=2,
            time_limit=40,
            num_envs=settings.num_envs,
            vector=settings.vector,
        ),
        replay=ReplayConfig(capacity=1500, storage=settings.storage),  # it wraps around
        agent=DreamerConfig(batch_size=4, batch_length=8, horizon=4, model=model),
    )


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
    told, folder = Killed(), Path(config.run)
    while told.kills < kills:
        if start(config, float(rng.uniform(0.0, longest)), bool(rng.random() < 0.8)) == 0:
            break
        told.kills += 1
        told.while_saving += _was_saving(folder)
        told.repeated += _repeated(folder)
    start(config)
    return told


def _was_saving(folder: Path) -> bool:
    """Whether a kill left something of a save unfinished."""
    logs = [folder / "replay" / name for name in (DELTA, FRESH, FOLDING)]
    return any(path.exists() for path in (folder / checkpoint.FOLDER / "unfinished", *logs))


def _repeated(folder: Path) -> int:
    """Logged agent steps that are later than the last checkpoint."""
    if not checkpoint.exists(folder) or not (folder / "metrics.jsonl").exists():
        return 0
    lines = [
        line for line in (folder / "metrics.jsonl").read_text().splitlines() if line[-1] == "}"
    ]
    last = json.loads(lines[-1])["step"] if lines else 0
    return max(0, int(last) - checkpoint.load(folder)["counters"]["agent_steps"])


def compare(one: Path, other: Path) -> list[str]:
    """Everything in which two finished runs differ, apart from clocks."""
    found = []
    lines = [
        [_without(json.loads(line), CLOCKS) for line in (run / "metrics.jsonl").open()]
        for run in (one, other)
    ]
    if lines[0] != lines[1]:
        steps = [[line["step"] for line in run] for run in lines]
        found.append(f"metrics: {steps[0]} against {steps[1]}")
    states = [checkpoint.load(run) for run in (one, other)]
    for key in ("agent", "rng", "collector", "means", "scores"):
        found += [f"checkpoint: {where}" for where in _unequal(states[0][key], states[1][key], key)]
    counters = [_without(state["counters"], SECONDS) for state in states]
    found += [f"checkpoint: {where}" for where in _unequal(counters[0], counters[1], "counters")]
    found += _compare_replays(one, other)
    return found


def _compare_replays(one: Path, other: Path) -> list[str]:
    replays = [agents.load_replay(run) for run in (one, other)]
    if replays[0].episodes() != replays[1].episodes():
        return ["replay: other episodes"]
    found = []
    for stream, start, stop in replays[0].episodes():
        rows = [replay.rows(stream, start, stop) for replay in replays]
        found += [f"replay: {w}" for w in _unequal(rows[0], rows[1], f"{stream}.{start}")]
    return found


def _without(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def _unequal(one: Any, other: Any, where: str) -> list[str]:
    """Dotted names of the parts of two nested values that are not equal to the bit."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return [x for key in one for x in _unequal(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [x for i, (a, b) in pairs for x in _unequal(a, b, f"{where}.{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [where]
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return [] if np.array_equal(one, other) else [where]
    return [] if type(one) is type(other) and one == other else [where]
