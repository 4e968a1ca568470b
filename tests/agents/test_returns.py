"""Lambda-returns by hand, and their limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.returns import lambda_return, replay_return


def draws(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """reward, cont and value, float64."""
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(*shape, generator=generator, dtype=torch.float64)
    cont = torch.rand(*shape, generator=generator, dtype=torch.float64)
    value = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return reward, cont, value


# Imagined steps


def test_lambda_return_by_hand() -> None:
    # H = 3, lam 0.5; what belongs to arriving in the first state (100, 0.1) counts for nothing.
    reward = torch.tensor([100.0, 1.0, 2.0, 3.0])
    cont = torch.tensor([0.1, 0.5, 1.0, 0.8])
    value = torch.tensor([100.0, 10.0, 20.0, 30.0])
    # R_2 = 3 + 0.8 * 30 = 27
    # R_1 = 2 + 1.0 * (0.5 * 20 + 0.5 * 27) = 25.5
    # R_0 = 1 + 0.5 * (0.5 * 10 + 0.5 * 25.5) = 9.875
    result = lambda_return(reward, cont, value, 0.5)
    torch.testing.assert_close(result, torch.tensor([9.875, 25.5, 27.0]))


def test_lambda_zero_is_the_one_step_return() -> None:
    reward, cont, value = draws(5, 8)
    expected = reward[:, 1:] + cont[:, 1:] * value[:, 1:]
    torch.testing.assert_close(lambda_return(reward, cont, value, 0.0), expected)


def test_lambda_one_is_the_discounted_sum_and_the_last_value() -> None:
    reward, cont, value = (x.numpy() for x in draws(8))
    expected = []
    for t in range(7):
        total, weight = 0.0, 1.0
        for later in range(t + 1, 8):
            total += weight * reward[later]
            weight *= cont[later]
        expected.append(total + weight * value[7])
    result = lambda_return(*(torch.tensor(x) for x in (reward, cont, value)), 1.0)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)


def test_nothing_flows_across_a_continue_of_zero() -> None:
    reward, cont, value = draws(2, 6)
    cont[:, 3] = 0.0
    before = lambda_return(reward, cont, value, 0.9)
    assert torch.equal(before[:, 2], reward[:, 3])
    for x in (reward, cont, value):
        x[:, 4:] += 50.0
    value[:, 3] += 50.0
    after = lambda_return(reward, cont, value, 0.9)
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).all()


def test_a_true_value_function_is_a_fixed_point_for_every_lambda() -> None:
    reward, cont, _ = draws(3, 9)
    value = torch.zeros_like(reward)
    value[:, 8] = 2.0
    for t in range(7, -1, -1):
        value[:, t] = reward[:, t + 1] + cont[:, t + 1] * value[:, t + 1]
    for lam in (0.0, 0.3, 0.95, 1.0):
        result = lambda_return(reward, cont, value, lam)
        torch.testing.assert_close(result, value[:, :-1])


# Recorded steps


def flags(*at: int, length: int = 5) -> Tensor:
    out = torch.zeros(1, length, dtype=torch.bool)
    out[0, list(at)] = True
    return out


REWARD = torch.tensor([[50.0, 1.0, 2.0, 4.0, 8.0]])
BOOT = torch.tensor([[70.0, 10.0, 20.0, 30.0, 40.0]])


def test_replay_return_by_hand() -> None:
    # discount 0.5, lam 0.5: R_t = r_{t+1} + 0.5 * (0.5 * boot_{t+1} + 0.5 * R_{t+1})
    # R_3 = 8 + 20 = 28; R_2 = 4 + 7.5 + 7 = 18.5; R_1 = 2 + 5 + 4.625; R_0 = 1 + 2.5 + 2.90625
    result = replay_return(REWARD, flags(), flags(), BOOT, 0.5, 0.5)
    torch.testing.assert_close(result, torch.tensor([[6.40625, 11.625, 18.5, 28.0]]))


def test_replay_return_ends_at_a_terminal_row() -> None:
    # Row 2 is terminal: R_1 is its reward alone. Row 3 is the next episode's first.
    result = replay_return(REWARD, flags(2), flags(2), BOOT, 0.5, 0.5)
    # R_0 = 1 + 0.5 * (0.5 * 10 + 0.5 * 2)
    torch.testing.assert_close(result, torch.tensor([[4.0, 2.0, 18.5, 28.0]]))


def test_replay_return_bootstraps_at_a_truncated_row() -> None:
    # Row 2 is cut off: its own value stands in for all that would have come.
    result = replay_return(REWARD, flags(2), flags(), BOOT, 0.5, 0.5)
    # R_1 = 2 + 0.5 * 20 = 12; R_0 = 1 + 0.5 * (0.5 * 10 + 0.5 * 12)
    torch.testing.assert_close(result, torch.tensor([[6.5, 12.0, 18.5, 28.0]]))


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_flows_across_an_episode_end(terminal: bool) -> None:
    reward, _, value = draws(1, 5)
    last, end = flags(2), flags(2) if terminal else flags()
    before = replay_return(reward, last, end, value, 0.9, 0.95)
    after = replay_return(
        reward + 50.0 * (torch.arange(5) > 2), last, end, value + 50.0 * (torch.arange(5) > 2),
        0.9, 0.95,
    )  # fmt: skip
    assert torch.equal(before[:, :2], after[:, :2])


def test_replay_return_with_live_rows_equals_the_imagined_one() -> None:
    reward, _, value = draws(4, 7)
    never = torch.zeros(4, 7, dtype=torch.bool)
    imagined = lambda_return(reward, torch.full_like(reward, 0.97), value, 0.95)
    torch.testing.assert_close(replay_return(reward, never, never, value, 0.97, 0.95), imagined)


def test_shapes_must_agree() -> None:
    x = torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"'value': \(2, 4\)"):
        lambda_return(x, x, x[:, 1:], 0.95)
    with pytest.raises(ValueError, match=r"'bootstrap': \(2, 1\)"):
        replay_return(x, x.bool(), x.bool(), x[:, :1], 0.99, 0.95)
