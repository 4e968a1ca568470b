"""The arithmetic of a detector, as one pure module.

obs, state, action -> Look -> raw score of each part
    -> level:   symlog of (raw - usual) / (seldom - usual), 0 on ordinary days
    -> slow:    a running mean of the level, for parts whose small signs add up
    -> excess:  level or slow, above what an ordinary episode reaches, in units of how far the
                farthest ordinary episodes go beyond that
    -> value:   the largest excess of the combined ones, 0 at an ordinary tick, 1 at the threshold

The largest of many is only as good as its units. Counted in such excesses, a small sign that an
ordinary episode never shows outweighs a large one that many of them show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.distributions import symlog
from worldmodel.models.vae import VAE
from worldmodel.ood.api import Memory
from worldmodel.types import EnvSpec

SLOW = "_slow"  # ends the name of a running mean
HIGHEST = 5.0  # a level counts no more than this in a running mean: one tick is one tick


class Look(NamedTuple):
    """What the parts look at: one tick of B rows, or N rows of any ticks. None: not there.

    image: [B, C, H, W] in [0, 1], all images on top of each other. mean, std: [B, N] of the
    autoencoder's code. error: [B, C, H, W], image minus reconstruction. vector: [B, V], vectors
    and one-hot vectors side by side. obs: as it came. before, state: the world's state before and
    after this observation. action: [B, A] that led here.
    """

    image: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    error: Tensor | None = None
    vector: Tensor | None = None
    obs: Mapping[str, Tensor] | None = None
    before: Any = None
    state: Any = None
    action: Tensor | None = None


class Looker(nn.Module):
    """Observations as the parts want them. vae: codes the images; None where there are none."""

    def __init__(self, spec: EnvSpec, vae: VAE | None) -> None:
        super().__init__()
        self.images, self.vae = spec.keys("image"), vae
        self.vectors = sorted([*spec.keys("vector"), *spec.keys("discrete")])

    def pictures(self, obs: Mapping[str, Tensor]) -> Tensor:
        """[B, C, H, W] in [0, 1] of uint8 images [B, H, W, C]."""
        image = torch.cat([obs[key] for key in self.images], -1)
        return image.permute(0, 3, 1, 2).float() / 255.0

    def forward(
        self, obs: Mapping[str, Tensor], before: Any, state: Any, action: Tensor | None
    ) -> Look:
        look = Look(obs=obs, before=before, state=state, action=action)
        if self.vectors:
            look = look._replace(vector=torch.cat([obs[key] for key in self.vectors], -1).float())
        if self.vae is not None:
            image = self.pictures(obs)
            coded = self.vae(image)
            error = image - coded.picture
            look = look._replace(image=image, mean=coded.mean, std=coded.std, error=error)
        return look


class Part(nn.Module):
    """A raw score of one tick; larger is stranger, in any unit. Calibration makes it comparable.

    name: of the part. needs: fields of `Look` without which there is no score. grain: the smallest
    difference between raw scores that means anything.
    """

    name: ClassVar[str]
    needs: tuple[str, ...] = ()
    grain: ClassVar[float] = 1e-9

    def fit(self, held: Look) -> None:
        """Learn from rows [N, ...] of episodes that the autoencoder was not trained on. Most parts
        have nothing to learn."""

    def memory(self, batch_size: int) -> Memory:
        """A tree of tensors [B, ...]: what it remembers before the first tick, if anything."""
        return {}

    def forward(self, look: Look, memory: Memory) -> tuple[Tensor, Memory]:
        """Raw score [B] and the next memory. A row whose episode begins comes with the first."""
        raise NotImplementedError


def present(value: Any) -> Any:
    """A field of a look that is there, since the part's `needs` names it."""
    assert value is not None
    return value


class Scorer(nn.Module):
    """Scores of B observations; the same input gives the same output.

    world: whose states parts look at, or None. combined: names of the columns whose maximum is
    the value. slow: names of parts that have a running mean too, and its rate.

    Buffers of fitting, [P] for parts and [K] for columns: usual, seldom (raw scores); worst, the
    level that an ordinary episode reaches at its worst tick, and unit, how far the farthest go
    beyond it; limit, each column's own threshold (a level); rest and final, the largest excess at
    an ordinary tick and at the threshold.
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
        world: Any,
        combined: Sequence[str],
        slow: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.looker = looker
        self.parts = nn.ModuleList(parts)
        self._world = [world]  # in a list, so that its weights are not the detector's own
        self.with_states = any({"before", "state"} & {*part.needs} for part in parts)
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
        """The memory before the first tick."""
        memory: Memory = {"slow": torch.zeros(batch_size, len(self.slow))}
        for part in self._parts():
            if own := part.memory(batch_size):
                memory[part.name] = own
        if self.with_states:
            memory["before"] = self._world[0].initial(batch_size)
        return tree.to(memory, self.usual.device)

    def forward(
        self,
        obs: Mapping[str, Tensor],
        state: Any,
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
        state: Any,
        action: Tensor | None,
        is_first: Tensor,
        memory: Memory,
    ) -> tuple[Tensor, Memory]:
        """All columns [B, K], and the next memory."""
        raw, memory = self.raw(obs, state, action, is_first, memory)
        level = symlog((raw - self.usual) / (self.seldom - self.usual))  # [B, P]
        now = level[:, self.slow].clamp(-HIGHEST, HIGHEST)
        slow = memory["slow"] + self.rates * (now - memory["slow"])
        memory = memory | {"slow": torch.where(torch.isnan(slow), memory["slow"], slow)}
        return torch.cat([level, slow], -1), memory

    def raw(
        self,
        obs: Mapping[str, Tensor],
        state: Any,
        action: Tensor | None,
        is_first: Tensor,
        memory: Memory,
    ) -> tuple[Tensor, Memory]:
        """The parts' raw scores [B, P], NaN where a part lacks what it needs, and the next memory;
        running means stay as they are."""
        memory = tree.where(is_first, self.initial(is_first.shape[0]), memory)
        before = None if state is None else memory.get("before")
        look = self.looker(obs, before, state, action)
        sound = torch.ones_like(is_first) if before is None else _finite(state)
        scores, after = [], dict(memory)
        for part in self._parts():
            if any(getattr(look, name) is None for name in part.needs):
                scores.append(torch.full_like(self.usual[0], torch.nan).expand(len(is_first)))
                continue
            score, own = part(look, memory.get(part.name, {}))
            if own:
                after[part.name] = own
            score = score.float()
            usable = torch.isfinite(score) & sound if "before" in part.needs else score.isfinite()
            # NaN is left for what is missing: a score that is not a number is as strange as can be.
            scores.append(torch.where(usable, score, torch.inf))
        if before is not None:
            after["before"] = state
        return torch.stack(scores, -1), after

    def _parts(self) -> list[Part]:
        return list(self.parts)  # type: ignore[arg-type]


def _finite(state: Any) -> Tensor:
    """Which rows [B] of a state hold nothing but finite numbers."""
    leaves = [x.reshape(x.shape[0], -1).isfinite().all(-1) for x in tree.tensors(state)]
    return torch.stack(leaves).all(0)
