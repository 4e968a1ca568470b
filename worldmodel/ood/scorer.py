"""The arithmetic of a detector, as one pure module: looks, raw scores, units, memory, one value.

obs, state, action -> Look -> raw score of each part
    -> level:   symlog of (raw - usual) / (seldom - usual), 0 on ordinary days
    -> slow:    a running mean of the level, for parts whose small signs add up
    -> strange: level or slow, in units of what held-out episodes reach at their worst
    -> value:   the largest of the combined ones, in units of the threshold
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from worldmodel.distributions import symlog
from worldmodel.ood.api import Memory
from worldmodel.ood.look import Look, Looker
from worldmodel.ood.part import Part
from worldmodel.types import LatentState

SLOW = "_slow"  # ends the name of a running mean
HIGHEST = 5.0  # a level counts no more than this in a running mean: one tick is one tick


class Scorer(nn.Module):
    """Scores of B observations; the same input gives the same output.

    combined: names of the columns whose maximum is the value. slow: names of parts that have a
    running mean too, and its rate.

    Buffers of fitting, [P] for parts and [K] for columns: usual, seldom (raw), unit (what
    held-out episodes reach at their worst), limit (each column's own threshold, in units).
    """

    usual: Tensor
    seldom: Tensor
    unit: Tensor
    limit: Tensor
    final: Tensor
    chosen: Tensor
    rates: Tensor

    def __init__(
        self,
        looker: Looker,
        parts: Sequence[Part],
        combined: Sequence[str],
        slow: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.looker = looker
        self.parts = nn.ModuleList(parts)
        self.slow = [i for i, part in enumerate(parts) if part.name in slow]
        base = [part.name for part in parts]
        self.names: tuple[str, ...] = (*base, *(base[i] + SLOW for i in self.slow))
        self.register_buffer("usual", torch.zeros(len(base)))
        self.register_buffer("seldom", torch.ones(len(base)))
        self.register_buffer("unit", torch.ones(len(self.names)))
        self.register_buffer("limit", torch.ones(len(self.names)))
        self.register_buffer("final", torch.ones(()))
        chosen = torch.tensor([name in combined for name in self.names])
        self.register_buffer("chosen", chosen, persistent=False)
        rates = torch.tensor([slow[base[i]] for i in self.slow])
        self.register_buffer("rates", rates, persistent=False)

    @property
    def threshold(self) -> float:
        """Above it a value is unknown: values are in its units."""
        return 1.0

    def initial(self, batch_size: int) -> Memory:
        """Zeros: the memory before the first tick."""
        memory = {"slow": torch.zeros(batch_size, len(self.slow))}
        for part in self._parts():
            for key, value in part.memory(batch_size).items():
                memory[f"{part.name}.{key}"] = value
        return {key: value.to(self.usual.device) for key, value in memory.items()}

    def forward(
        self,
        obs: Mapping[str, Tensor],
        state: LatentState | None,
        action: Tensor | None,
        is_first: Tensor,
        memory: Memory,
    ) -> tuple[Tensor, Tensor, Memory]:
        """value [B], parts [B, K] in units of their own thresholds, and the next memory.

        A part that lacks the state or the action is NaN, and does not count.
        """
        strange, memory = self.strange(obs, state, action, is_first, memory)
        return self.value(strange), strange / self.limit, memory

    def value(self, strange: Tensor) -> Tensor:
        """[B], in units of the threshold, from all columns [B, K] in their units."""
        counted = torch.where(self.chosen & ~torch.isnan(strange), strange, -torch.inf)
        return counted.amax(-1) / self.final

    def strange(
        self,
        obs: Mapping[str, Tensor],
        state: LatentState | None,
        action: Tensor | None,
        is_first: Tensor,
        memory: Memory,
    ) -> tuple[Tensor, Memory]:
        """All columns [B, K] in their units, and the next memory."""
        memory = {
            key: value.masked_fill(is_first.view(-1, *[1] * (value.dim() - 1)), 0.0)
            for key, value in memory.items()
        }
        raw, memory = self.raw(self.looker(obs, state, action), memory)
        level = symlog((raw - self.usual) / (self.seldom - self.usual))  # [B, P]
        now = level[:, self.slow].clamp(-HIGHEST, HIGHEST)
        slow = memory["slow"] + self.rates * (now - memory["slow"])
        memory = memory | {"slow": torch.where(torch.isnan(slow), memory["slow"], slow)}
        return torch.cat([level, slow], -1) / self.unit, memory

    def raw(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        """The parts' raw scores [B, P], NaN where a part lacks what it needs."""
        scores = []
        after = dict(memory)
        for part in self._parts():
            if any(getattr(look, name) is None for name in part.needs):
                scores.append(memory["slow"].new_full((len(memory["slow"]),), torch.nan))
                continue
            prefix = f"{part.name}."
            own = {k.removeprefix(prefix): v for k, v in memory.items() if k.startswith(prefix)}
            score, own = part(look, own)
            after |= {prefix + key: value for key, value in own.items()}
            score = score.float()
            # NaN is left for what is missing: what came out as none is as strange as can be.
            scores.append(torch.where(torch.isfinite(score), score, torch.inf))
        return torch.stack(scores, -1), after

    def _parts(self) -> list[Part]:
        return list(self.parts)  # type: ignore[arg-type]
