"""How states are stored beside the rows of a replay: in few bytes, `deter` as float16 and `stoch`
as the class of every group, or as float16 where it is real-valued."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worldmodel.rssm.core import RSSM
from worldmodel.types import Column, LatentState


def columns(core: RSSM) -> dict[str, Column]:
    """The columns of one state: deter [D] and stoch [S]."""
    if core.gaussian:
        stoch = Column((core.groups,), "float16")
    else:
        dtype = "uint8" if core.classes <= 256 else "int32"
        stoch = Column((core.groups,), dtype, below=core.classes)
    return {"deter": Column((core.deter,), "float16"), "stoch": stoch}


def pack(core: RSSM, state: LatentState) -> dict[str, Tensor]:
    """States [..., D] and [..., S, K] as values of the columns. Reads no numbers: a GPU goes on;
    what does not fit float16 becomes infinite, which replay refuses."""
    if core.gaussian:
        stoch = state.stoch.squeeze(-1).half()
    else:
        stoch = state.stoch.argmax(-1).to(torch.uint8 if core.classes <= 256 else torch.int32)
    return {"deter": state.deter.half(), "stoch": stoch}


def unpack(core: RSSM, values: Mapping[str, Tensor]) -> LatentState:
    """The states, float32, that values of the columns hold."""
    stoch = values["stoch"]
    if core.gaussian:
        return LatentState(values["deter"].float(), stoch.float().unsqueeze(-1))
    classes = torch.arange(core.classes, device=stoch.device)
    return LatentState(values["deter"].float(), (stoch.unsqueeze(-1) == classes).float())
