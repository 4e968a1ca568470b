"""A guarded control loop on a robot of your own: copy this file, and replace the class.

    python docs/examples/my_robot.py run=runs/demo

The robot here is a pendulum in a simulator, so that the file runs as it is. After 200 of its 300
cycles somebody switches the light off: the camera shows black.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from agents.deploy import DeployConfig, FallbackConfig
from agents.deploy.decision import Decision
from agents.deploy.loop import Sensed, run_loop
from agents.deploy.sources import env_of, open_runtime
from worldmodel.config import guarded
from worldmodel.entry import enter
from worldmodel.envs import EnvConfig, make_env

DARK_FROM = 200


class MyRobot:
    """Two methods are all that a robot needs: `sense` and `send`."""

    def __init__(self, env: EnvConfig) -> None:
        self.env = make_env(env, seed=0)  # yours: open the camera and the motors
        self.frame, _ = self.env.reset()
        self.reward, self.first = 0.0, True
        self.cycle = 0

    def sense(self) -> Sensed:
        """The newest picture, as the agent was trained on: same size, same keys, bytes."""
        obs = dict(self.frame)
        if self.cycle >= DARK_FROM:
            obs = {k: np.zeros_like(v) if v.dtype == np.uint8 else v for k, v in obs.items()}
        taken = time.monotonic()  # yours: the camera's own time stamp, on the same clock
        return Sensed(obs, taken, self.reward, is_first=self.first)

    def send(self, decision: Decision) -> None:
        """Move. `decision.source` says whether the policy or the fallback chose."""
        self.cycle += 1
        self.frame, reward, terminated, truncated, _ = self.env.step(decision.action)
        self.first = terminated or truncated
        if self.first:
            self.frame, _ = self.env.reset()
        self.reward = 0.0 if self.first else float(reward)


def safe(obs: dict[str, np.ndarray], info: dict[str, object]) -> np.ndarray:
    """What to do when the policy may not: yours to write. Here: no torque."""
    return np.zeros_like(np.asarray(info["last"]))


def main(run: str, ticks: int = 300, period_ms: float = 20.0) -> dict[str, object]:
    """Run the loop; what came of it."""
    settings = DeployConfig(
        period_ms=period_ms,  # one cycle
        soft_ms=period_ms / 2,  # slower answers are counted
        hard_ms=period_ms * 0.7,  # later ones are thrown away, and the fallback acts
        max_age_ms=5 * period_ms,  # older pictures are refused
        fallback=FallbackConfig(f"{__file__}:safe", budget_ms=period_ms / 10),
    )
    robot = MyRobot(env_of(run))
    with open_runtime(run, settings) as runtime:
        first = robot.sense()
        runtime.start([first.obs], stamp=first.stamp)  # every error comes here, at rest
        run_loop(runtime, robot, ticks)
        print(runtime.tally.table())
        return runtime.summary()


def command(say: Callable[[str], None], words: Sequence[str]) -> int:
    """The loop as a command like those of scripts/; its exit code."""

    def work() -> int:
        given = dict(word.partition("=")[::2] for word in words)
        main(given.get("run", "runs/demo"))
        return 0

    return guarded(work, say)


if __name__ == "__main__":
    enter(command, __file__, __doc__)
