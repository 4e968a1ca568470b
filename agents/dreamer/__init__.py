"""Dreamer: an actor and a critic trained on rollouts that the world model imagines.

agent: the algorithm. config: what can be told. (`agents.dreamer.pipeline`: how a GPU is kept busy.)
"""

from agents.dreamer.agent import ActState, Dreamer
from agents.dreamer.config import DreamerConfig

__all__ = ["ActState", "Dreamer", "DreamerConfig"]
