"""Who acts: the policy, the previous action, the fallback or the last resort; no clock, no threads.

A `Guard` is one robot's trust in its policy: hysteresis, repeats, caution. A `Judge` asks the
guards of all robots, and the fallbacks that they call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from agents.deploy.config import CautionConfig, DeployConfig
from agents.deploy.decision import (
    ERROR,
    FALLBACK,
    INPUT,
    LAST_RESORT,
    LATE,
    NONFINITE,
    OK,
    POLICY,
    PREVIOUS,
    UNKNOWN,
    WAITING,
    WATCHED,
)
from agents.deploy.earnings import Account, Earnings, name_of
from agents.deploy.fallback import Fallbacks
from agents.deploy.inference import Proposal
from agents.deploy.inputs import Checked
from worldmodel.ood.api import Score
from worldmodel.types import MASK_KEY, ActionSpec


class Verdict(NamedTuple):
    """Who acts, why, and what the policy's action is multiplied by."""

    source: str
    reason: str
    scale: float = 1.0


@dataclass
class Guard:
    """The state of one robot's trust in its policy.

    account: what it earned, None where that is not to be looked at.

    unknown: whether the world counts as unknown; calm: good ticks in a row since. stuck: ticks in a
    row that it stayed unknown while the fallback acted; doubt: the policy is tried after so many.
    faulty: whether the fallback acts because of a fault; sound: ticks without one since. grace:
    ticks left in which an unknown world is blamed on the fallback, so that the policy acts.
    strange: unknown observations in a row. repeats: previous actions in a row. away: whether the
    fallback acts, for whatever reason. paid: whether a reward arrived for the last action.
    """

    config: DeployConfig
    account: Account | None = None
    unknown: bool = False
    calm: int = 0
    stuck: int = 0
    doubt: int = 0
    faulty: bool = False
    sound: int = 0
    grace: int = 0
    strange: int = 0
    repeats: int = 0
    away: bool = False
    paid: bool = False

    def __post_init__(self) -> None:
        self.doubt = self.config.doubt_ticks

    def begin(self) -> None:
        """A new episode: what was before does not count."""
        self.doubt = self.config.doubt_ticks
        if self.account is not None:
            self.account.reset()

    def earn(self, reward: float) -> None:
        """The reward of the last action; NaN where none arrived."""
        self.paid = math.isfinite(reward)
        if self.account is not None and self.paid:
            self.account.credit(reward, policy=not self.away)

    def decide(
        self,
        fault: str,
        value: float | None,
        unknown: bool,
        level: float | None,
        hold: bool,
    ) -> Verdict:
        """fault: why the policy's answer cannot be used ("" where it can). value: the score, None
        where there is no detector. unknown: what the detector says. level: value in units of the
        threshold. hold: the fallback does not let go yet."""
        if value is not None and not math.isfinite(value):
            unknown, level = True, math.inf
        self.strange = self.strange + 1 if unknown and not fault else 0
        if fault:
            return self._faulty(fault)
        self.repeats = 0
        if self.faulty:
            self.sound += 1
            if self.sound < self.config.recover_ticks or hold:
                return Verdict(FALLBACK, WAITING)
            self.faulty, self.away = False, self.unknown
        self._try_policy(unknown, hold)
        excused = self._look(unknown, level)
        if self._steps_back(hold):
            self.away = True
            return Verdict(FALLBACK, UNKNOWN if unknown else WAITING)
        self.away = False
        watched = self.unknown or excused
        return Verdict(POLICY, WATCHED if watched else OK, caution(self.config.caution, level))

    def _try_policy(self, unknown: bool, hold: bool) -> None:
        """Let the policy act for `grace_ticks` where no reward arrives and the world has stayed
        unknown under the fallback for `doubt` ticks: the fallback itself may cause that. Each trial
        comes after twice as many ticks as the one before."""
        if not (unknown or self.unknown or self.grace):
            self.doubt = self.config.doubt_ticks
        silent = self.account is None or not self.paid
        stays = self.away and self.unknown and silent and self.config.watch
        self.stuck = self.stuck + 1 if stays else 0
        if stays and self.stuck >= self.doubt and self.doubt and not hold:
            self.unknown, self.grace = False, self.config.grace_ticks
            self.stuck, self.doubt = 0, 2 * self.doubt

    def _look(self, unknown: bool, level: float | None) -> bool:
        """Find out whether the world counts as unknown from now on; the answer is whether an
        unknown observation was excused."""
        c = self.config
        excused = self.grace > 0
        self.grace = max(0, self.grace - 1)
        if unknown and (self.unknown or (self.strange >= c.enter_ticks and not excused)):
            self.unknown, self.calm = True, 0
        elif self.unknown:
            good = level is None or level <= c.leave_level
            self.calm = self.calm + 1 if good else 0
        return unknown and excused

    def _steps_back(self, hold: bool) -> bool:
        """Whether the fallback acts at a tick without a fault."""
        if self.unknown and self.calm >= self.config.leave_ticks and not (self.away and hold):
            self.unknown = False
        if not self.unknown:
            return False
        if self.account is None or not self.paid:
            return True
        return self.account.prefers_fallback(self.away) or (self.away and hold)

    def _faulty(self, fault: str) -> Verdict:
        """The policy's answer is late, broken, or was never asked for."""
        allowed = {LATE: self.config.on_late, NONFINITE: self.config.on_nonfinite}
        if (
            allowed.get(fault) == PREVIOUS
            and not self.away
            and self.repeats < self.config.max_repeats
        ):
            self.repeats += 1
            return Verdict(PREVIOUS, fault)
        self.faulty, self.away, self.sound, self.calm = True, True, 0, 0
        self.grace = 0 if self.unknown else self.config.grace_ticks
        return Verdict(FALLBACK, fault)


def caution(config: CautionConfig, level: float | None) -> float:
    """What to multiply the action by at a score of `level` thresholds."""
    if level is None or config.least >= 1.0:
        return 1.0
    share = (level - config.start) / (1.0 - config.start)
    return 1.0 - (1.0 - config.least) * min(1.0, max(0.0, share))


class Judged(NamedTuple):
    """Encoded actions [B, A], and for each robot who chose it, why, and more about it."""

    actions: np.ndarray
    verdicts: list[Verdict]
    details: list[str]


class Judge:
    """The guards of B robots, and the fallbacks that they call.

    earnings: what policy and fallback are known to earn, or None.
    """

    def __init__(
        self,
        config: DeployConfig,
        action: ActionSpec,
        fallbacks: Fallbacks,
        robots: int,
        earnings: Earnings | None = None,
    ) -> None:
        self._fallbacks, self._action = fallbacks, action
        name = name_of(config.fallback)
        known = config.watch and earnings is not None and name in earnings.fallbacks
        self._guards = [
            Guard(config, Account(earnings, name) if known and earnings is not None else None)
            for _ in range(robots)
        ]

    def earned(self, rewards: np.ndarray, begins: np.ndarray) -> None:
        """Rewards [B] of the last actions, NaN where none arrived; and whose episode begins."""
        for guard, reward, begun in zip(self._guards, rewards, begins, strict=True):
            guard.earn(float(reward))
            if begun:
                guard.begin()

    def __call__(
        self,
        tick: int,
        checked: Checked,
        proposal: Proposal | None,
        fault: str,
        detail: str,
        sent: np.ndarray,
    ) -> Judged:
        """fault, detail: why there is no proposal. sent: [B, A], the actions of the tick before."""
        judged = Judged(sent.copy(), [], [])
        score = None if proposal is None else proposal.score
        needy: dict[int, dict[str, Any]] = {}
        for i, guard in enumerate(self._guards):
            why, more = (INPUT, checked.faults[i]) if checked.faults[i] else (fault, detail)
            if proposal is not None and not why and not np.isfinite(proposal.action[i]).all():
                why, more = NONFINITE, "the policy's action is not finite"
            was_away = guard.away
            verdict = self._verdict(guard, i, why, score)
            if verdict.reason == UNKNOWN and score is not None:
                more = ", ".join(score.strange(i))
            if guard.away and not was_away:
                self._fallbacks.start(i, sent[i].copy())
            if verdict.source == POLICY:
                assert proposal is not None
                judged.actions[i] = self._scaled(proposal.action[i], verdict.scale)
            elif verdict.source == FALLBACK:
                needy[i] = {"robot": i, "tick": tick, "reason": verdict.reason, "detail": more}
            judged.verdicts.append(verdict)
            judged.details.append(more)
        self._fall_back(needy, checked, judged)
        if MASK_KEY in checked.obs:
            self._permit(checked, judged)
        return judged

    def _permit(self, checked: Checked, judged: Judged) -> None:
        """Let nobody send an action that is forbidden now, where the mask could be seen."""
        for i in np.flatnonzero(checked.valid):
            mask = checked.obs[MASK_KEY][i]
            judged.actions[i] = self._action.permitted(judged.actions[i], mask)

    def _verdict(self, guard: Guard, robot: int, fault: str, score: Score | None) -> Verdict:
        holds = self._fallbacks.holds(robot)
        if score is None:
            return guard.decide(fault, None, False, None, holds)
        value = float(score.value[robot])
        level = value / score.threshold if score.threshold > 0 else None
        return guard.decide(fault, value, bool(score.unknown[robot]), level, holds)

    def _fall_back(
        self, needy: dict[int, dict[str, Any]], checked: Checked, judged: Judged
    ) -> None:
        """The fallbacks' actions, under one budget; where one fails, the last resort's."""
        if not needy:
            return
        for i, (action, failure) in self._fallbacks(needy, checked.obs).items():
            judged.actions[i] = action
            if failure:
                judged.verdicts[i] = Verdict(LAST_RESORT, judged.verdicts[i].reason)
                judged.details[i] = f"{judged.details[i]}; {failure}".strip("; ")

    def _scaled(self, action: np.ndarray, scale: float) -> np.ndarray:
        if self._action.kind != "continuous":
            return action
        return np.asarray(self._action.clip(action) * np.float32(scale))

    def surrender(self, detail: str) -> Judged:
        """Rest for all, without asking anybody."""
        for guard in self._guards:
            guard.decide(ERROR, None, False, None, False)
        robots = len(self._guards)
        rest = np.tile(self._fallbacks.rest, (robots, 1))
        verdict = Verdict(LAST_RESORT, ERROR)
        return Judged(rest, [verdict] * robots, [detail] * robots)
