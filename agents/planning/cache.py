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
from worldmodel.capabilities import Alternates, Deterministic, Expects, Masks, Uncertain
from worldmodel.config import ConfigError, check_ranges
from worldmodel.types import Dynamics, Prediction

SAMPLED = 64  # of so many calls one is asked of the world alone as well, to see what is gained


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
        self, world: Dynamics[Any], config: CacheConfig, seed: int = 0, expect: bool | None = None
    ) -> None:
        expects = isinstance(world, Expects)
        if not ((expect and expects) or (isinstance(world, Deterministic) and world.deterministic)):
            instead = ", or plan with expect=true" if expects and expect is False else ""
            raise ConfigError(
                f"A cache needs a world whose steps draw nothing; {type(world).__name__} is not "
                f"known to be one. Leave the cache out{instead}."
            )
        self.world, self.config = world, config
        self._ask = world.expect if expect and isinstance(world, Expects) else world.step
        # What else a planner asks a world for, where this one has it.
        if isinstance(world, Alternates):
            self.alternates = world.alternates
        if isinstance(world, Masks):
            self.action_mask = world.action_mask
        if isinstance(world, Uncertain):
            self.uncertainty, self.uncertainty_unit = world.uncertainty, world.uncertainty_unit
        self._generator = torch.Generator().manual_seed(seed)
        self._project: tuple[Tensor, Tensor] | None = None
        # Of each hash the row of the table below that holds what was asked and answered, the least
        # recently used first.
        self._rows: OrderedDict[bytes, int] = OrderedDict()
        self._table: tuple[Tensor, Prediction[Any]] | None = None
        self.hits = self.misses = 0
        self.seconds_asking = self.seconds_looking = 0.0
        self._calls = self._rows_alone = 0
        self._seconds_alone = 0.0

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
        vectors = torch.cat(
            [x.reshape(len(x), -1) for x in (*tree.tensors(state), action)], -1
        ).float()
        keys = self._keys(vectors)
        count, device = len(keys), vectors.device
        rows = torch.tensor([self._rows.get(key, -1) for key in keys], device=device)
        known = rows >= 0
        if self._table is not None:
            known &= self._close(self._table[0][rows.clamp_min(0)], vectors)
        # Rows of one call may be alike, too: the first of them is asked for all.
        first: dict[bytes, int] = {}
        unknown = (~known).nonzero().flatten().tolist()
        own = torch.arange(count, device=device)
        source = own.clone()
        firsts = [first.setdefault(keys[i], i) for i in unknown]
        source[unknown] = torch.tensor(firsts, dtype=torch.long, device=device)
        source = torch.where(self._close(vectors[source], vectors), source, own)
        missing = (~known & (source == own)).nonzero().flatten()
        self.hits += count - len(missing)
        self.misses += len(missing)
        for i in known.nonzero().flatten().tolist():
            self._rows.move_to_end(keys[i])
        asked: Prediction[Any] | None = None
        if len(missing):
            asking = time.perf_counter()
            asked = self._ask(tree.index(state, missing), action[missing])
            took = time.perf_counter() - asking
            self.seconds_asking += took
            began += took  # what is left is looking
        answer = self._answer(asked, missing, rows, known, source)
        if asked is not None:
            self._keep([keys[i] for i in missing.tolist()], vectors[missing], asked)
        self.seconds_looking += time.perf_counter() - began
        self._calls += 1
        if self._calls % SAMPLED == 0:
            self._time_alone(state, action)
        return answer

    def _time_alone(self, state: Any, action: Tensor) -> None:
        """What the world itself would have taken for this call."""
        began = time.perf_counter()
        self._ask(state, action)
        self._seconds_alone += time.perf_counter() - began
        self._rows_alone += len(action)

    def clear(self) -> None:
        """Forget all predictions; the counters go on."""
        self._rows.clear()

    @property
    def stats(self) -> dict[str, float]:
        """hit_rate h; bound: how many times as fast the world could be made at most, 1 / (1 - h);
        stored: predictions that are kept. And, from the first call on that was asked of the world
        alone (every 64th is, for that), saved_s: seconds that the world would have taken, less
        those that it took with what was remembered; gain: how many times as fast that made it."""
        rows = self.hits + self.misses
        found = {
            "hit_rate": self.hits / rows if rows else 0.0,
            "bound": rows / max(self.misses, 1),
            "stored": float(len(self._rows)),
        }
        if self._rows_alone:
            took = self.seconds_asking + self.seconds_looking
            alone = rows * self._seconds_alone / self._rows_alone
            found |= {"saved_s": alone - took, "gain": alone / took}
        return found

    def _answer(
        self,
        asked: Prediction[Any] | None,
        missing: Tensor,
        rows: Tensor,
        known: Tensor,
        source: Tensor,
    ) -> Prediction[Any]:
        """The predictions [N, ...]: of the table at `rows` where they are known, else what was
        asked for the row `source`."""
        if asked is not None and len(missing) == len(rows):
            return asked
        if asked is None:
            assert self._table is not None
            return tree.index(self._table[1], rows)
        place = torch.zeros_like(rows)
        place[missing] = torch.arange(len(missing), device=rows.device)
        found = tree.index(asked, place[source])
        if self._table is None or not known.any():
            return found
        return tree.where(known, tree.index(self._table[1], rows.clamp_min(0)), found)

    def _keep(self, keys: list[bytes], vectors: Tensor, asked: Prediction[Any]) -> None:
        """Store what was asked, in place of the least recently used where there is no more room."""
        size = self.config.size
        keys, vectors = keys[-size:], vectors[-size:]
        asked = tree.index(asked, slice(-size, None))
        if self._table is None:
            self._table = tree.index((vectors, asked), slice(0, 0))
        places = []
        for key in keys:
            row = self._rows.pop(key, None)
            if row is None:
                full = len(self._rows) >= size
                row = self._rows.popitem(last=False)[1] if full else len(self._rows)
            self._rows[key] = row
            places.append(row)
        where = torch.tensor(places, device=vectors.device)
        length, needed = len(self._table[0]), len(self._rows)
        if needed > length:
            more = min(size, max(needed, 2 * length)) - length
            self._table = tree.map(
                lambda x: torch.cat([x, x.new_zeros(more, *x.shape[1:])]), self._table
            )
        # Where one call has several rows of one hash, the last of them stays.
        last = {row: i for i, row in enumerate(places)}
        kept = torch.tensor(list(last.values()), device=vectors.device)
        tree.map(
            lambda x, new: x.index_copy_(0, where[kept], new[kept]), self._table, (vectors, asked)
        )

    def _close(self, one: Tensor, other: Tensor) -> Tensor:
        """Of each row whether no entry differs by more than the tolerance [N]."""
        return ((one - other).abs() <= self.config.tolerance).all(-1)

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
