"""Where a reward comes from: every kind of source answers with labels for the rows of a replay.

    module:function, file.py:function   a function of (observation, action, next observation, info)
    key:NAME                            a number that the environment recorded with every row
    labels:FILE                         (episode, step, value) from a CSV or NPZ; sparse ones too
    goal:PICTURE[,...]                  how near the observation is to a picture (see `goals`)
    goal:EPISODE:STEP[,...]             the same, to frames of the replay
    preferences:FILE                    pairs of segments, of which one is better (`preferences`)

All but preferences give labels. A label stands with the row that an action led to:

    row          t-1                 t
    seen         observation         next observation
    action                           action[t], chosen at t-1
    label                            function(observation[t-1], action[t], observation[t], info[t])
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.apps.rewards.experience import Experience
from agents.apps.rewards.goals import Goals, goal_labels
from agents.apps.rewards.tables import line, read_table, whole
from worldmodel import config
from worldmodel.config import ConfigError
from worldmodel.envs import EnvError, RewardFunction

PREFIXES = ("key", "labels", "goal", "preferences")
Said = Callable[[str], None]


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


def labels_of(
    source: Source, experience: Experience, model: Any = None, goals: Goals | None = None
) -> Labels:
    """The labels of every row. model: needed for goals alone.

    Raises ConfigError where the source does not fit the experience.
    """
    if source.kind == "function":
        try:
            return function_labels(RewardFunction(source.what), experience)
        except EnvError as error:
            raise ConfigError(str(error)) from error
    if source.kind == "key":
        return key_labels(source.what, experience)
    if source.kind == "labels":
        return file_labels(source.what, experience)
    assert source.kind == "goal"
    return Labels(goal_labels(source.what, experience, model, goals or Goals()))


def function_labels(function: RewardFunction, experience: Experience) -> Labels:
    """A function's rewards; the first row of an episode has none, for nothing led to it."""
    values = []
    for number in range(len(experience)):
        before, action, after, info = experience.transitions(number)
        found = function.whole(before, action, after, info) if len(action) else np.zeros(0)
        values.append(np.concatenate([[np.nan], found]))
    return Labels(values)


def key_labels(key: str, experience: Experience) -> Labels:
    """An observation key of one number, seen or only recorded, or the task's own reward."""
    obs = experience.spec.obs
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
    for number in range(len(experience)):
        rows = experience.episode(number)
        labels = rows[key].reshape(-1).astype(np.float64)
        if key == "reward":
            labels[0] = np.nan  # nothing led there
        values.append(labels)
    return Labels(values)


def file_labels(path: str, experience: Experience) -> Labels:
    """Labels out of a table with the columns episode, step and value."""
    table = read_table(path, ("episode", "step", "value"))
    places = whole(table, ("episode", "step"), path)
    values = [np.full(length, np.nan) for length in experience.lengths]
    for i, value in enumerate(table["value"]):
        episode, step = int(places["episode"][i]), int(places["step"][i])
        where = f"'{path}', {line(path, i)}"
        experience.check(episode, step, where)
        if not np.isnan(values[episode][step]):
            raise ConfigError(f"{where}: step {step} of episode {episode} has a label already.")
        values[episode][step] = value
    return Labels(values)
