"""Fit a head to pairs of segments, of which somebody says which is better:

    P(b is better than a) = sigmoid(sum of rewards in b - sum of rewards in a)

(Bradley and Terry 1952; for learned rewards Christiano et al. 2017.) Only differences count there,
so the reward's zero is free.

A head that has most of its pairs right makes their probabilities ever more extreme, and is then
too sure of others. So its rewards are multiplied by one number, which is found by cross-validation:
for each of a few folds of the episodes, a head that learned without them judges the pairs that
touch them, and the number is the one under which those judgements explain the answers best
(temperature scaling: Guo et al. 2017). The answers are softened as if one more pair had been
answered wrongly (Platt 1999), so that few pairs, all judged rightly, make no head certain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from agents.apps.rewards import fit
from agents.apps.rewards.latents import Latents
from agents.apps.rewards.tables import EVEN, Pairs
from worldmodel import progress
from worldmodel.rssm import Head

FOLDS = 5  # of the episodes that teach
SCALES = np.geomspace(1e-2, 1e1, 301)  # factors that are tried


@dataclass(frozen=True)
class Recipe:
    """How a head is fitted to pairs; batch: pairs of one update."""

    layers: int = 1
    updates: int = 400
    batch: int = 32
    dropout: float = 0.5
    lr: float = 1e-3


def fit_pairs(
    model: Any,
    latents: Latents,
    pairs: Pairs,
    recipe: Recipe,
    seed: int,
    say: Callable[[str], None],
) -> tuple[Head, dict[str, Any]]:
    """A calibrated head, fitted to the pairs not held out, and what was measured of it.

    "calibration" holds the factor, how many pairs chose it, and the errors without it.
    """
    head, last = _fit(model, latents, pairs, recipe, seed, say)
    scale, judged = calibration(model, latents, pairs, recipe, seed)
    parts = (("held_out", pairs.held_out), ("taught", ~pairs.held_out))
    which = {name: np.flatnonzero(chosen) for name, chosen in parts if chosen.any()}
    before = {name: pair_errors(head, latents, pairs, some) for name, some in which.items()}
    fit.rescale(head, 0.0, scale)
    after = {name: pair_errors(head, latents, pairs, some) for name, some in which.items()}
    return head, {
        "loss": last, **after, "calibration": {"scale": scale, "pairs": judged, "before": before}
    }  # fmt: skip


def calibration(
    model: Any, latents: Latents, pairs: Pairs, recipe: Recipe, seed: int
) -> tuple[float, int]:
    """The factor for the rewards of a head that these pairs teach, and the number of pairs that
    chose it. 1 and 0 where their episodes are too few to leave any out."""
    taught = np.flatnonzero(~pairs.held_out)
    order = np.random.default_rng(seed).permutation(np.unique(pairs.episode[taught]))
    logit, judges = np.zeros(len(pairs)), np.zeros(len(pairs))
    for fold in progress.each(np.array_split(order, min(FOLDS, len(order))), "calibrating, fold"):
        left_out = np.isin(pairs.episode, fold).any(1)
        others = pairs.holding_out(pairs.held_out | left_out)
        if others.held_out.all():
            continue
        head, _ = _fit(model, latents, others, recipe, seed, lambda text: None)
        judged = np.flatnonzero(left_out & ~pairs.held_out)
        logit[judged] += logits(head, latents, pairs, judged)
        judges[judged] += 1
    which = np.flatnonzero(judges)
    if not len(which):
        return 1.0, 0
    return best_scale(logit[which] / judges[which], pairs.preferred[which]), len(which)


def best_scale(logit: np.ndarray, preferred: np.ndarray) -> float:
    """The factor, of `SCALES`, under which log odds [N] explain answers [N] best, where one more
    answer of each kind, shared among all, says the opposite of what it should."""
    count = len(preferred)
    softened = (preferred * count + 1) / (count + 2)
    losses = [cross_entropy(scale * logit, softened).mean() for scale in SCALES]
    return float(SCALES[int(np.argmin(losses))])


def cross_entropy(logit: np.ndarray, preferred: np.ndarray) -> np.ndarray:
    """The loss [N], in nats, of log odds [N] for answers [N]."""
    loss: np.ndarray = np.logaddexp(0.0, logit) - preferred * logit
    return loss


def comparison(head: Head, latents: Latents, pairs: Pairs, batch: int, dropout: float) -> fit.Draw:
    """The loss of pairs, drawn from those not held out."""
    taught = np.flatnonzero(~pairs.held_out)
    device = next(head.parameters()).device

    def loss(rng: np.random.Generator) -> Tensor:
        picks = rng.choice(taught, batch)
        rows, segment = _segments(latents, pairs, picks)
        feat = latents.feat(rows)
        if dropout:  # a draw of torch.dropout on a CPU takes ten times as long as the rest
            shown = rng.random(feat.shape, np.float32) >= dropout
            feat = feat * torch.from_numpy(shown) / (1.0 - dropout)
        reward = head.predict(feat.to(device))
        sums = torch.zeros(2 * len(picks), device=device)
        sums = sums.index_add(0, torch.from_numpy(segment).to(device), reward).view(-1, 2)
        target = torch.from_numpy(pairs.preferred[picks]).float().to(device)
        return F.binary_cross_entropy_with_logits(sums[:, 1] - sums[:, 0], target)

    return loss


def logits(head: Head, latents: Latents, pairs: Pairs, which: np.ndarray) -> np.ndarray:
    """The log odds [N] that the head gives b over a in some pairs."""
    rows, segment = _segments(latents, pairs, which)
    sums = np.zeros(2 * len(which))
    np.add.at(sums, segment, fit.predicted(head, latents, rows))
    odds: np.ndarray = np.diff(sums.reshape(-1, 2), axis=1)[:, 0]
    return odds


def pair_errors(head: Head, latents: Latents, pairs: Pairs, which: np.ndarray) -> dict[str, float]:
    """How well the head foretells some pairs: the share whose order it has right (those answered
    0.5 left out), its mean loss in nats with its standard error (NaN for a single pair), and the
    loss of answering 0.5 always."""
    logit, wanted = logits(head, latents, pairs, which), pairs.preferred[which]
    loss = cross_entropy(logit, wanted)
    sure = wanted != EVEN
    right = (logit[sure] > 0) == (wanted[sure] > EVEN)
    some = len(which) > 1
    return {
        "pairs": len(which),
        "right": float(right.mean()) if sure.any() else float("nan"),
        "loss": float(loss.mean()),
        "loss_error": float(loss.std(ddof=1) / np.sqrt(len(which))) if some else float("nan"),
        "constant_loss": float(np.log(2.0)),
    }


def too_few(held_out: dict[str, float]) -> bool:
    """Whether the loss of held-out pairs is not below that of guessing by more than its standard
    error."""
    return not held_out["loss"] + held_out["loss_error"] < held_out["constant_loss"]


def _fit(
    model: Any,
    latents: Latents,
    pairs: Pairs,
    recipe: Recipe,
    seed: int,
    say: Callable[[str], None],
) -> tuple[Head, float]:
    """A head fitted to the pairs not held out, not calibrated, and its last loss."""
    head = fit.blank_head(model, "mse", recipe.layers, seed)
    loss = comparison(head, latents, pairs, recipe.batch, recipe.dropout)
    return head, fit.train(head, recipe.updates, recipe.lr, loss, seed, say)


def _segments(latents: Latents, pairs: Pairs, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all segments of some pairs, one after the other, and each row's segment: 2 i for a,
    2 i + 1 for b."""
    rows, segment = [], []
    for i, pair in enumerate(which):
        steps = np.arange(pairs.length[pair])
        for side in (0, 1):
            episode, start = pairs.episode[pair, side], pairs.start[pair, side]
            rows.append(latents.rows(episode, start + steps))
            segment.append(np.full(len(steps), 2 * i + side))
    return np.concatenate(rows), np.concatenate(segment)
