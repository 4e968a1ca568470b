"""The control loop's view of a deployed agent: an observation in, a decision out, on time.

tick:  check -> [worker: act, score] -> judge -> policy | previous | fallback | last resort
         '------ at most hard_ms ------'
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np

from agents.deploy.config import DeployConfig
from agents.deploy.decision import ERROR, INPUT, LATE, OK, Decision, Tally
from agents.deploy.earnings import Earnings
from agents.deploy.fallback import Fallbacks
from agents.deploy.guard import Judge, Judged
from agents.deploy.inference import Proposal, Request
from agents.deploy.inputs import Checked, InputCheck, blank, flags, floats, needed
from agents.deploy.journal import Journal, LogThread
from agents.deploy.retrain import RetrainMonitor, RetrainRequest, Row
from agents.deploy.timing import Clock, SystemClock
from agents.deploy.worker import Answer, Worker
from worldmodel.config import ConfigError, RunError
from worldmodel.ood.api import Score
from worldmodel.types import EnvSpec

FIRST_ANSWER_S = 120.0  # while warming up: libraries load, kernels are chosen


class Runtime:
    """A deployed agent for B robots.

    spec: of one robot. worker: called with `seen`, makes the worker in which the policy runs.
    robots: B. on_retrain: called with every request to train, in the log's thread. run: where the
    agent came from, for the log. threaded: False writes the log in the control thread, for tests.
    earnings: of calibration, where they are known.

    `start` once, then `tick` at every cycle; `tick` raises nothing. Raises ConfigError here and in
    `start` for whatever can be wrong before the loop.
    """

    def __init__(
        self,
        spec: EnvSpec,
        worker: Callable[[Callable[[Answer], None]], Worker],
        config: DeployConfig | None = None,
        robots: int = 1,
        clock: Clock | None = None,
        on_retrain: Callable[[RetrainRequest], None] = lambda request: None,
        run: str = "RUN",
        wall: Callable[[], float] = time.time,
        threaded: bool = True,
        earnings: Earnings | None = None,
    ) -> None:
        if robots < 1:
            raise ConfigError(f"robots is {robots}, but must be at least 1.")
        self.config = c = config or DeployConfig()
        self.spec, self.robots = spec, robots
        self.clock: Clock = clock or SystemClock()
        age = None if c.max_age_ms is None else c.max_age_ms / 1e3
        self._check = InputCheck(spec, robots, age)
        self._fallbacks = Fallbacks(c.fallback, spec.action, robots, self.clock)
        self._judge = Judge(c, spec.action, self._fallbacks, robots, earnings)
        self._sent = np.tile(self._fallbacks.rest, (robots, 1))
        self._nothing = np.full(robots, np.nan, np.float32)
        self.tally = Tally(c.period_ms / 1e3, c.soft_ms / 1e3)
        self.monitor = RetrainMonitor(c.retrain, spec, robots, run)
        self.journal = Journal(c.log, c.log_mb * 1e6, c.log_files, wall)
        self._log_thread = LogThread(threaded)
        self._on_retrain = on_retrain
        self._tick = 0
        self._started = False
        # Whose new episode the policy does not know of yet, and since which tick it is announced.
        self._first = np.zeros(robots, bool)
        self._first_since = np.full(robots, -1, np.int64)
        self._fresh_since = -1
        self._worker = worker(self._seen)

    # Before the loop.

    def start(self, example: Any = None, stamp: Any = None) -> Runtime:
        """Warm up, and check everything that can be checked before a robot moves.

        example: an observation as `tick` will get it, which is checked; without one, zeros serve.
        Raises ConfigError where observation or fallback do not fit, RunError where the policy
        fails or its action is not finite.
        """
        obs = blank(self.spec, self.robots) if example is None else example
        checked = InputCheck(self.spec, self.robots)(obs)
        if any(checked.faults):
            raise ConfigError(
                f"The observation does not fit this agent: {next(filter(None, checked.faults))}. "
                f"It needs {needed(self.spec)}."
            )
        if self._check.max_age is not None and example is not None and stamp is None:
            raise ConfigError("max_age_ms is set, so every observation needs a time stamp.")
        self._fallbacks.try_out(checked.obs)
        for count in range(self.config.warmup):
            self._try(checked, -self.config.warmup + count)
        self._fresh_since = 0
        self._first[:] = True
        self._started = True
        self._note({"event": "start", "robots": self.robots, "period_ms": self.config.period_ms})
        return self

    def _try(self, checked: Checked, tick: int) -> None:
        """One tick that nobody acts on."""
        begins = np.full(self.robots, tick == -self.config.warmup)
        request = self._request(tick, checked, begins, self._nothing, self.clock.now())
        self._worker.submit(tick, request)
        answer = self._worker.wait(tick, self.clock.now() + FIRST_ANSWER_S)
        if answer is None:
            raise RunError(f"The policy did not answer within {FIRST_ANSWER_S:g} s.")
        fault = answer.error or self._misshapen(answer.result)
        if fault or not np.isfinite(answer.result.action).all():
            raise RunError(
                f"The policy cannot act: {fault or 'its action is not finite'}. Evaluate its run "
                "with scripts/evaluate.py."
            )

    # The loop.

    def tick(
        self,
        obs: Any,
        *,
        stamp: Any = None,
        reward: Any = None,
        is_first: Any = None,
        is_last: Any = None,
        is_terminal: Any = None,
        sent: Any = None,
    ) -> list[Decision]:
        """One decision for each robot, in time; raises nothing once `start` has returned.

        obs: [B, ...] by key, or a list of B observations, None (or the error) where one is
        missing. stamp: when they were taken (max_age_ms). reward, is_last, is_terminal: of the
        last action, for the prediction error and for the rows that a request to train saves.
        is_first: a new episode begins, memory is dropped. sent: the encoded actions [B, A] that
        really went out since the last tick, where something below changed them.
        """
        if not self._started:
            raise RunError("tick was called before start. Call start first: it warms up.")
        start = self.clock.now()
        given = (is_first, is_last, is_terminal)
        try:
            decisions, rows, proposal = self._decide(obs, stamp, reward, given, sent, start)
        except Exception as error:  # a mistake of ours must not stop a robot's loop
            decisions = self._broken(error, start)
            rows, proposal = [], None
        self.tally.add(decisions)
        self._log_thread.put(lambda: self._write(decisions, rows, proposal))
        self._tick += 1
        return decisions

    def act(self, obs: Any, **about: Any) -> Decision:
        """`tick` for a single robot, whose observation has no batch axis."""
        return self.tick([obs], **about)[0]

    def _decide(
        self, obs: Any, stamp: Any, reward: Any, given: Sequence[Any], sent: Any, start: float
    ) -> tuple[list[Decision], list[Row], Proposal | None]:
        checked = self._check(obs, stamp, start)
        if sent is not None:
            self._sent = floats(sent, self._sent.copy(), np.isfinite)
        begins, last, terminal = (flags(value, self.robots) for value in given)
        self._first |= begins
        self._first_since[begins] = -1
        rewards = floats(reward, self._nothing.copy())
        proposal, fault = None, INPUT
        detail = ""
        if checked.valid.any():
            # A refused row is announced again: its memory stands still meanwhile.
            self._first_since[~checked.valid] = -1
            self._first_since[self._first & checked.valid & (self._first_since < 0)] = self._tick
            request = self._request(self._tick, checked, self._first, rewards, start)
            self._worker.submit(self._tick, request)
            answer = self._worker.wait(self._tick, start + self.config.hard_ms / 1e3)
            proposal, fault, detail = self._read(answer)
        rows = [
            Row(
                {k: v[i] for k, v in checked.obs.items()} if not checked.faults[i] else None,
                self._sent[i].copy(), float(rewards[i]), bool(begins[i] or self._tick == 0),
                bool(last[i]), bool(terminal[i]),
            )
            for i in range(self.robots)
        ]  # fmt: skip
        self._judge.earned(rewards, begins)
        verdict = self._judge(self._tick, checked, proposal, fault, detail, self._sent)
        score = None if proposal is None else proposal.score
        search = {} if proposal is None else proposal.search
        return self._decisions(verdict, score, start, search), rows, proposal

    def _request(
        self,
        tick: int,
        checked: Checked,
        begins: np.ndarray,
        reward: np.ndarray,
        start: float,
    ) -> Request:
        until = start + self.config.period_ms / 1e3
        fresh = self._fresh_since >= 0
        return Request(
            tick, checked.obs, self._sent.copy(), checked.valid, begins.copy(), reward,
            until, fresh,
        )  # fmt: skip

    def _read(self, answer: Answer | None) -> tuple[Proposal | None, str, str]:
        """The proposal in an answer, or why there is none."""
        if answer is None:
            return None, LATE, f"no answer within {self.config.hard_ms:g} ms"
        if answer.error:
            return None, ERROR, answer.error
        assert answer.ticket is not None  # it answers a request
        self._acknowledge(answer.ticket)
        fault = self._misshapen(answer.result)
        return (None, ERROR, fault) if fault else (answer.result, "", "")

    def _misshapen(self, proposal: Any) -> str:
        """What is wrong with the form of a proposal, or ""."""
        shape = getattr(getattr(proposal, "action", None), "shape", None)
        if shape != self._sent.shape:
            return f"the policy's action has shape {shape}; {list(self._sent.shape)} is needed"
        score = proposal.score
        if score is not None and np.shape(score.value) != (self.robots,):
            return f"the score has shape {np.shape(score.value)}; [{self.robots}] is needed"
        return ""

    def _seen(self, answer: Answer) -> None:
        """An answer that came too late: the policy has seen its observation all the same."""
        if answer.ticket is not None and answer.ticket >= 0 and not answer.error:
            self._acknowledge(answer.ticket)

    def _acknowledge(self, ticket: int) -> None:
        """The policy knows what was announced up to this tick."""
        known = (self._first_since >= 0) & (self._first_since <= ticket)
        self._first[known], self._first_since[known] = False, -1
        if 0 <= self._fresh_since <= ticket:
            self._fresh_since = -1

    def _decisions(
        self,
        judged: Judged,
        score: Score | None,
        start: float,
        search: Mapping[str, float] = MappingProxyType({}),
    ) -> list[Decision]:
        native = self.spec.action.decode(judged.actions)
        self._sent = judged.actions
        latency = self.clock.now() - start
        out = []
        for i, verdict in enumerate(judged.verdicts):
            value, threshold, parts = (None, None, {}) if score is None else (
                float(score.value[i]), float(score.threshold),
                {name: float(part[i]) for name, part in score.parts.items()},
            )  # fmt: skip
            out.append(
                Decision(
                    np.array(native[i]), judged.actions[i].copy(), verdict.source, verdict.reason,
                    latency, self._tick, i, judged.details[i], value, threshold, parts,
                    verdict.scale, search,
                )
            )  # fmt: skip
        return out

    def _broken(self, error: Exception, start: float) -> list[Decision]:
        """Rest, for everybody: something of ours failed."""
        judged = self._judge.surrender(f"{type(error).__name__}: {error}")
        return self._decisions(judged, None, start)

    # Beside the loop.

    def _write(
        self, decisions: Sequence[Decision], rows: Sequence[Row], proposal: Proposal | None
    ) -> None:
        """In the log's thread: lines for what was not as usual, rows, prediction errors."""
        for one in decisions:
            if one.reason != OK:
                self.journal.write(one.as_line())
        if rows:
            self.monitor.see(rows)
        if proposal is not None and proposal.errors:
            request = self.monitor.errors(proposal.tick, proposal.errors)
            if request is not None:
                self.journal.write({"event": "retrain", **asdict(request)})
                self._on_retrain(request)

    def _note(self, event: Mapping[str, Any]) -> None:
        self._log_thread.put(lambda: self.journal.write(event))

    def summary(self) -> dict[str, Any]:
        """Counts and latencies (milliseconds) since the start, and what the log could not keep."""
        return {
            **self.tally.summary(),
            "retrain_requests": len(self.monitor.requests),
            "log_lost": self.journal.lost + self._log_thread.dropped + self._log_thread.errors,
            "policy_restarts": self._worker.restarts,
        }

    def close(self) -> None:
        """End the worker, and write what is left to write."""
        self._note({"event": "end", **self.tally.summary()})
        self._worker.close()
        self._fallbacks.close()
        self._log_thread.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
