"""Settings: dataclasses checked by OmegaConf, explained when wrong, written and read as YAML.

A dataclass says what exists; YAML and the command line only override it. What does not fit is
one `ConfigError` that names the nearest known key. Nothing here knows any particular config.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from worldmodel.atomic import is_full, replaced_file
from worldmodel.entry import HELP, WANTS_TRACEBACK
from worldmodel.maps import Map, complete, given_map, maps_of
from worldmodel.usage import usage
from worldmodel.words import at_home, literal, nearest, texts

T = TypeVar("T")
DEEPEST = 24  # levels of one YAML text; ours have six
LONGEST = 1 << 20  # characters of one YAML text; ours have some thousands
# What OmegaConf and PyYAML raise for texts that they cannot read, much of it by oversight.
UNREADABLE = (
    OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, LookupError,
    AttributeError, AssertionError, RecursionError, OverflowError,
)  # fmt: skip
FULL = "The disk is full. Make room, and give the same command again."


class ConfigError(ValueError):
    """A setting is wrong; the message says which, what is allowed and what to do."""


class RunError(RuntimeError):
    """A run cannot go on, for a reason outside the code; the message says what to do."""


class HelpAsked(Exception):
    """Somebody wants to know what can be given; the message says that."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """`Unknown agent 'dreamr'. Known: dreamer, random. Did you mean 'dreamer'?`"""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"Unknown {kind} '{name}'. Known: {', '.join(names)}.{hint}"


def check_ranges(settings: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """ConfigError where a number of `settings`, or one in a list of them, lies outside of its
    (lowest, highest) or is NaN; None is passed over."""
    for name, (low, high) in ranges.items():
        given = getattr(settings, name)
        allowed = " to ".join(f"{x:,}" if isinstance(x, int) else f"{x:g}" for x in (low, high))
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not low <= value <= high:  # a NaN fails too
                raise ConfigError(f"{name} is {given}; allowed: {allowed}.")


def keys_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted leaf keys and plain values of a config (DictConfig, dataclass object or class)."""
    if is_dataclass(config):
        config = OmegaConf.structured(config)
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=False)
    if not isinstance(config, dict) or (prefix and not config):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(keys_of(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def build(config: DictConfig, schema: type[T], like: T | None = None, saved: bool = False) -> T:
    """The dataclass object of a composed config; ConfigError where it does not fit. like: an object
    whose values stand where the config has none, in place of the dataclass's own. saved: the config
    is one that `write` wrote, which names every section of its maps (see `maps_of`).

    A ValueError from a dataclass's own check of its fields becomes a ConfigError too.
    """
    try:
        base = OmegaConf.structured(schema if like is None else like)
        for one in maps_of(base):
            if (one.replaced or saved) and given_map(config, one.name) is not None:
                OmegaConf.update(base, one.name, {}, merge=False)
        for key, value in keys_of(config).items():
            group = is_dataclass(OmegaConf.get_type(OmegaConf.select(base, key)))
            if group and isinstance(value, int | float | str | list) and "${" not in str(value):
                raise _not_a_value(key, keys_of(base))
        merged = OmegaConf.merge(base, config)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(
                f"These settings have no value: {', '.join(missing)}. "
                f"Give them, for example {missing[0]}=..."
            )
        _go_home(merged, texts(schema if like is None else like))
        built = OmegaConf.to_object(merged)
        known = keys_of(built)  # finds wrong types behind interpolations
    except OmegaConfBaseException as error:
        raise explain(error, keys_of(schema if like is None else like)) from error
    except ConfigError:
        raise
    except (ValueError, OverflowError) as error:
        raise ConfigError(str(error)) from error
    assert isinstance(built, schema)
    for key in sorted(keys_of(config).keys() - known.keys()):  # `+key=value` passes Hydra unchecked
        raise _unknown_key(key, known)
    return built


def from_cli(schema: type[T], arguments: Sequence[str], like: T | None = None, **chosen: Any) -> T:
    """A dataclass object from `key=value` words, with the values of `like` where there is no word;
    ConfigError where one does not fit, HelpAsked where one asks for help. A word for one entry of a
    map, map.entry=value, leaves the others as they are. chosen: for that help, as of `usage`."""
    if any(word in HELP for word in arguments):
        raise HelpAsked(usage(schema, chosen))
    base = OmegaConf.structured(schema if like is None else like)
    words = parse(arguments, schema if like is None else like)
    keys = [re.sub(r"\[([^\]]*)\]", r".\1", word.partition("=")[0]) for word in arguments]
    for one in maps_of(base):
        check_once(one, keys.count(one.name))
        entries = [key for key in keys if key.startswith(f"{one.name}.")]
        if entries and one.name not in keys:
            present = OmegaConf.select(base, one.name)
            for key in entries:
                check_entry(one, key, present)
            if one.replaced:
                try:
                    complete(words, one, entries, present)
                except OmegaConfBaseException as error:
                    raise explain(error, keys_of(base)) from error
    return build(words, schema, like)


def _go_home(config: Any, keys: Iterable[str]) -> None:
    """Replace `~` at the beginning of settings that are text by the home folder."""
    for key in keys:
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if isinstance(value, str) and at_home(value) != value:
            OmegaConf.update(config, key, at_home(value))


def check_once(one: Map, times: int) -> None:
    """ConfigError where a map is given more than once: is it the last, or all together?"""
    if times > 1:
        raise ConfigError(f"'{one.name}' is given {times} times. Give it once.")


def check_entry(one: Map, key: str, present: Mapping[str, Any]) -> None:
    """ConfigError where the dotted key of an entry of a map (or of a setting in it) would silently
    add one to the entries that are present."""
    entry = one.entry_of(key)
    if one.open or entry in present:
        return
    if not one.replaced:
        raise _unknown_key(key, keys_of(present, one.name))
    held = ", ".join(f"{name}: {value}" for name, value in present.items())
    raise ConfigError(
        f"'{one.name}' is {{{held}}}, without '{entry}'. Give all of it, to say what stays: "
        f"'{one.name}={{{entry}: ...}}' or '{one.name}={{{held}, {entry}: ...}}'."
    )


def parse(arguments: Sequence[str], schema: Any) -> DictConfig:
    """`key=value` words for a dataclass (a class or an object), unchecked; ConfigError where one
    cannot be read. Settings that are text are taken as they stand, the others as YAML."""
    text, parsed = texts(schema), OmegaConf.create()
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals:
            known = ", ".join(field.name for field in fields(schema))
            raise ConfigError(
                f"Cannot read '{word}': settings are given as key=value. Known: {known}."
            )
        try:
            if key in text:
                plain = literal(value, text[key])
                meant = plain and plain.replace("${", "\\${")  # OmegaConf's own escape
                OmegaConf.update(parsed, key, meant)
            else:
                check_yaml(value)
                parsed.merge_with_dotlist([word])
        except UNREADABLE as error:
            raise ConfigError(
                f"Cannot read '{word}' ({first_line(error)}). Settings are given as key=value, "
                "with quotes round odd text, and every key once."
            ) from error
    return parsed


def guarded(call: Callable[[], int], say: Callable[[str], None]) -> int:
    """Run `call`; expected errors become one line and an exit code: 2 settings or a full disk, 1
    the run."""
    try:
        return call()
    except HelpAsked as asked:
        say(str(asked))
        return 0
    except Exception as error:
        expected = isinstance(error, (OmegaConfBaseException, ConfigError, RunError))
        if WANTS_TRACEBACK or not (expected or is_full(error)):
            raise
        text = error if isinstance(error, RunError) else explain(error) if expected else FULL
        say(f"error: {text}")
        return 1 if isinstance(error, RunError) else 2


def explain(error: Exception, known: Iterable[str] = ()) -> ConfigError:
    """One clear ConfigError for what OmegaConf, or what caused it, found wrong. known: all keys."""
    if isinstance(error, ConfigError):
        return error
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if (key := bad_key(error)) is not None:
        return _unknown_key(key, known)
    first, full_key = str(cause).split("\n")[0], getattr(cause, "full_key", None)
    if full_key and "to Dict[" in first:
        first += f". Give its entries by name: {full_key}.NAME=..., or '{full_key}={{NAME: ...}}'"
    if full_key and "is not a subclass of" in first:
        return _not_a_value(full_key, known)
    if full_key and "is not a ListConfig" in first:
        first = f"it is a list. Give one in brackets, '{full_key}=[...]'"
    if full_key and "is not Optional" in first:
        first = f"it is empty. Give one, {full_key}=..., or leave the word out"
    return ConfigError(f"Wrong value for '{full_key}': {first}." if full_key else str(error))


def _not_a_value(key: str, known: Iterable[str]) -> ConfigError:
    below = [one for one in known if one.startswith(f"{key}.")]
    shown = ", ".join(f"{one}=..." for one in below[:8]) + ", and more" * (len(below) > 8)
    return ConfigError(f"'{key}' is a group and takes no value itself. Give its settings: {shown}")


def _unknown_key(key: str, known: Iterable[str]) -> ConfigError:
    close = nearest(key, known)
    hint = f"Did you mean '{close}'?" if close else "Run with --help to see every key."
    return ConfigError(f"Unknown key '{key}'. {hint}")


def bad_key(error: BaseException) -> str | None:
    """The key that does not exist, if that is what went wrong."""
    found = re.match(r"Could not override '([^'@]*)", str(error))
    if found:
        return found.group(1)
    text = f"{error}\n{error.__cause__}"
    if re.search(r"Key '[^']*' (?:not in|is not in struct)", text):
        full = re.search(r"full_key: (\S+)", text)
        return full.group(1) if full else None
    return None


def write(path: Path, config: Any) -> None:
    """Write a config object, every value resolved, as YAML."""
    with replaced_file(path) as fresh:
        fresh.write_text(OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True))


def read(path: Path) -> DictConfig:
    """Read a config written by `write`; ConfigError where there is none."""
    if not path.is_file():
        wrong = f"There is no {path.name} in '{path.parent}': this is not a run folder."
        if not path.parent.is_dir():
            wrong = f"The folder '{path.parent}' does not exist."
        raise ConfigError(f"{wrong} Give the folder that a training run printed as its own.")
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST + 1).decode()
        check_yaml(text, resolved=True)
        config = OmegaConf.load(io.StringIO(text))
    except (*UNREADABLE, OSError) as error:
        raise ConfigError(
            f"'{path}' cannot be read: {first_line(error)}. Restore it, or start anew."
        ) from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"'{path}' holds no settings. Start a new run.")
    return config


def section(config: DictConfig, name: str, path: Path) -> DictConfig:
    """One section of a config that was read from `path`, as a config of its own; ConfigError
    where it has none."""
    found = config.get(name)
    if not isinstance(found, DictConfig):
        raise ConfigError(
            f"'{path}' has no section '{name}'. Restore it from a copy, or start a new run."
        )
    return OmegaConf.create(OmegaConf.to_container(found))  # type: ignore[return-value]


def check_yaml(text: str, resolved: bool = False) -> None:
    """ValueError unless the text is YAML that takes no more room read than written: not too long
    or deep, and without anchors, which can stand for themselves a billion times. resolved: nor may
    it refer to other settings or to the environment's variables, as `write` never does.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST:,} characters")
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it refers to an anchor, '*{event.anchor}'; write the value out")
        if resolved and isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise ValueError(f"it refers to another value, '{event.value}'; write the value out")


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that only its author understands."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def free(default: Any) -> Any:
    """The field of a config that may differ when what it belongs to is continued."""
    return field(default=default, metadata={"free": True})


def free_keys(config: Any) -> Iterator[str]:
    """Dotted names of the `free` fields of a dataclass object and of those in it."""
    for one in fields(config):
        value = getattr(config, one.name)
        if one.metadata.get("free"):
            yield one.name
        elif is_dataclass(value):
            yield from (f"{one.name}.{key}" for key in free_keys(value))


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, as {key: (old, new)}, the `free` ones of `new` left out."""
    before, after, absent = keys_of(old), keys_of(new), "(absent)"
    pairs = {
        key: (before.get(key, absent), after.get(key, absent))
        for key in sorted({*before, *after} - {*free_keys(new)})
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
