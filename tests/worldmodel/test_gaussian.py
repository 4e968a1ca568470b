"""The Gaussian world: its losses by hand, its training, its draws, and what it knows of itself."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from torch import Tensor

from tests.agents.small_runs import filled_replay
from tests.model_batches import check_each_action
from worldmodel import tree
from worldmodel.capabilities import Decodes, Expects, Features, Fits, Learns, Surprises, Uncertain
from worldmodel.config import ConfigError
from worldmodel.models import calibration, closed_form, known
from worldmodel.models.closed_form import CLOSED
from worldmodel.models.dealing import by_member
from worldmodel.models.fitting import FitConfig, recorded
from worldmodel.models.gaussian import Gaussian, GaussianConfig, GaussianState
from worldmodel.models.predictors import KINDS, Predictor, SideBySide, evidential_loss
from worldmodel.models.vectors import Rows
from worldmodel.types import ActionSpec, Dynamics, EnvSpec, ObsSpec

SPEC = EnvSpec(
    {"a": ObsSpec("vector", (2,)), "b": ObsSpec("vector", (1,))}, ActionSpec("continuous", (1,))
)


def make(spec: EnvSpec = SPEC, seed: int = 0, **settings: Any) -> Gaussian:
    torch.manual_seed(seed)
    base: dict[str, Any] = {"members": 4, "elites": 2, "layers": 2, "units": 16, "decay": [1e-5]}
    return Gaussian(spec, GaussianConfig(**{**base, **settings}))


def lived(count: int, seed: int = 0, noise: float = 0.05) -> Rows:
    """Steps of a known function, from states in [-1, 1]."""
    rng = torch.Generator().manual_seed(seed)
    values, action = (2 * torch.rand(count, n, generator=rng) - 1 for n in (3, 1))
    change = 0.3 * torch.sin(3 * values) + 0.2 * action
    after = values + change + noise * torch.randn(count, 3, generator=rng)
    return Rows(values, action, values.sum(-1), torch.ones(count), after)


def state_of(world: Gaussian, values: Tensor) -> GaussianState:
    return GaussianState(values, torch.full((len(values),), -1.0))


# Networks


def test_members_side_by_side_are_members_one_by_one() -> None:
    torch.manual_seed(0)
    net, x = SideBySide(3, 4, 8, 2, 5), torch.randn(3, 6, 4)
    together = net(x)
    for m in range(3):
        h = x[m]
        for i, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
            h = h @ w[m] + b[m]
            h = h * torch.sigmoid(h) if i < 2 else h
        torch.testing.assert_close(together[m], h)
    some = torch.tensor([2, 0])
    torch.testing.assert_close(net(x[some], some), together[some])


def test_the_loss_of_an_ensemble_by_hand() -> None:
    torch.manual_seed(0)
    predictor = Predictor("ensemble", 2, 3, 2, 8, 1)
    x, y = torch.randn(2, 5, 3), torch.randn(2, 5, 2)
    raw = predictor.body(x).double()
    mean, v = raw[..., :2], raw[..., 2:4]
    v = 0.5 - torch.log1p(torch.exp(0.5 - v))
    v = -10 + torch.log1p(torch.exp(v + 10))
    nll = (mean - y).square() * torch.exp(-v) + v
    expected = nll[0].mean() + nll[1].mean() + 0.01 * (2 * 0.5 + 2 * 10)
    torch.testing.assert_close(predictor.loss(x, y).double(), expected, rtol=1e-5, atol=1e-5)
    weights = [w.square().sum() for w in predictor.body.weights]
    torch.testing.assert_close(predictor.decay([0.1, 0.2]), 0.05 * weights[0] + 0.1 * weights[1])
    far = predictor(100 * torch.randn(2, 50, 3))
    assert far.variance.min() > 0.99 * math.exp(-10)
    assert far.variance.max() < 1.01 * math.exp(0.5)


def test_evidence_is_the_likelihood_of_student_s_t() -> None:
    gamma, nu, alpha, beta, y = (torch.tensor(v) for v in (0.3, 0.7, 2.5, 1.2, 1.1))
    scale = torch.sqrt(beta * (1 + nu) / (nu * alpha))
    t = torch.distributions.StudentT(2 * alpha, gamma, scale)
    penalty = 0.01 * 0.8 * (2 * 0.7 + 2.5)
    torch.testing.assert_close(
        evidential_loss(gamma, nu, alpha, beta, y), penalty - t.log_prob(y), rtol=1e-5, atol=1e-5
    )


# A world


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_world_that_doubts(kind: str) -> None:
    world = make(kind=kind)
    for capability in (Dynamics, Uncertain, Surprises, Expects, Decodes, Features, Learns, Fits):
        assert isinstance(world, capability), capability
    obs = {"a": torch.randn(7, 2), "b": torch.randn(7, 1)}
    action, first = torch.rand(7, 1), torch.ones(7, dtype=torch.bool)
    state = world.observe(world.initial(7), obs, torch.zeros(7, 1), first)
    assert all(torch.equal(value, obs[key]) for key, value in world.decode(state).items())
    for prediction in (world.step(state, action), world.expect(state, action)):
        assert prediction.state.values.shape == (7, 3)
        assert prediction.reward.shape == prediction.cont.shape == (7,)
        assert ((prediction.cont > 0) & (prediction.cont < 1)).all()
    for value in (world.uncertainty(state, action), world.surprise(state, obs, action)):
        assert value.shape == (7,)
        assert (value >= 0).all()
    assert world.uncertainty_unit
    if kind != "dropout":  # whose passes are drawn
        check_each_action(world, state, obs, 1)


def test_what_nobody_can_disagree_about_has_no_uncertainty() -> None:
    world = make(members=1, elites=1, probabilistic=False)
    assert not isinstance(world, Uncertain)
    assert world.deterministic
    state, action = state_of(world, torch.randn(5, 3)), torch.zeros(5, 1)
    assert torch.equal(*(world.step(state, action).state.values for _ in range(2)))
    assert isinstance(make(members=1, elites=1, doubt="largest"), Uncertain)


def opinion_of(world: Gaussian, state: GaussianState, action: Tensor) -> Tensor:
    """Whose opinion each row was given [B]."""
    mine = world._drawn_from(state, action)[0].mean
    every = world.all_opinions(state.values, action).mean
    return (every - mine).abs().sum(-1).argmin(0)


def test_an_opinion_is_kept_or_dealt_anew() -> None:
    world = make(members=4, elites=4)
    state, action = state_of(world, torch.randn(80, 3)), torch.zeros(80, 1)
    first = world.step(state, action).state
    assert torch.bincount(first.member.long()).tolist() == [20] * 4
    assert torch.equal(world.step(first, action).state.member, first.member)
    anew = make(members=4, elites=4, particles="ts1")
    after = anew.step(state, action).state
    assert (after.member == -1).all()
    draws = torch.stack([opinion_of(anew, state, action) for _ in range(50)])
    # In each block of four rows everybody has a turn, in an order that changes.
    assert (draws.view(50, 20, 4).sort(-1).values == torch.arange(4)).all()
    assert (draws.float().mean(0) - 1.5).abs().max() < 0.8
    # 20 particles of each of 4 candidates: all opinions equally.
    assert (draws.view(50, 4, 20).eq(2).sum(-1) == 5).all()
    # Where rows do not come out even, and where they come in no order.
    assert torch.bincount(opinion_of(anew, tree.index(state, slice(78)), action[:78])).max() == 20
    mixed = tree.index(first, torch.randperm(80))
    assert torch.equal(opinion_of(world, mixed, action), mixed.member.long())


def test_rows_are_answered_by_the_opinion_that_they_were_dealt() -> None:
    world = make(members=4, elites=3)
    world.elites.copy_(torch.tensor([0, 2, 3]))
    x = torch.randn(11, 4)
    member = torch.tensor([0, 2, 2, 1, 2, 0, 2, 2, 1, 0, 2])
    answer, everyone = by_member(x, member.float(), 3, world._ask), world._ask(x.expand(3, -1, -1))
    for mine, all_of_them in zip(answer, everyone, strict=True):
        torch.testing.assert_close(mine, all_of_them[member, torch.arange(11)])


def test_angles_absolute_entries_and_known_functions() -> None:
    world = make(absolute=["b.0"], angles=["a.1"], reward="one", terminal="never")
    values, action = torch.tensor([[1.0, math.pi / 6, 2.0]]), torch.tensor([[3.0]])
    x = world.vectors.inputs(values, action)
    torch.testing.assert_close(x, torch.tensor([[1.0, 2.0, 0.5, math.sqrt(0.75), 1.0]]))
    rows = Rows(values, action, torch.zeros(1), torch.ones(1), torch.tensor([[1.5, 1.0, 5.0]]))
    torch.testing.assert_close(
        world.vectors.targets(rows), torch.tensor([[0.5, 1 - math.pi / 6, 5.0]])
    )
    prediction = world.step(state_of(world, values), action)
    assert (prediction.reward.item(), prediction.cont.item()) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "ensembel"}, "Unknown kind 'ensembel'.*ensemble"),
        ({"elites": 9}, "elites is 9, but there are 4 members"),
        ({"decay": [1.0, 2.0]}, "decay has 2 numbers; allowed: 3"),
        ({"angles": ["a.2"]}, "Unknown entry of the state 'a.2'"),
        ({"terminal": "hoper"}, "Unknown terminal 'hoper'.*hopper.*module:function"),
        ({"reward": "no_such_module:f"}, "no module 'no_such_module'"),
    ],
)
def test_wrong_settings_are_one_clear_error(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**settings)


def test_it_refuses_what_it_would_not_see() -> None:
    image = EnvSpec({"image": ObsSpec("image", (32, 32, 3))}, SPEC.action)
    symbols = {"k": ObsSpec("discrete", (4,), (4,))}
    some, only = (EnvSpec({**obs, **symbols}, SPEC.action) for obs in (SPEC.obs, {}))
    all_three = EnvSpec({**image.obs, **some.obs}, SPEC.action)
    for spec, words in (
        (image, r"'image' is an image\. Set env\.pixels=false\. From images agent=dreamer"),
        (some, r"'k' is discrete\. Set env\.keys=\[a,b\]\. Of symbols agent=dyna_q"),
        (only, r"'k' is discrete\. Of symbols agent=dyna_q learns one\.$"),
        (all_three, r"Set env\.pixels=false and env\.keys=\[a,b\]\."),
        (EnvSpec({}, SPEC.action), "there is no vector"),
    ):
        with pytest.raises(ConfigError, match=words):
            make(spec)


# Training


def test_it_learns_a_function_and_what_it_does_not_know() -> None:
    fit = FitConfig(lr=5e-3, holdout=0, epochs=100, batch_size=64, rows="shuffle")
    world = make(units=48, fit=fit)
    world.fit_rows(lived(800))
    test = lived(400, seed=1)
    found = world.moments(state_of(world, test.values), test.action)
    error = test.after - test.values - found.mean[:, :3]
    assert error.square().mean().sqrt() < 0.08  # of which 0.05 is noise
    spread = (found.aleatoric + found.epistemic)[:, :3].sqrt()
    for z, share in ((0.674, 0.5), (1.282, 0.8), (1.96, 0.95)):
        assert abs(float((error.abs() < z * spread).float().mean()) - share) < 0.1
    inside = world.uncertainty(state_of(world, test.values), test.action).mean()
    outside = world.uncertainty(state_of(world, 4 * test.values), test.action).mean()
    assert outside > 20 * inside


def test_a_process_is_that_of_scikit_learn_where_there_is_no_noise() -> None:
    # Nearly equal numbers are subtracted: in float32 the doubt came to thousands of times this.
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(closed_form.MOST, 2))
    said = np.stack([np.sin(2 * rows[:, 0]), rows[:, 0] * rows[:, 1]], 1)
    process = closed_form.Process(2, 2)
    process.fit(torch.from_numpy(rows).float(), torch.from_numpy(said).float())
    asked = rng.normal(size=(50, 2))
    found = process(torch.from_numpy(asked).float()[None])
    for o in range(2):
        scale, noise = float(process.scale[o]), float(process.noise[o])
        kernel = ConstantKernel(scale, "fixed") * RBF(process.lengths[o].numpy(), "fixed")
        kernel += WhiteKernel(noise, "fixed")
        theirs = GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=None)
        theirs.fit(rows.astype(np.float32).astype(float), said[:, o].astype(np.float32))
        mean, deviation = theirs.predict(asked.astype(np.float32).astype(float), return_std=True)
        np.testing.assert_allclose(found.mean[0, :, o], mean, rtol=1e-4, atol=1e-5)
        total = found.doubt[0, :, o] + found.variance[0, :, o]
        np.testing.assert_allclose(total, deviation**2, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("kind", CLOSED)
def test_small_data_is_fitted_at_once(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"name model\.terminal"):
        make(kind=kind)
    world = make(kind=kind, terminal="never")
    assert not isinstance(world, Learns)
    assert isinstance(world, Fits)
    assert isinstance(world, Uncertain)
    metrics = world.fit_rows(lived(150))
    assert metrics["model/rows"] == 150
    test = lived(200, seed=1)
    found = world.moments(state_of(world, test.values), test.action)
    error = test.after - test.values - found.mean[:, :3]
    assert error.square().mean().sqrt() < (0.08 if kind == "process" else 0.3)
    inside = world.uncertainty(state_of(world, test.values), test.action).mean()
    outside = world.uncertainty(state_of(world, 4 * test.values), test.action).mean()
    assert outside > 3 * inside
    other = make(kind=kind, terminal="never", seed=1)
    other.load_state_dict(world.state_dict())
    again = other.moments(state_of(world, test.values), test.action)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("kind", [*KINDS, *CLOSED])
def test_constant_columns_give_no_nan(kind: str) -> None:
    rows = lived(60)
    values, action = (torch.full_like(v, 1234.567) for v in rows[:2])
    still = rows._replace(values=values, action=action, after=values)
    world = make(kind=kind, fit=FitConfig(epochs=3), terminal="never")
    metrics = world.fit_rows(still)
    assert all(math.isfinite(value) for value in metrics.values())
    assert torch.equal(world.vectors.input_std, torch.ones(4))
    prediction = world.step(state_of(world, still.values), still.action)
    assert prediction.state.values.isfinite().all()


def test_few_rows_and_rows_that_are_no_numbers() -> None:
    world = make()
    before = [p.clone() for p in world.parameters()]
    with pytest.raises(ValueError, match=r"There are 1 transitions; 6 are the least"):
        world.fit_rows(lived(1))
    broken = lived(20)
    broken.after[7, 1] = float("nan")
    with pytest.raises(ValueError, match=r"1 of 20 transitions.*number 7, in its after"):
        world.fit_rows(broken)
    assert all(torch.equal(a, b) for a, b in zip(before, world.parameters(), strict=True))
    metrics = make(fit=FitConfig(holdout=0, epochs=2)).fit_rows(lived(1))
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_normaliser_does_not_see_what_is_held_out() -> None:
    world, rows = make(fit=FitConfig(epochs=1)), lived(50)
    before = world.fitter.state_dict()
    held, rest = world.fitter._split(rows)
    assert held is not None
    assert (len(held.reward), len(rest.reward)) == (10, 40)
    world.fitter.load_state_dict(before)  # the same draw again
    world.fit_rows(rows)
    mean = world.vectors.inputs(rest.values, rest.action, normalised=False).mean(0)
    torch.testing.assert_close(world.vectors.input_mean, mean)


def test_every_member_goes_back_to_its_own_best(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(members=3, elites=2, fit=FitConfig(patience=1))
    fitter = world.fitter
    errors = [[4.0, 9.0, 7.0], [3.99, 5.0, 7.0], [8.0, 2.0, 6.0], [8.0, 8.0, 8.0], [1.99, 8.0, 8.0]]
    seen: list[list[Tensor]] = []

    def scripted(rows: Rows) -> np.ndarray:
        seen.append([p.detach().clone() for p in fitter._body])
        return np.array(errors[len(seen) - 1]) if len(seen) <= 5 else np.full(3, 9.0)

    monkeypatch.setattr(fitter, "errors", scripted)
    metrics = world.fit_rows(lived(60))
    # 3.99 is no improvement of 1%; the third and fifth epochs' best are.
    for p, *states in zip(fitter._body, *seen, strict=True):
        for member, epoch in ((0, 4), (1, 2), (2, 2)):
            assert torch.equal(p[member], states[epoch][member])
    assert world.elites.tolist() == [0, 1]
    assert metrics["model/epochs"] == 7
    assert metrics["model/holdout_mse"] == pytest.approx((1.99 + 2 + 6) / 3)


def test_a_training_goes_on_where_it_was_saved() -> None:
    rows, fit = lived(40), FitConfig(epochs=3)
    one, other = (make(seed=seed, kind="dropout", fit=fit) for seed in (0, 1))
    one.fit_rows(rows)
    other.load_state_dict(one.state_dict())
    outside = torch.get_rng_state()
    assert one.fit_rows(rows) == other.fit_rows(rows)
    assert torch.equal(torch.get_rng_state(), outside)
    for (name, a), (_, b) in zip(
        tree.leaves(one.state_dict()), tree.leaves(other.state_dict()), strict=True
    ):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, name


def test_recorded_steps_do_not_cross_episodes() -> None:
    world, replay = make(), filled_replay(SPEC, steps=23)
    rows = recorded(world.vectors, replay)
    assert rows is not None
    batch = replay.transitions(64, 1, 1.0)
    wanted = torch.cat(
        [batch.obs["a"], batch.obs["b"], batch.next_obs["a"], batch.discount[:, None]], -1
    )
    ours = torch.cat([rows.values, rows.after[:, :2], rows.goes_on[:, None]], -1)
    assert len(ours) == 2 * 4 * 4 + 2 * 2  # four episodes of four steps and one of two, twice
    for row in wanted:
        assert (ours == row).all(-1).any()
    loss, _ = world.loss(replay.sample(4, 6))
    loss.backward()
    assert loss.isfinite()


# Functions that need not be learned


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("CartPole-v1", "cartpole"), ("Hopper-v5", "hopper"), ("Walker2d-v5", "walker2d"),
        ("InvertedPendulum-v5", "inverted_pendulum"),
        ("InvertedDoublePendulum-v5", "inverted_double_pendulum"), ("HalfCheetah-v5", "never"),
    ],
)  # fmt: skip
def test_ends_are_those_of_the_environments(name: str, ends: str) -> None:
    env: Any = gymnasium.make(name)
    function = known.end_function(ends)
    assert function is not None
    env.action_space.seed(0)
    ended = 0
    obs, _ = env.reset(seed=0)
    for _ in range(300):
        before, action = obs, env.action_space.sample()
        obs, _, terminated, truncated, _ = env.step(action)
        numbers = (torch.as_tensor(np.atleast_1d(v)).float() for v in (before, action, obs))
        assert bool(function(*numbers)) == terminated
        ended += terminated
        if terminated or truncated:
            obs, _ = env.reset()
    assert ended > 2 or ends == "never"


def test_the_reward_of_the_pendulum_is_that_of_the_environment() -> None:
    env: Any = gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    function = known.reward_function("pendulum")
    assert function is not None
    for push in (-2.0, 0.5, 2.0):
        after, reward, *_ = env.step([push])
        ours = function(torch.tensor(obs), torch.tensor([push / 2]), torch.tensor(after))
        assert float(ours) == pytest.approx(reward, abs=1e-4)
        obs = after


# How far it can be trusted


def test_a_report_of_what_is_known_by_hand() -> None:
    """A line without noise of its own: its variance is set, the rest can be counted."""
    world = make(kind="linear", terminal="never", reward="one")
    held = lived(4000, noise=0.0)
    held = held._replace(after=held.values + 0.5 * torch.randn(4000, 3))
    world.predictor.noise.fill_(0.25)
    world.predictor.covariance.zero_()
    world.vectors.target_mean.zero_()
    report = calibration.step_report(world, held, held)
    np.testing.assert_allclose(report.coverage, calibration.SHARES, atol=0.02)
    assert report.mse == pytest.approx(0.25, rel=0.05)  # a change's variance begins as 1
    assert report.nll == pytest.approx(0.5 * (1 + math.log(2 * math.pi * 0.25)), abs=0.03)
    assert report.auroc == 0.5


def test_separation_spread_and_bands() -> None:
    inside, outside = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])
    assert calibration.separation(inside, outside) == (1 + 1 + 1 + 0.5) / 4
    imagined = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    spread, error = calibration.spread_and_error(
        imagined, torch.zeros(1, 1, 1), torch.tensor([2.0])
    )
    assert (spread.item(), error.item()) == (pytest.approx(math.sqrt(2) / 2), 1.0)
    ((low, high),) = calibration.bands(torch.arange(101.0).unsqueeze(1), [0.5])
    assert (low.item(), high.item()) == (25, 75)


def test_futures_follow_their_own_actions() -> None:
    world = make(kind="linear", terminal="never", reward="one")
    world.predictor.noise.zero_()
    world.predictor.covariance.zero_()
    world.predictor.slope[:, 3] = 1.0  # the change is the action
    actions = torch.tensor([[[0.5], [0.25]], [[-1.0], [0.0]]])
    paths = calibration.futures(world, torch.zeros(2, 3), actions, 4)
    assert paths.shape == (4, 2, 2, 3)
    expected = torch.tensor([[0.5, 0.75], [-1.0, -1.0]])
    torch.testing.assert_close(paths, expected[None, :, :, None].expand(4, 2, 2, 3))
