"""What can go wrong with a camera, as pure functions of one picture.

Each takes a picture uint8 [H, W, C], a strength, and a `Scene`, and returns a new picture. Lengths
are shares of the picture's height, and brightness a share of the full range, so that a strength
means the same at any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

FULL = 255.0


@dataclass
class Scene:
    """What stays the same over an episode, and what changes from picture to picture.

    place: row and column in [0, 1), of whatever is put into the picture. colour: [3] in [0, 1].
    usual: the typical picture [H, W, C], in which nothing moves. rng: for what differs each time.
    """

    place: tuple[float, float]
    colour: np.ndarray
    usual: np.ndarray
    rng: np.random.Generator


def brighter(image: np.ndarray, strength: float, scene: Scene) -> np.ndarray:
    """Every pixel moves by `strength`; a negative one darkens."""
    return _to_bytes(image + FULL * strength)


def flatter(image: np.ndarray, strength: float, scene: Scene) -> np.ndarray:
    """Contrast times 1 - `strength`, around the picture's mean."""
    mean = image.mean((0, 1), keepdims=True)
    return _to_bytes(mean + (image - mean) * (1 - strength))


def tinted(image: np.ndarray, strength: float, scene: Scene) -> np.ndarray:
    """The first channel weaker by `strength`, the last one darker by half of that; a picture with
    one channel gets another gamma."""
    if image.shape[-1] < 3:
        return _to_bytes(FULL * (image / FULL) ** (1 + 2 * strength))
    gains = np.ones(image.shape[-1])
    gains[0], gains[-1] = 1 - strength, 1 - strength / 2
    return _to_bytes(image * gains)


def blurred(image: np.ndarray, strength: float, scene: Scene) -> np.ndarray:
    """A Gaussian blur whose standard deviation is `strength` heights."""
    if strength == 0:
        return image.copy()  # OpenCV would choose a width itself
    soft = cv2.GaussianBlur(image, (0, 0), strength * image.shape[0])
    return np.asarray(soft).reshape(image.shape)


def noisy(image: np.ndarray, strength: float, scene: Scene) -> np.ndarray:
    """Independent normal noise of standard deviation `strength` on every number."""
    return _to_bytes(image + FULL * strength * scene.rng.standard_normal(image.shape))


def covered(image: np.ndarray, strength: float, scene: Scene) -> np.ndarray:
    """A mid-grey square of `strength` heights somewhere, at one place for the whole episode."""
    return _square(image, strength, scene.place, np.full(image.shape[-1], 0.5))


def with_object(image: np.ndarray, strength: float, scene: Scene) -> np.ndarray:
    """A small coloured square of `strength` heights somewhere, at one place for the episode."""
    return _square(image, strength, scene.place, _channels(scene.colour, image.shape[-1]))


def other_background(image: np.ndarray, strength: float, scene: Scene) -> np.ndarray:
    """Coloured stripes, `strength` of the range deep, wherever the picture is as usual."""
    still = np.abs(image.astype(int) - scene.usual).max(-1, keepdims=True) < 12
    across = np.arange(image.shape[1]) / image.shape[1]
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (2 * across + scene.place[1]))
    wall = _channels(scene.colour, image.shape[-1]) * wave[None, :, None]
    mixed = (1 - strength) * image + strength * FULL * wall
    return np.where(still, _to_bytes(mixed), image)


def moved(image: np.ndarray, strength: float, scene: Scene) -> np.ndarray:
    """The camera turned, so that the picture lies `strength` heights off to the side and half of
    that up or down; its edges are repeated."""
    pixels = strength * image.shape[0]
    across = pixels if scene.place[1] < 0.5 else -pixels
    down = 0.5 * (pixels if scene.place[0] < 0.5 else -pixels)
    size = (image.shape[1], image.shape[0])
    matrix = np.array([[1, 0, across], [0, 1, down]], np.float32)
    out = cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(out).reshape(image.shape)


def simpler(image: np.ndarray, strength: float, scene: Scene) -> np.ndarray:
    """Less to see: up to 1/3 the usual picture without what moves, up to 2/3 one even colour, and
    beyond that black."""
    if strength <= 1 / 3:
        return scene.usual.copy()
    if strength <= 2 / 3:
        return np.broadcast_to(_to_bytes(image.mean((0, 1))), image.shape).copy()
    return np.zeros_like(image)


def _square(
    image: np.ndarray, strength: float, place: tuple[float, float], colour: np.ndarray
) -> np.ndarray:
    side = max(1, round(strength * image.shape[0]))
    top, left = (int(p * max(1, n - side + 1)) for p, n in zip(place, image.shape, strict=False))
    out = image.copy()
    out[top : top + side, left : left + side] = _to_bytes(FULL * colour)
    return out


def _channels(colour: np.ndarray, count: int) -> np.ndarray:
    """A colour [3] for so many channels: grey for one, repeated for stacked frames."""
    return np.full(count, colour.mean()) if count < 3 else np.resize(colour, count)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.clip(np.rint(values), 0, FULL).astype(np.uint8)
    return out
