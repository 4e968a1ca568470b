"""Datasets of Minari (pip install "worldmodel[offline]")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from worldmodel.replay.datasets.align import DatasetError, Raw, Source


def minari_source(name: str) -> Source:
    """The Minari dataset of that id; it is downloaded where it is not there yet.

    Raises DatasetError where the package is missing, or there is no such dataset to be had.
    """
    try:
        import minari
    except ImportError as error:
        raise DatasetError(
            'minari:... needs the package minari: pip install "worldmodel[offline]".'
        ) from error
    try:
        data = minari.load_dataset(name)
    except FileNotFoundError:
        try:
            data = minari.load_dataset(name, download=True)
        except Exception as error:  # whatever stands between us and the server
            raise DatasetError(
                f"There is no Minari dataset '{name}' here, and it cannot be downloaded: {error}. "
                "`minari list local` shows those that are here."
            ) from error
    except Exception as error:  # Minari raises whatever its files make it stumble over
        raise DatasetError(f"The Minari dataset '{name}' cannot be read: {error}") from error

    def episodes() -> Iterator[Raw]:
        for episode in data.iterate_episodes():
            yield Raw(
                f"minari:{name}, episode {episode.id}",
                _flat(episode.observations),
                np.asarray(episode.actions),
                np.asarray(episode.rewards),
                terminal=np.asarray(episode.terminations, bool),
                cut=np.asarray(episode.truncations, bool),
            )

    spaces = data.observation_space, data.action_space
    return Source("Minari", episodes, None, None, *spaces)


def _flat(value: Any, path: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Nested observations by flat names, as environments give them."""
    if isinstance(value, dict):
        parts = [_flat(inner, (*path, str(key))) for key, inner in value.items()]
        return {k: v for part in parts for k, v in part.items()}
    if isinstance(value, tuple):
        return _flat({str(i): inner for i, inner in enumerate(value)}, path)
    array = np.asarray(value)
    image = array.dtype == np.uint8 and array.ndim > 2
    return {"_".join(path) or ("image" if image else "state"): array}
