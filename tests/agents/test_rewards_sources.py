"""Labels: that they stand with the right rows, from every source, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.apps.episodes import Episodes
from agents.apps.rewards.labels import Labels, check_varied, parse, split, thinned, transitions
from agents.apps.rewards.latents import goal_observations, look
from agents.apps.rewards.pipeline import labels_of
from agents.apps.rewards.tables import read_pairs, split_pairs
from agents.run.collect import Collector
from tests.agents.counting_agent import CountingAgent, CountingConfig
from tests.agents.rewards_run import replay_of
from tests.model_batches import SPECS, scramble, tiny
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig, env_spec, make_vector
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.rssm import WorldModel
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

HERE = "tests.agents.test_rewards_sources"
CALLS: list[tuple[Any, ...]] = []


def witness(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    CALLS.append((obs, action, next_obs, info))
    return 100.0 * info["episode"] + info["step"]


def all_at_once(obs: Any, action: Any, next_obs: Any, info: Any) -> np.ndarray:
    CALLS.append((obs, action, next_obs, info))
    return 100.0 * info["episode"] + next_obs["count"][:, 1]


all_at_once.vectorised = True  # type: ignore[attr-defined]


def collected(actions: str, num_envs: int = 2, steps: int = 25) -> Replay:
    """Rows as a run records them."""
    config = EnvConfig(
        "tests.envs_for_tests:CountingEnv",
        image_size=[32, 32],
        state=True,
        kwargs={"lengths": [3, 5], "actions": actions},
    )
    envs = make_vector(config, num_envs, seed=0)
    spec = env_spec(envs)
    torch.manual_seed(0)
    agent = CountingAgent(spec, CountingConfig(), torch.device("cpu"))
    collector = Collector(envs, spec, agent, 0)
    replay = Replay(spec, ReplayConfig(capacity=200), num_envs)
    for _ in range(steps):
        collector.step(replay)
    envs.close()
    return replay


@pytest.mark.parametrize("actions", ["discrete", "multidiscrete", "box"])
def test_a_function_sees_the_action_between_its_two_observations(actions: str) -> None:
    """The environment writes into every observation which action led there, as it was given."""
    CALLS.clear()
    replay = collected(actions)
    episodes = Episodes(replay)
    labels = labels_of(parse(f"{HERE}:witness"), episodes)
    assert len(CALLS) == episodes.lengths.sum() - len(
        episodes
    )  # one for every step, none for resets
    for before, action, after, info in CALLS:
        episode, step, *native = after["count"]
        assert before["count"][0] == episode
        assert before["count"][1] == step - 1
        assert info["step"] == step == info["reward"]
        assert before["image"][0, 0].tolist() == [episode, step - 1, 0]
        assert after["image"][0, 0].tolist() == [episode, step, 0]
        if actions == "box":  # [-1, 1] became [-2, 4]; what was drawn beyond was clipped
            assert np.abs(action).max() <= 1
            np.testing.assert_allclose(np.array(native), 3 * action + 1, atol=1e-5)
        else:
            assert np.array_equal(np.ravel(action), native)
        assert info["is_last"] == (step == (3 if episode % 2 == 0 else 5))
    for number, values in enumerate(labels.values):
        assert np.isnan(values[0])
        assert values[1:].tolist() == [100.0 * number + t for t in range(1, len(values))]


def test_a_vectorised_function_labels_alike_with_one_call_for_an_episode() -> None:
    replay = collected("discrete", num_envs=1)
    episodes = Episodes(replay)
    one = labels_of(parse(f"{HERE}:witness"), episodes)
    CALLS.clear()
    other = labels_of(parse(f"{HERE}:all_at_once"), episodes)
    assert len(CALLS) == sum(length > 1 for length in episodes.lengths)
    for a, b in zip(one.values, other.values, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_overwritten_beginning_has_no_label() -> None:
    spec = EnvSpec({"x": ObsSpec("vector", (2,))}, ActionSpec("continuous", (2,)))
    full = replay_of([6, 6])
    short = Replay(spec, ReplayConfig(capacity=9), 1)
    for number in (0, 1):
        rows = Episodes(full).read(number)
        for t in range(6):
            short.add({key: value[t][None] for key, value in rows.items()})
    episodes = Episodes(short)
    assert episodes.lengths.tolist() == [3, 6]
    before, _, after, info = transitions(episodes, 0)
    assert before["x"][:, 1].tolist() == [3, 4]
    assert after["x"][:, 1].tolist() == [4, 5]
    assert info["step"].tolist() == [1, 2]


def test_keys_of_one_number_are_labels() -> None:
    spec = EnvSpec(
        {"x": ObsSpec("vector", (2,)), "height": ObsSpec("recorded", (1,))},
        ActionSpec("continuous", (2,)),
    )
    replay = Replay(spec, ReplayConfig(capacity=50), 1)
    old = Episodes(replay_of([4]))
    for t in range(4):
        row = {key: value[t][None] for key, value in old.read(0).items()}
        replay.add(row | {"height": np.array([[10.0 + t]], np.float32)})
    episodes = Episodes(replay)
    labels = labels_of(parse("key:height"), episodes)
    assert labels.values[0].tolist() == [10, 11, 12, 13]
    rewards = labels_of(parse("key:reward"), episodes).values[0]
    assert np.isnan(rewards[0])
    assert rewards[1:].tolist() == [1, 2, 3]
    with pytest.raises(ConfigError, match=r"Unknown key 'hieght'. Known: .*Did you mean 'height'"):
        labels_of(parse("key:hieght"), episodes)
    with pytest.raises(ConfigError, match=r"'x' holds \[2\] numbers .*Write a function"):
        labels_of(parse("key:x"), episodes)


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_sparse_labels_stand_where_the_file_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    if suffix == "csv":
        path.write_text("step, value, episode, who\n2, 0.5, 1, me\n0, -1, 0, me\n4,3e0,1,you\n")
    else:
        np.savez(path, episode=[1, 0, 1], step=[2, 0, 4], value=[0.5, -1, 3])
    labels = labels_of(parse(f"labels:{path}"), Episodes(replay_of([3, 5])))
    assert labels.values[1][[2, 4]].tolist() == [0.5, 3.0]
    assert labels.values[0][0] == -1
    assert sorted(labels.all) == [-1, 0.5, 3]
    assert labels.episodes == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("episode,step\n0,1\n", "lacks the columns value. It has episode, step"),
        ("episode,step,value\n", "holds no rows"),
        ("episode,step,value\n0,1,2\n0,x,1\n", "line 3: step is 'x', but must be a number"),
        ("episode,step,value\n0,1,nan\n", "line 2: value is nan, but must be finite"),
        ("episode,step,value\n0,1.5,1\n", "line 2: step is 1.5, but must be a whole number"),
        ("episode,step,value\n0,3,1\n", "line 2: there is no step 3 in episode 0: it has 0 to 2"),
        ("episode,step,value\n7,0,1\n", "no episode 7: they are numbered 0 to 1"),
        ("episode,step,value\n0,-1,1\n", "no step -1 in episode 0"),
        ("episode,step,value\n0,1,1\n0,1,2\n", "line 3: step 1 of episode 0 has a label already"),
    ],
)
def test_impossible_label_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        labels_of(parse(f"labels:{path}"), Episodes(replay_of([3, 5])))


@pytest.mark.parametrize(
    ("separator", "suffix"), [(";", "csv"), ("\t", "csv"), ("\t", "tsv"), ("|", "csv")]
)
def test_tables_of_spreadsheets_are_read(tmp_path: Path, separator: str, suffix: str) -> None:
    path = tmp_path / f"labels.{suffix}"
    path.write_text("episode,step,value,note\n0,1,0.5,a\n1,2,1.5,b\n".replace(",", separator))
    labels = labels_of(parse(f"labels:{path}"), Episodes(replay_of([3, 5])))
    assert labels.values[0][1] == 0.5
    assert labels.values[1][2] == 1.5
    path.write_text(path.read_text().replace("0.5", "0,5"))
    with pytest.raises(ConfigError, match="value is '0,5', but must be a number, with a point"):
        labels_of(parse(f"labels:{path}"), Episodes(replay_of([3, 5])))


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    episodes = Episodes(replay_of([3, 5]))
    np.savez(tmp_path / "uneven.npz", episode=[0], step=[1, 2], value=[1.0])
    np.savez(tmp_path / "objects.npz", episode=[0], step=[1], value=np.array([{}], object))
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    (tmp_path / "wide.csv").write_text("episode,step,value\n0,1,1\n", encoding="utf-16")
    for name, message in (
        ("absent.csv", "There is no file"),
        ("labels.txt", "must be a .csv, .tsv or .npz file with the columns episode, step, value"),
        ("wide.csv", "is no text in UTF-8. Save it so"),
        ("uneven.npz", "equally long"),
        ("objects.npz", "The array 'value' of .* holds Python objects, not numbers"),
        ("broken.npz", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message):
            labels_of(parse(f"labels:{tmp_path / name}"), episodes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("hang", "names no reward. Known: module:function"),
        ("key:", "names no reward"),
        ("label:x.csv", "Did you mean 'labels:...'"),
        ("goals:1:2", "Did you mean 'goal:...'"),
        ("", "names no reward"),
    ],
)
def test_words_that_name_no_source_are_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(words)


# Preferences

PAIRS = "episode_a,start_a,episode_b,start_b,length,preferred\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,0,1,3,3,1", "line 2: there is no step 5 in episode 1: it has 0 to 4"),
        ("0,0,2,0,1,1", "there is no episode 2"),
        ("0,0,1,0,0,1", "length is 0, but must be at least 1"),
        ("0,0,1,0,2,1.5", "preferred is 1.5, but must be 0 .a is better., 1"),
        ("0,0,1,0,2,0.5", "prefers nothing"),
    ],
)
def test_impossible_pairs_are_refused(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(PAIRS + row + "\n")
    with pytest.raises(ConfigError, match=message):
        read_pairs(str(path), Episodes(replay_of([3, 5])))


def test_a_held_out_episode_teaches_no_pair(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    rng = np.random.default_rng(0)
    rows = [f"{a},0,{b},1,2,1" for a, b in rng.integers(10, size=(60, 2))]
    path.write_text(PAIRS + "\n".join(rows))
    pairs = split_pairs(read_pairs(str(path), Episodes(replay_of([4] * 10))), 0.2, 0)
    taught = set(pairs.episode[~pairs.held_out].ravel().tolist())
    assert 0 < pairs.held_out.sum() < 60
    assert len(taught) == 8
    assert all(set(p.tolist()) - taught for p in pairs.episode[pairs.held_out])
    path.write_text(PAIRS + "0,0,0,2,2,1\n")
    with pytest.raises(ConfigError, match="leaves 0 pairs to learn from and 1 to judge by"):
        split_pairs(read_pairs(str(path), Episodes(replay_of([4]))), 0.2, 0)


# Goals


def picture_episodes() -> tuple[Episodes, WorldModel]:
    spec = SPECS["image"]
    replay = Replay(spec, ReplayConfig(capacity=50), 1)
    rng = np.random.default_rng(0)
    for t in range(6):
        replay.add({
            "image": rng.integers(0, 256, (1, 32, 32, 3), np.uint8),
            "action": np.zeros((1, 2), np.float32),
            "reward": np.zeros(1, np.float32),
            "is_first": np.array([t % 3 == 0]),
            "is_last": np.array([t % 3 == 2]),
            "is_terminal": np.zeros(1, bool),
        })  # fmt: skip
    torch.manual_seed(0)
    model = WorldModel(spec, tiny())
    scramble(model)
    return Episodes(replay), model


def test_a_goal_is_nearest_to_itself_and_pictures_equal_their_frames(tmp_path: Path) -> None:
    import cv2

    episodes, model = picture_episodes()
    values = np.stack(labels_of(parse("goal:1:2"), episodes, model).values)
    assert values[1, 2] == pytest.approx(0, abs=1e-6)
    assert (values.ravel()[:-1] < -1e-3).all()
    frame: Any = episodes.observation(1, 2)["image"]
    cv2.imwrite(str(tmp_path / "goal.png"), frame[..., ::-1])
    again = labels_of(parse(f"goal:{tmp_path}/goal.png"), episodes, model)
    np.testing.assert_allclose(np.stack(again.values), values, atol=1e-6)
    cv2.imwrite(str(tmp_path / "grey.png"), frame[..., 0])
    with pytest.raises(ConfigError, match="is a grey picture, but this run sees colours"):
        labels_of(parse(f"goal:{tmp_path}/grey.png"), episodes, model)
    both = labels_of(parse("goal:1:2,0:1"), episodes, model)
    other = labels_of(parse("goal:0:1"), episodes, model)
    np.testing.assert_allclose(
        np.stack(both.values), np.maximum(values, np.stack(other.values)), atol=1e-6
    )
    near = labels_of(parse("goal:1:2"), episodes, model, 2.0)
    np.testing.assert_allclose(np.stack(near.values), np.exp(values / 2), atol=1e-6)


def test_what_the_model_makes_of_a_picture_does_not_depend_on_chance() -> None:
    episodes, model = picture_episodes()
    obs = goal_observations("0:0,0:1", episodes)
    assert torch.equal(look(model, episodes.spec, obs), look(model, episodes.spec, obs))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("goal:2:0", "The goal '2:0': there is no episode 2"),
        ("goal:0:3", "no step 3 in episode 0"),
        ("goal:nothing.png", "There is no picture 'nothing.png'"),
        (f"goal:{__file__}", "is no picture that can be read"),
    ],
)
def test_impossible_goals_are_refused(words: str, message: str) -> None:
    episodes, model = picture_episodes()
    with pytest.raises(ConfigError, match=message):
        labels_of(parse(words), episodes, model)


def test_a_picture_is_no_goal_for_a_run_that_sees_more() -> None:
    episodes = Episodes(replay_of([3]))
    with pytest.raises(ConfigError, match=r"this run sees \['x'\]. Name frames of its replay"):
        goal_observations("a.png", episodes)


# What can be learned at all


def labelled(*episodes: list[float]) -> Labels:
    return Labels([np.array(values, np.float64) for values in episodes])


NAN = float("nan")


def test_a_reward_that_never_varies_is_refused() -> None:
    with pytest.raises(ConfigError, match="never shows this reward: all 4 rows have the value -1"):
        check_varied(labelled([NAN, -1, -1], [NAN, -1, -1]))
    with pytest.raises(ConfigError, match="the one labelled row has the value 2"):
        check_varied(labelled([NAN, 2]))
    with pytest.raises(ConfigError, match="Not one row"):
        check_varied(labelled([NAN], [NAN]))
    check_varied(labelled([NAN, 1], [NAN, 1.001]))


def test_episodes_are_held_out_whole_and_both_sides_see_the_reward() -> None:
    quiet, loud = [NAN, 0.0, 0.0], [NAN, 0.0, 1.0]
    for seed in range(10):
        found = split(labelled(*[quiet] * 8, loud, loud), 0.2, seed)
        held = set(found.episode[found.held_out].tolist())
        assert not held & set(found.episode[~found.held_out].tolist())
        assert len(held & {8, 9}) == 1
        assert len(held) == 3  # a fifth of eight, and one of two
        assert found.value.sum() == 2
        assert (found.step >= 1).all()
    assert not split(labelled(quiet, loud), 0.0, 0).held_out.any()


def test_too_little_to_hold_out_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"All labels lie in one episode \(1\).*holdout=0"):
        split(labelled([NAN, NAN], [NAN, 1, 2]), 0.2, 0)
    with pytest.raises(ConfigError, match="Only episode 1 shows this reward"):
        split(labelled([NAN, 0, 0], [NAN, 0, 1], [NAN, 0, 0]), 0.2, 0)


def test_more_rows_than_asked_for_are_thinned_by_whole_episodes() -> None:
    episodes = Episodes(replay_of([5] * 10))
    labels = Labels([np.arange(5.0) for _ in range(10)])
    found = thinned(episodes, labels, 26)
    assert len(found.episodes) == 5
    assert found.episodes[0] == 0
    assert found.episodes[-1] == 9
    assert thinned(episodes, labels, 50).episodes == list(range(10))
