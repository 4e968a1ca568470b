"""The outermost wrapper: what agents see, and in what order they may ask for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces

from . import spaces as flat
from .choice import NOTES, choose, notes_of
from .config import EnvConfig, EnvError
from .wrappers import Step

Reader = Callable[[Any], np.ndarray]

# Where render is known to change nothing, so that frames nobody sees need not be drawn.
PURE = ("gymnasium.envs.classic_control.", "gymnasium.envs.mujoco.", "worldmodel.envs.")

# One environment steps in one thread; OpenCV's own pool would fight with torch's for the cores.
cv2.setNumThreads(1)


class Observe(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Observations as a flat dict: images uint8 [H, W, C], vectors float32 [N], discrete values
    one-hot float32 [N], and `action_mask` float32 [A] where there is one.

    Its metadata hold under NOTES, by key, how people should know it is read or why it is left out.
    blind: while true, observations are empty dicts, and frames are drawn only where drawing might
    change the environment; for rows that nobody will see.

    Raises EnvError for observations that break the declared space, for a step before a reset and
    for a step after the episode's end.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], config: EnvConfig) -> None:
        super().__init__(env)
        self.blind = False
        self._draws_only = _draws_only(env)
        self._running = False
        self._ended = False
        self._native = env.observation_space
        found = list(flat.leaves(self._native, config))
        chosen, self._frame_key = choose(found, config, env)
        notes = notes_of(found, chosen, self._frame_key, config)
        self.metadata = {**env.metadata, NOTES: notes}
        self._image = ImageReader(config)
        self._leaves: list[tuple[flat.Leaf, Reader]] = []
        self._mask: Callable[[Any], np.ndarray] | None = None
        outer: dict[str, spaces.Space[Any]] = {}
        if self._frame_key:
            outer[self._frame_key] = self._image.space(3)
        for leaf in chosen:
            space, reader = self._reader(leaf)
            self._leaves.append((leaf, reader))
            outer[leaf.key] = space
        for leaf in _recorded(found, config, outer):
            space, reader = _number_reader(leaf)
            self._leaves.append((leaf, reader))
            outer[leaf.key] = space
        self._mask_sizes = _action_sizes(env.action_space)
        self._mask_path = _mask_path(found)
        self._mask_from_info = config.action_mask and self._mask_path is None
        if self._mask_path or self._mask_from_info:
            if not self._mask_sizes:
                raise EnvError(f"An action_mask needs discrete actions, not {env.action_space}.")
            outer[flat.MASK_KEY] = spaces.Box(0.0, 1.0, (sum(self._mask_sizes),), np.float32)
        self.observation_space = spaces.Dict(outer)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._running = False  # a reset that fails leaves nothing to step
        obs, info = self.env.reset(seed=seed, options=options)
        self._running, self._ended = True, False
        return self._read(obs, info), info

    def step(self, action: Any) -> Step:
        if not self._running:
            when = "after the end of the episode" if self._ended else "before the first reset"
            raise EnvError(f"step was called {when}. Call reset first.")
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._ended = bool(terminated or truncated)
        self._running = not self._ended
        return self._read(obs, info), float(reward), terminated, truncated, info

    def _read(self, obs: Any, info: dict[str, Any]) -> dict[str, np.ndarray]:
        if self.blind:
            if self._frame_key and not self._draws_only:
                self.env.render()
            return {}
        flat.check_structure(self._native, obs)
        out: dict[str, np.ndarray] = {}
        if self._frame_key:
            out[self._frame_key] = self._image.frame(self.env.render())
        for leaf, reader in self._leaves:
            out[leaf.key] = reader(_at(obs, leaf.path))
        if self._mask_path:
            out[flat.MASK_KEY] = self._read_mask(_at(obs, self._mask_path))
        elif self._mask_from_info:
            if flat.MASK_KEY not in info:
                raise EnvError(
                    "info has no 'action_mask', though the setting action_mask asks for it. It has "
                    f"{sorted(info)}. Set action_mask to false."
                )
            out[flat.MASK_KEY] = self._read_mask(info[flat.MASK_KEY])
        return out

    def _read_mask(self, value: Any) -> np.ndarray:
        """The mask [A] in one array, or in a tuple or list with one for each factor."""
        sizes = self._mask_sizes

        def wrong() -> EnvError:
            many = f", or one array for each of the factors {list(sizes)}" * (len(sizes) > 1)
            return EnvError(
                f"action_mask must hold {sum(sizes)} zeros and ones, one for each action{many}, "
                f"but is {value!r}."
            )

        try:
            parts = value if isinstance(value, tuple | list) and np.ndim(value[0]) else (value,)
            given = [np.ravel(np.asarray(part)) for part in parts]
            mask = np.concatenate(given).astype(np.float32)
        except (IndexError, TypeError, ValueError) as error:
            raise wrong() from error
        fits = len(given) == 1 or tuple(map(len, given)) == sizes
        if not fits or mask.shape != (sum(sizes),) or not np.isin(mask, (0.0, 1.0)).all():
            raise wrong()
        for part in np.split(mask, np.cumsum(sizes)[:-1]):
            if not part.any():
                if not self._ended:
                    raise EnvError("action_mask allows no action, though the episode goes on.")
                part[:] = 1.0  # nothing is chosen at the end, and a policy over nothing is NaN
        return mask

    def _reader(self, leaf: flat.Leaf) -> tuple[spaces.Space[Any], Reader]:
        """The outer space of one leaf and the function that reads it."""
        if leaf.kind == "image":
            channels = leaf.form.size(leaf.space.shape or ())[2]
            doubtful = True

            def read_image(value: Any) -> np.ndarray:
                nonlocal doubtful
                array = flat.read_array(leaf, value)
                if doubtful:
                    doubtful = not flat.check_picture(leaf, array)
                try:
                    return self._image.resize(leaf.form.read(array), channels)
                except ValueError as error:
                    if isinstance(error, EnvError):
                        raise
                    raise EnvError(
                        f"{leaf.label} {error}. Make its observation_space say so, or set "
                        f"env.ranges.{leaf.key}=[low,high]."
                    ) from error

            return self._image.space(channels), read_image
        if leaf.asked == "one_hot":
            counts = flat.symbol_counts(leaf)
            return flat.OneHot(counts), lambda value: flat.read_symbols(leaf, counts, value)
        if leaf.kind == "discrete":
            sizes = flat.class_counts(leaf.space)
            return flat.OneHot(sizes), lambda value: flat.read_one_hot(leaf, sizes, value)
        size = int(np.prod(leaf.space.shape or ()))
        box = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        return box, lambda value: flat.read_array(leaf, value).astype(np.float32).reshape(-1)


def native_observations(env: gymnasium.Env[Any, Any]) -> spaces.Space[Any]:
    """The observation space of an environment from `make_env` as its author declared it."""
    layer = env
    while not isinstance(layer, Observe):
        assert isinstance(layer, gymnasium.Wrapper), "not an environment from make_env"
        layer = layer.env
    return layer.env.observation_space


class ImageReader:
    """Crops, resizes and, on request, greys frames: uint8 [h, w, C] -> uint8 [H, W, C]."""

    def __init__(self, config: EnvConfig) -> None:
        self._size = (int(config.image_size[0]), int(config.image_size[1]))
        self._crop = [int(n) for n in config.crop] if config.crop else None
        self._gray = config.grayscale

    def space(self, channels: int) -> spaces.Box:
        """The space of a resized image that came with so many channels."""
        channels = 1 if self._gray and channels == 3 else channels
        return spaces.Box(0, 255, (*self._size, channels), np.uint8)

    def frame(self, frame: Any) -> np.ndarray:
        """A rendered frame, checked first."""
        shape = list(frame.shape) if isinstance(frame, np.ndarray) else []
        if len(shape) != 3 or shape[2] != 3 or frame.dtype != np.uint8:
            given = f"{frame.dtype} {shape}" if shape else type(frame).__name__
            raise EnvError(f"render must return a uint8 array [H, W, 3], but returned {given}.")
        return self.resize(frame, 3)

    def resize(self, image: np.ndarray, channels: int) -> np.ndarray:
        """A new array; never a view of what the environment keeps."""
        gray = self._gray and channels == 3
        shaped = shape_picture(image, self._size, self._crop, gray)
        return shaped.reshape(*self._size, 1 if gray else channels)


def shape_picture(
    image: np.ndarray, size: tuple[int, int], crop: Sequence[int] | None, gray: bool
) -> np.ndarray:
    """One picture [h, w, C] cropped at its [top, bottom, left, right], resized to [H, W] by area,
    and grey where asked for; one channel may lose its axis. Raises EnvError where nothing is left.
    """
    if crop:
        top, bottom, left, right = crop
        height, width = image.shape[:2]
        image = image[top : max(0, height - bottom), left : max(0, width - right)]
        if image.size == 0:
            raise EnvError(f"crop {list(crop)} leaves nothing of a {height}x{width} frame.")
    image = np.array(image) if image.shape[:2] == size else area(image, size)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) if gray else image


def area(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area average [h, w, C] -> [H, W, C]; one channel may lose its axis."""
    if image.ndim == 3 and image.shape[2] > 4:  # OpenCV takes four channels at once
        return np.dstack([area(image[..., i : i + 4], size) for i in range(0, image.shape[2], 4)])
    height, width = size
    while image.shape[0] >= 4 * height and image.shape[1] >= 4 * width:
        # Halving first costs a third of one large step and averages the same area.
        half = (image.shape[1] // 2, image.shape[0] // 2)
        image = cv2.resize(image, half, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _draws_only(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether render is known to change nothing. Taxi turns its car there, LunarLander lets its
    sparks age, and of somebody else's environment nothing is known."""
    while isinstance(env, gymnasium.Wrapper):
        if type(env).__module__.partition(".")[0] not in ("gymnasium", "worldmodel"):
            return False
        env = env.env
    return type(env).__module__.startswith(PURE)


def _at(obs: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        obs = obs[key]
    return obs


def _recorded(
    found: list[flat.Leaf], config: EnvConfig, chosen: Collection[str]
) -> list[flat.Leaf]:
    """The leaves that the replay alone keeps. Raises EnvError for a key that does not exist, holds
    no numbers, or is observed anyhow."""
    leaves = {leaf.key: leaf for leaf in found}
    for key in config.record:
        if key not in leaves:
            raise EnvError(f"record names '{key}', but the observation has {sorted(leaves)}.")
        if key in chosen or key == flat.MASK_KEY:
            raise EnvError(
                f"record names '{key}', which agents see and replay keeps anyhow. Leave it out of "
                "record, or of what is observed (pixels, state, keys)."
            )
        if leaves[key].kind not in ("vector", "symbols", "discrete"):
            raise EnvError(
                f"record names '{key}', which holds no plain numbers ({leaves[key].kind})."
            )
    return [leaves[key] for key in dict.fromkeys(config.record)]


def _number_reader(leaf: flat.Leaf) -> tuple[spaces.Space[Any], Reader]:
    """How the plain numbers of a recorded leaf are read; discrete values as they are counted."""
    size = int(np.prod(leaf.space.shape or ()))

    def read(value: Any) -> np.ndarray:
        array = np.asarray(value) if leaf.kind == "discrete" else flat.read_array(leaf, value)
        return array.astype(np.float32).reshape(size)

    return flat.Recorded(size), read


def _action_sizes(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Classes of each factor of a discrete action; none for a continuous one."""
    return () if isinstance(space, spaces.Box) else tuple(flat.class_counts(space))


def _mask_path(found: list[flat.Leaf]) -> tuple[Any, ...] | None:
    """Where the observation holds its action mask, which may be a Tuple; None where it has none.
    Raises EnvError for several masks, and for one whose parts have names and so no order."""
    places: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for path in (leaf.path for leaf in found if leaf.key == flat.MASK_KEY):
        end = path.index(flat.MASK_KEY) + 1
        places.setdefault(path[:end], []).append(path[end:])
    parts = [part for inner in places.values() for part in inner]
    if len(places) > 1 or any(len(part) > 1 or str in map(type, part) for part in parts):
        raise EnvError(
            f"action_mask holds {len(parts)} parts, at {sorted(map(str, places))}, of which nobody "
            "knows which action they are for. Allowed: one array of zeros and ones, one for each "
            "action, or a Tuple with one array for each factor of the actions."
        )
    return next(iter(places), None)
