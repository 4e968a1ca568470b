"""The words given to scripts/: Hydra's composition, and the settings of every command."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.apps import reuse
from agents.apps.dreams.episodes import DreamConfig
from agents.apps.evaluate import evaluate_command
from agents.apps.reuse import dream_settings
from agents.apps.rewards import cli as rewards
from agents.apps.rewards.pipeline import FitConfig
from agents.run import cli
from tests.fuzz.common import WORDS, cases, ours
from tests.fuzz.test_configs import NUMBERS, SETTINGS, YAMLS
from worldmodel import config

GROUPS = st.builds(
    "{}={}".format,
    st.sampled_from(["agent", "env", "size", "experiment", "env@x", "+env", "~agent", "hydra"]),
    st.one_of(
        st.sampled_from(["dreamer", "random", "dyna_q", "pendulum", "tiny", "none", "atari100k",
                         "", "nothing", "..", "../train", "/etc/passwd", "a:b", "os:system", ":",
                         "tests.agents.counting_agent:CountingAgent", "[tiny]", "tiny,none"]),
        WORDS,
    ),
)  # fmt: skip
COMMANDS = st.lists(
    st.one_of(SETTINGS, SETTINGS, GROUPS, GROUPS, st.text(max_size=9), st.sampled_from(
        ["--cfg", "--help", "--resolve", "seed=0,1", "seed=range(2)", "-", "--", "hydra.verbose=3",
         "hydra.sweeper.max_batch_size=0", "hydra.job.name=", "--info", "a=b=c", "--package", "-p"]
    )),
    max_size=3,
)  # fmt: skip


def printable(text: str) -> None:
    """What a terminal does with a line."""
    text.encode(errors="backslashreplace")


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "train", lambda settings, say: 0)


@pytest.mark.usefixtures("_elsewhere")
def test_the_training_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @cases(3, 15)
    @given(COMMANDS)
    def fuzz(words: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py"])  # where Hydra reads them
        with ours("scripts/train.py"), contextlib.suppress(SystemExit):  # argparse's own
            assert cli.train_command(printable, words) in (0, 1, 2)
        capsys.readouterr()

    fuzz()


def test_the_evaluation_command(dreamer_run: Path) -> None:
    run = f"run={dreamer_run}"
    fields = st.sampled_from(
        [
            "run",
            "episodes",
            "seed",
            "mode",
            "num_envs",
            "device",
            "x",
            "control",
            "planner",
            "planner.horizon",
            "planner.bounds",
        ]
    )
    values = st.one_of(
        st.integers(-1, 2), st.sampled_from(["mode", "sample", "cpu", "cuda:7", "nowhere", "é"]),
        st.sampled_from(["cem", "{reward: 1.0}"]),
        st.sampled_from(["9" * 30, "nan", "null", "[1]", "{a: 1}", "1e3", "/", "\x00", "\ud800"]),
    )  # fmt: skip

    @cases(4, 15)
    @given(st.lists(st.builds("{}={}".format, fields, values), min_size=1, max_size=2))
    def fuzz(words: list[str]) -> None:
        with ours("scripts/evaluate.py"):
            few = [run, "episodes=1", "num_envs=1", "device=cpu"]
            given = {word.partition("=")[0] for word in words}
            kept = [word for word in few if word.partition("=")[0] not in given]
            assert evaluate_command(printable, [*kept, *words]) in (0, 1, 2)

    fuzz()


VALUES = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(YAMLS), WORDS, st.text(max_size=12))


def words_of(schema: type) -> st.SearchStrategy[list[str]]:
    names = st.sampled_from([*config.keys_of(schema), "x", "", "control.x", "run.x", "seed[0]"])
    word = st.one_of(st.builds("{}={}".format, names, VALUES), st.text(max_size=9))
    return st.lists(word, max_size=3)


def settings_of(schema: type, fast: int, full: int, kind: str, read: Callable[[Any], Any]) -> None:
    @cases(fast, full)
    @given(words_of(schema))
    @example(["run='"])
    def fuzz(words: list[str]) -> None:
        with ours(kind):
            read(["run=x", *words] if not any(w.startswith("run=") for w in words) else words)

    fuzz()


def test_settings_of_dreams() -> None:
    settings_of(DreamConfig, 30, 300, "settings, dream", lambda w: config.from_cli(DreamConfig, w))


def test_settings_of_fits() -> None:
    settings_of(FitConfig, 30, 300, "settings, fit_reward", lambda w: config.from_cli(FitConfig, w))


def test_fitting_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def read(words: list[str]) -> None:
        assert rewards.fit_reward_command(printable, words) in (1, 2)

    settings_of(FitConfig, 10, 200, "scripts/fit_reward.py", read)


def test_training_in_dreams(dreamer_run: Path) -> None:
    """Up to the settings of the run that would be trained."""

    def read(words: list[str]) -> None:
        known = {"run", "control", "to", "updates"}
        mine = [w for w in words if "=" not in w or w.partition("=")[0].split(".")[0] in known]
        asked = config.from_cli(reuse.DreamConfig, mine)
        dream_settings(asked, [word for word in words if word not in mine])

    @cases(6, 60)
    @given(st.lists(st.one_of(SETTINGS, st.builds("{}={}".format, st.sampled_from(
        ["control", "control.reward", "to", "updates", "agent.horizon", "steps", "env.id"]),
        st.one_of(VALUES, st.sampled_from(["{reward: 1.0}", "{x: 1}", "{reward: nan}", "3"])))),
        max_size=2))  # fmt: skip
    @example(["agent.horizon=5"])
    def fuzz(words: list[str]) -> None:
        with ours("settings, train_in_dreams"):
            read([f"run={dreamer_run}", *words])

    fuzz()
