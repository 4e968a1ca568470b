"""Heavier bodies and stronger gravity, in the simulators that we know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium

from .config import EnvError

Undo = Callable[[], None]

# Attributes of classic-control environments: what is multiplied for a heavier or a faster world.
PLAIN = {
    "mass": ("m", "masspole", "LINK_MASS_1"),
    "gravity": ("g", "gravity"),
}


def scale(env: gymnasium.Env[Any, Any], what: str, factor: float) -> Undo:
    """Multiply all masses, or gravity, of an environment from `make_env`; returns what undoes it.

    Raises EnvError for a simulator in which nobody knows where they are.
    """
    inner: Any = env.unwrapped
    model = _mujoco(inner)
    if model is not None:
        return _scale_mujoco(model, what, factor)
    for name in PLAIN[what]:
        value = getattr(inner, name, None)
        if isinstance(value, int | float):
            changed = {name: value * factor}
            if name == "masspole":  # CartPole keeps products of its masses
                changed["total_mass"] = changed[name] + inner.masscart
                changed["polemass_length"] = changed[name] * inner.length
            return _set(inner, changed)
    raise EnvError(
        f"Nobody knows where the {what} of {type(inner).__name__} is. The shift '{what}' works in "
        f"MuJoCo and where the environment has one of the attributes {', '.join(PLAIN[what])}."
    )


def _set(target: Any, changed: Mapping[str, float]) -> Undo:
    before = {name: getattr(target, name) for name in changed}

    def put(values: Mapping[str, float]) -> None:
        for name, value in values.items():
            setattr(target, name, value)

    put(changed)
    return partial(put, before)


def _mujoco(inner: Any) -> Any:
    """The MuJoCo model inside of an environment, or None."""
    suite = getattr(inner, "_env", None)
    physics = getattr(suite, "physics", None)
    model = getattr(physics, "model", None) or getattr(inner, "model", None)
    return model if hasattr(model, "body_mass") and hasattr(model, "opt") else None


def _scale_mujoco(model: Any, what: str, factor: float) -> Undo:
    arrays = [model.opt.gravity] if what == "gravity" else [model.body_mass, model.body_inertia]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array[:] = array * factor

    def undo() -> None:
        for array, old in zip(arrays, before, strict=True):
            array[:] = old

    return undo
