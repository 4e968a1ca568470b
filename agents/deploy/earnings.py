"""Unknown is not yet harmful: what tells them apart is what arrives.

In an unknown world a policy may earn anything between what random actions would and what it used
to. A fallback that earns more than half way acts at once.

Else, the policy acts as long as the rewards that arrive keep up with the least that its ordinary
episodes had brought by the same tick, or with what the fallback is known to bring. Where they do
not, the fallback acts, and gives way in its turn when it brings less than the policy did.

Rewards are compared as running means a tick. `measure` finds the four numbers when the detector
is calibrated; an `Account` follows one robot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agents.base import Policy, random_actions
from agents.deploy import fallback
from agents.deploy.config import FallbackConfig
from agents.deploy.episodes import Act, play_out
from worldmodel import progress, seeding
from worldmodel.capabilities import Expects
from worldmodel.config import ConfigError
from worldmodel.envs import make_env
from worldmodel.ood.api import Track
from worldmodel.types import MASK_KEY, ActionSpec, EnvSpec

KEY = "earnings"  # in a detector's calibration
RATE = 0.1  # of the running means, a tick
SELDOM = 0.01  # the share of ordinary episodes that lie below the floor at a tick
EVERY = 10  # ticks between two entries of the floor


@dataclass(frozen=True)
class Earnings:
    """Rewards a tick, as calibration found them.

    policy: on average. floor: the running mean that ordinary episodes seldom lie below at their
    first tick and every tenth from there on; the last one holds from then on. fallbacks: by
    `name_of`, in whole episodes of each, as long as ordinary ones last; after an early end there
    is nothing more. rate: of the running means. random: of random actions, in whole episodes; None
    in calibrations from before it was measured.
    """

    policy: float
    floor: Sequence[float]
    fallbacks: Mapping[str, float]
    rate: float = RATE
    random: float | None = None

    @property
    def half_way(self) -> float:
        """Between random actions and the policy."""
        return float("inf") if self.random is None else (self.policy + self.random) / 2

    @property
    def no_better_than(self) -> list[str]:
        """The fallbacks that earn no less than the policy, by name."""
        return sorted(name for name, value in self.fallbacks.items() if value >= self.policy)

    def __str__(self) -> str:
        safe = ", ".join(f"{name} {value:.3g}" for name, value in self.fallbacks.items())
        if self.random is not None:
            safe += f", random {self.random:.3g}"
        low, high = min(self.floor), max(self.floor)
        return f"rewards a tick: policy {self.policy:.3g} (floor {low:.3g} to {high:.3g}), {safe}"


def name_of(config: FallbackConfig) -> str:
    """Under which a fallback's earnings are known. What rest is matters to those that go there."""
    if config.rest is None or config.name == "hold":
        return config.name
    return f"{config.name} {[float(one) for one in config.rest]}"


def comparable(world: Any) -> bool:
    """Whether a policy is after the rewards that its environment gives: another reward, learned by
    its world, never arrives."""
    return not isinstance(world, Expects) or world.expects_reward


class Account:
    """What one robot has earned in this episode: running means by who acted.

    earnings: of calibration. name: of the fallback that is used.
    """

    def __init__(self, earnings: Earnings, name: str) -> None:
        self._known, self._promise = earnings, earnings.fallbacks[name]
        self.reset()

    def reset(self) -> None:
        """A new episode: as much as calibration promises."""
        self.policy, self.fallback = self._known.policy, self._promise
        self._left = self._ticks = 0

    def credit(self, reward: float, policy: bool) -> None:
        """A reward that arrived, for who acted."""
        self._ticks += 1
        rate = self._known.rate
        if policy:
            self.policy += rate * (reward - self.policy)
        else:
            self.fallback += rate * (reward - self.fallback)

    def prefers_fallback(self, away: bool) -> bool:
        """Who should act in an unknown world; away: the fallback does. Whoever has just begun has
        as many ticks as a running mean is long, lest they take turns at every tick."""
        if self.fallback > self._known.half_way:
            return True
        self._left = max(0, self._left - 1)
        if self._left:
            return away
        if away:
            switch = self.fallback < self.policy
        else:
            entry = min(self._ticks // EVERY, len(self._known.floor) - 1)
            floor = min(self._known.floor[entry : entry + 2])  # the entries around this tick
            switch = self.policy < min(floor, self.fallback)
        if switch:
            self._left = round(1 / self._known.rate)
        return away != switch


def measure(
    policy: Policy, ordinary: Sequence[Track], own: FallbackConfig, episodes: int, seed: int
) -> Earnings:
    """What the policy earned in ordinary episodes, and what fallbacks earn in its place.

    own: a fallback beside `fallback.KNOWN`. Discrete actions have no rest unless it gives one;
    without one `hold` alone is measured. Draws no global random numbers.
    """
    rewards = [track.reward[1:] for track in ordinary if track.reward is not None]
    mean = float(np.mean(np.concatenate(rewards)))
    floor = _floor([_running(one, mean) for one in rewards])
    length = round(float(np.median([len(one) for one in rewards])))
    players: dict[str, Act] = {"": _random(policy.spec, seed)}
    for config in _measured(own, policy.spec.action):
        players[name_of(config)] = _Relay(policy, config, episodes)
    found = {
        name: _earned(policy, acts, length, episodes, seed)
        for name, acts in progress.each([*players.items()], "seeing what fallbacks earn")
    }
    random = found.pop("")
    return Earnings(mean, floor, found, random=random)


def _running(rewards: np.ndarray, start: float) -> list[float]:
    """The running mean after each reward [T], and before the first: [T + 1]."""
    means = [start]
    for reward in rewards:
        means.append(means[-1] + RATE * (float(reward) - means[-1]))
    return means


def _floor(means: list[list[float]]) -> list[float]:
    """What episodes seldom lie below at every tenth tick, as long as most of them last."""
    lasts = round(float(np.median([len(one) for one in means])))
    return [
        float(np.quantile([one[t] for one in means if len(one) > t], SELDOM))
        for t in range(0, lasts, EVERY)
    ]


def _measured(own: FallbackConfig, action: ActionSpec) -> list[FallbackConfig]:
    """The fallbacks to try, each name once."""
    rested = action.kind == "continuous" or own.rest is not None
    names = fallback.KNOWN if rested else ("hold",)
    rest = own.rest
    if not rested:  # nobody goes there
        rest = [float(n == 0) for size in action.sizes for n in range(size)]
    all_ = [*(replace(own, name=name, rest=rest) for name in names), replace(own, rest=rest)]
    return list({name_of(one): one for one in all_}.values())


def _earned(policy: Policy, acts: Act, length: int, episodes: int, seed: int) -> float:
    """Mean reward a tick of whole episodes; a fallback acts from the second tick on.

    Not from where it would take over from a policy at work: what that has just earned would be
    counted for the fallback (a pendulum that has been swung up falls slowly).
    """
    envs = [
        make_env(policy.env, seeding.spawn(seed, f"fallback {i}"), whole=True, spec=policy.spec)
        for i in range(episodes)
    ]
    with seeding.Stream(seeding.spawn(seed, "fallback"), policy.device):
        rewards = play_out(envs, acts)
    ticks = sum(max(len(one), length) for one in rewards)
    return float(sum(map(sum, rewards)) / max(1, ticks))


def _random(spec: EnvSpec, seed: int) -> Act:
    """Random actions, among those that are allowed."""
    rng = np.random.default_rng(seeding.spawn(seed, "random"))

    def acts(tick: int, obs: list[Any], rewards: np.ndarray, going: np.ndarray) -> np.ndarray:
        seen = {key: np.stack([one[key] for one in obs]) for key in spec.seen}
        return np.asarray(spec.action.decode(random_actions(spec, seen, len(obs), rng)))

    return acts


class _Relay:
    """The policy's first actions [B], then a fallback."""

    def __init__(self, policy: Policy, config: FallbackConfig, episodes: int) -> None:
        self._policy = policy
        self._safe = [fallback.make(config, policy.spec.action) for _ in range(episodes)]
        self._sent = np.zeros((episodes, policy.spec.action.size), np.float32)

    def __call__(
        self, tick: int, obs: list[Any], rewards: np.ndarray, going: np.ndarray
    ) -> np.ndarray:
        spec = self._policy.spec
        seen = {key: np.stack([one[key] for one in obs]) for key in spec.seen}
        if tick == 0:
            inputs = {**seen, "is_first": np.ones(len(going), bool)}
            first, _, _ = self._policy.agent.act(inputs, None, "mode")
            self._sent = np.array(spec.action.clip(first))
            for safe, sent in zip(self._safe, self._sent, strict=True):
                safe.start(sent.copy())
            return np.asarray(spec.action.decode(self._sent))
        for i in np.flatnonzero(going):
            info = {"robot": int(i), "tick": tick, "reason": "unknown", "detail": ""}
            sent = self._safe[i]({key: value[i] for key, value in seen.items()}, info)
            mask = seen[MASK_KEY][i] if MASK_KEY in seen else None
            self._sent[i] = spec.action.permitted(sent, mask)  # as the guard does
        return np.asarray(spec.action.decode(self._sent))


def of_calibration(calibration: Mapping[str, Any] | None) -> Earnings | None:
    """The earnings in a detector's calibration; None where none were measured. Raises ConfigError
    for what are none."""
    found = (calibration or {}).get(KEY)
    if found is None:
        return None
    try:
        known = Earnings(**found)
        numbers = [known.policy, *known.floor, known.rate, *known.fallbacks.values()]
        numbers += [] if known.random is None else [known.random]
        sound = bool(known.floor) and bool(np.isfinite(np.asarray(numbers, float)).all())
        if not sound or not 0 < known.rate <= 1:
            raise ValueError(f"{numbers}")
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"The detector's calibration has no usable earnings ({error}). Fit it again."
        ) from error
    return known
