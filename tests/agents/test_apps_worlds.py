"""What people do with a trained run, with a world that is no Dreamer's: a table."""

from __future__ import annotations

from pathlib import Path

import pytest

import agents
from agents.apps import reuse, rewards
from agents.apps.dreams.cli import dream_command
from agents.apps.play.cli import open_run
from agents.apps.play.session import Session
from agents.apps.play.show import shown
from agents.apps.rewards.cli import fit_reward_command
from agents.dyna import DynaQConfig
from agents.run.config import TrainConfig
from agents.run.train import train
from tests.agents.test_run_train import SILENT
from worldmodel.envs import EnvConfig
from worldmodel.replay import ReplayConfig

DREAM = ["context=3", "horizon=6", "play=3", "starts=6", "episodes=1", "futures=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dyna-Q on the Dyna maze; its world is a table whose features are the places."""
    folder = tmp_path_factory.mktemp("tabular") / "dyna"
    settings = TrainConfig(
        run=str(folder), steps=300, train_ratio=1.0, log_every=300, eval_every=0, video_every=0,
        final_episodes=1, eval_envs=1, device="cpu", threads=1,
        env=EnvConfig("dyna_maze", suite="grid", pixels=False, time_limit=20),
        replay=ReplayConfig(capacity=1000), agent=DynaQConfig(),
    )  # fmt: skip
    assert train(settings, SILENT) == 0
    return folder


def fit(run: Path, *words: str) -> tuple[int, str]:
    said: list[str] = []
    code = fit_reward_command(said.append, [f"run={run}", "updates=40", *words])
    return code, said[-1]


def test_its_dreams_are_reported_without_films(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    words = [f"run={run}", "source=replay", f"out={tmp_path}", *DREAM]
    assert dream_command(said.append, words) == 0, said
    assert "left out: the run has no images" in said[0]
    assert "the state MSE of what the model expects is 0" in said[1]  # recorded steps are known
    assert (tmp_path / "branches.csv").is_file()
    assert not list(tmp_path.glob("*latent_kl*"))  # a table cannot say how surprised it is


def test_one_can_step_into_its_dream(run: Path) -> None:
    world, recorded = open_run(run, "cpu", 0, SILENT)
    assert world.acts  # Dyna has a policy in the places of its table
    walk = Session(world, recorded)
    walk.start_recorded(0, 3)
    action = recorded.read(0)["action"][4]
    walk.act(action)
    numbers = shown(walk, "dream")["numbers"]
    assert numbers["goes_on"] == 1.0
    assert numbers["surprise"] is None
    assert walk.policy_action().sum() == 1


def test_heads_are_fitted_on_it_and_score_policies(run: Path) -> None:
    code, said = fit(run, "name=there", "reward=goal:0:5")
    assert code == 0, said
    assert rewards.read_head(run, "there").fitted["held_out"]["rows"] > 0
    policy = agents.load(run, "cpu")
    found = rewards.score(policy, {"there": 1.0}, run, episodes=2, num_envs=1)
    assert found.measured == {"there": False}
    assert len(found.returns) == 2


def test_what_a_table_cannot_do_costs_one_line(run: Path, tmp_path: Path) -> None:
    code, said = fit(run, "name=x", "reward=goal:0:5", "finetune=true", f"into={tmp_path}")
    assert code == 2
    assert "a TabularModel has no features that could change" in said
    lines: list[str] = []
    code = reuse.dreams_command(lines.append, [f"run={run}", f"to={tmp_path / 'new'}"])
    assert code == 2
    assert "A TabularModel has its own reward, and no head can pay in its place" in lines[-1]
    assert not (tmp_path / "new").exists()
