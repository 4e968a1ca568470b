"""When the policy may act: hysteresis, repeats and caution of one robot; no clock, no threads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from agents.deploy import decision as words
from agents.deploy.config import CautionConfig, DeployConfig


class Verdict(NamedTuple):
    """Who acts, why, and what the policy's action is multiplied by."""

    source: str
    reason: str
    scale: float = 1.0


@dataclass
class Guard:
    """The state of one robot's trust in its policy.

    away: whether the fallback is in charge. good: ticks without fault since. need: of those, before
    the policy returns. strange: unknown observations in a row. repeats: previous actions in a row.
    """

    config: DeployConfig
    away: bool = False
    good: int = 0
    need: int = 0
    strange: int = 0
    repeats: int = 0

    def decide(
        self, fault: str, value: float | None, unknown: bool, level: float | None, hold: bool
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
        if unknown and (self.away or self.strange >= self.config.enter_ticks):
            return self._leave(words.UNKNOWN, self.config.leave_ticks)
        if self.away:
            calm = level is None or level <= self.config.leave_level
            self.good = self.good + 1 if calm else 0
            if self.good < self.need or hold:
                return Verdict(words.FALLBACK, words.WAITING)
            self.away = False
        return Verdict(words.POLICY, words.OK, caution(self.config.caution, level))

    def _faulty(self, fault: str) -> Verdict:
        """The policy's answer is late, broken, or was never asked for."""
        allowed = {words.LATE: self.config.on_late, words.NONFINITE: self.config.on_nonfinite}
        if (
            allowed.get(fault) == words.PREVIOUS
            and not self.away
            and self.repeats < self.config.max_repeats
        ):
            self.repeats += 1
            return Verdict(words.PREVIOUS, fault)
        return self._leave(fault, self.config.recover_ticks)

    def _leave(self, reason: str, need: int) -> Verdict:
        # A fault on top of an unknown scene must not shorten the way back.
        self.need = max(need, self.need) if self.away else need
        self.away, self.good = True, 0
        return Verdict(words.FALLBACK, reason)


def caution(config: CautionConfig, level: float | None) -> float:
    """What to multiply the action by at a score of `level` thresholds."""
    if level is None or config.least >= 1.0:
        return 1.0
    share = (level - config.start) / (1.0 - config.start)
    return 1.0 - (1.0 - config.least) * min(1.0, max(0.0, share))
