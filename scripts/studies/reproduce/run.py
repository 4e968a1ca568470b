"""Run the commands of claims, so that what is finished is never run again.

A seed's folder holds what was begun there, `begun.json` (commit and commands), and for each command
that is done a `.done` file; a training that was killed continues exactly, every other command that
was killed begins anew.
"""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.studies.bench import machine
from scripts.studies.reproduce.claim import RUN, Claim, number
from worldmodel.config import ConfigError
from worldmodel.log import write_json

ROOT = Path(__file__).resolve().parents[3]
BEGUN, RESULT, FAILED = "begun.json", "result.json", "failed.json"
CODE = ("worldmodel", "agents", "configs", "scripts", ":!scripts/studies/reproduce")
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One seed of a claim. needed: the run folder of the claim that it needs, or None."""

    claim: Claim
    seed: int
    folder: Path
    needed: Path | None = None

    @property
    def title(self) -> str:
        """`pendulum, seed 0`"""
        seeds = self.claim.seeds != (0,) or self.seed
        return f"{self.claim.name}, seed {self.seed}" if seeds else self.claim.name

    def commands(self) -> list[list[str]]:
        """The words of every command, all names filled in."""
        names = {"run": self.folder / RUN, "out": self.folder, "seed": self.seed}
        names |= {"needs": self.needed} if self.needed else {}
        texts = {name: str(value) for name, value in names.items()}
        return [
            [word.format(**texts) for word in shlex.split(command)]
            for command in self.claim.commands
        ]

    def result(self) -> dict[str, Any] | None:
        """The row of a seed that is finished with these very commands, or None."""
        path = self.folder / RESULT
        return json.loads(path.read_text()) if path.is_file() else None


@dataclass
class Runner:
    """Runs jobs, `at_once` of them side by side; those that measure time run alone, after them."""

    say: Callable[[str], None]
    at_once: int
    _children: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _stopped: bool = False

    def run(self, jobs: Sequence[Job]) -> None:
        """Run what is not finished. Every job leaves a result.json, with an error in it where a
        command failed or a figure is missing."""
        check_same_code(jobs)
        todo = [job for job in jobs if job.result() is None]
        side = [job for job in todo if not job.claim.alone]
        phases = [
            (self.at_once, [job for job in side if job.needed is None]),
            (self.at_once, [job for job in side if job.needed is not None]),
            (1, [job for job in todo if job.claim.alone]),
        ]
        for at_once, those in phases:
            if those:
                with ThreadPoolExecutor(at_once) as pool:
                    try:
                        list(pool.map(self._job, those))
                    except BaseException:
                        self._stop()
                        raise

    def _job(self, job: Job) -> None:
        began = time.monotonic()
        _begin(job)
        row: dict[str, Any] = {"seed": job.seed, "figures": {}}
        for i, words in enumerate(job.commands()):
            if self._stopped:
                return
            if not self._command(job, i, words):
                row["error"] = f"command {i} failed, see {job.folder / f'{i}.out'}"
                break
        else:
            row |= _figures(job)
        if self._stopped:
            return
        row |= {"minutes": _minutes(job), **about_here(), **_begun(job)}
        # An error is kept apart: what failed is tried again.
        write_json(job.folder / (FAILED if "error" in row else RESULT), row)
        told = row.get("error") or ", ".join(f"{k} {number(v)}" for k, v in row["figures"].items())
        self.say(f"{job.title}: {told} ({(time.monotonic() - began) / 60:.1f} min)")

    def _command(self, job: Job, i: int, words: list[str]) -> bool:
        """Whether one command ended well, now or earlier."""
        done = job.folder / f"{i}.done"
        if done.exists():
            return True
        self.say(f"{job.title}: {shlex.join(words)}")
        out_path, began = job.folder / f"{i}.out", time.monotonic()
        again = out_path.exists()
        with out_path.open("wb") as out:
            child = subprocess.Popen(
                [sys.executable, *words], stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip
            self._children.add(child)
            code = child.wait()
            self._children.discard(child)
        if code == 0:
            done.write_text("" if again else str(time.monotonic() - began))
        return code == 0

    def _stop(self) -> None:
        """End the commands that run, and begin no other: a training writes a checkpoint first."""
        self._stopped = True
        for child in list(self._children):
            child.terminate()


def check_same_code(jobs: Sequence[Job]) -> None:
    """ConfigError where a folder holds what other code, or other commands, made."""
    for job in jobs:
        path = job.folder / BEGUN
        if not path.is_file():
            continue
        begun = json.loads(path.read_text())
        if begun["commands"] != _texts(job):
            raise ConfigError(
                f"'{job.folder}' was begun with other commands than those of the claim now: "
                f"{begun['commands']}. Choose another out=..., or delete that folder."
            )
        if not same_code(begun["commit"]):
            raise ConfigError(
                f"'{job.folder}' was begun with the code of {begun['commit']}, and this is "
                f"{commit()}. Choose another out=..., check out {begun['commit']} to go on there, "
                "or delete that folder."
            )


def commit() -> str:
    """The commit of this tree, with `-dirty` where code, not docs, has changed since."""
    head = _git("rev-parse", "--short", "HEAD")
    if head is None:
        return "unknown"
    return head if _git("diff", "--quiet", "HEAD", "--", *CODE) is not None else f"{head}-dirty"


def same_code(before: str) -> bool:
    """Whether a commit has the code of this tree; docs and the table of claims may differ."""
    now = commit()
    if before == now:
        return True
    clean = not before.endswith("-dirty") and before != "unknown"
    return clean and _git("diff", "--quiet", before, "--", *CODE) is not None


def about_here() -> dict[str, Any]:
    """What a row says of the machine, the versions and the day."""
    found = machine()
    gpu = found["device"] if found["device"] != "cpu" else ""
    return {
        "machine": {"cpu": found["cpu"], "cores": found["cores"], "gpu": gpu},
        "torch": found["versions"]["torch"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _begin(job: Job) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    if not (job.folder / BEGUN).exists():
        write_json(job.folder / BEGUN, {"commit": commit(), "commands": _texts(job)})


def _begun(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.folder / BEGUN).read_text())
    return found


def _texts(job: Job) -> list[str]:
    """The commands as one can give them again."""
    return [shlex.join(words) for words in job.commands()]


def _minutes(job: Job) -> float | None:
    """Minutes that the commands took; None where one was stopped on the way."""
    spent = [path.read_text() for path in job.folder.glob("*.done")]
    return round(sum(map(float, spent)) / 60, 2) if all(spent) else None


def _figures(job: Job) -> dict[str, Any]:
    figures: dict[str, float] = {}
    try:
        for measure in job.claim.measures:
            figures[measure.name] = measure.read(job.folder)
    except (OSError, ValueError, KeyError, ZeroDivisionError) as error:
        missing = f"'{measure.name}' cannot be read: {type(error).__name__}: {error}"
        return {"figures": figures, "error": missing}
    return {"figures": figures}


def _git(*words: str) -> str | None:
    """What git says, or None where it says no."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode().strip() if done.returncode == 0 else None


def _end_with_parent() -> None:
    """Of a child on Linux: SIGTERM when its parent dies, even by SIGKILL."""
    _PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


_PRCTL: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
