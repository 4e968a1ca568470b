"""An agent that plans every action in a world, in place of its own policy's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from agents.base import Agent, Evaluation, Policy
from agents.planning import planner_class
from agents.planning.base import Plan, Planner
from agents.planning.tally import SearchTally
from agents.planning.tree_config import AUTO, MCTSConfig
from worldmodel import seeding, tree
from worldmodel.config import ConfigError
from worldmodel.types import MASK_KEY, Dynamics

SHOWN = 20  # the decision that is kept to be shown


class PlannedState(NamedTuple):
    """The state of the agent that is planned for, and what the next decision starts from."""

    agent: Any
    warm: Any


def make_planner(settings: Any, policy: Policy, seed: int, trusts: bool = True) -> Planner:
    """The planner of these settings for an agent; trusts: as of `Planned`."""
    if isinstance(settings, MCTSConfig) and settings.rule == AUTO:
        state = policy.agent.world_state(policy.agent.initial(1))
        with torch.no_grad():
            guess = policy.agent.evaluate(state) if trusts and state is not None else Evaluation()
        guided = guess.prior is not None and guess.value is not None
        settings = replace(settings, rule="puct" if guided else "ucb1")
    device = policy.device
    return planner_class(settings.name)(policy.spec.action, settings, seed, device)


def planned(
    policy: Policy, settings: Any, seed: int, world: Any = None, trusts: bool = True
) -> Policy:
    """The policy with each action planned. settings: a planner's Config. world, trusts: as of
    `Planned`. Raises ConfigError where there is no world, or the planner cannot search it."""
    planner = make_planner(settings, policy, seeding.spawn(seed, "planner"), trusts)
    return replace(policy, agent=Planned(policy.agent, planner, world, trusts))


class Planned(Agent):
    """Acts as a planner decides; it learns nothing.

    agent: whose memory follows the environment. world: where to plan, with states as those of the
    agent's model; None: `Agent.plan_in`. trusts: the agent's policy and values are for the rewards
    of this world, and may be asked. Raises ConfigError for an agent without a world.
    """

    learns = False

    def __init__(
        self, agent: Agent, planner: Planner, world: Any = None, trusts: bool = True
    ) -> None:
        self.agent, self.planner, self.trusts = agent, planner, trusts
        self.model = agent.plan_in() if world is None else world
        self.tally = SearchTally()
        #: The state of the first environment at the decision with number SHOWN, and its plan.
        self.shown: tuple[Any, Plan] | None = None
        known = isinstance(self.model, Dynamics)
        if not known or agent.world_state(agent.initial(1)) is None:
            raise ConfigError(
                f"The agent '{agent.name}' has no world to plan in. Use a run of one that learns a "
                "world, such as agent=dreamer."
            )

    @property
    def name(self) -> str:
        """The name of the agent that is planned for."""
        return self.agent.name

    @property
    def streams(self) -> tuple[seeding.Stream, ...]:
        """See `Agent.streams`."""
        return (*self.agent.streams, self.planner.stream)

    def initial(self, batch_size: int) -> PlannedState:
        """See `Agent.initial`."""
        return PlannedState(self.agent.initial(batch_size), self.planner.initial(batch_size))

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], state: PlannedState | None = None, mode: str = "sample"
    ) -> tuple[np.ndarray, PlannedState, dict[str, Any]]:
        """See `Agent.act`; the mode is the agent's own, whose action is replaced."""
        began = self.planner.clock()
        inner, warm = (None, None) if state is None else state
        own, inner, extras = self.agent.follow(obs, inner, mode)
        world_state = self.agent.world_state(inner)
        device = tree.device(world_state)
        first, mask = (
            None if obs.get(key) is None else torch.as_tensor(np.asarray(obs[key]), device=device)
            for key in ("is_first", MASK_KEY)
        )
        plan = self.planner.plan(
            self.model,
            world_state,
            self.agent.evaluate if self.trusts else None,
            warm,
            first,
            mask,
            began,
        )
        self.stats = plan.stats
        self.tally.add(plan.stats)
        if self.tally.decisions == SHOWN:
            self.shown = tree.index(world_state, slice(0, 1)), plan
        chosen = plan.action.cpu().numpy()
        if self.trusts and not plan.stats["model_steps"]:
            # No time for a single step: the policy's action is the better guess.
            if own is not None:
                chosen = own
            elif (prior := self.agent.evaluate(world_state).prior) is not None:
                chosen = prior.mode().cpu().numpy()
        return chosen, PlannedState(self.agent.replace_action(inner, chosen), plan.warm), extras

    def replace_action(self, state: PlannedState, action: Any) -> PlannedState:
        """See `Agent.replace_action`."""
        return state._replace(agent=self.agent.replace_action(state.agent, action))

    def world_state(self, state: PlannedState) -> Any:
        """See `Agent.world_state`."""
        return self.agent.world_state(state.agent)

    def evaluate(self, state: Any) -> Evaluation:
        """See `Agent.evaluate`."""
        return self.agent.evaluate(state) if self.trusts else Evaluation()

    def update(self, replay: Any) -> dict[str, Any]:
        """It learns nothing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The planner's random generator, and the agent."""
        return {"planner": self.planner.state_dict(), "agent": self.agent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back."""
        self.planner.load_state_dict(state["planner"])
        self.agent.load_state_dict(state["agent"])
