"""A learned world that fits in a table: what every action led to, where it was tried.

Two tables behind one class. The deterministic one keeps the newest outcome of a pair (state,
action); the counting one keeps all of them with their counts and draws from these, so that the next
state, the reward and the end of the episode come together as they did in the world.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodel.models.tables import (
    OUTCOME_FIELDS,
    USED,
    Tables,
    new_tables,
    record_all,
    sample_all,
    with_capacity,
)
from worldmodel.types import EnvSpec, Prediction

KINDS = ("deterministic", "counts")
UNKNOWN = ("error", "stay")


@dataclass
class TabularConfig:
    """Which table, and what it says of pairs that it has not seen."""

    kind: str = "deterministic"  # deterministic: the newest outcome | counts: all, drawn from
    unknown: str = "error"  # error | stay: a pair never tried leads back, with reward 0
    discount: float = 1.0  # of whoever learns it; no part of the table

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("unknown", self.unknown, UNKNOWN)):
            if value not in known:
                raise ValueError(f"Unknown {name} '{value}'. Known: {', '.join(known)}.")


class TabularState(NamedTuple):
    """place: [..., S] one-hot, the last state seen or predicted; zeros before anything was seen."""

    place: Tensor


class TabularModel:
    """A learned table as a `Dynamics`.

    spec: one discrete observation of S classes and one discrete action of A.
    `step` draws outcomes with torch's generator, as the other worlds do; planners bring their own.

    Raises ValueError where the world has other observations or actions.
    """

    def __init__(
        self,
        spec: EnvSpec,
        config: TabularConfig | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.key, self.states, self.actions = discrete_sizes(spec)
        self.config = config or TabularConfig()
        self.device = torch.device(device)
        self.tables = new_tables(self.states, self.actions)
        self.discount = self.config.discount
        self.feat_size, self.feat_bound = self.states, 1.0

    @property
    def known_pairs(self) -> int:
        """How many pairs of state and action were ever tried."""
        return int((self.tables.seen > 0).sum())

    def record(self, state: Any, action: Any, reward: Any, after: Any, terminal: Any) -> None:
        """Learn transitions [T] in their order: whole numbers, rewards, and whether each ended
        its episode for good."""
        values = [np.asarray(x).reshape(-1) for x in (state, action, reward, after, terminal)]
        types = (np.int64, np.int64, np.float64, np.int64, np.bool_)
        arrays: list[Any] = [x.astype(t) for x, t in zip(values, types, strict=True)]
        self.reserve(len(arrays[0]))
        record_all(self.tables, self.config.kind == "counts", *arrays)

    def reserve(self, transitions: int) -> None:
        """Let `record` in compiled code note so many more transitions."""
        if self.config.kind == "counts":
            self.tables = with_capacity(self.tables, transitions)

    def outcomes(self, state: int, action: int) -> list[tuple[float, int, float, bool]]:
        """(probability, next state, reward, terminal) as they were seen, none where untried."""
        t, row, found = self.tables, state * self.actions + action, []
        seen = int(t.seen[row])
        while row >= 0 and seen > 0:
            share, ends = int(t.times[row]) / seen, bool(t.cont[row] == 0)
            found.append((share, int(t.next[row]), float(t.reward[row]), ends))
            row = int(t.chain[row])
        return found

    def initial(self, batch_size: int) -> TabularState:
        """No state yet: `step` needs one that was observed."""
        return TabularState(torch.zeros(batch_size, self.states, device=self.device))

    def observe(
        self, state: TabularState, obs: dict[str, Tensor], action: Tensor, is_first: Tensor
    ) -> TabularState:
        """The state that the observation [B, S] shows; it hides nothing, so nothing else counts."""
        seen = obs[self.key]
        if seen.shape[-1] != self.states:
            raise ValueError(
                f"Observation '{self.key}' has shape {list(seen.shape)}; allowed: [B, "
                f"{self.states}], one-hot."
            )
        return TabularState(seen.to(state.place))

    def step(self, state: TabularState, action: Tensor) -> Prediction[TabularState]:
        """One outcome of each action [B, A], drawn where the table holds several.

        Raises ValueError for a state that was never observed and, unless unknown="stay", for a
        pair that was never tried.
        """
        at = index_of(state).cpu().numpy()
        pairs = at * self.actions + action.argmax(-1).cpu().numpy()
        rows = np.empty(len(pairs), np.int64)
        drawn = int(torch.randint(2**63 - 1, ())) if self.config.kind == "counts" else 0
        sample_all(self.tables, np.array([drawn], np.uint64), pairs, rows)
        if self.config.unknown == "error" and (rows < 0).any():
            bad = int(pairs[rows < 0][0])
            raise ValueError(
                f"Action {bad % self.actions} was never tried in state {bad // self.actions}, so "
                f"its outcome is unknown ({self.known_pairs} of {self.states * self.actions} pairs "
                'are known). Let the agent act longer, or set unknown="stay".'
            )
        known, t = rows >= 0, self.tables
        after = np.where(known, t.next[rows], at)
        reward, cont = np.where(known, t.reward[rows], 0.0), np.where(known, t.cont[rows], 1.0)
        place = torch.nn.functional.one_hot(torch.from_numpy(after.astype(np.int64)), self.states)
        values = (torch.from_numpy(x).to(state.place) for x in (reward, cont))
        return Prediction(TabularState(place.to(state.place)), *values)

    def decode(self, state: TabularState) -> dict[str, Tensor]:
        """The observation that belongs to a state, one-hot [..., S] under its key."""
        return {self.key: state.place}

    def feat(self, state: TabularState) -> Tensor:
        """The same [..., S]."""
        return state.place

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors; outcomes beyond the first of each pair, whose number grows, in a
        part of their own that a new table does not have."""
        t, pairs, used = self.tables, len(self.tables.seen), int(self.tables.counters[USED])
        names = Tables._fields[:-1]
        fixed = {n: _tensor(getattr(t, n)[:pairs]) for n in names}
        more = {n: _tensor(getattr(t, n)[pairs:used]) for n in names[:OUTCOME_FIELDS]}
        return {"tables": fixed, "more": more} if used > pairs else {"tables": fixed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        fixed = {name: value.numpy().copy() for name, value in state["tables"].items()}
        for name, value in state.get("more", {}).items():
            fixed[name] = np.concatenate([fixed[name], value.numpy()])
        self.tables = Tables(**fixed, actions=self.actions)


class KnownTable(TabularModel):
    """A table as planners need it, now: no action is allowed that was never tried, and a state in
    which none was stays as it is, with reward 0."""

    def __init__(self, table: TabularModel) -> None:
        vars(self).update(vars(table))
        self.config = replace(table.config, unknown="stay")

    def action_mask(self, state: TabularState) -> Tensor:
        """Actions [..., A] that were tried in a state."""
        tried = torch.from_numpy(self.tables.seen[: self.states * self.actions] > 0)
        places = state.place.argmax(-1).cpu()
        return tried.view(self.states, self.actions)[places].to(state.place)


def index_of(state: TabularState) -> Tensor:
    """The numbers int64 [B] of states; ValueError where one was never observed."""
    if not bool((state.place.sum(-1) == 1).all()):
        raise ValueError(
            "There is nothing to predict from: the state before any observation is empty. Call "
            "observe first."
        )
    return state.place.argmax(-1)


def discrete_sizes(spec: EnvSpec) -> tuple[str, int, int]:
    """The observation's key, S and A of a world with one discrete observation and action.

    Raises ValueError for any other.
    """
    seen = {key: (obs.kind, obs.sizes) for key, obs in spec.obs.items()}
    kind, sizes = spec.action.kind, spec.action.sizes
    key = next(iter(seen), "")
    fits = len(seen) == 1 and seen[key][0] == "discrete" and len(seen[key][1]) == 1
    if not fits or kind != "discrete" or len(sizes) != 1:
        found = ", ".join(f"{name} ({k})" for name, (k, _) in sorted(seen.items()))
        raise ValueError(
            "A table needs one discrete observation and one discrete action, but this environment "
            f"observes {found} and takes {math.prod(sizes) if kind == 'discrete' else len(sizes)} "
            f"{kind} actions. Choose an environment with Discrete spaces and set env.pixels=false "
            "(and env.action_mask=false, env.state=false)."
        )
    return key, seen[key][1][0], sizes[0]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())
