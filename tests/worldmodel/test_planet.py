"""PlaNet's world: its parts to the constant, and its loss by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.model_batches import check_each_action, random_batch, spec_of
from worldmodel import tree
from worldmodel.capabilities import Decodes, Expects, Features, Learns, Surprises
from worldmodel.config import ConfigError
from worldmodel.rssm.planet import PlaNet, PlaNetConfig
from worldmodel.types import Dynamics, ObsSpec

SPEC = spec_of(camera=ObsSpec("image", (64, 64, 3)))
SMALL = PlaNetConfig(deter=6, stoch=3, hidden=5, depth=1, reward_layers=1, reward_units=4)
close = torch.testing.assert_close


def make(config: PlaNetConfig = SMALL) -> PlaNet:
    torch.manual_seed(0)
    return PlaNet(SPEC, config)


def test_sizes_are_the_paper_s() -> None:
    world = make(PlaNetConfig())
    assert world.embed == 1024
    obs = {"camera": torch.zeros(2, 64, 64, 3, dtype=torch.uint8)}
    assert world.encode(world.pixels(obs)).shape == (2, 1024)
    assert world.decode(world.initial(2))["camera"].shape == (2, 64, 64, 3)
    layers = [tuple(x.shape) for x in world.parameters()]
    for shape in [(32, 3, 4, 4), (256, 128, 4, 4), (600, 200), (1024, 230), (1024, 128, 5, 5),
                  (32, 3, 6, 6), (300, 230), (60, 200)]:  # fmt: skip
        assert shape in layers
    for capability in (Dynamics, Decodes, Expects, Features, Learns, Surprises):
        assert isinstance(world, capability)


def test_it_is_surprised_by_each_action() -> None:
    world = make()
    batch = random_batch(SPEC, 2, 3)
    obs = {key: value[:, 0] for key, value in batch.obs.items()}
    first = torch.ones(2, dtype=torch.bool)
    state = world.observe(world.initial(2), obs, batch.action[:, 0], first)
    check_each_action(world, state, obs, batch.action.shape[-1])


def test_colours_have_five_bits() -> None:
    camera = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    found = make().pixels({"camera": camera}, noise=False).flatten()
    close(found, (torch.arange(256) // 8 + 0.5) / 32 - 0.5)
    noisy = make().pixels({"camera": camera}).flatten()
    assert ((noisy - found).abs() <= 1 / 64).all()
    assert (noisy != found).any()


def test_the_loss_by_hand() -> None:
    world, batch = make(), random_batch(SPEC, 2, 3)
    world.config.free_nats = 0.5
    torch.manual_seed(1)
    loss, metrics = world.loss(batch)
    torch.manual_seed(1)
    target = world.pixels(batch.obs)
    embed, state = world.encode(target), world.initial(2)
    image, reward, over, nats = [], [], [], []
    for t in range(3):
        keep = (~batch.is_first[:, t]).float()[:, None]
        state = tree.map(lambda x, keep=keep: x * keep.view(-1, *[1] * (x.ndim - 1)), state)
        entered = torch.cat([state.stoch[..., 0], batch.action[:, t] * keep], -1)
        deter = world.core["gru"](F.relu(world.core["enter"](entered)), state.deter)
        p_mean, p_raw = world.core["prior"](deter).chunk(2, -1)
        q_mean, q_raw = world.core["posterior"](torch.cat([deter, embed[:, t]], -1)).chunk(2, -1)
        p, q = F.softplus(p_raw) + 0.1, F.softplus(q_raw) + 0.1
        drawn = q_mean + q * torch.randn_like(q)
        state = type(state)(deter, drawn[..., None])
        kl = ((p / q).log() + (q**2 + (q_mean - p_mean) ** 2) / (2 * p**2) - 0.5).sum(-1)
        shown = world.decoder(torch.cat([deter, drawn], -1)).permute(0, 2, 3, 1)
        image.append(0.5 * ((shown - target[:, t]) ** 2).sum((1, 2, 3)))
        error = world.reward(torch.cat([deter, drawn], -1)) - batch.reward[:, t]
        reward.append(0.5 * error**2)
        over.append((kl - 0.5).clamp_min(0))
        nats.append(kl)
    parts = [torch.stack(x).mean() for x in (image, reward, over)]
    close(loss, parts[0] + 10 * parts[1] + parts[2])
    close(metrics["kl"], torch.stack(nats).mean())


def test_a_new_episode_forgets_even_what_is_not_finite() -> None:
    world, obs = make(), random_batch(SPEC, 2, 1).obs
    spoilt = tree.map(lambda x: torch.full_like(x, math.nan), world.initial(2))
    now = {key: x[:, 0] for key, x in obs.items()}
    after = world.observe(spoilt, now, torch.ones(2, 2), torch.tensor([True, False]))
    assert after.feat[0].isfinite().all()
    assert after.feat[1].isnan().all()


def test_other_images_are_refused() -> None:
    for shape in ((32, 32, 3), (64, 48, 1)):
        with pytest.raises(ConfigError, match="images of 64x64 pixels and nothing else"):
            PlaNet(spec_of(camera=ObsSpec("image", shape)), SMALL)
    with pytest.raises(ConfigError, match="given: no image"):
        PlaNet(spec_of(v=ObsSpec("vector", (3,))), SMALL)
