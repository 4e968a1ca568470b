"""The files of results: for each claim the rows of its seeds, and the curves of its runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.studies.figures import curves
from scripts.studies.reproduce.claim import RUN, Claim, number
from scripts.studies.reproduce.run import FAILED, Job
from worldmodel.log import METRICS, write_json

Row = Mapping[str, Any]


def rows_of(jobs: Sequence[Job]) -> list[Row]:
    """The rows of the seeds that were run, those that failed too."""
    found: list[Row] = []
    for job in jobs:
        row, failed = job.result(), job.folder / FAILED
        if row is None and failed.is_file():
            row = json.loads(failed.read_text())
        if row is not None:
            found.append(row)
    return found


def write(claim: Claim, jobs: Sequence[Job], folder: Path) -> list[Row]:
    """results.json, and curves.csv and curves.png where there are training runs; the rows."""
    rows = rows_of(jobs)
    about = {"claim": claim.name, "sentence": claim.sentence, "targets": claim.targets}
    write_json(folder / "results.json", {**about, "passed": claim.verdict(rows), "rows": rows})
    runs = [job.folder / RUN for job in jobs if (job.folder / RUN / METRICS).is_file()]
    if runs:
        curves.draw(runs, folder / "curves", claim.sentence)
    return rows


def lines(claim: Claim, rows: Sequence[Row]) -> list[str]:
    """The verdict with every figure beside what it must reach, for people."""
    many = f" ({len(rows)} of {len(claim.seeds)} seeds)" if len(rows) < len(claim.seeds) else ""
    found = [f"{claim.verdict(rows)}  {claim.name}{many}: {claim.sentence}"]
    for measure in claim.measures:
        target = f"  ({measure.target})" if measure.bounded else ""
        found.append(f"      {measure.name}: {figures(measure.name, rows)}{target}")
    found += [f"      seed {row['seed']}: {row['error']}" for row in rows if "error" in row]
    return found


def figures(name: str, rows: Sequence[Row]) -> str:
    """The figures of all seeds, and their mean."""
    values = [row["figures"][name] for row in rows if name in row["figures"]]
    each = " / ".join(map(number, values)) or "-"
    return each if len(values) < 2 else f"{each}, mean {number(sum(values) / len(values))}"


def publish(claim: Claim, folder: Path, results: Path) -> Path:
    """Copy the results of a claim to where the page takes them from, in place of older ones that
    were measured on the same kind of device. Raises ValueError where a seed is missing."""
    found = json.loads((folder / "results.json").read_text())
    rows = [row for row in found["rows"] if "error" not in row]
    missing = sorted({*claim.seeds} - {row["seed"] for row in rows})
    if missing:
        raise ValueError(
            f"{claim.name} has no result for the seeds {missing}: `reproduce.py {claim.name}`."
        )
    path, kinds = results / f"{claim.name}.json", {on_gpu(row) for row in rows}
    others = [row for row in read(claim.name, results) if on_gpu(row) not in kinds]
    results.mkdir(parents=True, exist_ok=True)
    write_json(path, {"claim": claim.name, "rows": others + rows})
    for suffix in ("csv", "png"):
        source = folder / f"curves.{suffix}"
        if source.is_file():
            shutil.copyfile(source, path.with_suffix(f".{suffix}"))
    return path


def read(name: str, results: Path) -> list[Row]:
    """The published rows of a claim; none where nobody has measured it."""
    path = results / f"{name}.json"
    return list(json.loads(path.read_text())["rows"]) if path.is_file() else []


def on_gpu(row: Row) -> bool:
    """Whether a row was measured on a machine with a GPU."""
    return bool(row["machine"]["gpu"])
