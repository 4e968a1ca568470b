"""States of the world model as columns of a replay."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import one_hot

from tests.model_batches import SPECS, tiny
from tests.replay_rows import SPEC, add
from worldmodel.capabilities import Packs
from worldmodel.replay import Replay, ReplayConfig, RowIndex
from worldmodel.rssm import WorldModel
from worldmodel.rssm.state import LatentState


@pytest.mark.parametrize(
    ("latent", "classes"), [("gaussian", 4), *(("categorical", k) for k in (2, 256, 300))]
)
def test_states_survive_packing_and_the_replay(latent: str, classes: int) -> None:
    model = WorldModel(SPECS["vector"], tiny(latent=latent, classes=classes))
    assert isinstance(model, Packs)
    replay = Replay(SPEC, ReplayConfig(capacity=20, online=False), 1, model.columns)
    add(replay, 6, stored=False)
    core, index = model.core, RowIndex(*torch.zeros(2, 1, dtype=torch.long).numpy(), 6)
    stoch = torch.randn(1, 6, core.groups, core.classes)
    if latent == "categorical":  # the last class must fit
        stoch = one_hot(torch.full((1, 6, core.groups), classes - 1), classes).float()
    state = LatentState(torch.randn(1, 6, core.deter), stoch)
    replay.rewrite(index, model.pack(state))
    stored = model.unpack(replay.gather(index, columns=model.columns).columns)
    assert torch.equal(stored.deter, state.deter.half().float())
    assert torch.equal(stored.stoch, stoch if latent == "categorical" else stoch.half().float())
    bad = state._replace(deter=state.deter * 1e6)
    with pytest.raises(ValueError, match="'deter' has values that are not finite"):
        replay.rewrite(index, model.pack(bad))
