"""A deployed agent in its environment, with and without its guard, and when the world shifts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.deploy.config import FallbackConfig
from agents.deploy.decision import ALARMS, UNKNOWN
from agents.deploy.fallback import make, rest_action
from agents.deploy.inference import Engine
from agents.deploy.runtime import Runtime
from agents.deploy.timing import Rest, calm, no_garbage_pauses
from worldmodel import progress
from worldmodel.envs import EnvConfig, make_env
from worldmodel.envs.shifts import Shifted
from worldmodel.envs.wrappers import CUT_OFF
from worldmodel.types import MASK_KEY, EnvSpec


@dataclass(frozen=True)
class World:
    """An environment, and what happens to it: the shift `name` ("" for none) from tick `onset` of
    every episode, at a strength in its own unit (None: the middle one)."""

    env: EnvConfig
    name: str = ""
    strength: float | None = None
    onset: int = 20

    def make(self, seed: int, spec: EnvSpec) -> Any:
        """The environment. Raises EnvError for what cannot be, and where it is not of that spec."""
        env = make_env(self.env, seed, whole=True, spec=spec)
        if not self.name:
            return env
        return Shifted(env, self.name, self.strength, self.onset, seed=seed)


@dataclass
class Trial:
    """Returns of the episodes; delays: ticks from the shift's onset to the first unknown
    observation (None: never). alarms: episodes with an alarm before the onset, or, without a
    shift, at all. cut_off: episodes that nothing ended within `env.longest_episode` steps."""

    returns: list[float] = field(default_factory=list)
    delays: list[int | None] = field(default_factory=list)
    alarms: int = 0
    ticks: int = 0
    cut_off: int = 0

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def detected(self) -> list[int]:
        """Delays of the episodes whose shift was noticed."""
        return [delay for delay in self.delays if delay is not None]


def guarded(
    runtime: Runtime,
    world: World,
    episodes: int,
    seed: int,
    pace: bool,
    say: Callable[[str], None] = lambda text: None,
) -> Trial:
    """Complete episodes under a runtime that was started; pace: at its period, else back to back.
    say: takes a line after each of them."""
    trial, rest = Trial(), Rest()
    clock, period = runtime.clock, runtime.config.period_ms / 1e3
    env = world.make(seed, runtime.spec)
    calm()
    try:
        with no_garbage_pauses():
            for _ in progress.each(range(episodes), "guarded, episode"):
                obs, reward, first, last, terminal = env.reset()[0], None, True, False, False
                total, noticed, early, tick = 0.0, None, False, 0
                due = clock.now()
                while True:
                    one = runtime.act(
                        obs, reward=reward, is_first=first, is_last=last, is_terminal=terminal
                    )
                    if one.reason in ALARMS:
                        if world.name and tick >= world.onset:
                            noticed = tick - world.onset if noticed is None else noticed
                        else:
                            early = True
                    if last:
                        break
                    obs, reward, terminal, truncated, info = env.step(one.action)
                    trial.cut_off += CUT_OFF in info
                    total += reward
                    first, last, tick = False, terminal or truncated, tick + 1
                    due = max(due + period, clock.now())
                    rest(due - clock.now(), clock.now)
                    if pace:
                        clock.sleep(due - clock.now())
                trial.returns.append(total)
                trial.delays += [noticed] if world.name else []
                trial.alarms += early
                trial.ticks += tick
                say(f"episode {len(trial.returns)}: return {total:.1f}; {runtime.tally.line()}")
    finally:
        env.close()
    return trial


def alone(engine: Engine, spec: EnvSpec, world: World, episodes: int, seed: int) -> Trial:
    """The same episodes by the policy, with nobody watching it."""
    state: Any = None
    sent = np.zeros((1, spec.action.size), np.float32)

    def act(obs: dict[str, np.ndarray], first: bool) -> np.ndarray:
        nonlocal state, sent
        state = engine.initial(1) if first else state
        batch = {key: np.asarray(obs[key])[None] for key in spec.seen}
        sent, state, _ = engine.step(batch, state, np.array([first]), sent)
        sent = spec.action.clip(sent)
        return np.asarray(spec.action.decode(sent)[0])

    return _played(act, world, spec, episodes, seed)


def fallback_alone(
    config: FallbackConfig, spec: EnvSpec, world: World, episodes: int, seed: int
) -> Trial:
    """The same episodes by the fallback, from the first tick on."""
    safe, rest = make(config, spec.action), rest_action(config, spec.action)
    tick = 0

    def act(obs: dict[str, np.ndarray], first: bool) -> np.ndarray:
        nonlocal tick
        if first:
            tick = 0
            safe.start(rest)
        info = {"robot": 0, "tick": tick, "reason": UNKNOWN, "detail": ""}
        tick += 1
        action = spec.action.permitted(safe(obs, info), obs.get(MASK_KEY))
        return np.asarray(spec.action.decode(action))

    return _played(act, world, spec, episodes, seed)


def _played(
    act: Callable[[dict[str, np.ndarray], bool], np.ndarray],
    world: World,
    spec: EnvSpec,
    episodes: int,
    seed: int,
) -> Trial:
    trial = Trial()
    env = world.make(seed, spec)
    try:
        for _ in progress.each(range(episodes), "alone, episode"):
            obs, first, ended, total = env.reset()[0], True, False, 0.0
            while not ended:
                obs, reward, terminated, truncated, info = env.step(act(obs, first))
                first, ended, total = False, terminated or truncated, total + float(reward)
                trial.ticks, trial.cut_off = trial.ticks + 1, trial.cut_off + (CUT_OFF in info)
            trial.returns.append(total)
    finally:
        env.close()
    return trial
