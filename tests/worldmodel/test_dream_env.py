"""The dream as an environment: gymnasium's rules, seeds, starts, ends, and agents of others."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from tests.model_batches import (
    CONTINUOUS,
    IMAGE,
    MIXED,
    SPECS,
    random_batch,
    scramble,
    spec_of,
    tiny,
)
from tests.worldmodel.dream_worlds import (
    POINT,
    BlindWorld,
    CountingWorld,
    PointWorld,
    counting_batch,
    point_starts,
)
from worldmodel.dream import AwakeEnv, DreamEnv, DreamVectorEnv, follow, rows_of_frames, starts_from
from worldmodel.envs import EnvConfig, env_spec, make_env
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.rssm import WorldModel
from worldmodel.types import MASK_KEY, ActionSpec, EnvSpec, ObsSpec

COUNTING = EnvSpec({"image": ObsSpec("image", (8, 8, 3))}, ActionSpec("continuous", (1,)))


def world(spec: EnvSpec = SPECS["image"], **changes: Any) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(spec, tiny(**changes))
    scramble(model, scale=0.1)
    with torch.no_grad():
        model.heads["cont"].out.bias.fill_(9.0)  # type: ignore[union-attr]  # dreams go on
    return model


def trajectory(env: Any, seed: int, actions: np.ndarray) -> list[Any]:
    seen = [env.reset(seed=seed)[0]]
    for action in actions:
        obs, reward, *_ = env.step(action)
        seen += [obs, reward]
    return seen


def same(a: list[Any], b: list[Any]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("ending", ["threshold", "sample"])
@pytest.mark.parametrize("observe", ["latent", "image", "dict"])
def test_gymnasium_finds_nothing_to_complain_about(observe: str, ending: str) -> None:
    def make(render_mode: str | None = None) -> DreamEnv:
        spec = SPECS["image"]
        return DreamEnv(
            world(), spec, random_batch(spec), observe, 20, ending, render_mode=render_mode
        )

    gymnasium.register("TestedDream-v0", entry_point=make)
    try:
        env = gymnasium.make("TestedDream-v0", render_mode="rgb_array", disable_env_checker=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env.unwrapped)
    finally:
        del gymnasium.registry["TestedDream-v0"]


@pytest.mark.parametrize("name", ["discrete", "multidiscrete", "mixed"])
def test_every_kind_of_action_and_observation_passes_the_check(name: str) -> None:
    spec = SPECS[name]
    env = DreamEnv(world(spec), spec, random_batch(spec), "dict")
    with warnings.catch_warnings():
        # Vectors have no bounds, and an unregistered environment cannot be made again.
        warnings.filterwarnings("ignore", message=".*(infinity|not having a spec)")
        check_env(env, skip_render_check=True)


def test_the_same_seed_and_actions_give_the_same_dream_whatever_else_is_drawn() -> None:
    spec = SPECS["image"]
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2)).astype(np.float32)
    model, starts = world(), random_batch(spec)
    first = trajectory(DreamEnv(model, spec, starts), 3, actions)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    env = DreamEnv(model, spec, starts)
    assert not same(trajectory(env, 4, actions), first)
    assert same(trajectory(env, 3, actions), first)
    assert torch.equal(torch.get_rng_state(), before)
    # Two dreams taken in turns do not disturb each other.
    pair = [DreamEnv(model, spec, starts) for _ in range(2)]
    seen: list[list[Any]] = [[env.reset(seed=3)[0]] for env in pair]
    for action in actions:
        for env, mine in zip(pair, seen, strict=True):
            mine += env.step(action)[:2]
    assert same(seen[0], first)
    assert same(seen[1], first)


def test_later_episodes_differ_but_repeat_with_the_seed() -> None:
    spec = SPECS["image"]
    env = DreamEnv(world(), spec, random_batch(spec))

    def three() -> list[Any]:
        return [env.reset(seed=1)[0], env.reset()[0], env.reset()[0]]

    first = three()
    assert not np.array_equal(first[1], first[2])
    assert same(three(), first)


def test_one_environment_is_a_vector_of_one() -> None:
    spec = SPECS["image"]
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2)).astype(np.float32)
    model, starts = world(), random_batch(spec)
    one = trajectory(DreamEnv(model, spec, starts), 7, actions)
    many = trajectory(DreamVectorEnv(model, spec, starts, 1), 7, actions[:, None])
    assert all(np.array_equal(a, np.asarray(b)[0]) for a, b in zip(one, many, strict=True))


def test_rewards_and_pictures_are_the_models() -> None:
    env = DreamEnv(CountingWorld(), COUNTING, counting_batch(3), "image", render_mode="rgb_array")
    obs, info = env.reset(seed=0)
    assert (obs == 20).all()  # the last row of the start
    assert info == {"cont": 1.0}
    obs, reward, terminated, truncated, info = env.step(np.array([0.5], np.float32))
    assert reward == 20.5
    assert (obs == 20).all()  # 20.5 pixels, rounded to even
    assert env.render().shape == (8, 8, 3)
    assert (terminated, truncated) == (False, False)
    assert info["cont"] == 0.5
    assert env.step(np.array([9.0], np.float32))[1] == 21.5  # clipped at the edge


def test_a_dream_is_cut_off_at_its_horizon() -> None:
    env = DreamEnv(CountingWorld(0.9), COUNTING, counting_batch(3), horizon=4)
    for _ in range(2):
        env.reset()
        ends = [env.step(env.action_space.sample())[2:4] for _ in range(4)]
        assert ends == [(False, False)] * 3 + [(False, True)]
        with pytest.raises(ValueError, match=r"after the end of the dream\. Call reset first"):
            env.step(env.action_space.sample())


def test_the_continue_head_ends_dreams_for_certain_or_as_often_as_it_says() -> None:
    def ended(cont: float, ending: str) -> float:
        model = CountingWorld(cont)  # whose discount has no part in this
        env = DreamVectorEnv(model, COUNTING, counting_batch(3), 400, ending=ending)
        env.reset(seed=0)
        return float(env.step(env.action_space.sample())[2].mean())

    assert ended(0.49, "threshold") == 1.0
    assert ended(0.51, "threshold") == 0.0
    assert ended(0.7, "sample") == pytest.approx(0.3, abs=0.07)
    assert ended(1.0, "sample") == 0.0


def test_many_dreams_cost_one_model_call_and_begin_anew_a_step_later() -> None:
    model = CountingWorld(0.9)
    env = DreamVectorEnv(model, COUNTING, counting_batch(3), 5, horizon=2)
    obs, info = env.reset(seed=0)
    assert obs.shape == env.observation_space.shape == (5, 1)
    assert info["cont"].tolist() == [1.0] * 5
    half = np.full((5, 1), 0.5, np.float32)
    assert env.step(half)[1].tolist() == [20.5] * 5
    assert env.step(half)[3].tolist() == [True] * 5
    steps = model.steps
    _, reward, terminated, truncated, info = env.step(half)
    assert model.steps == steps + 1
    assert reward.tolist() == [0.0] * 5
    assert not (terminated | truncated).any()
    assert info["cont"].tolist() == [1.0] * 5
    assert env.step(half)[1].tolist() == [20.5] * 5
    assert env.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.NEXT_STEP


def test_only_dreams_that_ended_begin_anew() -> None:
    spec = SPECS["image"]
    model = world()
    env = DreamVectorEnv(model, spec, random_batch(spec), 3, horizon=50)
    env.reset(seed=0)
    env._over = np.array([False, True, False])
    before = env.state
    _, reward, *_ = env.step(np.zeros((3, 2), np.float32))
    assert reward[1] == 0.0
    assert env._dreams.steps.tolist() == [1, 0, 1]
    assert not torch.equal(env.state.deter[0], before.deter[0])


def small_replay(spec: EnvSpec, lengths: tuple[int, ...]) -> Replay:
    """Episodes of these numbers of rows; every image holds (episode, row, 0)."""
    replay = Replay(spec, ReplayConfig(capacity=200), 1)
    for episode, length in enumerate(lengths):
        for row in range(length):
            image = np.zeros((1, *spec.obs["image"].shape), np.uint8)
            image[..., 0], image[..., 1] = episode, row
            flags = {"is_first": row == 0, "is_last": row == length - 1, "is_terminal": False}
            replay.add(
                {
                    "image": image,
                    "action": np.zeros((1, spec.action.size), np.float32),
                    "reward": np.zeros(1, np.float32),
                    **{key: np.array([value]) for key, value in flags.items()},
                }
            )
    return replay


def test_starts_out_of_replay_keep_to_one_episode_and_leave_something_to_dream() -> None:
    spec = spec_of(CONTINUOUS, image=IMAGE)
    draw = starts_from(small_replay(spec, (6, 2, 5)), context=3)
    rng = np.random.default_rng(0)
    found = draw(rng, 300).obs["image"][:, :, 0, 0]  # [300, 3, (episode, row, 0)]
    assert (found[..., 0] == found[:, :1, 0]).all()
    begins = {(int(e), int(r)) for e, r, _ in found[:, 0].tolist()}
    assert begins == {(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)}  # the last row is never shown
    again = starts_from(small_replay(spec, (6, 2, 5)), context=3)(np.random.default_rng(0), 300)
    assert torch.equal(again.obs["image"][:, :, 0, 0], found)
    with pytest.raises(ValueError, match="the longest of the recorded episodes has 6"):
        starts_from(small_replay(spec, (6, 2)), context=6)


def test_begins_from_given_frames() -> None:
    spec = SPECS["image"]
    model = world()
    frames = {"image": random_batch(spec, length=3).obs["image"][0].numpy()}
    start = rows_of_frames(spec, frames, np.zeros((2, 2), np.float32))
    env = DreamEnv(model, spec, random_batch(spec))
    a, _ = env.reset(seed=5, options={"start": start})
    b, _ = env.reset(seed=6, options={"start": start})
    assert np.array_equal(a[: model.config.deter], b[: model.config.deter]) is False
    torch.manual_seed(0)
    deter = follow(model, rows_of_frames(spec, {"image": frames["image"][:1]})).deter[0, 0]
    c, _ = env.reset(
        seed=6, options={"start": rows_of_frames(spec, {"image": frames["image"][:1]})}
    )
    assert np.allclose(c[: model.config.deter], deter.detach().numpy(), atol=1e-6)
    with pytest.raises(ValueError, match=r"options\['start'\] is a dict; needed: a Batch"):
        env.reset(options={"start": frames})
    with pytest.raises(ValueError, match="2 dreams begin, but 3 starts were given"):
        DreamVectorEnv(model, spec, start, 2).reset(options={"start": random_batch(spec)})


def test_says_which_actions_are_allowed() -> None:
    env = DreamEnv(world(MIXED), MIXED, random_batch(MIXED), "dict")
    obs, info = env.reset(seed=0)
    assert info[MASK_KEY].shape == (3,)
    assert set(np.unique(info[MASK_KEY])) <= {0, 1}
    assert np.array_equal(obs[MASK_KEY], info[MASK_KEY])
    _, info = DreamVectorEnv(world(MIXED), MIXED, random_batch(MIXED), 2).reset(seed=0)
    assert info[MASK_KEY].shape == (2, 3)
    assert info[f"_{MASK_KEY}"].all()


def test_spaces_are_those_of_the_real_environment() -> None:
    config = EnvConfig(id="tests.worldmodel.dream_worlds:PointEnv", image_size=[48, 48])
    real = make_env(config)
    spec = env_spec(real)
    dream = DreamEnv(PointWorld(), spec, point_starts(), "dict")
    assert dream.observation_space == real.observation_space
    assert dream.action_space == real.action_space


def test_the_real_environment_seen_through_the_model() -> None:
    config = EnvConfig(id="tests.worldmodel.dream_worlds:PointEnv", image_size=[48, 48])
    env = AwakeEnv(make_env(config), PointWorld(), POINT)
    assert env.observation_space == DreamEnv(PointWorld(), POINT, point_starts()).observation_space
    obs, _ = env.reset(seed=0)
    assert abs(obs[0]) == 1.0
    moved = env.step(np.array([-np.sign(obs[0])], np.float32))
    assert abs(moved[0][0]) == pytest.approx(0.6, abs=0.03)
    seen = AwakeEnv(make_env(config), PointWorld(), POINT, "image").reset(seed=0)[0]
    assert seen.shape == (48, 48, 3)
    assert seen.dtype == np.uint8


def test_awake_repeats_itself_with_the_seed_and_leaves_the_generators_alone() -> None:
    config = EnvConfig(id="tests.envs_for_tests:LeftRightEnv", image_size=[32, 32])
    spec = env_spec(make_env(config))
    env = AwakeEnv(make_env(config), world(spec), spec)

    def play() -> list[Any]:
        return [env.reset(seed=2)[0], *(env.step(1)[0] for _ in range(4))]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert same(play(), play())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DreamEnv(world(), SPECS["image"], random_batch(SPECS["image"]), "pixels"),
         "Unknown view 'pixels'. Known: latent, image, dict."),
        (lambda: DreamEnv(world(MIXED), MIXED, random_batch(MIXED), "image"),
         "exactly one image; the keys are"),
        (lambda: DreamEnv(CountingWorld(), COUNTING, counting_batch(), ending="never"),
         "Unknown ending 'never'"),
        (lambda: DreamEnv(CountingWorld(), COUNTING, counting_batch(), horizon=0), "horizon=0"),
        (lambda: DreamEnv(CountingWorld(), COUNTING, counting_batch(), render_mode="human"),
         "Unknown render_mode 'human'"),
        (lambda: DreamEnv(BlindWorld(), COUNTING, counting_batch(), "image"), "needs a decoder"),
        (lambda: DreamEnv(BlindWorld(), COUNTING, counting_batch(), render_mode="rgb_array"),
         "needs a decoder and an image"),
        (lambda: DreamEnv(CountingWorld(), COUNTING, counting_batch()).step(np.zeros(1)),
         "before the first reset"),
    ],
)  # fmt: skip
def test_says_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_actions_that_do_not_fit() -> None:
    spec = SPECS["discrete"]
    env = DreamEnv(world(spec), spec, random_batch(spec))
    env.reset(seed=0)
    for action in (3, -1, 0.5):
        with pytest.raises(ValueError, match="lies outside of"):
            env.step(action)
    with pytest.raises(ValueError, match=r"shape \(1, 2\); needed: \(1,\)"):
        env.step([0, 1])
    counting = DreamEnv(CountingWorld(), COUNTING, counting_batch())
    counting.reset()
    with pytest.raises(ValueError, match="not finite"):
        counting.step(np.array([np.nan]))


@pytest.mark.slow
@pytest.mark.parametrize(("observe", "policy"), [("latent", "MlpPolicy"), ("image", "CnnPolicy")])
def test_an_agent_of_another_library_learns_in_the_dream_and_acts_awake(
    observe: str, policy: str
) -> None:
    """PPO, unchanged. It begins at an end of the line; the best return over 20 steps is -0.8
    (0.6 + 0.2), staying there costs 20, and drifting about some 15."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy

    torch.manual_seed(0)
    dream = DreamEnv(PointWorld(), POINT, point_starts(), observe, horizon=20)
    config = EnvConfig(id="tests.worldmodel.dream_worlds:PointEnv", image_size=[48, 48])
    awake = AwakeEnv(make_env(config, seed=0), PointWorld(), POINT, observe)
    agent = PPO(policy, dream, n_steps=256, learning_rate=1e-3, gamma=0.9, seed=0, device="cpu")
    before, _ = evaluate_policy(agent, awake, 6, warn=False)
    agent.learn(6144 if observe == "latent" else 3072)
    after, _ = evaluate_policy(agent, awake, 6, warn=False)
    assert after > -4
    assert after > before + 4
