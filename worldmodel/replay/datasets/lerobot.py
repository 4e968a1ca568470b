"""Datasets of LeRobot: a folder of meta/info.json, parquet tables of steps, and mp4 films of
cameras (pip install "worldmodel[offline]").

    version 2    data/chunk-000/episode_000000.parquet    videos/chunk-000/CAMERA/episode_000000.mp4
    version 3    data/chunk-000/file-000.parquet          videos/CAMERA/chunk-000/file-000.mp4

In version 3 a file holds several episodes; meta/episodes/ says where in a film each begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.replay.datasets.arrays import UNREADABLE
from worldmodel.replay.datasets.parts import LEROBOT, Parter
from worldmodel.replay.datasets.recording import DatasetError, Raw, Source

INFO = Path("meta") / "info.json"


class Frames:
    """Frames of films as an array uint8 [T, H, W, 3], decoded only when NumPy asks for them.

    place: of each frame, its film and its number there.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, place: Sequence[tuple[Path, int]], size: tuple[int, int]) -> None:
        self.place, self.shape = list(place), (len(place), *size, 3)

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, rows: Any) -> Frames:
        picked = np.arange(len(self.place))[rows]
        return Frames([self.place[int(i)] for i in np.atleast_1d(picked)], self.shape[1:3])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Decode them. Raises DatasetError where a film is shorter, or cannot be decoded."""
        out = np.zeros(self.shape, np.uint8)
        for path in dict.fromkeys(path for path, _ in self.place):
            rows = {number: i for i, (film, number) in enumerate(self.place) if film == path}
            for number, frame in _decoded(path, max(rows)):
                if number in rows:
                    if frame.shape != self.shape[1:]:
                        raise DatasetError(
                            f"The frames of '{path}' are {list(frame.shape)}, where meta/info.json "
                            f"says {list(self.shape[1:])}."
                        )
                    out[rows[number]] = frame
        return out


def _decoded(path: Path, last: int) -> Iterator[tuple[int, np.ndarray]]:
    """The frames of a film with their numbers, up to the last one that is needed."""
    import imageio.v2 as imageio

    number = -1
    try:
        reader: Any = imageio.get_reader(path, format="ffmpeg")
        with reader as film:
            for number, frame in enumerate(film):
                yield number, np.asarray(frame)
                if number == last:
                    return
    except DatasetError:
        raise
    except (*UNREADABLE, StopIteration) as error:
        raise DatasetError(f"The film '{path}' cannot be decoded: {error}.") from error
    raise DatasetError(f"The film '{path}' has {number + 1} frames, where {last + 1} are needed.")


@dataclass
class Folder:
    """What meta/ says of a dataset of LeRobot."""

    path: Path
    info: Mapping[str, Any]

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """[H, W] of each camera that was filmed."""
        found = {}
        for key, what in self.info["features"].items():
            if what.get("dtype") == "video":
                shape, names = list(what["shape"]), list(what.get("names") or [])
                if len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
                    raise DatasetError(
                        f"'{self.path / 'meta' / 'info.json'}' says that the pictures of '{key}' "
                        f"are {shape}; allowed: three whole numbers above 0."
                    )
                first = str(names[0])[:1] == "c" if names else shape[0] in (1, 3)
                found[key] = (shape[1], shape[2]) if first else (shape[0], shape[1])
        return found

    def tables(self) -> list[Path]:
        """Its tables of steps, in order."""
        return sorted((self.path / "data").glob("**/*.parquet"))

    def starts(self) -> dict[int, dict[str, Any]]:
        """Of each episode of version 3, what meta/episodes says."""
        rows: dict[int, dict[str, Any]] = {}
        for path in sorted((self.path / "meta" / "episodes").glob("**/*.parquet")):
            table = _table(path)
            names = [n for n in table.column_names if n == "episode_index" or n[:7] == "videos/"]
            for row in table.select(names).to_pylist():
                rows[int(row["episode_index"])] = row
        return rows

    def film(self, camera: str, episode: int, row: Mapping[str, Any] | None) -> tuple[Path, int]:
        """The film of a camera that holds an episode, and the frame with which that begins."""
        chunk = episode // int(self.info.get("chunks_size") or 1000)
        fields = {"video_key": camera, "episode_index": episode, "episode_chunk": chunk}
        start = 0
        if row is not None:
            fields["chunk_index"] = int(row[f"videos/{camera}/chunk_index"])
            fields["file_index"] = int(row[f"videos/{camera}/file_index"])
            start = round(float(row[f"videos/{camera}/from_timestamp"]) * float(self.info["fps"]))
        return self.path / str(self.info["video_path"]).format(**fields), start


def lerobot_source(path: Path, parter: Parter) -> Source:
    """The dataset of LeRobot in a folder. Raises DatasetError where it cannot be read."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DatasetError(
            'A dataset of LeRobot needs the package pyarrow: pip install "worldmodel[offline]".'
        ) from error
    try:
        folder = Folder(path, json.loads((path / INFO).read_text()))
        cameras, version = folder.cameras, str(folder.info.get("codebase_version", "?"))
    except (*UNREADABLE, AttributeError) as error:
        raise DatasetError(f"'{path / INFO}' cannot be read: {error}.") from error
    if not folder.tables():
        raise DatasetError(f"'{path}' has no tables of steps: data/**/*.parquet is empty.")

    def episodes() -> Iterator[Raw]:
        starts = folder.starts() if cameras else {}
        for table in folder.tables():
            arrays = _arrays(table)
            for camera, size in cameras.items():
                arrays[camera] = Frames(_places(folder, camera, table, arrays, starts), size)
            yield from parter.episodes(str(table), arrays, LEROBOT)

    return Source(f"LeRobot {version}", episodes, out=parter.out, notes=parter.notes)


def _places(
    folder: Folder, camera: str, table: Path, arrays: Mapping[str, Any], starts: Mapping[int, Any]
) -> list[tuple[Path, int]]:
    """Where the frames of a table's rows are."""
    try:
        episodes, frames = arrays["episode_index"].tolist(), arrays["frame_index"].tolist()
        films = {e: folder.film(camera, e, starts.get(e)) for e in set(episodes)}
    except (*UNREADABLE, AttributeError) as error:
        raise DatasetError(f"{table}: the film of '{camera}' is not found: {error}.") from error
    return [(films[e][0], films[e][1] + n) for e, n in zip(episodes, frames, strict=True)]


def _table(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path)
    except (*UNREADABLE, pyarrow.ArrowException) as error:
        raise DatasetError(f"'{path}' cannot be read: {error}.") from error


def _arrays(path: Path) -> dict[str, Any]:
    """The columns of a table as arrays [T, ...]; pictures in it are decoded."""
    table = _table(path)
    found: dict[str, Any] = {}
    for name in table.column_names:
        values = table.column(name).to_pylist()
        try:
            if values and isinstance(values[0], dict) and "bytes" in values[0]:
                found[name] = np.stack([_picture(value["bytes"]) for value in values])
            else:
                found[name] = np.array(values)
        except (*UNREADABLE, AttributeError) as error:
            raise DatasetError(f"'{path}': the column '{name}' is no array: {error}.") from error
    return found


def _picture(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of a PNG or JPEG."""
    import cv2

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("a picture cannot be decoded")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
