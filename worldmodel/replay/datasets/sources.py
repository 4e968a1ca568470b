"""Where recorded episodes come from: NPZ and HDF5 files, our own replays, Minari.

Arrays are found by their names, those of the usual recordings: action(s), reward(s),
observation(s) or any other name for what was observed, next_observations, terminals, timeouts,
done, is_first, is_last, is_terminal; in groups ("obs/image", "next/observations") too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from worldmodel.replay.buffer import Replay
from worldmodel.replay.datasets.align import DatasetError, Episode, Raw, Source, split
from worldmodel.replay.datasets.arrays import Unreadable, h5_episodes, read_npz

ROLES = {
    "action": ("action", "actions", "act"),
    "reward": ("reward", "rewards"),
    "is_first": ("is_first", "episode_start", "episode_starts"),
    "terminal": ("is_terminal", "terminal", "terminals", "terminated", "terminations"),
    "cut": ("timeout", "timeouts", "truncated", "truncation", "truncations"),
    "done": ("done", "dones", "is_last"),
    "ids": ("episode", "episodes", "episode_id", "episode_ids"),
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
CONTAINERS = ("observation", "observations", "obs")
NEXT = ("next_", "next/")
# Recorded beside experience, and never observed.
IGNORED = ("info", "infos", "metadata", "deter", "stoch", "logprob", "log_prob", "logits",
           "discount", "step", "steps", "id", "reset", "seed", "cost", "costs")  # fmt: skip
SUFFIXES = {".npz": "NPZ", ".hdf5": "HDF5", ".h5": "HDF5"}


def open_source(name: str) -> Source:
    """The recording of that name: a file, a folder, or "minari:ID".

    Raises DatasetError where there is none, or it cannot be read.
    """
    if name.startswith("minari:"):
        from worldmodel.replay.datasets.minari_source import minari_source

        return minari_source(name.removeprefix("minari:"))
    path = Path(name)
    if path.is_dir():
        for place in (path, path / "replay"):
            if (place / "index.json").is_file():
                return _ours(place)
        files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
        if files:
            return _files(files)
        raise DatasetError(
            f"There is no dataset in '{path}'. A folder may hold one of our runs or replays, or "
            "episodes as .npz, .hdf5 or .h5 files."
        )
    if path.is_file() and path.suffix in SUFFIXES:
        return _files([path])
    what = "is no dataset" if path.exists() else "does not exist"
    raise DatasetError(
        f"'{name}' {what}. Known: a run or replay folder of ours, a folder of .npz, .hdf5 or .h5 "
        "episodes, one such file, or minari:ID."
    )


def _ours(place: Path) -> Source:
    """A replay of our own; an episode whose beginning was overwritten begins with what is left."""
    # A run of several ranks has a shard for each: `rank-1` and so on, beside that of rank 0.
    places = [place, *sorted(p.parent for p in place.glob("rank-*/index.json"))]
    try:
        replays = [Replay.open(each) for each in places]
    except (ValueError, OSError) as error:
        raise DatasetError(f"The replay in '{place}' cannot be read: {error}") from error

    def episodes() -> Iterator[Episode]:
        for each, replay in zip(places, replays, strict=True):
            where = f"{each.name}, " if each != place else ""
            for stream, start, stop in replay.episodes():
                if stop - start < 2:
                    continue
                rows = replay.rows(stream, start, stop)
                yield Episode(
                    f"{where}stream {stream}, rows {start} to {stop - 1}",
                    {key: rows[key] for key in replay.spec.obs},
                    rows["action"][1:],
                    rows["reward"][1:],
                    bool(rows["is_terminal"][-1]),
                    encoded=True,
                )

    def none() -> Iterator[Raw]:
        yield from ()

    return Source("our own replay", none, episodes, replays[0].spec)


def _files(paths: list[Path]) -> Source:
    kinds = " and ".join(sorted({SUFFIXES[path.suffix] for path in paths}))
    source = Source(f"{kinds}, {len(paths)} file{'s' * (len(paths) > 1)}", lambda: iter(()))

    def episodes() -> Iterator[Raw]:
        for path in paths:
            for where, arrays in _arrays(path):
                yield from _parted(where, arrays, source.ignored)

    source.episodes = episodes
    return source


def _arrays(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The arrays of each episode of a file, by name; a group that has actions is an episode."""
    try:
        if path.suffix == ".npz":
            yield str(path), read_npz(path)
            return
        for name, arrays in h5_episodes(path, ROLES["action"]):
            yield str(path) if name == "/" else f"{path}:{name}", arrays
    except ImportError as error:
        raise DatasetError(
            'HDF5 files need the package h5py: pip install "worldmodel[offline]".'
        ) from error
    except Unreadable as error:
        raise DatasetError(f"'{path}' cannot be read: {error}.") from error


def _parted(where: str, arrays: Mapping[str, np.ndarray], ignored: set[str]) -> Iterator[Raw]:
    """The episodes of one set of arrays: stacked [N, T, ...], one after another, or just one."""
    raw, ids = named(where, arrays, ignored)
    if raw.reward is not None and raw.reward.ndim == 2 and raw.reward.shape[1] > 1:
        _check_stacked(raw)
        for i in range(len(raw.action)):
            flags = (raw.is_first, raw.terminal, raw.cut, raw.done)
            yield Raw(
                f"{where}, episode {i}",
                {k: v[i] for k, v in raw.obs.items()},
                raw.action[i],
                raw.reward[i],
                {k: v[i] for k, v in raw.next_obs.items()},
                *(None if flag is None else flag[i] for flag in flags),
            )
        return
    yield from split(raw, ids)


def _check_stacked(raw: Raw) -> None:
    """Raises DatasetError unless every array is [N, T, ...] of the same N."""
    parts = {**raw.obs, **{f"next {k}": v for k, v in raw.next_obs.items()}, "action": raw.action}
    for name in ("reward", "is_first", "terminal", "cut", "done"):
        value = getattr(raw, name)
        if value is not None:
            parts[name] = value
    wrong = {k: list(v.shape) for k, v in parts.items() if v.ndim < 2 or len(v) != len(raw.action)}
    if wrong:
        raise DatasetError(
            f"{raw.where} has rewards [N, T] of {len(raw.action)} episodes, so that all its arrays "
            f"must be [N, T, ...]; others are {wrong}."
        )


def _check_shapes(raw: Raw, ids: np.ndarray | None) -> None:
    """Raises DatasetError where arrays hold nothing, or flags and rewards more than one number a
    row (or, stacked, a row of an episode)."""
    for name, value in {**raw.obs, **raw.next_obs, "action": raw.action}.items():
        if 0 in value.shape[1:]:
            raise DatasetError(
                f"{raw.where}: '{name}' is {list(value.shape)}, so it holds nothing."
            )
    stacked = raw.reward is not None and raw.reward.ndim == 2
    for name in ("reward", "is_first", "terminal", "cut", "done"):
        value = getattr(raw, name)
        if value is not None and value.ndim != 1 + stacked:
            raise DatasetError(
                f"{raw.where}: '{name}' is {list(value.shape)}; one entry for each row is needed."
            )
    if ids is not None and (ids.ndim != 1 or len(ids) != len(raw.action)):
        raise DatasetError(
            f"{raw.where}: the numbers of episodes are {list(ids.shape)}; one for each of "
            f"{len(raw.action)} actions is needed."
        )


def named(
    where: str, arrays: Mapping[str, np.ndarray], ignored: set[str]
) -> tuple[Raw, np.ndarray | None]:
    """Arrays by their part in an episode, and the episode that each row belongs to, if told.

    Names that mean nothing here are noted in `ignored`. Raises DatasetError without actions or
    observations.
    """
    roles: dict[str, np.ndarray] = {}
    obs: dict[str, np.ndarray] = {}
    after: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        lower = name.lower()
        role = ROLE_OF.get(lower)
        following = next((p for p in NEXT if lower.startswith(p)), None)
        if lower.split("/")[0] in IGNORED or value.ndim == 0 or value.dtype.kind in "SUO":
            ignored.add(name)
        elif role:
            roles[role] = value
        elif following:
            after[_key(name[len(following) :], value)] = value
        else:
            obs[_key(name, value)] = value
    if "action" not in roles or not obs:
        raise DatasetError(
            f"{where} has no {'observation' if 'action' in roles else 'actions'}; its arrays are "
            f"{', '.join(sorted(arrays)) or 'none'}. Actions are found by the names "
            f"{', '.join(ROLES['action'])}; observations bear any other name."
        )
    flags = {k: _flag(where, k, roles[k]) for k in ("is_first", "terminal", "cut", "done")
             if k in roles}  # fmt: skip
    reward = roles.get("reward")
    if reward is not None and reward.ndim == 2 and reward.shape[1] == 1:
        reward = reward[:, 0]
    ids = roles.get("ids")
    if ids is not None and ids.ndim == 2 and ids.shape[1] == 1:
        ids = ids[:, 0]
    raw = Raw(where, obs, roles["action"], reward, after, **flags)
    _check_shapes(raw, ids)
    return raw, ids


def _flag(where: str, name: str, value: np.ndarray) -> np.ndarray:
    if value.dtype.kind not in "biuf" or not np.isin(value, (0, 1)).all():
        raise DatasetError(f"{where}: '{name}' must hold True and False alone.")
    flag = value.astype(bool)
    return flag[:, 0] if flag.ndim == 2 and flag.shape[1] == 1 else flag


def _key(name: str, value: np.ndarray) -> str:
    """A flat name for an observation, as environments give it."""
    parts = name.replace(".", "/").split("/")
    if parts[0].lower() in CONTAINERS:
        parts = parts[1:]
    return "_".join(parts) or ("image" if value.ndim > 2 else "state")
