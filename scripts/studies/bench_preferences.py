"""`what=preferences`: how many answers a reward needs, and how sure a head may be of them.

Pairs of segments of a run's replay are drawn at random and answered by a reward function, some
wrongly. A head that learned from them is judged by held-out pairs, before and after calibration,
and by its correlation with the function over all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

import agents
from agents.apps.episodes import Episodes
from agents.apps.rewards import fit, labels, store
from agents.apps.rewards.comparisons import Recipe, fit_pairs, too_few
from agents.apps.rewards.latents import filtered
from agents.apps.rewards.tables import Pairs, split_pairs
from worldmodel.config import ConfigError
from worldmodel.seeding import spawn

FUNCTIONS = Path(__file__).resolve().parents[2] / "docs" / "examples" / "pendulum_rewards.py"


@dataclass
class Settings:
    """Which run, who answers, and how many pairs."""

    run: str = MISSING  # folder of a trained run with its replay
    reward: str = f"{FUNCTIONS}:spin"  # the function that answers
    pairs: list[int] = field(default_factory=lambda: [30, 150, 600])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    length: int = 20  # rows of a segment
    wrong: float = 0.0  # share of the answers that are turned round
    holdout: float = 0.2  # share of the episodes that only judge


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for each number of pairs and seed."""
    policy = agents.load(settings.run)
    model = store.world_of(policy, settings.run)
    episodes = Episodes(agents.load_replay(settings.run))
    truth = labels.function_labels(labels.load_function(settings.reward), episodes).values
    latents = filtered(model, episodes, range(len(episodes)))
    known = ~np.isnan(np.concatenate(truth))
    for count in settings.pairs:
        for seed in settings.seeds:
            drawn = draw_pairs(truth, count, settings.length, settings.wrong, seed)
            pairs = split_pairs(drawn, settings.holdout, spawn(seed, "held-out episodes"))
            head, found = fit_pairs(
                model, latents, pairs, Recipe(), spawn(seed, "head"), lambda text: None
            )
            guess = fit.predicted(head, latents, np.arange(latents.count))
            r = np.corrcoef(guess[known], np.concatenate(truth)[known])[0, 1]
            held = found["held_out"]
            yield {
                "pairs": count, "seed": seed, "judged_by": held["pairs"],
                "right": round(held["right"], 3), "r": round(float(r), 3),
                "loss_before": round(found["calibration"]["before"]["held_out"]["loss"], 3),
                "loss": round(held["loss"], 3), "loss_error": round(held["loss_error"], 3),
                "scale": round(found["calibration"]["scale"], 3), "too_few": too_few(held),
            }  # fmt: skip


def draw_pairs(truth: list[np.ndarray], count: int, length: int, wrong: float, seed: int) -> Pairs:
    """`count` pairs of segments with a label in every row, answered by the sums of the labels; a
    share `wrong` of them the wrong way round. truth: labels [T] of each episode, the first NaN."""
    long = [number for number, values in enumerate(truth) if len(values) > length]
    if not long:
        raise ConfigError(f"length={length} is longer than every episode. Give a smaller length.")
    rng = np.random.default_rng(seed)
    episode = rng.choice(long, (count, 2))
    lengths = np.array([len(values) for values in truth])
    start = rng.integers(1, lengths[episode] - length + 1)
    sums = np.array([
        [truth[e][s : s + length].sum() for e, s in zip(*pair, strict=True)]
        for pair in zip(episode, start, strict=True)
    ])  # fmt: skip
    better = (sums[:, 1] > sums[:, 0]) ^ (rng.random(count) < wrong)
    return Pairs(
        episode, start, np.full(count, length), better.astype(float), np.zeros(count, bool)
    )
