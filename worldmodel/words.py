"""The words of a command line, `key=value`: those of settings that are text stand for themselves.

What a person types for a path or a name is no YAML and no grammar: `run=runs/größe`, `run=lr=1e-3`,
`offline=my episodes (v2)`. Quotes round all of it are taken off, and `null` is no value where there
may be none.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

HOME = re.compile(r"^(\w+:)?~(?=/|$)")
# What Hydra's sweeps understand beside a list of values.
SWEEPS = re.compile(r"^(choice|range|interval|glob|shuffle|sort|tag)\(")
PIECES = re.compile(r"""(?:'[^']*'|"[^"]*"|[^,])+""")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known dotted key closest to `name`: the same last word elsewhere, else a similar one
    beside it, else a similar one anywhere; or None."""
    keys = list(known)
    parent, _, leaf = name.rpartition(".")
    same_leaf = [key for key in keys if key.rpartition(".")[2] == leaf]
    if same_leaf:
        return difflib.get_close_matches(name, same_leaf, n=1, cutoff=0.0)[0]
    siblings = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == parent}
    everywhere = {key.rpartition(".")[2]: key for key in reversed(keys)}
    for candidates in (siblings, everywhere):
        close = difflib.get_close_matches(leaf, candidates, n=1, cutoff=0.6)
        if close:
            return candidates[close[0]]
    close = difflib.get_close_matches(name, keys, n=1, cutoff=0.8)
    return close[0] if close else None


def texts(schema: Any, prefix: str = "") -> dict[str, bool]:
    """Dotted keys of the fields of a dataclass (a class or an object) that are text, and whether
    each may be None."""
    found: dict[str, bool] = {}
    cls = schema if isinstance(schema, type) else type(schema)
    hints = get_type_hints(cls)
    for field in fields(schema):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        inner = hint if isinstance(schema, type) else getattr(schema, field.name)
        kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
        if is_dataclass(inner):
            found |= texts(inner, f"{key}.")
        elif kinds <= {str, NoneType} and str in kinds:
            found[key] = NoneType in kinds
    return found


def literal(value: str, optional: bool) -> str | None:
    """What a word means for a setting that is text."""
    if optional and value == "null":
        return None
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def at_home(value: str) -> str:
    """A path with `~` at its beginning (or that of what follows `kind:`) in the home folder."""
    found = HOME.match(value)
    if not found:
        return value
    return f"{found[1] or ''}{os.path.expanduser('~')}{value[found.end() :]}"


def for_hydra(words: Sequence[str], known: Mapping[str, bool], sweep: bool) -> list[str]:
    """The words as Hydra reads them, with quotes round what is text. sweep: commas separate the
    values of several runs. Interpolations (`${seed}`) stay what they are."""
    return [_for_hydra(word, known, sweep) for word in words]


def _for_hydra(word: str, known: Mapping[str, bool], sweep: bool) -> str:
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if not equals or name not in known or (sweep and SWEEPS.match(value)):
        return word
    parts = (PIECES.findall(value) if sweep else None) or [value]
    return f"{key}={','.join(_hydra_quoted(part, known[name]) for part in parts)}"


def _hydra_quoted(value: str, optional: bool) -> str:
    text = literal(value, optional)
    if text is None:
        return "null"
    # A backslash is only special before a quote, and the closing one is a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"
