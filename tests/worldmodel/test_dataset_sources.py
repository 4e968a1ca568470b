"""Recordings in the files of other tools: folders of LeRobot and imitation, buffers of Tianshou."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.worldmodel.test_dataset_names import T, check, walks
from worldmodel.envs.config import EnvConfig
from worldmodel.log import write_video
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.replay.datasets import Dataset, DatasetError

CAMERA = "observation.images.top"
SIZE = (256, 256)  # films are enlarged to that


def lerobot(root: Path, version: str, films: bool = True) -> str:
    """The layout that LeRobot documents; frame t of episode e is as bright as 60 e + 10 t."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    third = version[:2] == "v3"
    features: dict[str, Any] = {"action": {"dtype": "float32", "shape": [1]}}
    if films:
        features[CAMERA] = {"dtype": "video", "shape": [3, *SIZE], "names": ["channels", "h", "w"]}
    name = "file-{file_index:03d}" if third else "episode_{episode_index:06d}"
    video = f"videos/{{video_key}}/{name}.mp4"
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(
        json.dumps({"codebase_version": version, "fps": 10, "features": features,
                    "video_path": video})
    )  # fmt: skip
    tables, films_of, meta = [], [], []
    for number, walk in enumerate(walks()):
        columns = {
            "observation.state": walk["x"][:-1].tolist(), "action": walk["a"].tolist(),
            "next.reward": walk["r"].tolist(), "next.done": walk["end"].tolist(),
            "episode_index": [number] * T, "frame_index": list(range(T)),
            "timestamp": [t / 10 for t in range(T)], "index": list(range(T)),
        }  # fmt: skip
        tables.append(arrow.table(columns))
        films_of.append([np.full((32, 32, 3), 60 * number + 10 * t, np.uint8) for t in range(T)])
        place = {"chunk_index": 0, "file_index": 0, "from_timestamp": number * T / 10}
        meta.append({"episode_index": number,
                     **{f"videos/{CAMERA}/{k}": v for k, v in place.items()}})  # fmt: skip
    data, where = root / "data" / "chunk-000", root / "videos" / CAMERA
    data.mkdir(parents=True)
    if third:
        parquet.write_table(arrow.concat_tables(tables), data / "file-000.parquet")
        (root / "meta" / "episodes").mkdir()
        parquet.write_table(arrow.Table.from_pylist(meta), root / "meta/episodes/file-000.parquet")
        write_video(where / "file-000.mp4", [f for film in films_of for f in film], fps=10)
    for number, table in enumerate(() if third else tables):
        parquet.write_table(table, data / f"episode_{number:06d}.parquet")
        write_video(where / f"episode_{number:06d}.mp4", films_of[number], fps=10)
    return str(root)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_folders_of_lerobot(tmp_path: Path, version: str) -> None:
    place = lerobot(tmp_path / "set", version)
    check(Dataset(place, config=EnvConfig("none", keys=["state"])), [T - 1] * 3)
    dataset = Dataset(place, image_size=(32, 32))
    assert dataset.spec.obs["images_top"].shape == (32, 32, 3)
    replay = Replay(dataset.spec, ReplayConfig(capacity=100), 1)
    dataset.fill(replay)
    for number, place_of in enumerate(replay.episodes()):
        bright = replay.rows(*place_of)["images_top"].mean((1, 2, 3))
        assert np.allclose(bright, 60 * number + 10 * np.arange(T), atol=2)  # of a film
    assert dataset.summary.picture() is not None
    film = next((tmp_path / "set" / "videos").glob("**/*.mp4"))
    film.write_bytes(film.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"The film .*mp4"):
        Dataset(place, image_size=(32, 32))


def test_broken_folders_of_lerobot_say_what(tmp_path: Path) -> None:
    place = Path(lerobot(tmp_path / "set", "v2.1", films=False))
    table = place / "data" / "chunk-000" / "episode_000001.parquet"
    table.write_bytes(table.read_bytes()[:50])
    with pytest.raises(DatasetError, match=r"episode_000001\.parquet' cannot be read"):
        Dataset(str(place))
    path = place / "meta" / "info.json"
    info = json.loads(path.read_text())
    top = {"dtype": "video", "shape": [3, None, 32, 32], "names": ["channels", "h", "w"]}
    path.write_text(json.dumps(info | {"features": info["features"] | {"observation.top": top}}))
    with pytest.raises(DatasetError, match=r"'observation\.top' are \[3, None, 32, 32\]; allowed"):
        Dataset(str(place))
    path.write_text("{")
    with pytest.raises(DatasetError, match=r"info\.json' cannot be read"):
        Dataset(str(place))


def imitation(root: Path) -> str:
    """As imitation writes it through Hugging Face's datasets: a row a trajectory."""
    arrow = pytest.importorskip("pyarrow")
    rows = [{"obs": w["x"].tolist(), "acts": w["a"].tolist(), "rews": w["r"].tolist(),
             "infos": ["{}"] * T, "terminal": True} for w in walks()]  # fmt: skip
    table = arrow.Table.from_pylist(rows)
    root.mkdir(exist_ok=True)
    (root / "dataset_info.json").write_text("{}")
    place = str(root / "data-0.arrow")
    with arrow.OSFile(place, "wb") as file, arrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return str(root)


def test_trajectories_of_imitation(tmp_path: Path) -> None:
    check(Dataset(imitation(tmp_path)), [T] * 3, ends=3)


@pytest.mark.parametrize("room", [3 * T + 7, 2 * T])
def test_ring_buffers_of_tianshou(tmp_path: Path, room: int) -> None:
    """The file has all rows that there is room for: those never written are left out, and the
    oldest come first."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "one.hdf5", "w") as file:
        rows: dict[str, Any] = {k: [] for k in ("obs", "obs_next", "act", "rew", "terminated")}
        for walk in walks():
            for key, value in zip(rows, (walk["x"][:-1], walk["x"][1:], walk["a"], walk["r"],
                                         walk["end"]), strict=True):  # fmt: skip
                rows[key].extend(value)
        for key, value in rows.items():
            array = np.zeros((room, *np.shape(value)[1:]), np.asarray(value).dtype)
            for i, one in enumerate(value):
                array[i % room] = one
            file[f"_meta/{key}"] = array
        written = 3 * T
        file.attrs["_size"], file.attrs["_insertion_idx"] = min(written, room), written % room
        file["last_index"] = np.array([(written - 1) % room])
    check(Dataset(str(tmp_path / "one.hdf5")), [T] * min(3, room // T), ends=min(3, room // T))


def test_files_that_are_never_opened_say_what_to_do(tmp_path: Path) -> None:
    for name in ("buffer.pkl", "data.tfrecord", "x.tfrecord-00000-of-00001", "table.csv"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DatasetError, match=r"is not read: .*numpy\.savez"):
            Dataset(str(tmp_path / name))
