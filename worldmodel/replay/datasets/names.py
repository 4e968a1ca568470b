"""What the arrays of a recording are, by the names that other tools give them.

A known name has a part in an episode, or is known to be none of it (`vocabulary`). A name that
only looks like a reward, an end, a next observation or an index is never observed unasked. Where
the recording says which arrays are observations (obs/..., observation), no others are taken but
pictures and goals.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldmodel.envs.spaces import flat_name
from worldmodel.images import layout_of
from worldmodel.replay.datasets.arrays import OBJECTS
from worldmodel.replay.datasets.followers import partner, take_followers
from worldmodel.replay.datasets.questions import check_columns, check_looks
from worldmodel.replay.datasets.recording import DatasetError
from worldmodel.replay.datasets.vocabulary import (
    CONTAINERS,
    FLAG,
    GOALS,
    MAPPABLE,
    NUMBERED,
    PREFIXES,
    ROLE_OF,
    ROLES,
    UNSEEN,
    looks_like,
    reason,
    words_of,
)  # fmt: skip


@dataclass
class Named:
    """The arrays of one episode (or several, one after another) by their part in it. names: of all
    arrays, in lower case, by their last word. out: why each of the others is not used."""

    where: str
    roles: dict[str, np.ndarray] = field(default_factory=dict)
    obs: dict[str, np.ndarray] = field(default_factory=dict)
    after: dict[str, np.ndarray] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    out: dict[str, str] = field(default_factory=dict)


@dataclass
class Names:
    """Finds the parts of episodes by name.

    given: a role of MAPPABLE -> the array's name, a list of names, or None where there is none.
    keys: the flat names of what is observed, None for what the recording offers; asked: whether
    somebody named them (env.keys), so that each must be there.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    keys: Collection[str] | None = None
    asked: bool = False

    def __post_init__(self) -> None:
        wrong = [role for role in self.given if role not in MAPPABLE]
        if wrong:
            raise DatasetError(
                f"offline_names maps '{wrong[0]}'. {_nearest(wrong[0], MAPPABLE)} For example "
                "offline_names={reward: rew}."
            )
        self._role_of: dict[str, str] = {}
        self._none = {role for role, names in self.given.items() if names is None}
        for role, names in self.given.items():
            for name in [names] if isinstance(names, str) else names or ():
                self._role_of[str(name).lower()] = role

    @property
    def actions(self) -> tuple[str, ...]:
        """The names of actions."""
        mapped = tuple(name for name, role in self._role_of.items() if role == "action")
        return mapped or ROLES["action"]

    def are_episode(self, names: Iterable[str]) -> bool:
        """Whether arrays or groups of these names hold actions, and so episodes."""
        for name in names:
            match = NUMBERED.fullmatch(name.lower())
            if name.lower() in self.actions or (match and match["name"] in self.actions):
                return True
        return False

    def role(self, name: str) -> str | None:
        """The role of an array by its name alone; "next" and containers left out."""
        lower = name.lower()
        if lower in self._role_of:
            return self._role_of[lower]
        parts = words_of(lower)
        found = ROLE_OF.get("/".join(parts))
        if found is None and len(parts) > 1 and parts[0] in ("next", "collector"):
            found = ROLE_OF.get("/".join(parts[1:]))
        return None if found in self.given else found

    def sort(self, where: str, arrays: Mapping[str, np.ndarray]) -> Named:
        """Every array by its part in the recording.

        Raises DatasetError without actions or observations, for names that are mapped or asked
        for but not there, for two arrays with one part, and where something that looks like the
        reward, an end or a number of the episode is the only one of its kind.
        """
        self._check_mapped(where, arrays)
        named = Named(where, names={words_of(name.lower())[-1] for name in arrays})
        named.names |= {"/".join(words_of(name.lower())) for name in arrays}
        found: dict[str, dict[str, np.ndarray]] = {}
        spare: dict[str, tuple[str, np.ndarray]] = {}  # key -> what might be observed if asked for
        plain: dict[str, tuple[str, np.ndarray]] = {}
        follows: dict[str, tuple[str, np.ndarray]] = {}  # the same of next observations
        loose: dict[str, np.ndarray] = {}  # mapped as such, with a name of its own
        for name, value in arrays.items():
            role, why = self._part(name), unusable(value)
            if role == "goes_on" and value.ndim > 2:
                role = None  # pictures, perhaps
            after = self._after(name)
            if role == "skip":
                named.out[name] = "offline_names says so"
            elif role and role not in ("observation", "next_observation") and value.ndim:
                found.setdefault(role, {})[name] = value
                if role in UNSEEN:
                    spare[_key(name, value)] = (name, value)
            elif why:
                named.out[name] = why
            elif role == "next_observation" and after is None:
                loose[name] = value
            elif after is not None:
                follows[_key(after, value)] = (name, value)
            elif role != "observation" and (why_not := self._reason(name, value)):
                spare[_key(name, value)] = (name, value)
                named.out[name] = why_not
            else:
                _add(plain, name, value)
        for role, some in found.items():
            self._settle(named, role, some)
        check_looks(where, arrays, named.out, named.roles, self.given)
        if "done" not in self.given:
            check_columns(where, [v for k, v in plain.items() if k not in self._chosen()
                                  and not self._contained(v[0])], named.roles)  # fmt: skip
        for name, value in loose.items():
            key = _key(name, value)
            follows[key if key in plain else partner(where, name, value, plain)] = (name, value)
        if "next_observation" not in self._none:
            follows = take_followers(where, plain, self._chosen()) | follows
        self._observe(named, plain, spare, set(follows))
        alone = sorted(set(named.obs) - set(follows))
        for key, (name, value) in follows.items():
            if key in named.obs and not alone:
                named.after[key] = value
            elif key in named.obs or key not in plain:
                named.out[name] = f"{alone[0]} has none" if alone else "follows nothing observed"
        if "action" not in named.roles or not (named.obs or plain):
            held = (k + " (Python objects, never loaded)" * (arrays[k] is OBJECTS) for k in
                    sorted(arrays))  # fmt: skip
            raise DatasetError(
                f"{where} has no {'observation' if 'action' in named.roles else 'actions'}; its "
                f"arrays are {', '.join(held) or 'none'}. Actions are found by the names "
                f"{', '.join(ROLES['action'])}. Say it: offline_names={{action: NAME, "
                "observation: [NAME]}."
            )
        return named

    def _chosen(self) -> frozenset[str]:
        """Names and keys that somebody wants observed."""
        mapped = (name for name, role in self._role_of.items() if role == "observation")
        return frozenset([*mapped, *(self.keys or ())])

    def _reason(self, name: str, value: np.ndarray) -> str:
        """Why an array is not observed unasked, by its name or as a flag; "" where it may be."""
        flag = value.dtype.kind == "b" and value.size == len(value) and not self._contained(name)
        return reason(name) or (flag and (looks_like("an end") if value[-1:].any() else FLAG)) or ""

    def _part(self, name: str) -> str | None:
        lower = name.lower()
        if lower in self._role_of:
            return self._role_of[lower]
        return self.role(name)

    def _after(self, name: str) -> str | None:
        """The name of the observation that this one follows, or None."""
        if "next_observation" in self._none:
            return None
        parts = words_of(name)
        head = parts[0].lower()
        if head == "next" and len(parts) > 1:
            return "/".join(parts[1:])
        if head.startswith("next_"):
            return "/".join([parts[0][5:], *parts[1:]])
        return "/".join([parts[0][:-5], *parts[1:]]) if head.endswith("_next") else None

    def _settle(self, named: Named, role: str, some: Mapping[str, np.ndarray]) -> None:
        """One array for each role: what came after the step before what stood before it."""
        after = {k: v for k, v in some.items() if words_of(k.lower())[0] == "next"}
        chosen = after or dict(some)
        for name in set(some) - set(chosen):
            named.out[name] = f"{next(iter(after))} says it"
        (name, value), *others = chosen.items()
        if value.dtype.kind not in ("biufUS" if role == "episode" else "biuf"):
            raise DatasetError(f"{named.where}: '{name}' is {value.dtype}, not numbers.")
        for other, same in others:
            if same.shape != value.shape or not np.array_equal(same, value):
                raise DatasetError(
                    f"{named.where}: '{name}' and '{other}' are both names of the {role}, and "
                    f"differ. Say which: offline_names={{{role}: {name}}}."
                )
            named.out[other] = f"the same as {name}"
        if name in self._none or role in self._none:
            named.out[name] = "offline_names says so"
        else:
            named.roles[role] = value
            if role in UNSEEN:
                named.out[name] = UNSEEN[role]

    def _observe(
        self, named: Named, plain: dict[str, Any], spare: dict[str, Any], follows: set[str]
    ) -> None:
        """Choose what is observed, and say of the rest why it is not."""
        offered = dict(plain)
        if self.keys is not None:
            offered = self.pick(named.where, {**spare, **plain})
            why = "not asked for"
            named.out |= {name: why for key, (name, _) in plain.items() if key not in offered}
        else:
            inside = {k for k, (name, _) in plain.items() if self._contained(name)}
            if inside:
                for key, (name, value) in plain.items():
                    if key not in inside and not _beside(key, value):
                        del offered[key]
                        named.out[name] = "not among the observations"
            self._drop_lengths(named, offered, inside)
            if follows & set(offered):
                for key in set(offered) - follows:
                    named.out[offered[key][0]] = "no next observation"
                    del offered[key]
        for key, (name, value) in offered.items():
            named.obs[key] = value
            named.out.pop(name, None)

    def pick(self, where: str, pool: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked for of all that could be observed. Raises DatasetError for a key that was
        not recorded."""
        if self.keys is None:
            return dict(pool)
        missing = [key for key in self.keys if key not in pool]
        if missing and self.asked:
            raise DatasetError(
                f"{where}: env.keys names '{missing[0]}', which was not recorded. "
                f"{_nearest(missing[0], sorted(pool))}"
            )
        if missing:
            raise DatasetError(
                f"The environment observes {sorted(self.keys)}, but {where} has {sorted(pool)}: "
                f"{', '.join(missing)} is missing. Name the environment of the recording "
                "(env=..., env.keys, env.pixels), or env=none for no environment."
            )
        return {key: pool[key] for key in self.keys}

    def _drop_lengths(self, named: Named, offered: dict[str, Any], inside: set[str]) -> None:
        """Leave out what cannot stand beside the actions: as many rows, or one more."""
        if "action" not in named.roles:
            return
        steps = len(named.roles["action"])
        sizes = {len(v) for k, (_, v) in offered.items() if k in inside or not inside}
        fits = next((n for n in (steps + 1, steps) if n in sizes), None)
        if fits is None:
            return  # none of them fits: an error, which the alignment explains
        for key, (name, value) in list(offered.items()):
            if len(value) != fits:
                named.out[name] = f"{len(value)} rows, where the observations have {fits}"
                del offered[key]

    def _contained(self, name: str) -> bool:
        lower = name.lower()
        return self._role_of.get(lower) == "observation" or words_of(lower)[0] in CONTAINERS

    def _check_mapped(self, where: str, arrays: Mapping[str, Any]) -> None:
        there = {name.lower() for name in arrays}
        for name in self._role_of:
            if name not in there:
                raise DatasetError(
                    f"{where}: offline_names names '{name}', which was not recorded. "
                    f"{_nearest(name, sorted(arrays))}"
                )


def _key(name: str, value: np.ndarray) -> str:
    """A flat name for an observation, as environments give it."""
    parts = words_of(name)
    if parts[0].lower() in CONTAINERS:
        parts = parts[1:]
    return flat_name(parts) or ("image" if layout_of(value.shape[1:]) else "state")


def _add(found: dict[str, tuple[str, np.ndarray]], name: str, value: np.ndarray) -> None:
    """Note an array by its key; two of one key keep all their words ("obs" beside "state")."""
    key = _key(name, value)
    if key in found:
        other, theirs = found.pop(key)
        found[flat_name(words_of(other))] = (other, theirs)
        key = flat_name(words_of(name))
    found[key] = (name, value)


def _beside(key: str, value: np.ndarray) -> bool:
    """Whether an array beside the observations is observed too: a picture or a goal."""
    sides = value.shape[1:]
    return key in GOALS or (len(sides) in (2, 3) and math.prod(sides) >= 64)


def unusable(value: np.ndarray) -> str:
    """Why an array cannot be observed at all, or ""."""
    if value.dtype.kind not in "biuf":
        return "no numbers"
    if value.ndim == 0:
        return "one value for all"
    return ""


def without_prefix(arrays: Mapping[str, Any], actions: Collection[str]) -> dict[str, Any]:
    """The arrays without a first word that says nothing of them ("steps/action")."""
    if any("/".join(words_of(name.lower())) in actions for name in arrays):
        return dict(arrays)
    heads = {words_of(name.lower())[0] for name in arrays if len(words_of(name)) > 1}
    for head in heads & set(PREFIXES):
        inside = {
            "/".join(words_of(name)[1:]) if words_of(name.lower())[0] == head else name: value
            for name, value in arrays.items()
        }
        if len(inside) == len(arrays) and any(name.lower() in actions for name in inside):
            return inside
    return dict(arrays)


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"Known: {', '.join(known)}.{hint}"
