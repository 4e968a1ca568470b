"""Environments' processes: signals, and that none of them outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.envs import EnvConfig, make_vector, processes, shared
from worldmodel.envs import vector as vectors

FAILING = "tests.envs_for_tests:FailingEnv"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def failing(folder: Path | None = None, **kwargs: Any) -> EnvConfig:
    kwargs |= {"folder": str(folder or ""), "times": 0 if folder is None else 1}
    return EnvConfig(FAILING, pixels=False, vector="async", kwargs=kwargs)


def surroundings() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=surroundings(), capture_output=True, text=True, timeout=120, check=False
    )


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether no such process lives within so many seconds."""
    until = time.monotonic() + seconds
    while True:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except OSError:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.02)


@linux
def test_signals_of_the_group_reach_the_parent_alone() -> None:
    envs = make_vector(failing(), 1, seed=0)
    try:
        envs.reset()
        (pid,) = [process.pid for process in envs.processes]
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        for _ in range(3):
            assert not envs.step(np.zeros(1, int))[4]["restarted"].any()
    finally:
        envs.close()
    assert gone(pid)


@linux
@pytest.mark.parametrize("how", ["hang", "busy"])
def test_closing_does_not_wait_for_what_hangs(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (vectors, processes):
        monkeypatch.setattr(module, "CLOSE_SECONDS", 0.5)
    envs = make_vector(failing(tmp_path, how=how, step=1), 2, seed=0)
    envs.reset()
    pids = [process.pid for process in envs.processes]
    for host in envs._hosts:
        host.send("step", np.int64(0))
    started = time.monotonic()
    envs.close()
    assert time.monotonic() - started < 10
    envs.close()
    assert all(gone(pid) for pid in pids)


SCRIPT = """
import os, signal, sys, time
import numpy as np
from worldmodel.envs import EnvConfig, make_vector, processes, vector

print("main", flush=True)  # processes of environments do not run this file again

def main():
    vector.CLOSE_SECONDS = processes.CLOSE_SECONDS = 0.5
    kwargs = {"how": sys.argv[2], "step": 1, "folder": sys.argv[3], "times": 1}
    config = EnvConfig("tests.envs_for_tests:FailingEnv", pixels=False, vector="async",
                       kwargs=kwargs)
    envs = make_vector(config, 2, seed=0)
    envs.reset()
    pids = [process.pid for process in envs.processes]
    for host in envs._hosts:
        host.send("step", np.int64(0))
    time.sleep(0.5)
    if sys.argv[1] == "server":
        with open(f"/proc/{pids[0]}/stat") as file:
            os.kill(int(file.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
        time.sleep(0.2)
        envs.close()
    print(*pids, flush=True)
    if sys.argv[1] == "killed":
        time.sleep(1000)
    # "exit" ends without close(), as somebody's own script might

if __name__ == "__main__":
    main()
"""


@linux
@pytest.mark.parametrize(
    ("end", "how"),
    [("killed", "hang"), ("killed", "busy"), ("exit", "hang"), ("server", "busy")],
)
def test_no_process_outlives_its_parent(end: str, how: str, tmp_path: Path) -> None:
    """killed: by SIGKILL. exit: without close. server: the one that starts processes is dead."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "failures"
    folder.mkdir()
    command = [sys.executable, str(script), end, how, str(folder)]
    with subprocess.Popen(
        command, env=surroundings(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "main\n"
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        if end == "killed":
            assert not any(gone(pid, 0.0) for pid in pids)
            parent.kill()
        elif end == "server":
            assert all(gone(pid) for pid in pids)  # closed, not only orphaned
        parent.wait(30)
        assert all(gone(pid) for pid in pids)
        if end == "exit":
            assert parent.returncode == 0
            assert parent.stderr is not None
            assert parent.stderr.read() == ""


OWN = """
import gymnasium
from tests.envs_for_tests import CountingEnv
from worldmodel.envs import EnvConfig, make_vector

class Mine(CountingEnv):
    pass

gymnasium.register("Own-v0", "__main__:Mine")

if __name__ == "__main__":
    for name in ("__main__:Mine", "Own-v0"):
        envs = make_vector(EnvConfig(name, pixels=False, vector="async"), 1)
        print(envs.reset()[0]["count"].tolist())
        envs.close()
"""


def test_environments_of_the_program_itself_are_found(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(OWN)
    result = run([sys.executable, str(script)])
    assert result.stdout.splitlines() == ["[[0.0, 0.0, 0.0]]"] * 2, result.stderr


def test_a_program_without_a_main_guard_works(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(OWN.replace('if __name__ == "__main__":', "if True:").replace(
        '("__main__:Mine", "Own-v0")', '("tests.envs_for_tests:CountingEnv",)'
    ))  # fmt: skip
    result = run([sys.executable, str(script)])
    assert result.stdout.splitlines() == ["[[0.0, 0.0, 0.0]]"], result.stderr


@linux
def test_nothing_is_left_in_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def recorded(*args: Any, **kwargs: Any) -> tuple[int, str]:
        handle, path = make(*args, **kwargs)
        made.append(path)
        return handle, path

    make = shared.tempfile.mkstemp
    monkeypatch.setattr(shared.tempfile, "mkstemp", recorded)
    envs = make_vector(failing(tmp_path, how="exit"), 2, seed=0)
    envs.reset()
    for _ in range(4):
        envs.step(np.zeros(2, int))
    assert envs.failures == 1
    assert len(made) >= 2
    assert not any(map(os.path.exists, made))
    envs.close()


@linux
def test_restarts_leave_no_handles_open() -> None:
    envs = make_vector(failing(), 1, seed=0)
    try:
        envs.reset()
        counts = []
        for _ in range(4):
            envs.processes[0].kill()
            assert envs.step(np.zeros(1, int))[4]["restarted"].all()
            assert not envs.step(np.zeros(1, int))[4]["restarted"].any()
            counts.append(len(os.listdir("/proc/self/fd")))
    finally:
        envs.close()
    assert len(set(counts)) == 1
