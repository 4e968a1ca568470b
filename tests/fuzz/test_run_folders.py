"""Run folders that somebody damaged, or made up: config, checkpoint, summary, lock."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import agents
from agents.run import report
from agents.run.folder import HOLDER, RunLock, check_folder
from tests.fuzz import runs
from tests.fuzz.common import JSON, MARKER, SCALARS, WORDS, altered, cases, damaged, ours
from worldmodel import config

HOSTILE = [
    "", "a", "- a", "null", "3", "{", "\x00", "\ufeff", "agent:", "agent: 3", "agent: {}",
    "agent: {name: dreamer}", "agent: {name: ???}", "agent: {name: '${env.id}'}\nenv: {id: x}",
    "agent: {name: 'os:system'}", "agent: {name: 'builtins:int'}", "agent: {name: ':'}",
    "agent: {name: 'agents.random:Random:x'}", "agent: {name: '..:x'}", "agent: {name: [1]}",
    "agent: {name: random}\nenv: [1]", "agent: {name: random}\nenv: {kwargs: {1: {2: 3}}}",
    f"a: !!python/object/apply:os.system ['touch {MARKER}']",
    f"!!python/object/new:os.system ['touch {MARKER}']",
    "a: !!python/name:os.system", "a: !!python/object/apply:pathlib.PosixPath [x]",
    "a: &a [*a]", "a: &a {b: *a}",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
    "[" * 5000, "{a: " * 5000, "a: " + "9" * 5000, "? " * 3000, "- " * 3000,
    "a: ${b}\nb: ${a}", "a: ${oc.env:HOME}", "a: ${oc.create:${a}}", "x: !!set {a}",
    "x: !!binary a", "x: !!timestamp 1", "x: !!omap [a: 1]", "%YAML 9.9\n---\na: 1", "--- a\n--- b",
    "a: 1\na: 2", "? [1]\n: 2", "? {a: 1}\n: 2", "<<: 3", "a: |\n" + " " * 2000,
]  # fmt: skip


def texts(whole: bytes) -> st.SearchStrategy[bytes]:
    """A config.yaml with damaged bytes, with other values and keys, or with nothing of ours."""
    tree = yaml.safe_load(whole)
    values = st.one_of(SCALARS.filter(_yaml_can_say), WORDS.filter(_yaml_can_say))
    changed = altered(tree, values).map(lambda t: yaml.safe_dump(t, allow_unicode=True).encode())
    return st.one_of(
        damaged(whole), changed, changed, st.binary(max_size=200),
        st.sampled_from(HOSTILE).map(str.encode),
    )  # fmt: skip


def _yaml_can_say(value: object) -> bool:
    return not isinstance(value, str) or "\ud800" not in value


@pytest.fixture(scope="module")
def folder(dreamer_run: Path, place: Path) -> Path:
    return runs.copy(dreamer_run, place / "run")


def test_any_config_of_a_run_folder(dreamer_run: Path, folder: Path) -> None:
    whole = (dreamer_run / "config.yaml").read_bytes()
    mine = config.build(config.read(dreamer_run / "config.yaml"), runs.DreamerRun)
    mine = replace(mine, run=str(folder))

    @cases(15, 150)
    @given(texts(whole))
    def fuzz(text: bytes) -> None:
        (folder / "config.yaml").write_bytes(text)
        with ours("config.yaml"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            agents.load(folder, "cpu")
        with ours("config.yaml, compared"):
            check_folder(mine, lambda text: None)

    for text in HOSTILE:
        fuzz = example(text.encode())(fuzz)
    fuzz()
    assert not MARKER.exists()


SUMMARY = {
    "task": "x", "agent": "random", "seed": 0, "agent_steps": 12, "env_frames": 12, "updates": 3,
    "wall_clock_s": 1.5, "eval_return_mean": 1.0, "eval_return_std": 0.5, "eval_episodes": 1,
    "parameters": 10, "device": "cpu", "versions": {"torch": "2"}, "config": {"seed": 0},
}  # fmt: skip


def jsons(whole: object) -> st.SearchStrategy[bytes]:
    """A JSON file with damaged bytes, with other values and keys, or with nothing of ours."""
    text = json.dumps(whole).encode()
    return st.one_of(
        damaged(text), altered(whole, JSON).map(lambda tree: json.dumps(tree).encode()),
        JSON.map(lambda tree: json.dumps(tree).encode()), st.binary(max_size=100),
        st.sampled_from([b"[" * 100_000, b"9" * 5000, b'{"a":' * 5000, b"\xff", b"NaN", b""]),
    )  # fmt: skip


def test_any_summary(dreamer_run: Path, folder: Path) -> None:
    (folder / "config.yaml").write_bytes((dreamer_run / "config.yaml").read_bytes())
    mine = config.build(config.read(folder / "config.yaml"), runs.DreamerRun)
    mine = replace(mine, run=str(folder))

    @cases(15, 100)
    @given(jsons(SUMMARY))
    def fuzz(text: bytes) -> None:
        (folder / report.SUMMARY).write_bytes(text)
        with ours("summary.json"):
            summary = check_folder(mine, lambda text: None)
            assert summary is None or report.table(summary)

    fuzz()


@cases(60, 600)
@given(jsons({"pid": 1, "host": "here", "since": "2001-01-01 00:00:00"}))
@example(json.dumps({"pid": 1, "host": "\x1b[2J", "since": ""}).encode())
def test_any_holder(place: Path, text: bytes) -> None:
    (place / HOLDER).write_bytes(text)
    with ours(".holder.json"):
        said: list[str] = []
        with RunLock(place, said.append):
            assert all(line.isprintable() for line in said)
