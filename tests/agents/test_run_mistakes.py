"""Mistakes in somebody's own agent are called the agent's, in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agents import Agent, agent_class
from agents.run.train import train
from tests.agents.counting_agent import CountingAgent, CountingConfig
from tests.agents.test_run_train import SILENT, settings
from worldmodel.config import ConfigError, RunError


class Wrong(CountingAgent):
    """An agent whose author made mistakes."""

    def slow_down(self, factor: float) -> bool:
        return False


def test_a_run_that_cannot_learn_more_slowly_does_not_say_that_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.agent_class", lambda name: Wrong)
    said: list[str] = []
    config = settings(tmp_path, agent=CountingConfig(bad_from=3), nonfinite_limit=2)
    with pytest.raises(RunError, match=r"cannot go on more slowly: Wrong has no slow_down, so"):
        train(config, said.append)
    assert not any("continuing" in line for line in said)


def test_mistakes_in_an_agent_are_called_the_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.agent_class", lambda name: Wrong)
    monkeypatch.setattr(Wrong, "update", lambda self, replay: None)
    with pytest.raises(RunError, match=r"Wrong must return a dict of metrics .* a NoneType"):
        train(settings(tmp_path / "update"), SILENT)
    monkeypatch.setattr(Wrong, "act", lambda *_: (np.int64([1]), None, {}))
    with pytest.raises(
        RunError, match=r"act must return .*float32 \[1, 3\], one-hot.* int64 \[1\]"
    ):
        train(settings(tmp_path / "act"), SILENT)
    monkeypatch.setattr(Wrong, "act", lambda *_: np.zeros((1, 3)))
    with pytest.raises(RunError, match=r"Wrong.act must return .* returned a ndarray"):
        train(settings(tmp_path / "alone"), SILENT)
    monkeypatch.setattr(Wrong, "act", lambda *_: (np.full((1, 3), np.nan, np.float32), None, {}))
    with pytest.raises(
        RunError, match=r"^The agent Wrong gave an action that is not finite: \[nan.*, at step 0\."
    ):
        train(settings(tmp_path / "nan"), SILENT)


class Unfinished(Agent):
    """An agent whose author is not done."""

    Config = CountingConfig

    def initial(self, batch_size: int) -> None:
        return None


def test_an_agent_that_lacks_methods_is_told_which() -> None:
    name = f"{__name__}:Unfinished"
    with pytest.raises(ConfigError, match=r"Unfinished lacks act, load_state_dict, state_dict, up"):
        agent_class(name)
