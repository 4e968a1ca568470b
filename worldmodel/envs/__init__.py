"""Real environments, all through gymnasium's API.

A new family is one file with `build(config)` and one line in FAMILIES. Somebody's own environment
needs neither: its id is "package.module:Name".
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import TimeLimit

from .actions import Actions
from .choice import NOTES
from .config import AtariConfig, EnvConfig, EnvError, unknown
from .failures import EnvFailed
from .journal import Episodes, env_seeds
from .observe import Observe
from .reward import Rewarded, RewardFunction
from .spaces import OneHot, Recorded, class_counts
from .vector import Vector
from .wrappers import CutOff, close_gently

if TYPE_CHECKING:
    from worldmodel.types import EnvSpec

__all__ = [
    "FAMILIES",
    "AtariConfig",
    "EnvConfig",
    "EnvError",
    "EnvFailed",
    "RewardFunction",
    "Vector",
    "check_fits",
    "describe",
    "env_spec",
    "make_env",
    "make_vector",
    "notes",
]

FAMILIES = {
    "gymnasium": "worldmodel.envs.gym:build",
    "dmc": "worldmodel.envs.dmc:build",
    "atari": "worldmodel.envs.atari:build",
    "boards": "worldmodel.envs.boards:build",
    "carts": "worldmodel.envs.carts:build",
    "grid": "worldmodel.envs.grid:build",
}


def make_env(
    config: EnvConfig, seed: int | None = None, whole: bool = False, spec: EnvSpec | None = None
) -> Episodes:
    """One environment with flat Dict observations and normalised actions (see `env_spec`).

    seed: its own, of which every reset without a seed makes one for its episode; and that of
    `action_space.sample`. whole: episodes will be played to their ends, so that they must have
    one: after config.longest_episode steps at the latest, unless the environment limits them.
    spec: what it must observe and take.
    Raises EnvError for unknown names, unusable spaces and impossible settings, where it does not
    fit the spec, and later for whatever the environment does wrong.
    """
    if config.suite not in FAMILIES:
        raise unknown("suite", config.suite, FAMILIES)
    if config.id == "???":
        raise EnvError("No environment is named. Set id, for example id=Pendulum-v1.")
    module, _, function = FAMILIES[config.suite].partition(":")
    native = getattr(importlib.import_module(module), function)(config)
    try:
        if config.time_limit is not None:
            native = TimeLimit(native, config.time_limit)
        elif whole and not _limited(native, config):
            native = CutOff(native, config.longest_episode)
        seen = Observe(Actions(native), config)
        own = config.reward
        env = Episodes(seen if own is None else Rewarded(seen, RewardFunction(own)), seed)
        if spec is not None:
            check_fits(env, spec)
    except BaseException:
        close_gently(native)
        raise
    env.action_space.seed(seed)
    return env


def _limited(env: gymnasium.Env[Any, Any], config: EnvConfig) -> bool:
    """Whether an environment has a time limit of its own."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            return True
        env = env.env
    return config.suite == "atari"


def check_fits(env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any], spec: EnvSpec) -> None:
    """Raises EnvError, with every difference, unless an environment made here observes all that a
    spec names and takes its actions."""
    wrong = spec.differences(env_spec(env))
    if wrong:
        raise EnvError(
            f"The environment is another than the run's: {'; '.join(wrong)}. Give the run's own "
            "(its env.* settings are in its config.yaml), or start a new run."
        )


@dataclass
class _Maker:
    """A call of make_env that can be sent to another process.

    environ: settings of OpenGL, which took a probe to find.
    """

    config: EnvConfig
    seed: int
    environ: dict[str, str] = field(default_factory=dict)
    whole: bool = False

    def __call__(self) -> Episodes:
        os.environ.update(self.environ)
        return make_env(self.config, self.seed, self.whole)

    @property
    def needs_main(self) -> bool:
        """Whether the program itself may define or register what is to be made."""
        names = (self.config.id, self.config.reward or "")
        if any(name.startswith("__main__") for name in names):
            return True
        if self.config.suite != "gymnasium" or ":" in self.config.id:
            return False
        spec = gymnasium.registry.get(self.config.id)
        return not str(getattr(spec, "entry_point", "")).startswith("gymnasium.")


def make_vector(
    config: EnvConfig, num_envs: int | None = None, seed: int | None = None, whole: bool = False
) -> Vector:
    """`num_envs` environments (config.num_envs by default) that step together, each with a seed of
    its own, in this process or in one each. whole: as in `make_env`.

    Autoreset is NEXT_STEP: the step after a row that ended an episode ignores its action and
    returns the reset observation with reward 0. Raises EnvError as make_env does.
    """
    count = config.num_envs if num_envs is None else num_envs
    if count < 1:
        raise EnvError(f"num_envs is {count}, but must be at least 1.")
    seeds = env_seeds(seed, count)
    environ = _opengl(config) if config.vector == "async" else {}
    env = Vector([_Maker(config, s, environ, whole) for s in seeds], seeds, config)
    env.action_space.seed(seed)
    return env


def _opengl(config: EnvConfig) -> dict[str, str]:
    """What was settled about OpenGL, once here and not in every process."""
    from .rendering import VARIABLES, choose_backend, prepare

    spec = gymnasium.registry.get(config.id.rpartition(":")[2])
    if config.suite == "dmc":
        prepare(config.pixels)
    elif config.suite == "gymnasium" and "mujoco" in str(getattr(spec, "entry_point", "")):
        if config.pixels:
            choose_backend()
    else:
        return {}
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def env_spec(env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> EnvSpec:
    """What a model must know of an environment made here, or of one of a vector's."""
    # Here and not above: environment processes must start without torch.
    from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

    spaces = gymnasium.spaces
    if isinstance(env, VectorEnv):
        obs_space, action_space = env.single_observation_space, env.single_action_space
    else:
        obs_space, action_space = env.observation_space, env.action_space
    if not isinstance(obs_space, spaces.Dict):
        raise EnvError(f"env_spec needs an environment from make_env; it observes {obs_space}.")
    obs = {}
    for key, space in obs_space.spaces.items():
        assert space.shape is not None
        if isinstance(space, OneHot):
            obs[key] = ObsSpec("discrete", space.shape, space.sizes)
        elif isinstance(space, Recorded):
            obs[key] = ObsSpec("recorded", space.shape)
        else:
            obs[key] = ObsSpec("image" if space.dtype == np.uint8 else "vector", space.shape)
    if isinstance(action_space, spaces.Box):
        return EnvSpec(obs, ActionSpec("continuous", (int(action_space.shape[0]),)))
    return EnvSpec(obs, ActionSpec("discrete", class_counts(action_space)))


def notes(env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> dict[str, str]:
    """What people should know of the observation keys of an environment made here: how they are
    read, or why they are left out."""
    return dict(env.metadata.get(NOTES, {}))


def describe(spec: EnvSpec, notes: Mapping[str, str] | None = None) -> str:
    """Which keys were taken for what, one line each, and the actions; with what `notes` says."""
    rows = []
    words = dict(notes or {})
    for key, obs in sorted(spec.obs.items()):
        shape = " x ".join(map(str, obs.shape))
        classes = ", ".join(map(str, obs.sizes))
        if len(obs.sizes) > 3 and len(set(obs.sizes)) == 1:
            classes = f"{len(obs.sizes)} times {obs.sizes[0]}"
        note = f" (one-hot, classes {classes})" if obs.sizes else ""
        note += " (for the replay alone)" if obs.kind == "recorded" else ""
        note += f" ({words.pop(key)})" if key in words else ""
        rows.append(f"  {key}: {obs.kind} {shape}{note}")
    rows += [f"  {key}: {word}" for key, word in sorted(words.items())]
    return "\n".join(["observation", *rows, f"action: {spec.action}"])
