"""The control loop itself: a robot, a runtime, and a steady period."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from agents.deploy.decision import Decision
from agents.deploy.runtime import Runtime
from agents.deploy.timing import Rest, calm, no_garbage_pauses
from worldmodel.config import RunError

MOST_FAILURES = 100  # failures to send in a row that end the loop


class Sensed(NamedTuple):
    """What a robot saw: obs, by key, as the agent was trained on; and, as far as they are known,
    when it was taken (seconds of the runtime's clock, `time.monotonic()`), the reward of the last
    action, and whether an episode begins or ends here."""

    obs: Mapping[str, Any]
    stamp: float | None = None
    reward: float | None = None
    is_first: bool = False
    is_last: bool = False
    is_terminal: bool = False


class Robot(Protocol):
    """What a user writes."""

    def sense(self) -> Sensed:
        """The newest observation. Must not wait; where it raises, the fallback acts."""
        ...

    def send(self, decision: Decision) -> None:
        """Carry out `decision.action`."""
        ...


class LoopReport(NamedTuple):
    """ticks: done. overruns: periods that the loop itself was late for (sensing, sending or the
    machine took too long). send_failures: actions that could not be sent."""

    ticks: int
    overruns: int
    send_failures: int


def run_loop(
    runtime: Runtime, robot: Robot, ticks: int | None = None, stop: Any = None
) -> LoopReport:
    """Sense, decide and send once in every period, until `ticks` are done or stop() is true.

    Raises RunError where actions could not be sent 100 times in a row; nothing else.
    """
    clock, period = runtime.clock, runtime.config.period_ms / 1e3
    rest = Rest()
    done = overruns = failures = in_a_row = 0
    calm()
    with no_garbage_pauses():
        due = clock.now()
        while (ticks is None or done < ticks) and not (stop is not None and stop()):
            decision = _tick(runtime, robot)
            try:
                robot.send(decision)
                in_a_row = 0
            except Exception as error:
                failures, in_a_row = failures + 1, in_a_row + 1
                if in_a_row >= MOST_FAILURES:
                    raise RunError(
                        f"{in_a_row} actions in a row could not be sent; the last error was "
                        f"{type(error).__name__}: {error}"
                    ) from error
            done += 1
            due += period
            rest(due - clock.now(), clock.now)
            left = due - clock.now()
            if left < 0:  # late: go on from here, instead of hurrying after the past
                overruns, due = overruns + 1, clock.now()
            clock.sleep(left)
    return LoopReport(done, overruns, failures)


def _tick(runtime: Runtime, robot: Robot) -> Decision:
    """One decision; a sensor that raises is an observation that is missing."""
    try:
        sensed = robot.sense()._asdict()
    except Exception as error:
        return runtime.tick([error])[0]
    return runtime.tick([sensed.pop("obs")], **sensed)[0]
