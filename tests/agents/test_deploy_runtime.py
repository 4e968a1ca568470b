"""The runtime against its promises: on time, never an exception, never a silent pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.deploy import DeployConfig, FallbackConfig, RetrainConfig
from agents.deploy.config import CautionConfig
from tests.agents.deploy_doubles import DISCRETE, SPEC, Bench, observation
from worldmodel.config import ConfigError, RunError
from worldmodel.replay import Replay
from worldmodel.types import MASK_KEY, EnvSpec, ObsSpec


def test_the_policy_acts_while_all_is_well() -> None:
    bench = Bench()
    for count in range(1, 6):
        one = bench.one()
        assert (one.source, one.reason, one.tick) == ("policy", "ok", count - 1)
        np.testing.assert_allclose(one.action, count / 100)
    assert bench.runtime.summary()["sources"] == {"policy": 5}


def test_an_unknown_observation_is_the_fallbacks_and_coming_back_takes_calm() -> None:
    bench = Bench(leave_ticks=3, leave_level=0.8)
    bench.engine.scores = {2: 1.5, 4: 0.9}  # 0.9 is known, but not calm enough to count
    said = [(one.source, one.reason) for one in (bench.one() for _ in range(9))]
    assert said[:2] == [("policy", "ok")] * 2
    assert said[2] == ("fallback", "unknown")
    assert said[3:7] == [("fallback", "waiting")] * 4  # 0.1 | 0.9 starts anew | 0.1 0.1
    assert said[7:] == [("policy", "ok")] * 2


def test_hysteresis_on_the_way_in() -> None:
    bench = Bench(enter_ticks=3, leave_ticks=1)
    bench.engine.scores = {1: 2, 2: 2, 4: 2, 5: 2, 6: 2}
    said = [bench.one().source for _ in range(8)]
    assert said == ["policy"] * 6 + ["fallback", "policy"]


def test_a_score_that_is_not_a_number_is_unknown() -> None:
    bench = Bench()
    bench.engine.scores = {1: np.nan}
    bench.one()
    one = bench.one()
    assert (one.source, one.reason) == ("fallback", "unknown")


def test_a_stall_is_answered_on_time_every_time_and_the_late_answer_is_thrown_away() -> None:
    bench = Bench(recover_ticks=1)
    bench.worker.delays[3] = 0.050
    said, late = [], []
    for _ in range(12):
        one = bench.one()
        said.append((one.source, one.reason))
        late.append(one.latency)
    assert max(late) <= 0.008 + 1e-9  # hard_ms, to the rounding of the clock
    # Tick 3 begins at 30 ms and is done at 80: the answer to tick 8, which begins then, is on time.
    assert said[3:8] == [("fallback", "late")] * 5
    assert said[8:] == [("policy", "ok")] * 4
    assert bench.runtime.summary()["missed"] == 0
    # Ticks 4 to 7 were never asked for: the queue holds the newest alone.
    assert [r.tick for r in bench.worker.asked][-6:] == [2, 3, 8, 9, 10, 11]


def test_the_policy_remembers_what_was_sent_not_what_it_proposed() -> None:
    bench = Bench(fallback=FallbackConfig("zero"), leave_ticks=1)
    bench.engine.scores = {1: 2}
    for _ in range(4):
        bench.one()
    sent = [float(s[0, 0]) for s in bench.engine.sent[1:]]  # without the warm-up
    np.testing.assert_allclose(sent, [0, 0.01, 0, 0.03], atol=1e-6)


def test_memory_outlives_a_short_gap_and_starts_anew_after_a_long_one() -> None:
    for delay, first in ((0.025, 0.04), (0.125, 0.01)):
        bench = Bench(recover_ticks=1, max_gap=5)
        bench.worker.delays[2] = delay
        actions = []
        for _ in range(20):
            one = bench.one()
            if one.trusted:
                actions.append(float(one.action[0]))
        # Ticks 0 and 1 count to 2, the late one to 3; then the next, or 1 again.
        np.testing.assert_allclose(actions[:3], [0.01, 0.02, first], atol=1e-6)


def test_an_episode_that_began_during_a_stall_is_not_lost() -> None:
    bench = Bench(recover_ticks=1)
    bench.worker.delays[3] = 0.025
    actions = []
    for tick in range(8):
        one = bench.one(is_first=tick == 4)  # while the policy hangs
        actions.append(float(one.action[0]) if one.trusted else None)
    assert actions[3:6] == [None, None, pytest.approx(0.01)]


def test_an_episode_that_began_with_a_refused_observation_is_not_lost() -> None:
    bench = Bench(recover_ticks=1)
    bench.one()
    bench.one()
    assert bench.tick([None], is_first=True)[0].reason == "input"
    assert float(bench.one().action[0]) == pytest.approx(0.01)
    assert float(bench.one().action[0]) == pytest.approx(0.02)


def test_late_may_mean_the_previous_action_but_not_for_ever() -> None:
    bench = Bench(on_late="previous", max_repeats=2, recover_ticks=2)
    bench.worker.delays[2] = 0.049  # done at 69 ms; tick 6 waits until 68
    said = [bench.one() for _ in range(9)]
    assert [one.source for one in said[2:6]] == ["previous"] * 2 + ["fallback"] * 2
    np.testing.assert_allclose(said[2].action, said[1].action)
    assert [one.reason for one in said[6:]] == ["late", "waiting", "ok"]


def test_an_action_that_is_not_finite() -> None:
    bench = Bench(recover_ticks=1)
    bench.engine.actions = {1: [[np.nan, 0]]}
    bench.one()
    one = bench.one()
    assert (one.source, one.reason) == ("fallback", "nonfinite")
    assert np.isfinite(one.action).all()
    again = Bench(on_nonfinite="previous")
    again.engine.actions = {1: [[np.inf, 0]]}
    before = again.one()
    one = again.one()
    assert (one.source, one.reason) == ("previous", "nonfinite")
    np.testing.assert_array_equal(one.action, before.action)


def test_a_policy_that_raises_or_returns_nonsense() -> None:
    bench = Bench(recover_ticks=1)
    bench.engine.fails = {1}
    bench.engine.actions = {3: [[0.0, 0.0, 0.0]]}
    said = [bench.one() for _ in range(5)]
    assert [one.reason for one in said] == ["ok", "error", "ok", "error", "ok"]
    assert "no such luck" in said[1].detail
    assert "shape" in said[3].detail


def spoiled(**changes: Any) -> dict[str, np.ndarray]:
    return observation() | changes


@pytest.mark.parametrize(
    ("obs", "word"),
    [
        (None, "observation"),
        ("image", "observation"),
        ([], "observation"),
        ([None], "NoneType"),
        ({}, "missing"),
        (spoiled(image=np.zeros((1, 8, 8, 3), np.uint8)), "shape"),
        (spoiled(image=np.zeros((4, 4, 3), np.uint8)), "4 robots|robots"),
        (spoiled(image=np.zeros((1, 4, 4, 3))), "float64"),
        (spoiled(speed=np.array([[0, np.nan]])), "not finite"),
        (spoiled(speed=np.array([[0, 1e300]])), "not finite"),
        (spoiled(speed=np.array([["a", "b"]])), "numbers"),
        (spoiled(speed=[[1, 2, 3], [4]]), "ValueError"),
        (spoiled(speed=np.array([[1 + 2j, 0]])), "numbers"),
    ],
)
def test_bad_input_is_the_fallbacks(obs: Any, word: str) -> None:
    bench = Bench(recover_ticks=1)
    bench.one()
    one = bench.tick("nothing" if obs is None else obs)[0]
    assert (one.source, one.reason) == ("fallback", "input")
    assert any(part in one.detail for part in word.split("|")), one.detail
    assert bench.one().trusted
    assert bench.engine.calls == 1  # the policy never saw it


def test_a_refused_observation_costs_one_robot_alone() -> None:
    bench = Bench(robots=3, recover_ticks=1)
    bench.tick()
    rows: list[Any] = [{k: v[0] for k, v in observation().items()} for _ in range(3)]
    rows[1] = None
    said = bench.tick(rows)
    assert [one.source for one in said] == ["policy", "fallback", "policy"]
    # Its memory stands still meanwhile, the others' goes on.
    said = bench.tick()
    np.testing.assert_allclose([one.action[0] for one in said], [0.03, 0.02, 0.03], atol=1e-6)


def test_robots_fall_back_one_by_one() -> None:
    bench = Bench(robots=2, leave_ticks=2)
    bench.engine.scores = {1: [0.1, 3.0]}
    bench.tick()
    said = bench.tick()
    assert [one.source for one in said] == ["policy", "fallback"]
    assert [one.robot for one in said] == [0, 1]
    assert said[1].detail == "patch"
    assert [one.reason for one in bench.tick()] == ["ok", "waiting"]
    assert [one.reason for one in bench.tick()] == ["ok", "ok"]


def test_stale_repeated_and_missing_time_stamps() -> None:
    bench = Bench(max_age_ms=20.0, recover_ticks=1)
    now = bench.clock.now
    assert bench.one(stamp=now() - 0.005).reason == "ok"
    newest = now() - 0.001
    assert bench.one(stamp=newest).reason == "ok"
    assert "again" in bench.one(stamp=newest).detail
    assert "old" in bench.one(stamp=now() - 0.021).detail
    assert "missing" in bench.one().detail
    assert "future" in bench.one(stamp=now() + 1).detail
    assert bench.one(stamp=now()).reason == "ok"


def test_caution_makes_actions_smaller_as_the_score_rises() -> None:
    bench = Bench(caution=CautionConfig(start=0.5, least=0.2))
    bench.engine.scores = {0: 0.5, 1: 0.75, 2: 1.0}
    bench.engine.actions = {n: [[1.0, -1.0]] for n in range(3)}
    scales = [bench.one() for _ in range(3)]
    np.testing.assert_allclose([one.scale for one in scales], [1.0, 0.6, 0.2], atol=1e-6)
    np.testing.assert_allclose(scales[1].action, [0.6, -0.6], atol=1e-6)


def test_discrete_actions_come_as_the_environment_takes_them() -> None:
    bench = Bench(spec=DISCRETE, fallback=FallbackConfig("zero", rest=[0, 1, 0]))
    bench.engine.actions = {0: [[0, 0, 1]]}
    bench.engine.scores = {1: 9}
    assert bench.one().action == 2
    one = bench.one()
    assert (one.source, int(one.action)) == ("fallback", 1)
    with pytest.raises(ConfigError, match=r"fallback\.rest is not set"):
        Bench(spec=DISCRETE)


def test_a_fallback_never_sends_what_the_mask_forbids() -> None:
    masked = EnvSpec({**SPEC.obs, MASK_KEY: ObsSpec("vector", (3,))}, DISCRETE.action)
    bench = Bench(spec=masked, fallback=FallbackConfig("zero", rest=[0, 1, 0]))
    bench.engine.scores = dict.fromkeys(range(8), 9)
    sent = []
    for mask in ([1, 1, 1], [0, 0, 1], [1, 0, 1], [0, 0, 0]):
        obs = observation(spec=masked) | {MASK_KEY: np.array([mask], np.float32)}
        sent.append((bench.one(obs).source, int(bench.one(obs).action)))
    assert [source for source, _ in sent] == ["fallback"] * 4
    assert [action for _, action in sent] == [1, 2, 0, 1]  # with no class allowed, as it was


def test_stop_brakes_to_rest_and_waits() -> None:
    fallback = FallbackConfig("stop", rest=[0.5, 0.0], ramp_ticks=2, wait_ticks=2)
    bench = Bench(fallback=fallback, leave_ticks=1)
    bench.engine.actions = {0: [[1.0, 1.0]]}
    bench.engine.scores = {1: 2}
    bench.one()
    said = [bench.one() for _ in range(5)]
    actions = [one.action.tolist() for one in said]
    assert actions[:4] == [[0.75, 0.5], [0.5, 0.0], [0.5, 0.0], [0.5, 0.0]]
    assert [one.source for one in said] == ["fallback"] * 4 + ["policy"]


def half(obs: dict[str, np.ndarray], info: dict[str, Any]) -> np.ndarray:
    if info["tick"] == 2:
        raise RuntimeError("the gripper is stuck")
    return np.array([0.5, info["last"][0]])


def always_raises(obs: dict[str, np.ndarray], info: dict[str, Any]) -> np.ndarray:
    raise RuntimeError("never works")


def too_wide(obs: dict[str, np.ndarray], info: dict[str, Any]) -> np.ndarray:
    return np.zeros(7)


def named(name: str) -> FallbackConfig:
    # A FakeClock does not pass while a thread works, so its budget never ends.
    return FallbackConfig(f"{__name__}:{name}", rest=[-0.25, 0.0], budget_ms=1.0)


def test_a_users_fallback_and_the_last_resort_when_it_raises() -> None:
    bench = Bench(fallback=named("half"))
    bench.engine.scores = dict.fromkeys(range(1, 9), 2.0)
    bench.one()
    bench.runtime._fallbacks.config = FallbackConfig(named("half").name, budget_ms=5000.0)
    one = bench.one()
    assert one.source == "fallback"
    np.testing.assert_allclose(one.action, [0.5, 0.01], atol=1e-6)
    one = bench.one()
    assert (one.source, one.reason) == ("last resort", "unknown")
    assert "the gripper is stuck" in one.detail
    np.testing.assert_allclose(one.action, [-0.25, 0.0])
    bench.runtime.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("always_raises", "never works"),
        ("too_wide", r"shape \[7\]"),
        ("nowhere", "no function 'nowhere'"),
    ],
)
def test_a_fallback_that_cannot_work_is_an_error_before_the_loop(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bench(fallback=named(name))


def test_unknown_names_and_impossible_times_are_errors() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'hold'"):
        Bench(fallback=FallbackConfig("hol"))
    with pytest.raises(ConfigError, match="cannot be imported"):
        Bench(fallback=FallbackConfig("no.such.module:function"))
    with pytest.raises(ConfigError, match="hard_ms"):
        DeployConfig(hard_ms=11.0)
    with pytest.raises(ConfigError, match="less than period_ms"):
        DeployConfig(hard_ms=9.5, fallback=FallbackConfig("a:b", budget_ms=1.0))
    with pytest.raises(ConfigError, match="on_late"):
        DeployConfig(on_late="pray")


def test_start_checks_the_example_and_the_policy() -> None:
    bench = Bench(start=False)
    with pytest.raises(RunError, match="before start"):
        bench.runtime.tick(observation())
    with pytest.raises(ConfigError, match=r"shape \[4, 3, 3\].*uint8 \[4, 4, 3\]"):
        bench.runtime.start([{"image": np.zeros((4, 3, 3), np.uint8), "speed": np.zeros(2)}])
    bench.engine.actions = {0: [[np.nan, 0]]}
    with pytest.raises(RunError, match="not finite"):
        bench.runtime.start(observation())


def test_a_mistake_of_ours_is_the_last_resorts(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.one()

    def broken(*args: Any) -> Any:
        raise AssertionError("a bug")

    monkeypatch.setattr(bench.runtime, "_check", broken)
    one = bench.one()
    assert (one.source, one.reason) == ("last resort", "error")
    assert "a bug" in one.detail


def test_the_log_tells_every_tick_that_was_not_the_policys(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "deploy.jsonl"
    bench = Bench(log=str(log), leave_ticks=2)
    bench.engine.scores = {1: 1.5, 2: np.inf}
    for _ in range(6):
        bench.one()
    bench.runtime.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line.get("event") for line in lines] == ["start", None, None, None, "end"]
    assert [line["reason"] for line in lines[1:4]] == ["unknown", "unknown", "waiting"]
    assert lines[1]["value"] == 1.5
    assert lines[2]["value"] == "inf"
    assert lines[4]["sources"] == {"policy": 3, "fallback": 3}


def test_the_log_rotates(tmp_path: Path) -> None:
    log = tmp_path / "deploy.jsonl"
    bench = Bench(log=str(log), log_mb=0.001, log_files=2)
    bench.engine.scores = dict.fromkeys(range(100), 2.0)
    for _ in range(100):
        bench.one()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["deploy.jsonl", "deploy.jsonl.1", "deploy.jsonl.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert json.loads(log.read_text().splitlines()[-1])["tick"] == 99


def test_wrong_predictions_ask_for_training_once_with_the_rows_that_led_there(
    tmp_path: Path,
) -> None:
    retrain = RetrainConfig(window=10, keep=50, cooldown=1000, folder=str(tmp_path), reward=None)
    bench = Bench(retrain=retrain)
    bench.engine.predicted = {"image": np.full((1, 4, 4, 3), 0.04), "speed": np.zeros((1, 2))}
    for count in range(30):
        bench.one(reward=1.0, is_first=count == 0)
    assert not bench.requests
    bench.engine.predicted["image"] += 0.03
    for _ in range(30):
        bench.one(reward=1.0)
    (request,) = bench.requests
    assert (request.kind, request.robot, request.rewards) == ("image", 0, True)
    assert 0.05 < request.error <= 0.07
    saved = json.loads((tmp_path / "000000" / "request.json").read_text())
    assert saved["error"] == request.error
    replay = Replay.open(tmp_path / "000000" / "replay")
    (episode,) = replay.episodes()
    rows = replay.rows(*episode)
    assert len(rows["reward"]) == request.rows
    np.testing.assert_allclose(rows["action"][1:, 0], rows["action"][1, 0] + np.arange(
        len(rows["action"]) - 1) / 100, atol=1e-6)  # fmt: skip
    assert rows["is_first"].tolist() == [True] + [False] * (request.rows - 1)


def test_prediction_errors_are_left_out_where_the_time_is_short() -> None:
    bench = Bench()
    bench.engine.predicted = {"image": np.ones((1, 4, 4, 3)), "reward": np.ones(1)}
    brain = bench.worker.job
    brain._cost = 0.006
    bench.worker.delays = dict.fromkeys(range(100), 0.004)
    bench.one()
    bench.one()
    assert brain.skipped >= 1
