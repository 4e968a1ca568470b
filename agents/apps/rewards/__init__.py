"""New rewards for a trained world model, without new experience.

sources, preferences, goals   where a reward comes from: labels for the rows of a replay
experience, latents, split    rows by episode and step; the frozen model's states; who judges
fit, make, finetune           a head on those states, and how far it can be believed
store                         heads by name, beside their run
compose                       fitted heads as part of the model, weighted by `control`
score                         what a policy earns by any reward in the real environment
report, show, cli             pictures, words and the command behind scripts/fit_reward.py
"""

from agents.apps.rewards.compose import WithHeads, with_heads
from agents.apps.rewards.config import FitConfig
from agents.apps.rewards.make import fit_head
from agents.apps.rewards.score import Score, score
from agents.apps.rewards.store import Stored, names, read, remove

__all__ = [
    "FitConfig",
    "Score",
    "Stored",
    "WithHeads",
    "fit_head",
    "names",
    "read",
    "remove",
    "score",
    "with_heads",
]
