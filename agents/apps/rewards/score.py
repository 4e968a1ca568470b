"""What a policy earns in the real environment, by rewards that it may never have been paid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.apps.rewards import compose, sources, store
from agents.base import Policy, check_mode
from agents.run.collect import Collector
from worldmodel import config, seeding
from worldmodel.config import ConfigError
from worldmodel.envs import EnvError, RewardFunction, env_spec, make_vector
from worldmodel.rssm import Head, WorldModel


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

    @property
    def measures(self) -> bool:
        """Whether the environment itself says what is earned."""
        return self.head is None


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
    check_mode(mode)
    if episodes < 1 or num_envs < 1:
        raise ConfigError(f"episodes={episodes} and num_envs={num_envs} must be at least 1.")
    judges = {name: _judge(name, policy, run) for name in control}
    count = min(num_envs, episodes)
    env = replace(policy.env, record=list(dict.fromkeys([*policy.env.record, *record])))
    env = replace(env, atari=replace(env.atari, life_loss=False))  # a score is of the whole game
    before = seeding.rng_state()
    seeding.seed_everything(seeding.spawn(seed, "evaluation"))
    try:
        envs = make_vector(env, count, seeding.spawn(seed, "evaluation environments"))
    except EnvError as error:
        raise ConfigError(str(error)) from error
    try:
        collector = Collector(envs, env_spec(envs), policy.agent, seed, mode)
        quota = np.full(count, episodes // count)
        quota[: episodes % count] += 1
        return _Counter(collector, policy, judges, control, seed).play(quota)
    finally:
        envs.close()
        seeding.set_rng_state(before)


class _Counter:
    """Adds up what every environment's episode has earned so far, by each judge."""

    def __init__(
        self,
        collector: Collector,
        policy: Policy,
        judges: dict[str, Judge],
        control: Mapping[str, float],
        seed: int,
    ) -> None:
        self.collector, self.policy = collector, policy
        self.judges, self.control = judges, control
        self.sums = {name: np.zeros(collector.num_envs) for name in judges}
        self.played = np.zeros(collector.num_envs, np.int64)
        self.follows = any(judge.head is not None for judge in judges.values())
        self.stream = seeding.Stream(seed, policy.device)  # the model's draws, not the agent's
        if self.follows:
            self.state = policy.model.initial(collector.num_envs)
            self._follow()

    def play(self, quota: np.ndarray) -> Score:
        """Step until every environment has played its share of episodes."""
        finished: list[list[tuple[dict[str, float], int]]] = [[] for _ in quota]
        while any(len(done) < n for done, n in zip(finished, quota, strict=True)):
            seen = self.collector.seen
            self.collector.step()
            if self.follows:
                self._follow()
            self._add(seen)
            for i in np.flatnonzero(self.collector.rows["is_last"]):
                self.played[i] += 1
                if len(finished[i]) < quota[i]:
                    sums = {name: float(total[i]) for name, total in self.sums.items()}
                    finished[i].append((sums, int(self.collector.lengths[i])))
        flat = [one for done in finished for one in done]
        return Score(
            [sum(self.control[name] * value for name, value in sums.items()) for sums, _ in flat],
            [length for _, length in flat],
            {name: [sums[name] for sums, _ in flat] for name in self.judges},
            {name: judge.measures for name, judge in self.judges.items()},
        )

    def _add(self, seen: Mapping[str, np.ndarray]) -> None:
        """Count the rows that arrived after the observations `seen`."""
        first = self.collector.rows["is_first"]
        for name, judge in self.judges.items():
            earned = self._earned(judge, seen)
            self.sums[name] = np.where(first, 0.0, self.sums[name] + earned)

    def _earned(self, judge: Judge, seen: Mapping[str, np.ndarray]) -> np.ndarray:
        """What one judge gives for the newest rows [N]; first rows do not count."""
        rows, after = self.collector.rows, self.collector.seen
        if judge.head is not None:
            with torch.no_grad():
                return judge.head.predict(self.state.feat).double().cpu().numpy()
        if judge.function is None:
            values = rows["reward"] if judge.key == "reward" else after[judge.key][:, 0]
            return values.astype(np.float64)
        action = rows["action"]
        if self.policy.spec.action.kind == "continuous":
            action = np.clip(action, -1.0, 1.0)
        native = self.policy.spec.action.decode(action)
        earned = np.zeros(len(native))
        for i in np.flatnonzero(~rows["is_first"]):
            info = {
                "reward": float(rows["reward"][i]),
                "is_last": bool(rows["is_last"][i]),
                "is_terminal": bool(rows["is_terminal"][i]),
                "episode": int(self.played[i]),
                "step": int(self.collector.lengths[i]),
            }
            both = ({k: v[i] for k, v in part.items()} for part in (seen, after))
            try:
                earned[i] = judge.function.one(next(both), native[i], next(both), info)
            except EnvError as error:
                raise ConfigError(str(error)) from error
        return earned

    def _follow(self) -> None:
        """Show the newest rows to the model whose states the heads read."""
        rows, device = self.collector.rows, self.policy.device
        obs = {k: torch.as_tensor(rows[k], device=device) for k in self.policy.spec.seen}
        action, first = (torch.as_tensor(rows[k], device=device) for k in ("action", "is_first"))
        with self.stream, torch.no_grad():
            self.state = self.policy.model.observe(self.state, obs, action, first)


def _judge(name: str, policy: Policy, run: str | Path | None) -> Judge:
    """Who says what a reward is worth in the real environment."""
    if ":" in name:
        return Judge(function=_function(name))
    model: Any = policy.model if isinstance(policy.model, WorldModel) else None
    own = model.config.heads if model is not None else {}
    stored = store.names(run) if run is not None else []
    if name in stored:
        assert run is not None
        source = sources.parse(store.read(run, name).source["reward"])
        if source.kind == "function":
            return Judge(function=_function(source.what))
        if source.kind == "key":
            return Judge(key=source.what)
        fitted = compose.with_heads(run, {name: 1.0}, policy).model()
        return Judge(head=fitted.heads[name])  # type: ignore[arg-type]
    if name in own and not own[name].target:
        return Judge(head=model.heads[name])
    if name in own or name == "reward":
        return Judge(key=own[name].target if name in own else name)
    raise ConfigError(
        config.unknown("reward", name, [*own, *stored]) + " A function is named as module:function."
    )


def _function(name: str) -> RewardFunction:
    try:
        return RewardFunction(name)
    except EnvError as error:
        raise ConfigError(str(error)) from error


__all__ = ["Judge", "Score", "score"]
