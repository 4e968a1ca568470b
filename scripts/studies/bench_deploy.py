"""How long a tick of a deployed agent takes, beside what the machine itself pauses for.

Three loops at the same period, one after the other in blocks, so that all of them live through the
same minutes: the tick; the tick with a policy that stalls now and then; and an idle one that only
reads the clock, for as long as a tick usually takes.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from omegaconf import MISSING

from agents.deploy import sources
from agents.deploy.brain import Brain, Thought
from agents.deploy.clock import SystemClock
from agents.deploy.config import DeployConfig
from agents.deploy.decision import LATE
from agents.deploy.realtime import Rest, calm, no_garbage_pauses
from agents.deploy.runtime import Runtime
from agents.deploy.tally import percentiles
from agents.deploy.worker import Answer, ThreadWorker, Worker
from worldmodel import config
from worldmodel.types import EnvSpec

BLOCK = 500  # ticks of one loop before it is another's turn
LONGEST_IDLE = 0.002  # seconds that the idle loop reads the clock for, at most
SCENES = 64  # different observations, at random


@dataclass
class Settings:
    """run: a run or an export folder. ticks: of the loop; the idle one has as many, the stalling
    one a tenth. period_ms: 0 plays back to back, with the usual deadlines. stall_ms: that the
    policy then hangs, once in `stall_every` ticks. guard: with the detector. deploy: of the loop.
    """

    run: str = MISSING
    ticks: int = 100_000
    period_ms: float = 10.0
    stall_ms: float = 50.0
    stall_every: int = 50
    guard: bool = True
    graph: str | None = None
    deploy: DeployConfig = field(default_factory=DeployConfig)

    def __post_init__(self) -> None:
        config.check_ranges(self, {
            "ticks": (10, 1e9), "period_ms": (0, 1e6), "stall_ms": (0, 1e6),
            "stall_every": (1, 1e9),
        })  # fmt: skip


class Stalling:
    """A brain that sleeps before some of its answers; satisfies `agents.deploy.worker.Job`."""

    def __init__(self, brain: Brain, seconds: float, every: int) -> None:
        self._brain, self._seconds, self._every = brain, seconds, every
        self.stalls = 0

    def __call__(self, request: Any) -> Thought:
        if request.tick > 0 and request.tick % self._every == 0:
            self.stalls += 1
            time.sleep(self._seconds)
        return self._brain(request)

    def afterwards(self) -> None:
        """The brain's."""
        self._brain.afterwards()


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """Milliseconds of a tick (p50, p99, p99.9, longest) and deadlines missed, beside an idle
    loop's, with the time that this process computed in each missed one; the same with stalls; and
    where the time goes."""
    calm()
    deploy = settings.deploy
    if settings.period_ms:
        deploy = replace(deploy, period_ms=settings.period_ms)
    deploy = replace(deploy, log=None)
    plain = sources.open_runtime(
        settings.run, deploy, guard=settings.guard, graph=settings.graph
    ).start()
    stalls, job = _stalling(settings, deploy, plain.spec)
    stalls.start()
    scenes = _scenes(plain.spec)
    idle: list[float] = []
    late: list[float] = []
    with no_garbage_pauses(), plain, stalls:
        trial = _play(plain, scenes, min(BLOCK, settings.ticks), settings, [])
        # Not the median: on a busy machine that holds pauses already.
        typical = min(LONGEST_IDLE, float(np.percentile(trial, 10)))
        done = 0
        plain.tally.__init__(plain.tally.deadline, plain.tally.soft)  # type: ignore[misc]
        while done < settings.ticks:
            block = min(BLOCK, settings.ticks - done)
            _play(plain, scenes, block, settings, late)
            idle += _idle(block, typical, settings, plain)
            _play(stalls, scenes, max(1, block // 10), settings, [])
            done += block
        yield {
            **_told("tick", plain, settings),
            "missed_cpu_ms": [round(1e3 * seconds, 2) for seconds in sorted(late)],
        }
        pauses = np.asarray(idle) - typical
        yield {
            "measure": "idle",
            "ticks": len(idle),
            "unit": "ms beyond what was asked for",
            **percentiles(np.maximum(pauses, 0)),
            "over_deadline": int((np.asarray(idle) > plain.tally.deadline).sum()),
        }
        yield {
            **_told("stall", stalls, settings),
            "stall_ms": settings.stall_ms,
            "stalls": job.stalls,
            "answered_by_fallback": stalls.tally.reasons[LATE],
        }
    yield from _where(settings, plain.spec, scenes)


def _told(name: str, runtime: Runtime, settings: Settings) -> dict[str, Any]:
    # Beyond the hard deadline lies the machine's own pause; both are told.
    return {
        "measure": name,
        "unit": "ms",
        "period_ms": settings.period_ms,
        "deadline_ms": 1e3 * runtime.tally.deadline,
        "robot": "one, one core",
        "isolation": runtime.config.isolation,
        "machine": platform.platform(),
        **runtime.summary(),
    }


def _stalling(settings: Settings, deploy: DeployConfig, spec: EnvSpec) -> tuple[Runtime, Stalling]:
    """A second runtime, whose policy hangs now and then."""
    clock = SystemClock()
    source = sources.Source(settings.run, 1, settings.guard, settings.graph, deploy.max_gap)
    brain = source.brain(*source.engine(), clock)
    job = Stalling(brain, settings.stall_ms / 1e3, settings.stall_every)

    def worker(seen: Callable[[Answer], None]) -> Worker:
        return ThreadWorker(job, clock, seen)

    return Runtime(spec, worker, replace(deploy, isolation="thread"), 1, clock), job


def _scenes(spec: EnvSpec) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            key: rng.integers(0, 256, one.shape).astype(np.uint8)
            if one.kind == "image"
            else rng.standard_normal(one.shape).astype(np.float32)
            for key, one in spec.seen.items()
        }
        for _ in range(SCENES)
    ]


def _play(
    runtime: Runtime,
    scenes: list[dict[str, np.ndarray]],
    ticks: int,
    settings: Settings,
    late: list[float],
) -> list[float]:
    """Ticks at the period; the latencies, seconds. Of those that missed the deadline, `late` takes
    how long this process computed in them: the rest of their time it was not let to run."""
    clock, rest, period = runtime.clock, Rest(), settings.period_ms / 1e3
    out = []
    due = clock.now()
    for n in range(ticks):
        before = time.process_time()
        out.append(runtime.act(scenes[n % SCENES], reward=0.0).latency)
        if out[-1] > runtime.tally.deadline:
            late.append(time.process_time() - before)
        due = max(due + period, clock.now())
        rest(due - clock.now(), clock.now)
        clock.sleep(due - clock.now())
    return out


def _idle(ticks: int, busy: float, settings: Settings, runtime: Runtime) -> list[float]:
    """A loop that reads the clock for `busy` seconds at each period; how long that really took."""
    clock, period = runtime.clock, settings.period_ms / 1e3
    out = []
    due = clock.now()
    for _ in range(ticks):
        start = clock.now()
        while clock.now() < start + busy:
            pass
        out.append(clock.now() - start)
        due = max(due + period, clock.now())
        clock.sleep(due - clock.now())
    return out


def _where(
    settings: Settings, spec: EnvSpec, scenes: Sequence[Mapping[str, np.ndarray]]
) -> Iterator[dict[str, Any]]:
    """CPU time of the step alone, with and without the detector, without any loop round it."""
    for guard in (True, False) if settings.guard else (False,):
        engine, _ = sources.Source(settings.run, guard=guard, graph=settings.graph).engine()
        state, first = engine.initial(1), np.zeros(1, bool)
        sent = np.zeros((1, spec.action.size), np.float32)
        taken = []
        for n in range(600):
            obs = {key: value[None] for key, value in scenes[n % SCENES].items()}
            start = time.thread_time()
            _, state, _ = engine.step(obs, state, first, sent)
            taken.append(time.thread_time() - start)
        name = "step with detector, CPU time" if guard else "step, CPU time"
        yield {"measure": name, "unit": "ms", **percentiles(np.asarray(taken[100:]))}
