"""Who acts, robot by robot: the policy, the previous action, the fallback or the last resort."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from agents.deploy import decision as words
from agents.deploy.brain import Thought
from agents.deploy.check import Checked
from agents.deploy.config import DeployConfig
from agents.deploy.fallbacks import Fallbacks
from agents.deploy.guard import Guard, Verdict
from worldmodel.ood.api import Score
from worldmodel.types import ActionSpec


class Judged(NamedTuple):
    """Encoded actions [B, A], and for each robot who chose it, why, and more words."""

    actions: np.ndarray
    verdicts: list[Verdict]
    details: list[str]


class Judge:
    """The guards of B robots, and the fallbacks that they call."""

    def __init__(
        self, config: DeployConfig, action: ActionSpec, fallbacks: Fallbacks, robots: int
    ) -> None:
        self._fallbacks, self._action = fallbacks, action
        self._guards = [Guard(config) for _ in range(robots)]

    def __call__(
        self,
        tick: int,
        checked: Checked,
        thought: Thought | None,
        fault: str,
        detail: str,
        sent: np.ndarray,
    ) -> Judged:
        """fault, detail: why there is no thought. sent: [B, A], the actions of the tick before."""
        judged = Judged(sent.copy(), [], [])
        score = None if thought is None else thought.score
        needy: dict[int, dict[str, Any]] = {}
        for i, guard in enumerate(self._guards):
            why, more = (words.INPUT, checked.faults[i]) if checked.faults[i] else (fault, detail)
            if thought is not None and not why and not np.isfinite(thought.action[i]).all():
                why, more = words.NONFINITE, "the policy's action is not finite"
            was_away = guard.away
            verdict = self._verdict(guard, i, why, score)
            if verdict.reason == words.UNKNOWN and score is not None:
                more = ", ".join(score.strange(i))
            if guard.away and not was_away:
                self._fallbacks.start(i, sent[i].copy())
            if verdict.source == words.POLICY:
                assert thought is not None
                judged.actions[i] = self._scaled(thought.action[i], verdict.scale)
            elif verdict.source == words.FALLBACK:
                needy[i] = {"robot": i, "tick": tick, "reason": verdict.reason, "detail": more}
            judged.verdicts.append(verdict)
            judged.details.append(more)
        self._fall_back(needy, checked, judged)
        return judged

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
                judged.verdicts[i] = Verdict(words.LAST_RESORT, judged.verdicts[i].reason)
                judged.details[i] = f"{judged.details[i]}; {failure}".strip("; ")

    def _scaled(self, action: np.ndarray, scale: float) -> np.ndarray:
        if self._action.kind != "continuous":
            return action
        return np.clip(action, -1.0, 1.0) * np.float32(scale)

    def surrender(self, detail: str) -> Judged:
        """Rest for all, without asking anybody."""
        for guard in self._guards:
            guard.decide(words.ERROR, None, False, None, False)
        robots = len(self._guards)
        rest = np.tile(self._fallbacks.rest, (robots, 1))
        verdict = Verdict(words.LAST_RESORT, words.ERROR)
        return Judged(rest, [verdict] * robots, [detail] * robots)
