"""Functions that say a world's rewards and ends: what is refused at once, and what is warned of."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.agents.small_runs import filled_replay
from worldmodel.config import ConfigError
from worldmodel.models.fitting import FitConfig
from worldmodel.models.gaussian import Gaussian, GaussianConfig
from worldmodel.models.known import ends_fault, reward_fault
from worldmodel.replay import Replay
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

SPEC = EnvSpec({"v": ObsSpec("vector", (3,))}, ActionSpec("continuous", (1,)))
HERE = "tests.worldmodel.test_known"


def right(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    return action[..., 0]


def right_ends(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    return after[..., 0] > 1


def one_axis_too_many(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    return action


def no_tensor(state: Tensor, action: Tensor, after: Tensor) -> Any:
    return False


def in_numpy(state: Tensor, action: Tensor, after: Tensor) -> Any:
    return np.zeros(state.shape[:-1])


def for_another_robot(state: Tensor, action: Tensor, after: Tensor) -> Tensor:
    return state[..., 7]


def make(spec: EnvSpec = SPEC, **settings: Any) -> Gaussian:
    torch.manual_seed(0)
    small: dict[str, Any] = {"members": 2, "elites": 2, "layers": 1, "units": 8, "decay": [1e-5]}
    return Gaussian(spec, GaussianConfig(**{**small, "fit": FitConfig(epochs=1), **settings}))


def said(world: Gaussian, replay: Replay, times: int = 1) -> list[str]:
    """The warnings of some trainings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            world.fit(replay)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reward": f"{HERE}:one_axis_too_many"},
         r"agent\.model\.reward=.* gave a tensor of shape \[2, 3, 1\] and type torch\.float32\. "
         r"It must .* one of shape \[2, 3\]"),
        ({"reward": f"{HERE}:right_ends"}, r"type torch\.bool\. It must .* floating-point"),
        ({"terminal": f"{HERE}:right"}, r"type torch\.float32\. It must .*\(torch\.bool\)"),
        ({"terminal": f"{HERE}:no_tensor"}, r"agent\.model\.terminal=.* gave a bool\. It must"),
        ({"terminal": f"{HERE}:in_numpy"}, r"gave a ndarray\. It must"),
        ({"reward": f"{HERE}:for_another_robot"},
         r"agent\.model\.reward=.* raised IndexError: index 7 is out of bounds .*It must"),
        ({"terminal": "hopper"}, r"terminal=hopper is made for a state of 11 numbers, .* has 3\. "
         r"Set agent\.model\.terminal=learned"),
        ({"terminal": "humanoid"}, "a state of 45 numbers"),
        ({"reward": "swing_up"}, "a state of 4 numbers"),
        ({"terminal": "hopper", "kind": "process"}, r"this one has 3\. Name a function of your"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**settings)


def test_a_function_that_is_not_what_was_recorded_is_said_once() -> None:
    replay = filled_replay(SPEC, 40, reward=lambda action: action[:, 0], terminal=True)
    first, second = said(make(reward="pendulum", terminal="never"), replay, times=3)
    assert "agent.model.reward=pendulum is not what was recorded: its rewards of 40 tr" in first
    assert first.endswith("Set agent.model.reward=learned, or name a function of your own "
                          "(module:function).")  # fmt: skip
    assert "terminal=never is not what was recorded: of 40 transitions 40 ended" in second
    assert "of which it misses 40, and it ends 0 others. Set agent.model.terminal=l" in second


def test_nothing_is_said_where_functions_agree_or_everything_is_learned() -> None:
    replay = filled_replay(SPEC, 40, reward=lambda action: action[:, 0])
    assert said(make(reward=f"{HERE}:right"), replay) == []
    assert said(make(), replay) == []


def test_how_far_a_function_may_be_off() -> None:
    recorded = torch.linspace(-1, 1, 101)  # of deviation 0.58
    assert reward_fault(recorded + 0.05, recorded) == ""
    fault = reward_fault(recorded + 0.06, recorded)
    assert "rewards of 101 transitions are off by 0.06 on average, and by 0.06 at most" in fault
    assert fault.endswith("where the recorded ones lie between -1 and 1")
    ones = torch.ones(10)
    assert reward_fault(ones + 1e-5, ones) == ""  # rounding
    assert reward_fault(1.01 * ones, ones)
    assert reward_fault(torch.full((10,), torch.nan), ones)
    ended = torch.arange(400) % 2 == 0
    other = ended.clone()
    other[:2] ^= True
    assert ends_fault(other, ended) == ""  # two of 200
    other[2] ^= True
    assert "misses 2, and it ends 1 others" in ends_fault(other, ended)
    nothing = torch.zeros(9, dtype=torch.bool)
    assert ends_fault(nothing, nothing) == ""


def test_a_share_of_less_than_one_row_is_said() -> None:
    replay = filled_replay(SPEC, 10)
    (line,) = said(make(fit=FitConfig(holdout=0.001)), replay)
    assert line.startswith("Nothing is learned before 1,001 transitions are recorded")
    assert "agent.model.fit.holdout=0.001" in line
