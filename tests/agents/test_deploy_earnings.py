"""Unknown is not yet harmful: who acts in an unknown world, by the rewards that arrive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import agents
from agents.deploy import FallbackConfig
from agents.deploy.earnings import KEY, Account, Earnings, measure, name_of, of_calibration
from agents.deploy.fit import play
from tests.agents.deploy_doubles import Bench
from tests.agents.rewards_run import LENGTH, make_run
from worldmodel.config import ConfigError

KNOWN = Earnings(policy=1.0, floor=[0.5], fallbacks={"zero": 0.4, "hold": 0.9}, rate=0.5)
ZERO = FallbackConfig("zero")


def watched(rewards: list[float | None], unknown_from: int = 1, **how: object) -> list[str]:
    """Who acts at each tick of a world that is unknown from a tick on."""
    bench = Bench(fallback=ZERO, earnings=KNOWN, **how)
    bench.engine.scores = dict.fromkeys(range(unknown_from, 100), 2.0)
    return [f"{one.source} {one.reason}" for one in (bench.one(reward=r) for r in rewards)]


def test_a_policy_that_earns_enough_acts_in_an_unknown_world() -> None:
    said = watched([None, 1.0, 1.0, 0.45, 0.45, 0.45])  # more than the fallback is known to earn
    assert said == ["policy ok", *["policy watched"] * 5]


def test_one_that_earns_less_than_ever_and_than_the_fallback_is_relieved() -> None:
    # Means of the policy: 1, 0.5, 0.25; both 0.5 and 0.4 are undercut at the third reward.
    said = watched([None, 1.0, 0.0, 0.0, 0.4, 0.4])
    assert said == ["policy ok", *["policy watched"] * 2, *["fallback unknown"] * 3]


def test_a_fallback_that_earns_less_still_gives_way_in_its_turn() -> None:
    # It earns nothing: 0.4, 0.2, 0.1; the policy's mean stands at 0.25.
    said = watched([None, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    assert said[3:] == ["fallback unknown", "fallback unknown", *["policy watched"] * 2]


@pytest.mark.parametrize(
    ("how", "rewards"),
    [({"watch": False}, [None, 1.0, 1.0]), ({}, [None, None, None])],
)
def test_without_rewards_or_when_told_unknown_is_reason_enough(
    how: dict[str, bool], rewards: list[float | None]
) -> None:
    assert watched(rewards, **how)[1:] == ["fallback unknown"] * 2


def test_an_unknown_world_after_a_fault_is_laid_to_the_fallback() -> None:
    bench = Bench(fallback=FallbackConfig("hold"), recover_ticks=2, grace_ticks=3)
    bench.engine.scores = dict.fromkeys(range(3, 100), 2.0)  # holding made it strange
    said = [bench.one() for _ in range(2)]
    said += [bench.runtime.act(None), *(bench.one() for _ in range(6))]
    assert [one.reason for one in said] == [
        "ok", "ok", "input", "waiting", "watched", "watched", "watched", "unknown", "unknown",
    ]  # fmt: skip


def test_a_world_that_was_unknown_before_a_fault_stays_unknown() -> None:
    bench = Bench(recover_ticks=1)
    bench.engine.scores = dict.fromkeys(range(1, 100), 2.0)
    bench.one()
    assert bench.one().reason == "unknown"
    assert bench.runtime.act(None).reason == "input"
    assert bench.one().reason == "unknown"


def test_a_fallback_that_keeps_the_world_unknown_is_doubted() -> None:
    bench = Bench(fallback=FallbackConfig("hold"), doubt_ticks=2, grace_ticks=3, leave_ticks=1)
    bench.engine.scores = dict.fromkeys([*range(1, 4), *range(6, 8)], 2.0)
    said = [bench.one() for _ in range(7)]
    # One tick of the trial is strange, and the world is known again before it ends.
    assert [one.reason for one in said] == [
        "ok", "unknown", "unknown", "watched", "ok", "ok", "unknown",
    ]  # fmt: skip


def test_doubt_takes_twice_as_long_each_time() -> None:
    bench = Bench(fallback=FallbackConfig("hold"), doubt_ticks=2, grace_ticks=1)
    bench.engine.scores = dict.fromkeys(range(1, 100), 2.0)
    said = [bench.one().source for _ in range(18)]
    tries = [tick for tick, source in enumerate(said) if source == "policy"]
    assert tries == [0, 3, 8, 17]
    assert bench.one(is_first=True).source == "fallback"
    assert [bench.one().source for _ in range(2)] == ["fallback", "policy"]


def test_a_policy_is_tried_in_a_world_that_is_unknown_from_the_start() -> None:
    bench = Bench(fallback=FallbackConfig("hold"), doubt_ticks=2, grace_ticks=1)
    bench.engine.scores = dict.fromkeys(range(100), 2.0)
    assert [bench.one().source for _ in range(3)] == ["fallback", "fallback", "policy"]


@pytest.mark.parametrize("how", [{"watch": False}, {"doubt_ticks": 0}])
def test_who_trusts_nobody_keeps_the_fallback(how: dict[str, Any]) -> None:
    bench = Bench(fallback=FallbackConfig("hold"), **how)
    bench.engine.scores = dict.fromkeys(range(1, 100), 2.0)
    assert {bench.one().source for _ in range(60)} == {"policy", "fallback"}
    assert bench.one().source == "fallback"


def test_what_is_enough_depends_on_the_tick() -> None:
    known = Earnings(policy=1.0, floor=[0.0, 0.8], fallbacks={"zero": 0.9}, rate=0.5)
    account = Account(known, "zero")
    for _ in range(9):
        account.credit(0.5, policy=True)
    assert not account.prefers_fallback(away=False)  # as little as others have at first
    account.credit(0.5, policy=True)
    assert account.prefers_fallback(away=False)  # the tenth tick: others have 0.8 and more
    account.reset()
    assert not account.prefers_fallback(away=False)


def test_before_a_tick_with_a_floor_the_lower_of_both_counts() -> None:
    known = Earnings(policy=1.0, floor=[1.0, 0.2], fallbacks={"zero": 0.9}, rate=0.5)
    account = Account(known, "zero")
    account.credit(0.0, policy=True)
    assert not account.prefers_fallback(away=False)  # 0.5: on the way down, as ordinary episodes
    account.credit(-1.0, policy=True)
    assert account.prefers_fallback(away=False)  # -0.25


def test_a_new_episode_begins_with_what_is_promised() -> None:
    account = Account(KNOWN, "zero")
    account.credit(-8.0, policy=True)
    assert account.prefers_fallback(away=False)
    account.reset()
    assert (account.policy, account.fallback) == (1.0, 0.4)
    assert not account.prefers_fallback(away=False)


def test_names_say_where_rest_is() -> None:
    assert name_of(FallbackConfig("zero", rest=[1, 0])) == "zero [1.0, 0.0]"
    assert name_of(FallbackConfig("hold", rest=[1, 0])) == "hold"


def test_what_a_tiny_run_earns(tmp_path: Path) -> None:
    policy = agents.load(make_run(tmp_path / "run"), "cpu")
    found = measure(policy, play(policy, 4, seed=0), FallbackConfig(), episodes=3, seed=0)
    # The rewards are 1, 2, ... whatever anybody does; the running mean begins at their mean.
    assert found.policy == (LENGTH + 1) / 2
    assert found.floor == [(LENGTH + 1) / 2]
    assert found.fallbacks.keys() == {"hold", "zero", "stop"}
    assert set(found.fallbacks.values()) == {found.policy}  # in whole episodes of theirs
    assert found.random == found.policy
    assert found.no_better_than == ["hold", "stop", "zero"]
    assert replace(KNOWN, fallbacks={"zero": 0.9, "hold": 1.1}).no_better_than == ["hold"]
    assert of_calibration({KEY: found.__dict__}) == found
    assert of_calibration({}) is None
    with pytest.raises(ConfigError, match="no usable earnings"):
        of_calibration({KEY: {"policy": "much"}})


def test_a_fallback_that_earns_more_than_half_way_acts_at_once() -> None:
    """Random actions earn 0, the policy 1: 0.9 is more than half way, 0.4 is not."""
    known = replace(KNOWN, random=0.0)
    for name, at_once in (("hold", True), ("zero", False)):
        assert Account(known, name).prefers_fallback(away=False) is at_once
    account = Account(known, "hold")
    account.credit(1.0, policy=True)
    for reward in (0.9, 0.1, 0.1):  # 0.9, 0.5, 0.3: it does not do what it promised
        account.credit(reward, policy=False)
    assert not account.prefers_fallback(away=True)  # the policy did better
    assert not Account(replace(KNOWN, random=-1.0, policy=3.0), "hold").prefers_fallback(away=False)
