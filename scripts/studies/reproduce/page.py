"""docs/RESULTS.md, from the published rows of all claims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from scripts.studies.reproduce.claim import Claim
from scripts.studies.reproduce.results import Row, figures, on_gpu, read

HEAD = """# Results

- **Measured on a CPU:** {cpu}.
- **Measured on a GPU:** {gpu}.
- **Claimed and not measured yet:** {owed}.

This page is written by `python scripts/reproduce.py page` from the files of [results/](results/),
and no figure of it by hand. `python scripts/reproduce.py NAME` repeats a claim and says pass or
FAIL; `list` shows all of them with their commands and how long they take, `quick` runs what fits in
30 minutes. Returns are means over 20 evaluation episodes by the policy's mode, on separate
environments. Seeds were fixed before the runs, and all of them are shown. "Entered with" is the
commit with which a figure was written down, where the commit that was measured is not recorded.
"""
VERDICTS = {"pass": "reached", "FAIL": "**missed**", "shown": "-"}


def text(claims: Sequence[Claim], results: Path) -> str:
    """The whole page."""
    rows = {claim.name: read(claim.name, results) for claim in claims}
    machines = Machines()
    groups = dict.fromkeys(claim.group for claim in claims)
    sections = [
        _section(
            group, [claim for claim in claims if claim.group == group], rows, machines, results
        )
        for group in groups
    ]
    return "\n".join([_head(claims, rows), machines.text(), *sections])


class Machines:
    """Letters for the machines, in the order in which they come."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def letter(self, row: Row) -> str:
        """The letter of a row's machine."""
        about = row["machine"]
        name = f"{about['cpu']}, {about['cores']} cores" + (about["gpu"] and f", {about['gpu']}")
        return self._letters.setdefault(name, ascii_uppercase[len(self._letters)])

    def text(self) -> str:
        """A list of them."""
        return "".join(f"- Machine {letter}: {name}.\n" for name, letter in self._letters.items())


def _head(claims: Sequence[Claim], rows: dict[str, list[Row]]) -> str:
    kinds = {
        kind: [c.name for c in claims if any(on_gpu(row) is kind for row in rows[c.name])]
        for kind in (False, True)
    }
    owed = [claim.name for claim in claims if not rows[claim.name]]
    cpu, gpu = (", ".join(kinds[kind]) or "nothing so far" for kind in (False, True))
    return HEAD.format(
        cpu=cpu,
        gpu=gpu,
        owed=", ".join(owed) or "nothing",
    )


def _section(
    group: str, claims: list[Claim], rows: dict[str, list[Row]], machines: Machines, results: Path
) -> str:
    lines = [
        f"## {group}\n",
        "| claim | must reach | measured, by seed | | on |",
        "|---|---|---|---|---|",
    ]
    notes, pictures = [], []
    for claim in claims:
        lines.append(_line(claim, rows[claim.name], machines))
        notes += [f"- {claim.name}: {note}" for note in _notes(claim.name, results)]
        commands = dict.fromkeys(
            one for row in rows[claim.name] for one in row.get("measured_by", ())
        )
        notes += [f"- {claim.name} was measured by `{command}`." for command in commands]
        picture = results / f"{claim.name}.png"
        if picture.is_file():
            pictures.append(f"![{claim.sentence}](results/{picture.name})\n")
    return "\n".join([*lines, "", *notes, *[""][: len(notes)], *pictures])


def _line(claim: Claim, rows: list[Row], machines: Machines) -> str:
    """One row of a table."""
    story = f" ([more]({claim.about}))" if claim.about else ""
    target = "<br>".join(claim.targets) or "-"
    said = f"`{claim.name}`: {claim.sentence}{story}"
    if not rows:
        return f"| {said} | {target} | owed | | |"
    found = "<br>".join(
        f"{measure.name}: {figures(measure.name, rows)}"
        for measure in claim.measures
        if any(measure.name in row["figures"] for row in rows)
    )
    verdict = VERDICTS[claim.verdict(rows)]
    where = dict.fromkeys(f"{machines.letter(row)}, {_when(row)}" for row in rows)
    return f"| {said} | {target} | {found} | {verdict} | {'; '.join(where)} |"


def _when(row: Row) -> str:
    """The commit and the day of a row, or what is known of them."""
    if row["commit"] == "not recorded":
        return f"entered with {row['entered']}" if row.get("entered") else "commit not recorded"
    return f"{row['commit']}, {row['date']}"


def _notes(name: str, results: Path) -> list[str]:
    """What the file of a claim says beside its rows."""
    path = results / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return list(found.get("notes", []))
