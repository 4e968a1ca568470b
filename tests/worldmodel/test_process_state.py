"""Environments that change what belongs to the whole process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel.envs import EnvConfig, EnvError, make_env, make_vector


class Meddler(gymnasium.Env[Any, Any]):
    """Seeds PyTorch anew in each episode, and draws from it; changes folder, dtype and errors, and
    ignores Ctrl-C."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, folder: str = "/", seeds: bool = True) -> None:
        self.seeds = seeds
        os.chdir(folder)
        torch.set_default_dtype(torch.float64)
        np.seterr(all="raise")
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.seeds:
            torch.manual_seed(0)
        os.chdir("/")
        return torch.rand(1).numpy().astype(np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 0.0, True, False, {}


class Seedless(Meddler):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


MEDDLER = EnvConfig("tests.worldmodel.test_process_state:Meddler", pixels=False)


def test_an_environment_leaves_the_process_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    errors = np.geterr()
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    found = []
    handler = signal.getsignal(signal.SIGINT)
    env = make_env(MEDDLER, 0)
    assert signal.getsignal(signal.SIGINT) is handler
    for _ in range(3):
        env.reset()
        found.append(torch.rand(1).item())
    assert found == expected  # an agent's own draws, whatever the environment seeds
    assert Path.cwd() == tmp_path
    assert (np.geterr(), torch.get_default_dtype()) == (errors, torch.float32)
    assert "the working folder, which is" in caplog.text


def test_environments_draw_from_pytorch_each_for_itself() -> None:
    config = EnvConfig(MEDDLER.id, pixels=False, kwargs={"seeds": False})
    envs = make_vector(config, 3, 0)
    drawn = [*envs.reset()[0]["state"][:, 0], *envs.reset()[0]["state"][:, 0]]
    assert len(set(map(float, drawn))) == 6


def test_a_reset_that_takes_no_seed_is_one_sentence() -> None:
    env = make_env(EnvConfig("tests.worldmodel.test_process_state:Seedless", pixels=False), 0)
    with pytest.raises(EnvError, match=r"reset must take both.*def reset\(self, \*, seed=None"):
        env.reset()


def test_a_vector_of_environments_is_no_environment() -> None:
    with pytest.raises(EnvError, match=r"SyncVectorEnv.*Name a single one; env.num_envs=8"):
        make_env(EnvConfig("tests.worldmodel.test_process_state:pair", pixels=False))


def pair() -> Any:
    return gymnasium.vector.SyncVectorEnv([Meddler, Meddler])
