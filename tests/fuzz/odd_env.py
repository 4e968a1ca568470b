"""An environment that answers as it is told, in this process or in one of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

IMAGE = spaces.Box(0, 255, (32, 32, 3), np.uint8)
SPACE = spaces.Dict(
    {
        "image": IMAGE,
        "vector": spaces.Box(-np.inf, np.inf, (2,), np.float32),
        "class": spaces.Discrete(3, start=-1),
        "inner": spaces.Tuple([spaces.MultiBinary(2), spaces.Box(-1.0, 1.0, (), np.float64)]),
        "action_mask": spaces.Box(0, 1, (2,), np.int8),
    }
)


def good() -> dict[str, Any]:
    """An observation as the space declares it."""
    return {
        "image": np.zeros((32, 32, 3), np.uint8),
        "vector": np.ones(2, np.float32),
        "class": 1,
        "inner": (np.array([0, 1], np.int8), np.float64(0.5)),
        "action_mask": np.array([1, 0], np.int8),
    }


class Odd:
    """An object whose ways (`how`) fail when they are used."""

    def __init__(self, how: str) -> None:
        self.how = how

    def _answer(self, how: str, otherwise: Any) -> Any:
        if self.how == how:
            raise ZeroDivisionError(f"{how} fails")
        return otherwise

    def __repr__(self) -> str:
        return self._answer("repr", "odd")

    def __float__(self) -> float:
        return self._answer("float", 1.0)

    def __bool__(self) -> bool:
        return self._answer("bool", True)

    def __len__(self) -> int:
        return self._answer("len", 2)

    def __getitem__(self, key: Any) -> Any:
        return self._answer("item", 0.0) if key in (0, 1) else self._raise(IndexError())

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self._answer("array", np.zeros(2, np.float32))

    def __eq__(self, other: object) -> bool:
        return self._answer("eq", False)

    def __hash__(self) -> int:
        return self._answer("hash", 1)

    def __reduce__(self) -> Any:
        return self._answer("pickle", (Odd, (self.how,)))

    @staticmethod
    def _raise(error: Exception) -> Any:
        raise error


@dataclass(frozen=True)
class Will:
    """An `Odd` to be: it can be shown and sent."""

    how: str


def made(value: Any) -> Any:
    """The value with odd objects in the places of those to be."""
    if type(value) is dict:
        return {key: made(inner) for key, inner in value.items()}
    return Odd(value.how) if isinstance(value, Will) else value


class Wordless(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise ZeroDivisionError("no words")

    __repr__ = __str__


ODD = ("repr", "float", "bool", "len", "item", "array", "eq", "hash", "pickle", "none")
ERRORS = {
    "plain": ValueError, "silent": RuntimeError, "exit": SystemExit, "stop": StopIteration,
    "memory": MemoryError, "deep": RecursionError, "wordless": Wordless, "assert": AssertionError,
    "file": FileNotFoundError, "pipe": BrokenPipeError, "end": EOFError, "key": KeyError,
}  # fmt: skip


class OddEnv(gymnasium.Env[Any, Any]):
    """script: one answer for each reset or step, the last of them for ever; an answer is
    (place, value): "obs", "reward", "terminated", "truncated" or "info" with another value, a key
    of the observation with another value, "whole" for all that is returned, or "raise" with the
    name of an error."""

    observation_space = SPACE
    action_space = spaces.Discrete(2)

    def __init__(self, script: list[Any] | None = None) -> None:
        self.script, self.at = script or [("", None)], 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        place, value = self._next()
        if place == "whole":
            return value
        obs, _, _, _, info = self._answer(place, value)
        return obs, info

    def step(self, action: Any) -> Any:
        place, value = self._next()
        return value if place == "whole" else self._answer(place, value)

    def _next(self) -> tuple[str, Any]:
        place, value = self.script[min(self.at, len(self.script) - 1)]
        self.at += 1
        if place == "raise":
            raise ERRORS[value]() if value in ("silent", "wordless") else ERRORS[value](value)
        if value == "itself":
            value = {}
            value["x"] = value
            return place, value
        return place, made(value)

    def _answer(self, place: str, value: Any) -> Any:
        obs: Any = good()
        answer = {"reward": 1.0, "terminated": False, "truncated": self.at % 4 == 0, "info": {}}
        if place in answer:
            answer[place] = value
        elif place in obs:
            obs[place] = value
        elif place == "obs":
            obs = value
        return obs, *answer.values()
