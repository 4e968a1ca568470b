"""Environments of gymnasium's registry, and anybody's own classes by their import path."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any

# pygame's SDL would open a window and catch the signals that are meant to stop the process.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")

import gymnasium
import numpy as np
from gymnasium.envs import registration

from .config import EnvConfig, EnvError, unknown
from .making import made, parameters_of, place_of
from .process_state import kept_process_state
from .wrappers import Guard, Repeat, error_words

# How names begin that a package registers once it is imported.
PACKAGES = {
    "minigrid": ("MiniGrid-", "BabyAI-"), "miniworld": ("MiniWorld-",), "ale_py": ("ALE/",),
    "highway_env": ("highway-", "merge-v", "roundabout-v", "parking-v", "racetrack-v"),
    "gymnasium_robotics": ("Fetch", "HandReach", "HandManipulate", "Adroit", "Franka", "PointMaze"),
}  # fmt: skip


def build(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """The environment of `config.id`, one step for each agent step.

    Raises EnvError for unknown names and for arguments that its constructor does not take.
    """
    target = _user_class(config.id)
    env = _registered(config) if target is None else _construct(target, config)
    return Repeat(Guard(env), config.action_repeat)


def _user_class(name: str) -> Any:
    """The callable behind "module:Name", or None where Name is a registered id."""
    module_name, colon, attribute = name.partition(":")
    if not colon:
        return None
    try:
        with kept_process_state():
            module = importlib.import_module(module_name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if not missing or not (module_name + ".").startswith(missing + "."):
            raise EnvError(  # it is there, but fails, or something that it needs is not there
                f"Cannot import the module '{module_name}' of environment '{name}': "
                f"{error_words(error)}{place_of(error)}."
            ) from error
        raise EnvError(
            f"Cannot import the module '{module_name}' of environment '{name}'. Write "
            f"package.module:Name and install the package or add its folder to PYTHONPATH."
        ) from error
    target = getattr(module, attribute, None)
    if callable(target):
        return target
    if attribute in registration.registry:
        return None
    raise unknown(
        f"environment in '{module_name}'",
        attribute,
        [n for n, v in vars(module).items() if inspect.isclass(v) and not n.startswith("_")],
    )


def _construct(target: Any, config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """A user's class, with render_mode where it takes one."""
    kwargs = _kwargs(config)
    parameters = parameters_of(target)
    takes_mode = "render_mode" in parameters
    if config.pixels and takes_mode and (_renders(target) or not inspect.isclass(target)):
        kwargs.setdefault("render_mode", "rgb_array")
    _check_arguments(config, kwargs, parameters)
    env = made(config, lambda: target(**kwargs), parameters)
    if not isinstance(env, gymnasium.Env):
        several = isinstance(env, gymnasium.vector.VectorEnv) or hasattr(env, "num_envs")
        raise EnvError(
            f"'{config.id}' made a {type(env).__name__}, but must make a gymnasium.Env. "
            + (
                "Name a single one; env.num_envs=8 makes several."
                if several
                else "Derive it from gymnasium.Env, or wrap it (the package shimmy has wrappers)."
            )
        )
    return env


def _check_arguments(
    config: EnvConfig, names: Iterable[str], parameters: Mapping[str, inspect.Parameter]
) -> None:
    """EnvError for an argument that the constructor does not take, as far as it says."""
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in names:
        if parameters and name not in parameters and not open_ended:
            raise unknown(f"argument of '{config.id}'", name, parameters)


def _registered(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    name = config.id.rpartition(":")[2]
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        package = next((p for p, start in PACKAGES.items() if name.startswith(start)), None)
        if package and name == config.id:
            raise EnvError(
                f"Unknown environment '{name}'. The package '{package}' registers such names: "
                f"install it, and write it in front, env.id={package}:{name}"
            ) from error
        if "/" in name and name == config.id:
            raise EnvError(
                f"Unknown environment '{name}'. The package that registers it must be imported "
                f"first: write it in front, as in id=ale_py:ALE/Pong-v5."
            ) from error
        raise unknown("environment", name, registration.registry) from error
    kwargs = _kwargs(config)
    if config.pixels and "mujoco" in str(spec.entry_point):
        from .rendering import choose_backend

        choose_backend()
    target = made(config, lambda: _entry(spec))
    given = config.kwargs.keys() - parameters_of(gymnasium.make).keys()
    _check_arguments(config, given, parameters_of(target))
    if config.pixels and _renders(target):
        kwargs.setdefault("render_mode", "rgb_array")
    if config.time_limit is not None:
        kwargs["max_episode_steps"] = -1  # ours replaces it
    env = made(
        config,
        lambda: gymnasium.make(spec, disable_env_checker=True, **kwargs),
        parameters_of(target),
    )
    _steady_camera(env)
    return env


def _entry(spec: registration.EnvSpec) -> Any:
    entry = spec.entry_point
    return registration.load_env_creator(entry) if isinstance(entry, str) else entry


def _steady_camera(env: gymnasium.Env[Any, Any]) -> None:
    """The same view in every episode, process and run: gymnasium's MuJoCo camera looks at the
    middle of whatever it finds when it draws for the first time."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    config = getattr(renderer, "default_cam_config", None) or {}
    if renderer is None or "lookat" in config:
        return
    import mujoco

    start = mujoco.MjData(renderer.model)
    mujoco.mj_forward(renderer.model, start)
    middle = np.median(start.geom_xpos, axis=0)
    renderer.default_cam_config = {**config, "lookat": middle}


def _kwargs(config: EnvConfig) -> dict[str, Any]:
    kwargs = dict(config.kwargs)
    if config.camera is not None:
        kwargs["camera_id"] = config.camera
    return kwargs


def _renders(target: Any) -> bool:
    return "rgb_array" in getattr(target, "metadata", {}).get("render_modes", [])
