"""Maps among the settings, and the rule for them: what is given replaces.

OmegaConf and Hydra merge two maps into one, which is right for sections of settings and wrong for
values: who gives control={left: 1.0} wants to be paid by that alone, whatever the default was.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Map:
    """A field dict[str, ...] of a dataclass. name: dotted. replaced: it holds values, and a map
    that is given stands in its place; else it holds sections by name (dataclasses), and what is
    given adds some, or changes them. open: it is empty by default, so that a dotted key may add a
    single entry; where there is a default, that would not say whether the default is to stay."""

    name: str
    replaced: bool
    open: bool

    def entry_of(self, key: str) -> str:
        """The entry that a dotted key names, or is below."""
        return key.removeprefix(f"{self.name}.").partition(".")[0]


def maps_of(config: DictConfig, prefix: str = "") -> Iterator[Map]:
    """The maps that the dataclasses of a structured config declare."""
    kind = OmegaConf.get_type(config)
    declared = {one.name: one for one in fields(kind)} if is_dataclass(kind) else {}
    hints = get_type_hints(kind) if declared else {}
    for key in map(str, config):
        if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key):
            continue
        value, hint = config[key], hints.get(key)
        if not isinstance(value, DictConfig):
            continue
        elements = [get_args(one)[1] for one in (hint, *get_args(hint)) if get_origin(one) is dict]
        if elements:
            default: Any = declared[key].default_factory
            open_to_entries = callable(default) and not default()
            yield Map(f"{prefix}{key}", not is_dataclass(elements[0]), open_to_entries)
        else:
            yield from maps_of(value, f"{prefix}{key}.")


def complete(words: DictConfig, one: Map, keys: Iterable[str], present: DictConfig) -> None:
    """Make what words give of a map by the dotted keys of entries the whole map, with the entries
    that are present and that they do not name."""
    whole, given = copy.deepcopy(present), OmegaConf.to_container(words)  # ${...} stays as it is
    for key in keys:
        value: Any = functools.reduce(lambda found, name: found[name], key.split("."), given)
        OmegaConf.update(whole, key.removeprefix(f"{one.name}."), value, merge=False)
    OmegaConf.update(words, one.name, whole, merge=False)


def given_map(config: Any, name: str) -> DictConfig | None:
    """The map that stands in a config under a dotted name; None where there is none."""
    found = OmegaConf.select(config, name, throw_on_resolution_failure=False)
    return found if isinstance(found, DictConfig) else None
