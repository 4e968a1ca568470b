"""Lambda-returns, over imagined and over recorded steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def lambda_return(reward: Tensor, cont: Tensor, value: Tensor, lam: float) -> Tensor:
    """Lambda-returns of imagined steps (DreamerV3, eq. 7).

        state    s_0      s_1     ...   s_H          value, reward, cont: [..., H+1]
        return   R_0      R_1     ...                result: [..., H]

    R_t = r_{t+1} + c_{t+1} ((1 - lam) V_{t+1} + lam R_{t+1}), R_H = V_H. reward[t] and cont[t]
    belong to arriving in s_t; cont carries the discount.
    """
    _same_shape(reward=reward, cont=cont, value=value)
    base = reward + cont * (1.0 - lam) * value
    return _recur(base[..., 1:], (cont * lam)[..., 1:], value[..., -1])


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
    return _recur(base[:, 1:], (live * through)[:, 1:], bootstrap[:, -1])


def _recur(base: Tensor, decay: Tensor, last: Tensor) -> Tensor:
    """R_t = base_t + decay_t R_{t+1} along the last axis, beyond whose end is R = last [...].

    By doubling, in log2 T rounds instead of T steps: each row then says how R_t follows from the
    one 1, 2, 4, ... steps later.
    """
    out = torch.cat([base, last.unsqueeze(-1)], -1)
    decay = F.pad(decay, (0, 1))
    length, reach = out.shape[-1], 1
    while reach < length:
        out = out + decay * F.pad(out[..., reach:], (0, reach))
        decay = decay * F.pad(decay[..., reach:], (0, reach))
        reach *= 2
    return out[..., :-1]


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"All inputs must have one shape, got {shapes}.")
