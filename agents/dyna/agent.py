"""The Dyna family as an agent of the training loop: what it reads from replay, what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agents.base import Agent, Evaluation, Part, check_mode
from agents.dyna.config import DynaConfig
from worldmodel.config import ConfigError
from worldmodel.distributions import OneHot
from worldmodel.types import EnvSpec

if TYPE_CHECKING:
    from agents.dyna.kernels import CompiledLearner
    from agents.dyna.learner import Learner
    from worldmodel.models.tabular import TabularModel, TabularState
    from worldmodel.replay import Replay

# As learn_all has them.
ROWS = ("first", "state", "action", "reward", "after", "terminal", "last")


NO_ACTION = torch.zeros(0)  # a table needs none to know where it is


class Dyna(Agent):
    """Learns a table of the world and plans in it; see agents.dyna.learner for the algorithm.

    `update` reads every row that replay received since the last one, once and in order (several
    environments: row by row, in turn), learns from each transition and plans n times after it.
    With train_ratio=1 it is called once for each real step. Rows reach replay when the next action
    is chosen, so the policy lags one step behind what the environment showed.

    Episodes that are cut off bootstrap, those that end do not. Computes on the CPU whatever the
    device. Raises ConfigError where the world is not one discrete observation and one discrete
    action.
    """

    Config = DynaConfig
    min_rows = 2  # one transition

    def __init__(self, spec: EnvSpec, config: DynaConfig, device: torch.device) -> None:
        # Here and not above: every command lists the settings of every agent, and most do not
        # need a compiler for it.
        from agents.dyna.kernels import CompiledLearner
        from agents.dyna.learner import Learner
        from worldmodel.models.tabular import TabularConfig, TabularModel

        self.spec, self.config = spec, config
        # Whoever dreams in it meets pairs that were never tried: they lead back, with reward 0.
        table = TabularConfig(config.table, "stay", config.gamma)
        # Seeded from torch's generator, which the caller seeds.
        seed = int(torch.randint(2**31, ()).item())
        try:
            self.model: TabularModel = TabularModel(spec, table)
        except ValueError as error:
            raise ConfigError(f"agent={config.name} plans with a table. {error}") from error
        self.learner: Learner | CompiledLearner
        if config.compiled:
            self.learner = CompiledLearner(config, self.model, seed)
        else:
            self.learner = Learner(config, self.model.states, self.model.actions, seed)
        self._read: list[int] = []  # rows of each stream that were learned from
        self._at: list[int] = []  # the state of the newest of them, -1 where there is none

    @property
    def q(self) -> np.ndarray:
        """The values that the policy follows, float64 [S, A]."""
        return self.learner.values()

    def initial(self, batch_size: int) -> TabularState:
        """The state that was seen last, which an observation shows: none yet."""
        return self.model.initial(batch_size)

    def act(
        self, obs: Mapping[str, Any], state: Any = None, mode: str = "sample"
    ) -> tuple[np.ndarray, TabularState, dict[str, Any]]:
        """One-hot actions [B, A] for one-hot observations [B, S]: the policy's, or with
        mode="mode" one of greatest value. Ties are drawn."""
        check_mode(mode)
        seen = np.asarray(obs[self.model.key])
        states = seen.argmax(-1)
        chosen = self._greedy(states) if mode == "mode" else self.learner.act(states)
        after = self.model.observe(
            self.model.initial(1), {self.model.key: torch.from_numpy(seen)}, NO_ACTION, NO_ACTION
        )
        return np.eye(self.model.actions, dtype=np.float32)[chosen], after, {}

    # About its world.

    def world_state(self, state: TabularState) -> TabularState:
        return state

    def plan_in(self) -> TabularModel:
        from worldmodel.models.tabular import KnownTable

        return KnownTable(self.model)

    def evaluate(self, state: TabularState) -> Evaluation:
        """The policy that explores, and the greatest value, in states [...]."""
        c, q = self.config, torch.from_numpy(self.q)[state.place.argmax(-1).cpu()]
        best = q.amax(-1)
        if c.policy == "softmax":
            return Evaluation(OneHot(q / c.temperature), best.float())
        ties = (q == best.unsqueeze(-1)).double()
        share = (1 - c.epsilon) * ties / ties.sum(-1, keepdim=True) + c.epsilon / q.shape[-1]
        return Evaluation(OneHot(share.log()), best.float())

    # Learning.

    def _greedy(self, states: np.ndarray) -> np.ndarray:
        """Actions of greatest value [B]. Evaluating must not change a run, so its ties are drawn
        from torch's generator and not from the agent's own."""
        q = self.q[states]
        ties = q == q.max(-1, keepdims=True)
        return (torch.rand(q.shape).numpy() * ties).argmax(-1)

    def update(self, replay: Replay) -> dict[str, Any]:
        """Learn from the rows that arrived since the last call, planning after each transition;
        no metrics where none did.

        Raises ValueError where replay lost rows before they were read.
        """
        rows = self._fresh(replay)
        if not rows:
            return {}
        learner, real = self.learner, ~rows["first"]
        updates, calls = learner.updates, learner.calls
        error = learner.learn_all(*(rows[name] for name in ROWS))
        if not self.config.compiled:  # which keeps a model of its own
            self.model.record(*(rows[name][real] for name in ROWS[1:-1]))
        if not np.isfinite(error):
            raise FloatingPointError(f"the error of the values is {error}.")
        metrics = {
            "planning_updates": float(learner.updates - updates),
            "model_calls": float(learner.calls - calls),
            "known_pairs": float(self.model.known_pairs),
        }
        return metrics | ({"td_error": error / real.sum()} if real.any() else {})

    def plan(self, updates: int, state: int | None = None) -> int:
        """So many planning updates without a real step; how many were done (fewer where the queue
        runs empty or the model calls are used up).

        state: where simulated trajectories start. Raises ValueError where nothing is known yet.
        """
        if self.model.known_pairs == 0:
            raise ValueError(
                "There is nothing to plan with: the model has seen no transition. Let the agent "
                "act and call update first."
            )
        if updates < 0:
            raise ValueError(f"updates is {updates}; it must be at least 0.")
        root = int(self.model.tables.states[0]) if state is None else state
        if not 0 <= root < self.model.states:
            raise ValueError(f"state is {state}; it must lie in [0, {self.model.states}).")
        before = self.learner.updates
        self.learner.plan(updates, root)
        return self.learner.updates - before

    def _fresh(self, replay: Replay) -> dict[str, np.ndarray]:
        """Unread rows in the order of their arrival, as arrays for `learn_all`; empty where there
        are none. What led to the very first row is unknown: it is taken as an episode's start."""
        counts = replay.counts.tolist()
        if not self._read:
            self._read, self._at = [0] * len(counts), [-1] * len(counts)
        if len(counts) != len(self._read) or any(
            n < r for n, r in zip(counts, self._read, strict=True)
        ):
            raise ValueError(
                f"Rows {self._read} of the replay's streams were learned from, but it has received "
                f"{counts}. Go on with the replay that this agent was trained with."
            )
        parts = []
        for stream, stop in enumerate(counts):
            if stop > self._read[stream]:
                parts.append(self._stream(replay, stream, self._read[stream], stop))
        if not parts:
            return {}
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = np.lexsort((joined.pop("stream"), joined.pop("row")))
        return {name: values[order] for name, values in joined.items()}

    def _stream(self, replay: Replay, stream: int, start: int, stop: int) -> dict[str, np.ndarray]:
        try:
            rows = replay.rows(stream, start, stop)
        except ValueError as error:
            raise ValueError(
                f"{error} They were overwritten before the agent learned from them: raise "
                "replay.capacity above prefill."
            ) from error
        after = rows[self.model.key].argmax(-1).astype(np.int64)
        state = np.concatenate([[self._at[stream]], after[:-1]])
        self._read[stream], self._at[stream] = stop, int(after[-1])
        return {
            "row": np.arange(stop - start) - (stop - start),  # the newest rows came together
            "stream": np.full(stop - start, stream),
            "state": state,
            "action": rows["action"].argmax(-1).astype(np.int64),
            "reward": rows["reward"].astype(np.float64),
            "after": after,
            "first": rows["is_first"] | (state < 0),
            "terminal": rows["is_terminal"],
            "last": rows["is_last"],
        }

    @property
    def parts(self) -> dict[str, Part]:
        """The values of all pairs, long-term and transient."""
        arrays = {"q": self.learner.q, "transient": self.learner.transient}
        values = {name: torch.from_numpy(x).requires_grad_() for name, x in arrays.items()}
        return {"values": Part(values)}

    def state_dict(self) -> dict[str, Any]:
        """Memory, model, random generators, and how far replay was read."""
        memory = {
            name: torch.from_numpy(array.copy().view(np.int64) if name == "rng" else array.copy())
            for name, array in self.learner.arrays().items()
        }
        place = {"read": list(self._read), "at": list(self._at)}
        return {"memory": memory, "model": self.model.state_dict(), "place": place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        arrays = {name: value.numpy().copy() for name, value in state["memory"].items()}
        arrays["rng"] = arrays["rng"].view(np.uint64)
        self.learner.load_arrays(arrays)
        self.model.load_state_dict(state["model"])
        self._read, self._at = list(state["place"]["read"]), list(state["place"]["at"])
