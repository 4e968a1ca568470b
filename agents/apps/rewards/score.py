"""What a policy earns in the real environment, by rewards that it may never have been paid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.apps.rewards.labels import load_function, parse
from agents.apps.rewards.store import world_of
from agents.base import Policy
from agents.run.collect import Collector
from agents.run.evaluate import evaluate
from worldmodel import config, seeding
from worldmodel.config import ConfigError
from worldmodel.envs import RewardFunction
from worldmodel.rssm import Head
from worldmodel.rssm.fitted import TakesHeads, head_names, read_head


@dataclass
class Score:
    """Returns and lengths (agent steps) of whole episodes. parts: the returns [episodes] of each
    reward, unweighted. measured: whether a reward was measured in the environment, or is what a
    head says of the states that its model passes through there."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    measured: dict[str, bool] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean weighted return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the weighted returns between episodes."""
        return float(np.std(self.returns))


@dataclass(frozen=True)
class Judge:
    """One reward in the real environment: a function, an observed key ("reward" is the task's),
    or, where neither exists, a head."""

    function: RewardFunction | None = None
    key: str = ""
    head: Head | None = None


def score(
    policy: Policy,
    control: Mapping[str, float],
    run: str | Path | None = None,
    episodes: int = 20,
    seed: int = 0,
    num_envs: int = 10,
    mode: str = "mode",
    record: tuple[str, ...] = (),
) -> Score:
    """Play whole episodes and add up a weighted sum of rewards for each.

    control: weights by name: heads of the policy's model or of the run folder `run`, and functions
    as "module:function". A head that was fitted on a function or a key is measured by that function
    or key; one out of labels, preferences or goals by the head of `run` itself. record: further
    keys (`EnvConfig.record`) that functions may read and the policy does not see.

    The same seed gives the episodes that `agents.run.evaluate.evaluate` plays, and the global
    random generators are left as they were found. Raises ConfigError for unknown names and
    functions that misbehave.
    """
    judges = {name: _judge(name, policy, run) for name in control}
    env = replace(policy.env, record=list(dict.fromkeys([*policy.env.record, *record])))
    sums = _Sums(policy, judges, seed)
    played = evaluate(policy.agent, policy.spec, env, episodes, seed, num_envs, mode, watch=sums)
    share, more = divmod(episodes, len(sums.finished))  # of each environment, as they were played
    found = [one for i, done in enumerate(sums.finished) for one in done[: share + (i < more)]]
    return Score(
        [sum(control[name] * value for name, value in one.items()) for one in found],
        played.lengths,
        {name: [one[name] for one in found] for name in judges},
        {name: judge.head is None for name, judge in judges.items()},
    )


class _Sums:
    """Adds up what every environment's episode has earned so far, by each judge."""

    def __init__(self, policy: Policy, judges: dict[str, Judge], seed: int) -> None:
        self.policy, self.judges = policy, judges
        self.follows = any(judge.head is not None for judge in judges.values())
        self.stream = seeding.Stream(seed, policy.device)  # the model's draws, not the agent's
        self.state: Any = None
        self.sums = dict.fromkeys(judges, np.zeros(1))
        self.before: Mapping[str, np.ndarray] = {}
        self.finished: list[list[dict[str, float]]] = []  # of each environment

    def __call__(self, collector: Collector) -> None:
        """Count the rows that have just arrived."""
        if not self.finished:
            self.finished = [[] for _ in range(collector.num_envs)]
        if self.follows:
            self._follow(collector)
        for name, judge in self.judges.items():
            earned = self._earned(judge, collector)
            self.sums[name] = np.where(collector.rows["is_first"], 0.0, self.sums[name] + earned)
        self.before = collector.seen
        for i in np.flatnonzero(collector.rows["is_last"]):
            self.finished[i].append({name: float(total[i]) for name, total in self.sums.items()})

    def _earned(self, judge: Judge, collector: Collector) -> np.ndarray:
        """What one judge gives for the newest rows [N]; first rows do not count."""
        rows, after = collector.rows, collector.seen
        if judge.head is not None:
            with torch.no_grad():
                return judge.head.predict(self.policy.model.feat(self.state)).double().cpu().numpy()
        if judge.function is None:
            values = rows["reward"] if judge.key == "reward" else after[judge.key][:, 0]
            return values.astype(np.float64)
        native = self.policy.spec.action.decode(rows["action"])
        earned = np.zeros(len(native))
        for i in np.flatnonzero(~rows["is_first"]):
            info: dict[str, Any] = {
                name: rows[name][i].item() for name in ("reward", "is_last", "is_terminal")
            }
            info |= {"episode": len(self.finished[i]), "step": int(collector.lengths[i])}
            one, other = ({k: v[i] for k, v in part.items()} for part in (self.before, after))
            earned[i] = judge.function.one(one, native[i], other, info)
        return earned

    def _follow(self, collector: Collector) -> None:
        """Show the newest rows to the model whose states the heads read."""
        rows, device, model = collector.rows, self.policy.device, self.policy.model
        obs = {k: torch.as_tensor(rows[k], device=device) for k in self.policy.spec.seen}
        action, first = (torch.as_tensor(rows[k], device=device) for k in ("action", "is_first"))
        with self.stream, torch.no_grad():
            before = model.initial(collector.num_envs) if self.state is None else self.state
            self.state = model.observe(before, obs, action, first)


def _judge(name: str, policy: Policy, run: str | Path | None) -> Judge:
    """Who says what a reward is worth in the real environment."""
    if ":" in name:
        return Judge(function=load_function(name))
    model = policy.model
    own = model.scalar_heads if isinstance(model, TakesHeads) else {}
    stored = head_names(run) if run is not None else []
    if name in stored:
        assert run is not None
        fitted = read_head(run, name)
        source = parse(fitted.source["reward"])
        if source.kind == "function":
            return Judge(function=load_function(source.what))
        if source.kind == "key":
            return Judge(key=source.what)
        return Judge(head=fitted.load(world_of(policy, run), run).to(policy.device))
    if name in own and not own[name].config.target:
        return Judge(head=own[name])
    if name in own or name == "reward":
        return Judge(key=own[name].config.target if name in own else name)
    raise ConfigError(
        config.unknown("reward", name, {"reward": 0, **own, **dict.fromkeys(stored)})
        + " A function is named as module:function."
    )
