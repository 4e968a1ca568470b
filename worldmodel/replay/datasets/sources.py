"""Where recorded episodes come from: NPZ and HDF5 files, our own replays, folders of LeRobot and
imitation, and Minari."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from worldmodel.replay.buffer import Replay
from worldmodel.replay.datasets.arrays import Unreadable, h5_episodes, natural, read_npz
from worldmodel.replay.datasets.names import Names
from worldmodel.replay.datasets.parts import Parter
from worldmodel.replay.datasets.recording import DatasetError, Episode, Raw, Source

SUFFIXES = {".npz": "NPZ", ".hdf5": "HDF5", ".h5": "HDF5"}
CHUNK = re.compile(r"\d{8}T\d{6}F\d{6}-\w+-\w+-(?P<length>\d+)\.npz")
# What cannot be read, and how its owner gets it into a form that can.
REFUSED = {
    (".pkl", ".pickle", ".pt", ".pth", ".joblib"): "it may hold code that runs when it is opened. "
    "Open it with the tool that wrote it, and save its arrays with numpy.savez",
    (".tfrecord", ".array_record"): "read it with tensorflow_datasets, and save each episode's "
    "steps with numpy.savez (observation, action, reward, is_first, is_last, is_terminal)",
    (".npy", ".csv", ".json", ".jsonl", ".zarr", ".parquet", ".arrow", ".memmap", ".mat"):
    "save the arrays of each episode under their names with numpy.savez",
}  # fmt: skip


def open_source(
    name: str, names: Names | None = None, axes: str = "auto", alignment: str = "auto"
) -> Source:
    """The recording of that name: a file, a folder, or "minari:ID". names, axes, alignment: what
    its arrays are (see Parter).

    Raises DatasetError where there is none, or it cannot be read.
    """
    parter = Parter(names or Names(), axes, alignment)
    if name.startswith("minari:"):
        from worldmodel.replay.datasets.minari_source import minari_source

        return minari_source(name.removeprefix("minari:"), parter.names)
    path = Path(name)
    if path.is_dir():
        for place in (path, path / "replay"):
            if (place / "index.json").is_file():
                return _ours(place)
        if (path / "meta" / "info.json").is_file():
            from worldmodel.replay.datasets.lerobot import lerobot_source

            return lerobot_source(path, parter)
        if (path / "dataset_info.json").is_file() and any(path.glob("*.arrow")):
            from worldmodel.replay.datasets.trajectories import trajectories_source

            return trajectories_source(path, parter)
        files = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES]
        files.sort(key=lambda p: natural(p.name))
        if files:
            return _files(files, parter)
        raise DatasetError(
            f"There is no dataset in '{path}'. A folder may hold one of our runs or replays, "
            "episodes as .npz, .hdf5 or .h5 files, or a dataset of LeRobot or imitation."
            + _hint(path.rglob("*"))
        )
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _files([path], parter)
    what = "is no dataset" if path.exists() else "does not exist"
    raise DatasetError(
        f"'{name}' {what}. Known: a run or replay folder of ours, a folder of .npz, .hdf5 or .h5 "
        "episodes, one such file, a folder of LeRobot, or minari:ID."
        + (_hint([path]) if path.exists() else "")
    )


def _hint(paths: Iterable[Path]) -> str:
    suffixes = {path.suffix.lower().partition("-")[0] for path in paths}  # .tfrecord-00000-of-1
    for refused, what in REFUSED.items():
        if found := sorted(suffixes & set(refused)):
            return f" A {found[0]} file is not read: {what}."
    return ""


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


def _files(paths: list[Path], parter: Parter) -> Source:
    kinds = " and ".join(sorted({SUFFIXES[path.suffix.lower()] for path in paths}))

    def episodes() -> Iterator[Raw]:
        for path in paths:
            for where, arrays in _arrays(path, parter.names):
                yield from parter.episodes(where, arrays)

    kind = f"{kinds}, {len(paths)} file{'s' * (len(paths) > 1)}"
    return Source(kind, episodes, out=parter.out, notes=parter.notes)


def _filled(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a chunk of DreamerV3's replay up to the length that its name says; what lies
    beyond was never written. Any other file's as they are."""
    match = CHUNK.fullmatch(path.name)
    if match is None:
        return arrays
    return {k: v[: int(match["length"])] if v.ndim else v for k, v in arrays.items()}


def _arrays(path: Path, names: Names) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The arrays of each episode of a file, by name; a group that has actions is an episode."""
    try:
        if path.suffix.lower() == ".npz":
            yield str(path), _filled(path, read_npz(path))
            return
        for name, arrays in h5_episodes(path, names.are_episode):
            yield str(path) if name == "/" else f"{path}:{name}", arrays
    except ImportError as error:
        raise DatasetError(
            'HDF5 files need the package h5py: pip install "worldmodel[offline]".'
        ) from error
    except Unreadable as error:
        raise DatasetError(f"'{path}' cannot be read: {error}.") from error
