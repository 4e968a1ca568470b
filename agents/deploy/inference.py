"""What runs in the worker: an agent filters, scores and acts, and its world is compared with what
came.

    control thread    obs_t -> Request --------> wait ... Proposal -> decide -> action_t is sent
    worker                       act, score -> Proposal    predict obs_t from t-1, compare

The recurrent state lives here and nowhere else, so that a late answer never races with the next
tick. The action that was really sent comes back with the next request: the policy remembers what
the robot did, not what it had proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from agents.base import Agent, check_mode
from worldmodel import tree
from worldmodel.capabilities import Decodes, Expects
from worldmodel.config import RunError
from worldmodel.ood.api import Memory, Score
from worldmodel.ood.detector import Detector


class Request(NamedTuple):
    """One tick of B robots. obs: checked, [B, ...] by key, without doubtful values. sent: [B, A]
    encoded, the actions sent at the tick before. valid: [B], whose observation can be believed.
    is_first: [B], whose episode begins. reward: [B], NaN where it is unknown. until: seconds of
    the clock at which the next tick is expected. fresh: forget everything first."""

    tick: int
    obs: Any
    sent: np.ndarray
    valid: np.ndarray
    is_first: np.ndarray
    reward: np.ndarray
    until: float
    fresh: bool = False


class Proposal(NamedTuple):
    """What the policy would do: encoded [B, A]; how strange it finds what it sees; and the one-step
    prediction errors [B] by kind that were measured since the last answer (NaN where not). search:
    numbers about the search for the action, where it was planned."""

    action: np.ndarray
    score: Score | None
    errors: dict[str, np.ndarray]
    tick: int  # which one `errors` belongs to
    search: Mapping[str, float] = MappingProxyType({})


class Engine(Protocol):
    """An agent that can be run tick by tick, with or without our training code. Its states are
    trees (worldmodel.tree)."""

    def initial(self, batch_size: int) -> Any: ...

    def step(
        self, obs: Mapping[str, np.ndarray], state: Any, is_first: np.ndarray, sent: np.ndarray
    ) -> tuple[np.ndarray, Any, Score | None]:
        """Encoded actions [B, A], the next state, and the score of obs, if there is a detector."""
        ...

    def predict(self, state: Any, sent: np.ndarray) -> dict[str, np.ndarray] | None:
        """What follows state through the action [B, A]: observations [B, ...] by key (images in
        [0, 1]), and "reward" [B] where that is the environment's; None where there is no world to
        ask."""
        ...


@runtime_checkable
class Searches(Protocol):
    """An engine that plans its actions."""

    @property
    def search(self) -> Mapping[str, float]:
        """Numbers about the last decision."""
        ...


class EngineState(NamedTuple):
    """The states of the policy and of the detector's scorer, [B, ...]."""

    policy: Any
    memory: Memory


class AgentEngine:
    """An agent of `agents.base`, as it is; satisfies `Engine`.

    mode: "mode" or "sample". The detector's scorer is asked after the agent has filtered the
    observation; time stamps are the runtime's to judge. Raises RunError for a detector that is not
    calibrated.
    """

    def __init__(self, agent: Agent, detector: Detector | None = None, mode: str = "mode") -> None:
        check_mode(mode)
        self.agent, self.mode = agent, mode
        self.scorer: Any = None if detector is None else detector.scorer
        if detector is not None and not detector.calibration:
            raise RunError(
                "The detector is not calibrated, so its scores mean nothing: "
                "scripts/fit_detector.py run=RUN fits and calibrates one."
            )

    @property
    def search(self) -> Mapping[str, float]:
        """Of the last decision, where the agent plans (an agent that learns its world calls its
        numbers plan/NAME among its metrics)."""
        return {name.removeprefix("plan/"): value for name, value in self.agent.stats.items()}

    def initial(self, batch_size: int) -> EngineState:
        """The first state."""
        memory = {} if self.scorer is None else self.scorer.initial(batch_size)
        return EngineState(self.agent.initial(batch_size), memory)

    @torch.inference_mode()
    def step(
        self,
        obs: Mapping[str, np.ndarray],
        state: EngineState,
        is_first: np.ndarray,
        sent: np.ndarray,
    ) -> tuple[np.ndarray, EngineState, Score | None]:
        """One action, and the score of what led to it."""
        sent = np.where(is_first[:, None], 0, sent).astype(np.float32)
        before = self.agent.replace_action(state.policy, sent)
        action, policy, _ = self.agent.act({**obs, "is_first": is_first}, before, self.mode)
        if self.scorer is None:
            return action, EngineState(policy, state.memory), None
        value, parts, memory = self.scorer(
            {key: torch.from_numpy(array) for key, array in obs.items()},
            self.agent.world_state(policy), torch.from_numpy(sent), torch.from_numpy(is_first),
            state.memory,
        )  # fmt: skip
        names, threshold = self.scorer.names, self.scorer.threshold
        score = Score.of(value.numpy(), parts.numpy(), names, threshold)
        return action, EngineState(policy, memory), score

    @torch.inference_mode()
    def predict(self, state: EngineState, sent: np.ndarray) -> dict[str, np.ndarray] | None:
        """One step of the agent's world, where it has one that can show what it expects."""
        if not can_predict(self.agent.model):
            return None
        latent = self.agent.world_state(state.policy)
        action = torch.as_tensor(sent, device=tree.device(latent))
        found = predict(self.agent.model, latent, action)
        return {key: value.cpu().numpy() for key, value in found.items()}


def can_predict(world: Any) -> bool:
    """Whether observations can be predicted with a world (None: there is none)."""
    return isinstance(world, Expects) and isinstance(world, Decodes)


def predict(world: Any, state: Any, action: Tensor) -> dict[str, Tensor]:
    """What a world expects to follow a state through an action [B, A]: see `Engine.predict`."""
    expected = world.expect(state, action)
    found = dict(world.decode(expected.state))
    return found | {"reward": expected.reward} if world.expects_reward else found


class PolicyJob:
    """Answers requests with an engine; satisfies `agents.deploy.worker.Job`.

    Memory after missed ticks: the state goes on as if they had not been, for up to `max_gap` of
    them, and with more it starts anew. A robot whose observation was refused counts as missed.
    kinds: kind of each observation key. errors: whether one-step errors are wanted. now: a clock.
    """

    def __init__(
        self,
        engine: Engine,
        robots: int,
        max_gap: int,
        kinds: Mapping[str, str],
        errors: bool,
        now: Callable[[], float],
    ) -> None:
        self._engine, self._robots, self._max_gap = engine, robots, max_gap
        self._kinds, self._wanted, self._now = dict(kinds), errors, now
        self._cost = 0.0  # the longest that a comparison took lately
        self.skipped = 0
        self._forget()

    def _forget(self) -> None:
        self._state = self._engine.initial(self._robots)
        # The last tick of which each robot's state knows; far in the past at first.
        self._seen = np.full(self._robots, -(1 << 40), np.int64)
        self._errors: dict[str, np.ndarray] = {}
        self._measured = -1
        self._before: tuple[Any, np.ndarray] | None = None
        self._request: Request | None = None

    def __call__(self, request: Request) -> Proposal:
        """The proposal for a request; nothing is remembered of one that fails."""
        if request.fresh:
            self._forget()
        gap = request.tick - self._seen - 1
        is_first = request.is_first | (gap > self._max_gap)
        action, state, score = self._engine.step(request.obs, self._state, is_first, request.sent)
        # An error of one step is known where the robot saw this tick and the one before.
        known = request.valid & (gap == 0) & ~is_first
        self._before, self._request = (self._state, known), request
        if not request.valid.all():
            state = tree.where(request.valid, state, self._state)
        self._state = state
        self._seen = np.where(request.valid, request.tick, self._seen)
        errors, self._errors = self._errors, {}
        search = dict(self._engine.search) if isinstance(self._engine, Searches) else {}
        return Proposal(action, score, errors, self._measured, search)

    def afterwards(self) -> None:
        """Compare what the world predicted with what came, if the time until the next tick allows
        it."""
        request, before = self._request, self._before
        if not self._wanted or request is None or before is None or not before[1].any():
            return
        start = self._now()
        if self._cost and start + 2 * self._cost > request.until:
            self.skipped += 1
            self._cost *= 0.99  # one slow comparison must not end them all for ever
            return
        predicted = self._engine.predict(before[0], request.sent)
        if predicted is None:
            self._wanted = False
            return
        self._errors = one_step_errors(predicted, request, before[1], self._kinds)
        self._measured = request.tick
        self._cost = max(0.95 * self._cost, self._now() - start)


def one_step_errors(
    predicted: Mapping[str, np.ndarray],
    request: Request,
    known: np.ndarray,
    kinds: Mapping[str, str],
) -> dict[str, np.ndarray]:
    """Errors [B] by kind, NaN where not known: "image" and "vector", the mean absolute difference
    over all their keys (of pixels in [0, 1], of symlogs), and "reward", in the reward's units."""
    gathered: dict[str, list[np.ndarray]] = {}
    for key, value in predicted.items():
        kind = "reward" if key == "reward" else kinds.get(key, "")
        if kind == "image":
            difference = value - request.obs[key] / np.float32(255)
        elif kind == "vector":
            difference = _symlog(value) - _symlog(request.obs[key])
        elif kind == "reward":
            difference = value - request.reward
        else:
            continue
        flat = np.abs(difference).reshape(len(known), -1).mean(1)
        gathered.setdefault(kind, []).append(flat)
    return {kind: np.where(known, np.mean(all_, 0), np.nan) for kind, all_ in gathered.items()}


def _symlog(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.sign(x) * np.log1p(np.abs(x))
    return out
