"""Heads: that they find rewards which are known, and are measured truly."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from agents.apps.episodes import Episodes
from agents.apps.rewards import comparisons, fit, report
from agents.apps.rewards.labels import Examples, Labels, split
from agents.apps.rewards.latents import Latents, filtered
from agents.apps.rewards.store import with_heads
from agents.apps.rewards.tables import Pairs
from agents.base import Policy
from agents.random import Random, RandomConfig
from tests.agents.rewards_run import replay_of
from tests.model_batches import random_batch, scramble, spec_of, tiny
from worldmodel import dream
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.rssm import WorldModel
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec, Prediction

CPU = torch.device("cpu")
QUIET = lambda text: None  # noqa: E731
DETER = 16


def model_of(**changes: Any) -> WorldModel:
    torch.manual_seed(0)
    spec = spec_of(ActionSpec("continuous", (2,)), x=ObsSpec("vector", (2,)))
    model = WorldModel(spec, tiny(units=32, **changes))
    scramble(model)
    return model.requires_grad_(False)


def synthetic(model: WorldModel, lengths: list[int]) -> tuple[Latents, np.ndarray]:
    """Random states, and a reward that is linear in them, [rows]."""
    latents = Latents(model, range(len(lengths)), np.array(lengths))
    rng = np.random.default_rng(0)
    deter, stoch = latents.stored["deter"], latents.stored["stoch"]
    deter[:] = rng.uniform(-1, 1, deter.shape)
    stoch[:] = rng.integers(0, 4, stoch.shape)
    weights = rng.normal(size=DETER)
    return latents, deter.astype(np.float64) @ weights + 3.0


@pytest.mark.parametrize("kind", ["twohot", "mse"])
def test_a_head_finds_a_linear_reward(kind: str) -> None:
    model = model_of()
    lengths = [50] * 40
    latents, reward = synthetic(model, lengths)
    examples = split(Labels(list(reward.reshape(40, 50))), 0.25, 0)
    head = fit.blank_head(model, kind, 1, 0)
    loss = fit.regression(head, latents, examples, 128, dropout=0.0)
    fit.train(head, 600, 3e-3, loss, 0, QUIET)
    fit.rescale(head, *fit.unit_of(head, examples))
    guess = fit.predicted(head, latents, latents.rows(examples.episode, examples.step))
    held = examples.held_out
    constant = float(examples.value[~held].mean())
    assert fit.errors(guess[held], examples.value[held], constant)["r2"] > 0.95


def test_an_untrained_head_is_a_constant_and_a_fit_can_be_repeated() -> None:
    model = model_of()
    latents, reward = synthetic(model, [30] * 4)
    examples = split(Labels(list(reward.reshape(4, 30))), 0.25, 0)
    found = []
    for _ in range(2):
        head = fit.blank_head(model, "twohot", 1, 7)
        before = fit.predicted(head, latents, np.arange(120))
        assert (before == 0).all()
        loss = fit.regression(head, latents, examples, 16, dropout=0.0)
        fit.train(head, 10, 1e-3, loss, 0, QUIET)
        found.append(fit.predicted(head, latents, np.arange(120)))
    assert np.array_equal(*found)
    assert found[0].std() > 0


def test_bradley_terry_finds_the_order_of_rewards() -> None:
    """From comparisons alone: no reward is ever shown."""
    model = model_of()
    latents, reward = synthetic(model, [40] * 20)
    rng = np.random.default_rng(1)
    episode, start = rng.integers(20, size=(400, 2)), rng.integers(30, size=(400, 2))
    table = reward.reshape(20, 40)
    sums = np.array([
        [table[e, s : s + 8].sum() for e, s in zip(*pair, strict=True)]
        for pair in zip(episode, start, strict=True)
    ])  # fmt: skip
    preferred = (sums[:, 1] > sums[:, 0]).astype(np.float64)
    pairs = Pairs(episode, start, np.full(400, 8), preferred, np.isin(episode, [3, 7]).any(1))
    head = fit.blank_head(model, "mse", 1, 0)
    fit.train(head, 400, 1e-3, comparisons.comparison(head, latents, pairs, 32, 0.5), 0, QUIET)
    held = comparisons.pair_errors(head, latents, pairs, np.flatnonzero(pairs.held_out))
    assert held["right"] > 0.85
    assert held["loss"] < held["constant_loss"]
    guess = fit.predicted(head, latents, np.arange(800))
    assert np.corrcoef(guess, reward)[0, 1] > 0.85


def test_the_loss_of_a_comparison_by_hand() -> None:
    model = model_of()
    latents, _ = synthetic(model, [6, 6])
    head = fit.blank_head(model, "mse", 1, 0)
    torch.nn.init.normal_(head.out.weight)
    one = np.ones(1, np.int64)
    pairs = Pairs(np.array([[0, 1]]), np.array([[1, 2]]), 3 * one, np.array([0.3]), one == 0)
    loss = comparisons.comparison(head, latents, pairs, 1, 0.0)
    value = loss(np.random.default_rng(0)).item()
    guess = fit.predicted(head, latents, np.arange(12)).reshape(2, 6)
    p = 1 / (1 + np.exp(guess[0, 1:4].sum() - guess[1, 2:5].sum()))
    assert value == pytest.approx(-0.3 * np.log(p) - 0.7 * np.log(1 - p), rel=1e-4)
    judged = comparisons.pair_errors(head, latents, pairs, np.zeros(1, np.int64))
    assert judged["loss"] == pytest.approx(value, rel=1e-4)
    assert judged["right"] == float(p < 0.5)


def test_the_scale_of_log_odds_is_found_and_few_right_answers_make_none_certain() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 20_000)
    answers = (rng.random(20_000) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    assert comparisons.best_scale(5 * logit, answers) == pytest.approx(0.2, rel=0.1)
    # Four of four right at log odds of 1: five of six, softened, which is log 5.
    right = comparisons.best_scale(np.ones(4), np.ones(4))
    assert right == pytest.approx(np.log(5), rel=0.03)
    assert comparisons.best_scale(np.ones(4), np.zeros(4)) == comparisons.SCALES[0]


def test_no_head_is_sure_of_random_answers() -> None:
    model = model_of()
    latents, _ = synthetic(model, [12] * 12)
    rng = np.random.default_rng(0)
    episode, start = rng.integers(12, size=(60, 2)), rng.integers(8, size=(60, 2))
    answers = rng.integers(2, size=60).astype(np.float64)
    held_out = np.isin(episode, [3, 7]).any(1)
    pairs = Pairs(episode, start, np.full(60, 4), answers, held_out)
    recipe = comparisons.Recipe(updates=80, dropout=0.0, lr=3e-3)
    _, found = comparisons.fit_pairs(model, latents, pairs, recipe, 0, QUIET)
    guessing = found["held_out"]["constant_loss"]
    assert found["calibration"]["before"]["held_out"]["loss"] > guessing + 0.1
    assert found["held_out"]["loss"] < guessing + 0.1


def test_whether_pairs_are_too_few_by_hand() -> None:
    held = {"loss": 0.6, "loss_error": 0.09, "constant_loss": 0.693}
    assert not comparisons.too_few(held)
    assert comparisons.too_few({**held, "loss_error": 0.1})
    assert comparisons.too_few({**held, "loss_error": float("nan")})  # a single pair
    found = {"seen": report.occurrence(Labels([np.arange(3.0)]))}
    found["calibration"] = {"scale": 0.5, "pairs": 9, "before": {"held_out": held}}
    held |= {"pairs": 4, "right": 0.5}
    assert "TOO FEW PAIRS" not in report.text({**found, "held_out": held})
    assert "TOO FEW PAIRS" in report.text({**found, "held_out": {**held, "loss": 0.7}})
    assert "no pair is held out" in report.text(found)


def test_errors_by_hand() -> None:
    found = fit.errors(np.array([1.0, 3.0]), np.array([2.0, 6.0]), constant=3.0)
    assert found["mae"] == 2.0
    assert found["rmse"] == pytest.approx(5**0.5)
    assert found["constant_mae"] == 2.0
    assert found["r2"] == 0.0
    assert np.isnan(fit.errors(np.ones(2), np.ones(2), 1.0)["r2"])


def test_a_fit_is_judged_and_says_what_to_do() -> None:
    def said(held: float, taught: float) -> str:
        rows = dict.fromkeys(("mae", "rmse", "constant_mae", "constant_rmse"), 1.0) | {"rows": 9}
        found = {"held_out": {**rows, "r2": held}, "taught": {**rows, "r2": taught}}
        return report.text({"seen": report.occurrence(Labels([np.arange(3.0)])), **found})

    assert "FIT" not in said(0.9, 0.99)
    assert "FIT" not in said(float("nan"), 0.0)  # all held-out labels are alike
    assert "FAIR FIT" in said(0.5, 0.5)
    assert "POOR FIT" in said(-2.0, 0.1)
    assert "explains 0% of" in said(-2.0, 0.1)
    assert "label more episodes" in said(0.1, 0.56)  # 0.44 is less than half of 0.9
    assert "not be visible to the model" in said(0.1, 0.54)


# Latents


def test_filtering_episodes_side_by_side_equals_one_by_one() -> None:
    """Episodes of many lengths, longer than a chunk, one without its beginning."""
    torch.manual_seed(0)
    spec = EnvSpec({"x": ObsSpec("vector", (2,))}, ActionSpec("continuous", (2,)))
    model = WorldModel(spec, tiny(latent="gaussian"))
    scramble(model, scale=0.05)
    # The mean instead of a draw, so that chance plays no part.
    model.core.sample = lambda params: params[..., :1].tanh()  # type: ignore[method-assign]
    full = replay_of([150, 70, 64, 3, 1, 150])
    replay = Replay(spec, ReplayConfig(capacity=400), 1)
    for start in range(0, 438):
        rows = full.rows(0, start, start + 1)
        replay.add(rows)
    episodes = Episodes(replay)
    assert episodes.lengths.tolist() == [112, 70, 64, 3, 1, 150]
    latents = filtered(model, episodes, [0, 1, 2, 3, 5])
    for number in (0, 1, 3, 5):
        rows = episodes.read(number)
        batch = random_batch(spec, 1, len(rows["reward"]))
        batch.obs = {"x": torch.from_numpy(rows["x"])[None]}
        batch.action = torch.from_numpy(rows["action"])[None]
        batch.is_first = torch.from_numpy(rows["is_first"])[None]
        batch.is_first[:, 0] = True  # nothing is known before what the replay holds
        states = dream.follow(model, batch)
        ours = latents.states(latents.rows(number, np.arange(len(rows["reward"]))))
        assert torch.allclose(ours.deter, states.deter[0], atol=2e-3)  # kept as float16
        assert torch.allclose(ours.stoch, states.stoch[0], atol=2e-3)


class Sum(NamedTuple):
    value: torch.Tensor  # [..., 1]


class SummingWorld:
    """Its state sums the actions' second entry. It neither packs its states nor takes heads."""

    discount, feat_size, feat_bound = 1.0, 1, math.inf

    def initial(self, batch_size: int) -> Sum:
        return Sum(torch.zeros(batch_size, 1))

    def observe(self, state: Sum, obs: Any, action: torch.Tensor, is_first: torch.Tensor) -> Sum:
        before = torch.where(is_first[:, None], 0.0, state.value)
        return Sum(before + torch.where(is_first[:, None], 0.0, action[:, 1:]))

    def step(self, state: Sum, action: torch.Tensor) -> Prediction[Sum]:
        after = state.value + action[:, 1:]
        return Prediction(Sum(after), after[:, 0], torch.ones(len(after)))

    def feat(self, state: Sum) -> torch.Tensor:
        return state.value


class Reader:
    """Predicts the first feature."""

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def predict(self, feat: torch.Tensor) -> torch.Tensor:
        return feat[..., 0]


def test_dreams_are_compared_with_the_rows_that_really_came() -> None:
    """In this replay the action of step t is t / 100, so sums of actions tell the steps apart."""
    episodes, world = Episodes(replay_of([20, 20, 20])), SummingWorld()
    latents = filtered(world, episodes, range(3))
    sums = np.arange(20).cumsum() / 100
    assert np.allclose(latents.feat(np.arange(60))[:, 0], np.tile(sums, 3))
    labels = Labels([np.concatenate([[np.nan], sums[1:]]) for _ in range(3)])
    examples = split(labels, 0.34, 0)
    reader: Any = Reader()
    found = fit.errors_ahead(reader, world, episodes, latents, examples, 0)
    assert list(found) == ["1", "5", "10", "15"]
    for ahead, errors in found.items():
        assert errors["mae"] < 1e-3, ahead
        assert errors["rows"] == 20 - max(int(ahead), 1)


def test_a_head_can_be_fitted_on_any_world_with_features() -> None:
    """One that takes no heads: the head serves to score, and knows the world that it reads."""
    episodes, world = Episodes(replay_of([20] * 6)), SummingWorld()
    latents = filtered(world, episodes, range(6))
    labels = Labels([np.arange(20.0) for _ in range(6)])
    examples = split(labels, 0.2, 0)
    head = fit.blank_head(world, "mse", 1, 0)
    fit.train(head, 300, 3e-3, fit.regression(head, latents, examples, 64, 0.0), 0, QUIET)
    fit.rescale(head, *fit.unit_of(head, examples))
    guess = fit.predicted(head, latents, np.arange(20))
    assert np.corrcoef(guess, np.arange(20))[0, 1] > 0.95
    policy = Policy(Random(episodes.spec, RandomConfig(), CPU), episodes.spec, EnvConfig("x"), CPU)
    policy.agent.model = world
    with pytest.raises(ConfigError, match="A SummingWorld has its own reward, and no head can pay"):
        with_heads("nowhere", {"reward": 1.0}, policy)
    policy.agent.model = torch.nn.Identity()
    with pytest.raises(ConfigError, match="'nowhere' has a Identity without any"):
        with_heads("nowhere", {"reward": 1.0}, policy)


# Reports


def test_calibration_bins_by_hand() -> None:
    predicted = np.arange(20.0)
    bins = report.calibration(predicted, predicted + 1)
    assert len(bins) == 10
    assert [one["rows"] for one in bins] == [2] * 10
    assert bins[3]["predicted"] == 6.5
    assert bins[3]["true"] == 7.5
    assert (bins[3]["low"], bins[3]["high"]) == (6, 7)
    assert len(report.calibration(predicted[:4], predicted[:4])) == 4


def test_where_a_reward_was_seen_by_hand() -> None:
    nan = float("nan")
    labels = Labels([np.array([nan, 0.0, 0.0, 10.0]), np.array([nan, 6.0, 6.0]), np.array([nan])])
    found = report.occurrence(labels)
    assert (found["labels"], found["episodes"], found["min"], found["max"]) == (5, 2, 0.0, 10.0)
    share = {one["level"]: (one["rows"], one["episodes"]) for one in found["levels"]}
    assert share == {1: (0.6, 1), 2.5: (0.6, 1), 5: (0.6, 1), 7.5: (0.2, 0.5), 9: (0.2, 0.5)}
    assert (found["best_episode"], found["best_mean"], found["best_sum"]) == (1, 6.0, 12.0)
    assert sum(found["histogram"]["counts"]) == 5


def test_examples_judge_by_what_was_held_out() -> None:
    n = np.arange(4)
    some = Examples(n, n, n * 1.0, np.array([False, True, False, True]))
    assert some.judging.tolist() == [False, True, False, True]
    none = Examples(n, n, n * 1.0, np.zeros(4, bool))
    assert none.judging.all()
