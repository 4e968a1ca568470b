"""The families: dm_control, Atari and the choice of an OpenGL."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.envs import EnvConfig, EnvError, env_spec, make_env, make_vector, rendering
from worldmodel.envs.dmc import SHADOW


def dmc(task: str = "walker_walk", **kwargs: Any) -> EnvConfig:
    return EnvConfig(task, suite="dmc", **kwargs)


def atari(game: str = "pong", **kwargs: Any) -> EnvConfig:
    pytest.importorskip("ale_py")
    return EnvConfig(game, suite="atari", action_repeat=kwargs.pop("action_repeat", 4), **kwargs)


# dm_control


def test_dmc_pixels() -> None:
    env = make_env(dmc(action_repeat=2), seed=0)
    assert env_spec(env).action.sizes == (6,)
    assert list(env_spec(env).obs) == ["image"]
    first = env.reset()[0]["image"]
    for _ in range(5):
        later = env.step(env.action_space.sample())[0]["image"]
    assert first.shape == later.shape == (64, 64, 3)
    assert first.std() > 10  # something is drawn
    assert (first != later).any()
    env.close()


def test_dmc_pixels_with_state_cropped_and_fast() -> None:
    env = make_env(dmc("ball_in_cup_catch", state=True, fast_render=True, crop=[0, 16, 8, 8]))
    obs, _ = env.reset(seed=0)
    assert obs["image"].shape == (64, 64, 3)
    assert env_spec(env).keys("vector") == ["position", "velocity"]
    env.close()


def test_a_small_shadow_map_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []
    for texels in (SHADOW, 1000):
        monkeypatch.setattr("worldmodel.envs.dmc.SHADOW", texels)
        env = make_env(dmc(image_size=[32, 32]), seed=0)
        pictures.append(env.reset()[0]["image"].astype(float))
        assert env.unwrapped._env.physics.model.vis.quality.shadowsize == min(2048, 32 * texels)
        env.close()
    assert abs(pictures[0] - pictures[1]).mean() < 0.2  # of 255


def test_samples_are_averaged_and_so_edges_are_smooth() -> None:
    def first(size: int, **kwargs: Any) -> np.ndarray:
        env = make_env(
            dmc("cartpole_swingup", fast_render=True, image_size=[size, size], **kwargs), seed=0
        )
        image = env.reset()[0]["image"].astype(float)
        env.close()
        return image

    large = first(128).reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert abs(first(32, supersample=4) - large).max() <= 1  # of rounding
    assert abs(first(32) - large).max() > 50  # a pole that is half as wide as a pixel
    cropped = first(32, supersample=4, crop=[8, 0, 4, 4])
    assert cropped.shape == (32, 32, 3)
    for given in ({"supersample": 4}, {"fast_render": True}):
        with pytest.raises(EnvError, match=f"{next(iter(given))} is .*, but only dmc draws"):
            EnvConfig("Pendulum-v1", **given)


def test_dmc_state_reproduces_and_is_cut_off_after_1000_steps() -> None:
    env = make_env(dmc("point_mass_easy", pixels=False, action_repeat=10))
    assert env_spec(env).keys("vector") == ["position", "velocity"]
    first, second, third = (env.reset(seed=s)[0]["position"].tolist() for s in (1, 1, 2))
    assert first == second != third
    flags = [env.step(np.zeros(2))[2:4] for _ in range(100)]
    assert flags == [(False, False)] * 99 + [(False, True)]


def test_dmc_terminates_where_the_last_discount_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(dmc("cartpole_swingup", pixels=False))
    env.reset(seed=0)
    task = env.unwrapped._env.task  # type: ignore[attr-defined]
    monkeypatch.setattr(task, "get_termination", lambda physics: 0.0)
    assert env.step(np.zeros(1))[2:4] == (True, False)


def test_dmc_time_limit_replaces_that_of_the_task() -> None:
    env = make_env(dmc("cartpole_swingup", pixels=False, time_limit=1001))
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(1001)] == [False] * 1000 + [True]


def test_dmc_draws_in_processes() -> None:
    def run(vector: str) -> np.ndarray:
        env = make_vector(dmc(vector=vector, fast_render=True, image_size=[32, 32]), 2, seed=0)
        env.reset()
        image = env.step(np.zeros((2, 6), np.float32))[0]["image"]
        env.close()
        return image

    np.testing.assert_array_equal(run("sync"), run("async"))


def test_dmc_unknown_camera_is_an_error() -> None:
    with pytest.raises(EnvError, match="camera is 9"):
        make_env(dmc(camera=9))


# OpenGL


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    clean = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    paths = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_state_only_needs_no_opengl() -> None:
    code = (
        "from worldmodel.envs import *\n"
        "from worldmodel.envs import rendering\n"
        "rendering._try = lambda name: 'broken'\n"
        "env = make_env(EnvConfig('point_mass_easy', suite='dmc', pixels=False))\n"
        "print(env.reset()[0]['position'].shape)\n"
    )
    result = run_python(code)
    assert result.stdout.strip() == "(2,)", result.stderr


@pytest.mark.parametrize("env", ["'cartpole_balance', suite='dmc'", "'InvertedPendulum-v5'"])
@pytest.mark.parametrize("before", ["", "import glfw, OpenGL", "from dm_control import suite"])
def test_the_compiler_is_loaded_before_the_llvm_of_opengl_or_not_at_all(
    tmp_path: Path, before: str, env: str
) -> None:
    """Each has an LLVM, and the process dies where the compiler's comes second."""
    package = tmp_path / "triton" / "_C"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    there = "'libLLVM' in open('/proc/self/maps').read()"
    (package / "libtriton.py").write_text(f"print('loaded', {there})\n")
    result = run_python(
        "import os, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "os.environ['MUJOCO_GL'] = 'egl'\n"
        f"{before}\n"
        f"print('before', {there})\n"
        "from worldmodel.envs import *\n"
        f"make_env(EnvConfig({env}, image_size=[32, 32])).reset()\n"
        "assert 'OpenGL' in sys.modules\n"
    )
    assert result.returncode == 0, result.stderr
    expected = ["before False", "loaded False"]
    if before.endswith("suite"):  # which makes a context at once: software OpenGL's or not
        assert result.stdout.splitlines() in (["before True"], expected)
    else:
        assert result.stdout.splitlines() == expected


def test_the_environment_processes_start_without_torch() -> None:
    result = run_python("import sys, worldmodel.envs.observe; print('torch' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr


@pytest.fixture
def fresh_choice(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No choice made so far in this process, and none kept afterwards."""
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "")
    monkeypatch.delitem(sys.modules, "dm_control._render", raising=False)
    rendering.choose_backend.cache_clear()
    yield monkeypatch
    rendering.choose_backend.cache_clear()


def test_osmesa_follows_egl_and_children_inherit(fresh_choice: pytest.MonkeyPatch) -> None:
    import os

    fresh_choice.setattr(rendering, "_try", lambda name: None if name == "osmesa" else "no")
    assert rendering.choose_backend() == "osmesa"
    assert os.environ["MUJOCO_GL"] == os.environ["PYOPENGL_PLATFORM"] == "osmesa"


def test_no_opengl_names_the_packages(fresh_choice: pytest.MonkeyPatch) -> None:
    fresh_choice.setattr(rendering, "_try", lambda name: "no library")
    with pytest.raises(EnvError, match=r"libegl1.*libosmesa6"):
        rendering.choose_backend()


def test_a_given_backend_is_kept(fresh_choice: pytest.MonkeyPatch) -> None:
    fresh_choice.setattr(rendering, "_try", lambda name: pytest.fail("probed"))
    fresh_choice.setenv("MUJOCO_GL", "glfw")
    assert rendering.choose_backend() == "glfw"


def test_drawing_that_is_switched_off_is_an_error(fresh_choice: pytest.MonkeyPatch) -> None:
    fresh_choice.setenv("MUJOCO_GL", "disable")
    with pytest.raises(EnvError, match="MUJOCO_GL is 'disable'"):
        rendering.choose_backend()


def test_an_import_that_chose_before_us_is_an_error_where_it_cannot_draw(
    fresh_choice: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    fresh_choice.setitem(sys.modules, "dm_control._render", SimpleNamespace(BACKEND="glfw"))
    fresh_choice.delenv("DISPLAY", raising=False)
    fresh_choice.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(EnvError, match="imported before an OpenGL was chosen"):
        rendering.choose_backend()


# Atari


def test_atari_runs_and_reproduces() -> None:
    def run() -> list[Any]:
        env = make_env(atari(), seed=4)
        assert env_spec(env).action.sizes == (6,)
        rows = [env.reset()[0]["image"]]
        for i in range(60):
            obs, reward, terminated, truncated, _ = env.step(i % 6)
            assert not terminated
            assert not truncated
            rows += [obs["image"], np.array(reward)]
        return rows

    one, two = run(), run()
    assert one[0].shape == (64, 64, 3)
    assert (one[0] != one[-2]).any()
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_atari_pools_the_last_two_frames() -> None:
    from worldmodel.envs.config import AtariConfig

    def last(repeat: int, pool: bool, steps: int) -> np.ndarray:
        options = AtariConfig(noops=0, max_pool=pool)
        env = make_env(atari(action_repeat=repeat, atari=options))
        env.reset(seed=0)
        for _ in range(steps):
            env.step(0)
        frame = env.render()
        assert isinstance(frame, np.ndarray)
        return np.array(frame)

    # Frames 79 and 80 of the game, one by one, against the pooled frame of 20 steps of 4.
    expected = np.maximum(last(1, False, 79), last(1, False, 80))
    np.testing.assert_array_equal(last(4, True, 20), expected)
    assert (last(4, False, 20) != expected).any()


def test_atari_life_loss_ends_the_episode_but_not_the_game() -> None:
    from worldmodel.envs.config import AtariConfig

    config = atari("breakout", pixels=False, atari=AtariConfig(life_loss=True, noops=0))
    env = make_env(config)
    env.reset(seed=0)
    lives = []
    for _ in range(6):
        terminated = False
        while not terminated:
            _, _, terminated, _, info = env.step(1)  # serve, never move
        lives.append(info["lives"])
        env.reset()
    assert lives == [4, 3, 2, 1, 0, 4]


def test_atari_all_actions_and_memory() -> None:
    from worldmodel.envs.config import AtariConfig

    env = make_env(atari(state=True, atari=AtariConfig(full_actions=True)))
    assert env_spec(env).action.sizes == (18,)
    assert env_spec(env).obs["ram"].shape == (128,)


def test_atari_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("ale_py"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(EnvError, match=r'pip install "worldmodel\[atari\]"'):
        make_env(EnvConfig("pong", suite="atari"))
