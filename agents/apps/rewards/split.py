"""Which rows teach a head and which judge it, and whether there is anything to learn at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.apps.rewards.experience import Experience
from agents.apps.rewards.sources import Labels
from worldmodel.config import ConfigError


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


def check_shown(labels: Labels) -> None:
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


def chosen(experience: Experience, labels: Labels, most: int) -> Labels:
    """Labels of at most `most` rows: whole episodes, spread evenly over the replay."""
    held = labels.episodes
    while len(held) > 1 and experience.lengths[held].sum() > most:
        rows = int(experience.lengths[held].sum())
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
    shows = set(showing(labels))
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


def showing(labels: Labels) -> list[int]:
    """Episodes in which the reward takes another value than its commonest."""
    values, counts = np.unique(labels.all, return_counts=True)
    common = values[counts.argmax()]
    return [
        number
        for number in labels.episodes
        if any(
            not _same(v, common) for v in labels.values[number][~np.isnan(labels.values[number])]
        )
    ]


def _same(a: float, b: float) -> bool:
    """Whether two labels differ by no more than rounding does."""
    return bool(abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b)))
