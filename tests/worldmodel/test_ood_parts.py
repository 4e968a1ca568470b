"""Each part against its own definition, on small numbers or against a library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.worldmodel.ood_tracks import tiny_model, tracks
from worldmodel.ood.density import Flow, Mixture
from worldmodel.ood.disagreement import Disagreement
from worldmodel.ood.divergence import Divergence, code_length
from worldmodel.ood.drift import Drift
from worldmodel.ood.features import features
from worldmodel.ood.frozen import Frozen
from worldmodel.ood.look import Look, Looker, expected_stoch
from worldmodel.ood.neighbours import Neighbours
from worldmodel.ood.patches import WorstPatch, patch_errors
from worldmodel.ood.reconstruction import Reconstruction, Typicality
from worldmodel.ood.stale import Stale
from worldmodel.ood.surprise import Surprise
from worldmodel.rssm.state import LatentState


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
    part.fit(held, held)
    scale = torch.tensor([0.1, 1.0, 1.0, 1.0, 0.01]).view(-1, 1, 1, 1)
    score, _ = part(Look(error=scale * torch.ones(5, 1, 4, 4) * torch.tensor(1.0)), {})
    assert score[0] < 1e-4
    torch.testing.assert_close(score[1], score[4])  # ten times more and ten times less


def test_a_patch_counts_in_the_unit_of_its_place() -> None:
    error = 0.01 * torch.ones(100, 3, 32, 32)
    error[:, :, :8, :8] = 0.1  # where the robot moves
    part = WorstPatch()
    part.fit(Look(error=error), Look(error=error))
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
    part.fit(Look(error=error), Look(error=error))
    small = 0.05 * torch.ones(1, 3, 32, 32)
    small[:, :, 8:11, 8:11] = 0.3
    assert Reconstruction()(Look(error=small), {})[0] < Reconstruction()(Look(error=error), {})[
        0
    ].quantile(0.9)
    assert part(Look(error=small), {})[0] > 2 * part(Look(error=error), {})[0].max()


def test_code_length_is_the_kl_of_normals() -> None:
    mean, std = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.5]])
    target = torch.distributions.Normal(0, 1)
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), target)
    torch.testing.assert_close(code_length(Look(mean=mean, std=std)), expected.sum(-1))
    part = Divergence()
    held = Look(mean=torch.zeros(3, 2), std=torch.full((3, 2), 0.5))
    part.fit(held, held)
    even = Look(mean=torch.zeros(1, 2), std=torch.ones(1, 2))
    assert part(even, {})[0] > 0.3  # less to say than usual


def test_the_mixture_is_the_library_s() -> None:
    from sklearn.mixture import GaussianMixture

    held, fresh = coded(400), coded(20, 1)
    part = Mixture(3)
    part.fit(held, held)
    values = part.standard(features(held)).double().numpy()
    reference = GaussianMixture(8, reg_covar=1e-3, random_state=0).fit(values)
    expected = reference.score_samples(part.standard(features(fresh)).double().numpy())
    score, _ = part(fresh, {})
    np.testing.assert_allclose(-score.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_a_flow_finds_what_is_far_away_unlikely() -> None:
    held = coded(400)
    part = Flow(3)
    part.fit(held, held)
    far = held._replace(mean=held.mean + 6)  # type: ignore[operator]
    assert part(far, {})[0].median() > part(held, {})[0].max()


def test_the_fifth_nearest_by_hand() -> None:
    held = coded(300)
    part = Neighbours(3)
    part.fit(held, held)
    bank = part.standard(features(held))
    fresh = coded(4, 2)
    away = torch.cdist(part.standard(features(fresh)), bank).sort(-1).values[:, 4]
    torch.testing.assert_close(part(fresh, {})[0], away, rtol=1e-3, atol=1e-3)


def test_a_frozen_camera_is_counted_until_it_moves() -> None:
    part = Frozen((1, 2, 2))
    memory = part.memory(2)
    scores = []
    for value in (0.0, 0.0, 0.0, 0.5, 0.5):  # the first zero is no repetition
        image = torch.full((2, 1, 2, 2), value)
        image[1] = torch.rand(1, 2, 2)
        score, memory = part(Look(image=image), memory)
        scores.append(score.tolist())
    assert [one[0] for one in scores] == [0, 1, 2, 0, 1]
    assert [one[1] for one in scores] == [0] * 5


def test_surprise_is_that_of_the_world_model() -> None:
    model = tiny_model()
    track = tracks(1, 0, model)[0]
    assert track.state is not None
    looker = Looker([], None, model)
    obs = {"image": torch.from_numpy(track.obs["image"])}
    action = torch.from_numpy(track.action)
    look = looker(obs, track.state, action)
    score, _ = Surprise(model.core)(look, {})
    before = track.state.map(lambda x: x[:-1])
    after = {key: value[1:] for key, value in obs.items()}
    torch.testing.assert_close(score[1:], model.surprise(before, after, action[1:]))


def test_drift_is_an_open_loop_rollout() -> None:
    model, steps = tiny_model(), 3
    track = tracks(1, 0, model)[0]
    assert track.state is not None
    looker, part = Looker([], None, model), Drift(model.core, steps)
    memory, scores = part.memory(1), []
    for t in range(len(track)):
        obs = {"image": torch.from_numpy(track.obs["image"][t : t + 1])}
        state = track.state.map(lambda x, t=t: x[t : t + 1])
        look = looker(obs, state, torch.from_numpy(track.action[t : t + 1]))
        score, memory = part(look, memory)
        scores.append(float(score))
        if t < steps:
            continue
        core = model.core
        imagined = track.state.map(lambda x, t=t: x[t - steps : t - steps + 1])
        for k in range(t - steps + 1, t + 1):
            action = core.embed_action(torch.from_numpy(track.action[k : k + 1]))
            deter = core.recur(imagined, action)
            prior = core.prior(deter)
            imagined = LatentState(deter, expected_stoch(core, prior))
        assert look.posterior is not None
        assert scores[t] == pytest.approx(float(core.kl(look.posterior, prior)), rel=1e-4)
    assert scores[:steps] == [0.0] * steps
    assert min(scores[steps:]) > 0


def test_disagreement_is_about_the_step_that_led_here() -> None:
    model = tiny_model(members=3)
    assert model.ensemble is not None
    part = Disagreement(model.ensemble, model.feat_size)
    state = LatentState(torch.randn(2, 16), torch.rand(2, 2, 4))
    action = torch.rand(2, 1)
    first, memory = part(Look(state=state, action=action), part.memory(2))
    assert first.tolist() == [0.0, 0.0]
    later, _ = part(Look(state=state, action=action), memory)
    torch.testing.assert_close(later, model.ensemble.disagreement(state.feat, action))


def test_stamps_that_do_not_move_on_are_stale() -> None:
    stale, no = Stale(), np.zeros(2, bool)
    assert stale(None, no) is None
    told = [stale([1.0, 1.0], no), stale([1.1, 1.0], no), stale([1.0, 1.2], no)]
    assert [list(one) for one in told] == [[0, 0], [0, 2], [2, 0]]  # type: ignore[arg-type]
    again = stale([0.0, np.nan], np.ones(2, bool))
    assert again is not None
    assert list(again) == [0, 2]
