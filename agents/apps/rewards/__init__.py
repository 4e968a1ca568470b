"""New rewards for a trained world model, without new experience.

labels, tables   where a reward comes from: labels for the rows of a replay, or pairs of segments
latents          what the frozen model makes of those rows
fit, finetune    a head on those states, and how far it can be believed
comparisons      the same from pairs, calibrated
pipeline         from a source to a stored head
store            heads by name, beside their run and as part of its model, weighted by `control`
score            what a policy earns by any reward in the real environment
report, cli      pictures, words and the command behind scripts/fit_reward.py
"""

from agents.apps.rewards.pipeline import FitConfig, fit_head
from agents.apps.rewards.score import Score, score
from agents.apps.rewards.store import remove_head, with_heads
from worldmodel.rssm.fitted import FittedHead, head_names, read_head

__all__ = [
    "FitConfig",
    "FittedHead",
    "Score",
    "fit_head",
    "head_names",
    "read_head",
    "remove_head",
    "score",
    "with_heads",
]
