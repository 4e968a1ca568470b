"""The fallbacks of all robots: on time, and never with an exception."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from agents.deploy.clock import Clock
from agents.deploy.config import FallbackConfig
from agents.deploy.fallback import Fallback, Own, make, rest_action
from agents.deploy.worker import ThreadWorker, answered
from worldmodel.config import ConfigError
from worldmodel.types import ActionSpec

Needy = Mapping[int, Mapping[str, Any]]
FIRST_CALL_S = 10.0  # what a user's function may take before the loop, where it may load things


class _Job:
    """Asks the fallbacks of several robots; satisfies `agents.deploy.worker.Job`."""

    def __init__(self, ones: list[Fallback]) -> None:
        self._ones = ones

    def __call__(self, request: tuple[Needy, Mapping[str, np.ndarray]]) -> dict[int, Any]:
        needy, obs = request
        return {i: answered(partial(self._one, i, obs), 0, info) for i, info in needy.items()}

    def _one(self, i: int, obs: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> np.ndarray:
        return self._ones[i]({key: value[i] for key, value in obs.items()}, info)

    def afterwards(self) -> None:
        """Nothing."""


class Fallbacks:
    """One fallback for each of B robots. A user's own function runs in a thread of its own; if it
    raises, returns nonsense or exceeds its budget, the action at rest is sent."""

    def __init__(
        self, config: FallbackConfig, action: ActionSpec, robots: int, clock: Clock
    ) -> None:
        self.config, self._clock, self._action = config, clock, action
        self.rest = rest_action(config, action)
        self._ones = [make(config, action) for _ in range(robots)]
        self._job = _Job(self._ones)
        self._worker: ThreadWorker | None = None
        if isinstance(self._ones[0], Own):
            self._worker = ThreadWorker(self._job, clock)
        self._ticket = 0

    def holds(self, robot: int) -> bool:
        """Whether this robot's fallback does not let go yet."""
        return self._ones[robot].holds

    def start(self, robot: int, last: np.ndarray) -> None:
        """This robot's fallback takes over after an action."""
        self._ones[robot].start(last)

    def __call__(
        self, needy: Needy, obs: Mapping[str, np.ndarray], seconds: float | None = None
    ) -> dict[int, tuple[np.ndarray, str]]:
        """Encoded actions by robot, each with why it is the last resort's ("" where it is not)."""
        if self._worker is None:
            found = self._job((needy, obs))
        else:
            self._ticket += 1
            budget = self.config.budget_ms / 1e3 if seconds is None else seconds
            self._worker.submit(self._ticket, (needy, obs))
            answer = self._worker.wait(self._ticket, self._clock.now() + budget)
            if answer is None:
                late = f"the fallback did not answer within {1e3 * budget:g} ms"
                return dict.fromkeys(needy, (self.rest, late))
            found = answer.result
        out = {}
        for i, answer in found.items():
            action, failure = answer.result, answer.error
            if not failure and not np.isfinite(action).all():
                failure = "its action is not finite"
            out[i] = (self.rest if failure else action,
                      f"the fallback failed: {failure}" if failure else "")  # fmt: skip
        return out

    def try_out(self, obs: Mapping[str, np.ndarray]) -> None:
        """Call a user's function once for each robot. Raises ConfigError where it fails."""
        if self._worker is None:
            return
        needy = {
            i: {"robot": i, "tick": -1, "reason": "ok", "detail": "a trial before the loop"}
            for i in range(len(self._ones))
        }
        for action, failure in self(needy, obs, FIRST_CALL_S).values():
            assert action is not None
            if failure:
                raise ConfigError(
                    f"Fallback '{self.config.name}': {failure}. It is called as function(obs, "
                    "info) and returns what the environment takes: "
                    + (
                        f"{self._action.size} numbers in [-1, 1]."
                        if self._action.kind == "continuous"
                        else f"whole numbers below {list(self._action.sizes)}."
                    )
                )

    def close(self) -> None:
        """End the thread, where there is one."""
        if self._worker is not None:
            self._worker.close()
