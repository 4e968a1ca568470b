"""What a report is asked to show, and what really happened: whole episodes, played now or recorded,
and windows cut from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

import agents
from agents.apps.episodes import Episodes
from agents.base import Policy
from agents.run.evaluate import evaluate
from worldmodel import config, dream, progress, seeding, tree
from worldmodel.config import ConfigError
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.types import Batch

SOURCES = ("fresh", "replay")
MODES = ("mode", "sample", "random")
ENVS = 10  # environments that play at the same time
LONGEST = 2  # of an episode, so many times the rows of one dream are used


@dataclass
class DreamConfig:
    """Which run dreams, of what, and for how long. Steps are agent steps."""

    run: str = MISSING  # run folder
    out: str = ""  # where the report goes; empty: <run>/dreams
    # fresh: episodes played now, which the model never saw | replay: those that it learned from
    source: str = "fresh"
    # who plays fresh episodes. mode, sample: the policy, and beside it random actions for the
    # plots | random: random actions alone
    mode: str = "mode"
    play: int = 20  # episodes to compare dreams with
    starts: int = 120  # moments in them at which imagination starts, at least, for the plots
    episodes: int = 4  # episodes shown as strips and films
    pick: list[int] = field(default_factory=list)  # their numbers, instead of the first ones
    context: int = 5  # frames shown before imagination starts
    horizon: int = 50  # steps imagined
    dreams: int = 32  # of each moment, whose mean is what the model expects
    futures: int = 4  # imagined futures under the policy, and as many under random actions
    seed: int = 0
    device: str = "auto"
    threads: int = 1  # CPU threads inside operations; 0 leaves torch's choice
    fps: int = 8  # of the films

    def __post_init__(self) -> None:
        most = 1 << 30
        counts = ("play", "episodes", "context", "horizon", "dreams", "futures", "fps")
        ranges = dict.fromkeys(counts, (1, most))
        ranges |= {"starts": (2, most), "threads": (0, most), "seed": (0, 2**32 - 1)}
        config.check_ranges(self, ranges)
        for name, known in (("source", SOURCES), ("mode", MODES)):
            if getattr(self, name) not in known:
                raise ConfigError(config.unknown(name, getattr(self, name), known))
        beyond = [number for number in self.pick if not 0 <= number < self.play]
        if self.source == "fresh" and beyond:
            raise ConfigError(
                f"pick: there is no episode {beyond[0]}: they are numbered 0 to {self.play - 1}. "
                f"Pick among these, or play more than play={self.play}."
            )

    def random_too(self) -> DreamConfig | None:
        """The same with random actions, where the policy's fresh episodes are asked for."""
        if self.source == "replay" or self.mode == "random":
            return None
        return replace(self, mode="random", pick=[])

    @property
    def rows(self) -> int:
        """Rows of one dream, the context included."""
        return self.context + self.horizon


class Experience(Episodes):
    """Episodes that dreams are measured against. used: the numbers of those that are. about: where
    they come from, in words."""

    def __init__(
        self, replay: Replay, places: Sequence[tuple[int, int, int]], used: list[int], about: str
    ) -> None:
        super().__init__(replay, places)
        self.used, self.about = used, about

    def long_enough(self, settings: DreamConfig) -> list[int]:
        """The numbers of used episodes that hold a whole dream; ConfigError where none does."""
        fit = [n for n in self.used if self.lengths[n] >= settings.rows]
        if not fit:
            lengths = sorted({int(self.lengths[n]) for n in self.used})
            span = " to ".join(str(n) for n in dict.fromkeys((lengths[0], lengths[-1])))
            found = f"the {len(self.used)} episodes have {span} (their steps and one more)"
            raise _too_short(settings, found, lengths[-1])
        return fit

    def shown(self, settings: DreamConfig) -> list[int]:
        """The numbers of the episodes to draw; ConfigError for unknown or too short ones."""
        if not settings.pick:
            return self.long_enough(settings)[: settings.episodes]
        for number in settings.pick:
            self.check(number, 0, "pick: ")
            if self.lengths[number] < settings.rows:
                raise ConfigError(
                    f"Episode {number} has {self.lengths[number]} rows, but "
                    f"context={settings.context} and horizon={settings.horizon} need "
                    f"{settings.rows}. Pick another, or give a smaller horizon."
                )
        return list(settings.pick)


def experience(policy: Policy, settings: DreamConfig) -> Experience:
    """What the settings ask for; ConfigError where there is none."""
    if settings.source == "fresh":
        return _fresh(policy, settings)
    replay = agents.load_replay(settings.run)
    episodes, whole = replay.episodes(), set(replay.episodes(complete=True))
    used = [number for number, place in enumerate(episodes) if place in whole][-settings.play :]
    if not used:
        raise ConfigError(
            f"The replay of '{settings.run}' holds no whole episode. Use source=fresh, or train "
            "for longer."
        )
    about = f"the newest {len(used)} of {len(whole)} recorded episodes, which it learned from"
    return Experience(replay, episodes, used, about)


def _too_short(settings: DreamConfig, found: str, most: int) -> ConfigError:
    """The error where the longest episode has `most` rows; found: which episodes, in words."""
    most -= settings.context
    hint = f"horizon={most} or less, or a smaller context" if most > 0 else "less of both"
    return ConfigError(
        f"context={settings.context} and horizon={settings.horizon} need an episode of "
        f"{settings.rows} rows, but {found}. Give {hint}."
    )


def _fresh(policy: Policy, settings: DreamConfig) -> Experience:
    """Episodes played now; long ones are cut off after twice a dream's length."""
    most = LONGEST * settings.rows
    own = policy.env.time_limit
    if own is not None and own + 1 < settings.rows:
        raise _too_short(settings, f"env.time_limit={own} ends them after {own + 1}", own + 1)
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
    start: Any
    episode: list[int]
    first: list[int]  # row of the episode that is the first imagined one


def windows(lived: Experience, model: Any, settings: DreamConfig) -> Windows:
    """At least `settings.starts` windows, evenly spread over the episodes that are long enough."""
    numbers = lived.long_enough(settings)
    each = -(-settings.starts // len(numbers))
    by_rows: dict[int, list[int]] = {}
    for number in numbers:
        rows = min(int(lived.lengths[number]), LONGEST * settings.rows + 1)
        by_rows.setdefault(rows, []).append(number)
    parts: list[Batch] = []
    starts: list[Any] = []
    episode: list[int] = []
    first: list[int] = []
    device = dream.device_of(model)
    for rows, group in progress.each(by_rows.items(), "following episodes, group"):
        rows_seen = lived.batch(group, 0, rows).to(device)
        states = dream.follow(model, rows_seen)
        last = rows - settings.rows
        for begin in sorted({int(i) for i in np.linspace(0, last, each).round()}):
            part = dream.cut(rows_seen, slice(None), slice(begin, begin + settings.rows))
            before = tree.index(states, (slice(None), begin - 1))
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
