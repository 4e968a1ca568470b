"""Run folders that somebody damaged, or made up: config, checkpoint, summary, lock."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import agents
from agents.run.settings import check_folder
from tests.fuzz import runs
from tests.fuzz.common import SCALARS, WORDS, altered, cases, damaged, ours
from worldmodel import config

MARKER = "/tmp/worldmodel-fuzz-was-here"
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

    @cases(150, 1500)
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
    assert not Path(MARKER).exists()
