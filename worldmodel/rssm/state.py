"""The state of the learned world, and how it is stored beside the rows of a replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldmodel.types import Column


class LatentState(NamedTuple):
    """deter: [..., D] deterministic, recurrent part.
    stoch: [..., S, K] sampled part; one-hot over K classes, or real with K = 1.
    """

    deter: Tensor
    stoch: Tensor

    @property
    def feat(self) -> Tensor:
        """[..., F] with F = D + S * K."""
        return torch.cat([self.deter, self.stoch.flatten(-2)], -1)

    def map(self, fn: Any) -> LatentState:
        """The same function applied to both parts (detach, flatten, index, ...)."""
        return LatentState(fn(self.deter), fn(self.stoch))


# In few bytes: `deter` as float16, and `stoch` as the class of every group, or as float16 where it
# is real-valued.


def columns_of(deter: int, groups: int, classes: int, gaussian: bool) -> dict[str, Column]:
    """The columns of one state: deter [D] and stoch [S]."""
    if gaussian:
        stoch = Column((groups,), "float16")
    else:
        stoch = Column((groups,), "uint8" if classes <= 256 else "int32", below=classes)
    return {"deter": Column((deter,), "float16"), "stoch": stoch}


def packed(state: LatentState, classes: int, gaussian: bool) -> dict[str, Tensor]:
    """States [..., D] and [..., S, K] as values of the columns. Reads no numbers: a GPU goes on;
    what does not fit float16 becomes infinite, which replay refuses."""
    if gaussian:
        stoch = state.stoch.squeeze(-1).half()
    else:
        stoch = state.stoch.argmax(-1).to(torch.uint8 if classes <= 256 else torch.int32)
    return {"deter": state.deter.half(), "stoch": stoch}


def unpacked(values: Mapping[str, Tensor], classes: int, gaussian: bool) -> LatentState:
    """The states, float32, that values of the columns hold."""
    stoch = values["stoch"]
    if gaussian:
        return LatentState(values["deter"].float(), stoch.float().unsqueeze(-1))
    every = torch.arange(classes, device=stoch.device)
    return LatentState(values["deter"].float(), (stoch.unsqueeze(-1) == every).float())
