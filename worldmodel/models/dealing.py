"""Which opinion answers which row: as many rows for each, as far as they go.

    kept     a row keeps the opinion that it was dealt first (TSinf): by turns, 0 1 2 0 1 2 ...
    fresh    every call deals anew (TS1): each block of K rows has one of every opinion, in an order
             that is drawn, so that particles of a candidate that lie side by side have them all

ask: what K opinions say of K groups of rows, [K, N, in] -> `Outcome` [K, N, ...].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.models.predictors import Outcome

Ask = Callable[[Tensor], Outcome]


def kept_opinions(x: Tensor, member: Tensor, k: int, ask: Ask) -> tuple[Outcome, Tensor]:
    """Answers [B, ...] to x [B, in] of the opinions member [B], and those; -1 is dealt one."""
    turn = (torch.arange(len(x), device=x.device) % k).to(member.dtype)
    member = torch.where(member < 0, turn, member)
    if len(x) % k or not torch.equal(member, turn):
        return by_member(x, member, k, ask), member
    found = ask(x.view(-1, k, x.shape[-1]).transpose(0, 1))
    return Outcome(*(part.transpose(0, 1).flatten(0, 1) for part in found)), member


def fresh_opinions(x: Tensor, k: int, ask: Ask) -> Outcome:
    """Answers [B, ...] to x [B, in], of opinions drawn with torch's generator."""
    count = len(x)
    order = torch.rand(-(-count // k), k, device=x.device).argsort(1)
    if count % k:
        return by_member(x, order.flatten()[:count], k, ask)
    rows = torch.arange(count, device=x.device).view(-1, k).gather(1, order)
    found = ask(x[rows].transpose(0, 1))
    back = rows.flatten().argsort()
    return Outcome(*(part.transpose(0, 1).flatten(0, 1)[back] for part in found))


def by_member(x: Tensor, member: Tensor, k: int, ask: Ask) -> Outcome:
    """Answers [B, ...] to x [B, in] of the opinions member [B], however they are spread."""
    count = len(x)
    if k == 1:
        return Outcome(*(part[0] for part in ask(x.unsqueeze(0))))
    order = member.argsort(stable=True)
    sizes = torch.bincount(member.long(), minlength=k)
    most = int(sizes.max())
    place = torch.arange(most, device=x.device).expand(k, -1)
    there = place < sizes.unsqueeze(1)  # [K, most]; the last places of some are empty
    start = (sizes.cumsum(0) - sizes).unsqueeze(1)
    row = order[(start + place).clamp_max(count - 1)]
    outcome, where = ask(x[row]), row[there]

    def back(part: Tensor) -> Tensor:
        out = part.new_empty(count, *part.shape[2:])
        out[where] = part[there]
        return out

    return Outcome(*map(back, outcome))
