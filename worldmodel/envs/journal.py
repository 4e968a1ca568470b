"""Episodes that can be replayed: how they are seeded, and which actions were taken since.

The state of an environment follows from (its seed, the episode's number, the actions since):

    seed, k  ->  full reset  ->  a_0, a_1, ...  ->  [soft reset  ->  a_n, ...]  ->  now

A full reset is given a seed made of the environment's own and k, so nothing of earlier episodes is
left. A soft one (Atari's lost life) goes on with the game, so the actions before it count too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .config import EnvError
from .observe import Observe
from .reward import Rewarded
from .wrappers import Step

LIMIT = 1_000_000  # actions since the last full reset


def episode_seed(seed: int, episode: int) -> int:
    """The seed of one full reset, below 2^31: some simulators keep seeds as signed numbers."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0] >> 1)


def env_seeds(seed: int | None, count: int) -> list[int]:
    """A seed for each of a vector's environments; fresh ones where seed is None.

    Not seed + i, which would share environments between runs with neighbouring seeds.
    """
    if seed is not None and seed < 0:
        raise EnvError(f"seed is {seed}, but must not be negative.")
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(count)]


class Episodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The outermost wrapper: numbers the episodes, seeds each by its number, and replays them.

    seed: the environment's own; drawn afresh where it is None. `reset(seed=s)` starts the
    numbering anew, as if the environment had been made with seed s.
    episode: number of the last full reset, from 0; -1 before the first one.

    An environment whose next reset only goes on with what it has says so by a true attribute
    `goes_on`; that reset gets no seed and no number.
    """

    env: Observe | Rewarded

    def __init__(self, env: Observe | Rewarded, seed: int | None = None) -> None:
        super().__init__(env)
        self.base_seed = env_seeds(None, 1)[0] if seed is None else int(seed)
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.base_seed, self.episode = int(seed), -1
        elif getattr(self.unwrapped, "goes_on", False):
            return self.env.reset(options=options)
        return self.begin(self.episode + 1, options)

    def begin(self, episode: int, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """A full reset into the episode of that number."""
        self.episode = episode  # before the reset: one that fails must not come again
        if isinstance(self.env, Rewarded):
            self.env.episode = episode
        seed = episode_seed(self.base_seed, episode)
        # Some environments draw from their own spaces, which gymnasium's reset does not seed.
        for name in ("observation_space", "action_space"):
            space = getattr(self.unwrapped, name, None)
            if space is not None:
                space.seed(seed)
        return self.env.reset(seed=seed, options=options)

    def replay(self, saved: Mapping[str, Any], alive: Callable[[], None] | None = None) -> Step:
        """The row that stood when `Journal.state` was saved, as step or reset returned it.

        Only the last observation is read; frames before it are drawn only where drawing might
        change the environment. alive: called after each step.
        """
        actions = unpack(saved["actions"], self.action_space)
        softly = {int(n) for n in saved["resets"]}
        count, options = len(actions), saved.get("options")
        row: Step | None = None
        try:
            self.env.blind = count > 0 or 0 in softly
            self.base_seed = int(saved["seed"])
            row = _as_row(self.begin(int(saved["episode"]), options))
            for done in range(count + 1):
                if done in softly:
                    self.env.blind = done < count
                    row = _as_row(self.env.reset())
                if done < count:
                    self.env.blind = done + 1 < count or count in softly
                    row = self.env.step(actions[done])
                if alive is not None:
                    alive()
        finally:
            self.env.blind = False
        return row


class Journal:
    """The actions and resets of one environment since its last full reset.

    seed: the environment's own. action_space: a single action's, as agents see it. An episode
    without end is given up after LIMIT actions, so that memory has one.
    """

    def __init__(self, seed: int, action_space: gymnasium.Space[Any]) -> None:
        self.seed, self.episode = seed, -1
        self.lost = False
        self._options: Any = None
        self._resets: list[int] = []
        self._count = 0
        self._actions = np.zeros((64, *(action_space.shape or ())), _compact(action_space))

    def begin(self, seed: int, episode: int, options: Any = None) -> None:
        """A full reset was done."""
        self.seed, self.episode, self._options = seed, episode, options
        self._count, self._resets = 0, []
        self.lost = False

    def go_on(self) -> None:
        """A soft reset was done."""
        self._resets.append(self._count)

    def add(self, action: Any) -> None:
        """A step was done."""
        if self._count == LIMIT:
            self.begin(self.seed, self.episode)
            self._actions, self.lost = self._actions[:64].copy(), True
        if self.lost:
            return
        if self._count == len(self._actions):
            self._actions = np.concatenate([self._actions, np.zeros_like(self._actions)])
        self._actions[self._count] = action
        self._count += 1

    def state(self) -> dict[str, Any]:
        """What `Episodes.replay` needs: ints, a list of ints and one numpy array (`actions`).

        Raises EnvError before the first reset.
        """
        if self.episode < 0:
            raise EnvError("There is nothing to save before the first reset. Call reset first.")
        return {
            "seed": self.seed,
            "episode": self.episode,
            "actions": self._actions[: self._count].copy(),
            "resets": list(self._resets),
            "options": self._options,
            "lost": self.lost,
        }

    def load(self, saved: Mapping[str, Any], action_space: gymnasium.Space[Any]) -> None:
        """Take over what `state` returned, here or in an earlier process."""
        self.begin(int(saved["seed"]), int(saved["episode"]), saved.get("options"))
        self._resets, self.lost = [int(n) for n in saved["resets"]], bool(saved.get("lost"))
        actions = unpack(saved["actions"], action_space)
        self._count = len(actions)
        room = np.zeros((max(64, self._count), *actions.shape[1:]), _compact(action_space))
        room[: self._count] = actions
        self._actions = room


def unpack(actions: Any, space: gymnasium.Space[Any]) -> np.ndarray:
    """[n, ...] actions of a journal (an array, a tensor on the CPU or nested lists) in the space's
    own dtype. Raises EnvError where they are not actions of that space."""
    array = np.asarray(actions)
    shape = space.shape or ()
    if array.size == 0:
        array = array.reshape(0, *shape)
    if array.shape[1:] != shape or array.ndim != 1 + len(shape):
        raise EnvError(
            f"The saved actions have shape {list(array.shape)}, but must have [n, "
            f"{', '.join(map(str, shape))}]. They are of another environment or settings."
        )
    return array.astype(space.dtype)


def _compact(space: gymnasium.Space[Any]) -> np.dtype[Any]:
    """The smallest dtype that holds every action exactly."""
    if isinstance(space, spaces.Discrete):
        return np.min_scalar_type(int(space.n) - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return np.min_scalar_type(int(space.nvec.max()) - 1)
    assert space.dtype is not None
    return np.dtype(space.dtype)


def _as_row(result: tuple[Any, dict[str, Any]]) -> Step:
    """A reset's answer in the form of a step's."""
    return result[0], 0.0, False, False, result[1]
