"""What is maximised is what was asked for, on every road that settings take into a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import agents
from agents.apps import reuse, rewards
from agents.apps.rewards.cli import fit_reward_command
from agents.run import cli
from agents.run.config import TrainConfig
from agents.run.report import objective
from agents.run.train import build
from worldmodel import config
from worldmodel.compose import compose_config, launch
from worldmodel.config import ConfigError
from worldmodel.dream import DreamEnv, starts_from

pytestmark = pytest.mark.usefixtures("no_pictures")
ASKED = {"cont": 1.0}  # a head that every model has, and no default's
WORD = "agent.model.control={cont: 1.0}"
TINY = (
    "experiment=none", "env=gymnasium", "env.id=tests.envs_for_tests:LeftRightEnv", "steps=40",
    "env.kwargs={size: 32}", "env.image_size=[32,32]", "prefill=20", "train_ratio=8", "seed=3",
    "eval_every=0", "final_episodes=1", "eval_envs=1", "video_every=0", "threads=1", "device=cpu",
    "replay.capacity=500", "agent.batch_size=2", "agent.batch_length=8", "agent.horizon=3",
    "agent.model.deter=32", "agent.model.hidden=16", "agent.model.groups=4", "agent.model.depth=4",
    "agent.model.units=16", "agent.optim.warmup=1",
)  # fmt: skip


def composed(*words: str) -> TrainConfig:
    cli.register()
    return config.build(compose_config(cli.CONFIGS, "train", words), TrainConfig)


def control(settings: TrainConfig) -> Mapping[str, float]:
    found: Mapping[str, float] = settings.agent.model.control
    return found


# Roads to settings.


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """The word that lets Hydra see a user's own files, one of which builds on another's control."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [explore, _self_]\n"
        "agent: {model: {control: {cont: 1.0}, heads: {height: {target: x}}}}\n"
    )
    return f"hydra.searchpath=[file://{tmp_path}]"


def test_words_and_files_replace_a_map(mine: str) -> None:
    assert control(composed("experiment=explore", WORD)) == ASKED
    found = composed(mine, "experiment=mine")
    assert control(found) == ASKED
    # A head is a section of settings: named, it is added or changed, and the others stay.
    assert list(found.agent.model.heads) == ["reward", "cont", "height"]
    assert not found.agent.model.heads["reward"].trains_latent
    with pytest.raises(ConfigError, match=r"is \{reward: 1.0\}, without 'up'"):
        composed("agent.model.control.up=1")


def test_each_run_of_a_sweep_has_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found: list[Any] = []
    words = ["-m", "agent.model.control={cont: 1.0},{reward: 0.0}"]
    cli.register()

    def job(given: Any) -> int:
        found.append(control(config.build(given, TrainConfig)))
        return 0

    assert launch(job, cli.CONFIGS, "train", words, found.append) == 0
    assert found == [ASKED, {"reward": 0.0}]


# Roads through runs.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of scripts/train.py that was asked for `ASKED`, and a fitted head beside it."""
    folder = tmp_path_factory.mktemp("control") / "run"
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        assert cli.train_command(said.append, [*TINY, f"run={folder}", WORD]) == 0, said
        assert "maximised: cont" in said
        patch.setattr("agents.apps.rewards.report.write_files", lambda *given: None)
        (folder.parent / "tasks.py").write_text(
            "def up(observation, action, next_observation, info):\n    return float(action == 1)\n"
        )
        words = [f"run={folder}", "name=up", f"reward={folder.parent / 'tasks.py'}:up", "updates=5"]
        assert fit_reward_command(said.append, words) == 0, said
    return folder


def begun(settings: TrainConfig) -> Mapping[str, float]:
    """What the agent of a run that begins, or goes on, maximises; it says so."""
    said: list[str] = []
    trainer = build(settings, said.append)
    trainer.close()
    found = trainer.state.agent.control
    assert f"maximised: {objective(found, None)}" in said
    assert trainer.state.agent.model.config.control == found
    return found


def test_a_run_and_all_that_reads_it_keeps_its_control(run: Path, tmp_path: Path) -> None:
    assert json.loads((run / "summary.json").read_text())["maximised"] == "cont"
    settings = reuse.run_settings(run)
    assert control(settings) == agents.load(run, "cpu").agent.control == ASKED
    assert begun(replace(settings, steps=48)) == ASKED  # continued
    warm = replace(settings, run=str(tmp_path / "warm"), from_run=str(run))
    assert begun(warm) == ASKED
    model = replace(settings.agent.model, control={"reward": 2.0})
    other = replace(warm, run=str(tmp_path / "b"), agent=replace(settings.agent, model=model))
    assert begun(other) == {"reward": 2.0}
    assert rewards.with_heads(run, {"up": 2.0}).config.control == {"up": 2.0}


def test_dreams_pay_what_was_asked_whatever_else_is_given(run: Path) -> None:
    asked = reuse.DreamConfig(str(run), {"up": 1.0}, updates=1)
    words = ["log_every=1", "seed=1", "agent.horizon=2", "agent.model.heads.up.scale=0"]
    for given in (words[:1], words):
        assert control(reuse.dream_settings(asked, given)) == {"up": 1.0}
    with pytest.raises(ConfigError, match="the command's own setting"):
        reuse.dream_settings(asked, ["agent.model.control={reward: 1.0}"])


def test_an_actor_out_of_dreams_is_loaded_with_its_control(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    words = [f"run={run}", f"to={tmp_path}", "control={up: 2.0}", "updates=1", "log_every=1"]
    assert reuse.dreams_command(said.append, words) == 0, said
    assert "maximised: 2 x up" in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["maximised"], summary["control"]["weights"]) == ("2 x up", {"up": 2.0})
    policy = agents.load(tmp_path, "cpu")
    assert policy.model.config.control == {"up": 2.0}
    dream = DreamEnv(policy.model, policy.spec, starts_from(agents.load_replay(run)))
    dream.reset(seed=0)
    paid = dream.step(dream.action_space.sample())[1]
    with torch.no_grad():
        assert paid == pytest.approx(2 * policy.model.heads["up"].predict(dream.state.feat).item())
    assert begun(reuse.run_settings(tmp_path)) == {"up": 2.0}  # continued
