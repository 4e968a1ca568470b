"""The measurement of planning: every contestant plans, and the comparison is of its own figures."""

from __future__ import annotations

import json

import pytest

from scripts.studies import bench_dyna
from scripts.studies.bench import bench_command
from scripts.studies.bench_dyna import Settings, measure
from worldmodel.config import ConfigError

SMALL = Settings(windows=3, updates=20_000, plain_updates=500, steps=2000)


@pytest.mark.slow
def test_compares_what_it_measured() -> None:
    figures = {figure["name"]: figure for figure in measure(SMALL)}
    rates = {name: f["value"] for name, f in figures.items() if name.startswith("planning")}
    assert len(rates) == 8
    assert min(rates.values()) > 1000
    ours = rates["planning updates per second, dyna_q"]
    for kind in ("anew", "once"):
        plain = rates[f"planning updates per second, plain Python, keys listed {kind}"]
        times = figures[f"dyna_q, compiled, against plain Python, keys listed {kind}"]["value"]
        assert times == pytest.approx(ours / plain)
        assert times > 5  # far below what it is, for a busy machine and short windows


@pytest.mark.slow
def test_plain_loops_learn_the_same_maze() -> None:
    """Both do the updates that they count; the compiled one counts its own."""
    for loop in bench_dyna.plain(SMALL).values():
        assert loop() == 500
    for name, contestant in bench_dyna.compiled(SMALL).items():
        done = contestant()
        assert done == 20_000 if "prioritized" not in name else done > 100


def test_the_command_prints_one_line_for_each_figure() -> None:
    said: list[str] = []
    words = ["what=dyna", "windows=1", "updates=1000", "plain_updates=50", "steps=500"]
    assert bench_command(said.append, words) == 0
    assert len(said) == 10
    assert json.loads(said[0])["settings"]["updates"] == 1000


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="windows is 0; allowed: 1 to"):
        Settings(windows=0)
