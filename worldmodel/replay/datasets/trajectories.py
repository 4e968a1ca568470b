"""Trajectories of imitation: a folder that Hugging Face's datasets wrote, a row a trajectory
(pip install "worldmodel[offline]")."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from worldmodel.replay.datasets.arrays import UNREADABLE
from worldmodel.replay.datasets.parts import Parter
from worldmodel.replay.datasets.recording import DatasetError, Raw, Source


def trajectories_source(path: Path, parter: Parter) -> Source:
    """The trajectories in a folder. Raises DatasetError where it cannot be read."""
    try:
        import pyarrow
    except ImportError as error:
        raise DatasetError(
            'Trajectories of imitation need the package pyarrow: pip install "worldmodel[offline]".'
        ) from error

    def episodes() -> Iterator[Raw]:
        number = 0
        for file in sorted(path.glob("*.arrow")):
            try:
                with pyarrow.OSFile(str(file)) as data, pyarrow.ipc.open_stream(data) as stream:
                    table = stream.read_all()
                table.validate(full=True)  # or a damaged file leads outside of its memory
                rows = table.to_pylist()
                sets = [{name: np.array(value) for name, value in row.items()} for row in rows]
            except (*UNREADABLE, pyarrow.ArrowException) as error:
                raise DatasetError(f"'{file}' holds no trajectories: {error}.") from error
            for arrays in sets:
                yield from parter.episodes(f"{path}, trajectory {number}", arrays, whole=True)
                number += 1

    return Source("imitation", episodes, out=parter.out, notes=parter.notes)
