"""Whole episodes with one policy each: random ones, and candidates whose returns are counted.

A job says who plays an environment's episode:

    -1            C itself, and nobody counts
    n >= 0        2 k + r: the k-th policy that was drawn; r = 1: random weights, 0: near C
    n <= -2       -2 - n: an episode of a candidate, number candidate * trials + trial

An environment that fails begins a new episode: the candidate's episode is then played again from
its beginning, by whoever begins an episode next, and counted in `repeated`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.world_models.config import SearchConfig
from worldmodel import tree
from worldmodel.seeding import spawn

NOBODY = -1
REMEMBERED = 1024  # policies that are not drawn again at every step


class Trials:
    """Who plays, and what the candidates of the present generation earned."""

    def __init__(self, config: SearchConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.drawn = 0  # policies so far
        self._policies: dict[int, tuple[bool, Tensor]] = {}  # of the jobs of late
        self.repeated = 0  # episodes of candidates that an environment's failure interrupted
        self.new_generation()

    def new_generation(self) -> None:
        """Forget what was earned."""
        shape = self.config.population, self.config.trials
        self._score, self._steps = np.zeros(shape), np.zeros(shape)
        self._begun, self._ended = np.zeros(shape, bool), np.zeros(shape, bool)

    @staticmethod
    def nobody(batch: int) -> Tensor:
        """Jobs [B] of an agent that has not acted yet. On the CPU whatever the device."""
        return torch.full((batch,), NOBODY, dtype=torch.long)

    @property
    def waiting(self) -> bool:
        """Whether episodes of candidates are missing."""
        return not self._ended.all()

    @property
    def returns(self) -> np.ndarray:
        """[P, R]."""
        return self._score.copy()

    @property
    def lengths(self) -> np.ndarray:
        """[P, R], in agent steps."""
        return self._steps.copy()

    def candidate(self, job: int) -> int | None:
        """Whose episode it is; None where it is not a candidate's."""
        return (-2 - job) // self.config.trials if job <= -2 else None

    def draws(self, job: int, shape: Any, scale: float) -> tuple[bool, Tensor] | None:
        """Whether a job's policy is random, and its weights (or normal noise, to be added to C's);
        None where it is C. The same job has the same ones."""
        if job < 0:
            return None
        if job not in self._policies:
            if len(self._policies) >= REMEMBERED:
                self._policies.clear()
            self._policies[job] = self._draw(job, shape, scale)
        return self._policies[job]

    def _draw(self, job: int, shape: Any, scale: float) -> tuple[bool, Tensor]:
        rng = np.random.default_rng(spawn(self.seed, f"policy {job}"))
        if job % 2:
            drawn = rng.standard_cauchy(shape) * rng.uniform(0, scale)
        else:
            drawn = rng.standard_normal(shape)
        return bool(job % 2), torch.as_tensor(drawn, dtype=torch.float32)

    def note(self, job: Tensor, obs: Mapping[str, Any], first: np.ndarray) -> Tensor:
        """Count what arrived [B] for the jobs [B] that led to it, as far as `obs` says what was
        earned; the jobs that still go on."""
        reward, last, job = obs.get("reward"), obs.get("is_last"), job.clone()
        if reward is None or last is None:
            return job
        for i, each in enumerate(job.tolist()):
            if each > -2:
                continue
            place = divmod(-2 - each, self.config.trials)
            if first[i]:  # interrupted
                self._begun[place], self._score[place], self._steps[place] = False, 0.0, 0.0
                self.repeated += 1
                continue
            self._score[place] += float(reward[i])
            self._steps[place] += 1
            if last[i]:
                self._ended[place], job[i] = True, NOBODY
        return job

    def assign(self, job: Tensor, first: np.ndarray, real: bool, explore: float) -> Tensor:
        """Jobs [B], new ones where an episode begins: with `real` those that candidates miss, then
        C; without, drawn policies, of which `explore` are random."""
        for i in np.flatnonzero(first):
            if real:
                missing = np.argwhere(~self._begun)
                if not len(missing):
                    job[i] = NOBODY
                    continue
                place = tuple(missing[0])
                self._begun[place] = True
                job[i] = -2 - int(place[0] * self.config.trials + place[1])
                continue
            coin = np.random.default_rng(spawn(self.seed, f"coin {self.drawn}")).random()
            job[i] = 2 * self.drawn + int(coin < explore)
            self.drawn += 1
        return job

    def state_dict(self) -> dict[str, Any]:
        arrays = {"score": self._score, "steps": self._steps}
        flags = {"begun": self._begun, "ended": self._ended}
        numbers = {"drawn": self.drawn, "repeated": self.repeated}
        plain: dict[str, Any] = tree.to_plain(arrays | flags | numbers)
        return plain

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put `state_dict()` back; ValueError where it is of another search."""
        tree.check_plain_like(self.state_dict(), state, "the trials")
        self._score, self._steps, self._begun, self._ended = (
            state[name].numpy().copy() for name in ("score", "steps", "begun", "ended")
        )
        self.drawn, self.repeated = state["drawn"], state["repeated"]
