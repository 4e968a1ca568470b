"""Settings: what does not fit is one clear error with the nearest known key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worldmodel import config
from worldmodel.compose import compose_config, store
from worldmodel.config import ConfigError, RunError


@dataclass
class Inner:
    rate: float = 0.1
    level: int = config.free(0)
    sizes: list[int] = field(default_factory=lambda: [1, 2])


@dataclass
class Outer:
    steps: int = 10
    name: str = "???"
    inner: Inner = field(default_factory=Inner)
    table: dict[str, Inner] = field(default_factory=lambda: {"a": Inner()})
    anything: Any = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; it must not be negative.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tree of configs with one group and one preset."""
    store("outer_schema", Outer)
    (tmp_path / "inner").mkdir()
    (tmp_path / "main.yaml").write_text("defaults: [outer_schema, inner: slow, _self_]\nname: x\n")
    (tmp_path / "inner" / "slow.yaml").write_text("rate: 0.01\n")
    (tmp_path / "inner" / "odd.yaml").write_text("speed: 3\n")
    return tmp_path


def test_yaml_and_words_override_the_dataclass(folder: Path) -> None:
    composed = compose_config(folder, "main", ["steps=3", "table.a.rate=7"])
    built = config.build(composed, Outer)
    assert built == Outer(3, "x", Inner(0.01), {"a": Inner(7.0)})


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("stps=3", "Unknown key 'stps'. Did you mean 'steps'?"),
        ("inner.rat=3", "Unknown key 'inner.rat'. Did you mean 'inner.rate'?"),
        ("rate=3", "Unknown key 'rate'. Did you mean 'inner.rate'?"),
        ("table.a.ratee=3", "Unknown key 'table.a.ratee'. Did you mean 'table.a.rate'?"),
        ("xyzzy=3", "Unknown key 'xyzzy'. Run with --help to see every key."),
        ("+xyzzy=3", "Unknown key 'xyzzy'. Run with --help to see every key."),
        ("+inner.rat=3", "Unknown key 'inner.rat'. Did you mean 'inner.rate'?"),
        ("steps=many", "Wrong value for 'steps': Value 'many' of type 'str'"),
        ("inner.sizes=[1,a]", "Wrong value for 'inner.sizes[1]': Value 'a'"),
        (
            "inner.sizes=3",
            "'inner.sizes': it is a list. Give one in brackets, 'inner.sizes=[",
        ),
        (
            "table.a=3",
            "'table.a' is a group and takes no value itself. Give its settings: ",
        ),
        ("inner=slwo", "Unknown inner 'slwo'. Known: odd, slow. Did you mean 'slow'?"),
        ("inner=odd", "configs/inner/odd.yaml sets 'inner.speed', which does not exist"),
        ("steps", "Settings are given as key=value"),
        ("steps=-1", "steps is -1; it must not be negative."),
        ("name=???", "These settings have no value: name."),
    ],
)
def test_explains_what_does_not_fit(folder: Path, word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(compose_config(folder, "main", [word]), Outer)
    assert message in str(caught.value)


def test_words_alone_make_an_object() -> None:
    assert config.from_cli(Outer, ["name=y", "inner.rate=2"]) == Outer(name="y", inner=Inner(2.0))
    with pytest.raises(ConfigError, match=r"Unknown key 'nam'. Did you mean 'name'"):
        config.from_cli(Outer, ["nam=y"])
    with pytest.raises(ConfigError, match="Cannot read 'name'"):
        config.from_cli(Outer, ["name"])
    assert config.from_cli(Outer, ["name=y", "anything.b=${steps}", "steps=7"]).anything == {"b": 7}
    for value in ("3", "x", "[1]"):
        with pytest.raises(ConfigError) as caught:
            config.from_cli(Outer, ["name=y", f"inner={value}"])
        assert str(caught.value) == (
            "'inner' is a group and takes no value itself. Give its settings: inner.rate=..., "
            "inner.level=..., inner.sizes=..."
        )
    assert config.from_cli(Outer, ["name=y", "inner={rate: 3}"]).inner == Inner(3.0)
    with pytest.raises(ConfigError, match="Interpolation key 'nowhere' not found"):
        config.from_cli(Outer, ["name=y", "anything.b=${nowhere}"])


def test_ranges_are_readable() -> None:
    with pytest.raises(ConfigError, match=r"steps is -1; allowed: 1e-09 to 1e\+12\."):
        config.check_ranges(SimpleNamespace(steps=-1), {"steps": (1e-9, 1e12)})


def test_written_configs_read_back(tmp_path: Path) -> None:
    config.write(tmp_path / "config.yaml", Outer(name="z", anything={"b": [1.5, None]}))
    back = config.build(config.read(tmp_path / "config.yaml"), Outer)
    assert back == Outer(name="z", anything={"b": [1.5, None]})
    with pytest.raises(ConfigError, match="other' does not exist"):
        config.read(tmp_path / "other" / "config.yaml")
    with pytest.raises(ConfigError, match="not a run folder"):
        config.read(tmp_path / "other.yaml")
    for text in ("a: [1", "- 1"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"cannot be read|holds no settings"):
            config.read(tmp_path / "config.yaml")


def test_differences_name_each_key_once() -> None:
    old, new = Outer(name="a"), Outer(name="b", steps=11, inner=Inner(0.5))
    assert config.differences(old, new) == {
        "inner.rate": (0.1, 0.5),
        "name": ("a", "b"),
        "steps": (10, 11),
    }
    free = Outer(name="a", inner=Inner(level=3))
    assert list(config.free_keys(free)) == ["inner.level"]
    assert config.differences(old, free) == {}
    assert config.differences(old, Outer(name="a", anything={"k": 1})) == {
        "anything": (None, "(absent)"),
        "anything.k": ("(absent)", 1),
    }


def test_expected_errors_are_one_line_and_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def fail(error: Exception) -> int:
        raise error

    assert config.guarded(lambda: 7, said.append) == 7
    assert said == []
    assert config.guarded(lambda: fail(ConfigError("no")), said.append) == 2
    assert config.guarded(lambda: fail(RunError("stop")), said.append) == 1
    assert said == ["error: no", "error: stop"]
    with pytest.raises(ZeroDivisionError):  # our own mistakes keep their traceback
        config.guarded(lambda: fail(ZeroDivisionError()), said.append)
    monkeypatch.setattr(config, "WANTS_TRACEBACK", True)
    with pytest.raises(ConfigError):
        config.guarded(lambda: fail(ConfigError("no")), said.append)


def test_unknown_names_the_nearest() -> None:
    text = config.unknown("agent", "dreamr", ["random", "dreamer"])
    assert text == "Unknown agent 'dreamr'. Known: dreamer, random. Did you mean 'dreamer'?"
    assert config.unknown("agent", "zz", ["random"]) == "Unknown agent 'zz'. Known: random."


@dataclass
class Paid:
    weights: dict[str, float] = field(default_factory=lambda: {"reward": 1.0})
    given: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, Inner] = field(default_factory=lambda: {"a": Inner(), "b": Inner()})


@dataclass
class Run:
    paid: Paid = field(default_factory=Paid)
    steps: int = 1


GIVEN = {"x": 1, "deep": {"y": 2, "z": 3}}


@pytest.fixture(params=["composed", "upon an object"])
def weigh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Paid]:
    """What `key=value` words make of weights {spin: 2} and GIVEN, however these came there."""
    store("run_schema", Run)
    (tmp_path / "preset").mkdir()
    (tmp_path / "main.yaml").write_text("defaults: [run_schema, preset: mine, _self_]\n")
    text = "# @package _global_\n{}paid: {{weights: {{{}}}, given: {}}}\n"
    first, mine = text.format("", "more: 7", {"v": 8}), "defaults: [first, _self_]\n"
    (tmp_path / "preset" / "first.yaml").write_text(first)
    (tmp_path / "preset" / "mine.yaml").write_text(text.format(mine, "spin: 2", GIVEN))

    def weighed(*asked: str) -> Paid:
        if request.param == "composed":
            return config.build(compose_config(tmp_path, "main", asked), Run).paid
        return config.from_cli(Run, asked, Run(Paid({"spin": 2.0}, GIVEN))).paid

    return weighed


def test_a_map_that_is_given_replaces_and_a_section_is_added(weigh: Callable[..., Paid]) -> None:
    assert weigh() == weigh("steps=7") == Paid({"spin": 2.0}, GIVEN)
    assert weigh("paid.weights={up: 3}").weights == {"up": 3.0}
    assert weigh("paid.weights={}").weights == {}
    assert weigh("paid={weights: {up: 3}}").weights == {"up": 3.0}
    assert weigh("paid.given={w: {v: 1}}").given == {"w": {"v": 1}}
    assert weigh("paid.given.deep={w: 1}").given == {"x": 1, "deep": {"w": 1}}
    # A dotted key is of one entry alone. It adds one where there is no default to be in doubt of.
    assert weigh("paid.weights.spin=4").weights == {"spin": 4.0}
    assert weigh("paid.given.deep.y=4").given == {"x": 1, "deep": {"y": 4, "z": 3}}
    assert weigh("paid.given.w=4", "paid.given.x=5").given == GIVEN | {"w": 4, "x": 5}
    with pytest.raises(ConfigError) as caught:
        weigh("paid.weights.up=3")
    assert str(caught.value).startswith("'paid.weights' is {spin: 2.0}, without 'up'. Give all")
    with pytest.raises(ConfigError, match=r"'paid.weights' is given 2 times"):
        weigh("paid.weights={up: 3}", "paid.weights={down: 3}")
    with pytest.raises(
        ConfigError, match=r"'paid.weights.spin': (it is empty. Give one|Value '' )"
    ):
        weigh("paid.weights.spin=")
    # Each name of these is a section of its own.
    assert weigh("paid.heads={c: {rate: 2}}").heads == Paid().heads | {"c": Inner(2.0)}
    assert weigh("paid.heads={a: {rate: 2}}").heads["a"] == Inner(2.0)
    with pytest.raises(ConfigError, match=r"Unknown key 'paid.heads.c.rate'. Did you mean 'paid"):
        weigh("paid.heads.c.rate=3")


def test_what_was_written_is_all_there_is(tmp_path: Path) -> None:
    run = Run(Paid({"spin": 2.0}, GIVEN, {"c": Inner()}), 5)
    config.write(tmp_path / "config.yaml", run)
    assert config.build(config.read(tmp_path / "config.yaml"), Run, saved=True) == run
