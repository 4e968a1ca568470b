"""One process at a time: the second is refused, and a dead one's lock is recognised."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.run.folder import HOLDER, RunLock
from agents.run.report import SUMMARY
from agents.run.train import train
from tests.agents.counting_agent import CountingConfig
from tests.agents.test_run_train import settings
from worldmodel.config import ConfigError, RunError
from worldmodel.types import ActionSpec

SILENT = lambda text: None  # noqa: E731


def hold(folder: Path, pipe: Any) -> None:
    with RunLock(folder, SILENT):
        pipe.send("held")
        pipe.recv()  # until the parent goes or kills us


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, theirs), daemon=True)
    process.start()
    assert ours.recv() == "held"
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused(tmp_path: Path, holder: Any) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RunError, match=rf"is in use by process {holder.pid} on .* choose another"):
        train(settings(tmp_path), SILENT)
    assert sorted(tmp_path.iterdir()) == before  # and nothing was touched


def test_a_dead_holder_is_recognised(tmp_path: Path, holder: Any) -> None:
    holder.kill()
    holder.join()
    said: list[str] = []
    with RunLock(tmp_path, said.append):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    (line,) = said
    assert f"was left by process {holder.pid} on" in line
    said.clear()
    with RunLock(tmp_path, said.append):  # let go properly, it is nobody's
        assert not said


def test_rubbish_of_a_holder_hinders_nobody(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"pid": 1}', "\x00\xff"):
        (tmp_path / HOLDER).write_text(text)
        with RunLock(tmp_path, SILENT):
            pass
    (tmp_path / HOLDER).write_bytes(b"\xff\xfe")
    with RunLock(tmp_path, SILENT):
        pass


def test_a_summary_of_another_version_is_not_called_damaged_alone(tmp_path: Path) -> None:
    train(settings(tmp_path), SILENT)
    path = tmp_path / SUMMARY
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in summary.items() if k != "maximised"}))
    with pytest.raises(ConfigError, match=r"does not say maximised: an older version .* Delete it"):
        train(settings(tmp_path), SILENT)
    path.write_text(json.dumps(summary | {"seed": "two"}))
    with pytest.raises(ConfigError, match=r"is damaged .ValueError: seed is 'two'.* Delete it"):
        train(settings(tmp_path), SILENT)


def test_consent_is_not_offered_where_it_cannot_help(tmp_path: Path) -> None:
    config = settings(tmp_path, steps=20)
    train(config, SILENT)
    other = CountingConfig(name="tests.agents.counting_agent:InheritsItsConfig")
    asked = replace(config, steps=40, agent=other, accept_changes=True)
    own = config.agent.name
    with pytest.raises(ConfigError, match=rf"run of agent={own} on .*CountingEnv. Choose .*={own}"):
        train(asked, SILENT)
    env = replace(config.env, kwargs=config.env.kwargs | {"actions": "box"})
    asked = replace(config, steps=40, env=env, accept_changes=True)
    with pytest.raises(ConfigError, match=r"with other observations or actions. Choose another"):
        train(asked, SILENT)
    env = replace(config.env, kwargs=config.env.kwargs | {"length": 4})
    assert train(replace(config, steps=40, env=env, accept_changes=True), SILENT) == 0


def test_a_run_says_its_folder_last_and_sizes_without_exponents(tmp_path: Path) -> None:
    said: list[str] = []
    train(settings(tmp_path), said.append)
    assert said[-1].splitlines()[-1] == f"run folder: {tmp_path}"
    (room,) = [line for line in said if "GB free" in line and "run folder" in line]
    assert ", holds 0, " in room


def test_actions_are_described_for_people() -> None:
    assert str(ActionSpec("continuous", (2,))) == "continuous, 2 in [-1, 1]"
    assert str(ActionSpec("discrete", (3, 2))) == "discrete, 3 x 2"
