"""scripts/play.py before a page is there: mistakes cost one clear line."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest

import agents
import agents.apps.play
from agents.apps.play import cli
from agents.apps.play.cli import is_local, listen, open_run, play_command
from agents.random import RandomConfig
from tests.agents.play_runs import left_right, run_folder
from worldmodel.config import ConfigError, RunError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("run") / "tiny", left_right(actions="box"))


def said(*words: str) -> tuple[int, str]:
    """The exit code and the last line of the command."""
    lines: list[str] = []
    code = play_command(lines.append, words)
    return code, lines[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=nowhere"], "The folder 'nowhere' does not exist."),
        ([], "These settings have no value: run"),
        (["run=nowhere", "prot=3"], "Unknown key 'prot'. Did you mean 'port'?"),
        (["run=nowhere", "port=99999"], "port is 99999; allowed: 0 to 65,535"),
        (["run=nowhere", "port=-1"], "port is -1"),
        (["run=nowhere", "port=x"], "port"),
        (["run=nowhere", "seed=-3"], "seed is -3"),
        (["run=nowhere", "threads=-1"], "threads is -1"),
        (["run=nowhere", "patience=0"], "patience is 0.0"),
    ],
)
def test_wrong_settings_cost_one_line(words: list[str], message: str) -> None:
    code, line = said(*words)
    assert code == 2
    assert line.startswith("error: ")
    assert message in line


def test_a_port_in_use_is_said(run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, line = said(f"run={run}", f"port={port}")
    assert code == 1
    assert f"Port {port} on 127.0.0.1 is in use. Give another port=" in line


def test_hosts_are_checked_and_local_ones_known() -> None:
    with pytest.raises(RunError, match=r"host 'no\.such\.host\.invalid' is unknown"):
        listen("no.such.host.invalid", 0)
    with pytest.raises(RunError, match=r"'192\.0\.2\.1' is no address of this machine"):
        listen("192.0.2.1", 0)
    assert [is_local(h) for h in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_local(h) for h in ("0.0.0.0", "::", "example.org")] == [False] * 3
    made = listen("127.0.0.1", 0)
    assert made.getsockname()[1] > 0
    made.close()


def test_a_run_without_a_model_is_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "random", left_right(), RandomConfig())
    code, line = said(f"run={folder}", "port=0")
    assert code == 2
    assert "'random' of this run learned no world model" in line


def test_a_run_without_replay_starts_in_the_real_environment(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bare"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "replay")
    lines: list[str] = []
    _, recorded = open_run(copy, "cpu", 0, lines.append)
    assert recorded is None
    assert lines[-1].startswith("No recorded frames, so dreams start with a fresh reset. (")
    _, known = open_run(run, "cpu", 0, lines.append)
    assert known is not None
    assert len(known) > 3
    # Numbered as labels and reports number them: one that goes on, or has lost its beginning, too.
    held = agents.load_replay(run)
    assert known.places == held.episodes() != held.episodes(complete=True)
    # Neither replay nor environment: nowhere to start, said before a page is served.
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("LeftRightEnv", "GoneEnv"))
    with pytest.raises(RunError, match="The real environment failed: Unknown environment"):
        open_run(copy, "cpu", 0, lines.append)


def test_a_missing_page_library_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nicegui", None)  # an import of it now fails
    for name in ("serve", "page", "dialogs"):
        monkeypatch.delitem(sys.modules, f"agents.apps.play.{name}", raising=False)
        monkeypatch.delattr(agents.apps.play, name, raising=False)
    port = free_port()
    code, line = said(f"run={run}", f"port={port}")
    assert code == 2
    assert 'not installed: pip install "worldmodel[play]"' in line
    listen("127.0.0.1", port).close()  # nothing listens any more


def free_port() -> int:
    with listen("127.0.0.1", 0) as made:
        return int(made.getsockname()[1])


def test_damaged_checkpoints_are_said(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(run, copy)
    for path in copy.rglob("*.pt"):
        path.write_bytes(b"no checkpoint")
    code, line = said(f"run={copy}", "port=0")
    assert code == 1
    assert "checkpoint" in line
    with pytest.raises(ConfigError, match="Unknown device 'abacus'"):
        open_run(run, "abacus", 0, print)
    assert cli.PlayConfig.host == "127.0.0.1"  # nobody else, unless asked
