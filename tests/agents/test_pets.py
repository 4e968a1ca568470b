"""PETS: a Gaussian world behind agents/mpc, and what a run asks of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import agents
from agents.mpc import MPC, MPCConfig
from agents.planning.cem import CEMConfig
from agents.run.config import TrainConfig
from tests.agents.small_runs import (
    check_evaluates_alike,
    check_learns_offline,
    check_resumes,
    check_starts_from,
    live,
    observed,
    small_config,
)
from tests.model_batches import SPECS
from tests.test_scripts import composed
from worldmodel.models.fitting import FitConfig
from worldmodel.models.gaussian import GaussianConfig

MODEL = GaussianConfig(
    members=3, elites=2, layers=1, units=8, decay=[1e-5], fit=FitConfig(epochs=2, batch_size=16)
)
CEM = CEMConfig(horizon=3, iterations=2, candidates=6, elites=3, particles=4, truncated=True)


def config_of(folder: Path, particles: str = "tsinf") -> TrainConfig:
    agent = MPCConfig(
        world="gaussian",
        batch_size=1,
        batch_length=1,
        model=replace(MODEL, particles=particles),
        cem=CEM,
    )
    return small_config(folder, agent, "box", train_ratio=0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pets") / "run"
    live(config_of(folder))
    return folder


def test_a_run_stopped_and_continued_is_the_same(tmp_path: Path) -> None:
    check_resumes(tmp_path, config_of(tmp_path, particles="ts1"))


def test_the_same_seed_is_the_same_evaluation(run: Path) -> None:
    check_evaluates_alike(agents.load(run, "cpu"))


def test_a_run_starts_from_another_one_and_from_a_recording(tmp_path: Path, run: Path) -> None:
    check_starts_from(config_of(tmp_path / "warm"), run)
    check_learns_offline(config_of(tmp_path / "offline"), run)


def test_before_there_is_enough_to_learn_from_it_acts() -> None:
    torch.manual_seed(0)
    config = MPCConfig(world="gaussian", batch_size=1, batch_length=1, model=MODEL, cem=CEM)
    agent = MPC(SPECS["vector"], config, torch.device("cpu"))
    action, state, _ = agent.act(observed(SPECS["vector"], 3))
    assert np.abs(action).max() <= 1
    assert (state.latent.member == -1).all()


@pytest.mark.parametrize(
    "name",
    [
        "pets",
        "pets_small",
        "pets_cartpole",
        "pets_pendulum",
        "pets_halfcheetah",
        "pets_halfcheetah_small",
        "pets_reacher",
        "pets_reacher_small",
    ],
)
def test_the_presets_are_whole(name: str) -> None:
    config = composed(f"experiment={name}")
    assert config.agent.world == "gaussian"
    members, particles = config.agent.model.elites, config.agent.planner_settings.particles
    assert particles % members == 0  # as many particles for each opinion
    assert config.train_ratio * config.prefill >= 1
