"""Branched rollouts: short imagined paths that begin in states which were really visited.

    real s -> policy -> a -> world.step -> r, s', P(goes on)  -> (s, a, r, discount, s')
                 ^------------ s' of those that go on <-----------'

No path goes on where the world ends the episode, and none where it is too unsure of the next
step: there the last transition keeps its discount, so that the value of its last state stands for
the rest. Janner et al., "When to Trust Your Model" (MBPO, 2019), algorithm 2; pessimism as in Yu
et al., "MOPO" (2020), and the limit as in Kidambi et al., "MOReL" (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.capabilities import Uncertain
from worldmodel.config import ConfigError, check_ranges
from worldmodel.types import Transitions

Act = Callable[[dict[str, Tensor]], Tensor]  # observations [B, ...] -> encoded actions [B, A]


@dataclass
class RolloutConfig:
    """every: real steps between two rollouts, before each of which the world is trained. starts: of
    one rollout, drawn from all real states. schedule: [e0, e1, k0, k1]: their length grows from k0
    at epoch e0 to k1 at epoch e1. epoch: real steps. retain: epochs whose rollouts are kept.
    real_share: of the transitions in a batch. pessimism: w; the world's uncertainty times w is
    taken off each imagined reward. uncertainty_limit: a path ends before a step of which the world
    is less sure; null: never."""

    every: int = 250
    starts: int = 100_000
    schedule: list[float] = field(default_factory=lambda: [20, 150, 1, 1])
    epoch: int = 1000
    retain: int = 1
    real_share: float = 0.05
    pessimism: float = 0.0
    uncertainty_limit: float | None = None

    def __post_init__(self) -> None:
        count = (1, 1 << 31)
        check_ranges(self, {
            "every": count, "starts": count, "epoch": count, "retain": count, "real_share": (0, 1),
            "schedule": (0, 1e9), "pessimism": (0, 1e9), "uncertainty_limit": (0, 1e30),
        })  # fmt: skip
        given = self.schedule
        if len(given) != 4 or min(given[2:]) < 1 or given[0] > given[1]:
            raise ConfigError(
                f"schedule is {given}; allowed: [first epoch, last epoch, first length, last "
                "length], the first epoch not after the last and lengths of at least 1. For "
                "example [20, 100, 1, 15]."
            )

    @property
    def doubts(self) -> bool:
        """Whether the world is asked how unsure it is."""
        return self.pessimism > 0 or self.uncertainty_limit is not None

    def length(self, steps: int) -> int:
        """Of a path, after so many real steps since the first rollout."""
        e0, e1, k0, k1 = self.schedule
        share = min(1.0, max(0.0, (steps // self.epoch - e0) / max(e1 - e0, 1e-9)))
        return int(k0 + share * (k1 - k0))

    def capacity(self, length: int) -> int:
        """Transitions that are kept."""
        rollouts = max(1, self.epoch // self.every)
        return self.retain * length * self.starts * rollouts


def check_world(world: Any, config: RolloutConfig) -> None:
    """ConfigError where rollouts ask the world for an uncertainty that it does not have."""
    if config.doubts and not isinstance(world, Uncertain):
        raise ConfigError(
            "rollouts.pessimism and uncertainty_limit need a world that knows its uncertainty, and "
            "this one does not. Give it more members, or leave them at 0 and null."
        )


@torch.no_grad()
def branch(
    world: Any, act: Act, starts: dict[str, Tensor], length: int, discount: float,
    config: RolloutConfig,
) -> Iterator[tuple[Transitions, dict[str, float]]]:  # fmt: skip
    """Step by step, the transitions of paths from observations [N, ...], and metrics of the step.

    world: a `Dynamics` that `Decodes`. Draws from torch's generator. Transitions that are not
    finite are left out, and their paths end.
    """
    count = len(next(iter(starts.values())))
    first = torch.ones(count, dtype=torch.bool, device=tree.device(starts))
    action = act(starts)
    state = world.observe(world.initial(count), starts, torch.zeros_like(action), first)
    for _ in range(length):
        obs = world.decode(state)
        action = act(obs)
        metrics: dict[str, float] = {}
        doubt = torch.zeros((), device=action.device)
        if config.doubts:
            doubt = world.uncertainty(state, action)
            metrics["rollout/uncertainty"] = float(doubt.mean())
            if config.uncertainty_limit is not None:
                sure = doubt <= config.uncertainty_limit
                metrics["rollout/too_unsure"] = float((~sure).float().mean())
                state, obs, action, doubt = _some((state, obs, action, doubt), sure)
        after, reward, cont = world.step(state, action)
        seen = world.decode(after)
        weight = torch.ones_like(reward)
        paid = reward - config.pessimism * doubt
        batch = Transitions(obs, action, paid, discount * cont, seen, weight)
        numbers = torch.stack([paid, cont, *(x.flatten(1).sum(1) for x in seen.values())])
        finite = numbers.isfinite().all(0)
        metrics["rollout/nonfinite"] = float((~finite).float().mean())
        if not finite.all():
            batch, after, cont = _some((batch, after, cont), finite)
        if not len(cont):
            return
        metrics["rollout/reward"] = float(batch.reward.mean())
        yield batch, metrics
        state = _some(after, torch.rand_like(cont) < cont)
        if not tree.batch_size(state):
            return


def _some(tree_of_rows: Any, where: Tensor) -> Any:
    return tree.index(tree_of_rows, where)
