"""What really happened: whole episodes, played now or recorded, and windows cut from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import agents
from agents.apps.dreams.config import DreamConfig
from agents.base import Policy
from agents.run.evaluate import evaluate
from worldmodel import dream, seeding, tree
from worldmodel.config import ConfigError
from worldmodel.replay import Replay, ReplayConfig, RowIndex
from worldmodel.types import Batch, LatentState

ENVS = 10  # environments that play at the same time
LONGEST = 2  # of an episode, so many times the rows of one dream are used


@dataclass(frozen=True)
class Experience:
    """Episodes as (stream, start, stop) in a replay, numbered from 0; `used`: the numbers of
    those that dreams are measured against. about: where they come from, in words."""

    replay: Replay
    episodes: list[tuple[int, int, int]]
    used: list[int]
    about: str

    def length(self, number: int) -> int:
        """Rows of an episode: one more than its steps."""
        _, start, stop = self.episodes[number]
        return stop - start

    def batch(self, numbers: Sequence[int], rows: int) -> Batch:
        """The first rows [B, rows] of these episodes, seen from their beginning."""
        stream, start, _ = np.array([self.episodes[n] for n in numbers]).T
        return self.replay.gather(RowIndex(stream, start, rows))

    def long_enough(self, settings: DreamConfig) -> list[int]:
        """The numbers of used episodes that hold a whole dream; ConfigError where none does."""
        fit = [n for n in self.used if self.length(n) >= settings.rows]
        if not fit:
            lengths = sorted({self.length(n) for n in self.used})
            span = " to ".join(str(n) for n in dict.fromkeys((lengths[0], lengths[-1])))
            most = lengths[-1] - settings.context
            hint = f"horizon={most} or less, or a smaller context" if most > 0 else "less of both"
            raise ConfigError(
                f"context={settings.context} and horizon={settings.horizon} need an episode of "
                f"{settings.rows} rows, but the {len(self.used)} episodes have {span} (their "
                f"steps and one more). Give {hint}."
            )
        return fit

    def shown(self, settings: DreamConfig) -> list[int]:
        """The numbers of the episodes to draw; ConfigError for unknown or too short ones."""
        if not settings.pick:
            return self.long_enough(settings)[: settings.episodes]
        for number in settings.pick:
            if not 0 <= number < len(self.episodes):
                raise ConfigError(
                    f"There is no episode {number}: there are {len(self.episodes)}, numbered 0 to "
                    f"{len(self.episodes) - 1}. Change pick=[...]."
                )
            if self.length(number) < settings.rows:
                raise ConfigError(
                    f"Episode {number} has {self.length(number)} rows, but "
                    f"context={settings.context} and horizon={settings.horizon} need "
                    f"{settings.rows}. Pick another, or give a smaller horizon."
                )
        return list(settings.pick)


def experience(policy: Policy, settings: DreamConfig) -> Experience:
    """What the settings ask for; ConfigError where there is none."""
    if settings.source == "fresh":
        return _fresh(policy, settings)
    replay = agents.load_replay(settings.run)
    episodes = replay.episodes(complete=True)
    if not episodes:
        raise ConfigError(
            f"The replay of '{settings.run}' holds no whole episode. Use source=fresh, or train "
            "for longer."
        )
    used = list(range(len(episodes)))[-settings.play :]
    about = f"the newest {len(used)} of {len(episodes)} recorded episodes, which it learned from"
    return Experience(replay, episodes, used, about)


def _fresh(policy: Policy, settings: DreamConfig) -> Experience:
    """Episodes played now; long ones are cut off after twice a dream's length."""
    most = LONGEST * settings.rows
    own = policy.env.time_limit
    env = replace(policy.env, time_limit=most if own is None else min(own, most))
    count = min(ENVS, settings.play)
    share = -(-settings.play // count)
    capacity = ReplayConfig(capacity=count * (share * (most + 1) + 2))
    replay = Replay(policy.spec, capacity, count)
    agent, mode, who = policy.agent, settings.mode, f"the policy ({settings.mode})"
    if settings.mode == "random":
        cls: Any = agents.agent_class("random")
        with seeding.Stream(seeding.spawn(settings.seed, "random actions")):
            agent = agents.make("random", policy.spec, cls.Config(), policy.device)
        mode, who = "sample", "random actions"
    seed = seeding.spawn(settings.seed, "dreams")
    evaluate(agent, policy.spec, env, settings.play, seed, count, mode, replay=replay)
    episodes, taken = [], [0] * count
    for place in replay.episodes(complete=True):
        taken[place[0]] += 1
        # No more than each environment's share: else short episodes would crowd out long ones.
        if taken[place[0]] <= settings.play // count + (place[0] < settings.play % count):
            episodes.append(place)
    about = f"{len(episodes)} fresh episodes of {who}, which the model never saw"
    return Experience(replay, episodes, list(range(len(episodes))), about)


@dataclass(frozen=True)
class Windows:
    """Moments from which to imagine: rows [N, context + horizon]; the states before them [N, ...]
    of a model that has followed the episode from its beginning; and where they lie."""

    batch: Batch
    start: LatentState
    episode: list[int]
    first: list[int]  # row of the episode that is the first imagined one


def windows(lived: Experience, model: Any, settings: DreamConfig) -> Windows:
    """At least `settings.starts` windows, evenly spread over the episodes that are long enough."""
    numbers = lived.long_enough(settings)
    each = -(-settings.starts // len(numbers))
    by_rows: dict[int, list[int]] = {}
    for number in numbers:
        rows = min(lived.length(number), LONGEST * settings.rows + 1)
        by_rows.setdefault(rows, []).append(number)
    parts: list[Batch] = []
    starts: list[LatentState] = []
    episode: list[int] = []
    first: list[int] = []
    device = dream.device_of(model)
    for rows, group in by_rows.items():
        whole = lived.batch(group, rows).to(device)
        states = dream.follow(model, whole)
        last = rows - settings.rows
        for begin in sorted({int(i) for i in np.linspace(0, last, each).round()}):
            part = dream.cut(whole, slice(None), slice(begin, begin + settings.rows))
            before = states.map(lambda x, t=begin - 1: x[:, t])
            starts.append(before if begin else model.initial(len(group)))
            parts.append(part)
            episode += group
            first += [begin + settings.context] * len(group)
    return Windows(_joined(parts), tree.cat(starts), episode, first)


def _joined(parts: list[Batch]) -> Batch:
    """Batches of equally many rows as one."""

    def cat(name: str) -> torch.Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return Batch(
        {key: torch.cat([part.obs[key] for part in parts]) for key in parts[0].obs},
        cat("action"),
        cat("reward"),
        cat("is_first"),
        cat("is_last"),
        cat("is_terminal"),
    )
