"""`what=guard`: does the guard earn its place?

Each shift, at each strength, from tick `onset` on; the same episodes three times: with the policy
and its guard, with the policy alone, and with the fallback alone from the first tick on. Returns
are compared as shares of the span from random actions (0) to the policy on an ordinary day (1).

    short     how far the guarded mean lies below the better of the other two, as a share of the
              span; below 0 it lies above both. With a 90% interval over the episodes (bootstrap).
    stall     ticks that are lost after as many without any answer, until the policy acts again
    covered   the same after as many in which something covered the picture, where no reward arrives

Nothing here keeps a period: the deadlines are wide, so that only detector and guard decide. All
episodes of a shift are played side by side, and with the same draws by the policy whether it is
guarded or not: until a fallback acts, the two are the same to the last digit, and where none does,
only the guarded episode is played. What was played stays in `folder`, so that a study that was
stopped goes on, and other settings of the guard play its own episodes alone again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import MISSING

from agents.base import random_actions
from agents.deploy import fallback, sources
from agents.deploy.config import DeployConfig
from agents.deploy.decision import ALARMS
from agents.deploy.episodes import play_out
from agents.deploy.inputs import blank
from agents.deploy.trial import World
from scripts.studies import unseen
from scripts.studies.bench import check_known, check_shifts
from scripts.studies.guard_verdict import verdict
from worldmodel import seeding
from worldmodel.accel import devices
from worldmodel.config import check_ranges
from worldmodel.envs import EnvError
from worldmodel.envs.shifts import LEVELS, SHIFTS, shift_named
from worldmodel.ood import store
from worldmodel.types import EnvSpec

Row = dict[str, Any]
GUARDED, POLICY, FALLBACK, RANDOM = "guarded", "policy", "fallback", "random"


@dataclass
class Settings:
    """run: a run with a detector, or its export. shifts: of `worldmodel.envs.shifts`, or your own
    (module:Class). levels: mild, middle, strong. episodes: of each. ordinary: without a shift.
    onset: tick at which the shift begins. within: ticks. stalls, covered: their lengths in ticks,
    from `stall_at` on. folder: of the study; empty: <run>/guard (beside an export). deploy: of the
    loop; its times are not looked at."""

    run: str = MISSING
    folder: str = ""
    shifts: list[str] = field(default_factory=lambda: [*SHIFTS, *unseen.NAMES])
    levels: list[str] = field(default_factory=lambda: list(LEVELS))
    episodes: int = 10
    ordinary: int = 100
    onset: int = 20
    within: int = 10
    stalls: list[int] = field(default_factory=lambda: [3, 20])
    covered: list[int] = field(default_factory=lambda: [5, 20])
    stall_at: int = 40
    seed: int = 0
    threads: int = 1
    deploy: DeployConfig = field(default_factory=DeployConfig)

    def __post_init__(self) -> None:
        check_shifts(self.shifts)
        check_known("level", self.levels, LEVELS)
        names = ("episodes", "ordinary", "within")
        check_ranges(self, {
            **dict.fromkeys(names, (1, 1e6)), "onset": (0, 1e9), "stall_at": (1, 1e9),
            "threads": (0, 1024),
        })  # fmt: skip


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for each shift and strength; then for each shift, each stall, and all of them."""
    devices.set_threads(settings.threads)
    study = Study(settings)
    ordinary = study.ordinary()
    troubles: list[Row] = [study.stalled(ticks) for ticks in settings.stalls]
    rows: list[Row] = []
    for ticks in settings.covered:
        try:
            troubles.append(study.covered(ticks))
        except EnvError as error:
            yield {"covered": ticks, "left_out": str(error)}
    for name in settings.shifts:
        try:
            rows += study.shifted(name)
        except EnvError as error:
            yield {"shift": name, "left_out": str(error)}
    yield from verdict(rows, ordinary, troubles, settings.within)


class _Over:
    """In the place of an environment that is not played: its episode ends at once."""

    def __init__(self, spec: EnvSpec) -> None:
        self._obs = {key: value[0] for key, value in blank(spec, 1).items()}

    def reset(self) -> tuple[Any, dict[str, Any]]:
        return self._obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._obs, 0.0, True, False, {}

    def close(self) -> None:
        """Nothing."""


class Trouble(NamedTuple):
    """From tick `begin` up to `end` nothing is sensed (blind), or no reward ever arrives."""

    begin: int
    end: int
    blind: bool


class Study:
    """Episodes, played when they are first needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = s = settings
        path = Path(s.run.rstrip("/"))
        beside = path.with_name(path.name + "-guard") if sources.is_export(path) else path / "guard"
        self.folder = Path(s.folder or beside)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.env = sources.env_of(s.run)
        self.deploy = replace(
            s.deploy, period_ms=10_000, soft_ms=8_000, hard_ms=9_000, max_age_ms=None, log=None,
            warmup=1,
        )  # fmt: skip

    @cached_property
    def alone(self) -> tuple[Any, Any]:
        """The engine without its detector, and what it observes and does."""
        return sources.Source(self.settings.run, guard=False).engine()

    @cached_property
    def detector(self) -> Any:
        """What tells it from any other."""
        if sources.is_export(run := self.settings.run):
            return (Path(run) / "SHA256SUMS").read_text()
        return store.read(run) if store.exists(run) else None

    def ordinary(self) -> Row:
        """Without a shift: guarded, the policy, and random actions."""
        count = self.settings.ordinary
        worlds = [World(self.env)] * count
        found = self.both("", worlds, count) | {RANDOM: self.played(RANDOM, "", worlds, count)}
        return {"fallback_name": self.deploy.fallback.name, **found}

    def both(self, about: str, worlds: list[World], every: int) -> dict[str, Row]:
        """Guarded and alone. Where nobody but the policy acted, its return is known already."""
        guarded = self.played(GUARDED, about, worlds, every)
        parted = tuple(int(i) for i in np.flatnonzero(guarded["away"]))
        alone = self.played(POLICY, about, worlds, every, only=parted)["returns"] if parted else []
        returns = [alone[i] if i in parted else one for i, one in enumerate(guarded["returns"])]
        return {GUARDED: guarded, POLICY: {"returns": returns}}

    def stalled(self, ticks: int) -> Row:
        """Ordinary episodes in which nobody answers for some ticks."""
        return {"stall": ticks, **self._troubled(f"stall-{ticks}", ticks, World(self.env), True)}

    def covered(self, ticks: int) -> Row:
        """Episodes in which something covers the picture for some ticks, without any rewards."""
        world = World(self.env, unseen.COVERED, float(ticks), self.settings.stall_at)
        return {"covered": ticks, **self._troubled(f"covered-{ticks}", ticks, world, False)}

    def _troubled(self, name: str, ticks: int, world: World, blind: bool) -> Row:
        s = self.settings
        trouble = Trouble(s.stall_at, s.stall_at + ticks, blind)
        about = f"{name}-at-{s.stall_at}"
        return self.played(GUARDED, about, [world] * s.episodes, s.episodes, trouble)

    def shifted(self, name: str) -> list[Row]:
        """The rows of one shift, a level each. Raises EnvError where it cannot be shown."""
        s, shift = self.settings, shift_named(name)
        worlds = [
            World(self.env, name, shift.strength(level), s.onset)
            for level, _ in product(s.levels, range(s.episodes))
        ]
        # What a fallback of the house does, nothing that is only seen can change.
        blind = shift.kind != "dynamics" and self.deploy.fallback.name in fallback.KNOWN
        safe = [World(self.env)] * s.episodes if blind else worlds
        about = f"{name} {','.join(s.levels)} {s.onset}"
        found = self.both(about, worlds, s.episodes)
        found[FALLBACK] = self.played(FALLBACK, "" if blind else about, safe, s.episodes)
        rows: list[Row] = []
        for k, level in enumerate(s.levels):
            part = slice(k * s.episodes, (k + 1) * s.episodes)
            rows.append({"shift": name, "kind": shift.kind, "level": level})
            for who, one in found.items():
                rows[-1][who] = (
                    one["returns"] if who == FALLBACK and blind else one["returns"][part]
                )
            alarms = found[GUARDED]["alarms"][part]
            rows[-1]["delays"] = [[t - s.onset for t in one if t >= s.onset] for one in alarms]
            rows[-1]["away"] = found[GUARDED]["away"][part]
        return rows

    def played(
        self,
        who: str,
        about: str,
        worlds: list[World],
        every: int,
        trouble: Trouble | None = None,
        only: tuple[int, ...] | None = None,
    ) -> dict[str, Any]:
        """Episodes by who acts, from their file where they were played before. every: so many
        different starts. only: which of the worlds are wanted; the others return 0."""
        s = self.settings
        what = {"who": who, "about": about, "seed": s.seed, "worlds": len(worlds), "every": every,
                "draws": "common", "only": only}  # fmt: skip
        if who == GUARDED:
            what |= {"deploy": asdict(s.deploy), "detector": self.detector}
        elif who == FALLBACK:
            what |= {"fallback": asdict(s.deploy.fallback)}
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / f"{who}-{digest}.json"
        if path.exists():
            return dict(json.loads(path.read_text()))
        seeds = [seeding.spawn(s.seed, f"guard {i % every}") for i in range(len(worlds))]
        spec = self.alone[1]
        envs = [
            world.make(seed, spec) if only is None or i in only else _Over(spec)
            for i, (world, seed) in enumerate(zip(worlds, seeds, strict=True))
        ]
        draws = seeding.Stream(seeding.spawn(s.seed, f"draws {about}"), torch.device("cpu"))
        found: Row = {"what": what, **self._act(who, len(envs), trouble)(envs, draws)}
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(found))
        fresh.replace(path)
        return found

    def _act(
        self, who: str, count: int, trouble: Trouble | None
    ) -> Callable[[list[Any], seeding.Stream], Row]:
        if who == GUARDED:
            return lambda envs, draws: self._guarded(envs, draws, trouble)
        maker = {POLICY: self._policy, FALLBACK: self._fallback, RANDOM: self._random}[who]

        def play(envs: list[Any], draws: seeding.Stream) -> Row:
            act = maker(count)
            with draws:
                return {"returns": [sum(one) for one in play_out(envs, act)]}

        return play

    def _guarded(self, envs: list[Any], draws: seeding.Stream, trouble: Trouble | None) -> Row:
        """Returns; the ticks with an alarm of each episode, how many were not the policy's, and how
        many of those came after the trouble."""
        alarms: list[list[int]] = [[] for _ in envs]
        others: list[list[int]] = [[] for _ in envs]
        begin, end, blind = trouble or Trouble(0, 0, True)
        with sources.open_runtime(self.settings.run, self.deploy, len(envs)) as runtime:
            runtime.start()

            def act(tick: int, obs: list[Any], rewards: np.ndarray, going: np.ndarray) -> list[Any]:
                seen = [None] * len(obs) if blind and begin <= tick < end else obs
                paid = rewards if tick and blind else None
                said = runtime.tick(seen, reward=paid, is_first=tick == 0)
                for i in np.flatnonzero(going):
                    if said[i].reason in ALARMS:
                        alarms[i].append(tick)
                    if not said[i].trusted:
                        others[i].append(tick)
                return [one.action for one in said]

            with draws:
                rewards = play_out(envs, act)
        lost = [sum(t >= end for t in one) for one in others] if trouble else []
        away = [len(one) for one in others]
        returns = [sum(one) for one in rewards]
        return {"returns": returns, "alarms": alarms, "away": away, "lost": lost}

    def _policy(self, count: int) -> Any:
        engine, spec = self.alone
        state, sent = engine.initial(count), np.zeros((count, spec.action.size), np.float32)

        def act(tick: int, obs: list[Any], rewards: np.ndarray, going: np.ndarray) -> Any:
            nonlocal state, sent
            batch = {key: np.stack([one[key] for one in obs]) for key in spec.seen}
            sent, state, _ = engine.step(batch, state, np.full(count, tick == 0), sent)
            sent = spec.action.clip(sent)
            return spec.action.decode(sent)

        return act

    def _fallback(self, count: int) -> Any:
        _, spec = self.alone
        config = self.deploy.fallback
        safe = [fallback.make(config, spec.action) for _ in range(count)]
        for one in safe:
            one.start(fallback.rest_action(config, spec.action))

        def act(tick: int, obs: list[Any], rewards: np.ndarray, going: np.ndarray) -> Any:
            info = {"tick": tick, "reason": "unknown", "detail": ""}
            actions = [one(obs[i], info | {"robot": i}) for i, one in enumerate(safe)]
            return spec.action.decode(np.stack(actions))

        return act

    def _random(self, count: int) -> Any:
        _, spec = self.alone
        rng = np.random.default_rng(self.settings.seed)

        def act(tick: int, obs: list[Any], rewards: np.ndarray, going: np.ndarray) -> Any:
            batch = {key: np.stack([one[key] for one in obs]) for key in spec.seen}
            return spec.action.decode(random_actions(spec, batch, count, rng))

        return act
