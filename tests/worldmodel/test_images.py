"""The one rule of what is a picture and where its channels are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from tests.envs_for_tests import OddSpacesEnv
from worldmodel import images
from worldmodel.envs import EnvConfig, EnvError, describe, env_spec, make_env, make_vector, notes

BYTES = (np.uint8, 0, 255)


@pytest.mark.parametrize(
    ("shape", "layout", "size"),
    [
        ((48, 64), "HW", (48, 64, 1)),
        ((9, 84, 84), "CHW", (84, 84, 9)),
        ((84, 84, 9), "HWC", (84, 84, 9)),
        ((2, 84, 84), "CHW", (84, 84, 2)),
        ((16, 84, 84), "CHW", (84, 84, 16)),
        ((12, 210, 160), "CHW", (210, 160, 12)),
        ((210, 160, 12), "HWC", (210, 160, 12)),
        ((3, 48, 64), "CHW", (48, 64, 3)),
        ((16, 1024, 2), "HWC", (16, 1024, 2)),
        ((8, 8, 119), "HWC", (8, 8, 119)),
        ((4, 84, 84, 3), "SHWC", (84, 84, 12)),
        ((4, 3, 84, 96), "SCHW", (84, 96, 12)),
        ((84, 84, 3, 4), "HWCS", (84, 84, 12)),
        ((2, 4, 40, 60, 3), "TSHWC", (40, 60, 24)),  # two cameras, four frames each
        ((2, 4, 3, 40, 60), "TSCHW", (40, 60, 24)),
    ],
)
def test_channels_are_found_wherever_they_are(
    shape: tuple[int, ...], layout: str, size: tuple[int, int, int]
) -> None:
    form = images.study(shape, *BYTES)
    assert (form.kind, form.layout, form.size(shape)) == (images.IMAGE, layout, size)
    native = np.arange(2 * np.prod(shape)).reshape(2, *shape).astype(np.uint8)
    read = form.read(native).reshape(2, *size)
    # Row 5, column 6 of the second picture: its channels, frame by frame.
    where: list[Any] = [{"H": 5, "W": 6}.get(axis, slice(None)) for axis in layout]
    there = native[(1, *where)]
    frames = there.T if layout == "HWCS" else there
    np.testing.assert_array_equal(read[1, 5, 6], frames.ravel())


@pytest.mark.parametrize("shape", [(16, 84, 12), (84, 84, 84), (5, 84, 9), (2, 16, 84, 12)])
def test_unclear_channels_are_asked_about(shape: tuple[int, ...]) -> None:
    assert images.study(shape, *BYTES).kind == images.UNCLEAR
    assert images.study(shape, *BYTES, asked="channels_last").size(shape)[2] == (
        shape[-1] * (shape[0] if len(shape) == 4 else 1)
    )


@pytest.mark.parametrize(
    "shape", [(7, 7, 3), (5,), (4, 4), (64, 3, 64), (0, 9, 9), (8, 8, 8, 8, 8)]
)
def test_other_arrays_are_vectors(shape: tuple[int, ...]) -> None:
    assert images.study(shape, *BYTES).kind == images.VECTOR


@pytest.mark.parametrize(
    ("dtype", "low", "high", "value", "byte"),
    [
        (np.float32, 0, 1, 0.2, 51),
        (np.float64, -1, 1, 0.0, 128),
        (np.float32, 0, 255, 51.2, 51),
        (np.uint16, 0, 65535, 13107, 51),
        (np.int64, 0, 255, 51, 51),
        (np.uint8, 0, 200, 51, 51),  # bytes stay what they are
    ],
)
def test_values_are_scaled_by_their_bounds(
    dtype: Any, low: float, high: float, value: float, byte: int
) -> None:
    form = images.study((9, 9), dtype, low, high)
    assert form.read(np.full((9, 9), value, dtype)).tolist() == [[byte] * 9] * 9


def test_channels_with_bounds_of_their_own_are_scaled_by_them() -> None:
    low, high = np.zeros((9, 9, 4)), np.broadcast_to([1.0, 1, 1, 10], (9, 9, 4))
    form = images.study((9, 9, 4), np.float32, low, high)
    read = form.read(np.broadcast_to(np.float32([0.2, 0.4, 1, 2]), (9, 9, 4)))
    assert read[3, 4].tolist() == [51, 102, 255, 51]


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0, np.finfo(np.float32).max)])
def test_without_bounds_black_and_white_are_asked_about(bounds: tuple[float, float]) -> None:
    assert images.study((64, 64, 3), np.float32, *bounds).kind == images.UNCLEAR
    said = images.study((64, 64, 3), np.float32, *bounds, span=(-2, 2))
    assert said.read(np.ones((64, 64, 3), np.float32)).max() == 191
    with pytest.raises(ValueError, match="goes from 3 to 3, outside of its range"):
        said.read(np.full((64, 64, 3), 3, np.float32))


# In environments


def seen(space: spaces.Space[Any], value: Any, **settings: Any) -> tuple[Any, np.ndarray, str]:
    """Spec, value and words of the one key that is observed, of an environment that can render."""
    kwargs = {"observation_space": space, "observation": value}
    config = EnvConfig("tests.envs_for_tests:OddSpacesEnv", kwargs=kwargs,
                       image_size=[32, 32], **settings)  # fmt: skip
    env = make_env(config)
    native = env.unwrapped
    assert isinstance(native, OddSpacesEnv)
    obs, _ = env.reset()
    assert native.renders == 0  # an image is never replaced
    ((key, spec),) = env_spec(env).obs.items()
    return spec, obs[key], describe(env_spec(env), notes(env))


def test_stacked_frames_keep_their_picture() -> None:
    frames = np.zeros((9, 84, 84), np.uint8)
    frames[:, :21] = 255
    spec, image, words = seen(spaces.Box(0, 255, (9, 84, 84), np.uint8), frames)
    assert spec.shape == (32, 32, 9)
    assert image[:8].min() == 255
    assert image[8:].max() == 0
    assert "image: image 32 x 32 x 9 (from CHW, 9 x 84 x 84)" in words


def test_float_and_depth_pictures_are_scaled_and_said() -> None:
    spec, image, words = seen(spaces.Box(0.0, 1.0, (64, 64, 3)), np.full((64, 64, 3), 0.6, "f4"))
    assert (spec.kind, spec.shape, image.max()) == ("image", (32, 32, 3), 153)
    assert "float32 scaled from [0, 1]" in words
    depth = np.full((64, 64), 6553, np.uint16)
    _, image, words = seen(spaces.Box(0, 65535, (64, 64), np.uint16), depth)
    assert (image.shape, image.max()) == ((32, 32, 1), 25)
    assert "uint16 scaled from [0, 65535]" in words


def test_boards_of_few_symbols_are_vectors_or_one_hot() -> None:
    board = np.zeros((8, 8, 12), np.uint8)
    board[2, 3, 4] = 1
    space = spaces.Box(0, 1, (8, 8, 12), np.uint8)
    for pixels in (True, False):
        spec, value, words = seen(space, board, pixels=pixels)
        assert (spec.kind, spec.shape, value.max(), value.sum()) == ("vector", (768,), 1, 1)
        assert "8 x 8 x 12 symbols as numbers; env.kinds.image says otherwise" in words
    spec, value, _ = seen(space, board, kinds={"image": "one_hot"})
    assert (spec.kind, spec.sizes, value.sum()) == ("discrete", (2,) * 768, 768)
    spec, value, _ = seen(space, board, kinds={"image": "image"})
    assert (spec.shape, value.max()) == ((32, 32, 12), 255)


def test_bytes_are_symbols_where_a_setting_says_so() -> None:
    grid = np.ones((16, 16, 3), np.uint8)
    grid[3, 5] = (10, 0, 2)
    space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    spec, value, _ = seen(space, grid, pixels=False)
    assert (spec.kind, spec.shape, value.max()) == ("vector", (768,), 10)
    asked = {"kinds": {"image": "one_hot"}, "ranges": {"image": [0, 10]}}
    spec, value, _ = seen(space, grid, **asked)
    assert (spec.sizes, value.sum()) == ((11,) * 768, 768)
    with pytest.raises(EnvError, match=r"196,608 entries.*ranges.image=\[0,10\]"):
        seen(space, grid, kinds={"image": "one_hot"})
    with pytest.raises(EnvError, match=r"holds the symbol 10, outside of \[0.*, 9"):
        seen(space, grid, kinds={"image": "one_hot"}, ranges={"image": [0, 9]})


@pytest.mark.parametrize("vector", ["sync", "async"])
def test_symbols_that_are_declared_as_bytes_are_asked_about_once(vector: str) -> None:
    grid = np.ones((16, 16, 3), np.uint8)
    grid[3, 5] = (10, 0, 2)
    kwargs = {"observation_space": spaces.Box(0, 255, grid.shape, np.uint8), "observation": grid}
    config = EnvConfig("tests.envs_for_tests:OddSpacesEnv", kwargs=kwargs, vector=vector)
    envs = make_vector(config, 1)
    with pytest.raises(EnvError, match=r"^observation is .* holds only 0 to 10: .*env.kinds.image"):
        envs.reset()
    envs.close()
    if vector == "sync":
        for clear in (np.arange(768).astype(np.uint8).reshape(grid.shape), np.ones_like(grid)):
            assert seen(kwargs["observation_space"], clear)[0].kind == "image"  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_pictures_that_hardly_use_their_range_are_asked_about(dtype: Any) -> None:
    """Floats of [0, 1] declared as [0, 255], a depth in millimetres: nothing would be seen."""
    space = spaces.Box(0, 255 if dtype == np.float32 else 65535, (64, 64, 3), dtype)
    picture = np.zeros(space.shape, dtype)
    picture[:9] = 1 if dtype == np.float32 else 900
    most = int(picture.max())
    with pytest.raises(EnvError, match=rf"holds only 0 to {most}: .*ranges.image=\[0,{most}\]"):
        seen(space, picture)
    assert seen(space, picture, ranges={"image": [0, most]})[1].max() == 255
    said = [0, int(space.high.max())]
    assert seen(space, picture, ranges={"image": said})[1].max() < 5  # somebody wants it so
    dark = np.zeros_like(picture)
    assert seen(space, dark)[1].max() == 0  # one value alone says nothing


def test_boards_of_classes_are_not_replaced_by_a_rendering() -> None:
    board = np.zeros((8, 8, 12), np.int8)
    board[2, 3, 4] = 1
    spec, value, words = seen(spaces.MultiBinary([8, 8, 12]), board)
    assert (spec.sizes, value.sum()) == ((2,) * 768, 768)
    assert "one-hot, classes 768 times 2" in words


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        (spaces.Box(0, 255, (16, 84, 12), np.uint8), {}, "kinds.image=channels_first or channels_"),
        (spaces.Box(-np.inf, np.inf, (64, 64, 3)), {}, r"black and white.*ranges.image=\[0,1\]"),
        (spaces.Box(0, 1, (64, 64, 3)), {"pixels": False}, "Nothing to observe.*kinds.image"),
        (spaces.Box(0, 1, (64, 64, 3)), {"keys": ["state"]}, "keys names 'state'"),
        (spaces.Box(0, 1, (64, 64, 3)), {"pixels": False, "keys": ["image"]}, "pixels is false"),
        (spaces.Box(0, 1, (9, 9)), {"kinds": {"imagf": "vector"}}, "Did you mean 'image'"),
        (spaces.Box(0, 1, (9, 9)), {"kinds": {"image": "one_hot"}}, "not whole numbers"),
        (spaces.Box(0, 1, (9, 9)), {"kinds": {"image": "hot"}}, "Known: .*one_hot"),
        (spaces.Box(0, 1, (9, 9)), {"ranges": {"image": [1, 1]}}, "low < high"),
        (spaces.Box(0, 1, (64, 64, 3)), {"ranges": {"image": [2, 3]}}, "outside of its range"),
    ],
)
def test_what_is_not_understood_is_asked_about(
    space: spaces.Box, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(EnvError, match=message):
        seen(space, np.ones(space.shape, space.dtype), **settings)


def test_a_named_key_is_kept_beside_the_rendered_frame() -> None:
    env = make_env(EnvConfig("Pendulum-v1", keys=["state"]))
    assert sorted(env_spec(env).obs) == ["image", "state"]
    assert notes(env) == {"image": "rendered"}
    assert "state" in notes(make_env(EnvConfig("Pendulum-v1")))  # left out, and said
