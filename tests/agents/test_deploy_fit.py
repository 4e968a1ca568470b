"""A detector for a run: what is played, what is recorded, what the script writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import agents
from agents.deploy.fit import (
    FitConfig,
    fit_detector_command,
    play,
    recorded_tracks,
    table,
)
from agents.deploy.sources import load_detector
from tests.agents.rewards_run import LENGTH, make_run
from worldmodel.config import ConfigError
from worldmodel.envs.shifts import Shifted
from worldmodel.ood.config import DetectorConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


WORDS = (
    "false_alarm_rate=0.25", "detector.confidence=0", "detector.updates=20", "episodes=10",
    "detector.parts=[reconstruction,patch,surprise,drift]", "detector.vae.depths=[4,4,4]",
    "detector.vae.latent=4",
)  # fmt: skip


def command(run: Path, *words: str) -> tuple[int, str]:
    said: list[str] = []
    return fit_detector_command(said.append, [f"run={run}", *words]), "\n".join(said)


def test_whole_episodes_are_played_row_by_row(run: Path) -> None:
    tracks = play(agents.load(run, "cpu"), 5, seed=3)
    assert [len(track) for track in tracks] == [LENGTH + 1] * 5
    for track in tracks:
        assert track.obs["image"].shape == (LENGTH + 1, 32, 32, 3)
        assert (track.action[0] == 0).all()
        assert (np.abs(track.action[1:]) > 0).all()
        assert track.state is not None
        assert len(track.state.deter) == LENGTH + 1


def test_the_same_seed_plays_the_same_episodes(run: Path) -> None:
    policy = agents.load(run, "cpu")
    one, two, other = (play(policy, 2, seed, "sample") for seed in (1, 1, 2))
    np.testing.assert_array_equal(one[1].action, two[1].action)
    assert (one[1].action != other[1].action).any()


def test_the_states_are_those_of_the_actions_that_were_taken(run: Path) -> None:
    policy = agents.load(run, "cpu")
    for jolts in (0, 3):
        track = play(policy, 1, seed=4, jolts=jolts)[0]
        assert track.state is not None
        core = policy.model.core
        for t in range(1, len(track)):
            import torch

            before = track.state.map(lambda x, t=t: x[t - 1 : t])
            action = core.embed_action(torch.from_numpy(track.action[t : t + 1]))
            torch.testing.assert_close(core.recur(before, action)[0], track.state.deter[t])


def test_a_wrapped_environment_is_the_one_that_is_played(run: Path) -> None:
    policy = agents.load(run, "cpu")
    dark = play(policy, 1, 5, wrap=lambda env, seed: Shifted(env, "simpler", 1.0, onset=2))[0]
    assert dark.obs["image"][:2].any()
    assert not dark.obs["image"][2:].any()


def test_recorded_episodes(run: Path) -> None:
    tracks = recorded_tracks(run)
    assert len(tracks) >= 5
    assert all(len(track) > 1 for track in tracks)
    assert len(recorded_tracks(run, newest=2)) == 2


def test_the_script_fits_stores_and_tells(run: Path) -> None:
    code, said = command(run, *WORDS)
    assert code == 0, said
    assert "patch" in said
    assert "7 held-out episodes, at most 0.25 false alarms per episode" in said
    policy = agents.load(run, "cpu")
    detector = load_detector(run, policy)
    assert detector is not None
    assert table(detector) in said
    track = play(policy, 1, 9)[0]
    assert track.state is not None
    assert detector is not None
    score = detector.score(
        {"image": track.obs["image"][:1]}, track.state.map(lambda x: x[:1]), track.action[:1]
    )
    assert set(score.parts) >= {"reconstruction", "patch", "surprise", "drift", "drift_slow"}
    assert json.loads((run / "detector" / "detector.json").read_text())["mode"] == "mode"
    assert (run / "detector" / "heat.png").stat().st_size > 1000


def test_too_few_episodes_say_how_many(run: Path) -> None:
    code, said = command(run, "episodes=50")
    assert code == 2
    assert "at least 230 are needed" in said
    code, said = command(run, "false_alarm_rate=0.01", "detector.confidence=0", "episodes=100")
    assert code == 2
    assert "at least 99 are needed" in said
    assert FitConfig("x", 0.01).shares == (115, 230)
    assert FitConfig("x", 0.5, detector=DetectorConfig(confidence=0)).shares == (10, 1)


def test_mistakes_cost_one_line(run: Path, tmp_path: Path) -> None:
    for words, expected in (
        (["false_alarm_rate=2"], "allowed"),
        (["detector.parts=[pach]"], "Did you mean 'patch'"),
        (["episods=3"], "Did you mean 'episodes'"),
    ):
        code, said = command(run, *words)
        assert code == 2
        assert expected in said
    code, said = command(tmp_path / "nothing")
    assert code == 2
    assert "does not exist" in said


def test_an_empty_replay_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = agents.load_replay(run)
    monkeypatch.setattr(type(replay), "episodes", lambda self, complete=False: [])
    with pytest.raises(ConfigError, match="is empty"):
        recorded_tracks(run)
