"""What a command can be given: its settings, their defaults, and what their comments say."""

from __future__ import annotations

import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

WIDTH = 100


def usage(schema: Any, chosen: Mapping[str, Any] | None = None) -> str:
    """Every setting of a dataclass (a class or an object), a line each: `key=default`, and its
    meaning from the comments beside and above it. chosen: by its word, what else was chosen by
    name, an object with a `name`, whose settings follow as `word.key`."""
    lines = [_about(schema), "", "Settings, with what they are where nothing is said:"]
    lines += _settings(schema, "")
    for word, one in (chosen or {}).items():
        if one is not None:
            own = _settings(type(one), f"{word}.")
            lines += ["", f"{word}={one.name}", "", _about(one), ""]
            lines += [row for row in own if not row.startswith(f"  {word}.name=")]  # chose it
    return "\n".join(lines)


def _about(schema: Any) -> str:
    return inspect.getdoc(schema if isinstance(schema, type) else type(schema)) or ""


def _settings(schema: Any, prefix: str) -> list[str]:
    node = OmegaConf.structured(schema)
    meanings = comments(schema if isinstance(schema, type) else type(schema))
    lines: list[str] = []
    for field in dataclasses.fields(schema):
        value = "..." if OmegaConf.is_missing(node, field.name) else node[field.name]
        inner = OmegaConf.get_type(value) if OmegaConf.is_config(value) else None
        if inner is not None and dataclasses.is_dataclass(inner):
            lines += _settings(OmegaConf.to_object(value), f"{prefix}{field.name}.")
            continue
        text = f"  {prefix}{field.name}={_plain(value)}"
        lines += _beside(text, meanings.get(field.name, ""))
    return lines


def _beside(text: str, meaning: str) -> list[str]:
    """A setting with its meaning in a column of its own."""
    start = 36
    if not meaning:
        return [text]
    rows = textwrap.wrap(meaning, WIDTH - start)
    first = f"{text:<{start}}{rows[0]}" if len(text) < start else text
    rest = rows[1:] if len(text) < start else rows
    return [first, *(" " * start + row for row in rest)]


def _plain(value: Any) -> str:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def comments(schema: type) -> dict[str, str]:
    """The comments of each field of a dataclass: those on the lines above it and beside it."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        above: list[str] = []
        for line in textwrap.dedent(inspect.getsource(cls)).splitlines():
            name, colon, _ = line.strip().partition(":")
            if line.strip().startswith("#"):
                above.append(line.strip("# "))
            elif colon and name.isidentifier() and name in cls.__dataclass_fields__:
                found[name] = " ".join([*above, *_comment(line)])
                above = []
            elif line.strip():
                above = []
    return found


def _comment(line: str) -> list[str]:
    """The comment at the end of a line of code."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.strip()).readline))
    except (tokenize.TokenError, SyntaxError):  # the field goes on in the next line
        return []
    return [token.string.strip("# ") for token in tokens if token.type == tokenize.COMMENT]
