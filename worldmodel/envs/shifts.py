"""The world changes after training: shifts of what is seen, of when it is seen, and of physics.

    env = Shifted(make_env(config), "brightness", onset=20)     as usual until the twentieth tick
    env = Shifted(make_env(config), "my_module:Wind", onset=20)         a shift of one's own

Each shift has three strengths, mild, middle and strong, chosen before anything was measured. One of
your own is a class derived from `Change`, named module:Class or file.py:Class wherever a shift has
a name.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np

from . import pictures
from .config import EnvError, unknown
from .named import found
from .physics import Undo, scale
from .wrappers import Step

Picture = Callable[[np.ndarray, float, pictures.Scene], np.ndarray]
Obs = dict[str, np.ndarray]
KINDS = ("visible", "timing", "dynamics")
LEVELS = ("mild", "middle", "strong")
Range = tuple[float, float]  # lowest and highest
ANY: Range = (-math.inf, math.inf)
MOST_DELAY = 1000


class Change:
    """What a shift does to an episode; this one does nothing. Derive from it and override.

    strength: one of `strengths`, or any other number. env: from `make_env`; rng: for whatever is
    drawn. A change lives as long as its environment; `reset` begins an episode.

    kind: "visible" in a single picture; "timing", of good pictures at a wrong time; "dynamics", of
    good pictures of a world that moves otherwise. strengths: mild, middle, strong. unit: what a
    strength counts. allowed: the lowest and the highest strength; any finite one unless given.
    """

    kind: ClassVar[str] = "dynamics"
    strengths: ClassVar[tuple[float, float, float]]
    unit: ClassVar[str] = ""
    allowed: ClassVar[Range] = ANY

    def __init__(self, strength: float, env: gymnasium.Env[Any, Any], rng: np.random.Generator):
        self.strength, self.env, self.rng = strength, env, rng

    def reset(self, obs: Obs) -> None:
        """An episode begins, as usual, with an observation."""

    def begin(self) -> Undo | None:
        """The onset: change the simulator itself, and return what undoes it, if anything."""
        return None

    def action(self, action: Any) -> Any:
        """The action that is carried out in place of one, from the onset on."""
        return action

    def seen(self, obs: Obs, since: int) -> Obs:
        """What is seen of an observation; since: ticks since the onset, negative before it, when
        what is returned is not used."""
        return obs


@dataclass(frozen=True)
class Shift:
    """One way in which the world can change, with what `Change` says of it. change: called as that
    class is. picture: the function of a visible shift of the catalogue."""

    name: str
    kind: str
    strengths: tuple[float, float, float]
    unit: str
    allowed: Range
    change: Callable[[float, gymnasium.Env[Any, Any], np.random.Generator], Change]
    picture: Picture | None = None

    def strength(self, level: str) -> float:
        """The strength of a level, "mild", "middle" or "strong"; EnvError for another name."""
        if level not in LEVELS:
            raise unknown("strength of a shift", level, LEVELS)
        return self.strengths[LEVELS.index(level)]

    def checked(self, strength: float) -> float:
        """The strength; EnvError where it is not finite or not `allowed`."""
        low, high = self.allowed
        if not (math.isfinite(strength) and low <= strength <= high):
            bounds = "any finite number" if self.allowed == ANY else f"{low:g} to {high:g}"
            unit = f" ({self.unit})" if self.unit else ""
            raise EnvError(
                f"strength is {strength:g}; the shift '{self.name}' allows {bounds}{unit}."
            )
        return strength


class Retouched(Change):
    """Every picture through a function of `pictures`.

    usual: by key, the typical picture [H, W, C]; the episode's first one where it is not given.
    """

    picture: Picture
    usual: dict[str, np.ndarray] | None = None

    def reset(self, obs: Obs) -> None:
        colour = np.where(self.rng.random(3) < 0.5, 0.1, 0.9) * self.rng.uniform(0.8, 1.1, 3)
        keys = [key for key, value in obs.items() if value.dtype == np.uint8]
        usual = self.usual or {key: obs[key].copy() for key in keys}
        row, column = self.rng.random(2)
        self._scenes = {
            key: pictures.Scene((row, column), np.clip(colour, 0, 1), usual[key], self.rng)
            for key in keys
        }

    def seen(self, obs: Obs, since: int) -> Obs:
        if since < 0:
            return obs
        return obs | {
            key: self.picture(obs[key], self.strength, scene) for key, scene in self._scenes.items()
        }


class Frozen(Change):
    """A camera that lets only every so many-th picture through."""

    def seen(self, obs: Obs, since: int) -> Obs:
        if since <= 0 or since % int(self.strength) == 0:
            self._last = obs
        return dict(self._last)


class Delay(Change):
    """The observation that was to be seen `strength` ticks ago."""

    def reset(self, obs: Obs) -> None:
        self._seen: deque[Obs] = deque(maxlen=int(self.strength) + 1)

    def seen(self, obs: Obs, since: int) -> Obs:
        self._seen.append(obs)
        return dict(self._seen[0])


class Physics(Change):
    """Another simulator. what: of `physics.scale`."""

    what: str

    def __init__(self, strength: float, env: gymnasium.Env[Any, Any], rng: np.random.Generator):
        super().__init__(strength, env, rng)
        scale(env, self.what, 1.0)()  # fails here, and not at the onset of an episode

    def begin(self) -> Undo | None:
        return scale(self.env, self.what, self.strength)


class Gain(Change):
    """Weaker actions, or, above 1, stronger ones."""

    def action(self, action: Any) -> Any:
        return np.asarray(action) * np.float32(self.strength)


class Sign(Change):
    """Some actions turned round."""

    def action(self, action: Any) -> Any:
        return -np.asarray(action) if self.rng.random() < self.strength else action


def _visible(
    name: str,
    strengths: tuple[float, float, float],
    allowed: Range,
    unit: str,
    picture: Picture,
) -> Shift:
    change = type(name, (Retouched,), {"picture": staticmethod(picture)})
    return Shift(name, "visible", strengths, unit, allowed, change, picture)


def _physics(name: str, strengths: tuple[float, float, float], allowed: Range, unit: str) -> Shift:
    change = type(name, (Physics,), {"what": name})
    return Shift(name, "dynamics", strengths, unit, allowed, change)


_HEIGHTS, _LIGHTER = "picture heights", "of the range, lighter"
_SHARE: Range = (0, 1)
_BLUR: Range = (0, 0.5)  # a larger kernel blurs all to one colour, and takes seconds
SHIFTS: dict[str, Shift] = {
    shift.name: shift
    for shift in (
        _visible("brightness", (0.08, 0.16, 0.32), (-1, 1), _LIGHTER, pictures.brighter),
        _visible("darkness", (-0.08, -0.16, -0.32), (-1, 1), _LIGHTER, pictures.brighter),
        _visible("contrast", (0.2, 0.4, 0.7), _SHARE, "of the contrast, lost", pictures.flatter),
        _visible("colour", (0.1, 0.25, 0.5), _SHARE, "of a channel, lost", pictures.tinted),
        _visible("blur", (1 / 64, 1 / 32, 1 / 16), _BLUR, _HEIGHTS, pictures.blurred),
        _visible("noise", (0.02, 0.05, 0.15), _SHARE, "standard deviation", pictures.noisy),
        _visible("patch", (0.125, 0.25, 0.5), _SHARE, _HEIGHTS, pictures.covered),
        _visible("object", (1 / 16, 3 / 32, 1 / 8), _SHARE, _HEIGHTS, pictures.with_object),
        _visible("background", (0.1, 0.25, 0.5), _SHARE, "of the range", pictures.other_background),
        _visible("camera", (1 / 32, 1 / 16, 1 / 8), _SHARE, _HEIGHTS, pictures.moved),
        _visible("simpler", (0.3, 0.6, 1.0), _SHARE, "of what is to be seen, lost",
                 pictures.simpler),
        Shift("frozen", "timing", (4, 10, 1e6), "ticks for each picture", (1, 1e9), Frozen),
        Shift("delay", "timing", (1, 2, 4), "ticks late", (0, MOST_DELAY), Delay),
        _physics("mass", (1.25, 1.5, 2.0), (0.01, 100), "times as heavy"),
        _physics("gravity", (1.25, 1.5, 2.0), (0, 100), "times as strong"),
        Shift("gain", "dynamics", (0.75, 0.5, 0.25), "times the action", (0, 10), Gain),
        Shift("sign", "dynamics", (0.25, 0.5, 1.0), "of the actions, turned round", _SHARE, Sign),
    )
}  # fmt: skip


def shift_named(name: str) -> Shift:
    """A shift of the catalogue, or a user's by the name of its class, module:Class or
    file.py:Class. EnvError, with the nearest name, where there is none."""
    if ":" not in name:
        if name not in SHIFTS:
            error = unknown("shift", name, SHIFTS, limit=len(SHIFTS))
            raise EnvError(f"{error} Your own is named module:Class or file.py:Class.")
        return SHIFTS[name]
    change = found(name, "class")
    needs = (
        "derive it from worldmodel.envs.shifts.Change, with a kind of "
        f"{', '.join(KINDS)} and three numbers as strengths"
    )
    if not (isinstance(change, type) and issubclass(change, Change)):
        raise EnvError(f"'{name}' is no shift: {needs}.")
    strengths = getattr(change, "strengths", None)
    if change.kind not in KINDS or not _three(strengths):
        raise EnvError(
            f"The shift '{name}' has kind={change.kind!r} and strengths={strengths!r}: {needs}."
        )
    mild, middle, strong = map(float, change.strengths)
    return Shift(name, change.kind, (mild, middle, strong), change.unit, change.allowed, change)


def _three(strengths: Any) -> bool:
    """Whether these are three finite numbers."""
    try:
        return len(strengths) == 3 and all(math.isfinite(float(one)) for one in strengths)
    except (TypeError, ValueError):
        return False


class Shifted(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment from `make_env` that changes at tick `onset` of every episode (0: the reset).

    strength: in the shift's unit; None takes the middle one. usual: by key, the typical picture
    [H, W, C], for "background" and "simpler"; the episode's first picture where it is not given.
    seed: of places, colours and noise.

    Raises EnvError for an unknown shift, a strength that it does not allow, and for one that this
    environment cannot show: a visible one without pictures, weaker actions where they are
    discrete, physics that nobody knows.
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
        given = self.shift.strengths[1] if strength is None else float(strength)
        self.strength = self.shift.checked(given)
        self.onset, self.tick = onset, 0
        assert isinstance(env.observation_space, gymnasium.spaces.Dict)
        spaces = env.observation_space.spaces
        if self.shift.kind == "visible" and not any(s.dtype == np.uint8 for s in spaces.values()):
            raise EnvError(
                f"The shift '{name}' changes pictures, but this environment shows none: "
                f"{sorted(spaces)}. Choose one of timing or dynamics."
            )
        if name in ("gain", "sign") and not isinstance(env.action_space, gymnasium.spaces.Box):
            raise EnvError(f"The shift '{name}' needs continuous actions, not {env.action_space}.")
        self.change = self.shift.change(self.strength, env, np.random.default_rng(seed))
        if isinstance(self.change, Retouched):
            self.change.usual = usual
        self._begun = False
        self._undo: Undo | None = None

    @property
    def shifted(self) -> bool:
        """Whether the last observation came after the onset."""
        return self.tick >= self.onset

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._restore()
        obs, info = self.env.reset(seed=seed, options=options)
        self.tick = 0
        self.change.reset(obs)
        return self._changed(obs), info

    def step(self, action: Any) -> Step:
        if self.tick + 1 >= self.onset:
            if not self._begun:
                self._begun, self._undo = True, self.change.begin()
            action = self.change.action(action)
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.tick += 1
        return self._changed(obs), float(reward), terminated, truncated, info

    def close(self) -> None:
        self._restore()
        super().close()

    def _restore(self) -> None:
        if self._undo is not None:
            self._undo()
        self._undo, self._begun = None, False

    def _changed(self, obs: Obs) -> Obs:
        seen = self.change.seen(obs, self.tick - self.onset)
        return seen if self.shifted else obs
