"""The commands: every preset fits, every setting is used, and mistakes cost one line."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import agents
from agents.apps.evaluate import EvaluateConfig, evaluate_command
from agents.mpc import MPCConfig
from agents.planning import PLANNERS
from agents.run import cli
from agents.run.config import TrainConfig
from worldmodel import config
from worldmodel.compose import compose_config

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(path.stem for path in (cli.CONFIGS / "experiment").glob("*.yaml"))
SIZES = sorted(path.stem for path in (cli.CONFIGS / "size").glob("*.yaml"))
# (deter, hidden, classes, depth, units) as published.
PUBLISHED = {
    "1m": (512, 64, 4, 4, 64),
    "12m": (2048, 256, 16, 16, 256),
    "25m": (3072, 384, 24, 24, 384),
    "50m": (4096, 512, 32, 32, 512),
    "100m": (6144, 768, 48, 48, 768),
    "200m": (8192, 1024, 64, 64, 1024),
    "400m": (12288, 1536, 96, 96, 1536),
}


def composed(*words: str) -> TrainConfig:
    cli.register(words)
    return config.build(compose_config(cli.CONFIGS, "train", words), TrainConfig)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """The exit code of scripts/train.py with these words, and what it said."""
    said: list[str] = []
    monkeypatch.setattr(sys, "argv", ["train.py"])  # where Hydra reads them
    return cli.train_command(said.append, words), "\n".join(said)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_fits(name: str) -> None:
    built = composed(f"experiment={name}", *(["env.id=X"] if name == "none" else []))
    assert built.agent.name in agents.AGENTS
    assert built.folder.parts[0] == "runs"


@pytest.mark.parametrize("name", agents.AGENTS)
def test_every_agent_has_its_numbers(name: str) -> None:
    assert composed(f"agent={name}", "experiment=none", "env.id=X").agent.name == name


@pytest.mark.parametrize("name", [p.stem for p in (cli.CONFIGS / "env").glob("*.yaml")])
def test_every_environment_fits(name: str) -> None:
    words = {"gymnasium": ["env.id=X"], "none": ["offline=X"]}.get(name, [])
    assert composed("experiment=none", f"env={name}", *words).env.id != "???"


@pytest.mark.parametrize("name", SIZES)
def test_every_size_fits(name: str) -> None:
    model = composed(f"size={name}").agent.model
    if name in PUBLISHED:
        found = (model.deter, model.hidden, model.classes, model.depth, model.units)
        assert found == PUBLISHED[name]
        assert model.groups == 32


def test_all_published_sizes_are_there() -> None:
    assert set(PUBLISHED) <= set(SIZES)


def test_the_default_is_pendulum_from_pixels() -> None:
    built = composed()
    assert built.env.id == "Pendulum-v1"
    assert built.env.pixels
    assert not built.env.state
    assert built.agent.name == "dreamer"


def test_an_explicit_choice_beats_the_experiment() -> None:
    built = composed("experiment=dmc_vision", "size=1m", "env.id=cheetah_run", "steps=7")
    assert built.agent.model.deter == 512
    assert (built.env.id, built.env.suite, built.steps) == ("cheetah_run", "dmc", 7)


@pytest.mark.parametrize(
    ("name", "repeat", "ratio", "deter", "envs"),
    [
        ("dmc_vision", 1, 256, 8192, 16),
        ("dmc_vision_2023", 2, 512, 2048, 1),
        ("dmc_proprio", 1, 1024, 512, 16),
        ("dmc_proprio_2023", 2, 512, 2048, 1),
    ],
)
def test_dmc_is_as_published(name: str, repeat: int, ratio: int, deter: int, envs: int) -> None:
    built = composed(f"experiment={name}")
    assert built.env.image_size == [64, 64]
    assert built.env.pixels == name.startswith("dmc_vision")
    assert (built.env.action_repeat, built.env.num_envs) == (repeat, envs)
    assert built.steps * repeat == 1_000_000
    assert (built.train_ratio, built.prefill, built.agent.model.deter) == (ratio, 0, deter)
    agent = built.agent
    assert (agent.batch_size, agent.batch_length, agent.horizon) == (16, 64, 15)
    assert built.replay.capacity >= built.steps  # nothing is forgotten within the run


def test_somebody_elses_agent_needs_no_line_here() -> None:
    name = "tests.agents.counting_agent:CountingAgent"
    built = composed("experiment=none", f"agent={name}", "agent.width=4", "env.id=X")
    assert (built.agent.name, built.agent.width) == (name, 4)


def test_an_agent_with_the_config_of_another_is_refused() -> None:
    """A run finds the class by Config.name, and would train the other one."""
    heir = "tests.agents.counting_agent:InheritsItsConfig"
    with pytest.raises(config.ConfigError, match=r"its Config.name is '.*CountingAgent'. Give Inh"):
        composed("experiment=none", f"agent={heir}", "env.id=X")
    assert cli.own_config("agents.dqn:DQN")().name == "dqn"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent=dreamr"], "Unknown agent 'dreamr'. Known: dqn, dreamer, dyna_2"),
        (["env=dcm"], "Did you mean 'dmc'?"),
        (["size=13m"], "Unknown size '13m'. Known: 100m, 12m"),
        (["experiment=cartpol"], "Did you mean 'cartpole'?"),
        (["agent.model.detr=3"], "Unknown key 'agent.model.detr'. Did you mean"),
        (["agent=random", "agent.horizon=3"], "Unknown key 'agent.horizon'."),
        (
            ["agent=random", "experiment=pendulum"],
            "configs/experiment/pendulum.yaml sets 'agent.batch_size', which does not exist",
        ),
        (["agent=random", "experiment=dmc_vision"], "experiment/dmc_vision.yaml: 'size' is no"),
        (
            ["agent=random", "size=1m"],
            "'size' is no choice beside the others; size= goes with agent",
        ),
        (["world=gaussian"], "world= goes with agent=mbpo, agent=mpc. Leave it out, or"),
        (
            ["agent=muzero", "experiment=pets_small"],
            "pets.yaml: 'world' is no choice beside the others; world= goes with agent=mbpo, "
            "agent=mpc. Choose another experiment, or choose one of those.",
        ),
        (["agent=tdmpc2", "size=1m"], "beside them. Did you mean size=tdmpc2/1m?"),
        (["size=huge"], "50m, tdmpc2/19m, tdmpc2/1m"),
        (["size=12"], "A choice of a group is a name"),
        (
            ["agent=mbpo", "agent.dqn.batch_size=3"],
            "'agent.dqn.batch_size=3' is a setting of learner dqn, but agent.learner is sac",
        ),
        (
            ["agent=mpc", "env.id=X", "agent.planner=cem", "agent.icem.horizon=3"],
            "agent.planner is cem, which does not read it. Leave it out, or set",
        ),
        (["env.id=Pendulm-v1"], "Did you mean 'Pendulum-v1'"),
        (["env.image_size=[30,30]"], "image_size is [30, 30]"),
        (["device=abacus"], "Unknown device 'abacus'"),
        (["replay.capacity=1e14"], "Choose a smaller capacity"),
        (["agent=nowhere.module:Agent"], "no module 'nowhere.module'"),
    ],
)
def test_mistakes_cost_one_clear_error_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = command(monkeypatch, "run=made", *words)
    assert code == 2
    assert said.splitlines()[-1].startswith("error: ")
    assert message in said
    assert not (tmp_path / "made" / "config.yaml").exists()


def test_a_sweep_over_planners_reads_the_settings_of_all() -> None:
    words, settings = ["agent.icem.horizon=3"], MPCConfig()
    with pytest.raises(config.ConfigError, match=r"agent.planner is cem"):
        cli.check_heard(words, settings, [])
    cli.check_heard(words, settings, ["agent.planner"])


def test_train_then_evaluate_from_a_shell(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    train, play = str(ROOT / "scripts" / "train.py"), str(ROOT / "scripts" / "evaluate.py")
    done = run(train, "agent=random", "run=r", "steps=30", "final_episodes=2", "threads=1")
    assert done.returncode == 0, done.stderr
    assert "return" in done.stdout
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["agent_steps"] == 30
    assert [path.name for path in tmp_path.iterdir() if path.name != ".cache"] == ["r"]
    done = run(play, "run=r", "episodes=3", "seed=1")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "r" / "evaluation" / "returns.json").read_text())
    assert len(written["eval_returns"]) == written["eval_episodes"] == 3
    assert f"{written['eval_return_mean']:.1f} ±" in done.stdout
    assert (tmp_path / "r" / "evaluation" / "episode.mp4").stat().st_size > 0
    rows = (tmp_path / "r" / "evaluation" / "returns.csv").read_text().splitlines()
    assert rows[0] == "episode,return,length"
    assert len(rows) == 4
    said: list[str] = []
    assert evaluate_command(said.append, ["run=nowhere"]) == 2
    assert said[0].startswith("error: The folder 'nowhere' does not exist")


def test_a_sweep_runs_one_after_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", "agent=random", "seed=1,2", "steps=5", "final_episodes=1"]
    code, _ = command(monkeypatch, *words)
    assert code == 0
    made = sorted(path.parent.name for path in tmp_path.rglob("summary.json"))
    assert made == ["Pendulum-v1-random-1", "Pendulum-v1-random-2"]
    code, _ = command(monkeypatch, *words, "run=else/where")
    assert code == 0
    made = sorted(path.parent.name for path in Path("else/where").rglob("summary.json"))
    assert made == ["seed=1", "seed=2"]


def test_a_sweep_writes_where_its_runs_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["agent=random", "-m", "steps=5", "final_episodes=1", "run=else"]  # wherever flags are
    assert command(monkeypatch, *words)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["else"]
    assert Path("else/summary.json").is_file()


def dataclasses_under(cls: Any) -> Iterator[Any]:
    """A config class and every config class that its fields hold."""
    yield cls
    for hint in get_type_hints(cls).values():
        for inner in (hint, *getattr(hint, "__args__", ())):
            if is_dataclass(inner):
                yield from dataclasses_under(inner)


def test_every_setting_is_used() -> None:
    read: set[str] = set()
    for folder in ("worldmodel", "agents", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    read.add(node.attr)
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                    read |= {a.value for a in node.args[1:2] if isinstance(a, ast.Constant)}
    roots = [TrainConfig, EvaluateConfig, *(planner.Config for planner in PLANNERS.values())]
    roots += [agents.agent_class(name).Config for name in agents.AGENTS]  # type: ignore[attr-defined]
    unused = {
        f"{cls.__name__}.{field.name}"
        for root in roots
        for cls in dataclasses_under(root)
        for field in fields(cls)
        if field.name not in read
    }
    assert unused == set()
