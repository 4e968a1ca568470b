"""The arithmetic of a detector, as one pure module: looks, raw scores, units, memory, one value.

obs, state, action -> Look -> raw score of each part
    -> level:   symlog of (raw - usual) / (seldom - usual), 0 on ordinary days
    -> slow:    a running mean of the level, for parts whose small signs add up
    -> excess:  level or slow, above what an ordinary episode reaches, in units of how far ordinary
                episodes go beyond that
    -> value:   the largest excess of the combined ones, 0 at an ordinary tick, 1 at the threshold

The largest of many is only as good as its units. Counted in such excesses, a small sign that an
ordinary episode never shows outweighs a large one that many of them show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from worldmodel.distributions import symlog
from worldmodel.ood.api import Memory
from worldmodel.ood.look import Look, Looker
from worldmodel.ood.part import Part
from worldmodel.rssm.state import LatentState

SLOW = "_slow"  # ends the name of a running mean
HIGHEST = 5.0  # a level counts no more than this in a running mean: one tick is one tick


class Scorer(nn.Module):
    """Scores of B observations; the same input gives the same output.

    combined: names of the columns whose maximum is the value. slow: names of parts that have a
    running mean too, and its rate.

    Buffers of fitting, [P] for parts and [K] for columns: usual, seldom (raw scores); worst, the
    level that an ordinary episode reaches at its worst tick, and unit, how far others go beyond it;
    limit, each column's own threshold (a level); rest and final, the largest excess at an ordinary
    tick and at the threshold.
    """

    usual: Tensor
    seldom: Tensor
    worst: Tensor
    unit: Tensor
    limit: Tensor
    rest: Tensor
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
        self.register_buffer("worst", torch.zeros(len(self.names)))
        self.register_buffer("unit", torch.ones(len(self.names)))
        self.register_buffer("limit", torch.ones(len(self.names)))
        self.register_buffer("rest", torch.zeros(()))
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
        levels, memory = self.levels(obs, state, action, is_first, memory)
        return self.value(levels), levels / self.limit, memory

    def value(self, levels: Tensor) -> Tensor:
        """[B], in units of the threshold, from all columns [B, K]."""
        return (self.excess(levels) - self.rest) / (self.final - self.rest)

    def excess(self, levels: Tensor) -> Tensor:
        """The largest excess [B] of the columns [B, K] that decide; NaN where none is there."""
        excess = (levels - self.worst) / self.unit
        counted = self.chosen & ~torch.isnan(levels)
        largest = torch.where(counted, excess, -torch.inf).amax(-1)
        return torch.where(counted.any(-1), largest, torch.nan)

    def levels(
        self,
        obs: Mapping[str, Tensor],
        state: LatentState | None,
        action: Tensor | None,
        is_first: Tensor,
        memory: Memory,
    ) -> tuple[Tensor, Memory]:
        """All columns [B, K], and the next memory."""
        memory = {
            key: value.masked_fill(is_first.view(-1, *[1] * (value.dim() - 1)), 0.0)
            for key, value in memory.items()
        }
        raw, memory = self.raw(self.looker(obs, state, action), memory)
        level = symlog((raw - self.usual) / (self.seldom - self.usual))  # [B, P]
        now = level[:, self.slow].clamp(-HIGHEST, HIGHEST)
        slow = memory["slow"] + self.rates * (now - memory["slow"])
        memory = memory | {"slow": torch.where(torch.isnan(slow), memory["slow"], slow)}
        return torch.cat([level, slow], -1), memory

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
