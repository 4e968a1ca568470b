"""The world changes after training: shifts of what is seen, of when it is seen, and of physics.

    env = Shifted(make_env(config), "brightness", onset=20)     as usual until the twentieth tick

Each shift has three strengths, mild, middle and strong, chosen before anything was measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from . import pictures
from .config import EnvError, unknown
from .physics import Undo, scale
from .wrappers import Step

Picture = Callable[[np.ndarray, float, pictures.Scene], np.ndarray]
KINDS = ("visible", "timing", "dynamics")
LEVELS = ("mild", "middle", "strong")
MOST_DELAY = 1000


@dataclass(frozen=True)
class Shift:
    """One way in which the world can change.

    kind: "visible" in a single picture; "timing", of good pictures at a wrong time; "dynamics", of
    good pictures of a world that moves otherwise. strengths: mild, middle, strong. unit: what a
    strength counts. picture: the function of a visible shift.
    """

    name: str
    kind: str
    strengths: tuple[float, float, float]
    unit: str
    picture: Picture | None = None

    def strength(self, level: str) -> float:
        """The strength of a level, "mild", "middle" or "strong"; EnvError for another name."""
        if level not in LEVELS:
            raise unknown("strength of a shift", level, LEVELS)
        return self.strengths[LEVELS.index(level)]


def _visible(
    name: str, strengths: tuple[float, float, float], unit: str, picture: Picture
) -> Shift:
    return Shift(name, "visible", strengths, unit, picture)


_HEIGHTS = "picture heights"
SHIFTS: dict[str, Shift] = {
    shift.name: shift
    for shift in (
        _visible("brightness", (0.08, 0.16, 0.32), "of the range, lighter", pictures.brighter),
        _visible("darkness", (-0.08, -0.16, -0.32), "of the range, lighter", pictures.brighter),
        _visible("contrast", (0.2, 0.4, 0.7), "of the contrast, lost", pictures.flatter),
        _visible("colour", (0.1, 0.25, 0.5), "of a channel, lost", pictures.tinted),
        _visible("blur", (1 / 64, 1 / 32, 1 / 16), _HEIGHTS, pictures.blurred),
        _visible("noise", (0.02, 0.05, 0.15), "standard deviation", pictures.noisy),
        _visible("patch", (0.125, 0.25, 0.5), _HEIGHTS, pictures.covered),
        _visible("object", (1 / 16, 3 / 32, 1 / 8), _HEIGHTS, pictures.with_object),
        _visible("background", (0.1, 0.25, 0.5), "of the range", pictures.other_background),
        _visible("camera", (1 / 32, 1 / 16, 1 / 8), _HEIGHTS, pictures.moved),
        _visible("simpler", (0.3, 0.6, 1.0), "of what is to be seen, lost", pictures.simpler),
        Shift("frozen", "timing", (4, 10, 1e6), "ticks for each picture"),
        Shift("delay", "timing", (1, 2, 4), "ticks late"),
        Shift("mass", "dynamics", (1.25, 1.5, 2.0), "times as heavy"),
        Shift("gravity", "dynamics", (1.25, 1.5, 2.0), "times as strong"),
        Shift("gain", "dynamics", (0.75, 0.5, 0.25), "times the action"),
        Shift("sign", "dynamics", (0.25, 0.5, 1.0), "of the actions, turned round"),
    )
}


def shift_named(name: str) -> Shift:
    """A shift of the catalogue; EnvError, with the nearest name, where there is none."""
    if name not in SHIFTS:
        raise unknown("shift", name, SHIFTS, limit=len(SHIFTS))
    return SHIFTS[name]


class Shifted(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment from `make_env` that changes at tick `onset` of every episode (0: the reset).

    strength: in the shift's unit; None takes the middle one. usual: by key, the typical picture
    [H, W, C], for "background" and "simpler"; the episode's first picture where it is not given.
    seed: of places, colours and noise.

    Raises EnvError for an unknown shift, and for one that this environment cannot show: a visible
    one without pictures, weaker actions where they are discrete.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        name: str,
        strength: float | None = None,
        onset: int = 0,
        usual: dict[str, np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(env)
        self.shift = shift_named(name)
        self.strength = self.shift.strengths[1] if strength is None else float(strength)
        self.onset, self.tick = onset, 0
        assert isinstance(env.observation_space, gymnasium.spaces.Dict)
        spaces = env.observation_space.spaces
        self._images = [key for key, space in spaces.items() if space.dtype == np.uint8]
        if self.shift.kind == "visible" and not self._images:
            raise EnvError(
                f"The shift '{name}' changes pictures, but this environment shows none: "
                f"{sorted(spaces)}. Choose one of timing or dynamics."
            )
        if name in ("gain", "sign") and not isinstance(env.action_space, gymnasium.spaces.Box):
            raise EnvError(f"The shift '{name}' needs continuous actions, not {env.action_space}.")
        self._usual = usual
        self._rng = np.random.default_rng(seed)
        self._seen: deque[Any] = deque(maxlen=1)
        self._undo: Undo | None = None

    @property
    def shifted(self) -> bool:
        """Whether the last observation came after the onset."""
        return self.tick >= self.onset

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._restore()
        obs, info = self.env.reset(seed=seed, options=options)
        self.tick = 0
        late = int(min(self.strength, MOST_DELAY)) if self.shift.name == "delay" else 0
        self._seen = deque(maxlen=late + 1)
        colour = np.where(self._rng.random(3) < 0.5, 0.1, 0.9) * self._rng.uniform(0.8, 1.1, 3)
        usual = self._usual or {key: obs[key].copy() for key in self._images}
        row, column = self._rng.random(2)
        self._scenes = {
            key: pictures.Scene((row, column), np.clip(colour, 0, 1), usual[key], self._rng)
            for key in self._images
        }
        return self._changed(obs), info

    def step(self, action: Any) -> Step:
        if self.tick + 1 >= self.onset and self._undo is None and self.shift.name in PHYSICS:
            self._undo = scale(self.env, self.shift.name, self.strength)
        if self.tick + 1 >= self.onset:
            action = self._acted(action)
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.tick += 1
        return self._changed(obs), float(reward), terminated, truncated, info

    def close(self) -> None:
        self._restore()
        super().close()

    def _restore(self) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None

    def _acted(self, action: Any) -> Any:
        if self.shift.name == "gain":
            return np.asarray(action) * np.float32(self.strength)
        if self.shift.name == "sign" and self._rng.random() < self.strength:
            return -np.asarray(action)
        return action

    def _changed(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.shift.kind == "timing":
            return self._late(obs)
        if self.shift.picture is None or not self.shifted:
            return obs
        return obs | {
            key: self.shift.picture(obs[key], self.strength, self._scenes[key])
            for key in self._images
        }

    def _late(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """An older observation: the one that was to be seen `delay` ticks ago, or the last one
        that the frozen camera let through."""
        frozen = self.shift.name == "frozen" and self.tick > self.onset
        if not frozen or (self.tick - self.onset) % int(self.strength) == 0:
            self._seen.append(obs)
        return dict(self._seen[0]) if self.shifted else obs


PHYSICS = ("mass", "gravity")
