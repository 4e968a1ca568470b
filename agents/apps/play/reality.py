"""A real environment that can be taken back: by its seed and the actions up to there."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np

from worldmodel.config import RunError
from worldmodel.envs import EnvConfig, EnvError, env_spec, make_env
from worldmodel.types import EnvSpec

SIDE = 256  # pixels of a picture that was rendered for people


@dataclass(frozen=True)
class Moment:
    """What the real environment answered; reward and flags of the step that led here. picture:
    uint8 [H, W, 3] beside what is observed, or None."""

    obs: dict[str, np.ndarray]
    reward: float | None = None
    terminated: bool = False
    truncated: bool = False
    picture: np.ndarray | None = None

    @property
    def ended(self) -> bool:
        """Whether the episode is over."""
        return self.terminated or self.truncated


class Reality:
    """One real episode, from one seed.

    No environment can be put into a state of long ago. Going back is therefore a reset with the
    same seed and the same actions once more, and it leads to the same place where the
    environment is deterministic. Whether it did is checked: `exact` becomes False where it did not.
    rendered: with a picture beside observations that have none, where it can be rendered.

    Raises RunError where the environment cannot be made or fails.
    """

    def __init__(self, config: EnvConfig, spec: EnvSpec, seed: int, rendered: bool = False) -> None:
        self.spec, self.seed, self.exact, self.resets = spec, seed, True, 0
        # As in evaluation: a score is of the whole game.
        config = replace(config, atari=replace(config.atari, life_loss=False))
        self._drawn = ""  # the key of the picture
        self._env: gymnasium.Env[Any, Any] = _guarded(lambda: self._made(config, rendered))
        # The actions since the reset, or None where only a reset helps.
        self._taken: list[np.ndarray] | None = None
        try:
            self.first = self._reset()
        except RunError:
            self.close()
            raise

    def _made(self, config: EnvConfig, rendered: bool) -> gymnasium.Env[Any, Any]:
        plain: gymnasium.Env[Any, Any] = make_env(config, self.seed, whole=True, spec=self.spec)
        if not rendered or self.spec.keys("image"):
            return plain
        shown = replace(config, pixels=True, state=True, keys=None, image_size=[SIDE, SIDE])
        with suppress(EnvError):
            env = make_env(shown, self.seed, whole=True)
            keys = env_spec(env).obs
            more = [key for key in keys if key not in self.spec.obs]
            if all(key in keys for key in self.spec.obs) and len(more) == 1:
                plain.close()
                self._drawn = more[0]
                return env
            env.close()
        return plain

    def advance(
        self, past: Sequence[np.ndarray], seen: Moment | None, action: np.ndarray
    ) -> Moment:
        """One step with an encoded action [A], after the actions `past` since the reset.

        seen: what was seen there before, to notice where the environment does not repeat itself.
        """
        taken = self._taken
        if taken is None or len(past) != len(taken) or any(map(operator.is_not, past, taken)):
            moment = self._again(past, seen)
            if moment.ended:  # earlier than the first time
                return moment
        return self._step(action)

    def close(self) -> None:
        """Let go of the environment."""
        self._env.close()

    def _reset(self) -> Moment:
        obs, _ = _guarded(lambda: self._env.reset(seed=self.seed))
        self._taken = []
        self.resets += 1
        return Moment(self._kept(obs), picture=self._picture(obs))

    def _again(self, past: Sequence[np.ndarray], seen: Moment | None) -> Moment:
        """A reset, and the same actions once more; the moment that they lead to."""
        moment = self._reset()
        for action in past:
            if moment.ended:
                break
            moment = self._step(action)
        if moment.ended or (seen is not None and not _same(moment, seen)):
            self.exact = False
        return moment

    def _step(self, action: np.ndarray) -> Moment:
        native = self.spec.action.decode(action)
        taken, self._taken = self._taken or [], None  # unknown, should the step fail
        obs, reward, terminated, truncated, _ = _guarded(lambda: self._env.step(native))
        flags = bool(terminated), bool(truncated)
        moment = Moment(self._kept(obs), float(reward), *flags, self._picture(obs))
        if not moment.ended:  # after an end, only a reset helps
            taken.append(action)
            self._taken = taken
        return moment

    def _picture(self, obs: Any) -> np.ndarray | None:
        return np.array(obs[self._drawn]) if self._drawn else None

    def _kept(self, obs: Any) -> dict[str, np.ndarray]:
        return {key: np.array(obs[key]) for key in self.spec.obs}


def _same(one: Moment, other: Moment) -> bool:
    """Whether two moments are equal to the last bit."""
    flags = one.ended == other.ended and one.reward == other.reward
    return flags and all(np.array_equal(v, other.obs[k]) for k, v in one.obs.items())


def _guarded(call: Callable[[], Any]) -> Any:
    """An environment's answer; its error in its own words. It may be anybody's code, so that any
    error is possible, and none of them may end the walk."""
    try:
        return call()
    except EnvError as error:
        raise RunError(f"The real environment failed: {error}") from error
    except Exception as error:
        name = type(error).__name__
        raise RunError(f"The real environment failed: {name}: {error}") from error
