"""Two rewards for Pendulum-v1 that it does not have, from its pictures or from its state.

Use them with scripts/fit_reward.py (docs/REWARDS.md):

    reward=docs/examples/pendulum_rewards.py:hang    hang still at the bottom
    reward=docs/examples/pendulum_rewards.py:spin    spin clockwise at 6 rad/s

The angle is 0 upright and grows counter-clockwise, as gymnasium has it. Where the run records the
state ("state" = cos, sin, speed; env.record=[state]), it is taken from there; otherwise it is read
off the picture: on 32x32 pixels to about 0.003 rad.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

STEP_SECONDS = 0.1  # of one agent step: 0.05 s of Pendulum times the default action repeat of 2
SPIN = -6.0  # rad/s; clockwise is negative


def angle(observation: Mapping[str, np.ndarray]) -> float:
    """The rod's angle in rad, from -pi to pi."""
    if "state" in observation:
        return float(np.arctan2(observation["state"][1], observation["state"][0]))
    image = observation["image"].astype(np.float32) / 255.0
    # The rod alone is red: the background is white, axle and torque arrow are grey.
    red = np.clip(image[..., 0] - 0.5 * (image[..., 1] + image[..., 2]), 0.0, None)  # [H, W]
    middle = (np.array(red.shape) - 1) / 2
    down, right = (np.indices(red.shape) - middle[:, None, None]).reshape(2, -1) @ red.reshape(-1)
    return float(np.arctan2(-right, -down))


def speed(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> float:
    """Mean angular speed between two observations, rad/s; below pi / STEP_SECONDS = 31."""
    turned = angle(after) - angle(before)
    return float((turned + np.pi) % (2 * np.pi) - np.pi) / STEP_SECONDS


def hang(
    observation: Mapping[str, np.ndarray],
    action: Any,
    next_observation: Mapping[str, np.ndarray],
    info: Mapping[str, Any],
) -> float:
    """0 hanging still at the bottom, less with distance and speed: Pendulum's cost, mirrored."""
    off = np.pi - abs(angle(next_observation))
    return -float(off**2 + 0.1 * speed(observation, next_observation) ** 2)


def spin(
    observation: Mapping[str, np.ndarray],
    action: Any,
    next_observation: Mapping[str, np.ndarray],
    info: Mapping[str, Any],
) -> float:
    """0 at the wanted speed, -1 standing still, -4 at the same speed the other way."""
    return -(((speed(observation, next_observation) - SPIN) / SPIN) ** 2)
