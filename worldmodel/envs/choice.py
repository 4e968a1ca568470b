"""Which parts of an observation agents see, and whether a rendered frame stands beside them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from worldmodel import images

from .config import EnvConfig, EnvError, unknown
from .spaces import MASK_KEY, Leaf

NOTES = "observed"  # of an environment's metadata: words by key, for people
DRAWN = ("image", "symbols", "unclear")  # what shows the world: nothing is rendered instead of it


def choose(
    found: list[Leaf], config: EnvConfig, env: gymnasium.Env[Any, Any]
) -> tuple[list[Leaf], str]:
    """The leaves to read, and the key of the rendered frame ("" for none).

    Raises EnvError where nothing is left, where a chosen leaf cannot be read, where settings
    contradict each other, and where pixels are asked of an environment that has none.
    """
    _check_names(found, config)
    named = config.keys or []
    own = [leaf for leaf in found if leaf.key != MASK_KEY]
    chosen = [leaf for leaf in own if config.keys is None or leaf.key in named]
    frame_key = ""
    for leaf in chosen:
        if _is_empty(leaf) and leaf.key in named:
            shape = list(leaf.space.shape or ())
            raise EnvError(f"keys names '{leaf.key}', which holds nothing: its shape is {shape}.")
    chosen = [leaf for leaf in chosen if not _is_empty(leaf)]
    for leaf in chosen:
        if leaf.kind == images.UNCLEAR:
            raise EnvError(_question(leaf, [other.key for other in chosen if other != leaf]))
    if not config.pixels:
        for leaf in chosen:
            if leaf.kind == "image" and (leaf.key in named or leaf.asked):
                setting = "keys" if leaf.key in named else "kinds"
                raise EnvError(
                    f"{setting} names '{leaf.key}', which is an image, but pixels is false. Set "
                    f"pixels to true, or say what it is: env.kinds.{leaf.key}=vector or one_hot."
                )
        chosen = [leaf for leaf in chosen if leaf.kind != "image"]
    elif not any(_shows_world(leaf) for leaf in own):
        _check_renders(env)
        chosen = chosen if config.state or named else []
        frame_key = "frame" if any(leaf.key == "image" for leaf in chosen) else "image"
    _check_usable(found, chosen)
    if not chosen and not frame_key:
        raise EnvError(
            f"Nothing to observe: neither an image nor a vector is left of "
            f"{env.observation_space} with pixels={config.pixels} and keys={config.keys}. Set "
            "pixels to true, or say what an array is, as in env.kinds.image=vector or one_hot."
        )
    return chosen, frame_key


def _is_empty(leaf: Leaf) -> bool:
    return 0 in (leaf.space.shape or ())


def _shows_world(leaf: Leaf) -> bool:
    """Whether it is a picture or a board, so that nothing is rendered instead of it."""
    board = leaf.kind == "discrete" and bool(images.layout_of(leaf.space.shape or ()))
    return board or leaf.kind in DRAWN


def notes_of(
    found: list[Leaf], chosen: list[Leaf], frame_key: str, config: EnvConfig
) -> dict[str, str]:
    """What people should know of each key: how it is read, or why it is left out."""
    notes = {}
    for leaf in found:
        if leaf in chosen:
            notes[leaf.key] = _how(leaf)
        elif _is_empty(leaf):
            notes[leaf.key] = "left out, since it holds nothing"
        elif leaf.kind == "unusable":
            kind = type(leaf.space).__name__
            notes[leaf.key] = f"left out, since a {kind} space has no fixed size"
        elif leaf.key == MASK_KEY or leaf.key in config.record:
            continue
        elif config.keys is not None:
            notes[leaf.key] = "left out, since keys does not name it"
        elif leaf.kind == "image":
            notes[leaf.key] = "left out, since it is an image and pixels is false"
        else:
            notes[leaf.key] = "left out for the rendered frame; state=true keeps it"
    if frame_key:
        own = notes.get(frame_key)
        notes[frame_key] = f"rendered; its own {frame_key} is {own}" if own else "rendered"
    return {key: note for key, note in notes.items() if note}


def _how(leaf: Leaf) -> str:
    shape = " x ".join(map(str, leaf.space.shape or ()))
    if leaf.kind == "image":
        form, parts = leaf.form, []
        if form.layout not in ("HW", "HWC"):
            parts.append(f"from {form.layout}, {shape}")
        if form.scaled:
            low, high = np.min(form.low), np.max(form.high)
            parts.append(f"{leaf.space.dtype} scaled from [{low:g}, {high:g}]")
        return ", ".join(parts)
    if leaf.kind == "symbols":
        kind = "one-hot" if leaf.asked == "one_hot" else "numbers"
        return f"{shape} symbols as {kind}; env.kinds.{leaf.key} says otherwise"
    return ""


def _question(leaf: Leaf, others: list[str]) -> str:
    """What to ask where an array may be several things. others: what else is observed."""
    leave = f"; or leave it out: env.keys=[{','.join(others)}]" if others else ""
    shape, answers = list(leaf.space.shape or ()), ["vector"]
    if not leaf.form.layout:
        answers = ["channels_first", "channels_last", *answers]
        ask = f"Say it: env.kinds.{leaf.key}={' or '.join(answers)}"
    else:
        ask = f"Say it, as in env.ranges.{leaf.key}=[0,1], or env.kinds.{leaf.key}=vector"
    return (
        f"{leaf.label} is {leaf.space.dtype} {shape}, a picture by its shape, but it does not say "
        f"{leaf.form.why}. {ask}{leave}"
    )


def _check_names(found: list[Leaf], config: EnvConfig) -> None:
    """Every key that the settings name is there, and is one that they can speak of."""
    names = [leaf.key for leaf in found]
    for key in config.keys or ():
        if key not in names:
            raise EnvError(f"keys names '{key}', but the observation has {sorted(names)}.")
    boxes = [leaf.key for leaf in found if isinstance(leaf.space, gymnasium.spaces.Box)]
    if any(not leaf.path for leaf in found):
        boxes += ["image", "state"]  # either name will do for an observation without one
    for setting in ("kinds", "ranges"):
        for key in getattr(config, setting):
            if key not in boxes:
                raise unknown(f"observation in {setting}", key, set(boxes))


def _check_renders(env: gymnasium.Env[Any, Any]) -> None:
    if env.render_mode != "rgb_array":
        raise EnvError(
            f"pixels is true, but the observation has no image ({env.observation_space}) and "
            f"the environment cannot render: its render_mode is {env.render_mode!r} instead of "
            f"'rgb_array'. Set env.pixels=false to learn from its vectors."
        )


def _check_usable(found: list[Leaf], chosen: list[Leaf]) -> None:
    names = [leaf.key for leaf in found]
    usable = [leaf.key for leaf in chosen if leaf.kind != "unusable"]
    leave = f" Leave it out: env.keys=[{','.join(usable)}]" if usable else ""
    for leaf in chosen:
        if leaf.kind == "unusable":
            raise EnvError(
                f"{leaf.label} is a {type(leaf.space).__name__} space, which has no fixed size. "
                f"Allowed: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of them."
                f"{leave}"
            )
        if names.count(leaf.key) > 1:
            raise EnvError(f"Two observations would both be named '{leaf.key}'. Rename one.")
