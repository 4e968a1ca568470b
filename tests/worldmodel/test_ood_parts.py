"""Each part against its own definition, on small numbers or against a library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worldmodel.ood_tracks import tiny_model, tracks
from worldmodel import tree
from worldmodel.ood import density
from worldmodel.ood.density import Flow, Mixture, Neighbours
from worldmodel.ood.detector import Stamps
from worldmodel.ood.pictures import (
    Divergence,
    Frozen,
    Reconstruction,
    Statistics,
    Typicality,
    WorstPatch,
    code_length,
    patch_errors,
)
from worldmodel.ood.scorer import Look
from worldmodel.ood.steps import Disagreement, Drift, Pushed, Surprise, Weaker
from worldmodel.rssm.state import LatentState
from worldmodel.types import ActionSpec

TWO = ActionSpec("continuous", (2,))


def coded(count: int, seed: int = 0, size: int = 3) -> Look:
    """Looks with random codes and errors."""
    g = torch.Generator().manual_seed(seed)
    return Look(
        mean=torch.randn(count, size, generator=g),
        std=torch.rand(count, size, generator=g) + 0.2,
        error=0.1 * torch.randn(count, 3, 16, 16, generator=g),
    )


def test_the_baseline_is_the_mean_squared_error() -> None:
    error = torch.zeros(2, 3, 4, 4)
    error[1, 0, 0, 0] = 3.0
    score, _ = Reconstruction()(Look(error=error), {})
    torch.testing.assert_close(score, torch.tensor([0.0, 9.0 / 48]))


def test_what_is_drawn_too_well_is_not_typical_either() -> None:
    part = Typicality()
    held = Look(error=torch.full((5, 1, 4, 4), 0.1))
    part.fit(held)
    scale = torch.tensor([0.1, 1.0, 1.0, 1.0, 0.01]).view(-1, 1, 1, 1)
    score, _ = part(Look(error=scale * torch.ones(5, 1, 4, 4) * torch.tensor(1.0)), {})
    assert score[0] < 1e-4
    torch.testing.assert_close(score[1], score[4])  # ten times more and ten times less


def test_a_patch_counts_in_the_unit_of_its_place() -> None:
    error = 0.01 * torch.ones(100, 3, 32, 32)
    error[:, :, :8, :8] = 0.1  # where the robot moves
    part = WorstPatch()
    part.fit(Look(error=error))
    assert patch_errors(error).shape[1:] == part.unit.shape == (15, 15)
    quiet, busy = error[:1].clone(), error[:1].clone()
    quiet[:, :, 20:24, 20:24] = 0.1
    busy[:, :, 2:6, 2:6] = 0.12
    assert part(Look(error=quiet), {})[0] > 5 * part(Look(error=busy), {})[0]
    at = part.places(Look(error=quiet))[0].argmax()
    assert (int(at) // 15, int(at) % 15) == (10, 10)  # rows and columns 20 to 23


def test_the_mean_hides_what_the_worst_patch_shows() -> None:
    error = 0.05 * torch.ones(200, 3, 32, 32)
    error *= 1 + 0.2 * torch.randn(200, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    part = WorstPatch()
    part.fit(Look(error=error))
    small = 0.05 * torch.ones(1, 3, 32, 32)
    small[:, :, 8:11, 8:11] = 0.3
    assert Reconstruction()(Look(error=small), {})[0] < Reconstruction()(Look(error=error), {})[
        0
    ].quantile(0.9)
    assert part(Look(error=small), {})[0] > 2 * part(Look(error=error), {})[0].max()


def test_brightness_contrast_and_sharpness_of_a_picture() -> None:
    frames = np.concatenate([track.obs["image"] for track in tracks(20, seed=0)])
    held, fresh = torch.from_numpy(frames.transpose(0, 3, 1, 2)).float().div(255).split([160, 80])
    part = Statistics(3)
    part.fit(Look(image=held))

    flat = fresh.double().numpy().reshape(80, 3, -1)  # the same by numpy, in float64
    across = np.abs(np.diff(fresh.double().numpy(), axis=3)).mean((2, 3))
    down = np.abs(np.diff(fresh.double().numpy(), axis=2)).mean((2, 3))
    logs = np.log(np.stack([flat.std(2), across + down]) + 1e-3)
    numbers = np.concatenate([flat.mean(2), *logs], 1)
    np.testing.assert_allclose(part.numbers(fresh), numbers, rtol=1e-4, atol=1e-5)

    score, _ = part(Look(image=fresh), {})
    known = part.numbers(held).double().numpy()
    off, cov = numbers - known.mean(0), np.cov(known.T, bias=True)
    wanted = np.sqrt(np.einsum("bi,ij,bj->b", off, np.linalg.inv(cov + 1e-6 * np.eye(9)), off))
    np.testing.assert_allclose(score, wanted, rtol=1e-2)

    dim = 0.5 + 0.8 * (fresh - 0.5)
    blurred = torch.nn.functional.avg_pool2d(fresh, 3, 1, 1, count_include_pad=False)
    for changed in (dim, blurred, fresh + 0.05):
        assert part(Look(image=changed), {})[0].min() > 3 * score.max()


def test_still_pictures_have_statistics_too() -> None:
    part = Statistics(1)
    part.fit(Look(image=torch.full((10, 1, 8, 8), 0.5)))
    same, _ = part(Look(image=torch.full((1, 1, 8, 8), 0.5)), {})
    other, _ = part(Look(image=torch.full((1, 1, 8, 8), 0.6)), {})
    assert same < 0.1
    assert 50 < other < 1e6


def test_code_length_is_the_kl_of_normals() -> None:
    mean, std = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.5]])
    target = torch.distributions.Normal(0, 1)
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), target)
    torch.testing.assert_close(code_length(Look(mean=mean, std=std)), expected.sum(-1))
    part = Divergence()
    held = Look(mean=torch.zeros(3, 2), std=torch.full((3, 2), 0.5))
    part.fit(held)
    even = Look(mean=torch.zeros(1, 2), std=torch.ones(1, 2))
    assert part(even, {})[0] > 0.3  # less to say than usual


def test_the_mixture_is_the_library_s() -> None:
    from sklearn.mixture import GaussianMixture

    held, fresh = coded(400), coded(20, 1)
    part = Mixture(5)
    part.fit(held)
    values = part.standard(held).double().numpy()
    reference = GaussianMixture(8, reg_covar=1e-3, random_state=0).fit(values)
    expected = reference.score_samples(part.standard(fresh).double().numpy())
    score, _ = part(fresh, {})
    np.testing.assert_allclose(-score.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_a_flow_finds_what_is_far_away_unlikely() -> None:
    held = coded(400)
    part = Flow(5)
    part.fit(held)
    far = held._replace(mean=held.mean + 6)  # type: ignore[operator]
    assert part(far, {})[0].median() > part(held, {})[0].max()


def test_the_fifth_nearest_by_hand() -> None:
    held = coded(300)
    part = Neighbours(5)
    part.fit(held)
    bank = part.standard(held)
    fresh = coded(4, 2)
    away = torch.cdist(part.standard(fresh), bank).sort(-1).values[:, 4]
    torch.testing.assert_close(part(fresh, {})[0], away, rtol=1e-3, atol=1e-3)


def test_a_frozen_camera_is_counted_until_it_moves() -> None:
    part = Frozen("image", (1, 2, 2))
    memory = part.memory(2)
    scores = []
    for value in (0.0, 0.0, 0.0, 0.5, 0.5):  # the first zero is no repetition
        image = torch.full((2, 1, 2, 2), value)
        image[1] = torch.rand(1, 2, 2)
        score, memory = part(Look(image=image), memory)
        scores.append(score.tolist())
    assert [one[0] for one in scores] == [0, 1, 2, 0, 1]
    assert [one[1] for one in scores] == [0] * 5


def test_surprise_is_that_of_the_world() -> None:
    model = tiny_model()
    track = tracks(1, 0, model)[0]
    obs = {"image": torch.from_numpy(track.obs["image"][1:])}
    action, before = torch.from_numpy(track.action[1:]), tree.index(track.state, slice(-1))
    score, _ = Surprise(model)(Look(obs=obs, before=before, action=action), {})
    core, deter = model.core, track.state.deter[1:]  # the state after holds the same prediction
    posterior = core.posterior(deter, core.see(model.encoder(obs)))
    torch.testing.assert_close(score, core.kl(posterior, core.prior(deter)))


def test_drift_is_an_open_loop_rollout() -> None:
    model, steps = tiny_model(), 3
    track = tracks(1, 0, model)[0]
    part = Drift(model, steps)
    memory, scores = part.memory(1), []
    rows = [tree.index(track.state, slice(t, t + 1)) for t in range(len(track))]
    action = [torch.from_numpy(track.action[t : t + 1]) for t in range(len(track))]
    before = model.initial(1)
    for t in range(len(track)):
        obs = {"image": torch.from_numpy(track.obs["image"][t : t + 1])}
        look = Look(obs=obs, before=before, state=rows[t], action=action[t])
        score, memory = part(look, memory)
        scores.append(float(score))
        before = rows[t]
        if t < steps:
            continue
        core, imagined = model.core, rows[t - steps]
        for k in range(t - steps + 1, t + 1):
            deter = core.recur(imagined, core.embed_action(action[k]))
            prior = core.prior(deter)
            imagined = LatentState(deter, core.dist(prior).probs)
        posterior = core.posterior(rows[t].deter, core.see(model.encoder(obs)))
        assert scores[t] == pytest.approx(float(core.kl(posterior, prior)), rel=1e-4)
    assert scores[:steps] == [0.0] * steps
    assert min(scores[steps:]) > 0


class Sum:
    """A world that adds the action [B, 2], times `pushes` [2], to where it was, and is surprised by
    the square of what is left, in units of its noise."""

    def __init__(self, *pushes: float) -> None:
        self.pushes = torch.tensor(pushes or (1.0, 1.0))

    def surprise(self, state: Tensor, obs: dict[str, Tensor], action: Tensor) -> Tensor:
        left = (obs["x"] - state).unsqueeze(1) - action * self.pushes
        return (left / 0.1).square().sum(-1)


def moved(gain: float = 1.0, wind: float = 0.0, count: int = 100, seed: int = 0) -> Look:
    g = torch.Generator().manual_seed(seed)
    before, sent = torch.randn(count, 2, generator=g), torch.rand(count, 2, generator=g) * 2 - 1
    pushed = gain * sent + torch.tensor([0.0, wind]) + 0.1 * torch.randn(count, 2, generator=g)
    return Look(obs={"x": before + pushed}, before=before, action=sent)


def summed(part: Weaker | Pushed, rows: Look) -> list[float]:
    """The score after each row, one tick each."""
    memory, scores = part.memory(1), []
    for t in range(len(rows.action)):  # type: ignore[arg-type]
        score, memory = part(tree.index(rows, slice(t, t + 1)), memory)
        scores.append(float(score))
    return scores


@pytest.mark.parametrize("part", [Weaker(Sum(), TWO), Pushed(Sum(), 2)])  # type: ignore[arg-type]
def test_a_robot_that_does_not_do_what_it_is_told(part: Weaker | Pushed) -> None:
    part.fit(moved(count=2000, seed=1))
    usual = summed(part, moved())
    assert usual[0] == 0  # no action led there
    assert max(usual) < 8
    told = summed(part, moved(gain=0.7) if isinstance(part, Weaker) else moved(wind=0.15))
    assert max(told) > 3 * max(usual)
    over = summed(part, tree.cat([moved(gain=0.2, wind=0.5), moved(count=200)]))
    assert max(over) == 30  # no more, so that it ends
    assert over[-1] < 8


def test_a_weaker_choice_is_by_a_tenth_the_others() -> None:
    part = Weaker(Sum(), ActionSpec("discrete", (2, 3)))  # type: ignore[arg-type]
    sent = torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 1, 0, 0]])
    wanted = torch.tensor([[0.9, 0.1, 0.05, 0.9, 0.05], [0.1, 0.9, 0.9, 0.05, 0.05]])
    torch.testing.assert_close(part.others(sent), wanted.unsqueeze(1))

    world = Sum(-1.0, 1.0)  # what the two choices do

    def rows(gain: float, count: int, seed: int) -> Look:
        rng = torch.Generator().manual_seed(seed)
        choice = torch.eye(2)[torch.randint(2, (count,), generator=rng)]
        before = torch.randn(count, 2, generator=rng)
        move = gain * choice * world.pushes + 0.2 * torch.randn(count, 2, generator=rng)
        return Look(obs={"x": before + move}, before=before, action=choice)

    part = Weaker(world, ActionSpec("discrete", (2,)))  # type: ignore[arg-type]
    part.fit(rows(1.0, 2000, 1))
    usual = summed(part, rows(1.0, 300, 2))
    assert max(summed(part, rows(0.75, 100, 3))) > 2 * max(usual)


def test_surprises_under_many_actions_are_those_under_each() -> None:
    model = tiny_model()
    track = tracks(1, 0, model)[0]
    obs = {"image": torch.from_numpy(track.obs["image"][3:5])}
    state = tree.map(lambda x: x[2:4], track.state)
    actions = torch.rand(2, 3, track.action.shape[1]) * 2 - 1
    many = model.surprise(state, obs, actions)
    each = [model.surprise(state, obs, actions[:, k]) for k in range(3)]
    torch.testing.assert_close(many, torch.stack(each, 1))


def test_disagreement_is_about_the_step_that_led_here() -> None:
    model = tiny_model(members=3)
    part = Disagreement(model)
    state = LatentState(torch.randn(2, 16), torch.rand(2, 2, 4))
    action = torch.rand(2, 1)
    first, memory = part(Look(before=state, action=action), part.memory(2))
    assert first.tolist() == [0.0, 0.0]
    later, _ = part(Look(before=state, action=action), memory)
    torch.testing.assert_close(later, model.ensemble.disagreement(state.feat, action))


def test_stamps_that_do_not_move_on_are_stale() -> None:
    stale, no = Stamps(), np.zeros(2, bool)
    assert stale(None, no) is None
    found = [stale([1.0, 1.0], no), stale([1.1, 1.0], no), stale([1.0, 1.2], no)]
    assert [list(one) for one in found] == [[0, 0], [0, 2], [2, 0]]  # type: ignore[arg-type]
    again = stale([0.0, np.nan], np.ones(2, bool))
    assert again is not None
    assert list(again) == [0, 2]


def test_a_flow_of_rows_that_repeat_stays_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a world where all episodes are alike, features are a few points: no density at all."""
    monkeypatch.setattr(density, "FLOW_UPDATES", 150)
    points = torch.zeros(5, 6)
    points[:, 0] = torch.arange(5.0)  # the other five never move
    held = Look(vector=points.repeat(20, 1))
    flow = Flow(6)
    flow.fit(held)
    known, _ = flow(held, {})
    near, _ = flow(Look(vector=points + 1e-5), {})
    far, _ = flow(Look(vector=points + 10.0), {})
    assert known.max() < near.min()
    assert far.isfinite().all()
