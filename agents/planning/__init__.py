"""Planners: searches of any learned world for the action to take now, by name.

acting      an agent that plans each of its actions
base        the contract: Planner, Plan, bounds of a decision
cache       a world that remembers what it predicted
imagine     candidates of action sequences, imagined and scored
sequence    the loop of those that follow: shooting, cem, icem, mppi
mcts        tree search; tree_search: its arrays and kernels
space       distributions over sequences of continuous and discrete actions
"""

from __future__ import annotations

from agents.planning.base import BoundsConfig, Plan, Planner
from agents.planning.cem import CEM
from agents.planning.icem import ICEM
from agents.planning.mcts import MCTS
from agents.planning.mppi import MPPI
from agents.planning.shooting import Shooting
from worldmodel.config import ConfigError, unknown

PLANNERS: dict[str, type[Planner]] = {
    "cem": CEM,
    "icem": ICEM,
    "mcts": MCTS,
    "mppi": MPPI,
    "shooting": Shooting,
}

__all__ = ["PLANNERS", "BoundsConfig", "Plan", "Planner", "planner_class"]


def planner_class(name: str) -> type[Planner]:
    """The class of a planner; ConfigError for a name that is not known."""
    if name not in PLANNERS:
        raise ConfigError(unknown("planner", name, PLANNERS))
    return PLANNERS[name]
