"""What the unrolled model shall say, from rows t ... t + T - 1 of replay.

    k        0      1  ...  L      L + 1 ...        L: the episode's last row, or the window's
    row      t     t+1                              (another episode, or not there)
    value   z_0    z_1     z_L     0                where it ended (terminal): absorbing, worth 0;
    reward   -     r_1     r_L     0                where it was cut off: nothing is asked of it
    policy  p_0    p_1     p_L     -                none at the end

    z_k = r_{k+1} + g r_{k+2} + ... + g^{e-k} V_e,   e = min(k + n, L),   V_e = 0 at an end

g is negative where two players move in turn: values and rewards are those of who moves.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.config import ConfigError
from worldmodel.distributions import Support
from worldmodel.types import PLAYER_KEY, Batch


class Window(NamedTuple):
    """Of each sequence [B]: its episode's last row within it, and whether it ended there."""

    last: Tensor
    ended: Tensor


class Targets(NamedTuple):
    """[B, K + 1] each. value: z. reward: of arriving at k. prefix: the sum of rewards since its
    last reset. cont: 1 where the episode goes on. learned: where value, reward and cont count.
    decides: where the policy counts, and an observation was made."""

    value: Tensor
    reward: Tensor
    prefix: Tensor
    cont: Tensor
    learned: Tensor
    decides: Tensor


def window(batch: Batch) -> Window:
    """Where the episode of each first row leaves the window."""
    same = batch.is_first[:, 1:].long().cumsum(1) == 0
    last = same.sum(1)
    return Window(last, batch.is_terminal.gather(1, last[:, None]).squeeze(1))


def check_turns(batch: Batch) -> None:
    """ConfigError where two players are to move in turn, and one of them moves twice in a row."""
    player = batch.obs.get(PLAYER_KEY)
    if player is None:
        return
    again = (player[:, 1:] == player[:, :-1]).all(-1)
    if (again & ~batch.is_first[:, 1:] & ~batch.is_terminal[:, 1:]).any():
        raise ConfigError(
            f"'{PLAYER_KEY}' says that two players move in turn, but here one of them moves twice "
            "in a row, which this agent would learn with wrong signs. Where the environment "
            "answers itself (env.kwargs.opponent=...), set env.kwargs.alternates=false."
        )


def greatest(support: Support) -> float:
    """The most that categories can tell."""
    return float(support.back(torch.tensor(support.limit)))


def warn_of(outside: Tensor, support: Support) -> bool:
    """Warn where more than a hundredth of the values is more than the categories can tell; whether
    that was so."""
    if outside < 0.01:
        return False
    warnings.warn(
        f"{float(outside):.0%} of the values to be learned lie beyond {greatest(support):,.0f}, "
        f"the most that agent.model.support={support.limit:g} can tell, and count as that. Set it "
        "to the square root of the greatest return, and agent.model.bins to about twice as many.",
        stacklevel=3,
    )
    return True


def bootstraps(found: Window, unroll: int, steps: Tensor) -> Tensor:
    """e, the rows whose values are asked [B, K + 1]; steps: n [B]."""
    k = torch.arange(unroll + 1, device=steps.device)
    return torch.minimum(k + steps[:, None], found.last[:, None]).clamp_min(0)


def make_targets(
    batch: Batch,
    found: Window,
    rows: Tensor,
    values: Tensor,
    discount: float,
    prefix_steps: int,
) -> Targets:
    """rows: of `bootstraps`; values [B, K + 1]: of them."""
    unroll = rows.shape[1] - 1
    k = torch.arange(unroll + 1, device=rows.device)
    t = torch.arange(batch.shape[1], device=rows.device)
    inside = (t <= found.last[:, None]) & (t > 0)
    paid = torch.where(inside, batch.reward, 0.0).double()
    powers = float(discount) ** t.double()
    sums = (powers * paid).cumsum(1)  # g r_1 + g^2 r_2 + ...
    here, last = k <= found.last[:, None], k == found.last[:, None]
    start = torch.minimum(k.expand_as(rows), found.last[:, None])
    ended_at = (rows == found.last[:, None]) & found.ended[:, None]
    told = torch.where(ended_at, 0.0, values.double())
    gathered = sums.gather(1, rows) - sums.gather(1, start)
    z = gathered / powers[k] / discount + discount ** (rows - start).double() * told
    ended = found.ended[:, None]
    reward = paid[:, : unroll + 1].float()
    prefix = reward.clone()
    for i in range(2, unroll + 1):
        if (i - 1) % prefix_steps:
            prefix[:, i] += prefix[:, i - 1]
    return Targets(
        torch.where(here, z, 0.0).float(),
        reward,
        prefix,
        (here & ~(last & ended)).float(),
        here | ended,
        here & ~(last & ended),
    )
