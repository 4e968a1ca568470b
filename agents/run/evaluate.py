"""Evaluation: episodes are played to their ends and their returns reported; nothing learns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from agents.base import Agent, check_mode
from agents.run.collect import Collector
from worldmodel import seeding
from worldmodel.envs import EnvConfig, EnvError, make_vector
from worldmodel.log import as_rgb
from worldmodel.replay import Replay
from worldmodel.types import Batch, EnvSpec


@dataclass
class EvalResult:
    """Returns and lengths (agent steps) of the episodes, and the rows of a recorded one."""

    returns: list[float]
    lengths: list[int]
    rows: list[dict[str, np.ndarray]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns between episodes."""
        return float(np.std(self.returns))

    def batch(self, spec: EnvSpec) -> Batch:
        """The recorded episode as a batch [1, T, ...] on the CPU."""
        stacked: dict[str, Any] = {
            key: torch.from_numpy(np.stack([row[key] for row in self.rows]))[None]
            for key in self.rows[0]
        }
        obs = {key: stacked.pop(key) for key in spec.obs}
        return Batch(obs, **stacked)


def evaluate(
    agent: Agent,
    spec: EnvSpec,
    env: EnvConfig,
    episodes: int = 20,
    seed: int = 0,
    num_envs: int = 10,
    mode: str = "mode",
    record: bool = False,
    replay: Replay | None = None,
    watch: Callable[[Collector], None] = lambda collector: None,
) -> EvalResult:
    """Play exactly `episodes` episodes, to their ends, in environments of their own.

    The episodes are shared out before the first one starts, so that short ones do not crowd out
    long ones. The same seed gives the same episodes, and the global random generators are left
    as they were found. record: keep the rows of the first environment's first episode. replay:
    where all rows go, one stream for each of the min(num_envs, episodes) environments. watch: is
    called whenever rows have arrived.

    Raises ValueError for impossible numbers and RunError where the environment fails.
    """
    check_mode(mode)
    if episodes < 1 or num_envs < 1:
        raise ValueError(f"episodes={episodes} and num_envs={num_envs} must be at least 1.")
    num_envs = min(num_envs, episodes)
    quota = np.full(num_envs, episodes // num_envs)
    quota[: episodes % num_envs] += 1
    before = seeding.rng_state()
    seeding.seed_everything(seeding.spawn(seed, "evaluation"))
    env = replace(env, atari=replace(env.atari, life_loss=False))  # a score is of the whole game
    envs = make_vector(env, num_envs, seeding.spawn(seed, "evaluation environments"))
    try:
        return _play(Collector(envs, spec, agent, seed, mode), quota, record, replay, watch)
    finally:
        envs.close()
        seeding.set_rng_state(before)


def frames_of(
    result: EvalResult, agent: Agent, spec: EnvSpec, env: EnvConfig, seed: int = 0
) -> list[np.ndarray]:
    """uint8 pictures [H, W, C] of an episode: what the agent saw in the recorded one, or, where
    it sees no image, a rendered episode played for this; empty where nothing can be rendered."""
    images = spec.keys("image")
    if images:
        return [np.concatenate([as_rgb(row[key]) for key in images], 1) for row in result.rows]
    shown = replace(env, pixels=True, state=True, keys=None, image_size=[256, 256])
    try:
        envs = make_vector(shown, 1, seed)
    except EnvError:
        return []
    with closing(envs):
        collector = Collector(envs, spec, agent, seed, "mode")
        picture = next(k for k, v in collector.seen.items() if v.dtype == np.uint8)
        frames = [collector.seen[picture][0]]
        while not collector.rows["is_last"][0]:
            collector.step()
            frames.append(collector.seen[picture][0])
    return frames


def _play(
    collector: Collector,
    quota: np.ndarray,
    record: bool,
    replay: Replay | None,
    watch: Callable[[Collector], None],
) -> EvalResult:
    """Step until every environment has played its share."""
    finished: list[list[Any]] = [[] for _ in quota]
    result = EvalResult([], [])
    watch(collector)
    while any(len(done) < n for done, n in zip(finished, quota, strict=True)):
        if record and not finished[0]:
            result.rows.append(_first(collector.rows))
        collector.step(replay)
        watch(collector)
        last = collector.rows["is_last"]
        if record and last[0] and not finished[0]:
            result.rows.append(_first(collector.rows))
        for i in np.flatnonzero(last):
            if len(finished[i]) < quota[i]:
                finished[i].append((collector.returns[i], collector.lengths[i]))
    if replay is not None:
        collector.step(replay)  # a row goes there when it is acted on: the last ones, too
    result.returns = [float(score) for done in finished for score, _ in done]
    result.lengths = [int(length) for done in finished for _, length in done]
    return result


def _first(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A copy of the first environment's row."""
    return {key: np.array(value[0]) for key, value in rows.items()}
