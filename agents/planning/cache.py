"""A world that remembers what it predicted, by locality-sensitive hashing.

A state and an action are one vector x. Its hash is floor((P x + b) / width), for random projections
P (Datar et al., "Locality-sensitive hashing based on p-stable distributions", 2004): near vectors
often share it. The stored vector is compared as well, so that a hash that two far vectors share
answers for neither.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.capabilities import Deterministic, Expects, Masks, Uncertain
from worldmodel.config import ConfigError, check_ranges
from worldmodel.types import Dynamics, Prediction


@dataclass
class CacheConfig:
    """size: predictions that are kept, the least recently used go first; 0: no cache. projections,
    width: of the hash. tolerance: largest difference of any entry between a vector and the stored
    one."""

    size: int = 0
    projections: int = 8
    width: float = 0.1
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_ranges(self, {
            "size": (0, 1 << 28), "projections": (1, 1024), "width": (1e-9, 1e9),
            "tolerance": (0, 1e9),
        })  # fmt: skip


class CachedWorld:
    """A `Dynamics` whose `step` asks the world only for what it does not remember. All else is the
    world's own. expect: remember expectations (`Expects`) in place of steps.

    Raises ConfigError for a world that draws its outcomes: one draw would stand for all. `clear`
    it whenever the world has learned.
    """

    deterministic = True

    def __init__(
        self, world: Dynamics[Any], config: CacheConfig, seed: int = 0, expect: bool = False
    ) -> None:
        if not expect and not (isinstance(world, Deterministic) and world.deterministic):
            raise ConfigError(
                f"A cache needs a world whose steps draw nothing; {type(world).__name__} is not "
                "known to be one. Leave the cache out, or plan with expect=true."
            )
        self.world, self.config = world, config
        self._ask = world.expect if expect and isinstance(world, Expects) else world.step
        # What else a planner asks a world for, where this one has it.
        if isinstance(world, Masks):
            self.action_mask = world.action_mask
        if isinstance(world, Uncertain):
            self.uncertainty, self.uncertainty_unit = world.uncertainty, world.uncertainty_unit
        self._generator = torch.Generator().manual_seed(seed)
        self._project: tuple[Tensor, Tensor] | None = None
        self._stored: OrderedDict[bytes, tuple[Tensor, Prediction[Any]]] = OrderedDict()
        self.hits = self.misses = 0
        self.seconds_asking = self.seconds_looking = 0.0

    @property
    def discount(self) -> float:
        """The world's."""
        return self.world.discount

    def initial(self, batch_size: int) -> Any:
        """The world's."""
        return self.world.initial(batch_size)

    def observe(self, state: Any, obs: dict[str, Tensor], action: Tensor, is_first: Tensor) -> Any:
        """The world's."""
        return self.world.observe(state, obs, action, is_first)

    def step(self, state: Any, action: Tensor) -> Prediction[Any]:
        """As the world's, remembered where it can be."""
        began = time.perf_counter()
        vectors = torch.cat([x.flatten(1) for x in (*tree.tensors(state), action)], -1).float()
        keys = self._keys(vectors)
        found = [self._look(key, vector) for key, vector in zip(keys, vectors, strict=True)]
        # Rows of one call may be alike, too: the first of them is asked for all.
        missing: list[int] = []
        alike: dict[int, int] = {}
        newest: dict[bytes, int] = {}
        for i, prediction in enumerate(found):
            first = newest.get(keys[i]) if prediction is None else None
            if first is not None and self._close(vectors[first], vectors[i]):
                alike[i] = first
            elif prediction is None:
                newest[keys[i]] = i
                missing.append(i)
        self.hits += len(found) - len(missing)
        self.misses += len(missing)
        self.seconds_looking += time.perf_counter() - began
        if missing:
            began = time.perf_counter()
            asked = self._ask(tree.index(state, missing), action[missing])
            self.seconds_asking += time.perf_counter() - began
            for place, i in enumerate(missing):
                row = tree.index(asked, slice(place, place + 1))
                found[i] = row
                self._stored[keys[i]] = (vectors[i], row)
            while len(self._stored) > self.config.size:
                self._stored.popitem(last=False)
            if len(missing) == len(found):
                return asked
            for i, first in alike.items():
                found[i] = found[first]
        return tree.cat([row for row in found if row is not None])

    def clear(self) -> None:
        """Forget all predictions; the counters go on."""
        self._stored.clear()

    @property
    def stats(self) -> dict[str, float]:
        """hit_rate h; saved_s: seconds that the world would have taken for what was remembered, at
        its mean time for a row, less the time spent looking; gain: how many times as fast that
        makes the world; bound: what it could be at most, 1 / (1 - h)."""
        rows = self.hits + self.misses
        each = self.seconds_asking / self.misses if self.misses else 0.0
        took = self.seconds_asking + self.seconds_looking
        return {
            "hit_rate": self.hits / rows if rows else 0.0,
            "saved_s": self.hits * each - self.seconds_looking,
            "gain": rows * each / took if took else 1.0,
            "bound": rows / max(self.misses, 1),
            "stored": float(len(self._stored)),
        }

    def _look(self, key: bytes, vector: Tensor) -> Prediction[Any] | None:
        stored = self._stored.get(key)
        if stored is None or not self._close(stored[0], vector):
            return None
        self._stored.move_to_end(key)
        return stored[1]

    def _close(self, one: Tensor, other: Tensor) -> bool:
        return bool(((one - other).abs() <= self.config.tolerance).all())

    def _keys(self, vectors: Tensor) -> list[bytes]:
        c = self.config
        if self._project is None:
            size = (vectors.shape[-1], c.projections)
            self._project = (
                torch.randn(size, generator=self._generator).to(vectors.device),
                c.width * torch.rand(c.projections, generator=self._generator).to(vectors.device),
            )
        directions, offset = self._project
        hashes = torch.floor((vectors @ directions + offset) / c.width).long().cpu().numpy()
        return [row.tobytes() for row in hashes]
