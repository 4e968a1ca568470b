"""`what=ood`: does the detector know the unknown?

Fresh episodes of a run's policy, as usual and with each shift of `worldmodel.envs.shifts` at each
strength from tick `onset` on, are scored by a detector with every part. A row of the table is one
shift, one strength and one column (a part, or all that decide together, "combined"):

    auroc_episode   the worst tick of a shifted episode against that of an ordinary one
    auroc_tick      single ticks
    caught          share of the shifted episodes with an alarm within `within` ticks
    detected        share with an alarm before their end
    delay           median ticks until the alarm, of those with one

Thresholds are those of calibration on other episodes; nothing here is tuned on a shift. Ordinary
ticks are those from `onset` on, too. Hard negatives are unusual and yet normal: actions sampled,
and episodes whose first ticks are random.

What was played lies in `folder`, so that a study that was stopped goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

import agents
from agents.deploy.fit import Env, FitConfig, play, recorded_tracks
from scripts.studies import bench_ood_plots as plots
from scripts.studies.bench import check_known, check_shifts
from scripts.studies.tracks import cached
from worldmodel import progress, seeding
from worldmodel.accel import devices
from worldmodel.config import ConfigError, check_ranges
from worldmodel.envs import EnvError, make_env
from worldmodel.envs.shifts import LEVELS, SHIFTS, Shifted, shift_named
from worldmodel.ood import store
from worldmodel.ood.api import Track
from worldmodel.ood.config import KNOWN, DetectorConfig
from worldmodel.ood.detector import Detector
from worldmodel.ood.fitting import trace

COMBINED = "combined"
FIGURES = ("auroc_episode", "auroc_tick", "caught", "detected", "delay")


@dataclass
class Settings:
    """run: a trained run's folder. folder: of the study; empty: <run>/ood. episodes: of each shift
    and strength. normal: fresh ordinary ones. unusual: of each hard negative. onset: tick at which
    a shift begins. within: ticks. jolts: random ticks at the start of a hard negative."""

    run: str = MISSING
    folder: str = ""
    shifts: list[str] = field(default_factory=lambda: list(SHIFTS))
    levels: list[str] = field(default_factory=lambda: list(LEVELS))
    episodes: int = 20
    normal: int = 500
    unusual: int = 100
    onset: int = 20
    within: int = 10
    jolts: int = 15
    false_alarm_rate: float = 0.01
    seed: int = 0
    threads: int = 1
    detector: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self) -> None:
        check_shifts(self.shifts)
        check_known("level", self.levels, LEVELS)
        names = ("episodes", "normal", "unusual", "within")
        check_ranges(self, dict.fromkeys(names, (1, 1e9)))


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for each shift, strength and column; then what they come to."""
    devices.set_threads(settings.threads)
    study = Study(settings)
    yield from ({"shift": name, "left_out": why} for name, why in study.left_out.items())
    study.check_onset()
    rows = [row for name in progress.each(study.shifts, "shifts") for row in study.judged(name)]
    plots.write_rows(study.folder / "ood.csv", rows)
    yield from rows
    yield from study.alarms()
    yield from summaries(rows)
    plots.draw_all(study, rows)


class Study:
    """Episodes, played when they are first needed, and one detector for all of them."""

    def __init__(self, settings: Settings, say: Callable[[str], None] = lambda text: None) -> None:
        self.settings, self.say = settings, say
        self.folder = Path(settings.folder or Path(settings.run) / "ood")
        self.policy = agents.load(settings.run, "cpu")

    @cached_property
    def left_out(self) -> dict[str, str]:
        """The shifts that the run's environment cannot show, and why. Raises EnvError where that
        is all of them."""
        why = {}
        env = make_env(self.policy.env, 0, spec=self.policy.spec)
        for name in self.settings.shifts:
            try:
                Shifted(env, name)
            except EnvError as error:
                why[name] = str(error)
        env.close()
        if self.settings.shifts and len(why) == len(set(self.settings.shifts)):
            raise EnvError(" ".join(why.values()))
        return why

    @property
    def shifts(self) -> list[str]:
        """Those that it can show."""
        return [name for name in self.settings.shifts if name not in self.left_out]

    def check_onset(self) -> None:
        """Raises ConfigError where no ordinary episode lasts until a shift begins."""
        longest = max(len(track.action) for track in self.normal())
        if longest <= self.settings.onset:
            raise ConfigError(
                f"onset is {self.settings.onset}, but the longest of {self.settings.normal} "
                f"ordinary episodes has {longest} rows, so that no shift would ever begin. Give "
                f"a smaller one, as in onset={longest // 2}."
            )

    def episodes(self, name: str, count: int, **how: Any) -> list[Track]:
        """Episodes by the name of their file."""
        seed = seeding.spawn(self.settings.seed, f"ood {name}")
        path = self.folder / "episodes" / f"{name}-{count}-{self.settings.seed}.npz"
        agent = self.policy.agent
        like = agent.world_state(agent.initial(1))
        return cached(path, lambda: play(self.policy, count, seed, **how), like)

    @cached_property
    def asked(self) -> FitConfig:
        """How the detector is fitted."""
        s = self.settings
        return FitConfig(
            s.run, s.false_alarm_rate, seed=s.seed, threads=s.threads, detector=s.detector
        )

    def fresh(self) -> list[Track]:
        """Ordinary episodes to tune and calibrate on."""
        return self.episodes("fit", sum(self.asked.shares))

    def normal(self) -> list[Track]:
        """Ordinary episodes that no part of the detector has seen."""
        return self.episodes("normal", self.settings.normal)

    def unusual(self) -> dict[str, list[Track]]:
        """Hard negatives by name."""
        s = self.settings
        return {
            "sampled": self.episodes("sampled", s.unusual, mode="sample"),
            "jolted": self.episodes("jolted", s.unusual, jolts=s.jolts),
        }

    @cached_property
    def usual(self) -> dict[str, np.ndarray]:
        """The typical picture of each image key: the median of what the run recorded."""
        keys = self.policy.spec.keys("image")
        tracks = self.known[-20:]
        return {
            key: np.median(np.concatenate([t.obs[key] for t in tracks]), 0).astype(np.uint8)
            for key in keys
        }

    @cached_property
    def known(self) -> list[Track]:
        """What the run recorded."""
        return recorded_tracks(self.settings.run)

    def shifted(self, name: str, level: str) -> list[Track]:
        """Episodes in which the world changes at the onset."""
        strength, onset = shift_named(name).strength(level), self.settings.onset

        def wrap(env: Env, seed: int) -> Env:
            return Shifted(env, name, strength, onset, self.usual, seed)

        plain = re.sub(r"[^\w.]+", "-", name)  # a user's may hold what no file name does
        return self.episodes(f"{plain}-{level}", self.settings.episodes, wrap=wrap)

    @cached_property
    def detector(self) -> Detector:
        """One with every part, of which the settings' own decide."""
        spec, model = self.policy.spec, self.policy.model
        wide = wide_config(self.settings.detector)
        if store.exists(self.folder):
            return store.load(self.folder, spec, model)
        detector = Detector(spec, wide, model, say=self.say)
        tuning, _ = self.asked.shares
        fresh = self.fresh()
        detector.fit(self.known, fresh[:tuning])
        detector.calibrate(fresh[tuning:], self.settings.false_alarm_rate)
        store.save(self.folder, detector)
        return detector

    @property
    def columns(self) -> list[str]:
        """What is judged: all parts and their combination."""
        return [COMBINED, *self.detector.scorer.names]

    def scores(self, tracks: list[Track]) -> list[np.ndarray]:
        """[T, 1 + K] of each episode, in units of each column's own threshold."""
        scorer = self.detector.scorer
        out = []
        for levels in trace(scorer, tracks, scorer.levels):
            value = scorer.value(torch.from_numpy(levels)).numpy()[:, None]
            out.append(np.concatenate([value, levels / scorer.limit.numpy()], 1))
        return out

    @cached_property
    def ordinary(self) -> list[np.ndarray]:
        """Scores of the ordinary episodes."""
        return self.scores(self.normal())

    @cached_property
    def found(self) -> dict[tuple[str, str], list[np.ndarray]]:
        """Scores of the shifted episodes, by shift and level."""
        s = self.settings
        return {
            (n, level): self.scores(self.shifted(n, level))
            for n in self.shifts
            for level in s.levels
        }

    def judged(self, name: str) -> Iterator[dict[str, Any]]:
        """All rows of one shift."""
        s, shift = self.settings, shift_named(name)
        for level in dict.fromkeys(s.levels):
            for index, column in enumerate(self.columns):
                ordinary, shifted = (
                    [one[:, index] for one in scores]
                    for scores in (self.ordinary, self.found[name, level])
                )
                yield {
                    "shift": name,
                    "kind": shift.kind,
                    "level": level,
                    "strength": round(shift.strength(level), 4),
                    "column": column,
                    **judge(ordinary, shifted, s.onset, s.within),
                }

    def alarms(self) -> Iterator[dict[str, Any]]:
        """The share of ordinary and of unusual episodes that raise an alarm, by column."""
        sets = {"ordinary": self.ordinary}
        sets |= {name: self.scores(tracks) for name, tracks in self.unusual().items()}
        for name, scores in sets.items():
            for index, column in enumerate(self.columns):
                alarmed = sum(bool((one[:, index] > 1).any()) for one in scores)
                yield {
                    "false_alarms": name,
                    "column": column,
                    "alarmed": alarmed,
                    "episodes": len(scores),
                }


def wide_config(own: DetectorConfig) -> DetectorConfig:
    """The same detector with every part beside it; those that decided decide alone."""
    decides = own.combined or [*own.parts, *(f"{n}_slow" for n in own.slow if n in own.parts)]
    return replace(own, parts=list(KNOWN), combined=decides)


def judge(
    ordinary: list[np.ndarray], shifted: list[np.ndarray], onset: int, within: int
) -> dict[str, float]:
    """The figures of one column: its scores [T] in ordinary and in shifted episodes, in units of
    its threshold; NaN where no episode lasts beyond the onset."""
    before = [one[onset:] for one in ordinary if len(one) > onset]
    after = [one[onset:] for one in shifted if len(one) > onset]
    if not before or not after:
        return dict.fromkeys(FIGURES, float("nan"))
    first = np.array([alarm(one) for one in after])
    found = first[np.isfinite(first)]
    worst = [np.array([one.max() for one in group]) for group in (before, after)]
    return {
        "auroc_episode": round(auroc(*worst), 4),
        "auroc_tick": round(auroc(np.concatenate(before), np.concatenate(after)), 4),
        "caught": round(float((first < within).mean()), 4),
        "detected": round(float(np.isfinite(first).mean()), 4),
        "delay": float(np.median(found)) if len(found) else float("nan"),
    }


def alarm(scores: np.ndarray) -> float:
    """The index of the first score above 1; infinite where there is none."""
    above = np.flatnonzero(scores > 1)
    return float(above[0]) if len(above) else float("inf")


def auroc(negative: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive score is larger than a negative one, half for equal
    ones."""
    ranked = np.sort(negative)
    below = np.searchsorted(ranked, positive, "left") + np.searchsorted(ranked, positive, "right")
    return float(below.mean() / (2 * len(ranked)))


def summaries(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Means over the shifts of a kind, at each level and over all of them."""
    kinds, levels, columns = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("kind", "level", "column")
    )
    for kind, level, column in product(kinds, [*levels, "all"], columns):
        own = [
            row
            for row in rows
            if (row["kind"], row["column"]) == (kind, column) and level in ("all", row["level"])
        ]
        means = {
            name: round(float(np.nanmean([row[name] for row in own])), 4)
            for name in FIGURES
            if not all(np.isnan(row[name]) for row in own)
        }
        yield {"mean_over": kind, "level": level, "column": column, **means}
