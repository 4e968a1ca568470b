"""Evaluation: episodes are played to their ends and their returns reported; nothing learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from agents.base import Agent, check_mode
from agents.run.collect import Collector
from worldmodel import progress, seeding
from worldmodel.config import RunError
from worldmodel.envs import EnvConfig, EnvError, Vector, make_vector
from worldmodel.log import as_rgb
from worldmodel.replay import Replay
from worldmodel.types import Batch, EnvSpec

MOST_FRAMES = 2000  # of a film that is rendered for it


@dataclass
class EvalResult:
    """Returns and lengths (agent steps) of the episodes, and the rows of a recorded one. cut_off:
    how many of them nothing ended within `env.longest_episode` steps."""

    returns: list[float]
    lengths: list[int]
    rows: list[dict[str, np.ndarray]] = field(default_factory=list)
    cut_off: int = 0

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns between episodes."""
        return float(np.std(self.returns))

    def line(self) -> str:
        """Mean, deviation and number, and what was cut off, for people."""
        cut = ""
        if self.cut_off:
            cut = f" ({self.cut_off} cut off after {max(self.lengths):,} steps, as nothing ended "
            cut += "them; env.longest_episode, or env.time_limit for all episodes)"
        return score_line(self.mean, self.std, len(self.returns)) + cut

    def batch(self, spec: EnvSpec) -> Batch:
        """The recorded episode as a batch [1, T, ...] on the CPU."""
        stacked: dict[str, Any] = {
            key: torch.from_numpy(np.stack([row[key] for row in self.rows]))[None]
            for key in self.rows[0]
        }
        obs = {key: stacked.pop(key) for key in spec.obs}
        return Batch(obs, **stacked)


def score_line(mean: float, std: float, episodes: int) -> str:
    """Mean and deviation of the returns of some episodes, for people; one has no deviation."""
    if episodes == 1:
        return f"{mean:.1f} over 1 episode"
    return f"{mean:.1f} ± {std:.1f} over {episodes} episodes"


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
    inside: Vector | None = None,
) -> EvalResult:
    """Play exactly `episodes` episodes, to their ends, in environments of their own, made as
    `env.judged` says; those that nothing ends are cut off after `env.longest_episode` steps.

    The episodes are shared out before the first one starts, so that short ones do not crowd out
    long ones. The same seed gives the same episodes, and all random generators, the agent's own
    too, are left as they were found. record: keep the rows of the first environment's first
    episode. replay: where all rows go, one stream for each of the min(num_envs, episodes)
    environments. watch: is called whenever rows have arrived. inside: environments to play in
    instead of own ones, which stand at the end of the last episode afterwards.

    Raises ValueError for impossible numbers and RunError where the environment fails.
    """
    check_mode(mode)
    num_envs = num_envs if inside is None else inside.num_envs
    if episodes < 1 or num_envs < 1:
        raise ValueError(f"episodes={episodes} and num_envs={num_envs} must be at least 1.")
    num_envs = min(num_envs, episodes) if inside is None else num_envs
    quota = np.full(num_envs, episodes // num_envs)
    quota[: episodes % num_envs] += 1
    seed_envs = seeding.spawn(seed, "evaluation environments")
    with seeding.aside(seeding.spawn(seed, "evaluation"), agent.streams):
        envs = inside or make_vector(env.judged, num_envs, seed_envs, whole=True)
        try:
            first = None if inside is None else seed_envs
            collector = Collector(envs, spec, agent, seed, mode, first_seed=first)
            limit = math.inf if inside is None else env.longest_episode
            return _play(collector, quota, record, replay, watch, limit)
        finally:
            if inside is None:
                envs.close()


def frames_of(
    result: EvalResult, agent: Agent, spec: EnvSpec, env: EnvConfig, seed: int = 0
) -> list[np.ndarray]:
    """uint8 pictures [H, W, C] of an episode: what the agent saw in the recorded one, or, where
    it sees no image, a rendered episode played for this; empty where nothing can be rendered."""
    images = spec.keys("image")
    if images:
        return [np.concatenate([as_rgb(row[key]) for key in images], 1) for row in result.rows]
    shown = replace(env.judged, pixels=True, state=True, keys=None, image_size=[256, 256])
    frames: list[np.ndarray] = []
    with (
        suppress(EnvError, RunError),
        progress.step("playing an episode for its pictures"),
        closing(make_vector(shown, 1, seed, whole=True)) as envs,
    ):
        collector = Collector(envs, spec, agent, seed, "mode")
        picture = next((k for k, v in collector.seen.items() if v.dtype == np.uint8), None)
        while picture is not None and len(frames) < MOST_FRAMES:
            frames.append(collector.seen[picture][0])
            if collector.rows["is_last"][0]:
                break
            collector.step()
    return frames


def _play(
    collector: Collector,
    quota: np.ndarray,
    record: bool,
    replay: Replay | None,
    watch: Callable[[Collector], None],
    limit: float,
) -> EvalResult:
    """Step until every environment has played its share; episodes of environments that do not cut
    them off are given up after `limit` steps."""
    finished: list[list[Any]] = [[] for _ in quota]
    result = EvalResult([], [])
    watch(collector)
    with progress.step("playing episodes", int(quota.sum())) as playing:
        while any(len(done) < n for done, n in zip(finished, quota, strict=True)):
            if record and not finished[0]:
                result.rows.append(_first(collector.rows))
            collector.step(replay)
            watch(collector)
            cut = collector.cut_off | (collector.lengths >= limit)
            last = collector.rows["is_last"] | cut
            if record and last[0] and not finished[0]:
                result.rows.append(_first(collector.rows))
            for i in np.flatnonzero(last):
                if len(finished[i]) < quota[i]:
                    finished[i].append((collector.returns[i], collector.lengths[i]))
                    result.cut_off += int(cut[i])
            if (collector.lengths >= limit).any():
                collector.begin_episodes()
            playing.done = sum(map(len, finished))
            playing.inside = f"step {collector.lengths.max():,}"
    if replay is not None:
        collector.step(replay)  # a row goes there when it is acted on: the last ones, too
    result.returns = [float(score) for done in finished for score, _ in done]
    result.lengths = [int(length) for done in finished for _, length in done]
    return result


def _first(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A copy of the first environment's row."""
    return {key: np.array(value[0]) for key, value in rows.items()}
