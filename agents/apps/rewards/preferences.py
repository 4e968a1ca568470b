"""Rewards out of comparisons: somebody says which of two segments is better.

    P(b is better than a) = sigmoid(sum of rewards in b - sum of rewards in a)

(Bradley and Terry 1952; for learned rewards Christiano et al. 2017.) Only differences count, so
the reward's zero is free and its unit depends on how sure people are; a fitted head is centred and
scaled to a standard deviation of 1 over the experience that it was fitted on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from agents.apps.rewards.experience import Experience
from agents.apps.rewards.fit import predicted
from agents.apps.rewards.latents import Latents
from agents.apps.rewards.tables import line, read_table, whole
from worldmodel.config import ConfigError
from worldmodel.rssm import Head

COLUMNS = ("episode_a", "start_a", "episode_b", "start_b", "length", "preferred")
EVEN = 0.5  # an answer that prefers neither


@dataclass(frozen=True)
class Pairs:
    """Segments a and b of each pair: episode [N, 2], first step [N, 2], rows [N]; preferred [N] is
    the probability that b is the better one. held_out: bool [N]."""

    episode: np.ndarray
    start: np.ndarray
    length: np.ndarray
    preferred: np.ndarray
    held_out: np.ndarray

    def __len__(self) -> int:
        return len(self.length)

    @property
    def episodes(self) -> list[int]:
        """The episodes that they come from."""
        return [int(number) for number in np.unique(self.episode)]


def read_pairs(path: str, experience: Experience) -> Pairs:
    """The pairs of a table with the columns `COLUMNS`; rows start ... start + length - 1 of each
    episode. None is held out. Raises ConfigError where one does not fit the experience."""
    table = read_table(path, COLUMNS)
    numbers = whole(table, COLUMNS[:-1], path)
    preferred = table["preferred"]
    for i in range(len(preferred)):
        where = f"'{path}', {line(path, i)}"
        length = int(numbers["length"][i])
        if length < 1:
            raise ConfigError(f"{where}: length is {length}, but must be at least 1.")
        for side in "ab":
            episode, start = (int(numbers[f"{n}_{side}"][i]) for n in ("episode", "start"))
            experience.check(episode, start, where)
            experience.check(episode, start + length - 1, where)
        if not 0 <= preferred[i] <= 1:
            raise ConfigError(
                f"{where}: preferred is {preferred[i]:g}, but must be 0 (a is better), 1 (b is) or "
                "a probability between."
            )
    if (preferred == EVEN).all():
        raise ConfigError(
            f"'{path}' prefers nothing: preferred is 0.5 in every row, so there is no reward to "
            "learn."
        )
    return Pairs(
        np.stack([numbers["episode_a"], numbers["episode_b"]], 1),
        np.stack([numbers["start_a"], numbers["start_b"]], 1),
        numbers["length"],
        preferred,
        np.zeros(len(preferred), bool),
    )


def split_pairs(pairs: Pairs, holdout: float, seed: int) -> Pairs:
    """The pairs with a share of the episodes held out: those that touch one only judge the head.

    Raises ConfigError where that leaves none to learn from, or none to judge by.
    """
    if not holdout:
        return pairs
    episodes = np.array(pairs.episodes)
    count = max(1, round(holdout * len(episodes)))
    held = np.random.default_rng(seed).permutation(episodes)[:count]
    a, b = np.isin(pairs.episode, held).T
    out = a | b
    if out.all() or not out.any():
        raise ConfigError(
            f"The {len(pairs)} pairs come from {len(episodes)} episodes; holding {count} of them "
            f"out leaves {int((~out).sum())} pairs to learn from and {int(out.sum())} to judge by. "
            "Compare segments of more episodes, or say holdout=0 to fit the head unjudged."
        )
    return Pairs(pairs.episode, pairs.start, pairs.length, pairs.preferred, out)


def comparison(
    head: Head, latents: Latents, pairs: Pairs, batch: int, dropout: float
) -> Callable[[np.random.Generator], Tensor]:
    """The loss of a batch of pairs, drawn with a generator from those not held out."""
    taught = np.flatnonzero(~pairs.held_out)
    device = next(head.parameters()).device

    def loss(rng: np.random.Generator) -> Tensor:
        picks = rng.choice(taught, batch)
        rows, segment = _rows(latents, pairs, picks)
        reward = head.predict(F.dropout(latents.feat(rows).to(device), dropout))
        sums = torch.zeros(2 * len(picks), device=device)
        sums = sums.index_add(0, torch.from_numpy(segment).to(device), reward).view(-1, 2)
        target = torch.from_numpy(pairs.preferred[picks]).float().to(device)
        return F.binary_cross_entropy_with_logits(sums[:, 1] - sums[:, 0], target)

    return loss


def judged(head: Head, latents: Latents, pairs: Pairs, which: np.ndarray) -> dict[str, float]:
    """How well the head foretells some pairs: the share whose order it has right (those answered
    0.5 left out), its mean loss in nats, and that of answering 0.5 always."""
    rows, segment = _rows(latents, pairs, which)
    sums = np.zeros(2 * len(which))
    np.add.at(sums, segment, predicted(head, latents, rows))
    logit = np.diff(sums.reshape(-1, 2), axis=1)[:, 0]
    wanted = pairs.preferred[which]
    loss = np.logaddexp(0.0, logit) - wanted * logit
    sure = wanted != EVEN
    right = (logit[sure] > 0) == (wanted[sure] > EVEN)
    return {
        "pairs": len(which),
        "right": float(right.mean()) if sure.any() else float("nan"),
        "loss": float(loss.mean()),
        "constant_loss": float(np.log(2.0)),
    }


def _rows(latents: Latents, pairs: Pairs, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all segments of some pairs, one after the other, and each row's segment: 2 i for a,
    2 i + 1 for b."""
    rows, segment = [], []
    for i, pair in enumerate(which):
        steps = np.arange(pairs.length[pair])
        for side in (0, 1):
            rows.append(
                latents.rows(int(pairs.episode[pair, side]), pairs.start[pair, side] + steps)
            )
            segment.append(np.full(len(steps), 2 * i + side))
    return np.concatenate(rows), np.concatenate(segment)
