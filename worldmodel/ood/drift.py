"""Small errors of a step hide in its noise; several steps without looking add them up.

At every tick the model starts to imagine from the state at hand, and goes on with the actions
that are really taken. After `steps` ticks what it foretold meets what came:

    state_{t-n} --a_{t-n}--> . --> ... --a_{t-1}--> prior_t   against the posterior at t

So `steps` imaginations are under way at any time, each one tick older than the next; they step
together, as one batch.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from worldmodel.ood.api import Memory
from worldmodel.ood.look import Look, expected_stoch
from worldmodel.ood.part import Part, seen
from worldmodel.rssm.core import RSSM
from worldmodel.rssm.state import LatentState


class Drift(Part):
    """KL(posterior || prior of `steps` ticks ago) in nats, 0 before there is one.

    core: the world model's; its weights are not the part's own.
    """

    name = "drift"
    needs: ClassVar = ("prior", "posterior", "state", "action")

    def __init__(self, core: RSSM, steps: int) -> None:
        super().__init__()
        self._core, self.steps = [core], steps

    def memory(self, batch_size: int) -> Memory:
        core, n = self._core[0], self.steps
        return {
            "deter": torch.zeros(batch_size, n, core.deter),
            "stoch": torch.zeros(batch_size, n, core.groups, core.classes),
            "age": torch.zeros(batch_size),
        }

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        core, n = self._core[0], self.steps
        assert look.state is not None
        before = LatentState(memory["deter"], memory["stoch"]).map(lambda x: x.flatten(0, 1))
        action = core.embed_action(seen(look.action)).repeat_interleave(n, 0)
        deter = core.recur(before, action).unflatten(0, (-1, n))  # [B, n, D], the oldest first
        prior = core.prior(deter)
        old = core.kl(seen(look.posterior), prior[:, 0])
        known = (memory["age"] >= n).to(old.dtype)
        stoch = expected_stoch(core, prior)
        after = {
            "deter": torch.cat([deter[:, 1:], look.state.deter.unsqueeze(1)], 1),
            "stoch": torch.cat([stoch[:, 1:], look.state.stoch.unsqueeze(1)], 1),
            "age": memory["age"] + 1,
        }
        return old * known, after
