"""Steps environments with an agent and records what arrived, one row per environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from agents.base import Agent, random_actions
from worldmodel import checkpoint, tree
from worldmodel.config import RunError
from worldmodel.envs import Vector, check_fits
from worldmodel.envs.config import EnvUnclear
from worldmodel.envs.wrappers import CUT_OFF
from worldmodel.replay import Replay
from worldmodel.types import EnvSpec

ARRIVED = ("is_first", "is_last", "reward")  # of a row, beside its observation


class Episode(NamedTuple):
    """A finished episode: the sum of its rewards and its length in agent steps."""

    score: float
    length: int


class Acted(NamedTuple):
    """An action [N, A] under way, and the agent's state and extras of having chosen it."""

    action: np.ndarray
    state: Any
    extras: Mapping[str, Any]


@dataclass
class Collector:
    """Drives a vector environment (autoreset at the next step), row by row.

    One call of `step` is:  rows arrive -> agent acts on them -> rows and columns go to replay
                            -> the actions are taken, and the next rows arrive.

    A row holds the action that led to it (zeros on a first row), so the action chosen here waits
    until its consequence arrives. Sampled actions are stored as they were drawn; the
    environment clips them at its own edge.

    `step` is `begin` and `finish`. Between the two the step is under way in the environments; for
    everybody else it has not happened: rows, `state_dict` and replay are those before it.

    seed: of the random actions; the environments were seeded when they were made.
    saved: what `state_dict` said, to go on in the middle of the same episodes.
    first_seed: with which the first episodes begin, instead of the environments' own.
    steps counts real transitions over all environments; the rows of a reset do not count.
    """

    envs: Vector
    spec: EnvSpec
    agent: Agent
    seed: int
    mode: str = "sample"
    saved: InitVar[Mapping[str, Any] | None] = None
    say: Callable[[str], None] = lambda text: None
    first_seed: InitVar[int | None] = None
    steps: int = 0
    rows: dict[str, np.ndarray] = field(init=False)
    seen: dict[str, np.ndarray] = field(init=False)  # all that arrived last, unknown keys included
    state: Any = field(init=False, default=None)
    failures: list[tuple[int, str]] = field(init=False, default_factory=list)  # of the last step
    acted: Acted | None = field(init=False, default=None)  # what `finish` is to record
    cut_off: np.ndarray = field(init=False)  # whose episode the last rows cut off, as endless

    def __post_init__(self, saved: Mapping[str, Any] | None, first_seed: int | None) -> None:
        check_fits(self.envs, self.spec)
        self.num_envs = self.envs.num_envs
        self.rng = np.random.default_rng(self.seed)
        self.returns = np.zeros(self.num_envs)
        self.lengths = np.zeros(self.num_envs, np.int64)
        self.cut_off = np.zeros(self.num_envs, bool)
        if saved is None:
            self.begin_episodes(first_seed)
        else:
            with checkpoint.explain_errors("collector", "this run"):
                self._resume(saved)

    def begin_episodes(self, seed: int | None = None) -> None:
        """New episodes in all environments, numbered anew from a seed where one is given; rows
        that were not acted on yet are dropped. Raises RunError where an environment fails."""
        assert self.acted is None, "a step is under way"
        obs, infos = guarded(lambda: self.envs.reset(seed=seed))
        self._note_failures(infos)
        nothing = np.zeros(self.num_envs, bool)
        self.rows = self._rows(obs, np.zeros(self.num_envs), nothing, nothing, ~nothing, None)
        self.returns = np.zeros(self.num_envs)
        self.lengths = np.zeros(self.num_envs, np.int64)

    def _resume(self, saved: Mapping[str, Any]) -> None:
        """Bring environments, agent and generators back to where they were.

        The environments play their episodes again, from the same seeds and actions. One that does
        not come back to the same observations begins a new episode, and says so.
        """
        self.steps = saved["steps"]
        self.rng.bit_generator.state = saved["rng"]
        if saved["agent"] is not None:
            initial = self.agent.initial(self.num_envs)
            self.state = tree.from_plain(initial, saved["agent"], "agent")
        like: list[Any] = [self.returns, self.lengths, self._blank()]
        parts = [saved[name] for name in ("returns", "lengths", "rows")]
        self.returns, self.lengths, rows = tree.from_plain(like, parts, "collector")
        then = {key: rows[key] for key in self.spec.obs}
        obs, *_, infos = guarded(lambda: self.envs.restore(tree.to_arrays(saved["envs"]), then))
        restarted = infos["restarted"]
        self.seen = dict(obs)
        self.rows = tree.where(restarted, tree.map(np.zeros_like, rows), rows)
        self.rows |= {key: np.asarray(obs[key]) for key in self.spec.obs}
        self.rows["is_first"] |= restarted
        for index, reason in infos["failures"]:
            self.say(
                f"environment {index} begins a new episode; the one that was interrupted is closed "
                f"as truncated. The run is sound, but no longer the same to the bit. {reason}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Where episodes, agent and generators stand, as lists, dicts, numbers and tensors."""
        state: dict[str, Any] = tree.to_plain({
            "envs": self.envs.snapshot(), "rows": self.rows, "agent": self.state,
            "rng": self.rng.bit_generator.state, "returns": self.returns, "lengths": self.lengths,
            "steps": self.steps,
        })  # fmt: skip
        return state

    def step(self, replay: Replay | None = None, explore: bool = False) -> list[Episode]:
        """Act on the rows at hand, record them, and fetch the next ones.

        explore: uniformly random actions instead of the agent's. Returns the episodes that the
        new rows ended. Raises RunError where the environment fails.
        """
        self.begin(explore)
        return self.finish(replay)

    def begin(self, explore: bool = False) -> None:
        """Act on the rows at hand; `finish` must follow. Raises RunError where the environments
        are broken already, or the agent returns what is no action of theirs."""
        assert self.acted is None, "a step is under way"
        inputs = {key: self.rows[key] for key in (*self.spec.obs, *ARRIVED)}
        # An exploring agent still sees every row, so that its state and latents are right.
        chosen = self.agent.act(inputs, self.state, self.mode)
        action, state, extras = checked(chosen, self.spec, self.num_envs, self.agent, self.steps)
        if explore:
            action = random_actions(self.spec, inputs, self.num_envs, self.rng)
            state = self.agent.replace_action(state, action)
        native = self.spec.action.decode(action)
        guarded(lambda: self.envs.step_async(native))
        self.acted = Acted(action, state, extras)

    def finish(self, replay: Replay | None = None) -> list[Episode]:
        """Record the rows that were acted on, and fetch the next ones, as `step` does."""
        assert self.acted is not None, "no step is under way"
        (action, state, extras), self.acted = self.acted, None
        obs, reward, terminated, truncated, infos = guarded(self.envs.step_wait)
        # Only now: where the environments failed for good, replay, agent and environments still
        # stand at the same moment, and can be saved.
        self.state, rows = state, self.rows
        if replay is not None:
            columns = {name: extras[name] for name in replay.columns}
            guarded(lambda: replay.add(rows | columns))
        self._note_failures(infos)
        self.cut_off = np.asarray(infos.get(CUT_OFF, np.zeros(self.num_envs)), bool)
        # With autoreset at the next step, the row after a last one begins a new episode; so does
        # that of an environment which failed, and replay closes its old episode as truncated.
        is_first = rows["is_last"] | infos["restarted"]
        self.rows = self._rows(obs, reward, terminated, truncated, is_first, action)
        return self._count()

    def _note_failures(self, infos: Mapping[str, Any]) -> None:
        """Note, and say, which environments were restarted."""
        self.failures = infos["failures"]
        for index, reason in self.failures:
            self.say(f"environment {index} was restarted: {reason}")

    def _rows(
        self,
        obs: Mapping[str, np.ndarray],
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        is_first: np.ndarray,
        action: np.ndarray | None,
    ) -> dict[str, np.ndarray]:
        """The rows of one moment, aligned as worldmodel.types draws them."""
        self.seen = dict(obs)
        if action is None:
            action = np.zeros((self.num_envs, self.spec.action.size), np.float32)
        return {
            **{key: np.asarray(obs[key]) for key in self.spec.obs},
            "action": np.where(is_first[:, None], 0, action).astype(np.float32),
            "reward": np.where(is_first, 0, reward).astype(np.float32),
            "is_first": is_first.copy(),
            "is_last": (terminated | truncated) & ~is_first,
            "is_terminal": terminated & ~is_first,
        }

    def _blank(self) -> dict[str, np.ndarray]:
        """Rows of zeros, with the shapes and types of all rows."""
        nothing = np.zeros(self.num_envs, bool)
        obs = {
            key: np.zeros((self.num_envs, *obs.shape), np.uint8 if obs.kind == "image" else "f4")
            for key, obs in self.spec.obs.items()
        }
        return self._rows(obs, np.zeros(self.num_envs), nothing, nothing, nothing, None)

    def _count(self) -> list[Episode]:
        """Count the new rows, and close the episodes that they ended."""
        rows = self.rows
        real = ~rows["is_first"]
        self.steps += int(real.sum())
        self.returns = np.where(real, self.returns + rows["reward"], 0)
        self.lengths = np.where(real, self.lengths + 1, 0)
        ended = np.flatnonzero(rows["is_last"])
        return [Episode(float(self.returns[i]), int(self.lengths[i])) for i in ended]


def checked(
    chosen: Any, spec: EnvSpec, num_envs: int, agent: Agent, step: int
) -> tuple[Any, Any, Any]:
    """What an agent's `act` returned: action, state and extras. RunError where it is not that, or
    the action is not finite; step: for its message."""
    form = "one-hot" if spec.action.kind == "discrete" else "in [-1, 1]"
    needed = (num_envs, spec.action.size)
    text = (
        f"{type(agent).__name__}.act must return (action, state, extras), the action as float32 "
        f"{list(needed)}, {form} (spec.action.encode makes it of what the environment takes), but "
    )
    if not isinstance(chosen, tuple) or len(chosen) != 3:
        raise RunError(f"{text}returned a {type(chosen).__name__}.")
    action = np.asarray(chosen[0])
    if action.shape != needed or action.dtype.kind not in "biuf":
        raise RunError(f"{text}its action is {action.dtype} {list(action.shape)}.")
    finite = np.isfinite(action).all(-1)
    if not finite.all():
        raise RunError(
            f"The agent {type(agent).__name__} gave an action that is not finite: "
            f"{action[~finite][0]}, at step {step:,}. Look at its weights and its last loss."
        )
    return chosen


def guarded(call: Any) -> Any:
    """An environment's answer; its error stops the run with its own words."""
    try:
        return call()
    except EnvUnclear:  # a setting is missing
        raise
    except ValueError as error:
        raise RunError(f"The environment failed: {error}") from error
