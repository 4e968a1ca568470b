"""What an environment is made of, and the error that every part of this package raises."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from worldmodel.config import ConfigError, from_cli
from worldmodel.images import ASKED

# Beyond these, a slip of the finger takes the machine down before anything else can say so.
MOST_SIDE = 1024  # pixels of an image
MOST_ENVS = 1024  # of one vector, each perhaps a process
MOST_REPEATS = 1000  # environment steps for one action
MOST_SAMPLES = 8  # along each side of a pixel


class EnvError(ConfigError):
    """An environment, or a request for one, breaks a rule: what was wrong, what was given, what is
    allowed, what to do."""


class EnvUnclear(EnvError):
    """An environment cannot be read without a setting that only its user knows."""


def unknown(what: str, name: str, known: Iterable[str], limit: int = 12) -> EnvError:
    """The error for a name that nobody knows, with the nearest known ones."""
    names = sorted(known)
    lowered = {n.lower(): n for n in names}
    near = [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered, 3, 0.6)]
    message = f"Unknown {what} '{name}'."
    if len(names) <= limit:
        message += f" Known: {', '.join(names)}."
    if near:
        message += f" Did you mean {' or '.join(repr(n) for n in near)}?"
    elif len(names) > limit:
        message += f" {len(names)} are known, for example {', '.join(names[:3])}."
    return EnvError(message)


@dataclass
class AtariConfig:
    """Options of the Atari family; the defaults are those of Atari100k."""

    noops: int = 30  # upper bound of the random number of no-op frames after a reset; 0 = none
    sticky: float = 0.0  # probability that the console repeats the action before, [0, 1)
    life_loss: bool = False  # a lost life terminates the episode; the game itself goes on
    full_actions: bool = False  # all 18 joystick actions instead of those that the game uses
    max_pool: bool = True  # pixelwise maximum of the last two frames of an agent step


@dataclass
class EnvConfig:
    """Which environment, and how it is seen and driven."""

    id: str = "???"  # Pendulum-v1 | walker_walk | pong | my_package.my_module:MyEnv
    suite: str = "gymnasium"  # gymnasium | dmc | atari | boards | carts | grid
    # [height, width] of every image in pixels; multiples of 16, from 32 to 1024
    image_size: list[int] = field(default_factory=lambda: [64, 64])
    pixels: bool = True  # images: the observation's own or, where it has none, rendered frames
    state: bool = False  # keep vectors and discrete values beside rendered frames
    keys: list[str] | None = None  # observation keys to keep, by flat name; null = all
    # What an array is, by flat name, where its space does not say it or says it wrong: image,
    # channels_first, channels_last (images too), vector, one_hot (of whole numbers).
    kinds: dict[str, str] = field(default_factory=dict)
    # [black, white] of an image's values or [smallest, largest] of symbols, by flat name; null =
    # the bounds of the space.
    ranges: dict[str, list[float]] = field(default_factory=dict)
    # Observation keys for the replay alone, by flat name: rewards made later may read them; no
    # model and no policy sees them (docs/REWARDS.md).
    record: list[str] = field(default_factory=list)
    reward: str | None = None  # module:function or file.py:function instead of the task's reward
    action_mask: bool = False  # read info["action_mask"]; one in a Dict observation is always read
    grayscale: bool = False  # one channel instead of three
    action_repeat: int = 1  # environment steps for each agent step, rewards summed; Atari: 4
    time_limit: int | None = None  # agent steps before truncation; null = the environment's own
    # Agent steps after which an episode is cut off where whole ones are played (evaluations, films,
    # detectors, scores, trials), unless the environment has a time limit of its own.
    longest_episode: int = field(default=10_000, metadata={"free": True})
    camera: int | None = None  # index of a MuJoCo camera; null = the usual one
    # pixels cut off at the [top, bottom, left, right] of the frame before it is resized
    crop: list[int] | None = None
    fast_render: bool = False  # dmc: no shadows, no multisampling; faster, other pixels
    supersample: int = 1  # dmc: drawn so many times as large, and averaged; edges become smooth
    kwargs: dict[str, Any] = field(default_factory=dict)  # for the environment's constructor
    # The same where episodes are played for their return, entry by entry in place of `kwargs`:
    # {opponent: minimax} judges by perfect play what learned against itself.
    eval_kwargs: dict[str, Any] = field(default_factory=dict, metadata={"free": True})
    num_envs: int = 1  # environments that step together
    vector: str = "sync"  # sync: one after another | async: one process each
    # An environment that raises, dies, hangs or returns garbage is made anew, with a new episode.
    # Hanging is seen in async alone: what hangs in this process cannot be interrupted.
    # Seconds for one agent step, then it hangs.
    timeout: float = field(default=60.0, metadata={"free": True})
    start_timeout: float = 300.0  # seconds to make an environment or to reset it, then it hangs
    # Failures within 10,000 steps of the vector that end the run.
    max_failures: int = field(default=10, metadata={"free": True})
    atari: AtariConfig = field(default_factory=AtariConfig)

    @property
    def judged(self) -> EnvConfig:
        """As it is made for evaluations."""
        kwargs = {**self.kwargs, **self.eval_kwargs}
        atari = replace(self.atari, life_loss=False)  # a score is of the whole game
        return replace(self, kwargs=kwargs, eval_kwargs={}, atari=atari)

    def __post_init__(self) -> None:
        size = list(self.image_size)
        if len(size) != 2 or any(n < 32 or n % 16 or n > MOST_SIDE for n in size):
            raise EnvError(
                f"image_size is {size}, but must be [height, width], each a multiple of 16, at "
                f"least 32 and at most {MOST_SIDE}. For example [64, 64]."
            )
        drawn = {"supersample": self.supersample > 1, "fast_render": self.fast_render}
        for name in (name for name, given in drawn.items() if given and self.suite != "dmc"):
            raise EnvError(
                f"{name} is {getattr(self, name)}, but only dmc draws its own frames (suite is "
                f"{self.suite}). Leave it out: other frames are averaged to image_size anyway."
            )
        if self.vector not in ("sync", "async"):
            raise unknown("vector mode", self.vector, ("sync", "async"))
        for name, most in (
            ("action_repeat", MOST_REPEATS), ("num_envs", MOST_ENVS), ("time_limit", math.inf),
            ("longest_episode", math.inf), ("supersample", MOST_SAMPLES),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                limit = "at least 1" if value < 1 else f"at most {most:,}"
                raise EnvError(f"{name} is {value}, but must be {limit}.")
        for name in ("timeout", "start_timeout", "max_failures"):
            if not getattr(self, name) > 0:
                raise EnvError(f"{name} is {getattr(self, name)}, but must be above 0.")
        for key, kind in self.kinds.items():
            if kind not in ASKED:
                raise unknown(f"kind of '{key}' (kinds)", kind, ASKED)
        for key, span in self.ranges.items():
            if len(span) != 2 or not span[0] < span[1]:
                raise EnvError(
                    f"env.ranges.{key} is {list(span)}, but must be [low, high] with low < high."
                )
        if self.crop is not None and (len(self.crop) != 4 or min(self.crop) < 0):
            raise EnvError(
                f"crop is {list(self.crop)}, but must be the four counts of pixels to cut off at "
                f"the [top, bottom, left, right]."
            )
        if not 0 <= self.atari.sticky < 1 or self.atari.noops < 0:
            raise EnvError(
                f"atari.sticky is {self.atari.sticky} and atari.noops {self.atari.noops}, but "
                f"sticky must lie in [0, 1) and noops must not be negative."
            )


@dataclass
class _Settings:
    env: EnvConfig = field(default_factory=EnvConfig)


def with_words(env: EnvConfig, words: Sequence[str]) -> EnvConfig:
    """The environment with what `env.NAME=...` among the words of a command line says of it.

    Raises ConfigError for a setting that does not exist, and a value that it cannot have.
    """
    ours = [word for word in words if word.partition("=")[0].partition(".")[0] == "env"]
    for word in ours:
        _, dot, rest = word.partition("=")[0].partition(".")
        name, known = rest.partition(".")[0].partition("[")[0], [one.name for one in fields(env)]
        if dot and name not in known:
            raise unknown("setting of env", name, known, limit=len(known))
    return from_cli(_Settings, ours, like=_Settings(env)).env
