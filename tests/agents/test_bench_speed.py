"""The measures of speed: each runs in a tiny setting, and its figures agree with each other."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scripts.studies import (
    bench_act,
    bench_env,
    bench_replay,
    bench_scaling,
    bench_subject,
    bench_train,
    bench_update,
)
from scripts.studies.bench import bench_command
from scripts.studies.bench_timing import (
    PeakMemory,
    Phases,
    in_own_process,
    matmul_peak,
    summary,
    timed,
)
from worldmodel.config import ConfigError, RunError

TINY = [
    "agent.model.deter=16", "agent.model.hidden=8", "agent.model.groups=4",
    "agent.model.units=8", "agent.model.blocks=4", "agent.model.mults=[1,1,1]",
]  # fmt: skip
SMALL = {"image": 32, "batch": 2, "length": 4, "horizon": 2, "device": "cpu", "set": TINY}


@pytest.fixture(autouse=True)
def _little_experience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_subject, "FILLED", 32)


class Nested:
    """A method that calls another; each takes its time, by a clock of ours."""

    def __init__(self) -> None:
        self.now = 0

    def outer(self) -> None:
        self.now += 2
        self.inner()

    def inner(self) -> None:
        self.now += 5


def test_time_goes_to_the_innermost_phase_and_the_object_is_put_back() -> None:
    one, before = Nested(), torch.Tensor.backward
    with Phases(lambda: one.now) as phases:
        phases.wrap(one, "outer", "outer")
        phases.wrap(one, "inner", "inner")
        phases.wrap(torch.Tensor, "backward", "backward")
        one.outer()  # outside of a phase: not counted
        with phases.inside("rest"):
            one.outer()
            one.outer()
    assert phases.spent["outer"].calls == phases.spent["inner"].calls == 2
    found = {name: phases.spent[name].wall for name in ("outer", "inner", "rest")}
    assert found == {"outer": 4, "inner": 10, "rest": 0}
    assert vars(one) == {"now": 21}
    assert torch.Tensor.backward is before
    with pytest.raises(RunError, match="never ran: backward"):
        phases.check_entered()


def test_operations_of_a_module_are_counted_by_hand() -> None:
    holder = nn.Module()
    holder.layer = nn.Linear(10, 20)
    with (
        FlopCounterMode(display=False) as counter,
        Phases(lambda: 0.0, lambda: float(counter.get_total_flops())) as phases,
    ):
        phases.wrap(holder, "layer", "layer")
        with phases.inside("rest"):
            holder.layer(torch.zeros(3, 10))
            torch.ones(2, 2) @ torch.ones(2, 2)
    assert phases.spent["layer"].flop == 2 * 3 * 10 * 20
    assert phases.spent["rest"].flop == 2 * 2 * 2 * 2
    assert "forward" not in vars(holder.layer)


def test_windows_and_the_peak() -> None:
    slept = summary([timed(time.perf_counter, lambda: time.sleep(0.01)) for _ in range(3)])
    assert 0.01 <= slept["quickest_s"] <= slept["seconds"] < 0.5
    assert slept["cpu_s"] < 0.01  # nothing was computed
    assert matmul_peak(torch.device("cpu"), "float32", 1) > 1e8


def test_memory_that_was_freed_before_is_counted_again() -> None:
    size, device = 64 << 20, torch.device("cpu")
    for _ in range(2):
        memory = PeakMemory(device)
        torch.ones(size, dtype=torch.uint8)
        assert 0.9 * size < memory.peak() - memory.before < 1.5 * size


def _stop(kind: str) -> int:
    if kind == "error":
        raise ValueError("of the child")
    if kind == "dies":
        os._exit(7)
    return os.getpid()


def test_a_measurement_in_a_process_of_its_own() -> None:
    assert in_own_process(_stop, "") != os.getpid()
    with pytest.raises(ConfigError, match="of the child"):
        in_own_process(_stop, "error")
    with pytest.raises(RunError, match="ended with the code 7"):
        in_own_process(_stop, "dies")


@pytest.mark.slow
def test_update_and_its_phases_agree() -> None:
    whole, *phases = bench_update.measure(bench_update.Settings(**SMALL, windows=3))
    assert whole["figure"] == "update"
    assert [p["phase"] for p in phases] == [p for p in bench_update.PHASES if p != "to device"]
    assert sum(p["share"] for p in phases) == pytest.approx(1, abs=1e-3)
    assert sum(p["ms"] for p in phases) == pytest.approx(1e3 * whole["seconds_with_clocks"], 0.01)
    assert sum(p["gflop"] for p in phases) == pytest.approx(whole["gflop"], 0.01)
    assert whole["of_peak"] == pytest.approx(whole["gflop_per_s"] / whole["peak_gflop_per_s"], 0.01)
    by_name = {p["phase"]: p for p in phases}
    for name in ("encoder", "observe scan", "decoder and heads", "imagination", "backward"):
        assert by_name[name]["gflop"] > 0
        assert by_name[name]["ms"] > 0
    assert by_name["optimizer"]["gflop"] == by_name["replay sample"]["gflop"] == 0
    assert whole["batch"] == [2, 4]
    assert whole["images"] == {"image": [32, 32, 3]}
    assert whole["peak_memory_mb"] > whole["memory_before_mb"] > 10
    assert whole["first_update_s"] >= whole["build_s"]


def test_an_update_that_calls_other_methods_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases cannot silently become wrong when the agent changes."""
    monkeypatch.setattr(bench_update, "wrap", lambda phases, made, replay: phases.wrap(
        made.agent, "slow_down", "optimizer"))  # fmt: skip
    with pytest.raises(RunError, match="never ran: optimizer"):
        list(bench_update.measure(bench_update.Settings(**SMALL, windows=1)))


def test_settings_are_those_of_the_experiment() -> None:
    """A subject changes what it names, and leaves the rest as training has it."""
    plain = bench_subject.compose(bench_subject.Subject("pendulum"))
    assert (plain.agent.batch_size, plain.agent.imagination_starts) == (32, 4)
    assert plain.env.id == "Pendulum-v1"
    paper = bench_subject.compose(bench_subject.Subject(batch=8, image=96))
    assert (paper.agent.batch_size, paper.agent.batch_length, paper.agent.horizon) == (8, 64, 15)
    assert (paper.agent.model.depth, list(paper.env.image_size)) == (4, [96, 96])
    with pytest.raises(ConfigError, match="Did you mean 'pendulum'"):
        bench_subject.compose(bench_subject.Subject("pendulm"))


def test_acting() -> None:
    settings = bench_act.Settings(**SMALL, envs=[1, 3], calls=4, windows=3)
    one, three = bench_act.measure(settings)
    for figure in (one, three):
        assert figure["quickest_ms"] <= figure["p50_ms"] <= figure["p99_ms"]
        assert figure["calls_per_s"] <= 1e3 / figure["quickest_ms"]
    assert three["steps_per_s"] == pytest.approx(3 * three["calls_per_s"], 0.01)


def test_replay_from_memory_and_from_files(tmp_path: Path) -> None:
    settings = bench_replay.Settings(
        image=32, envs=2, capacity=80, batch=3, length=5, windows=1, seconds=0.01,
        folder=str(tmp_path),
    )  # fmt: skip
    memory, disk = bench_replay.measure(settings)
    assert (memory["storage"], disk["storage"]) == ("memory", "disk")
    for figure in (memory, disk):
        assert figure["rows"] == 80
        assert figure["sampled_gb_per_s"] == pytest.approx(
            figure["sampled_steps_per_s"] * (32 * 32 * 3 + 6 * 4 + 4 + 1) / 1e9, 0.01
        )
        share = figure["sampled_gb_per_s"] / figure["copy_gb_per_s"]
        assert figure["of_a_copy"] == pytest.approx(share, 0.02)
        assert (figure["binds"] == "memory bandwidth") == (share >= bench_replay.BOUND)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_environments_alone_and_together() -> None:
    settings = bench_env.Settings(
        ["dyna_maze", "cartpole+env.action_repeat=3"], 2, windows=1, seconds=0.01
    )
    figures = list(bench_env.measure(settings))
    assert [(f["vector"], f["envs"]) for f in figures] == 2 * [
        ("sync", 1),
        ("sync", 2),
        ("async", 2),
    ]
    for figure in figures:
        repeat = 3 if figure["id"] == "CartPole-v1" else 1
        assert figure["frames_per_s"] == pytest.approx(repeat * figure["steps_per_s"], 0.01)
    absent, *_ = bench_env.measure(bench_env.Settings(["cartpole+env.id=Nowhere-v9"], 1))
    assert "Nowhere" in absent["left_out"]


@pytest.mark.slow
def test_training_loop() -> None:
    changed = ["train_ratio=8", *TINY]
    settings = bench_train.Settings(
        **{**SMALL, "set": changed}, experiment="pendulum", windows=2, seconds=0.2
    )
    whole, *parts = bench_train.measure(settings)
    assert sum(p["share"] for p in parts) == pytest.approx(1, abs=1e-2)
    names = {p["part"]: p for p in parts}
    assert set(names) == {"environment", "acting", "update", "replay", "logging", "loop"}
    assert names["update"]["calls"] == whole["updates"] > 0
    # 8 rows of one update are those of one agent step.
    assert whole["updates"] == pytest.approx(whole["steps"], abs=1)
    assert whole["of_updates_alone"] == pytest.approx(
        whole["updates_per_s"] / whole["updates_alone_per_s"], 0.01
    )
    assert whole["checkpoint_s"] > 0


def test_exponents_by_hand() -> None:
    assert bench_scaling.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert np.isnan(bench_scaling.exponent([2, 2], [1, 3]))
    line = [{"x": n, "cpu_s": 2.0 * n, "gflop": 5.0 * n, "memory_mb": 10.0} for n in (1, 2, 4)]
    costs = {"cpu_s": "time", "gflop": "arithmetic", "memory_mb": "memory"}
    found = bench_scaling.fits("batch", line, costs)
    assert found["time_exponent"] == found["time_over_arithmetic"] == pytest.approx(1)
    assert found["memory_exponent"] == pytest.approx(0, abs=1e-9)


def test_scaling_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arithmetic is proportional to batch and length; points that axes share are measured once."""
    asked: list[bench_update.Settings] = []

    def point(settings: bench_update.Settings) -> dict[str, object]:
        asked.append(settings)
        work = float(settings.batch or 0) * float(settings.length or 0)
        return {
            **dict.fromkeys(bench_scaling.COLUMNS[6:], 1.0), "size": settings.size,
            "image": settings.image, "batch": settings.batch, "length": settings.length,
            "gflop": work, "quickest_s": 0.1 + work,
        }  # fmt: skip

    monkeypatch.setattr(bench_scaling, "in_own_process", lambda work, settings: point(settings))
    settings = bench_scaling.Settings(
        batches=[1, 4, 8], lengths=[16, 32], sizes=[], images=[64], folder=str(tmp_path)
    )
    figures = list(bench_scaling.measure(settings))
    assert len(asked) == 4
    axes = {f["axis"]: f for f in figures if f["figure"] == "axis"}
    assert set(axes) == {"batch", "length"}
    assert axes["batch"]["arithmetic_exponent"] == pytest.approx(1)
    assert 0.9 < axes["batch"]["time_over_arithmetic"] < 1
    with (tmp_path / "scaling.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_the_command_prints_lines_of_json() -> None:
    said: list[str] = []
    words = ["what=act", "image=32", "envs=[2]", "calls=2", "windows=1", "device=cpu"]
    assert bench_command(said.append, [*words, f"set=[{','.join(TINY[:1])}]"]) == 0
    figure = json.loads(said[0])
    assert (figure["what"], figure["envs"], figure["settings"]["image"]) == ("act", 2, 32)
    assert {"device", "threads", "versions"} <= set(figure)
    said.clear()
    assert bench_command(said.append, ["what=scaling", "clock=noon"]) == 2
    assert "Unknown clock 'noon'" in said[0]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["what=train", "experiment=random"], "The agent 'random' learns nothing from a replay"),
        (["what=update", "experiment=dyna_q"], "experiment=dyna_q is another agent's"),
        (["what=update", "size=2m"], "Did you mean"),
        (["what=replay", "capacity=10", "image=32"], "Cannot draw 16 times 64 rows"),
        (["what=act", "envs=[]"], "envs is empty"),
        (["what=env", "envs=[mars]"], "Unknown env 'mars'"),
    ],
)
def test_impossible_wishes_are_one_line(words: list[str], error: str) -> None:
    said: list[str] = []
    assert bench_command(said.append, words) == 2
    assert len(said) == 1
    assert error in said[0]


def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match=r"Device 'cuda:63' is not there"):
        list(bench_update.measure(bench_update.Settings(**SMALL | {"device": "cuda:63"})))
