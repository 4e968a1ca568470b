"""From the arrays of a file to its episodes: one, several one after another, or stacked."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldmodel.replay.datasets.align import same_rows
from worldmodel.replay.datasets.boundaries import Notes, numbers_of, split, take, written
from worldmodel.replay.datasets.names import NUMBERED, Named, Names, without_prefix
from worldmodel.replay.datasets.recording import DatasetError, Format, Raw

# A group of this name is one episode, whatever its flags say.
EPISODE = re.compile(r"(^|/)(demo|traj|trajectory|episode|ep|rollout)s?[_-]?\d+$", re.IGNORECASE)
LEROBOT = Format("LeRobot", "taken_at", "truncated")
TORCHRL = Format("TorchRL", "taken_at")
SB3 = Format("stable-baselines3", "taken_at")
D3RLPY = Format("d3rlpy", "taken_at")
ROBOMIMIC = Format("robomimic", "taken_at", "terminated")
DREAMERV3 = Format("DreamerV3", "taken_at", arrives=True, firm=False)
VALID = "valid_mask"  # what a mask is called that pads episodes
NEXT = {"next/reward", "next/done", "next/terminated", "next/truncated", "next/success"}


@dataclass
class Parter:
    """Parts the arrays of files into episodes.

    names: what each array is. axes, alignment: what somebody says of them (AXES, ALIGNMENTS). out:
    the names of arrays that are not used, and why. notes: what else was found.
    """

    names: Names
    axes: str = "auto"
    alignment: str = "auto"
    out: dict[str, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=dict)

    def episodes(self, where: str, arrays: Mapping[str, Any], form: Format | None = None,
                 whole: bool = False) -> Iterator[Raw]:  # fmt: skip
        """The episodes of one set of arrays. form: of a recording that says what wrote it; whole:
        it is known to be one episode.

        Raises DatasetError where the arrays do not fit together.
        """
        arrays = without_prefix(arrays, self.names.actions)
        sets = _numbered(arrays, self.names) or _condensed(arrays)
        if sets:
            form, whole = form or (D3RLPY if "columns" in arrays else None), True
        else:
            sets = self._stacked(where, arrays) or [dict(arrays)]
        for number, one in enumerate(self._masked(sets)):
            place = f"{where}, episode {number}" if len(sets) > 1 else where
            named = self.names.sort(place, self._with_numbers(self._spread(one)))
            self.out |= named.out
            raw, ids, counter, valid = _raw(named, form)
            raw.whole = whole or bool(EPISODE.search(where))
            rows = written(raw, valid, self.notes)
            if rows != slice(0, len(raw.action)):
                raw = take(raw, rows)
                ids, counter = (x if x is None else x[rows] for x in (ids, counter))
            yield from split(raw, self.notes, ids, counter, self.alignment)

    def _steps(self, arrays: Mapping[str, Any]) -> int:
        actions = (v for k, v in arrays.items() if self.names.role(k) == "action" and v.ndim)
        return max((len(v) for v in actions), default=0)

    def _with_numbers(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The arrays with the number of each row's episode, where lengths or ends say it."""
        steps = self._steps(arrays)
        known = {self.names.role(k) for k, v in arrays.items() if v.ndim and len(v) == steps}
        found = None
        if "episode" not in self.names.given and not known & {"episode", "is_first"}:
            found = numbers_of(arrays, steps)
        if found is None:
            return arrays
        self.out[found[0]] = "says where episodes end"
        return {k: v for k, v in arrays.items() if k != found[0]} | {"episode": found[1]}

    def _masked(self, sets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The sets with a mask that pads episodes, and does not say where the world ends, called
        so: in all rows that it denies there are zeros alone."""
        for name in [k for k in sets[0] if self.names.role(k) == "goes_on"]:
            denied = False
            for one in sets:
                mask = one[name]
                if mask.dtype.kind not in "biuf" or mask.ndim == 0 or mask.size != len(mask):
                    return sets
                rows = np.flatnonzero(np.ravel(mask) == 0)
                held = (v[rows] for k, v in one.items() if self.names.role(k) in (None, "action")
                        and v.dtype.kind in "biuf" and v.ndim and len(v) == len(mask))  # fmt: skip
                if len(rows) and any(value.any() for value in held):
                    return sets
                denied |= len(rows) > 0
            if denied:
                return [{VALID if k == name else k: v for k, v in one.items()} for one in sets]
        return sets

    def _spread(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The arrays with flags that are said once for an episode set in its last row."""
        steps = self._steps(arrays)
        once = {
            k: (np.arange(steps) == steps - 1) & bool(v)
            for k, v in arrays.items()
            if v.ndim == 0 and v.dtype.kind in "biuf"
            and self.names.role(k) in ("terminated", "truncated", "done")
        }  # fmt: skip
        return {**arrays, **once}

    def _stacked(self, where: str, arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Arrays stacked as [episodes, steps, ...] or [steps, environments, ...], one set for each
        episode or environment; [] where they are not stacked."""
        by_role = {role: v for k, v in arrays.items() if (role := self.names.role(k))}
        flags = {
            role: value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value
            for role, value in by_role.items()
            if role in ("reward", "terminated", "truncated", "done", "is_first", "is_last")
        }
        wide = {k: v for k, v in flags.items() if v.ndim == 2 and len(v) and v.shape[1] > 1}
        action = by_role.get("action")
        if not wide and flags and action is not None and action.ndim > 2 and action.shape[1] == 1:
            one = {k: v[:, 0] for k, v in arrays.items() if v.ndim > 1 and v.shape[1] == 1}
            return [one]  # a buffer of one environment
        if not wide:
            return []
        first, second = next(iter(wide.values())).shape
        narrow = [k for k, v in flags.items() if v.ndim == 1 and len(v) == first > 1]
        if list(wide) == ["reward"] and narrow:
            raise DatasetError(
                f"{where}: the rewards are {[first, second]}, but '{narrow[0]}' is [{first}]. "
                "One number for each step is needed: save the reward that counts as an array of "
                "its own, and say it: offline_names={reward: NAME}."
            )
        order = self.axes if self.axes != "auto" else self._order(arrays, wide, first, second)
        if not order:
            raise DatasetError(
                f"{where} has rewards or flags of {first} x {second}, and nothing says which of "
                "the two counts the steps. Say it: offline_axes=episodes_first or =steps_first."
            )
        if order == "episodes_first":
            wrong = {k: list(v.shape) for k, v in arrays.items()
                     if v.dtype.kind in "biuf" and (self.names.role(k) or len(v.shape) > 1)
                     and (v.ndim < 2 or len(v) != first)}  # fmt: skip
            if wrong:
                raise DatasetError(
                    f"{where} has rewards [N, T] of {first} episodes, so that all its arrays must "
                    f"be [N, T, ...]; others are {wrong}."
                )
            fits = {k: v for k, v in arrays.items() if v.ndim > 1 and len(v) == first}
            return [{k: v[i] for k, v in fits.items()} for i in range(first)]
        fits = {k: v for k, v in arrays.items() if v.ndim > 1 and v.shape[1] == second}
        return [{k: v[:, i] for k, v in fits.items()} for i in range(second)]

    def _order(self, arrays: Mapping[str, Any], flags: Mapping[str, Any], n: int, t: int) -> str:
        """What says which axis of [n, t] arrays counts the steps; "" where nothing does."""
        sizes = {
            v.shape[:2] for k, v in arrays.items() if v.ndim > 1 and self.names.role(k) is None
        }
        if (n, t + 1) in sizes:
            return "episodes_first"
        if (n + 1, t) in sizes:
            return "steps_first"
        begins = flags.get("is_first")
        if begins is not None and begins[:, 0].all() != begins[0].all():
            return "episodes_first" if begins[:, 0].all() else "steps_first"
        for key, value in arrays.items():
            after = next((v for k, v in arrays.items() if k.startswith("next") and key in k), None)
            if after is None or after.shape != value.shape or value.shape[:2] != (n, t):
                continue
            rows = same_rows(after[:-1].reshape(-1, 1), value[1:].reshape(-1, 1)).mean()
            across = same_rows(after[:, :-1].reshape(-1, 1), value[:, 1:].reshape(-1, 1)).mean()
            if abs(rows - across) > 0.5:
                return "steps_first" if rows > across else "episodes_first"
        ends = np.zeros((n, t), bool)
        for role in ("terminated", "truncated", "done", "is_last"):
            if role in flags and flags[role].shape == (n, t):
                ends |= flags[role].astype(bool)
        if ends.any() and ends[:, -1].all() != ends[-1].all() and t > 1 and n > 1:
            return "episodes_first" if ends[:, -1].all() else "steps_first"
        return ""


def _numbered(arrays: Mapping[str, Any], names: Names) -> list[dict[str, Any]]:
    """Arrays whose names end with the number of their episode ("actions_0", and "observations_0_1"
    for the second of several), one set for each; [] where they do not."""
    found: dict[int, dict[str, Any]] = {}
    if any(names.role(name) == "action" for name in arrays):
        return []
    for name, value in arrays.items():
        match = NUMBERED.fullmatch(name)
        if match:
            part = match["part"]
            key = match["name"] if part is None else f"{match['name']}/{part}"
            found.setdefault(int(match["episode"]), {})[key] = value
    sets = [one for _, one in sorted(found.items()) if any(names.role(k) == "action" for k in one)]
    return sets


def _condensed(arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trajectories that imitation writes one after another, with one observation more than
    actions each; [] where these are none."""
    if not {"obs", "acts", "terminal", "indices"} <= set(arrays):
        return []
    steps, count = len(arrays["acts"]), len(arrays["terminal"])
    edges = [0, *(int(i) for i in np.ravel(arrays["indices"]) if 0 < i < steps), steps]
    if len(arrays["obs"]) != steps + count or len(edges) != count + 1:
        return []
    out = []
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        ends = (np.arange(b - a) == b - a - 1) & bool(arrays["terminal"][i])
        one = {k: v[a:b] for k, v in arrays.items() if k in ("acts", "rews")}
        out.append({**one, "obs": arrays["obs"][a + i : b + i + 1], "terminal": ends})
    return out


def _raw(named: Named, form: Format | None) -> tuple[Raw, Any, Any, Any]:
    """An episode, or several, with the number of each row's episode, its place there, and whether
    the row holds a step."""
    roles, where = named.roles, named.where
    flags: dict[str, np.ndarray] = {role: _flag(where, role, roles[role]) for role in (
        "is_first", "terminated", "truncated", "done", "is_last", "goes_on", "success", "valid")
        if role in roles}  # fmt: skip
    names = named.names | {"is_last"} if "step_type" in roles else named.names
    flags = _step_types(where, roles) | flags
    terminal, last, says = flags.get("terminated"), flags.get("is_last"), "flags of the end"
    discount = _column(roles.get("discount", np.ones(0)))
    if "goes_on" in flags:  # then "terminals" say only where episodes end
        last = terminal if last is None else last
        says = "masks; terminals mark where episodes end" if terminal is not None else "masks"
        terminal = ~flags["goes_on"]
    elif terminal is None and discount.ndim == 1 and ("step_type" in roles or not discount.all()):
        terminal, says = discount == 0, "discounts of zero"
    raw = Raw(
        where, named.obs, roles["action"], _column(roles.get("reward")), named.after,
        flags.get("is_first"), terminal, flags.get("truncated"), flags.get("done"), last,
        flags.get("success"), of_row="is_terminal" in names or ("is_last" in names and
        "terminated" not in flags), format=form or _format(where, names), says=says,
    )  # fmt: skip
    ids, counter = _column(roles.get("episode")), _column(roles.get("counter"))
    _check_shapes(raw, ids)
    return raw, ids, counter, flags.get("valid")


def _step_types(where: str, roles: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first and last rows by dm_env's types of steps: 0 is first and 2 last."""
    if "step_type" not in roles:
        return {}
    types = _column(roles["step_type"])
    if not np.isin(types, (0, 1, 2)).all():
        raise DatasetError(
            f"{where}: 'step_type' must hold 0 (first), 1 and 2 (last) alone, as dm_env has them. "
            "Is it something else? offline_names={skip: [step_type]}."
        )
    return {"is_first": np.asarray(types == 0), "is_last": np.asarray(types == 2)}


def _format(where: str, names: set[str]) -> Format:
    """What wrote arrays of these names."""
    if names & NEXT:
        return LEROBOT if names & {"frame_index", "episode_index"} else TORCHRL
    if {"is_first", "is_last", "is_terminal"} <= names and names & {"reset", "stepid"}:
        return DREAMERV3
    if names & {"episode_starts"}:
        return SB3
    if re.search(r"(^|[/:])demo_\d+", where) and "dones" in names:
        return ROBOMIMIC
    return Format()


def _check_shapes(raw: Raw, ids: Any) -> None:
    """Raises DatasetError where arrays hold nothing, or flags and rewards more than one number a
    row."""
    for name, value in {**raw.obs, **raw.next_obs, "action": raw.action}.items():
        if 0 in value.shape[1:]:
            raise DatasetError(
                f"{raw.where}: '{name}' is {list(value.shape)}, so it holds nothing."
            )
    if raw.action.ndim == 0:
        raise DatasetError(f"{raw.where}: the actions are one value for all steps.")
    for name, value in raw.flags().items():
        if value.ndim != 1:
            raise DatasetError(
                f"{raw.where}: '{name}' is {list(value.shape)}; one entry for each row is needed."
            )
    if ids is not None and (ids.ndim != 1 or len(ids) != len(raw.action)):
        raise DatasetError(
            f"{raw.where}: the numbers of episodes are {list(ids.shape)}; one for each of "
            f"{len(raw.action)} actions is needed."
        )


def _column(value: Any) -> Any:
    """[T, 1] -> [T]."""
    return value[:, 0] if value is not None and value.ndim == 2 and value.shape[1] == 1 else value


def _flag(where: str, name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.kind not in "biuf" or not np.isin(value, (0, 1)).all():
        held = ", ".join(map(str, np.unique(value)[:4].tolist()))
        raise DatasetError(
            f"{where}: the flags for '{name}' hold {held}; allowed are True and False, or 1 and 0. "
            f"Save them so, or say what they are: offline_names={{skip: [NAME]}}."
        )
    return np.asarray(_column(value.astype(bool)))
