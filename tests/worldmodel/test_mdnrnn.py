"""V and M of World Models: sizes as published, the mixture by hand, and a world like any other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model_batches import check_each_action
from worldmodel.capabilities import Decodes, Deterministic, Expects, Features, Learns, Surprises
from worldmodel.dream import DreamEnv, open_loop, rows_of_frames
from worldmodel.models.mdnrnn import MDNRNN, MDNRNNConfig, Mixture, VMWorld
from worldmodel.models.vae import VAEConfig, make_vae
from worldmodel.nets import count_parameters
from worldmodel.types import ActionSpec, Batch, Dynamics, EnvSpec, ObsSpec

SPEC = EnvSpec({"image": ObsSpec("image", (32, 32, 3))}, ActionSpec("continuous", (2,)))


def world(spec: EnvSpec = SPEC, **settings: Any) -> VMWorld:
    torch.manual_seed(0)
    vae = make_vae((32, 32, 3), VAEConfig(latent=4, depths=[4, 8]))
    return VMWorld(spec, vae, MDNRNNConfig(**{"units": 8, "mixtures": 3, **settings}))


def rows(batch: int = 3, length: int = 6, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    first = torch.zeros(batch, length, dtype=torch.bool)
    first[:, 0] = True
    return Batch(
        {"image": torch.randint(256, (batch, length, 32, 32, 3), generator=rng).byte()},
        torch.randn(batch, length, 2, generator=rng),
        torch.randn(batch, length, generator=rng),
        first,
        torch.zeros_like(first),
        torch.zeros_like(first),
    )


def test_as_many_weights_as_published() -> None:
    assert count_parameters(make_vae((64, 64, 3), VAEConfig(published=True))) == 4_348_547
    assert count_parameters(MDNRNN(32, 3, MDNRNNConfig(reward=False, end=False))) == 422_368


def test_the_published_vae_is_for_its_pictures_and_counts_little_information_as_some() -> None:
    vae = make_vae((64, 64, 3), VAEConfig(published=True))
    image = torch.rand(2, 3, 64, 64)
    mean, std = vae.encode(image)
    assert mean.shape == std.shape == (2, 32)
    picture = vae.decode(mean)
    assert picture.shape == image.shape
    assert 0 <= picture.min() <= picture.max() <= 1
    torch.manual_seed(3)
    loss, metrics = vae.loss(image)
    assert float(metrics["kl"]) < 16  # nothing is learned yet: the floor of 0.5 x 32 counts
    assert float(loss.detach()) == pytest.approx(
        float(metrics["mse"]) * image[0].numel() + 16, rel=1e-4
    )
    with pytest.raises(ValueError, match="64x64 pixels, not 32x32"):
        make_vae((32, 32, 3), VAEConfig(published=True))


def mixture() -> Mixture:
    """One entry, K = 2: 0.25 N(-1, 0.5) + 0.75 N(2, 1)."""
    logits = torch.tensor([0.25, 0.75]).log()
    log_std = torch.tensor([0.5, 1.0]).log()
    return Mixture(*(x.view(2, 1) for x in (logits, torch.tensor([-1.0, 2.0]), log_std)))


def test_the_density_of_a_mixture_by_hand() -> None:
    z = 0.5
    by_hand = 0.25 * math.exp(-0.5 * 9) / (0.5 * math.sqrt(2 * math.pi))
    by_hand += 0.75 * math.exp(-0.5 * 2.25) / math.sqrt(2 * math.pi)
    log_prob = mixture().log_prob(torch.tensor([z]))
    assert float(log_prob) == pytest.approx(math.log(by_hand), rel=1e-5)
    assert float(mixture().expectation()) == pytest.approx(1.25)


def test_a_joint_mixture_is_one_choice_for_all_entries() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 1, generator=rng)
    mean, log_std = (torch.randn(1, 3, 4, generator=rng) for _ in range(2))
    mixture = Mixture(logits, mean, log_std)
    theirs = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits[..., 0]),
        torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1),
    )
    z = torch.randn(5, 4, generator=rng)
    torch.testing.assert_close(mixture.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(mixture.expectation(), theirs.mean)
    count = 20_000
    noise = torch.rand(count, 4, generator=rng), torch.zeros(count, 4)
    drawn = Mixture(*(x.expand(count, -1, -1) for x in mixture)).draw(1.0, noise)
    which = torch.stack([(drawn == mean[0, k]).all(-1) for k in range(3)], -1)
    assert bool((which.sum(-1) == 1).all())  # never entries of two components
    shares = which.float().mean(0)
    torch.testing.assert_close(shares, torch.softmax(logits[0, :, 0], 0), atol=0.015, rtol=0)
    likeliest = mean[0, int(logits[0, :, 0].argmax())]
    torch.testing.assert_close(mixture.draw(0.0, noise)[0], likeliest)


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0, 2.0])
def test_temperature_divides_the_logits_and_stretches_the_noise(tau: float) -> None:
    count = 40_000
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(count, 1, generator=rng), torch.randn(count, 1, generator=rng)
    wide = Mixture(*(x.expand(count, 2, 1) for x in mixture()))
    z = wide.draw(tau, noise)
    assert z.shape == (count, 1)
    if tau == 0.0:
        assert bool((z == 2.0).all())  # the likelier component's mean
        return
    odds = (0.25 / 0.75) ** (1 / tau)
    p = odds / (1 + odds)
    mean = -p + 2 * (1 - p)
    variance = p * (0.25 * tau + 1) + (1 - p) * (tau + 4) - mean**2
    assert float(z.mean()) == pytest.approx(mean, abs=0.03)
    assert float(z.var()) == pytest.approx(variance, rel=0.03)
    # The same components as cumsum and a comparison would pick.
    edges = torch.softmax(wide.logits / tau, -2).cumsum(-2)[:, 0]
    second = noise[0] >= edges
    picked = torch.where(second, 2.0, -1.0) + torch.where(second, 1.0, 0.5) * noise[1] * tau**0.5
    assert float((picked - z).abs().gt(1e-5).float().mean()) < 1e-3  # but for rounding at an edge


def test_one_step_is_a_step_of_the_sequence() -> None:
    rnn = world().rnn
    z, action = torch.randn(3, 5, 4), torch.randn(3, 5, 2)
    h = c = torch.zeros(3, 8)
    for t in range(5):
        h, c = rnn.cell(z[:, t], action[:, t], h, c)
    torch.testing.assert_close(rnn.sequence(z, action)[:, -1], h)
    assert rnn.lstm.bias_ih_l0[8:16].eq(1).all()  # the forget gates


def test_it_is_a_world_with_what_it_can_do() -> None:
    model = world()
    protocols = (Dynamics, Decodes, Features, Expects, Surprises, Learns, Deterministic)
    assert all(isinstance(model, protocol) for protocol in protocols)
    batch = rows()
    state = model.observe(
        model.initial(3), {"image": batch.obs["image"][:, 0]}, batch.action[:, 0],
        batch.is_first[:, 0],
    )  # fmt: skip
    assert not state.h.any()  # nothing came before
    after, reward, cont = model.step(state, batch.action[:, 1])
    assert reward.shape == cont.shape == (3,)
    assert bool(((cont > 0) & (cont < 1)).all())
    assert model.feat(after).shape == (3, model.feat_size) == (3, 12)
    picture = model.decode(after)["image"]
    assert picture.shape == (3, 32, 32, 3)
    obs = {"image": batch.obs["image"][:, 1]}
    assert model.surprise(state, obs, batch.action[:, 1]).shape == (3,)
    check_each_action(model, state, obs, 2)
    bare = world(reward=False, end=False)
    _, reward, cont = bare.step(bare.initial(2), torch.zeros(2, 2))
    assert reward.tolist() == [0.0, 0.0]
    assert cont.tolist() == [1.0, 1.0]


def test_at_temperature_0_it_draws_nothing() -> None:
    model = world(temperature=0.0)
    state = model.initial(2)._replace(z=torch.randn(2, 4))
    one, two = (model.step(state, torch.ones(2, 2)).state.z for _ in range(2))
    assert model.deterministic
    assert torch.equal(one, two)


def test_dreams_follow_and_go_on_in_it() -> None:
    model = world()
    model.rnn.heads["end"].bias.data.fill_(-9.0)  # type: ignore[union-attr, operator]
    shown = open_loop(model, rows(), context=2, surprise=True)
    assert shown.shown["image"].shape == (3, 6, 32, 32, 3)
    assert shown.surprise is not None
    frames = {"image": rows().obs["image"][0, :2].numpy()}
    start = rows_of_frames(SPEC, frames, [[0.5, 0.0]])
    env = DreamEnv(model, SPEC, start, observe="image", horizon=5, render_mode="rgb_array")
    dreams = []
    for _ in range(2):
        env.reset(seed=1)
        dreams.append([env.step([0.1, 0.2])[0] for _ in range(3)])
    assert all((a == b).all() for a, b in zip(*dreams, strict=True))
    assert env.render().shape == (32, 32, 3)  # type: ignore[union-attr]


def test_what_follows_an_episode_s_end_does_not_count() -> None:
    model = world(end_weight=3.0)
    short, longer = rows(length=4), rows(length=6)
    longer.is_first[:, 4] = True

    def loss(batch: Batch, upto: int) -> Tensor:
        torch.manual_seed(1)
        codes = torch.cat([torch.zeros(3, 6, 4), torch.full((3, 6, 4), 1e-9)], -1)[:, :upto]
        return model.memory_loss(codes, batch)[0]

    for name in ("action", "reward"):
        setattr(short, name, getattr(longer, name)[:, :4])
    torch.testing.assert_close(loss(short, 4), loss(longer, 6))


def test_m_learns_what_an_action_does() -> None:
    """z' = z + a, the reward is z, and the episode ends where z > 1."""
    model = world(units=16, reward=True)
    optim = torch.optim.Adam([p for p in model.rnn.parameters() if p.requires_grad], 1e-2)
    rng = torch.Generator().manual_seed(0)
    for _ in range(300):
        action = torch.randint(-1, 2, (32, 8, 2), generator=rng).float() * 0.5
        z = action.cumsum(1).repeat(1, 1, 2)
        batch = rows(32, 8)
        batch.action, batch.reward = action, z[..., 0]
        batch.is_terminal = z[..., 0] > 1
        loss, metrics = model.memory_loss(torch.cat([z, torch.full_like(z, 0.05)], -1), batch)
        optim.zero_grad()
        loss.backward()
        optim.step()
    # log of N(0.05 sqrt 2)'s density, in expectation: about 1.2 nats; nothing learned: -1 or less
    assert float(metrics["nll"]) < -0.3
    assert float(metrics["reward"]) < 0.1
    assert float(metrics["end"]) < 0.2


@pytest.mark.parametrize(
    "obs",
    [
        {"v": ObsSpec("vector", (3,))},
        {"a": ObsSpec("image", (32, 32, 3)), "b": ObsSpec("image", (32, 32, 3))},
        {"a": ObsSpec("image", (32, 32, 3)), "v": ObsSpec("vector", (3,))},
    ],
    ids=["vector", "two", "beside"],
)
def test_one_image_and_nothing_else(obs: dict[str, ObsSpec]) -> None:
    with pytest.raises(ValueError, match="one image and nothing else"):
        world(EnvSpec(obs, ActionSpec("discrete", (2,))))
