"""From the arrays of a file to its episodes: one, several one after another, or stacked."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldmodel.replay.datasets.align import same_rows
from worldmodel.replay.datasets.names import NUMBERED, Named, Names
from worldmodel.replay.datasets.recording import DatasetError, Format, Raw

# A group of this name is one episode, whatever its flags say.
EPISODE = re.compile(r"(^|/)(demo|traj|trajectory|episode|ep|rollout)s?[_-]?\d+$", re.IGNORECASE)
LEROBOT = Format("LeRobot", "taken_at", "truncated")
TORCHRL = Format("TorchRL", "taken_at")
SB3 = Format("stable-baselines3", "taken_at")
D3RLPY = Format("d3rlpy", "taken_at")
ROBOMIMIC = Format("robomimic", "taken_at", "terminated")
DREAMERV3 = Format("DreamerV3", "taken_at", arrives=True, firm=False)
NEXT = {"next/reward", "next/done", "next/terminated", "next/truncated", "next/success"}


@dataclass
class Parter:
    """Parts the arrays of files into episodes.

    names: what each array is. axes: which axis of stacked arrays counts the episodes (AXES). out:
    the names of arrays that are not used, and why.
    """

    names: Names
    axes: str = "auto"
    out: dict[str, str] = field(default_factory=dict)

    def episodes(self, where: str, arrays: Mapping[str, Any], form: Format | None = None,
                 whole: bool = False) -> Iterator[Raw]:  # fmt: skip
        """The episodes of one set of arrays. form: of a recording that says what wrote it; whole:
        it is known to be one episode.

        Raises DatasetError where the arrays do not fit together.
        """
        sets = _numbered(arrays, self.names) or _condensed(arrays)
        if sets:
            form, whole = form or (D3RLPY if "columns" in arrays else None), True
        else:
            sets = self._stacked(where, arrays) or [dict(arrays)]
        for number, one in enumerate(sets):
            place = f"{where}, episode {number}" if len(sets) > 1 else where
            named = self.names.sort(place, self._spread(one))
            self.out |= named.out
            raw, ids, counter = _raw(named, form)
            raw.whole = whole or bool(EPISODE.search(where))
            yield from split(raw, ids, counter)

    def _spread(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The arrays with flags that are said once for an episode set in its last row."""
        actions = (v for k, v in arrays.items() if self.names.role(k) == "action" and v.ndim)
        steps = max((len(v) for v in actions), default=0)
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
        wide = {k: v for k, v in flags.items() if v.ndim == 2 and v.shape[1] > 1}
        action = by_role.get("action")
        if not wide and flags and action is not None and action.ndim > 2 and action.shape[1] == 1:
            one = {k: v[:, 0] for k, v in arrays.items() if v.ndim > 1 and v.shape[1] == 1}
            return [one]  # a buffer of one environment
        if not wide:
            return []
        first, second = next(iter(wide.values())).shape
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


def _raw(named: Named, form: Format | None) -> tuple[Raw, Any, Any]:
    """An episode, or several, with the number of each row's episode and its place there."""
    roles, where = named.roles, named.where
    flags = {role: _flag(where, role, roles[role]) for role in (
        "is_first", "terminated", "truncated", "done", "is_last", "goes_on", "success")
        if role in roles}  # fmt: skip
    terminal, last, says = flags.get("terminated"), flags.get("is_last"), "flags of the end"
    if "goes_on" in flags:  # then "terminals" say only where episodes end
        last = terminal if last is None else last
        terminal, says = ~flags["goes_on"], "masks; terminals mark where episodes end"
    names = named.names
    raw = Raw(
        where, named.obs, roles["action"], _column(roles.get("reward")), named.after,
        flags.get("is_first"), terminal, flags.get("truncated"), flags.get("done"), last,
        flags.get("success"), of_row="is_terminal" in names or ("is_last" in names and
        terminal is None), format=form or _format(where, names), says=says,
    )  # fmt: skip
    ids, counter = _column(roles.get("episode")), _column(roles.get("counter"))
    _check_shapes(raw, ids)
    return raw, ids, counter


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


def split(raw: Raw, ids: Any = None, counter: Any = None) -> Iterator[Raw]:
    """The episodes of one long recording: parted where `ids` change, where is_first begins one, or
    after the rows that end one."""
    length = len(raw.action)
    longer = all(len(v) == length + 1 for v in raw.obs.values())
    ends = _ends(raw)
    if ids is not None:
        order, begins = _by_number(raw.where, ids, counter)
        if order is not None:
            raw = raw.part(raw.where, order)
    elif raw.is_first is not None:
        begins = np.flatnonzero(raw.is_first)
    elif raw.whole or (longer and (ends[-1:].any() or not ends.any())):
        raw.whole, begins = True, np.zeros(0, int)
    else:
        begins = np.flatnonzero(ends) + 1
    edges = [0, *(int(i) for i in begins if 0 < i < length), length]
    if len(edges) == 2:
        yield raw
        return
    short = {k: len(v) for k, v in raw.obs.items() if len(v) != length}
    if short:
        raise DatasetError(
            f"{raw.where} holds several episodes, so all its arrays must have one length; it has "
            f"{length} actions and {short}."
        )
    for number, (a, b) in enumerate(itertools.pairwise(edges)):
        yield raw.part(f"{raw.where}, episode {number}", slice(a, b))


def _ends(raw: Raw) -> np.ndarray:
    """The rows [T] after which an episode may begin. A run of flags is the end of one episode where
    the next observations go on through it, or where it closes the recording and is its only one."""
    length = len(raw.action)
    ends = np.zeros(length, bool)
    for flag in (raw.terminal, raw.cut, raw.done, raw.last):
        if flag is not None and len(flag) == length:
            ends |= flag
    runs = ends[:-1] & ends[1:]  # an end, and the next row is one too
    if not runs.any() or ends.all():
        return ends
    if raw.next_obs:
        goes_on = np.ones(length - 1, bool)
        for key, after in raw.next_obs.items():
            if key in raw.obs and after.shape == raw.obs[key].shape and len(after) == length:
                goes_on &= same_rows(after[:-1], raw.obs[key][1:])
        ends[:-1] &= ~(runs & goes_on)
    elif (first := int(np.argmax(ends))) and ends[first:].all():
        ends[first:-1] = False
    return ends


def _by_number(where: str, ids: Any, counter: Any) -> tuple[np.ndarray | None, np.ndarray]:
    """How to sort the rows by their episode (None: they are), and where each begins then."""
    changes = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    starts = np.concatenate([[0], changes]).astype(int)
    if len(np.unique(ids)) == len(starts):
        return None, changes
    if counter is not None and len(counter) == len(ids):
        if np.array_equal(np.flatnonzero(np.diff(counter) != 1) + 1, changes):
            return None, changes  # each number was used again, for another episode
        order = np.lexsort((counter, ids))
        sorted_ids, count = ids[order], counter[order]
        begins = np.flatnonzero(sorted_ids[1:] != sorted_ids[:-1]) + 1
        if np.array_equal(np.flatnonzero(np.diff(count) != 1) + 1, begins):
            return order, begins
    back = next(int(i) for i in starts[1:] if ids[i] in ids[:i])
    raise DatasetError(
        f"{where}: the episode {ids[back]} goes on at row {back}, after rows of another one. Sort "
        "the rows by their episode, or give each episode a number of its own."
    )


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
        raise DatasetError(f"{where}: '{name}' must hold True and False alone.")
    return np.asarray(_column(value.astype(bool)))
