"""The parts of a report: what really happened, how honest a world is, futures, and the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.apps.dreams import drawings, honesty, page
from agents.apps.dreams.episodes import DreamConfig, Experience, experience, windows
from agents.base import Policy
from agents.random import Random, RandomConfig
from agents.run.evaluate import evaluate
from tests.agents.play_runs import counting
from tests.agents.play_runs import policy as counting_policy
from tests.worldmodel.dream_worlds import POINT, Number, PointWorld
from worldmodel import dream
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.types import Prediction

POINT_ENV = EnvConfig(id="tests.worldmodel.dream_worlds:PointEnv", image_size=[48, 48])
CPU = torch.device("cpu")


class MirroredWorld(PointWorld):
    """It has left and right the wrong way round, and promises too much."""

    def step(self, state: Number, action: Tensor) -> Prediction:
        state, reward, cont = super().step(state, -action)
        return Prediction(state, reward + 1, cont)


def point_policy(world: Any) -> Policy:
    torch.manual_seed(0)
    agent = Random(POINT, RandomConfig(), CPU)
    agent.model = world
    return Policy(agent, POINT, POINT_ENV, CPU)


def settings(**changes: Any) -> DreamConfig:
    small: dict[str, Any] = {
        "run": "-", "play": 6, "starts": 24, "context": 2, "horizon": 10, "futures": 3,
    }  # fmt: skip
    return DreamConfig(**{**small, **changes})


def measured(world: Any, asked: DreamConfig) -> honesty.Honesty:
    policy = point_policy(world)
    found = windows(experience(policy, asked), world, asked)
    return honesty.measure(world, POINT, found, asked.context)


def test_fresh_episodes_are_whole_repeatable_and_shared_out() -> None:
    asked = settings(play=13)
    policy = point_policy(PointWorld())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    lived = [experience(point_policy(PointWorld()), asked) for _ in range(2)]
    other = experience(policy, settings(play=13, seed=1))
    assert len(lived[0]) == 13
    assert lived[0].lengths.tolist() == [21] * 13  # 20 steps and a first row
    a, b, c = (one.batch(range(13), 0, 21) for one in (*lived, other))
    assert torch.equal(a.obs["image"], b.obs["image"])
    assert not torch.equal(a.obs["image"], c.obs["image"])
    assert a.is_first[:, 0].all()
    assert a.is_last[:, 20].all()
    torch.set_rng_state(before)


def test_long_fresh_episodes_are_cut_off_after_two_dreams() -> None:
    lived = experience(point_policy(PointWorld()), settings(context=2, horizon=3))
    assert set(lived.lengths.tolist()) == {11}


def test_windows_follow_the_episode_from_its_beginning() -> None:
    asked = settings(play=2, starts=6)
    policy = counting_policy(counting(length=16))
    lived = experience(policy, asked)
    found = windows(lived, policy.model, asked)
    assert len(found.episode) == found.batch.shape[0] == 6
    assert sorted(set(found.first)) == [2, 4, 7]  # of 17 rows, 10 to come
    for i in range(6):
        # CountingEnv's image holds (episode, step, 0).
        assert found.batch.obs["image"][i, 2, 0, 0, 1] == found.first[i]
    later = [i for i, first in enumerate(found.first) if first > 2]
    assert found.batch.is_first.any(1).tolist() == [i not in later for i in range(6)]
    torch.manual_seed(0)
    whole = lived.batch([0], 0, 2)
    states = dream.follow(policy.model, whole)
    at = found.first.index(4)
    # The recurrent part of row 0 does not depend on the draws.
    assert torch.allclose(states.deter[0, 0], dream.follow(policy.model, whole).deter[0, 0])
    assert found.start.deter[at].abs().sum() > 0


def test_a_world_that_is_right_is_found_honest() -> None:
    result = measured(PointWorld(), settings())
    headline = result.headline()
    assert headline["what"] == "Image MSE"
    assert headline["step"] == 10
    assert headline["ratio"] > 4
    fit = result.calibration
    assert fit.correlation > 0.99
    assert fit.slope == pytest.approx(1, abs=0.05)
    assert abs(fit.bias) < 0.2
    assert result.errors["Continue error"][honesty.ONE].max() == 0
    assert result.errors["Reward error"][honesty.ONE].mean() < 0.02
    assert result.errors["Image SSIM"][honesty.ONE].mean() > 0.9
    assert "Latent KL" not in result.errors  # this world cannot tell


def test_a_world_that_is_wrong_is_found_out() -> None:
    right, wrong = measured(PointWorld(), settings()), measured(MirroredWorld(), settings())
    assert wrong.headline()["ratio"] < 1
    assert wrong.calibration.bias > 5  # a reward too much in each of ten steps
    assert wrong.headline()["repeated"] == pytest.approx(right.headline()["repeated"])


def test_the_baseline_repeats_the_last_frame_that_was_seen() -> None:
    asked = settings(play=1, starts=2)
    policy = point_policy(PointWorld())
    found = windows(experience(policy, asked), policy.model, asked)
    errors = honesty.measure(policy.model, POINT, found, 2).errors
    image = found.batch.obs["image"].double().numpy() / 255
    expected = ((image[:, 2:] - image[:, 1:2]) ** 2).mean((2, 3, 4))
    assert np.allclose(errors["Image MSE"]["last one repeated"], expected, atol=1e-6)
    reward = found.batch.reward.numpy()
    expected = abs(reward[:, 2:] - reward[:, 1:2])
    assert np.allclose(errors["Reward error"]["last one repeated"], expected)


def test_the_other_baseline_is_the_mean_of_all_frames() -> None:
    asked = settings(play=4, starts=40)  # more than one batch of dreams
    policy = point_policy(PointWorld())
    found = windows(experience(policy, asked), policy.model, asked)
    result = honesty.measure(policy.model, POINT, found, 2)
    image = found.batch.obs["image"].double().numpy() / 255
    expected = ((image - image.mean((0, 1)))[:, 2:] ** 2).mean((2, 3, 4))
    assert len(image) > honesty.CHUNK
    assert np.allclose(result.errors["Image MSE"]["mean of all frames"], expected, atol=1e-6)
    assert "mean of all frames" not in result.errors["Reward error"]
    headline = result.headline()
    assert headline["average"] == pytest.approx(expected[:, 9].mean(), rel=1e-4)
    assert headline["ratio_to_average"] == pytest.approx(headline["average"] / headline["model"])


def test_what_a_model_expects_has_less_squared_error_than_one_dream() -> None:
    policy = counting_policy(counting(length=16))
    found = windows(experience(policy, settings(play=2, starts=8)), policy.model, settings())
    one, several = (honesty.measure(policy.model, policy.spec, found, 2, k) for k in (1, 16))
    assert honesty.MEAN not in one.errors["Image MSE"]
    errors = several.errors["Image MSE"]
    assert errors[honesty.MEAN].mean() < errors[honesty.ONE].mean()
    headline = several.headline()
    assert headline["model"] < headline["one_dream"]
    assert headline["ratio"] > headline["ratio_of_one_dream"]


def test_the_first_imagined_kl_is_that_of_the_filter() -> None:
    policy = counting_policy(counting(length=16))
    asked = settings(play=2, starts=4)
    found = windows(experience(policy, asked), policy.model, asked)
    kl = honesty.measure(policy.model, policy.spec, found, 2).errors["Latent KL"][honesty.ONE]
    assert kl.shape == (4, 10)
    assert (kl >= 0).all()
    assert kl.max() > 0


def test_futures_of_an_agent_that_can_act_in_imagination() -> None:
    policy = counting_policy(counting(length=16))
    with torch.no_grad():
        found = drawings.imagine(policy, policy.model.initial(1), settings())
    assert found.kinds == ["policy"] * 3 + ["random"] * 3
    assert set(found.numbers) == {"reward", "cont", "value"}
    assert found.numbers["value"].shape == (6, 10)
    assert (len(found.pictures), len(found.pictures[0])) == (10, 6)
    assert ((found.numbers["cont"] >= 0) & (found.numbers["cont"] <= 1)).all()
    picture = drawings.grid(found.pictures[0][0], found)
    assert picture.shape[0] > 6 * drawings.SIDE
    film = drawings.film(found.pictures[0][0], found, 96)
    assert len(film) == 11
    assert not (film[0] == dream.MARK).all(-1).any()  # the first frame is real
    assert (film[1] == dream.MARK).all(-1).any()


def test_futures_without_policy_or_value_are_random_alone() -> None:
    policy = point_policy(PointWorld())
    start = Number(torch.ones(1, 1))
    found = drawings.imagine(policy, start, settings())
    assert found.kinds == ["random"] * 3
    assert set(found.numbers) == {"reward", "cont"}
    assert len(np.unique(found.numbers["reward"][:, -1])) == 3  # they part ways
    again = drawings.imagine(policy, start, settings())
    assert np.array_equal(again.numbers["reward"], found.numbers["reward"])


def test_returns_of_futures_are_discounted_and_end() -> None:
    numbers = {
        "reward": np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]),
        "cont": np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]),
    }
    found = drawings.Futures(["policy", "random"], [], numbers)
    assert found.returns(0.5) == {"policy": 1.75, "random": 1.0}


def test_too_short_episodes_say_how_long_they_are() -> None:
    policy = point_policy(PointWorld())
    lived = experience(policy, settings(context=2, horizon=30))
    with pytest.raises(ConfigError, match=r"need an episode of 32 rows, but the 6 ep.* have 21 "):
        lived.long_enough(settings(context=2, horizon=30))
    with pytest.raises(ConfigError, match="Give horizon=19 or less"):
        lived.shown(settings(context=2, horizon=30))
    assert lived.shown(settings(pick=[5, 0])) == [5, 0]
    with pytest.raises(ConfigError, match="there is no episode 6: they are numbered 0 to 5"):
        lived.shown(settings(pick=[6]))
    with pytest.raises(ConfigError, match="Episode 1 has 21 rows"):
        lived.shown(settings(pick=[1], horizon=25))


def test_short_episodes_are_left_out_where_others_fit() -> None:
    policy = counting_policy(counting(lengths=[4, 15]))
    asked = settings(play=2, starts=4)
    spec, replay = policy.spec, Replay(policy.spec, ReplayConfig(capacity=200), 1)
    evaluate(policy.agent, spec, policy.env, 3, num_envs=1, replay=replay)
    lived = Experience(replay, replay.episodes(complete=True), [0, 1, 2], "three episodes")
    assert lived.lengths.tolist() == [5, 16, 5]
    assert lived.long_enough(asked) == [1]
    assert set(windows(lived, policy.model, asked).episode) == {1}
    with pytest.raises(ConfigError, match="the 3 episodes have 5 to 16"):
        lived.long_enough(settings(horizon=20))


def test_recorded_episodes_keep_their_numbers_where_one_has_lost_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = counting_policy(counting(length=16))
    replay = Replay(policy.spec, ReplayConfig(capacity=40), 1)
    evaluate(policy.agent, policy.spec, policy.env, 3, num_envs=1, replay=replay)
    assert len(replay.episodes()) > len(replay.episodes(complete=True))
    monkeypatch.setattr("agents.load_replay", lambda run: replay)
    lived = experience(policy, settings(source="replay"))
    assert lived.used == [1, 2]
    assert lived.shown(settings(source="replay")) == [1, 2]
    assert lived.lengths[1:3].tolist() == [17, 17]
    assert lived.about.startswith("the newest 2 of 2 recorded episodes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "frsh"}, "Unknown source 'frsh'. Known: fresh, replay. Did you mean 'fresh'?"),
        ({"mode": "best"}, "Unknown mode 'best'"),
        ({"context": 0}, "context is 0; allowed: 1 to"),
        ({"horizon": 0}, "horizon is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_settings_say_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        settings(**changes)


def told(**headline: Any) -> dict[str, Any]:
    found = {
        "what": "Image MSE",
        "step": 20,
        "model": 0.5,
        "repeated": 1.0,
        "ratio": 2.0,
        "one_dream": 0.8,
        "ratio_of_one_dream": 1.25,
        "average": 0.3,
        "ratio_to_average": 0.6,
    }
    return {"headline": {**found, **headline}, "starts_used": 7}


def test_the_headline_says_which_side_won() -> None:
    assert "a ratio of 2.00, better than not predicting" in honesty.headline(told())
    assert "that of always showing the mean of all frames 0.3, a ratio of 0.60" in (
        honesty.headline(told())
    )
    assert "of one dream alone 1.25" in honesty.headline(told())
    for ratio, words in ((0.5, "0.50, no better than"), (1.004, "1.00, no better than")):
        assert f"a ratio of {words}" in honesty.headline(told(ratio=ratio))
    assert "ratio" not in honesty.headline(told(ratio=None, ratio_to_average=None, model=0.0))
    assert "no error to compare" in honesty.headline({"headline": {}, "starts_used": 1})


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    from worldmodel.log import write_picture

    image = tmp_path / "a.png"
    write_picture(image, np.zeros((8, 8, 3), np.uint8))
    pictures = [page.Picture(image, 'the "first" <one>', "words", s) for s in page.SHAPES]
    section = page.Section("A & B", ["if a < b"], pictures)
    path = page.write(tmp_path / "p.html", "T<", ["H&"], [("k<", "v>")], [section], "foot")
    text = path.read_text()
    assert len(re.findall(r'src="data:image/png;base64,', text)) == len(page.SHAPES)
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert text.count("alt=") == len(pictures)
    for raw in ("T<<", "k<<", "<one>", "a < b"):
        assert raw not in text
    assert "&lt;one&gt;" in text
    assert 'name="viewport"' in text
