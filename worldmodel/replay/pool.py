"""Imagined transitions, in memory: a plain ring, drawn from uniformly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.types import Transitions


class Pool:
    """The newest `capacity` transitions that were added, on the device of the first ones.

    Whether it is saved is its agent's word: `state_dict` holds everything, random generator
    included, so that a run goes on to the bit.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"A pool of {capacity} transitions holds nothing.")
        self.capacity = capacity
        self._rng = np.random.default_rng(seed)
        self._rows: dict[str, Tensor] = {}  # [capacity, ...] each
        self._held = self._next = 0  # slots in use, and the slot that is written next

    def __len__(self) -> int:
        """Transitions held."""
        return self._held

    def add(self, batch: Transitions) -> None:
        """Append transitions [N, ...]; the oldest make room. Weights and index are not kept."""
        rows = {f"obs.{key}": value for key, value in batch.obs.items()}
        rows |= {f"next_obs.{key}": value for key, value in batch.next_obs.items()}
        rows |= {"action": batch.action, "reward": batch.reward, "discount": batch.discount}
        if not self._rows:
            self._rows = {k: v.new_empty(self.capacity, *v.shape[1:]) for k, v in rows.items()}
        count = len(batch.reward)
        slots = (self._next + np.arange(count))[-self.capacity :] % self.capacity
        where = torch.from_numpy(slots).to(batch.reward.device)
        for name, value in rows.items():
            self._rows[name][where] = value[-self.capacity :].detach()
        self._next = (self._next + count) % self.capacity
        self._held = min(self.capacity, self._held + count)

    def sample(self, count: int) -> Transitions:
        """Draw [B, ...] with replacement. Raises ValueError where nothing is held."""
        if not self._held:
            raise ValueError("The pool is empty: add transitions first.")
        picks = torch.from_numpy(self._rng.integers(self._held, size=count))
        picks = picks.to(self._rows["reward"].device)
        drawn = {name: value[picks] for name, value in self._rows.items()}
        groups: dict[str, dict[str, Tensor]] = {"obs": {}, "next_obs": {}}
        for name, value in drawn.items():
            group, _, key = name.partition(".")
            if key:
                groups[group][key] = value
        parts = {name: drawn[name] for name in ("action", "reward", "discount")}
        return Transitions(**groups, **parts, weight=torch.ones_like(drawn["reward"]))  # type: ignore[arg-type]

    def resize(self, capacity: int) -> None:
        """Hold so many from now on; the newest that fit stay."""
        oldest = self._next - self._held
        slots = (oldest + np.arange(self._held))[-capacity:] % self.capacity
        held = {
            name: value[torch.from_numpy(slots).to(value.device)]
            for name, value in self._rows.items()
        }
        self._rows = {k: v.new_empty(capacity, *v.shape[1:]) for k, v in held.items()}
        for name, value in held.items():
            self._rows[name][: len(slots)] = value
        self.capacity, self._held = capacity, len(slots)
        self._next = len(slots) % capacity

    def state_dict(self) -> dict[str, Any]:
        """Everything that it holds, as numbers, strings, dicts and tensors."""
        return {
            "capacity": self.capacity,
            "rows": {name: value[: self._held].cpu().clone() for name, value in self._rows.items()},
            "next": self._next,
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Put `state_dict()` back, on a device."""
        self.capacity, self._next = state["capacity"], state["next"]
        self._rng.bit_generator.state = state["rng"]
        self._held = len(state["rows"]["reward"]) if state["rows"] else 0
        self._rows = {}
        for name, value in state["rows"].items():
            room = torch.empty(self.capacity, *value.shape[1:], dtype=value.dtype, device=device)
            room[: self._held] = value.to(device)
            self._rows[name] = room
