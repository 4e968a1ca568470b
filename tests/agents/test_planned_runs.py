"""Planners where a trained run is used: evaluated, deployed, exported, played with, drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import agents
from agents.apps.evaluate import evaluate_command
from agents.apps.plans import draw_decision, draw_tree
from agents.apps.play.cli import open_run, play_command
from agents.apps.play.session import Session
from agents.apps.play.show import shown
from agents.deploy.cli import DeployCommand, deploy_command, export_command
from agents.dyna import DynaQ
from agents.dyna.config import DynaQConfig
from agents.planning import PLANNERS, planner_class
from agents.planning.acting import Planned, make_planner, planned
from agents.planning.tally import UNPLANNED
from agents.planning.words import split_words
from agents.run.cli import train_command
from tests.agents.play_runs import left_right, run_folder
from tests.agents.small_runs import PATIENT, SILENT, check_evaluates_alike
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig, env_spec, make_env
from worldmodel.envs.table import world_table
from worldmodel.models.oracle import CartPole, TableOracle
from worldmodel.models.tabular import KnownTable, TabularConfig, TabularModel, TabularState
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

QUICK = ["planner=icem", "planner.horizon=3", "planner.candidates=8", "planner.elites=2"]
REST = ["deploy.fallback.rest=[1,0]", "pace=false", "deploy.warmup=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("planned") / "run", left_right())


def says(command: Any, *words: str) -> tuple[int, str]:
    said: list[str] = []
    code = command(said.append, words)
    return code, "\n".join(said)


def test_the_same_seed_is_the_same_evaluation(run: Path) -> None:
    settings, _ = split_words(QUICK)
    check_evaluates_alike(planned(agents.load(run, "cpu"), settings, 0))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("planner.bounds=5", r"'planner\.bounds' is a group .*: planner\.bounds\.budget=\.\.\., "),
        ("planner.horizn=5", r"Unknown key 'planner\.horizn'\. Did you mean 'planner\.horizon'"),
        ("planner.horizon=x", r"Wrong value for 'planner\.horizon'"),
        ("planner.horizon=0", r"^planner=icem: horizon is 0; allowed: 1 to"),
        ("planner.horizon", r"Cannot read 'planner\.horizon': .* --help planner=icem lists them"),
    ],
)
def test_a_wrong_word_of_a_planner_is_named_as_it_was_given(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_words(["planner=icem", word])


def test_an_evaluation_draws_one_decision_and_leaves_the_plain_one_alone(run: Path) -> None:
    plain = run / "evaluation"
    assert says(evaluate_command, f"run={run}", "episodes=1")[0] == 0
    before = {path: path.read_bytes() for path in plain.iterdir() if path.is_file()}
    assert {"returns.json", "returns.csv", "episode.mp4"} == {path.name for path in before}
    code, said = says(evaluate_command, f"run={run}", "episodes=3", "num_envs=1", *QUICK)
    assert code == 0, said
    for name in ("plan.png", "plan.gif"):
        assert f"one decision: {run}/evaluation/icem/{name}" in said
        assert (plain / "icem" / name).stat().st_size > 500
    about = json.loads((plain / "icem" / "returns.json").read_text())
    assert (about["planner"]["horizon"], about["search"]["iterations"]) == (3, 3)
    assert "plans, mean: " in said
    assert {path: path.read_bytes() for path in before} == before


def test_an_evaluation_says_where_nothing_was_planned(run: Path) -> None:
    words = [f"run={run}", "episodes=1", *QUICK, "planner.bounds.deadline_ms=1e-6"]
    code, said = says(evaluate_command, *words)
    assert code == 0, said
    about = json.loads((run / "evaluation" / "icem" / "returns.json").read_text())
    assert f"not planned: {about['unplanned']} decisions" in said
    assert "search" not in about


def test_a_plan_is_deployed_and_its_counters_are_told(run: Path, tmp_path: Path) -> None:
    words = [f"run={run}", f"to={tmp_path}", "episodes=1", *PATIENT, *REST, *QUICK]
    code, said = says(deploy_command, *words)
    assert code == 0, said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["search"]["model_steps"] >= 3 * 8
    planner = summary["planner"]
    assert (planner["name"], planner["horizon"]) == ("icem", 3)
    assert planner["bounds"]["deadline_ms"] == summary["deploy"]["soft_ms"]
    asked = DeployCommand(run="runs/demo")
    assert asked.folder(None) == Path("runs/demo/deployment")
    assert asked.folder(planner_class("icem").Config()) == Path("runs/demo/deployment/icem")
    assert summary["search"]["iterations"] > 1
    assert "plans, mean" in said
    code, said = says(deploy_command, *words, "planner.bounds.deadline_ms=0.001")
    assert code == 0, said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["unplanned"] == summary["ticks"]
    assert "search" not in summary
    assert "not planned" in said
    assert UNPLANNED in said


def test_a_table_is_planned_in_when_it_is_deployed(tmp_path: Path) -> None:
    """The observation of the warm-up is one that a table knows."""
    words = ["agent=dyna_q", "agent.table=counts", "env=frozenlake", "steps=60", f"run={tmp_path}"]
    assert says(train_command, *words)[0] == 0
    rest = ["deploy.fallback.rest=[1,0,0,0]", "pace=false", "deploy.warmup=2"]
    words = [f"run={tmp_path}", "episodes=1", "env.time_limit=9", *PATIENT, *rest]
    code, said = says(deploy_command, *words, "planner=mcts", "planner.simulations=4")
    assert code == 0, said
    assert "plans, mean" in said


def test_a_tree_search_asks_the_agent_that_it_plans_for(run: Path) -> None:
    policy, settings = agents.load(run), PLANNERS["mcts"].Config(simulations=4)
    assert make_planner(settings, policy, 0).config.rule == "puct"
    assert make_planner(settings, policy, 0, trusts=False).config.rule == "ucb1"
    chosen = PLANNERS["mcts"].Config(simulations=4, rule="gumbel")
    assert make_planner(chosen, policy, 0).config.rule == "gumbel"
    assert planner_class("mcts")(policy.spec.action, settings).config.rule == "ucb1"


@pytest.mark.parametrize("command", [evaluate_command, deploy_command, play_command])
def test_help_shows_the_settings_of_a_planner_that_is_named(command: Any) -> None:
    code, said = says(command, "--help", "planner=icem")
    assert code == 0
    for key in ("horizon=30", "bounds.deadline_ms=0.0", "cache.size=0"):
        assert f"\n  planner.{key}\n" in said
    assert "planner.name" not in said
    assert "\n  planner." not in says(command, "--help")[1]


def test_no_graph_holds_a_search(run: Path) -> None:
    code, said = says(export_command, f"run={run}", "planner=icem")
    assert (code, said.count("\n")) == (2, 0)
    assert re.search("A plan is a search, which no graph holds. .*deploy.py run=RUN", said)


def test_the_play_page_shows_the_plan(run: Path) -> None:
    planner, _ = split_words(QUICK)
    world, recorded = open_run(run, "cpu", 0, SILENT, planner)
    walks = []
    for _ in range(2):
        walk = Session(world, recorded, 0)
        walk.start_recorded(0, 2)
        action = walk.policy_action()
        walk.act(action)
        parts = shown(walk, "dream")["pictures"]
        assert [part["kind"] for part in parts] == ["dream", "plan"]
        walks.append(parts[1]["src"])
        walk.undo(1)
        assert [part["kind"] for part in shown(walk, "dream")["pictures"]] == ["dream"]
    assert walks[0] == walks[1]  # a seed is a plan


def test_a_table_is_a_world_to_plan_in() -> None:
    lake = EnvConfig("FrozenLake-v1", pixels=False, kwargs={"is_slippery": False})
    env = make_env(lake)
    spec = env_spec(env)
    env.close()
    world = TableOracle(spec, world_table(lake))
    agent = DynaQ(spec, DynaQConfig(gamma=0.9, backup="expected"), torch.device("cpu"))
    pairs = torch.arange(16 * 4)
    places = TabularState(torch.eye(16)[pairs // 4])
    after, reward, cont = world.step(places, torch.eye(4)[pairs % 4])
    alive = ~torch.isin(pairs // 4, torch.tensor([5, 7, 11, 12, 15]))  # holes and the goal
    found = (pairs // 4, pairs % 4, reward, after.place.argmax(-1), cont == 0)
    agent.model.record(*(x[alive].numpy() for x in found))
    agent.plan(10_000)
    planner = planner_class("mcts")(
        spec.action, PLANNERS["mcts"].Config(rule="puct", simulations=20)
    )
    policy, place, won = Planned(agent, planner), torch.eye(16)[[0]], 0.0
    state = policy.initial(1)
    for _ in range(6):  # the shortest way
        action, state, _ = policy.act({agent.model.key: place.numpy()}, state, "mode")
        (place,), reward, cont = world.step(TabularState(place), torch.from_numpy(action))
        won += float(reward)
    assert won == 1.0
    assert not cont.any()
    assert policy.model is not agent.model


def test_what_was_never_tried_is_not_planned() -> None:
    spec = EnvSpec({"at": ObsSpec("discrete", (3,), (3,))}, ActionSpec("discrete", (2,)))
    table = TabularModel(spec, TabularConfig("counts"))
    table.record([0, 0], [1, 1], [0.5, 0.5], [1, 1], [False, False])
    known = KnownTable(table)
    state = known.observe(known.initial(3), {"at": torch.eye(3)}, *2 * [torch.zeros(0)])
    assert known.action_mask(state).tolist() == [[0, 1], [0, 0], [0, 0]]
    found = known.step(state, torch.tensor([[0.0, 1], [0, 1], [1, 0]]))
    assert found.state.place.argmax(-1).tolist() == [1, 1, 2]
    assert found.reward.tolist() == [0.5, 0.0, 0.0]
    with pytest.raises(ValueError, match="never tried"):
        table.step(state, torch.tensor([[1.0, 0]] * 3))


def test_a_tree_is_drawn(tmp_path: Path) -> None:
    world = CartPole(0.99)
    planner = planner_class("mcts")(world.spec.action, PLANNERS["mcts"].Config(simulations=20))
    plan = planner.plan(world, world.initial(2))
    assert plan.sequence is None
    drawn = draw_tree(plan.searched, 1)
    assert drawn.dtype == np.uint8
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10
    assert draw_decision(tmp_path, world, world.spec, world.initial(1), plan) == [
        tmp_path / "tree.png"
    ]


def test_no_line_of_a_tree_crosses_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines and labels, each drawn by themselves, have no pixel in common."""
    planner = planner_class("mcts")(ActionSpec("discrete", (2,)), PLANNERS["mcts"].Config())
    world = CartPole(0.99)
    plan = planner.plan(world, world.initial(1))
    drawn: dict[str, np.ndarray] = {}
    for name in ("line", "putText"):

        def draw(
            out: np.ndarray, *words: Any, call: Any = getattr(cv2, name), to: str = name
        ) -> None:
            call(drawn.setdefault(to, np.zeros(out.shape, np.uint8)), *words)

        monkeypatch.setattr(cv2, name, draw)
    draw_tree(plan.searched)
    lines, labels = (drawn[name].any(-1) for name in ("line", "putText"))
    assert lines.sum() > labels.sum() > 1000
    assert not (lines & labels).any()
