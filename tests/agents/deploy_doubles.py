"""A clock that moves when asked, a worker that takes as long as asked, and an agent that counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agents.deploy import DeployConfig, Runtime
from agents.deploy.earnings import Earnings
from agents.deploy.inference import PolicyJob, Request
from agents.deploy.sources import open_runtime, spec_of
from agents.deploy.worker import Answer, answered
from worldmodel.ood.api import Score
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

SPEC = EnvSpec(
    {"image": ObsSpec("image", (4, 4, 3)), "speed": ObsSpec("vector", (2,))},
    ActionSpec("continuous", (2,)),
)
DISCRETE = EnvSpec(SPEC.obs, ActionSpec("discrete", (3,)))


class FakeClock:
    """Seconds that pass only when somebody lets them."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += max(0.0, seconds)

    def until(self, moment: float) -> None:
        self.time = max(self.time, moment)


class FakeWorker:
    """Answers after `delays[tick]` seconds of a FakeClock (0 where there is none)."""

    restarts = 0

    def __init__(self, job: Any, clock: FakeClock, seen: Callable[[Answer], None]) -> None:
        self.job, self.clock, self.seen = job, clock, seen
        self.delays: dict[int, float] = {}
        self.asked: list[Request] = []
        self._slot: tuple[int, Any] | None = None
        self._done: tuple[float, Answer] | None = None

    def submit(self, ticket: int, request: Any) -> None:
        self._slot = (ticket, request)
        self._begin()

    def _begin(self) -> None:
        if self._done is None and self._slot is not None:
            (ticket, request), self._slot = self._slot, None
            self.asked.append(request)
            answer = answered(self.job, ticket, request)
            self._done = (self.clock.now() + self.delays.get(ticket, 0.0), answer)

    def wait(self, ticket: int, until: float) -> Answer | None:
        while self._done is not None:
            moment, answer = self._done
            if moment > until:
                break
            self.clock.until(moment)
            self._done = None
            self.job.afterwards()
            self._begin()
            if answer.ticket == ticket:
                return answer
            self.seen(answer)
        self.clock.until(until)
        return None

    def close(self) -> None:
        pass


class FakeEngine:
    """Its state counts the observations it saw since the episode began; its action is that count
    divided by 100, in every entry. `scores` and `bad` are given by tick."""

    def __init__(self, spec: EnvSpec = SPEC) -> None:
        self.spec = spec
        self.scores: dict[int, Any] = {}  # calls -> value, or one for each robot
        self.actions: dict[int, Any] = {}  # calls -> action instead of the count
        self.fails: set[int] = set()
        self.detects = True
        self.calls = -1  # counts from the first tick after the warm-up
        self.sent: list[np.ndarray] = []
        self.predicted: Any = None

    def initial(self, batch_size: int) -> Any:
        return np.zeros(batch_size)

    def step(
        self, obs: Mapping[str, np.ndarray], state: Any, is_first: np.ndarray, sent: np.ndarray
    ) -> tuple[np.ndarray, Any, Score | None]:
        self.calls += 1
        if self.calls in self.fails:
            raise ValueError("no such luck")
        self.sent.append(sent.copy())
        state = np.where(is_first, 0, state) + 1
        robots = len(state)
        action = np.repeat(state[:, None] / 100, self.spec.action.size, 1).astype(np.float32)
        if self.calls in self.actions:
            action = np.asarray(self.actions[self.calls], np.float32)
        if not self.detects:
            return action, state, None
        value = np.broadcast_to(self.scores.get(self.calls, 0.1), (robots,)).astype(np.float32)
        parts = {"patch": value, "kl": np.zeros_like(value)}
        return action, state, Score(value, 1.0, value > 1, parts)

    def predict(self, state: Any, sent: np.ndarray) -> dict[str, np.ndarray] | None:
        return self.predicted


def observation(robots: int = 1, value: int = 0, spec: EnvSpec = SPEC) -> dict[str, np.ndarray]:
    return {
        key: np.full((robots, *o.shape), value, np.uint8 if o.kind == "image" else "f4")
        for key, o in spec.obs.items()
    }


def check_starts(folder: Path, isolation: str) -> None:
    """A run or an export starts with default settings, and answers."""
    spec = spec_of(folder)
    with open_runtime(folder, DeployConfig(isolation=isolation)) as runtime:
        runtime.start()
        (decided,) = runtime.tick(observation(spec=spec), is_first=[True])
        assert np.isfinite(decided.action).all()
        assert runtime.summary()["policy_restarts"] == 0


class Bench:
    """A runtime on doubles; `tick` lets one period pass."""

    def __init__(
        self,
        robots: int = 1,
        spec: EnvSpec = SPEC,
        start: bool = True,
        earnings: Earnings | None = None,
        **settings: Any,
    ) -> None:
        self.clock, self.engine = FakeClock(), FakeEngine(spec)
        self.config = DeployConfig(warmup=1, **settings)
        self.spec, self.robots = spec, robots
        retrain = self.config.retrain

        def worker(seen: Callable[[Answer], None]) -> FakeWorker:
            kinds = {key: o.kind for key, o in spec.obs.items()}
            job = PolicyJob(
                self.engine, robots, self.config.max_gap, kinds, bool(retrain), self.clock.now
            )
            self.worker = FakeWorker(job, self.clock, seen)
            return self.worker

        self.requests: list[Any] = []
        self.runtime = Runtime(
            spec, worker, self.config, robots, self.clock, self.requests.append,
            wall=lambda: 0.0, threaded=False, earnings=earnings,
        )  # fmt: skip
        if start:
            self.runtime.start()
            self.engine.calls = -1

    def tick(self, obs: Any = None, **about: Any) -> list[Any]:
        begun = self.clock.now()
        out = self.runtime.tick(observation(self.robots) if obs is None else obs, **about)
        self.clock.until(begun + self.config.period_ms / 1e3)
        return out

    def one(self, obs: Any = None, **about: Any) -> Any:
        return self.tick(obs, **about)[0]
