"""Environments that step together, may fail one by one, and can be replayed.

One call of `step`, for three environments (autoreset is NEXT_STEP):

    before       goes on       ended           goes on
    command      its action    reset           its action
    answer       a row         a first row     none: it dies, hangs, raises or returns garbage
    returned     that row      that row        the first row of a new episode, `restarted`
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .checks import FLAGS, ActionCheck, difference
from .config import EnvConfig, EnvError
from .failures import EnvFailed, Failures
from .hosts import (
    CLOSE_SECONDS,
    Answer,
    Commands,
    Host,
    HostFailed,
    LocalHost,
    Maker,
    Spaces,
    UnderWay,
)
from .infos import merged
from .journal import LIMIT, Journal, env_seeds
from .processes import ProcessHost

Rows = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
Reasons = list[tuple[int, str]]
INTERRUPTED = EnvError(
    "A step was interrupted, so the environments stand at different moments. Call "
    "restore(snapshot()), or make new ones."
)


class Vector(VectorEnv[Any, Any, Any]):
    """`len(makers)` environments, in this process (vector=sync) or in one each (async).

    makers: picklable; each makes an environment whose own seed is the one of the same index.

    What `reset`, `step` and `restore` return belongs to the caller. Their infos hold, beside the
    environments' own:

        restarted   bool [N]; True where an environment failed and this is the first row of a new
                    episode: reward 0, no flags. The episode before has no end of its own.
        failures    list of (index, reason)

    Raises EnvError at once where an environment cannot be made to begin with, and for actions that
    break the space; EnvFailed after `max_failures` failures within 10,000 steps, or three of one
    environment without a good step between. `snapshot` still answers then: for the rows that were
    returned last.
    """

    def __init__(self, makers: Sequence[Maker], seeds: Sequence[int], config: EnvConfig) -> None:
        self.num_envs = len(makers)
        self._makers, self._config = list(makers), config
        self._hosts: list[Host] = []
        self._broken: EnvError | None = None
        self._count = Failures(self.num_envs, config.max_failures)
        try:
            self._spaces = self._make_all()
        except BaseException:
            self.close()
            raise
        space, action = self._spaces.observation, self._spaces.action
        self.metadata = {**self._spaces.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode = self._spaces.render_mode
        self.single_observation_space, self.single_action_space = space, action
        self.observation_space = batch_space(space, self.num_envs)
        self.action_space = batch_space(action, self.num_envs)
        self._checked = ActionCheck(action, self.num_envs)
        self._journals = [Journal(seed, action) for seed in seeds]
        # Of the reset that was tried last; the journals know those that were done.
        self._seeds = list(seeds)
        self._tried = [-1] * self.num_envs
        self._under_way: tuple[list[bool], Any, UnderWay] | None = None
        self._stand: list[tuple[float, bool, bool]] = []  # reward and flags that were returned last

    @property
    def failures(self) -> int:
        """How often environments failed so far, before the snapshot that was restored included."""
        return sum(self._count.counts)

    @property
    def processes(self) -> list[Any]:
        """The environments' processes, in order; empty where they live in this one."""
        return [host.process for host in self._hosts if isinstance(host, ProcessHost)]

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """First rows of new episodes, [N, ...] for each key, and infos.

        seed: one that is spread over the environments as `make_vector` spreads it, or one for
        each; the numbering of episodes starts anew.
        """
        seeds = self._spread(seed)
        self._open()
        for index, one in enumerate(seeds):
            if one is None:
                self._tried[index] += 1
            else:
                self._seeds[index], self._tried[index] = one, 0
        answers, failed = self._ask(
            {i: ("reset", one, self._tried[i], options) for i, one in enumerate(seeds)}
        )
        fresh, reasons = self._restarted(failed, options)
        for index, answer in (answers | fresh).items():
            self._begin(index, answer, options)
        rows = self._rows(answers, fresh, reasons)
        return rows[0], rows[4]

    def step(self, actions: Any) -> Rows:
        """(observations, rewards float64 [N], terminated bool [N], truncated bool [N], infos).

        actions: [N, ...]; those of environments whose episode ended are ignored.
        """
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """Begin a step, which environments in this process take in `step_wait`. Until that has
        returned, `snapshot` is that of the rows before."""
        if not self._stand:
            raise EnvError("step was called before the first reset. Call reset first.")
        ended = [row[1] or row[2] for row in self._stand]
        given = self._checked(actions, ended)
        self._open()
        self._count.step()
        self._tried = [n + over for n, over in zip(self._tried, ended, strict=True)]
        commands: Commands = {
            i: ("reset", None, self._tried[i], None) if over else ("step", given[i])
            for i, over in enumerate(ended)
        }
        self._under_way = ended, given, UnderWay(self._hosts, commands)

    def step_wait(self) -> Rows:
        """What `step` returns, for the actions of `step_async`."""
        if self._under_way is None:
            raise EnvError("step_wait was called without step_async before.")
        (ended, given, asked), self._under_way = self._under_way, None
        answers, failed = asked.answers(self._config)
        fresh, reasons = self._restarted(failed) if failed else ({}, [])
        for index, over in enumerate(ended):
            if over or index in fresh:
                self._begin(index, fresh[index] if index in fresh else answers[index])
            else:
                self._journals[index].add(given[index])
                self._count.good(index)
        return self._rows(answers, fresh, reasons)

    def snapshot(self) -> list[dict[str, Any]]:
        """One dict for each environment: numbers, bools, lists of ints, and under `actions` one
        numpy array [n, ...].

        No environment is asked, so that this neither fails nor waits. Raises EnvError before the
        first reset.
        """
        return [
            {
                **journal.state(),
                **dict(zip(FLAGS, self._stand[i], strict=True)),
                "failures": self._count.counts[i],
            }
            for i, journal in enumerate(self._journals)
        ]

    def restore(
        self,
        saved: Sequence[Mapping[str, Any]],
        observations: Mapping[str, np.ndarray] | None = None,
    ) -> Rows:
        """Brings every environment to where it was at the `snapshot`, and returns the rows that
        stood then, as `step` returned them.

        observations: what stood then, [N, ...] for each key. An environment that does not come
        back to the bit, or fails on the way, begins a new episode: `restarted`, with its reason in
        `failures`; that alone does not count as a failure. Raises EnvError where the snapshot is
        of another vector.
        """
        if len(saved) != self.num_envs:
            raise EnvError(
                f"The snapshot is of {len(saved)} environments, but there are {self.num_envs}. Set "
                f"num_envs to {len(saved)}."
            )
        if self._broken is not None:
            self._renew()
        self._open()
        self._stand = [(one["reward"], one["terminated"], one["truncated"]) for one in saved]
        for index, one in enumerate(saved):
            self._journals[index].load(one, self.single_action_space)
            self._seeds[index] = self._journals[index].seed
            self._tried[index] = self._journals[index].episode
            self._count.counts[index] = int(one.get("failures", 0))
        # From the journals, since what was saved may be tensors, and no process needs torch.
        lost = [i for i, journal in enumerate(self._journals) if journal.lost]
        answers, failed = self._ask(
            {i: ("replay", j.state()) for i, j in enumerate(self._journals) if not j.lost}
        )
        failed |= {i: HostFailed(f"Its episode had more than {LIMIT:,} steps.") for i in lost}
        for index, answer in list(answers.items()):
            words = difference(answer, saved[index], observations, index)
            if words:
                failed[index] = HostFailed(words)
                del answers[index]
        fresh, reasons = self._restarted(failed, counts=False)
        for index, answer in fresh.items():
            self._begin(index, answer)
        return self._rows(answers, fresh, reasons)

    def close_extras(self, **kwargs: Any) -> None:
        """Ends all environments and their processes, within seconds whatever they do."""
        for host in self._hosts:
            host.ask_to_end()
        deadline = time.monotonic() + CLOSE_SECONDS
        for host in self._hosts:
            host.end(max(0.0, deadline - time.monotonic()))

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:
            return  # at the interpreter's end nothing can be relied on

    def _open(self) -> None:
        """To be called before commands are given; `_rows` ends what begins here. Whatever
        interrupts it leaves the environments unusable, since answers are still under way, but the
        snapshot as it was."""
        if self._broken is not None:
            raise self._broken
        if self.closed:
            raise EnvError("The environments are closed. Make new ones.")
        self._broken = INTERRUPTED

    def _make_all(self) -> Spaces:
        """All hosts, and what their environments have in common. Raises EnvError, or what the
        environment raised in this process."""
        self._hosts = [self._host(index) for index in range(self.num_envs)]
        made, failed = self._ask(dict.fromkeys(range(self.num_envs), ("make",)))
        for index, error in sorted(failed.items()):
            if error.error is not None:
                raise error.error
            raise EnvError(f"Environment {index} could not be made. {error.reason}")
        for index, other in made.items():
            if not other.alike(made[0]):
                raise EnvError(f"Environment {index} has other spaces than 0: {other} {made[0]}.")
        return made[0]

    def _host(self, index: int) -> Host:
        maker = self._makers[index]
        return LocalHost(maker) if self._config.vector == "sync" else ProcessHost(maker)

    def _renew(self) -> None:
        """New hosts, since the old ones cannot be trusted any more."""
        for host in self._hosts:
            host.end(0.0)
        self._make_all()
        self._broken = self._under_way = None

    def _ask(self, commands: Commands) -> tuple[dict[int, Any], dict[int, HostFailed]]:
        """The answers to one command each, and the failures. Processes work side by side."""
        return UnderWay(self._hosts, commands).answers(self._config)

    def _restarted(
        self, failed: dict[int, HostFailed], options: Any = None, counts: bool = True
    ) -> tuple[dict[int, Answer], Reasons]:
        """First rows of the failed environments, made anew. counts: whether the failures at hand
        count; those of the new environments do. Raises EnvFailed."""
        fresh: dict[int, Answer] = {}
        reasons: Reasons = []
        while failed:
            for index, error in sorted(failed.items()):
                reasons.append((index, error.reason))
                if counts:
                    self._add_failure(index, error.reason)
            for index in failed:
                self._hosts[index].end(0.0)
                self._hosts[index] = self._host(index)
                self._tried[index] += 1
            made, failed = self._ask(dict.fromkeys(failed, ("make",)))
            for index, one in made.items():
                if not one.alike(self._spaces):
                    failed[index] = HostFailed("Made anew, it has other spaces.")
            whole = [i for i in made if i not in failed]
            resets = {i: ("reset", self._seeds[i], self._tried[i], options) for i in whole}
            answers, more = self._ask(resets)
            fresh |= answers
            failed |= more
            counts = True
        return fresh, reasons

    def _add_failure(self, index: int, reason: str) -> None:
        try:
            self._count.add(index, reason)
        except EnvFailed as error:
            self._broken = error
            raise

    def _begin(self, index: int, answer: Answer, options: Any = None) -> None:
        """Note the reset that led to an answer."""
        if answer.episode == self._tried[index]:
            self._journals[index].begin(self._seeds[index], answer.episode, options)
        else:  # a soft one, which took no number
            self._journals[index].go_on()
            self._tried[index] = answer.episode

    def _rows(
        self, answers: Mapping[int, Answer], fresh: Mapping[int, Answer], reasons: Reasons
    ) -> Rows:
        """The answers of all environments, side by side."""
        count = self.num_envs
        rows = [fresh[i] if i in fresh else answers[i] for i in range(count)]
        obs = {}
        for key, first in rows[0].obs.items():
            # Twice as fast as np.stack; and the rows may be views of what the next step overwrites.
            obs[key] = stacked = np.empty((count, *first.shape), first.dtype)
            for index, row in enumerate(rows):
                stacked[index] = row.obs[key]
        self._stand = [(row.reward, row.terminated, row.truncated) for row in rows]
        reward, terminated, truncated = (np.array(part) for part in zip(*self._stand, strict=True))
        infos = merged([row.info for row in rows]) if any(row.info for row in rows) else {}
        infos["restarted"] = np.zeros(count, bool)
        if fresh:
            infos["restarted"][list(fresh)] = True
        infos["failures"] = reasons
        self._broken = None
        return obs, reward, terminated, truncated, infos

    def _spread(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return list(env_seeds(int(seed), self.num_envs))
        if len(seed) != self.num_envs:
            raise EnvError(f"{len(seed)} seeds were given for {self.num_envs} environments.")
        return [None if one is None else int(one) for one in seed]
