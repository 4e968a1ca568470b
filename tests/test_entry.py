"""Every command alike: one odd environment, one odd path, one poor terminal, one broken pipe."""

from __future__ import annotations

import ast
import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from agents.run.config import TrainConfig
from agents.run.train import train
from tests.conftest import Once
from tests.fuzz.runs import TINY
from worldmodel import progress
from worldmodel.config import ConfigError, from_cli
from worldmodel.entry import INTERRUPTED, UNREAD, enter
from worldmodel.envs import EnvConfig, make_vector
from worldmodel.envs.journal import Episodes
from worldmodel.optim import LaProp
from worldmodel.replay import ReplayConfig
from worldmodel.words import at_home, for_hydra, texts

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("[a-z]*.py"))
MODULE = "a_world_of_the_working_folder"
WORLD = '''
import gymnasium as gym
import numpy as np

class World(gym.Env):
    """Ten steps, each a shade lighter."""

    observation_space = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros((32, 32, 3), np.uint8), {}

    def step(self, action):
        self.t += 1
        seen = np.full((32, 32, 3), 9 * self.t + int(action), np.uint8)
        return seen, float(action), self.t == 10, False, {}
'''
ODD = "größe [x], lr=1e-3 {a}"  # of a folder
FEW = ["false_alarm_rate=0.5", "detector.confidence=0", "detector.updates=5"]
SLOW = ["deploy.period_ms=20000", "deploy.soft_ms=9000", "deploy.hard_ms=9000", "pace=false"]
# What each command does here; {run} is the odd path.
WORDS: dict[str, list[str]] = {
    "bench": ["what=ood", "run={run}", "shifts=[blur]", "levels=[strong]", "episodes=2",
              "normal=9", "unusual=2", "onset=2", "jolts=1", *FEW],
    "deploy": ["run={run}", "episodes=2", "deploy.warmup=1", "deploy.fallback.rest=[1,0,0]", *SLOW],
    "doctor": ["json=maybe"],
    "dream": ["run={run}", "play=4", "starts=2", "episodes=1", "context=2", "horizon=3",
              "dreams=2", "futures=1"],
    "evaluate": ["run={run}", "episodes=12", "num_envs=1"],
    "export": ["run={run}", "smaller=[]", "steps=12"],
    "fit_detector": ["run={run}", "episodes=9", *FEW],
    "fit_reward": ["run={run}", "name=lit", "updates=12", "reward=" + MODULE + ".py:lit"],
    "gpu_report": ["device=cuda:99", "out={run}/report"],
    "play": ["run={run}", "host=no.such.host.invalid"],
    "plot": ["figure=updates", "runs=1", "quick=true", "out={run}/figures"],
    "reproduce": ["list", "out={run}/claims"],
    "train": ["experiment=none", "size=tiny", "env=none", "offline={run}", "updates=12",
              "run={run}/again", "agent.batch_size=2", "agent.batch_length=4", "agent.horizon=2",
              "threads=1", "device=cpu", "env.image_size=[32,32]"],
    "train_in_dreams": ["run={run}", "updates=12", "to={run}/dreamt", "env.time_limit=8"],
}  # fmt: skip
CODES = {"doctor": 2, "gpu_report": 2, "play": 1}
SLOW_ONES = ("bench", "export", "plot")
OTHER_WORK = (
    "doctor",
    "gpu_report",
    "play",
    "export",
    "plot",
    "reproduce",
)  # than the steps that are slow here


def make(folder: Path) -> None:
    """A run of an environment that lies in its working folder, in a folder of an odd name."""
    folder.mkdir(parents=True)
    lit = "\ndef lit(obs, action, after, info):\n    return float(after['image'].mean())\n"
    (folder / f"{MODULE}.py").write_text(WORLD + lit)
    sys.path.append(str(folder))
    config = TrainConfig(
        run=str(folder / ODD), steps=60, train_ratio=2.0, eval_every=0, video_every=0,
        final_episodes=1, eval_envs=1, device="cpu", threads=1,
        env=EnvConfig(f"{MODULE}:World", image_size=[32, 32]),
        replay=ReplayConfig(capacity=200), agent=TINY,
    )  # fmt: skip
    try:
        assert train(config, lambda text: None) == 0
    finally:
        sys.path.remove(str(folder))


@pytest.fixture
def here(once: Once, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an environment and a run, which is not on the path of imports."""
    folder = tmp_path / "here"
    shutil.copytree(once("a run in the working folder", make), folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not p.endswith("working folder")])
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return folder


def run(script: str, *words: str, **streams: Any) -> int:
    """The exit code of a script in this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        patch.setattr(sys, "argv", [f"{script}.py", *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    for number, handler in before.items():
        signal.signal(number, handler)
    return int(ended.value.code or 0)


@pytest.fixture
def called(tmp_path: Path) -> Callable[..., Any]:
    """called(script, *words): the exit code of a script in this process, and what it printed on a
    terminal that knows ASCII alone."""

    def call(script: str, *words: str) -> tuple[int, str, str]:
        files = [tmp_path / "stdout", tmp_path / "stderr"]
        streams = [io.TextIOWrapper(path.open("wb"), encoding="ascii") for path in files]
        code = run(script, *words, stdout=streams[0], stderr=streams[1])
        for stream in streams:
            stream.close()
        out, err = (path.read_text("ascii") for path in files)
        return code, out, err

    return call


@pytest.fixture
def slow_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which each step of an environment and each update takes three seconds, by the
    clock of those who show how far the work is."""
    now = [0.0]
    monkeypatch.setattr(progress, "clock", lambda: now[0])

    def slow(cls: Any, name: str) -> None:
        fast = getattr(cls, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            found = fast(*args, **kwargs)
            now[0] += 3.0
            if progress._watcher is not None:
                progress._watcher.look()
            return found

        monkeypatch.setattr(cls, name, call)

    slow(Episodes, "step")
    slow(LaProp, "attempt")


UNKNOWN = ("playing an episode for its pictures", "reading the recording")  # nobody knows how long


@pytest.mark.usefixtures("slow_motion", "no_pictures")
@pytest.mark.parametrize(
    "script",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_ONES else name for name in SCRIPTS],
)
def test_every_command_alike(script: str, here: Path, called: Callable[..., Any]) -> None:
    """An environment of the working folder, an odd path, an ASCII terminal; no traceback; and not
    silent where it works, with the time left."""
    code, out, err = called(script, *(word.format(run=ODD) for word in WORDS[script]))
    assert code == CODES.get(script, 0), out + err
    assert "Traceback" not in out + err
    shown = [line for line in err.splitlines() if line.endswith((" left", " so far"))]
    vague = [line for line in shown if not line.endswith(" left") and not line.startswith(UNKNOWN)]
    assert not vague, vague
    if script not in OTHER_WORK:
        assert shown, f"nothing was shown of the work: {out}{err}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_takes_mistakes_help_and_a_closed_pipe(
    script: str, called: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = called(script, "nonsense")
    assert (code, out.count("\n")) == (2, 1), out
    assert out.startswith("error: ")
    code, out, _ = called(script, "--help")
    assert code == 0
    assert f"scripts/{script}.py" in out
    reading, writing = os.pipe()
    os.close(reading)
    broken = io.TextIOWrapper(os.fdopen(writing, "wb"), encoding="ascii")
    assert run(script, "--help", stdout=broken) == UNREAD
    broken.close()  # what was left in it is gone, without a word


def test_a_shell_with_another_encoding_and_head(here: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$0" "$1" "run={ODD}" episodes=2 | head -1', sys.executable,
         str(ROOT / "scripts" / "evaluate.py")],
        cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True, check=True,
    )  # fmt: skip
    assert b" +- " in done.stdout
    assert b"over 2 episodes" in done.stdout
    assert b"Error" not in done.stderr


def code_of(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """The exit code of a command that is a function."""
    monkeypatch.setattr(sys, "argv", ["a", *words])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as ended:
        enter(command, __file__, None)
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)
    return ended.value.code


def test_ctrl_c_is_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(say: Any, words: Any) -> int:
        raise KeyboardInterrupt

    assert code_of(interrupted, monkeypatch) == INTERRUPTED
    assert capfd.readouterr().out == "stopped by Ctrl-C.\n"


class Stopped(gymnasium.Env[Any, Any]):
    """A step in whose midst somebody ends the program."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)


def test_sigterm_in_a_step_is_no_failure_of_the_environment(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(say: Any, words: Any) -> int:
        env = make_vector(EnvConfig("tests.test_entry:Stopped", pixels=False, vector="sync"), 1, 0)
        env.reset()
        env.step(np.zeros(1, int))
        return 0

    assert code_of(play, monkeypatch) == 128 + signal.SIGTERM
    assert capfd.readouterr().out == "stopped by SIGTERM.\n"


def test_what_the_system_refuses_is_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def look(say: Any, words: Any) -> int:
        return int(Path("x" * 300).is_file())

    assert code_of(look, monkeypatch) == 2
    out = capfd.readouterr().out
    assert out.startswith("error: [Errno 36] File name too long: 'xxx")
    assert out.endswith("x.... HYDRA_FULL_ERROR=1 shows where.\n")
    assert code_of(lambda say, words: 0, monkeypatch, "run=caf\udce9") == 2
    assert "holds bytes that are no text in UTF-8" in capfd.readouterr().out
    monkeypatch.setattr(sys, "stderr", None)  # closed, as by a program that starts others
    assert code_of(lambda say, words: 0, monkeypatch) == 0
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert code_of(lambda say, words: 0, monkeypatch) == 2
    assert "The folder that the command was given in is gone" in capfd.readouterr().out


def test_a_warning_is_one_line(here: Path) -> None:
    (here / "worries.py").write_text(
        "import warnings\n"
        "def command(say, words):\n"
        "    warnings.warn('It rains.')\n"
        "    warnings.warn('Old.', FutureWarning)\n"
        "    return 0\n"
        "if __name__ == '__main__':\n"
        "    from worldmodel.entry import enter\n"
        "    enter(command, __file__, __doc__)\n"
    )
    done = subprocess.run(
        [sys.executable, "worries.py"], cwd=here, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    first, second, _ = done.stderr.splitlines()
    assert first == "warning: It rains."
    assert second.endswith("worries.py:4: FutureWarning: Old.")


def test_an_output_that_takes_nothing_is_said_elsewhere(here: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$0" "$1" --help >/dev/full', sys.executable,
         str(ROOT / "scripts" / "evaluate.py")],
        cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


def test_every_script_has_the_same_way_in() -> None:
    for name in SCRIPTS:
        last = ast.parse((ROOT / "scripts" / f"{name}.py").read_text()).body[-1]
        assert isinstance(last, ast.If), name
        assert ast.unparse(last.body[0]).startswith("enter("), name


def test_words_stand_for_themselves() -> None:
    known = texts(TrainConfig)
    assert known["run"] is False
    assert known["env.reward"] is True
    assert "load_parts" not in known
    plain = ["run=a=b", "run=it's", "run=x\\", "env.reward=null", "seed=3", "run=k,l"]
    assert for_hydra(plain, known, sweep=False) == [
        "run='a=b'", "run='it\\'s'", "run='x\\\\'", "env.reward=null", "seed=3", "run='k,l'",
    ]  # fmt: skip
    assert for_hydra(["run=k,'l,m'"], known, sweep=True) == ["run='k','l,m'"]
    home = os.path.expanduser("~")
    assert [at_home(w) for w in ("~", "~/a", "labels:~/a", "~a", "a/~")] == [
        home, f"{home}/a", f"labels:{home}/a", "~a", "a/~",
    ]  # fmt: skip
    for word in ("2024_01_02", "1e3", "a: b", "[x]", "null", "${x}", "#"):
        assert from_cli(EnvConfig, [f"id={word}"]).id == word
    assert from_cli(EnvConfig, ["id=x", "reward=null"]).reward is None
    with pytest.raises(ConfigError, match="Cannot read 'keys=\\['"):
        from_cli(EnvConfig, ["keys=["])
