"""The commands, the user's robot and the measurement, on a tiny run."""

from __future__ import annotations

import importlib.util
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import agents
from agents.deploy import DeployConfig, FallbackConfig, RetrainConfig
from agents.deploy.cli import DeployCommand, deploy_command, export_command, slowness
from agents.deploy.config import ISOLATION
from agents.deploy.fallback import rest_action
from agents.deploy.loop import Sensed, run_loop
from agents.deploy.sources import open_runtime, reward_range, spec_of
from agents.mpc import MPCConfig
from agents.planning import planner_class
from agents.random import RandomConfig
from agents.run.config import TrainConfig
from agents.run.train import train
from agents.sac import SACConfig
from scripts.studies.bench_deploy import Settings, measure
from tests.agents.deploy_doubles import Bench, check_starts, observation
from tests.agents.rewards_run import LENGTH, make_run
from worldmodel import config
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import EnvConfig
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

# Deadlines that a machine which is busy with other things keeps too.
PATIENT = ["deploy.period_ms=20000", "deploy.soft_ms=9000", "deploy.hard_ms=9000", "pace=false"]
SLOW = DeployConfig(period_ms=20_000, soft_ms=9000, hard_ms=9000, warmup=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("deploy") / "run")


def told(command: Any, *words: str) -> tuple[int, str]:
    lines: list[str] = []
    code = command(lines.append, list(words))
    return code, "\n".join(lines)


def agent_of(name: str) -> agents.Agent:
    """A new agent for two numbers and one action."""
    spec = EnvSpec({"v": ObsSpec("vector", (2,))}, ActionSpec("continuous", (1,)))
    settings = {"sac": SACConfig(units=8), "mpc": MPCConfig(world="gaussian")}[name]
    return agents.make(name, spec, settings, torch.device("cpu"))


def test_deploy_plays_tells_and_logs(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    code, said = told(deploy_command, f"run={run}", f"to={to}", "episodes=2", "shift=blur",
                      "onset=3", "deploy.warmup=2", *PATIENT)  # fmt: skip
    assert code == 0, said
    assert "has no detector" in said
    for words in ("blur 0.03125 from tick 3", "shifts noticed", "0 of 2", "latency, ms",
                  "return, guarded", "return, policy alone", "return, fallback alone"):  # fmt: skip
        assert words in said
    summary = json.loads((to / "summary.json").read_text())
    assert f"episode 2: return {LENGTH * (LENGTH + 1) / 2:.1f}; {2 * (LENGTH + 1)} ticks: " in said
    assert summary["ticks"] == 2 * (LENGTH + 1)  # an action for each row, the last one's included
    assert summary["trials"]["guarded"]["returns"] == [LENGTH * (LENGTH + 1) / 2] * 2
    assert summary["trials"]["guarded"]["delays"] == [None, None]
    lines = [json.loads(line) for line in (to / "deploy.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "end"]


def test_an_agent_that_is_too_slow_for_its_cycle_is_said() -> None:
    asked = DeployCommand(run="runs/demo")
    exported, planning = (agent_of(name) for name in ("sac", "mpc"))
    for ticks, missed, words in ((10, 3, ""), (11, 3, "11 of 100"), (0, 95, "95 of 100")):
        summary = {"ticks": 100, "reasons": {"late": ticks}, "missed": missed}
        said = slowness(asked, summary, None, exported)
        assert bool(said) == bool(words)
        assert words in said
    assert "deploy.hard_ms=8" in said
    assert "scripts/export.py run=runs/demo" in said
    late = {"ticks": 100, "reasons": {"late": 50}, "missed": 0}
    said = slowness(asked, late, planner_class("icem").Config())
    assert "scripts/export.py" not in said  # an export cannot plan
    assert "longer period, plan with fewer candidates, or in a smaller world" in said
    said = slowness(asked, late, None, planning)
    assert "scripts/export.py" not in said  # it plans by itself
    for words in ("planner=cem", "deploy.soft_ms", "planner.bounds.deadline_ms", "candidates"):
        assert words in said
    assert slowness(asked, late).endswith(". Give it a longer period.")  # an export


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shift=blurr"], "Did you mean 'blur'"),
        (["shift=blur", "strength=much"], "mild, middle, strong"),
        (["shift=blur", "strength=2000"], "the shift 'blur' allows 0 to 0.5 (picture heights)"),
        (["shift=blur", "strength=nan"], "strength is nan"),
        (["strength=strong"], "strength=strong is of a shift, and none is given"),
        (["onset=3"], "onset=3 is of a shift"),
        (["graph=onnx"], "graph and expected are of an export"),
        (["expected=0123"], "graph and expected are of an export"),
        (["env.id=NoSuchEnv-v0"], "NoSuchEnv"),
        (["env=NoSuchEnv-v0"], "Give its entries by name: env.NAME="),
        (["env.nonsense=1"], "Unknown setting of env 'nonsense'. Known: action_mask, "),
        (["env.tim_limit=4"], "Did you mean 'time_limit'"),
        (["env.image_size=[64,64]"], "is image 64 x 64 x 3 instead of image 32 x 32 x 3"),
        (["deploy.fallback.name=hld"], "Did you mean 'hold'"),
        (["deploy.hard_ms=50"], "less than period_ms"),
        (["episodes=0"], "episodes is 0"),
        (["deploy.fallbak=1"], "Unknown key"),
    ],
)
def test_wrong_words_are_one_clear_error(run: Path, words: list[str], message: str) -> None:
    code, said = told(deploy_command, f"run={run}", "deploy.warmup=1", *words)
    assert code == 2, said
    assert message in said


def test_settings_of_the_environment_may_be_others_than_in_training(
    run: Path, tmp_path: Path
) -> None:
    for given in ("env.time_limit=3", "env={time_limit: 3}"):
        words = [f"run={run}", f"to={tmp_path}", "episodes=1", "deploy.warmup=1", given, *PATIENT]
        code, said = told(deploy_command, *words)
        assert code == 0, said
        assert json.loads((tmp_path / "summary.json").read_text())["ticks"] == 4


def test_nobody_sends_what_the_mask_forbids(tmp_path: Path) -> None:
    env = EnvConfig("tests.envs_for_tests:PartsEnv", pixels=False, kwargs={"form": "tuple"})
    settings = TrainConfig(str(tmp_path / "run"), steps=8, eval_every=0, final_episodes=1,
                           device="cpu", threads=1, env=env, agent=RandomConfig())  # fmt: skip
    assert train(settings, lambda text: None) == 0
    words = ("episodes=1", "deploy.fallback.rest=[1,0,0,0,1]", "deploy.warmup=1", *PATIENT)
    code, said = told(deploy_command, f"run={tmp_path / 'run'}", *words)
    assert code == 0, said
    trials = json.loads((tmp_path / "run" / "deployment" / "summary.json").read_text())["trials"]
    assert [trial["returns"] for trial in trials.values()] == [[7.0]] * 3


def test_the_rest_that_discrete_actions_lack_is_printed_as_a_word_for_a_shell() -> None:
    action = ActionSpec("discrete", (2, 3))
    with pytest.raises(ConfigError) as error:
        rest_action(FallbackConfig(), action)
    word = shlex.split(str(error.value))[-1]
    asked = config.from_cli(DeployCommand, ["run=runs/demo", word])
    assert rest_action(asked.deploy.fallback, action).tolist() == [1, 0, 1, 0, 0]


@pytest.mark.parametrize("isolation", ISOLATION)
def test_a_run_starts_with_default_settings(run: Path, isolation: str) -> None:
    check_starts(run, isolation)


def test_commands_without_a_run(tmp_path: Path) -> None:
    for command in (deploy_command, export_command):
        code, said = told(command, f"run={tmp_path}")
        assert (code, said.startswith("error: ")) == (2, True)
        assert "not a run folder" in said
        assert told(command)[0] == 2
    (tmp_path / "config.yaml").write_text("seed: 0")
    said = told(deploy_command, f"run={tmp_path / 'export'}")[1]
    assert "export' does not exist" in said
    assert f"scripts/export.py run={tmp_path}, which makes" in said
    code, said = told(export_command, "run=x", "smaller=[int9]")
    assert code == 2
    assert "int8" in said


def test_a_changed_detector_is_an_error_before_the_loop(run: Path) -> None:
    folder = run / "detector"
    folder.mkdir()
    try:
        (folder / "detector.json").write_text('{"format": 1}')
        code, said = told(deploy_command, f"run={run}")
        assert code == 1
        assert "changed or is damaged" in said
    finally:
        (folder / "detector.json").unlink()
        folder.rmdir()


def test_a_real_agent_asks_for_training_and_its_data_is_whole(run: Path, tmp_path: Path) -> None:
    retrain = RetrainConfig(image=1e-6, window=5, keep=20, folder=str(tmp_path))
    seen: list[Any] = []
    settings = replace(SLOW, retrain=retrain)
    runtime = open_runtime(run, settings, on_retrain=seen.append)
    spec = spec_of(run)
    with runtime.start():
        for count in range(12):
            obs = {k: np.full(o.shape, count, np.uint8) for k, o in spec.seen.items()}
            one = runtime.act(obs, reward=0.5, is_first=count == 0)
            assert one.trusted, one
    assert [request.kind for request in seen] == ["image"]
    assert (tmp_path / "000000" / "replay").is_dir()
    assert f"from_run={run}" in seen[0].command
    assert 0 < seen[0].error < 1


def test_the_range_of_rewards_is_the_recorded_one(run: Path) -> None:
    assert reward_range(run) == pytest.approx(LENGTH - 1, abs=0.2)  # 1 ... LENGTH


def test_the_example_robot_runs_and_sees_the_dark(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[2] / "docs" / "examples" / "my_robot.py"
    spec = importlib.util.spec_from_file_location("my_robot", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.DARK_FROM = 5
    summary = module.main(str(run), ticks=12, period_ms=400.0)
    assert summary["ticks"] == 12
    assert set(summary["sources"]) <= {"policy", "fallback"}
    assert summary["log_lost"] == 0
    assert "latency, ms" in capsys.readouterr().out


class Flaky:
    """A robot whose camera and motors fail now and then."""

    def __init__(self, bench: Bench, dead: bool = False) -> None:
        self.bench, self.dead, self.cycle = bench, dead, -1
        self.sources: list[str] = []
        self.details: list[str] = []

    def sense(self) -> Sensed:
        self.cycle += 1
        if self.cycle == 2:
            raise OSError("the cable")
        return Sensed({key: value[0] for key, value in observation().items()})

    def send(self, decision: Any) -> None:
        self.sources.append(decision.source)
        self.details.append(decision.detail)
        if self.dead or self.cycle == 3:
            raise OSError("the motor")
        if self.cycle == 4:
            self.bench.clock.sleep(0.035)


def test_the_loop_survives_its_robot() -> None:
    bench = Bench(recover_ticks=1, fallback=FallbackConfig("zero"))
    robot = Flaky(bench)
    begun = bench.clock.now()
    report = run_loop(bench.runtime, robot, 8)
    assert robot.sources == ["policy"] * 2 + ["fallback"] + ["policy"] * 5
    assert robot.details[2] == "observation: OSError: the cable"
    assert report == (8, 1, 1)
    # Late once, it goes on at its period, and does not hurry after what it missed.
    assert bench.clock.now() - begun == pytest.approx(0.07 + 0.035, abs=1e-6)
    with pytest.raises(RunError, match="100 actions in a row"):
        run_loop(bench.runtime, Flaky(bench, dead=True))


def test_the_bench_measures_tick_idle_and_stall(run: Path) -> None:
    settings = Settings(str(run), ticks=30, period_ms=0.0, stall_ms=30.0, stall_every=2)
    found = {figure["measure"]: figure for figure in measure(settings)}
    assert set(found) == {"tick", "idle", "stall", "step with detector, CPU time",
                          "step, CPU time"}  # fmt: skip
    assert found["tick"]["ticks"] == found["idle"]["ticks"] == 30
    assert 0 < found["tick"]["p50"] <= found["tick"]["p99_9"] <= found["tick"]["max"]
    assert found["stall"]["stalls"] >= 1
    assert found["stall"]["answered_by_fallback"] >= 1
