"""TD-MPC2's world: its losses in float64 by hand, what learns from which, and what it promises."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.model_batches import SPECS, learners, random_batch, scramble, spec_of
from worldmodel.accel.mish import norm_mish
from worldmodel.capabilities import Decodes, Deterministic, Features, Learns, Masks
from worldmodel.config import ConfigError
from worldmodel.distributions import symlog
from worldmodel.models.latent import Latent, LatentWorld
from worldmodel.models.latent_nets import LatentConfig, shifted, sim_norm
from worldmodel.types import MASK_KEY, ActionSpec, Dynamics, EnvSpec, ObsSpec

SMALL: dict[str, Any] = {"latent": 16, "units": 12, "encoder_units": 10, "channels": 4}
GROUPS = {name: name for name in ("encoder", "dynamics", "reward", "end", "mask")}


def make(spec: EnvSpec = SPECS["vector"], seed: int = 0, **settings: Any) -> LatentWorld:
    torch.manual_seed(seed)
    world = LatentWorld(spec, LatentConfig(**{**SMALL, **settings}))
    scramble(world)
    return world


def test_the_published_sizes() -> None:
    spec = EnvSpec({"o": ObsSpec("vector", (24,))}, ActionSpec("continuous", (6,)))
    for sizes, count in (({"latent": 128, "units": 384}, 530_917), ({}, 1_515_877)):
        world = LatentWorld(spec, LatentConfig(ends=False, **sizes))
        assert sum(p.numel() for p in world.parameters()) == count


def test_it_keeps_its_contracts() -> None:
    world = make(SPECS["mixed"])
    for contract in (Dynamics, Features, Deterministic, Masks, Learns):
        assert isinstance(world, contract)


def test_sim_norm_makes_probabilities_of_each_group() -> None:
    x = torch.randn(3, 5, 16, dtype=torch.float64).float()
    z = sim_norm(x, 8)
    torch.testing.assert_close(z[..., :8], torch.softmax(x[..., :8], -1))
    torch.testing.assert_close(z.unflatten(-1, (2, 8)).sum(-1), torch.ones(3, 5, 2))


def test_symlog_bins_by_hand() -> None:
    bins = make(bins=101).bins
    logits = torch.randn(2, 4, 101, dtype=torch.float64)
    target = torch.tensor([0.0, 1.5, -300.0, 1e9])
    log_probs = torch.log_softmax(logits.float().double(), -1)
    for i, x in enumerate(target.double()):
        at = (float(symlog(x).clamp(-10, 10)) + 10) / 0.2
        low = min(int(np.floor(at)), 99)
        expected = (1 - (at - low)) * log_probs[:, i, low] + (at - low) * log_probs[:, i, low + 1]
        found = -bins.loss(logits, target)[:, i].double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    points = torch.linspace(-10, 10, 101, dtype=torch.float64)
    mean = torch.softmax(logits, -1) @ points
    expected = mean.sign() * (mean.abs().exp() - 1)
    torch.testing.assert_close(bins.mean(logits).double(), expected, rtol=1e-4, atol=1e-5)
    assert (bins.mean(torch.zeros(3, 101)).abs() < 1e-5).all()


@pytest.mark.parametrize("shape", [((7, 3, 20), (20,)), ((3, 11, 9), (3, 1, 9))])
def test_norm_mish_is_what_it_says_gradients_included(shape: Any) -> None:
    torch.manual_seed(0)
    x, scale, shift = 3 * torch.randn(shape[0]), torch.randn(shape[1]), 9 * torch.randn(shape[1])
    grad = torch.randn(shape[0])
    ours = [t.requires_grad_() for t in (x, scale, shift)]
    plain = [t.detach().double().requires_grad_() for t in ours]
    out = norm_mish(*ours)
    expected = F.mish(F.layer_norm(plain[0], shape[0][-1:]) * plain[1] + plain[2])
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(norm_mish(*ours), out)
        short = x.bfloat16()
        assert torch.equal(norm_mish(short, scale, shift), norm_mish(short.float(), scale, shift))
    found = torch.autograd.grad(out, ours, grad)
    for a, b in zip(found, torch.autograd.grad(expected, plain, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def mlp(net: Any, x: Tensor) -> Tensor:
    """Two blocks and a linear layer, with PyTorch's own functions."""
    for block in (net.first, net.second):
        x = F.linear(x, block.linear.weight, block.linear.bias)
        x = F.mish(F.layer_norm(x, x.shape[-1:], block.norm.weight, block.norm.bias))
    return F.linear(x, net.last.weight, net.last.bias)


def reference(world: LatentWorld, batch: Any) -> dict[str, Tensor]:
    """The losses in float64, one slice and one step after the other."""
    w, c = copy.deepcopy(world).double(), world.config
    size, steps = batch.shape[0], batch.shape[1] - 1

    def encode(x: Tensor) -> Tensor:
        for layer in w.encoder.vectors[:-2]:
            x = F.linear(x, layer.linear.weight, layer.linear.bias)
            x = F.mish(F.layer_norm(x, x.shape[-1:], layer.norm.weight, layer.norm.bias))
        x = w.encoder.vectors[-1](w.encoder.vectors[-2](x))
        return torch.cat([torch.softmax(x[i : i + 8], 0) for i in range(0, len(x), 8)])

    parts = dict.fromkeys(("consistency", "reward", "end"), torch.zeros((), dtype=torch.float64))
    for b in range(size):
        z = encode(batch.obs["v"][b, 0].double())
        for t in range(steps):
            if batch.is_first[b, t + 1]:
                break
            action = batch.action[b, t + 1].double().clamp(-1, 1)
            both = torch.cat([z, action])
            log_probs = torch.log_softmax(mlp(w.reward, both), -1)
            at = (float(symlog(batch.reward[b, t + 1].double())) + 10) / 0.2
            low = int(at)
            pays = (1 - at + low) * log_probs[low] + (at - low) * log_probs[low + 1]
            z = w.dynamics_norm(mlp(w.dynamics, both))
            z = torch.cat([torch.softmax(z[i : i + 8], 0) for i in range(0, len(z), 8)])
            apart = (z - encode(batch.obs["v"][b, t + 1].double())).square().mean()
            end = torch.sigmoid(mlp(w.end, z))[0]
            over = bool(batch.is_terminal[b, t + 1])
            share = c.rho**t / (size * steps)
            parts["consistency"] = parts["consistency"] + 20 * share * apart
            parts["reward"] = parts["reward"] - 0.1 * share * pays
            parts["end"] = parts["end"] - (end if over else 1 - end).log() / (size * steps)
    return parts


def test_its_losses_in_float64() -> None:
    world, batch = make(), random_batch(SPECS["vector"])
    assert batch.is_first[0, 3]  # an episode's end within a slice
    found = world.learn(batch).losses
    for name, value in reference(world, batch).items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-6, msg=name)
    loss, parts = world.loss(batch)
    torch.testing.assert_close(loss, torch.stack(list(parts.values())).sum())


def test_nothing_after_an_ending_counts_and_truncation_is_no_ending() -> None:
    world, batch = make(), random_batch(SPECS["vector"])
    before = world.learn(batch)
    batch.obs["v"][0, 3:] += 5.0
    batch.reward[0, 3:] += 7.0
    batch.is_terminal[0, 4] = True
    after = world.learn(batch)
    assert all(torch.equal(before.losses[name], after.losses[name]) for name in before.losses)
    inside = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).t().float()
    rho = 0.5 ** torch.arange(4).unsqueeze(1)
    torch.testing.assert_close(before.weight, inside * rho)
    assert before.terminal[1, 0]
    assert not before.terminal[:, 1].any()


def test_who_learns_from_which_loss() -> None:
    world, batch = make(SPECS["mixed"]), random_batch(SPECS["mixed"], length=7)
    expected = {
        "consistency": {"encoder", "dynamics"},
        "reward": {"encoder", "dynamics", "reward"},
        "end": {"encoder", "dynamics", "end"},
        "mask": {"encoder", "dynamics", "mask"},
    }
    learned = world.learn(batch)
    assert learned.losses.keys() == expected.keys()
    assert not learned.seen.requires_grad
    for name, groups in expected.items():
        assert learners(learned.losses[name], world, GROUPS) == groups, name


def test_a_prepared_state_steps_as_any_other() -> None:
    world = make()
    state, action = world.initial(5), torch.rand(5, 2) * 2 - 1
    state = Latent(sim_norm(torch.randn(5, 16), 8))
    plain, prepared = world.step(state, action), world.step(world.prepared(state), action)
    for a, b in zip(plain, prepared, strict=True):
        a, b = (x.z if isinstance(x, Latent) else x for x in (a, b))
        torch.testing.assert_close(a, b)
    assert ((plain.cont > 0) & (plain.cont < 1)).all()
    torch.testing.assert_close(plain.state.z, world.next(state.z, action))


def test_without_endings_episodes_go_on() -> None:
    world = make(ends=False)
    assert "end" not in world.learn(random_batch(SPECS["vector"])).losses
    assert (world.step(world.initial(3), torch.zeros(3, 2)).cont == 1).all()


def test_learning_and_acting_see_the_same_frames() -> None:
    """Rows of a batch one after the other through `observe` give the stacks that `learn` sees."""
    spec = spec_of(image=ObsSpec("image", (32, 32, 3)))
    world, batch = make(spec, shift=0), random_batch(spec, length=6)
    assert world.context == 2
    stack = world.frames.rows(batch.obs["image"], batch.is_first)[:, 2:]
    assert stack.shape == (3, 4, 32, 32, 9)
    assert torch.equal(stack[0, 1], torch.cat([batch.obs["image"][0, 3]] * 3, -1))  # it begins
    rows = batch.obs["image"][2]
    assert torch.equal(stack[2, 0], torch.cat([rows[0], rows[1], rows[2]], -1))
    state, latents = world.initial(3), []
    for t in range(6):
        obs = {"image": batch.obs["image"][:, t]}
        state = world.observe(state, obs, batch.action[:, t], batch.is_first[:, t])
        latents.append(state.z)
    learned = world.learn(batch)
    torch.testing.assert_close(learned.z[0], latents[2])
    torch.testing.assert_close(learned.seen, torch.stack(latents[3:]))


@pytest.mark.parametrize(("side", "latent"), [(64, 512), (64, 64), (32, 16), (96, 16)])
def test_images_of_any_size(side: int, latent: int) -> None:
    spec = spec_of(image=ObsSpec("image", (side, side, 3)))
    world = make(spec, latent=latent, channels=32)
    state = world.observe(
        world.initial(2), {"image": torch.zeros(2, side, side, 3, dtype=torch.uint8)},
        torch.zeros(2, 2), torch.ones(2, dtype=torch.bool),
    )  # fmt: skip
    assert state.z.shape == (2, latent)
    linear = any(isinstance(part, torch.nn.Linear) for part in world.encoder.pictures)
    assert linear == ((side, latent) != (64, 512))  # as published, nothing follows


def test_a_shifted_image_repeats_its_border() -> None:
    torch.manual_seed(0)
    picture = torch.arange(36, dtype=torch.uint8).view(1, 6, 6, 1).expand(20, 6, 6, 1).contiguous()
    moved = shifted(picture, 3)
    padded = F.pad(picture[:1, ..., 0].float().unsqueeze(0), (3, 3, 3, 3), mode="replicate")[0, 0]
    crops = {(i, j): padded[i : i + 6, j : j + 6] for i in range(7) for j in range(7)}
    found = {
        where
        for one in moved
        for where, crop in crops.items()
        if torch.equal(one[..., 0].float(), crop)
    }
    assert len(found) > 5
    assert all(any(torch.equal(m[..., 0].float(), c) for c in crops.values()) for m in moved)


@pytest.mark.parametrize(
    ("spec", "settings", "words"),
    [
        (spec_of(far=ObsSpec("recorded", (2,))), {}, "no image"),
        (SPECS["vector"], {"latent": 20}, "multiple of the group"),
        (
            spec_of(a=ObsSpec("image", (32, 32, 3)), b=ObsSpec("image", (64, 64, 3))),
            {}, "several sizes",
        ),
    ],
    ids=["nothing", "groups", "sizes"],
)  # fmt: skip
def test_what_cannot_work_is_refused(spec: EnvSpec, settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(spec, **settings)


def test_masks_are_learned_from_observations() -> None:
    torch.manual_seed(0)
    world = make(SPECS["mixed"])
    mask = world.action_mask(world.initial(2))
    assert mask is not None
    assert mask.shape == (2, 3)
    assert MASK_KEY not in world.encoder.flat  # what is allowed is no observation
    assert make().action_mask(make().initial(2)) is None


@pytest.mark.parametrize("spec", ["image", "vector", "mixed"])
def test_a_decoder_shows_latents_and_teaches_the_world_nothing(spec: str) -> None:
    one = SPECS[spec]
    plain, world = (LatentWorld(one, LatentConfig(**SMALL, decoder=d)) for d in (False, True))
    assert not isinstance(plain, Decodes)
    assert isinstance(world, Decodes)
    batch = random_batch(one, length=7)
    learned = world.learn(batch)
    loss = world.decoder_loss(learned, batch)
    assert learners(loss, world, {"decoder": "decoder", "": "other"}) == {"decoder"}
    shown = world.decode(world.initial(4))
    assert shown.keys() == {key for key in one.seen if key != MASK_KEY}
    for key, x in shown.items():
        assert x.shape == (4, *one.obs[key].shape)
        if one.obs[key].kind == "image":
            assert ((x >= 0) & (x <= 1)).all()
    optim = torch.optim.Adam(world.decoder.parameters(), 1e-2)  # type: ignore[union-attr]
    first = float(loss.detach())
    for _ in range(60):
        loss = world.decoder_loss(learned, batch)
        optim.zero_grad()
        loss.backward()
        optim.step()
    assert float(loss.detach()) < 0.8 * first


def test_a_world_begins_alike_with_a_decoder_and_without() -> None:
    worlds = []
    for decoder in (False, True):
        torch.manual_seed(0)
        worlds.append(LatentWorld(SPECS["vector"], LatentConfig(**SMALL, decoder=decoder)))
    ours, theirs = (w.state_dict() for w in worlds)
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    assert len(theirs) > len(ours)
