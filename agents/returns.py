"""Lambda-returns, over imagined and over recorded steps."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_return(reward: Tensor, cont: Tensor, value: Tensor, lam: float) -> Tensor:
    """Lambda-returns of imagined steps (DreamerV3, eq. 7).

        state    s_0      s_1     ...   s_H          value, reward, cont: [..., H+1]
        return   R_0      R_1     ...                result: [..., H]

    R_t = r_{t+1} + c_{t+1} ((1 - lam) V_{t+1} + lam R_{t+1}), R_H = V_H. reward[t] and cont[t]
    belong to arriving in s_t; cont carries the discount.
    """
    _same_shape(reward=reward, cont=cont, value=value)
    base = reward + cont * (1.0 - lam) * value
    decay = cont * lam
    returns = [value[..., -1]]
    for t in range(value.shape[-1] - 1, 0, -1):
        returns.append(base[..., t] + decay[..., t] * returns[-1])
    return torch.stack(returns[:0:-1], -1)


def replay_return(
    reward: Tensor,
    is_last: Tensor,
    is_terminal: Tensor,
    bootstrap: Tensor,
    discount: float,
    lam: float,
) -> Tensor:
    """Lambda-returns over recorded rewards [B, T] -> [B, T-1], bootstrapped at every step with
    `bootstrap` [B, T] (the imagined return of each state), at episode ends with it alone."""
    _same_shape(reward=reward, is_last=is_last, is_terminal=is_terminal, bootstrap=bootstrap)
    live = (~is_terminal).to(reward.dtype) * discount
    through = (~is_last).to(reward.dtype) * lam  # no return flows across an episode's end
    base = reward + (1.0 - through) * live * bootstrap
    decay = live * through
    returns = [bootstrap[:, -1]]
    for t in range(reward.shape[1] - 1, 0, -1):
        returns.append(base[:, t] + decay[:, t] * returns[-1])
    return torch.stack(returns[:0:-1], 1)


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"All inputs must have one shape, got {shapes}.")
