"""What a vector of environments checks before it asks them, and after they played again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .config import EnvError
from .hosts import Answer
from .spaces import class_counts

FLAGS = ("reward", "terminated", "truncated")


class ActionCheck:
    """Actions of `count` environments; space: a single one's, as agents see it."""

    def __init__(self, space: gymnasium.Space[Any], count: int) -> None:
        assert space.dtype is not None
        self._space = space
        self._box = isinstance(space, spaces.Box)
        self._shape = (count, *(space.shape or ()))
        if not self._box:
            self._unsigned = np.dtype(f"u{space.dtype.itemsize}")
            classes = np.reshape(class_counts(space), space.shape or ())
            self._classes = classes.astype(self._unsigned)

    def __call__(self, actions: Any, ended: list[bool]) -> np.ndarray:
        """[N, ...] in the dtype of the space; those of environments whose episode ended may be
        anything. Raises EnvError: a wrong action is the caller's fault, and no environment must be
        restarted for it."""
        given = np.asarray(actions)
        if given.shape != self._shape or given.dtype.kind not in ("fiu" if self._box else "iub"):
            raise EnvError(
                f"The actions must be {'numbers' if self._box else 'whole numbers'} of shape "
                f"{list(self._shape)}, but are {given.dtype} {list(given.shape)}."
            )
        given = given.astype(self._space.dtype, copy=False)
        live = given[~np.array(ended)] if any(ended) else given
        if self._box:
            if not np.isfinite(live).all():
                raise EnvError(f"The action is not finite: {live}. Look at the policy's output.")
        elif not (live.view(self._unsigned) < self._classes).all():  # below 0 is far above
            raise EnvError(f"The action {live.tolist()} lies outside of {self._space}.")
        return given


def difference(
    answer: Answer,
    saved: Mapping[str, Any],
    observations: Mapping[str, np.ndarray] | None,
    index: int,
) -> str:
    """In which words a replayed row is not the saved one; "" where it is, to the bit."""
    wrong = [key for key in FLAGS if saved[key] != getattr(answer, key)]
    for key, value in answer.obs.items():
        if observations is not None and key in observations:
            then = np.asarray(observations[key][index])
            if then.shape != value.shape or then.astype(value.dtype).tobytes() != value.tobytes():
                wrong.append(f"observation '{key}'")
    if not wrong:
        return ""
    return (
        f"Played again from its seed, it came to another {' and '.join(wrong)}. Something in it "
        f"does not follow from reset(seed=...): a random generator of its own, or what it keeps "
        f"from one episode to the next."
    )
