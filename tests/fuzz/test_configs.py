"""Settings from the command line and from a run folder's config.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import example, given
from hypothesis import strategies as st

import agents
from agents.apps.evaluate import EvaluateConfig
from agents.dreamer import DreamerConfig
from agents.random import RandomConfig
from agents.run.config import TrainConfig
from tests.fuzz.common import WORDS, cases, ours
from worldmodel import config
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec


@dataclass
class TrainDreamer(TrainConfig):
    agent: DreamerConfig = field(default_factory=DreamerConfig)


@dataclass
class TrainRandom(TrainConfig):
    agent: RandomConfig = field(default_factory=RandomConfig)


BASES = {TrainDreamer: ["env.id=x"], TrainRandom: ["env.id=x"], EvaluateConfig: ["run=x"]}
KEYS = sorted({key for schema in BASES for key in config.keys_of(schema)})
SECTIONS = sorted({key.rpartition(".")[0] for key in KEYS} - {""})
NUMBERS = ["0", "-1", "1", "2", "3", "0.5", "1e-3", "16", "64", "1e999", "nan", "inf", "-inf",
           "9" * 30, "9" * 5000, "0x10", "1_000", "1:30"]  # fmt: skip
YAMLS = ["", "null", "true", "x", "[]", "[1]", "[64,64]", "[[1]]", "[null]", "{}", "{a: 1}",
         "{a: {target: reward}}", "???", "${seed}", "${run}", "${a", "${oc.env:HOME}",
         "${oc.decode:x}", "${env}", "[", "}", '"', "'", "!!python/object:os.system",
         "!!python/object/apply:os.system [exit 3]", "!!python/name:os.system", "!!binary x",
         "!!set {a}", "&a [*a]", "*a", "<<: *x", "{1: 2}", "{run: 3, run: 4}", "? [1]", "- a",
         "a: b: c", "%x", "@x", "`", "|", "~", "2001-01-01", "\t", "\\", "[" * 2000,
         "{a: " * 2000]  # fmt: skip
VALUES = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(YAMLS), WORDS, st.text(max_size=20))


def near(key: str) -> st.SearchStrategy[str]:
    """`key=value` with a value of the right kind, mostly a possible one."""
    now = DEFAULTS[key]
    if isinstance(now, bool):
        return st.sampled_from([f"{key}=true", f"{key}=no"])
    if isinstance(now, float):
        return st.floats(0, 2, width=16).map(lambda value: f"{key}={value}")
    if isinstance(now, int):
        return st.one_of(st.integers(0, 9), st.integers(-1, 40)).map(lambda n: f"{key}={n}")
    if isinstance(now, list):
        sides = st.sampled_from([32, 64, 1, 2])
        return st.lists(sides, max_size=4).map(lambda values: f"{key}={values}")
    return st.sampled_from([now, "null", "reward", "x", 1]).map(lambda value: f"{key}={value}")


NAMES = st.one_of(
    st.sampled_from(KEYS),
    st.sampled_from(KEYS),
    st.sampled_from(SECTIONS),
    st.builds("".join, st.tuples(st.sampled_from(["+", "++", "~", ""]), st.sampled_from(KEYS),
                                 st.sampled_from(["", ".x", "[0]", ".0", "[", "@a", ".", "\n"]))),
    st.sampled_from(["", ".", "..", "a..b", "[", "[0]", "-", "--"]),
    st.text(max_size=12),
)  # fmt: skip
DEFAULTS = {key: value for schema in BASES for key, value in config.keys_of(schema).items()}
SETTINGS = st.one_of(st.builds("{}={}".format, NAMES, VALUES), st.sampled_from(KEYS).flatmap(near))
AGENT_KEYS = [key for key in KEYS if "agent." in key]
AGENT_SETTINGS = st.one_of(
    st.builds("{}={}".format, st.sampled_from(AGENT_KEYS), st.sampled_from(NUMBERS + YAMLS)),
    st.sampled_from(AGENT_KEYS).flatmap(near),
)
SPEC = EnvSpec(
    {"image": ObsSpec("image", (32, 32, 3)), "state": ObsSpec("vector", (2,))},
    ActionSpec("discrete", (3,)),
)
SMALL = ["agent.model.deter=8", "agent.model.units=4", "agent.model.depth=2"]
SMALL += ["agent.model.blocks=2", "agent.model.hidden=4", "agent.model.groups=2"]


@cases(60, 1000)
@given(st.sampled_from(list(BASES)), st.lists(st.one_of(SETTINGS, st.text(max_size=9)), max_size=2))
@example(TrainDreamer, ["env.kwargs={a: &a [1, 1], b: &b [*a, *a], c: [*b, *b]}"])
def test_words_make_settings_or_one_clear_error(schema: type, words: list[str]) -> None:
    with ours("settings from words"):
        built = config.from_cli(schema, [*BASES[schema], *words])
        assert isinstance(built, schema)


@cases(15, 150)
@given(st.lists(AGENT_SETTINGS, min_size=1, max_size=2))
def test_settings_make_an_agent_or_one_clear_error(words: list[str]) -> None:
    with ours("agents from words", growth=1 << 30):  # 64 layers are many, but allowed
        built = config.from_cli(TrainDreamer, [*BASES[TrainDreamer], *SMALL, *words])
        agents.make("dreamer", SPEC, built.agent, torch.device("cpu"))
