"""`what=plans`: what planning adds to trained runs of the default pixel experiment.

    early      the default experiment stopped at 4,000 agent steps: its policy, a plan, and a plan
               with the critic's value at the end
    finished   the same of the whole run
    hang, spin rewards that no model saw, fitted on the finished run: planning alone, no training

Every way to act plays the same episodes; a gain is the mean difference to the policy, start by
start, with its standard error. For fitted rewards: the share of the way from random to an agent
trained on that reward itself (`direct=false` leaves that agent out). Parts that are finished in the
folder are not done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import agents
from agents.apps.rewards.pipeline import FitConfig, fit_head
from agents.apps.rewards.store import with_heads
from agents.base import Policy
from agents.planning.acting import planned
from agents.planning.icem import ICEMConfig
from agents.run.evaluate import EvalResult, evaluate
from scripts.studies.bench import check_known
from scripts.studies.bench_reuse import FUNCTIONS, NEW, Study, finish, paid, quiet
from worldmodel.config import check_ranges
from worldmodel.rssm.fitted import head_names

EARLY = 4000  # agent steps
# Of iCEM, chosen on the run of seed 1: for the task's reward, and for a fitted one, behind which no
# value stands.
OWN: dict[str, Any] = {"horizon": 12, "expect": True, "beta": 2.0}
FITTED: dict[str, Any] = {"horizon": 25, "expect": True, "beta": 4.0, "std": 1.0}
PARTS = ("early", "finished", *NEW)


@dataclass
class Settings:
    """folder: of the study's runs. run: a finished default run of one seed, in place of training
    one. updates: as of what=reuse."""

    folder: str = "runs/plans"
    run: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    episodes: int = 20
    direct: bool = True
    updates: int = 0

    def __post_init__(self) -> None:
        check_known("part", self.parts, PARTS)
        check_ranges(self, {"episodes": (2, 1e6)})


def measure(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """One figure for each seed, part and way to act."""
    for seed in settings.seeds:
        study: Any = Study(settings, seed)  # type: ignore[arg-type]  # it reads what is there
        for part in settings.parts:
            if part in NEW:
                yield fitted(settings, study, part)
            else:
                yield from compared(settings, study, part)


def compared(settings: Settings, study: Study, part: str) -> Iterator[Mapping[str, Any]]:
    """The policy of a run, plans in its world, and plans with its values."""
    policy = agents.load(_early(study) if part == "early" else _finished(settings, study), "cpu")
    base = _play(settings, study, policy, policy.env)
    yield {**_about(part, study, "policy"), **_figures(base, base)}
    for way, value in (("plan", False), ("plan with value", True)):
        plans = _planned(policy, {**OWN, "value": value})
        found = _play(settings, study, plans, policy.env)
        yield {**_about(part, study, way), **_figures(found, base)}


def fitted(settings: Settings, study: Study, task: str) -> Mapping[str, Any]:
    """Planning alone for a reward that was fitted on a finished run."""
    run = _finished(settings, study)
    if task not in head_names(run):
        fit_head(FitConfig(run=str(run), name=task, reward=f"{FUNCTIONS}:{task}"), quiet)
    policy = agents.load(run, "cpu")
    world = with_heads(run, {task: 1.0}, policy)
    plans = _planned(policy, FITTED, world=world, trusts=False)
    found = _play(settings, study, plans, paid(policy.env, task))
    chance = study.random(task)
    figure = {**_about(task, study, "plan"), **_figures(found, found), "random": round(chance, 2)}
    if settings.direct:
        best = study.score(study.direct(task), task)
        share = (found.mean - chance) / (best - chance)
        figure |= {"direct": round(best, 2), "share": round(share, 3)}
    return figure


def _early(study: Study) -> Path:
    folder = study.folder / f"early-{study.seed}"
    finish(replace(study.composed("pendulum", folder), steps=EARLY, final_episodes=0))
    return folder


def _finished(settings: Settings, study: Study) -> Path:
    return Path(settings.run) if settings.run else study.base("usual")


def _planned(policy: Policy, options: Mapping[str, Any], **more: Any) -> Policy:
    return planned(policy, ICEMConfig(**options), seed=0, **more)


def _play(settings: Settings, study: Study, policy: Policy, env: Any) -> EvalResult:
    return evaluate(policy.agent, policy.spec, env, settings.episodes, 1000 + study.seed)


def _about(part: str, study: Study, way: str) -> dict[str, Any]:
    return {"part": part, "seed": study.seed, "acts": way}


def _figures(found: EvalResult, base: EvalResult) -> dict[str, Any]:
    """Mean return with its standard error, and the gain over the base in the same episodes."""
    ours, theirs = np.array(found.returns), np.array(base.returns)
    gain, root = ours - theirs, len(ours) ** 0.5
    return {
        "return": round(float(ours.mean()), 2), "error": round(float(ours.std(ddof=1) / root), 2),
        "gain": round(float(gain.mean()), 2),
        "gain_error": round(float(gain.std(ddof=1) / root), 2),
    }  # fmt: skip
