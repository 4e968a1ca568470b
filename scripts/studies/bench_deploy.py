"""`what=deploy`: how long a tick of a deployed agent takes, beside what the machine itself pauses.

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
from agents.deploy.config import DeployConfig
from agents.deploy.decision import LATE, percentiles
from agents.deploy.inference import PolicyJob, Proposal
from agents.deploy.runtime import Runtime
from agents.deploy.timing import Rest, SystemClock, calm, no_garbage_pauses
from agents.deploy.worker import Answer, ThreadWorker, Worker
from scripts.studies.bench_subject import observations
from worldmodel.config import check_ranges
from worldmodel.types import EnvSpec

BLOCK = 500  # ticks of one loop before it is another's turn
LONGEST_IDLE = 0.002  # seconds that the idle loop reads the clock for, at most
SCENES = 64  # different observations, at random
Scenes = Sequence[Mapping[str, np.ndarray]]


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
        check_ranges(self, {
            "ticks": (10, 1e9), "period_ms": (0, 1e6), "stall_ms": (0, 1e6),
            "stall_every": (1, 1e9),
        })  # fmt: skip


class Stalling:
    """A policy that sleeps before some of its answers; satisfies `agents.deploy.worker.Job`."""

    def __init__(self, job: PolicyJob, seconds: float, every: int) -> None:
        self._job, self._seconds, self._every = job, seconds, every
        self.stalls = 0

    def __call__(self, request: Any) -> Proposal:
        if request.tick > 0 and request.tick % self._every == 0:
            self.stalls += 1
            time.sleep(self._seconds)
        return self._job(request)

    def afterwards(self) -> None:
        """The policy's."""
        self._job.afterwards()


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """Milliseconds of a tick (p50, p99, p99.9, longest) and deadlines missed, beside an idle
    loop's, with the time that this process computed in each missed one; the same with stalls; and
    where the time goes."""
    calm()
    deploy = replace(settings.deploy, log=None)
    if settings.period_ms:
        deploy = replace(deploy, period_ms=settings.period_ms)
    plain = sources.open_runtime(
        settings.run, deploy, guard=settings.guard, graph=settings.graph
    ).start()
    stalls, job = _stalling(settings, deploy, plain.spec)
    stalls.start()
    drawn = observations(plain.spec, SCENES, np.random.default_rng(0))
    scenes = [{key: drawn[key][n] for key in plain.spec.seen} for n in range(SCENES)]
    period, idle, late = settings.period_ms / 1e3, list[float](), list[float]()
    with no_garbage_pauses(), plain, stalls:
        trial = _play(plain, scenes, min(BLOCK, settings.ticks), period, [])
        # Not the median: on a busy machine that holds pauses already.
        typical = min(LONGEST_IDLE, float(np.percentile(trial, 10)))
        deadline = plain.tally.deadline
        plain.tally.__init__(deadline, plain.tally.soft)  # type: ignore[misc]
        for done in range(0, settings.ticks, BLOCK):
            block = min(BLOCK, settings.ticks - done)
            _play(plain, scenes, block, period, late)
            idle += _paced(plain, block, period, lambda n: _read_clock(plain, typical))
            _play(stalls, scenes, max(1, block // 10), period, [])
        yield {
            **_figure("tick", plain, settings),
            "missed_cpu_ms": [round(1e3 * seconds, 2) for seconds in sorted(late)],
        }
        yield {
            "measure": "idle",
            "ticks": len(idle),
            "unit": "ms beyond what was asked for",
            **percentiles(np.maximum(np.array(idle) - typical, 0)),
            "over_deadline": int((np.array(idle) > deadline).sum()),
        }
        yield {
            **_figure("stall", stalls, settings),
            "stall_ms": settings.stall_ms,
            "stalls": job.stalls,
            "answered_by_fallback": stalls.tally.reasons[LATE],
        }
    yield from _where(settings, plain.spec, scenes)


def _figure(name: str, runtime: Runtime, settings: Settings) -> dict[str, Any]:
    # Beyond the hard deadline lies the machine's own pause; both are in the figure.
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
    policy = source.job(*source.engine(), clock)
    job = Stalling(policy, settings.stall_ms / 1e3, settings.stall_every)

    def worker(seen: Callable[[Answer], None]) -> Worker:
        return ThreadWorker(job, clock, seen)

    return Runtime(spec, worker, replace(deploy, isolation="thread"), 1, clock), job


def _play(
    runtime: Runtime, scenes: Scenes, ticks: int, period: float, late: list[float]
) -> list[float]:
    """Ticks at the period; the latencies, seconds. Of those that missed the deadline, `late` takes
    how long this process computed in them: the rest of their time it was not let to run."""

    def tick(n: int) -> float:
        before = time.process_time()
        latency = runtime.act(scenes[n % SCENES], reward=0.0).latency
        if latency > runtime.tally.deadline:
            late.append(time.process_time() - before)
        return latency

    return _paced(runtime, ticks, period, tick)


def _paced(
    runtime: Runtime, count: int, period: float, tick: Callable[[int], float]
) -> list[float]:
    """What `tick` returns, called once in each period."""
    clock, rest, out = runtime.clock, Rest(), []
    due = clock.now()
    for n in range(count):
        out.append(tick(n))
        due = max(due + period, clock.now())
        rest(due - clock.now(), clock.now)
        clock.sleep(due - clock.now())
    return out


def _read_clock(runtime: Runtime, seconds: float) -> float:
    """Read the clock for so many seconds; how long that really took."""
    start = runtime.clock.now()
    while runtime.clock.now() < start + seconds:
        pass
    return runtime.clock.now() - start


def _where(settings: Settings, spec: EnvSpec, scenes: Scenes) -> Iterator[dict[str, Any]]:
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
        yield {"measure": name, "unit": "ms", **percentiles(np.array(taken[100:]))}
