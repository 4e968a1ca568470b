"""Where a reward comes from: every kind of source answers with labels for the rows of a replay.

    module:function, file.py:function   a function of (observation, action, next observation, info)
    key:NAME                            a number that the environment recorded with every row
    labels:FILE                         (episode, step, value) from a CSV or NPZ; sparse ones too
    goal:PICTURE[,...]                  how near the observation is to a picture (see `latents`)
    goal:EPISODE:STEP[,...]             the same, to frames of the replay
    preferences:FILE                    pairs of segments, of which one is better (see `tables`)

All but preferences give labels. A label stands with the row that an action led to:

    row          t-1                 t
    seen         observation         next observation
    action                           action[t], chosen at t-1
    label                            function(observation[t-1], action[t], observation[t], info[t])

Labels are then split by whole episodes: some teach a head, the others judge it.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.apps.episodes import Episodes
from agents.apps.rewards.tables import place, read_table, whole_columns
from worldmodel import config, progress
from worldmodel.config import ConfigError
from worldmodel.envs import RewardFunction

PREFIXES = ("key", "labels", "goal", "preferences")


@dataclass(frozen=True)
class Labels:
    """values: float64 [T] for each episode, NaN where a row has no label."""

    values: list[np.ndarray]

    @property
    def all(self) -> np.ndarray:
        """Every label there is, [N]."""
        flat = np.concatenate(self.values)
        return flat[~np.isnan(flat)]

    @property
    def episodes(self) -> list[int]:
        """Numbers of the episodes with at least one label."""
        return [i for i, values in enumerate(self.values) if not np.isnan(values).all()]

    def of(self, episode: int) -> np.ndarray:
        """The labels of one episode, [N]."""
        values = self.values[episode]
        return values[~np.isnan(values)]


@dataclass(frozen=True)
class Source:
    """kind: function, key, labels, goal or preferences. what: the rest of the words."""

    kind: str
    what: str

    @property
    def words(self) -> str:
        """As the user writes it."""
        return self.what if self.kind == "function" else f"{self.kind}:{self.what}"


def parse(words: str) -> Source:
    """A source from the words after `reward=`; ConfigError where they name none. Files of functions
    get their whole path, so that scores find them from any folder."""
    prefix, colon, rest = words.partition(":")
    if prefix in PREFIXES and rest:
        return Source(prefix, rest)
    close = difflib.get_close_matches(prefix, PREFIXES, 1, 0.75)
    file = Path(words.rpartition(":")[0])
    if file.suffix == ".py":
        return Source("function", f"{os.path.abspath(file)}:{words.rpartition(':')[2]}")
    if not colon or not rest or prefix in PREFIXES or (close and "/" not in prefix):
        hint = f" Did you mean '{close[0]}:...'?" if close else ""
        raise ConfigError(
            f"reward='{words}' names no reward. Known: module:function, file.py:function, "
            f"key:NAME, labels:FILE, preferences:FILE, goal:PICTURE or goal:EPISODE:STEP.{hint}"
        )
    return Source("function", words)


def load_function(name: str) -> RewardFunction:
    """A reward function by its name; ConfigError where there is none."""
    return RewardFunction(name)


def function_labels(function: RewardFunction, episodes: Episodes) -> Labels:
    """A function's rewards; the first row of an episode has none, for nothing led to it. Raises
    ConfigError where the function does not answer with numbers."""
    values = []
    for number in progress.each(range(len(episodes)), "asking the reward, episode"):
        before, action, after, info = transitions(episodes, number)
        found = function.batch(before, action, after, info) if len(action) else np.zeros(0)
        values.append(np.concatenate([[np.nan], found]))
    return Labels(values)


def transitions(
    episodes: Episodes, number: int
) -> tuple[dict[str, Any], np.ndarray, dict[str, Any], dict[str, np.ndarray]]:
    """What led to the rows 1 ... T-1 of an episode, [T-1, ...] each: the observations before,
    native actions as the environment took them, the observations after, and info."""
    rows = episodes.read(number)
    steps = np.arange(1, len(rows["reward"]))
    info = {name: rows[name][1:] for name in ("reward", "is_last", "is_terminal")}
    info |= {"episode": np.full(len(steps), number), "step": steps}
    before = {key: rows[key][:-1] for key in episodes.spec.obs}
    after = {key: rows[key][1:] for key in episodes.spec.obs}
    return before, episodes.spec.action.decode(rows["action"][1:]), after, info


def key_labels(key: str, episodes: Episodes) -> Labels:
    """An observation key of one number, seen or only recorded, or the task's own reward."""
    obs = episodes.spec.obs
    numbers = sorted(k for k, s in obs.items() if s.kind != "image")
    if key != "reward" and key not in obs:
        raise ConfigError(
            config.unknown("key", key, [*numbers, "reward"])
            + " To record more, train with env.record=[...]."
        )
    if key in obs and (key not in numbers or obs[key].shape != (1,)):
        raise ConfigError(
            f"The key '{key}' holds {list(obs[key].shape)} numbers at each step; a reward is one. "
            "Write a function that makes one number of them."
        )
    values = []
    for number in range(len(episodes)):
        labels = episodes.read(number)[key].reshape(-1).astype(np.float64)
        if key == "reward":
            labels[0] = np.nan  # nothing led there
        values.append(labels)
    return Labels(values)


def file_labels(path: str, episodes: Episodes) -> Labels:
    """Labels out of a table with the columns episode, step and value."""
    table = read_table(path, ("episode", "step", "value"))
    numbers = whole_columns(table, ("episode", "step"), path)
    values = [np.full(length, np.nan) for length in episodes.lengths]
    for i, value in enumerate(table["value"]):
        episode, step = int(numbers["episode"][i]), int(numbers["step"][i])
        episodes.check(episode, step, place(path, i))
        if not np.isnan(values[episode][step]):
            raise ConfigError(
                f"{place(path, i)}step {step} of episode {episode} has a label already."
            )
        values[episode][step] = value
    return Labels(values)


@dataclass(frozen=True)
class Examples:
    """Labelled rows: episode, step and value [N] each; and whether each is held out, bool [N]."""

    episode: np.ndarray
    step: np.ndarray
    value: np.ndarray
    held_out: np.ndarray

    @property
    def episodes(self) -> list[int]:
        """The episodes that hold them."""
        return [int(number) for number in np.unique(self.episode)]

    @property
    def taught(self) -> np.ndarray:
        """The values that teach, [M]."""
        return self.value[~self.held_out]

    @property
    def judging(self) -> np.ndarray:
        """Which rows the head is judged by, bool [N]: those held out or, where none are, all."""
        return self.held_out if self.held_out.any() else ~self.held_out


def check_varied(labels: Labels) -> None:
    """Raises ConfigError where the labels never vary: nothing can be learned from them."""
    values = labels.all
    if not len(values):
        raise ConfigError(
            "Not one row of the replay has a label. The first row of an episode never has one from "
            "a function; look whether the episodes have more."
        )
    if _same(values.min(), values.max()):
        rows = "the one labelled row has" if len(values) == 1 else f"all {len(values):,} rows have"
        raise ConfigError(
            f"The data never shows this reward: {rows} the value {values[0]:g}. A head learns "
            "from differences. Record experience in which the reward happens (an exploring run, "
            "say), or look whether the reward means what you think."
        )


def thinned(episodes: Episodes, labels: Labels, most: int) -> Labels:
    """Labels of at most `most` rows: whole episodes, spread evenly over the replay."""
    held = labels.episodes
    while len(held) > 1 and episodes.lengths[held].sum() > most:
        rows = int(episodes.lengths[held].sum())
        count = max(1, min(len(held) - 1, len(held) * most // rows))
        held = [held[i] for i in np.linspace(0, len(held) - 1, count).round().astype(int)]
    kept = set(held)
    return Labels([
        values if number in kept else np.full_like(values, np.nan)
        for number, values in enumerate(labels.values)
    ])  # fmt: skip


def split(labels: Labels, holdout: float, seed: int) -> Examples:
    """Labelled rows, a share of their episodes held out whole.

    Episodes that show the reward (whose labels are not all the commonest value) are shared out
    apart from the others, so that both sides see it. Raises ConfigError where there are too few.
    """
    episodes = labels.episodes
    if holdout and len(episodes) < 2:
        raise ConfigError(
            f"All labels lie in one episode ({episodes[0]}), so none can be held out to judge the "
            "head. Label rows of more episodes, or say holdout=0 to fit it unjudged."
        )
    values, counts = np.unique(labels.all, return_counts=True)
    common = values[counts.argmax()]
    shows = {n for n in episodes if any(not _same(v, common) for v in labels.of(n))}
    if holdout and len(shows) < 2:
        raise ConfigError(
            f"Only episode {min(shows)} shows this reward; everywhere else it is the same. It "
            "cannot be learned from and held out at once. Record more experience that shows it, or "
            "say holdout=0 to fit it unjudged."
        )
    rng = np.random.default_rng(seed)
    held: set[int] = set()
    for group in ([n for n in episodes if n in shows], [n for n in episodes if n not in shows]):
        if holdout and len(group) > 1:
            count = min(len(group) - 1, max(1, round(holdout * len(group))))
            held |= {int(n) for n in rng.choice(group, count, replace=False)}
    places = [(n, t) for n in episodes for t in np.flatnonzero(~np.isnan(labels.values[n]))]
    episode, step = np.array(places, np.int64).T
    value = np.array([labels.values[n][t] for n, t in places])
    return Examples(episode, step, value, np.isin(episode, sorted(held)))


def _same(a: float, b: float) -> bool:
    """Whether two labels differ by no more than rounding does."""
    return bool(abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b)))
