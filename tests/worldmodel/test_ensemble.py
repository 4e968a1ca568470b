"""The ensemble: unsure where nothing was seen, sure where there was, and a mere onlooker."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model_batches import SPECS, learners, random_batch, scramble, tiny
from worldmodel.models.ensemble import Ensemble, EnsembleConfig
from worldmodel.optim import LaProp, OptimConfig
from worldmodel.rssm import WorldModel
from worldmodel.rssm.state import LatentState

GROUPS = {"ensemble": "ensemble", "": "the rest"}


def model(**overrides: Any) -> WorldModel:
    torch.manual_seed(0)
    settings = {"ensemble": EnsembleConfig(4, units=16), "control": {"disagreement": 1.0}}
    world = WorldModel(SPECS["vector"], tiny(**settings | overrides))
    scramble(world, scale=0.1)
    return world


def test_disagreement_falls_where_there_was_data_and_stays_elsewhere() -> None:
    """One half of the states is seen, with noise in what follows; the other one never."""
    torch.manual_seed(0)
    ensemble = Ensemble(4, 1, 6, EnsembleConfig(5, units=32))
    optim = LaProp([("ensemble", ensemble)], OptimConfig(lr=2e-3, warmup=0))
    to_next = torch.randn(5, 6)

    def steps(side: float, count: int = 64) -> tuple[Tensor, Tensor]:
        feat = side * torch.rand(count, 2, 4)
        return feat, torch.rand(count, 2, 1) * 2 - 1

    (seen, a), (unseen, b) = steps(1.0), steps(-1.0)
    places = ((seen, a), (unseen, b))
    before = [ensemble.spread(*place).mean().item() for place in places]
    for _ in range(400):
        feat, action = steps(1.0)
        target = torch.cat([feat[:, :1], action[:, 1:]], -1) @ to_next
        target = torch.cat([target, target], 1) + 0.3 * torch.randn(64, 2, 6)
        optim.step(ensemble.loss(feat, target, action, torch.zeros(64, 2).bool()).mean())
    after = [ensemble.spread(*place).mean().item() for place in places]
    assert after[0] < 0.2 * before[0]  # in spite of the noise, whose mean all members learn
    assert after[1] > 5 * after[0]


def test_its_unit_is_the_disagreement_on_recorded_steps() -> None:
    ensemble = Ensemble(3, 2, 4, EnsembleConfig(3, units=8))
    feat, target, action = torch.randn(5, 3, 3), torch.randn(5, 3, 4), torch.randn(5, 3, 2)
    first = torch.zeros(5, 3).bool()
    first[2] = True  # no steps, of any size
    feat[2] *= 100
    ensemble.loss(feat, target, action, first)
    steps = ensemble.disagreement(feat[:, :-1], action[:, 1:])[[0, 1, 3, 4]]
    assert float(steps.detach().mean()) == pytest.approx(1.0)


def test_its_loss_reaches_the_ensemble_alone() -> None:
    world, batch = model(), random_batch(SPECS["vector"])
    losses = world.losses(batch).losses
    assert losses["disagreement"].shape == (3, 5)
    assert learners(losses["disagreement"].mean(), world, GROUPS) == {"ensemble"}
    others = sum(v.mean() for k, v in losses.items() if k != "disagreement")
    assert isinstance(others, Tensor)
    assert learners(others, world, GROUPS) == {"the rest"}


def test_the_loss_is_the_members_mean_error_on_arrival() -> None:
    world, batch = model(), random_batch(SPECS["vector"])
    assert world.ensemble is not None
    feat, target = torch.randn(3, 5, world.feat_size), torch.rand(3, 5, 12)
    loss = world.ensemble.loss(feat, target, batch.action, batch.is_first)
    guess = world.ensemble(feat[1, 0], batch.action[1, 1])  # what action[1] leads to from row 0
    assert guess.shape == (4, 12)
    assert loss[1, 1].item() == pytest.approx((guess - target[1, 1]).square().sum(-1).mean().item())
    assert not loss[batch.is_first].any()  # no action led there


def test_members_share_no_weight() -> None:
    ensemble = Ensemble(3, 2, 4, EnsembleConfig(3, units=8))
    feat, action = torch.randn(7, 3), torch.randn(7, 2)
    before = ensemble(feat, action)
    with torch.no_grad():
        for layer in ensemble.layers:
            layer.weight[1] += 0.5  # type: ignore[index, operator]
    after = ensemble(feat, action)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])
    assert torch.allclose(
        ensemble.spread(feat, action), after.var(1, correction=0).mean(-1), atol=1e-6
    )


def test_control_adds_disagreement_to_dreams_and_to_recorded_steps() -> None:
    world = model(control={"reward": 2.0, "disagreement": 0.5})
    assert world.ensemble is not None
    world.ensemble.typical.fill_(0.25)
    batch = random_batch(SPECS["vector"])
    with torch.no_grad():
        states = world.losses(batch).states
        world.ensemble.typical.fill_(0.25)
        now = states.map(lambda x: x[:, 0])
        torch.manual_seed(1)
        told = world.step(now, batch.action[:, 1])
        extra = 0.5 * world.ensemble.spread(now.feat, batch.action[:, 1]) / 0.25
        assert torch.allclose(told.reward, world.reward(told.state.feat) + extra)

        feat = LatentState(states.deter, states.stoch).feat
        dreamt = world.imagined_reward(feat, batch.action[:, 1:])
        assert torch.allclose(dreamt[:, 0], world.reward(feat)[:, 0])
        assert torch.allclose(dreamt[:, 1], world.reward(feat)[:, 1] + extra)

        recorded = world.recorded_reward(batch, states)
        assert torch.allclose(recorded[:, 1], 2 * batch.reward[:, 1] + extra)
        assert not recorded[batch.is_first].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ensemble": EnsembleConfig()}, "ensemble.members"),
        ({"control": {"novelty": 1.0}}, "Unknown head 'novelty'.*disagreement"),
    ],
)
def test_control_is_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model(**changes)


def test_one_member_has_nobody_to_disagree_with() -> None:
    with pytest.raises(ValueError, match="2 or more"):
        EnsembleConfig(1)


def test_a_batch_of_first_rows_leaves_the_unit_as_it_is() -> None:
    ensemble = Ensemble(3, 2, 4, EnsembleConfig(3, units=8))
    feat, target = torch.randn(2, 3, 3), torch.randn(2, 3, 4)
    loss = ensemble.loss(feat, target, torch.randn(2, 3, 2), torch.ones(2, 3).bool())
    assert not loss.any()
    assert float(ensemble.typical) == 1.0
    assert int(ensemble.count) == 0
