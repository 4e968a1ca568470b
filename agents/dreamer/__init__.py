"""Dreamer: an actor and a critic trained on rollouts that the world model imagines.

agent: the algorithm. config: hyperparameters. pipeline: CUDA graphs and overlap on a GPU.
"""

from agents.dreamer.agent import ActState, Dreamer
from agents.dreamer.config import DreamerConfig

__all__ = ["ActState", "Dreamer", "DreamerConfig"]
