"""The Dyna family: planning with a learned table. One learner, and names for its usual settings.

learner: the algorithm in plain Python, to read. kernels, memory: the same in machine code.
config: the settings. agent: it in the training loop. experiment: whole experiments in compiled
code. exact: what can be computed from a world's true table.
"""

from agents.dyna.agent import Dyna
from agents.dyna.config import (
    Dyna2Config,
    DynaConfig,
    DynaQConfig,
    DynaQPlusConfig,
    PrioritizedSweepingConfig,
    QLearningConfig,
)

__all__ = [
    "Dyna",
    "Dyna2",
    "Dyna2Config",
    "DynaConfig",
    "DynaQ",
    "DynaQConfig",
    "DynaQPlus",
    "DynaQPlusConfig",
    "PrioritizedSweeping",
    "PrioritizedSweepingConfig",
    "QLearning",
    "QLearningConfig",
]


class QLearning(Dyna):
    """The family's learner without planning."""

    Config = QLearningConfig


class DynaQ(Dyna):
    """The family's learner as Dyna-Q."""

    Config = DynaQConfig


class DynaQPlus(Dyna):
    """The family's learner as Dyna-Q+."""

    Config = DynaQPlusConfig


class Dyna2(Dyna):
    """The family's learner as Dyna-2."""

    Config = Dyna2Config


class PrioritizedSweeping(Dyna):
    """The family's learner as prioritized sweeping."""

    Config = PrioritizedSweepingConfig
