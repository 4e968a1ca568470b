"""`scripts/reproduce.py`: which claims to run, and what is said of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from scripts.studies.reproduce import page, results
from scripts.studies.reproduce.claim import Claim
from scripts.studies.reproduce.run import Job, Runner, about_here, commit
from scripts.studies.reproduce.table import CLAIMS
from worldmodel import config, progress
from worldmodel.config import ConfigError
from worldmodel.entry import HELP
from worldmodel.folders import make_folder
from worldmodel.machine import processor
from worldmodel.usage import usage

BY_NAME = {claim.name: claim for claim in CLAIMS}
VERBS = ("list", "quick", "all", "page")
QUICK_MINUTES = 30.0
CORES = 2  # of the machine that `minutes` speak of


@dataclass
class Settings:
    """reproduce.py list | quick | all | page | NAME [NAME ...]

    list: every claim with its commands, its targets and how long it takes. NAME: run a claim, say
    pass or FAIL with the figures, write results.json and curves. quick: the first seed of every
    claim, the shortest first, as far as 30 minutes on two idle cores go. page: write
    docs/RESULTS.md from docs/results, after taking over the finished claims that `add` names.
    What is finished is not run again, however the command before was stopped.
    """

    out: str = "runs/reproduce"  # where the claims' folders lie
    seeds: str = ""  # 0,1 instead of the claim's own
    jobs: int = 0  # claims that run side by side, if they measure no time; 0: one for each core
    results: str = "docs/results"  # of `page`: where published figures lie
    add: str = ""  # of `page`: names, or all

    def __post_init__(self) -> None:
        config.check_ranges(self, {"jobs": (0, 64)})
        if not re.fullmatch(r"(\d{1,9}(,\d{1,9})*)?", self.seeds.strip("[]").replace(" ", "")):
            raise ConfigError(f"seeds is '{self.seeds}'. Give whole numbers: seeds=0,1.")

    def seeds_of(self, claim: Claim) -> tuple[int, ...]:
        """The seeds to run of a claim."""
        given = self.seeds.strip("[]").replace(" ", "")
        return tuple(int(word) for word in given.split(",")) if given else claim.seeds


def reproduce_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Run, list or publish claims; 0 where every claim that was run holds, 1 where one does not."""

    def work() -> int:
        if any(word in HELP for word in arguments) or not arguments:
            raise config.HelpAsked(usage(Settings))
        names = [word for word in arguments if "=" not in word]
        settings = config.from_cli(Settings, [word for word in arguments if "=" in word])
        if not names:
            raise ConfigError(f"Give {', '.join(VERBS)}, or names of claims; `list` shows them.")
        for name in names:
            if name not in (*VERBS, *BY_NAME):
                raise ConfigError(config.unknown("claim", name, (*VERBS, *BY_NAME)))
        if len(names) > 1 and {*names} & {*VERBS}:
            raise ConfigError(f"Give one of {', '.join(VERBS)}, or names of claims, not both.")
        if names == ["list"]:
            return _list(settings, say)
        if names == ["page"]:
            return _page(settings, say)
        return _run(names, settings, say)

    return config.guarded(work, say)


def jobs_of(claim: Claim, settings: Settings, seeds: Sequence[int]) -> list[Job]:
    """A claim's seeds, each with its folder."""
    out = Path(settings.out).resolve()
    places = [out / claim.name / f"seed-{seed}" for seed in seeds]
    needed = [out / claim.needs / f"seed-{seed}" / "run" if claim.needs else None for seed in seeds]
    return [Job(claim, *about) for about in zip(seeds, places, needed, strict=True)]


def quick(gpu: bool) -> list[Claim]:
    """The shortest claims, as far as one seed of each fits into 30 minutes on two idle cores."""
    chosen: list[Claim] = []
    spent = 0.0
    for claim in sorted(CLAIMS, key=lambda claim: claim.minutes):
        shares = claim.minutes if claim.alone else claim.minutes / CORES
        ready = not claim.needs or BY_NAME[claim.needs] in chosen
        if ready and (gpu or not claim.needs_gpu) and spent + shares <= QUICK_MINUTES:
            chosen.append(claim)
            spent += shares
    return chosen


def _run(names: Sequence[str], settings: Settings, say: Callable[[str], None]) -> int:
    here, fast = about_here(), list(names) == ["quick"]
    gpu = here["machine"]["gpu"]
    claims = [BY_NAME[name] for name in names if name in BY_NAME]
    if not claims:
        claims = quick(bool(gpu)) if fast else [c for c in CLAIMS if gpu or not c.needs_gpu]
    for claim in claims:
        if claim.needs_gpu and not gpu:
            raise ConfigError(
                f"The claim '{claim.name}' is about a GPU, and torch finds none here. Run it where "
                "`make doctor` shows one."
            )
    for need in [BY_NAME[claim.needs] for claim in claims if claim.needs]:
        claims = claims if need in claims else [need, *claims]
    seeds = {c.name: settings.seeds_of(c)[: 1 if fast else None] for c in claims}
    jobs = {c.name: jobs_of(c, settings, seeds[c.name]) for c in claims}
    out, cores = Path(settings.out), processor()[1]
    make_folder(out, "out")
    say(f"{here['machine']['cpu']}, {cores} cores{gpu and f', {gpu}'}; code {commit()}; {out}")
    try:
        with FileLock(out / ".lock", timeout=0), progress.step("running claims"):
            Runner(say, settings.jobs or cores).run([job for some in jobs.values() for job in some])
            kept = {c.name: results.write(c, jobs[c.name], out / c.name) for c in claims}
    except Timeout as error:
        raise ConfigError(
            f"'{out}' is being written by another reproduce.py. Wait for it, or give another out=."
        ) from error
    for claim in claims:
        say("\n".join(results.lines(claim, kept[claim.name])))
    failed = [claim.name for claim in claims if claim.verdict(kept[claim.name]) == "FAIL"]
    say(f"{len(claims) - len(failed)} of {len(claims)} claims hold; files: {out}")
    return int(bool(failed))


def _list(settings: Settings, say: Callable[[str], None]) -> int:
    """Every claim, and which of its seeds are finished here, with which code."""
    for claim in CLAIMS:
        where = "a GPU" if claim.needs_gpu else "both of two cores" if claim.alone else "one core"
        say(f"{claim.name}: {claim.sentence}")
        for command in claim.commands:
            say(f"    python {command}")
        targets = "; ".join(claim.targets) or "figures without a target"
        seeds = ", ".join(map(str, claim.seeds))
        say(f"    {targets}; seeds {seeds}; {claim.minutes:g} minutes for each, on {where}")
        for job in jobs_of(claim, settings, claim.seeds):
            row = job.result()
            if row is not None:
                say(f"    finished: seed {job.seed}, code {row['commit']}, {row['date']}")
    return 0


def _page(settings: Settings, say: Callable[[str], None]) -> int:
    """Take over finished claims, and write the page of results."""
    out, where = Path(settings.out), Path(settings.results)
    given = [word for word in settings.add.split(",") if word]
    for name in given:
        if name not in (*BY_NAME, "all"):
            raise ConfigError(config.unknown("claim", name, BY_NAME))
    everything = [c.name for c in CLAIMS if (out / c.name / "results.json").is_file()]
    for name in everything if given == ["all"] else given:
        try:
            say(f"added: {results.publish(BY_NAME[name], out / name, where)}")
        except (OSError, ValueError, json.JSONDecodeError) as error:
            raise ConfigError(f"{name} cannot be added: {error}") from error
    path = where.parent / "RESULTS.md"
    path.write_text(page.text(CLAIMS, where))
    say(f"written: {path}")
    return 0
