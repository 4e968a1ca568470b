"""Datasets of Minari (pip install "worldmodel[offline]")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from worldmodel.envs.spaces import flat_name
from worldmodel.images import layout_of
from worldmodel.replay.datasets.names import Names, unusable
from worldmodel.replay.datasets.recording import DatasetError, Raw, Source


def minari_source(name: str, names: Names) -> Source:
    """The Minari dataset of that id; it is downloaded where it is not there yet. names: which of
    its observations are asked for.

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

    out: dict[str, str] = {}

    def episodes() -> Iterator[Raw]:
        for episode in data.iterate_episodes():
            where = f"minari:{name}, episode {episode.id}"
            found = _flat(episode.observations)
            out.update({key: why for key, value in found.items() if (why := unusable(value))})
            obs = names.pick(where, {k: v for k, v in found.items() if k not in out})
            out.update({key: "not asked for" for key in found if key not in {*obs, *out}})
            yield Raw(
                where,
                obs,
                np.asarray(episode.actions),
                np.asarray(episode.rewards),
                terminal=np.asarray(episode.terminations, bool),
                cut=np.asarray(episode.truncations, bool),
            )

    spaces = data.observation_space, data.action_space
    return Source("Minari", episodes, None, None, *spaces, out)


def _flat(value: Any, path: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Nested observations by flat names, as environments give them."""
    if isinstance(value, dict):
        parts = [_flat(inner, (*path, str(key))) for key, inner in value.items()]
        return {k: v for part in parts for k, v in part.items()}
    if isinstance(value, tuple):
        return _flat({str(i): inner for i, inner in enumerate(value)}, path)
    array = np.asarray(value)
    return {flat_name(path) or ("image" if layout_of(array.shape[1:]) else "state"): array}
