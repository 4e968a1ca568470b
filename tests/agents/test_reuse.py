"""A model used again: an actor for another reward, out of dreams alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import agents
from agents.apps import reuse
from agents.apps.evaluate import evaluate_command
from agents.run.train import train
from scripts.studies.bench_faults import Settings, small_run
from tests.agents.test_run_train import SILENT, summary_of
from worldmodel import checkpoint, config

FUNCTION = """
def still(observation, action, next_observation, info):
    return -abs(float(next_observation["state"][2]))
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run on Pendulum that also recorded its state, and a function of it."""
    folder = tmp_path_factory.mktemp("reuse")
    (folder / "tasks.py").write_text(FUNCTION)
    config = small_run(folder / "run", Settings(steps=136))
    train(replace(config, env=replace(config.env, record=["state"]), eval_every=0), SILENT)
    return folder


def dream(old: Path, *words: str) -> tuple[int, list[str]]:
    said: list[str] = []
    return reuse.dreams_command(said.append, [f"run={old / 'run'}", *words]), said


def model_of(folder: Path) -> dict[str, torch.Tensor]:
    module = checkpoint.load(folder)["agent"]["module"]
    return {k: v for k, v in module.items() if k.startswith("model.")}


def test_an_actor_from_dreams_is_an_ordinary_run(old: Path, tmp_path: Path) -> None:
    to = tmp_path / "new"
    words = (f"to={to}", "control={reward: 2.0}", "updates=6", "log_every=3", "agent.horizon=3")
    code, said = dream(old, *words)
    assert code == 0, said
    summary = summary_of(to)
    assert (summary["agent_steps"], summary["updates"]) == (0, 6)
    assert summary["config"]["agent.horizon"] == 3
    control = summary["control"]
    assert control["measured"] == {"reward": True}
    assert control["score_mean"] == pytest.approx(2 * summary["eval_return_mean"])
    before, after = model_of(old / "run"), model_of(to)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ours = checkpoint.load(to)["agent"]["module"]
    theirs = checkpoint.load(old / "run")["agent"]["module"]
    assert not torch.equal(ours["actor.out.weight"], theirs["actor.out.weight"])
    assert (to / "dream.png").stat().st_size > 0
    policy = agents.load(to)
    assert policy.model.config.control == {"reward": 2.0}
    lines = [json.loads(line) for line in (to / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/actor" in line] == [3, 6]
    assert not any("loss/image" in line for line in lines)
    code, said = dream(old, *words)
    assert code == 0
    assert any("finished already" in text for text in said)


def test_a_fitted_head_pays_the_new_actor_and_its_function_judges_it(
    old: Path, tmp_path: Path
) -> None:
    from agents.apps.rewards.cli import fit_reward_command

    said: list[str] = []
    words = ["name=still", f"reward={old / 'tasks.py'}:still", "updates=20"]
    assert fit_reward_command(said.append, [f"run={old / 'run'}", *words]) == 0, said
    to = tmp_path / "still"
    code, said = dream(old, f"to={to}", "control={still: 1.0, reward: 0.1}", "updates=3")
    assert code == 0, said
    control = summary_of(to)["control"]
    assert control["measured"] == {"still": True, "reward": True}
    assert set(control["parts"]) == {"still", "reward"}
    fitted = [k for k in model_of(to) if k.startswith("model.heads.still.")]
    assert fitted
    assert agents.load(to).model.config.heads["still"].target == ""


def test_stopped_and_continued_it_is_the_same(old: Path, tmp_path: Path) -> None:
    asked = reuse.DreamConfig(str(old / "run"), {"reward": 1.0}, str(tmp_path / "a"), 6)
    settings = reuse.dream_settings(asked)
    train(settings, SILENT)
    parts = replace(settings, run=str(tmp_path / "b"))
    train(replace(parts, updates=2), SILENT)
    train(parts, SILENT)
    one, other = (checkpoint.load(tmp_path / name)["agent"] for name in "ab")
    assert all(torch.equal(one["module"][k], other["module"][k]) for k in one["module"])
    assert torch.equal(one["optim"]["mean"], other["optim"]["mean"])


def test_without_a_place_it_lies_beside_the_old_run(old: Path) -> None:
    asked = reuse.DreamConfig(run=str(old / "run"), control={"reward": 1.0})
    settings = reuse.dream_settings(asked)
    assert settings.folder == old / "run-reward"
    assert settings.updates == replace(settings, updates=0).budget == round(96 * 4 / 32)
    assert settings.load_parts == ["encoder", "core", "decoder", "heads", "ensemble"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["control={spin: 1.0}"], "Unknown head 'spin'"),
        (["control={reward: .nan}"], "give a number"),
        (["agent.horizn=3"], "Did you mean 'agent.horizon'"),
        (["horizon=3"], "Unknown key 'horizon'"),
        (["updates=many"], "updates"),
        (["run=nowhere"], "The folder 'nowhere' does not exist"),
        (["control={disagreement: 1.0}"], "disagreement"),
    ],
)
def test_what_cannot_be_ends_before_training(
    old: Path, tmp_path: Path, words: list[str], expected: str
) -> None:
    said: list[str] = []
    given: list[Any] = [f"to={tmp_path}", *words]
    if not any(word.startswith("run=") for word in words):
        given.append(f"run={old / 'run'}")
    assert reuse.dreams_command(said.append, given) == 2
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert expected in said[0]
    assert not checkpoint.exists(tmp_path)


def test_control_is_what_is_given_and_the_reward_where_nothing_is() -> None:
    def asked(*words: str) -> dict[str, float]:
        return config.from_cli(reuse.DreamConfig, ["run=x", *words]).control

    assert asked() == {"reward": 1.0}
    assert asked("control={spin: 1.0}") == {"spin": 1.0}
    assert asked("control={spin: 1.0, effort: -0.1}") == {"spin": 1.0, "effort": -0.1}
    assert asked("control.spin=2") == {"spin": 2.0}


def evaluated(old: Path, *words: str) -> tuple[int, list[str]]:
    said: list[str] = []
    few = ["episodes=2", "num_envs=2", f"run={old / 'run'}"]
    return evaluate_command(said.append, [*few, *words]), said


def test_a_planner_acts_in_the_world_of_a_run(old: Path) -> None:
    """By the task's reward with the critic behind it, and by a fitted head without any actor."""
    small = ["planner.horizon=2", "planner.candidates=6", "planner.elites=2"]
    code, said = evaluated(old, "planner=cem", *small, "planner.policy_candidates=2")
    assert code == 0, said
    about = json.loads((old / "run" / "evaluation" / "cem" / "returns.json").read_text())
    assert about["planner"]["horizon"] == 2
    again = evaluated(old, "planner=cem", *small, "planner.policy_candidates=2")[1]
    returns = [text for text in said if "over 2 episodes" in text]
    assert returns  # the planner's numbers are its own, and seeded
    assert returns == [text for text in again if "over 2 episodes" in text]
    code, said = evaluated(old, "planner=icem", *small, "control={reward: 2.0}")
    assert code == 0, said
    assert any("by control" in text for text in said)


@pytest.mark.parametrize(("words", "wanted"), [
    (["planner=icme"], "Did you mean 'icem'"),
    (["planner.horizon=3"], "give planner=NAME, once"),
    (["planner=cem", "planner=icem"], "give planner=NAME, once"),
    (["planner=cem", "planner.name=icem"], "give planner=NAME, once"),
    (["planner=cem", "planner.horizn=3"], "horizon"),
    (["planner=mcts"], "mcts searches discrete"),
    (["planner=cem", "planner.bounds.caution=1"], "knows its uncertainty"),
    (["planner=cem", "planner.bounds.budget=3"], "one rollout takes 12"),
    (["planner=icem", "control={rewrd: 1.0}"], "reward"),
])  # fmt: skip
def test_a_planner_that_cannot_work_is_one_line(old: Path, words: list[str], wanted: str) -> None:
    code, said = evaluated(old, *words)
    assert code == 2
    assert wanted in said[-1]
