"""Episodes that are told again: what is saved, and that it leads back to the same bits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.envs_for_tests import DiceEnv
from worldmodel.envs import AtariConfig, EnvConfig, EnvError, EnvFailed, make_env, make_vector
from worldmodel.envs import journal as journals
from worldmodel.envs.journal import Journal

DICE = "tests.envs_for_tests:DiceEnv"
FAILING = "tests.envs_for_tests:FailingEnv"
COUNTING = "tests.envs_for_tests:CountingEnv"


def atari(game: str, **options: Any) -> EnvConfig:
    pytest.importorskip("ale_py")
    return EnvConfig(
        game, suite="atari", image_size=[32, 32], action_repeat=4, atari=AtariConfig(**options)
    )


def through_a_checkpoint(saved: list[dict[str, Any]]) -> Any:
    """The snapshot as torch loads it where no code may run."""
    plain = [{**one, "actions": torch.from_numpy(one["actions"])} for one in saved]
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def equal(one: Any, other: Any) -> bool:
    """Observations, rewards and flags of two rows, to the bit."""
    return all(one[0][k].tobytes() == other[0][k].tobytes() for k in one[0]) and all(
        a.tobytes() == b.tobytes() for a, b in zip(one[1:4], other[1:4], strict=True)
    )


def assert_continues(config: EnvConfig, steps: int, after: int, count: int = 2) -> list[Any]:
    """Saved after so many steps and restored elsewhere, what follows is the same to the bit."""
    envs, elsewhere = make_vector(config, count, seed=3), make_vector(config, count, seed=99)
    rng = np.random.default_rng(0)

    def action() -> np.ndarray:
        space = envs.single_action_space
        if isinstance(space, spaces.Box):
            return rng.uniform(-1, 1, (count, *space.shape)).astype(np.float32)
        top = space.n if isinstance(space, spaces.Discrete) else space.nvec  # type: ignore[attr-defined]
        return rng.integers(0, top, (count, *(space.shape or ())))

    try:
        row: Any = (envs.reset()[0], np.zeros(count), np.zeros(count, bool), np.zeros(count, bool))
        for _ in range(steps):
            row = envs.step(action())
        saved = through_a_checkpoint(envs.snapshot())
        actions = [action() for _ in range(after)]
        expected = [envs.step(a) for a in actions]
        back = elsewhere.restore(saved, row[0])
        assert back[4]["failures"] == []
        assert equal(back, row)
        for a, then in zip(actions, expected, strict=True):
            assert equal(elsewhere.step(a), then)
        assert [s["episode"] for s in elsewhere.snapshot()] == [
            s["episode"] for s in envs.snapshot()
        ]
        assert sum((then[2] | then[3]).sum() for then in expected) > 0 or after < 20
        return saved
    finally:
        envs.close()
        elsewhere.close()


@pytest.mark.parametrize("steps", [0, 1, 40])
@pytest.mark.parametrize("vector", ["sync", "async"])
def test_chance_masks_and_several_actions_continue(vector: str, steps: int) -> None:
    saved = assert_continues(EnvConfig(DICE, pixels=False, vector=vector), steps, 40)
    if steps == 40:
        assert max(one["episode"] for one in saved) > 0  # more than the first episode was played
        assert saved[0]["actions"].dtype == torch.uint8


def test_what_changes_when_it_is_drawn_is_drawn_again() -> None:
    config = EnvConfig(DICE, image_size=[32, 32], state=True, kwargs={"noise": True})
    assert_continues(config, 30, 30)


def test_pendulum_in_pixels_continues() -> None:
    config = EnvConfig("Pendulum-v1", image_size=[32, 32], action_repeat=2, time_limit=30)
    assert_continues(config, 40, 25)


def test_frames_before_the_last_are_not_drawn_where_drawing_changes_nothing() -> None:
    env = make_env(EnvConfig("Pendulum-v1", image_size=[32, 32]), seed=0)
    native = env.unwrapped
    drawn, draw = [0], native.render

    def render() -> Any:
        drawn[0] += 1
        return draw()

    native.render = render  # type: ignore[method-assign]
    journal = Journal(5, env.action_space)
    journal.begin(5, 2)
    for _ in range(20):
        journal.add(np.ones(1))
    env.replay(journal.state())
    assert drawn == [1]


def test_a_dm_control_task_continues() -> None:
    config = EnvConfig("cartpole_swingup", suite="dmc", pixels=False, time_limit=25)
    assert_continues(config, 40, 25)


def test_tasks_that_draw_their_model_draw_the_same_one() -> None:
    config = EnvConfig("lqr_lqr_2_1", suite="dmc", pixels=False)
    assert_continues(config, 5, 5)


@pytest.mark.parametrize("sticky", [0.0, 0.4])
def test_atari_continues(sticky: float) -> None:
    assert_continues(atari("kaboom", sticky=sticky), 60, 15)


@pytest.mark.parametrize("sticky", [0.0, 0.4])
def test_atari_continues_in_the_middle_of_a_game(sticky: float) -> None:
    saved = assert_continues(atari("breakout", sticky=sticky, life_loss=True), 130, 60, count=1)
    assert saved[0]["resets"] != []  # lives were lost since the game began


def test_atari_forgets_the_games_before() -> None:
    # kaboom is one of those whose console remembers: a mere reset of it plays on differently.
    def game(before: int) -> list[bytes]:
        env = make_env(atari("kaboom", noops=0), seed=1)
        for k in range(before):
            env.begin(10 + k)
            for i in range(40):
                env.step(i % 4)
        env.begin(0)
        return [env.step(i % 4)[0]["image"].tobytes() for i in range(60)]

    assert game(0) == game(2)


def test_sticky_actions_are_repeated_as_often_as_they_should() -> None:
    env = make_env(atari("pong", sticky=0.3, noops=0), seed=0)
    native: Any = env.unwrapped
    real, given = native._ale, []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def act(self, action: Any) -> float:
            given.append(action)
            return float(real.act(action))

    native._ale = Recorder()
    env.reset()
    given.clear()
    for i in range(250):
        env.step(i % 6)
    wanted = [native._actions[i % 6] for i in range(250) for _ in range(4)]
    # The first of four frames is late with probability 0.3, the second with 0.3^2, ...
    late = np.array([a != b for a, b in zip(given, wanted, strict=True)]).reshape(-1, 4).mean(0)
    np.testing.assert_allclose(late, 0.3 ** np.arange(1, 5), atol=0.1)


@pytest.mark.parametrize("vector", ["sync", "async"])
def test_a_journal_reaches_back_to_the_last_full_reset(vector: str) -> None:
    config = EnvConfig("tests.envs_for_tests:LivesEnv", pixels=False, vector=vector)
    lengths = []
    for steps in (12, 13, 25, 26, 27, 28, 29, 30) if vector == "sync" else (28,):
        saved = assert_continues(config, steps, 30)
        for one in saved:
            assert 0 <= len(one["resets"]) <= 2
            assert len(one["actions"]) >= len(one["resets"])
            lengths.append(len(one["resets"]))
    assert max(lengths) > 0  # some were saved in the middle of a game


# What cannot be told again


def test_what_does_not_come_back_begins_a_new_episode() -> None:
    """CountingEnv numbers its episodes itself, which no seed can bring back."""
    config = EnvConfig(COUNTING, pixels=False, kwargs={"lengths": (3,)})
    envs, elsewhere = make_vector(config, 2, seed=0), make_vector(config, 2, seed=0)
    obs = envs.reset()[0]
    for _ in range(5):
        obs = envs.step(np.zeros(2, int))[0]
    assert obs["count"].tolist() == [[1, 1, 0]] * 2
    saved = envs.snapshot()
    again, reward, _, _, infos = elsewhere.restore(saved, obs)
    assert infos["restarted"].tolist() == [True, True]
    assert "another observation 'count'" in infos["failures"][0][1]
    assert again["count"][:, 1].tolist() == [0, 0]
    assert reward.tolist() == [0, 0]
    assert elsewhere.failures == 0
    assert [one["episode"] for one in elsewhere.snapshot()] == [2, 2]
    # Without the observations there is nothing to compare but rewards and flags.
    assert not elsewhere.restore(saved)[4]["restarted"].any()


@pytest.mark.parametrize("vector", ["sync", "async"])
def test_what_fails_on_the_way_back_begins_a_new_episode(vector: str, tmp_path: Any) -> None:
    kwargs = {"folder": str(tmp_path), "times": 0, "step": 2}
    config = EnvConfig(FAILING, pixels=False, vector=vector, kwargs=kwargs)
    envs = make_vector(config, 2, seed=0)
    try:
        envs.reset()
        for _ in range(3):
            row = envs.step(np.zeros(2, int))
        saved = envs.snapshot()
    finally:
        envs.close()
    kwargs["times"] = 1
    elsewhere = make_vector(config, 2, seed=0)
    try:
        back = elsewhere.restore(saved, row[0])
    finally:
        elsewhere.close()
    assert back[4]["restarted"].sum() == 1
    assert "could not be continued" not in str(back[4]["failures"][0][1])
    assert "the gears jam" in back[4]["failures"][0][1]
    assert sorted(back[0]["count"][:, 1].tolist()) == [0, 3]
    assert elsewhere.failures == 0


def test_failures_are_counted_on() -> None:
    config = EnvConfig(FAILING, pixels=False, kwargs={"times": None, "step": 3})
    envs = make_vector(config, 1, seed=0)
    envs.reset()
    for _ in range(7):
        row = envs.step(np.zeros(1, int))
    elsewhere = make_vector(config, 1, seed=0)
    assert not elsewhere.restore(envs.snapshot(), row[0])[4]["restarted"].any()
    assert elsewhere.failures == envs.failures == 2
    for _ in range(2):
        elsewhere.step(np.zeros(1, int))
    assert elsewhere.failures == 3


def test_a_snapshot_of_another_vector_is_an_error() -> None:
    envs = make_vector(EnvConfig(DICE, pixels=False), 2, seed=0)
    with pytest.raises(EnvError, match="before the first reset"):
        envs.snapshot()
    envs.reset()
    saved = envs.snapshot()
    with pytest.raises(EnvError, match="of 2 environments, but there are 1"):
        make_vector(EnvConfig(DICE, pixels=False), 1).restore(saved)
    envs.step(np.zeros((2, 2), int))
    other = make_vector(EnvConfig(COUNTING, pixels=False), 2)
    with pytest.raises(EnvError, match=r"shape \[1, 2\], but must have \[n"):
        other.restore(envs.snapshot())


def test_an_episode_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "LIMIT", 100)
    config = EnvConfig("Pendulum-v1", pixels=False, time_limit=1000)
    envs = make_vector(config, 1, seed=0)
    envs.reset()
    for _ in range(150):
        row = envs.step(np.zeros((1, 1)))
    saved = through_a_checkpoint(envs.snapshot())
    assert saved[0]["actions"].numel() == 0
    elsewhere = make_vector(config, 1, seed=0)
    infos = elsewhere.restore(saved, row[0])[4]
    assert infos["restarted"].tolist() == [True]
    assert "more than" in infos["failures"][0][1]
    elsewhere.step(np.zeros((1, 1)))
    assert len(elsewhere.snapshot()[0]["actions"]) == 1  # the next one is kept again


# In place


def test_running_environments_go_back() -> None:
    envs = make_vector(EnvConfig(DICE, pixels=False), 2, seed=0)
    envs.reset()
    rows = [envs.step(np.ones((2, 2), int)) for _ in range(10)]
    saved = envs.snapshot()
    later = [envs.step(np.ones((2, 2), int)) for _ in range(30)]
    assert equal(envs.restore(saved, rows[-1][0]), rows[-1])
    for row in later:
        assert equal(envs.step(np.ones((2, 2), int)), row)


def test_after_an_interruption_the_snapshot_leads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make_vector(EnvConfig(DICE, pixels=False), 2, seed=0)
    envs.reset()
    row: Any = None
    real, calls = DiceEnv.step, [0]

    def step(self: DiceEnv, action: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:  # while the other environment has stepped already
            raise KeyboardInterrupt
        return real(self, action)

    def play() -> None:
        nonlocal row
        while True:
            row = envs.step(np.ones((2, 2), int))

    monkeypatch.setattr(DiceEnv, "step", step)
    with pytest.raises(KeyboardInterrupt):
        play()
    with pytest.raises(EnvError, match=r"interrupted.*restore\(snapshot"):
        envs.step(np.ones((2, 2), int))
    assert equal(envs.restore(envs.snapshot(), row[0]), row)
    assert not envs.step(np.ones((2, 2), int))[4]["restarted"].any()


def test_after_too_many_failures_the_snapshot_is_that_of_the_last_rows(tmp_path: Any) -> None:
    kwargs = {"folder": str(tmp_path), "times": 3, "step": 1, "at": "step"}
    config = EnvConfig(FAILING, pixels=False, kwargs=kwargs)
    envs = make_vector(config, 1, seed=0)
    envs.reset()
    for _ in range(2):
        row = envs.step(np.zeros(1, int))
    with pytest.raises(EnvFailed):
        envs.step(np.zeros(1, int))
    back = envs.restore(envs.snapshot(), row[0])  # it works by now
    assert not back[4]["restarted"].any()
    assert equal(back, row)
    assert envs.step(np.zeros(1, int))[0]["count"][0, 1] == 1


def test_a_long_replay_does_not_count_as_hanging() -> None:
    config = EnvConfig("tests.envs_for_tests:SlowEnv", pixels=False, vector="async")
    envs = make_vector(config, 1, seed=0)
    try:
        envs.reset()
        for _ in range(9):
            row = envs.step(np.ones((1, 2), int))
        config.start_timeout = 2.0  # the replay takes 2.7 s
        assert not envs.restore(envs.snapshot(), row[0])[4]["restarted"].any()
    finally:
        envs.close()


def test_a_journal_grows_and_keeps_floats_whole() -> None:
    space = spaces.Box(-1, 1, (2,), np.float32)
    journal = Journal(1, space)
    journal.begin(1, 4)
    actions = np.random.default_rng(0).uniform(-1, 1, (300, 2)).astype(np.float32)
    for action in actions:
        journal.add(action)
    state = journal.state()
    assert state["actions"].tobytes() == actions.tobytes()
    state["actions"][:] = 0  # the caller's own copy
    assert journal.state()["actions"].tobytes() == actions.tobytes()
    other = Journal(0, space)
    other.load({**journal.state(), "actions": actions.tolist()}, space)  # lists will do
    assert other.state()["actions"].tobytes() == actions.tobytes()
    assert (other.seed, other.episode) == (1, 4)
