"""The rewards of the worked example: they say of pictures what the physics says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.envs import EnvConfig, RewardFunction, make_env

FILE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "pendulum_rewards.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("pendulum_rewards", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def play(steps: int) -> list[tuple[dict[str, Any], dict[str, Any], float]]:
    """(observation, next observation, speed) of random play from pictures, the state recorded."""
    config = EnvConfig("Pendulum-v1", image_size=[32, 32], action_repeat=2, record=["state"])
    env = make_env(config, seed=1)
    obs, _ = env.reset()
    found = []
    for _ in range(steps):
        after, *_ = env.step(env.action_space.sample())
        found.append((obs, after, float(after["state"][2])))
        obs = after
    return found


def test_pictures_tell_angle_and_speed(example: Any) -> None:
    for before, after, now in play(60):
        seen = {"image": after["image"]}
        off = example.angle(seen) - example.angle(after)
        assert abs((off + np.pi) % (2 * np.pi) - np.pi) < 0.02
        pictures = example.speed({"image": before["image"]}, seen)
        assert abs(pictures - example.speed(before, after)) < 0.3
        assert abs(pictures - now) < 1.5  # the mean of a tenth of a second, in which it changes


def rod(angle: float) -> dict[str, np.ndarray]:
    return {"state": np.array([np.cos(angle), np.sin(angle), 0.0])}


def test_hang_and_spin_by_hand(example: Any) -> None:
    assert example.hang(rod(np.pi), 0, rod(np.pi), {}) == pytest.approx(0, abs=1e-9)
    assert example.hang(rod(0.0), 0, rod(0.0), {}) == pytest.approx(-(np.pi**2))
    assert example.spin(rod(1.0), 0, rod(0.4), {}) == pytest.approx(0, abs=1e-9)  # -6 rad/s
    assert example.spin(rod(1.0), 0, rod(1.0), {}) == pytest.approx(-1)
    assert example.spin(rod(1.0), 0, rod(1.6), {}) == pytest.approx(-4)
    across = example.spin(rod(-np.pi + 0.3), 0, rod(np.pi - 0.3), {})  # through the bottom
    assert across == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["hang", "spin"])
def test_they_can_be_a_tasks_reward(name: str) -> None:
    assert RewardFunction(f"{FILE}:{name}").vectorised is False
    config = EnvConfig("Pendulum-v1", image_size=[32, 32], action_repeat=2, reward=f"{FILE}:{name}")
    env = make_env(config, seed=0)
    env.reset()
    assert -14 < env.step(np.zeros(1, np.float32))[1] <= 0
