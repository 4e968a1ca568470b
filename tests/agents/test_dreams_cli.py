"""scripts/dream.py end to end on small untrained runs, and what it says to wrong input."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import imageio.v2 as imageio
import numpy as np
import pytest
import torch

import agents
from agents.apps.dreams.cli import dream_command
from agents.apps.dreams.episodes import DreamConfig, experience
from agents.base import Policy
from agents.random import Random, RandomConfig
from tests.agents.play_runs import counting, left_right, run_folder
from worldmodel.config import keys_of
from worldmodel.envs import EnvConfig

SMALL = ["context=3", "horizon=6", "play=3", "starts=6", "episodes=2", "futures=2"]
VECTORS = EnvConfig(
    id="tests.envs_for_tests:CountingEnv", kwargs={"length": 14}, pixels=False, state=True
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("runs") / "pixels", left_right(length=14))


@pytest.fixture(scope="module")
def vector_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("runs") / "vectors", VECTORS)


@pytest.fixture(scope="module")
def report(run: Path) -> tuple[Path, str]:
    """The folder that the command makes by itself, and what it said."""
    code, said = command(f"run={run}", *SMALL)
    assert code == 0, said
    return run / "dreams", said


@pytest.fixture(scope="module")
def replayed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on recorded episodes, made while no environment could be."""
    out = tmp_path_factory.mktemp("out") / "replayed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.apps.dreams.episodes.evaluate", None)
        code, said = command(f"run={run}", *SMALL, "source=replay", "pick=[2,0]", f"out={out}")
    assert code == 0, said
    assert "recorded episodes, which it learned from" in said
    return out


class Blind:
    """A world that predicts as another does, and can do nothing else."""

    def __init__(self, world: Any) -> None:
        self.discount, self.initial = world.discount, world.initial
        self.observe, self.step = world.observe, world.step


def command(*words: Any) -> tuple[int, str]:
    said: list[str] = []
    code = dream_command(said.append, [str(word) for word in words])
    return code, "\n".join(said)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_writes_all_that_it_promises(report: tuple[Path, str]) -> None:
    folder, said = report
    names = {path.name for path in folder.iterdir()}
    stems = [f"strip_{i}" for i in range(2)] + ["branches"]
    plots = ["image_mse", "image_ssim", "reward_error", "continue_error", "latent_kl", "return"]
    assert names == {
        *(f"{stem}{suffix}" for stem in stems for suffix in (".png", ".gif", ".mp4")),
        *(f"{name}_{plot}{suffix}" for name in ("honesty", "honesty_random")
          for plot in plots for suffix in (".png", ".csv")),
        "branches.csv", "branches_numbers.png", "report.html", "summary.json",
    }  # fmt: skip
    found = json.loads((folder / "summary.json").read_text())
    assert found["starts_used"] == 6
    assert found["headline"]["step"] == 6  # no longer than the horizon
    assert found["headline"]["ratio"] == pytest.approx(
        found["headline"]["repeated"] / found["headline"]["model"]
    )
    assert f"a ratio of {found['headline']['ratio']:.2f}" in said
    beside = found["under_random_actions"]
    assert beside["episodes_are"].startswith("3 fresh episodes of random actions")
    assert beside["starts_used"] == 6
    assert len(found["mean_errors"]["Image MSE"]["mean of its dreams"]) == 6
    assert len(table(folder / "honesty_image_mse.csv")) == 24  # four curves
    assert len(table(folder / "honesty_return.csv")) == 6
    rows = table(folder / "branches.csv")
    assert len(rows) == 4 * 6
    assert {"actions", "future", "step", "reward", "cont", "value"} == set(rows[0])
    html = (folder / "report.html").read_text()
    assert html.count("data:image/gif") == 3
    assert not re.search(r"https?://|<script", html)


def test_films_have_a_frame_for_every_row(report: tuple[Path, str]) -> None:
    folder, _ = report
    assert len(imageio.mimread(folder / "strip_0.gif")) == 9
    assert len(imageio.mimread(folder / "branches.gif")) == 7  # what is real, and six steps
    video = cv2.VideoCapture(str(folder / "strip_0.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 9
    picture = cv2.imread(str(folder / "strip_0.png"))
    assert (picture == (0, 140, 255)).all(-1).any()  # the mark, blue first


@pytest.mark.usefixtures("no_pictures")
def test_the_same_seed_repeats_itself(run: Path, report: tuple[Path, str], tmp_path: Path) -> None:
    torch.rand(5)
    assert command(f"run={run}", *SMALL, f"out={tmp_path}")[0] == 0
    for name in ("strip_1.gif", "branches.png", "branches.csv", "honesty_return.csv"):
        assert (tmp_path / name).read_bytes() == (report[0] / name).read_bytes()


def test_recorded_episodes_are_shown_by_number_as_they_happened(run: Path, replayed: Path) -> None:
    assert {path.name for path in replayed.glob("*.gif")} == {
        "strip_2.gif", "strip_0.gif", "branches.gif",
    }  # fmt: skip
    replay = agents.load_replay(run)
    stream, start, stop = replay.episodes(complete=True)[0]
    truth = replay.rows(stream, start, stop)["image"][2]  # the last of three context frames
    strip = imageio.imread(replayed / "strip_0.png")
    line = (strip == (255, 140, 0)).all(-1).all(0).argmax()
    shown = strip[15 : 15 + 96, line - 96 : line]
    assert np.array_equal(shown[::3, ::3], truth)


@pytest.mark.usefixtures("no_pictures")
def test_random_play_needs_no_replay_and_changes_nothing_in_the_run(
    run: Path, tmp_path: Path
) -> None:
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "replay")

    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}

    before = state()
    code, said = command(f"run={copy}", *SMALL, "source=replay", f"out={out}")
    assert code == 2
    assert said.startswith("error: ")
    assert "replay" in said
    code, said = command(f"run={copy}", *SMALL, "mode=random", f"out={out}")
    assert code == 0
    assert "3 fresh episodes of random actions, which the model never saw" in said
    found = json.loads((out / "summary.json").read_text())
    assert set(keys_of(DreamConfig)) - {"pick"} <= set(found)
    assert found["mode"] == "random"
    assert found["under_random_actions"] is None
    assert state() == before


@pytest.mark.usefixtures("no_pictures")
def test_vectors_are_drawn_as_curves(vector_run: Path, tmp_path: Path) -> None:
    code, said = command(f"run={vector_run}", *SMALL, f"out={tmp_path}")
    assert code == 0, said
    assert "left out: the run has no images, so there are no films" in said
    names = {path.name for path in tmp_path.iterdir()}
    assert {"curves_0.png", "curves_0.csv", "honesty_count_mse.png"} <= names
    assert not any(name.endswith((".gif", ".mp4")) for name in names)
    truth = [row for row in table(tmp_path / "curves_0.csv") if row["curve"] == "truth"]
    steps = [float(row["y"]) for row in truth if row["panel"] == "count[1]"]
    assert steps == list(range(9))  # the environment counts its steps
    assert json.loads((tmp_path / "summary.json").read_text())["headline"]["what"] == "count MSE"


@pytest.mark.usefixtures("no_pictures")
def test_random_actions_are_left_out_where_their_episodes_are_too_short(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(policy: Any, settings: DreamConfig) -> Any:
        found = experience(policy, settings)
        if settings.mode == "random":
            found.lengths[:] = 4
        return found

    monkeypatch.setattr("agents.apps.dreams.cli.experience", short)
    code, said = command(f"run={run}", *SMALL, f"out={tmp_path}")
    assert code == 0, said
    assert "left out: random actions, whose episodes are too short" in said
    assert not list(tmp_path.glob("honesty_random*"))


@pytest.mark.usefixtures("no_pictures")
def test_a_model_without_a_decoder_still_shows_its_promises(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_blind(*words: Any, loaded: Any = agents.load) -> Policy:
        policy: Policy = loaded(*words)
        agent = Random(policy.spec, RandomConfig(), policy.device)
        agent.model = Blind(policy.model)
        return replace(policy, agent=agent)

    monkeypatch.setattr(agents, "load", load_blind)
    code, said = command(f"run={run}", *SMALL, f"out={tmp_path}")
    assert code == 0, said
    assert "left out: the model has no decoder" in said
    assert "no error to compare" in said
    names = {path.name for path in tmp_path.iterdir()}
    assert {"honesty_return.png", "honesty_reward_error.csv", "branches_numbers.png"} <= names
    assert not any("strip" in name or "image" in name for name in names)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["pick=[7]"], 2, "there is no episode 7: they are numbered 0 to 2"),
        (["horizon=60"], 2, "need an episode of 63 rows, but the 3 episodes have 15 "),
        (["context=40"], 2, "Give less of both"),
        (["horzon=6"], 2, "Unknown key 'horzon'. Did you mean 'horizon'?"),
        (["source=relay"], 2, "Unknown source 'relay'"),
        (["futures=0"], 2, "futures is 0; allowed: 1 to"),
        (["horizon=ten"], 2, "Wrong value for 'horizon'"),
        (["device=abacus"], 2, "Unknown device 'abacus'"),
        (["fast"], 2, "Cannot read 'fast': settings are given as key=value"),
    ],
)
def test_mistakes_cost_one_clear_line(
    run: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    found, said = command(f"run={run}", *SMALL, f"out={tmp_path / 'o'}", *words)
    assert found == code
    assert said.splitlines()[-1].startswith("error: ")
    assert message in said


def test_a_dream_longer_than_the_time_limit_is_refused_before_anything_is_played(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_limited(*words: Any, loaded: Any = agents.load) -> Policy:
        policy: Policy = loaded(*words)
        return replace(policy, env=replace(policy.env, time_limit=8))

    monkeypatch.setattr(agents, "load", load_limited)
    monkeypatch.setattr("agents.apps.dreams.episodes.evaluate", None)
    words = (f"run={run}", *SMALL, f"out={tmp_path}")
    assert command(*words, "horizon=7") == (
        2,
        "error: context=3 and horizon=7 need an episode of 10 rows, but env.time_limit=8 ends them "
        "after 9. Give horizon=6 or less, or a smaller context.",
    )


def test_no_random_actions_are_played_where_the_episodes_are_too_short(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = []

    def counted(policy: Any, settings: DreamConfig) -> Any:
        played.append(settings.mode)
        return experience(policy, settings)

    monkeypatch.setattr("agents.apps.dreams.cli.experience", counted)
    code, said = command(f"run={run}", *SMALL, f"out={tmp_path}", "horizon=60")
    assert (code, played) == (2, ["mode"])
    assert "the 3 episodes have 15 " in said


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert command(f"run={tmp_path / 'nowhere'}") == (
        2,
        f"error: The folder '{tmp_path / 'nowhere'}' does not exist. "
        "Give the folder that a training run printed as its own.",
    )
    code, said = command()
    assert code == 2
    assert "These settings have no value: run" in said


def test_a_random_agent_does_not_dream(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "random", counting(length=5), RandomConfig())
    code, said = command(f"run={folder}")
    assert code == 2
    assert "(random) has no world model that could dream" in said
    assert not (folder / "dreams").exists()


def test_a_place_that_cannot_be_written_to(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, said = command(f"run={run}", *SMALL, f"out={tmp_path / 'file' / 'deep'}")
    assert code == 2
    assert "cannot be written to" in said
    assert "Give another out=" in said
