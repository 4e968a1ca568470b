"""`what=world_models`: every figure it promises, from a small world."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from agents.run.train import build
from scripts.studies import bench_world_models as bench
from tests.agents.small_runs import SILENT
from tests.agents.test_world_models import config_of
from worldmodel.config import ConfigError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "run"
    trainer = build(config_of(folder), SILENT)
    trainer.run()
    trainer.close()
    return folder


def test_temperature_parts_and_film(tmp_path: Path, run: Path) -> None:
    settings = bench.Settings(
        ["temperature", "parts", "film"], str(run), [0.1, 1.0], [0, 1], generations=2,
        population=4, trials=2, episodes=2, every=2, to=str(tmp_path),
    )  # fmt: skip
    found = list(bench.measure(settings))
    searched = [one for one in found if one["figure"] == "temperature"]
    cases = [(one["tau"], one["sees"], one["seed"]) for one in searched]
    expected = [(tau, "z, h", seed) for tau in (0.1, 1.0) for seed in (0, 1)]
    expected += [(1.0, sees, seed) for sees in ("z", "z, h") for seed in (0, 1)]
    assert cases == expected
    assert all(len(one["curve"]) == 2 and one["dream"] != one["real"] for one in searched)
    on_the_way = [[generation for generation, _ in one["real_curve"]] for one in searched]
    assert on_the_way == [[]] * 4 + [[1, 2]] * 4
    with (tmp_path / "temperature.csv").open() as file:
        assert [row["x"] for row in csv.DictReader(file)] == ["0.1", "1.0"] * 2
    for name in ("temperature.png", "generations.png", "dream.gif", "dream_strip.png"):
        assert (tmp_path / name).stat().st_size > 100


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"need a run of agent=world_models"):
        bench.Settings(["parts"])
    with pytest.raises(ConfigError, match=r"to=FOLDER"):
        bench.Settings(["film"], run="x")
    with pytest.raises(ConfigError, match=r"Did you mean 'temperature'"):
        bench.Settings(["temperatur"])
