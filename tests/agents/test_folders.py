"""A folder that cannot be written to is refused before the work begins, with what to do."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.apps.evaluate import evaluate_command
from agents.apps.rewards.cli import fit_reward_command
from agents.deploy.cli import deploy_command, export_command
from agents.deploy.fit import fit_detector_command
from tests.agents.rewards_run import HERE, make_run
from worldmodel.config import ConfigError
from worldmodel.folders import make_folder

COMMANDS: dict[str, tuple[Any, str, list[str]]] = {
    "evaluate": (evaluate_command, "to", ["episodes=1"]),
    "deploy": (deploy_command, "to", ["episodes=1"]),
    "export": (export_command, "to", []),
    "fit_detector": (fit_detector_command, "run", []),
    "fit_reward": (fit_reward_command, "run", [f"reward={HERE}:effort", "name=effort"]),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("folders") / "run")


def failing(number: int) -> Callable[..., Any]:
    def call(*_: Any, **about: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    made = make_folder(tmp_path / "a" / "b", "to")
    assert made.is_dir()
    assert not list(made.iterdir())


def test_what_and_where_and_why_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        make_folder(tmp_path / "file", "to")
    assert str(caught.value) == (
        f"'{tmp_path / 'file'}' cannot be written to (it is a file). Give another to=..."
    )
    with pytest.raises(ConfigError, match=r"\(Not a directory\). Give another out="):
        make_folder(tmp_path / "file" / "below", "out")


def test_a_full_disk_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        make_folder(tmp_path, "to")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_run_is_refused_before_anything_is_played(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, word, more = COMMANDS[name]
    monkeypatch.setattr(tempfile, "TemporaryFile", failing(errno.EROFS))
    for work in (
        "agents.apps.evaluate.evaluate",
        "agents.deploy.cli.guarded",
        "agents.deploy.cli.export_agent",
        "agents.deploy.fit.fit_run",
        "agents.apps.rewards.pipeline.filtered",
    ):
        monkeypatch.setattr(work, None)
    said: list[str] = []
    assert command(said.append, [f"run={run}", *more]) == 2, said
    assert said[-1].startswith(f"error: '{run}")
    assert said[-1].endswith(
        f"cannot be written to (Read-only file system). Give another {word}=..."
    )


def test_the_return_is_said_before_a_file_is_written(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.run.report.replaced_file", failing(errno.ENOSPC))
    said: list[str] = []
    assert evaluate_command(said.append, [f"run={run}", "episodes=1"]) == 2
    assert "over 1 episode" in said[-2]
    assert "The disk is full" in said[-1]


def test_an_evaluation_goes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    words = [f"run={run}", "episodes=1", f"to={tmp_path / 'out'}"]
    assert evaluate_command(said.append, words) == 0, said
    assert (tmp_path / "out" / "returns.json").is_file()
    assert not (run / "evaluation" / "returns.json").exists()
