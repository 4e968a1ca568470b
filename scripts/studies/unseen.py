"""Eight shifts that no part of the detector or the guard was chosen on: `shift=module:Class`.

    python scripts/deploy.py run=RUN shift=scripts.studies.unseen:Shade

Strengths were chosen before anything was measured. They are also an example of a user's own.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import cv2
import numpy as np

from worldmodel.envs.config import EnvError
from worldmodel.envs.shifts import Change, Obs


class _Picture(Change):
    """What happens to every picture."""

    kind = "visible"

    def picture(self, image: np.ndarray, since: int) -> np.ndarray:
        """The picture uint8 [H, W, C] that is shown in place of one."""
        raise NotImplementedError

    def seen(self, obs: Obs, since: int) -> Obs:
        if since < 0:
            return obs
        return obs | {k: self.picture(v, since) for k, v in obs.items() if v.dtype == np.uint8}


class Flicker(_Picture):
    """Light that swings between brighter and darker, once in seven ticks."""

    strengths = (0.05, 0.12, 0.3)
    unit = "of the range, up and down"

    def picture(self, image: np.ndarray, since: int) -> np.ndarray:
        moved = image + 255.0 * self.strength * np.sin(2 * np.pi * (since + 1) / 7)
        return np.clip(np.rint(moved), 0, 255).astype(np.uint8)


class Shade(_Picture):
    """A shadow that deepens from the left edge to the right one."""

    strengths = (0.15, 0.35, 0.7)
    unit = "of the light, lost at the right edge"

    def picture(self, image: np.ndarray, since: int) -> np.ndarray:
        light = 1 - self.strength * np.linspace(0, 1, image.shape[1])[None, :, None]
        return np.rint(image * light).astype(np.uint8)


class Zoom(_Picture):
    """A longer lens."""

    strengths = (1.06, 1.15, 1.4)
    unit = "times as large"

    def picture(self, image: np.ndarray, since: int) -> np.ndarray:
        height, width = image.shape[:2]
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, self.strength)
        border = cv2.BORDER_REPLICATE
        return np.asarray(cv2.warpAffine(image, turn, (width, height), borderMode=border)).reshape(
            image.shape
        )


class Covered(_Picture):
    """Something dark before the middle of the picture, which goes away again: no shift to be
    judged by, but one to come back from."""

    strengths = (5, 20, 50)
    unit = "ticks"

    def picture(self, image: np.ndarray, since: int) -> np.ndarray:
        if since >= self.strength:
            return image
        height, width = image.shape[:2]
        covered = image.copy()
        covered[height // 4 : -height // 4, width // 4 : -width // 4] = 40
        return covered


class Dropped(Change):
    """Pictures that are lost now and then; the one before is shown again."""

    kind = "timing"
    strengths = (0.15, 0.4, 0.75)
    unit = "of the pictures, lost"

    def reset(self, obs: Obs) -> None:
        self._last = obs

    def seen(self, obs: Obs, since: int) -> Obs:
        if since < 0 or self.rng.random() >= self.strength:
            self._last = obs
        return dict(self._last)


class Jitter(Change):
    """Pictures of an age that changes from tick to tick."""

    kind = "timing"
    strengths = (1, 2, 5)
    unit = "ticks late, at most"

    def reset(self, obs: Obs) -> None:
        self._past: deque[Obs] = deque(maxlen=int(self.strength) + 1)

    def seen(self, obs: Obs, since: int) -> Obs:
        self._past.appendleft(obs)
        age = int(self.rng.integers(len(self._past))) if since >= 0 else 0
        return dict(self._past[age])


class Sticky(Change):
    """A motor that repeats its last action now and then."""

    strengths = (0.2, 0.4, 0.7)
    unit = "of the actions, the one before again"

    def reset(self, obs: Obs) -> None:
        self._last = None

    def action(self, action: Any) -> Any:
        if self._last is None or self.rng.random() >= self.strength:
            self._last = action
        return self._last


class Lag(Change):
    """A motor that carries out what was asked of it some ticks ago."""

    strengths = (1, 2, 4)
    unit = "ticks late"

    def reset(self, obs: Obs) -> None:
        self._asked: deque[Any] = deque(maxlen=int(self.strength) + 1)

    def action(self, action: Any) -> Any:
        self._asked.append(action)
        return self._asked[0]


class Faster(Change):
    """Time runs faster: a longer step of the simulator."""

    strengths = (1.15, 1.3, 1.6)
    unit = "times as fast"

    def begin(self) -> Any:
        inner: Any = self.env.unwrapped
        suite = getattr(getattr(inner, "_env", None), "physics", None)
        if suite is not None:
            return _times(suite.model.opt, "timestep", self.strength)
        for name in ("dt", "tau"):
            if hasattr(inner, name):
                return _times(inner, name, self.strength)
        raise EnvError(f"Nobody knows where the time step of {type(inner).__name__} is.")


def _times(target: Any, name: str, factor: float) -> Any:
    before = getattr(target, name)
    setattr(target, name, before * factor)
    return lambda: setattr(target, name, before)


NAMES = tuple(
    f"{__name__}:{one.__name__}"
    for one in (Flicker, Shade, Zoom, Dropped, Jitter, Sticky, Lag, Faster)
)
COVERED = f"{__name__}:{Covered.__name__}"
