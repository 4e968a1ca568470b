"""Replay folders from outside: refused with words, nothing read or written elsewhere."""

import copy
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.replay_rows import add, make
from worldmodel.replay import Replay, ReplayDamaged, disk
from worldmodel.replay.delta import MAGIC, TRAILER
from worldmodel.replay.index import _crc


def saved(folder: Path) -> None:
    """A small committed replay."""
    replay = make()
    add(replay, 40)
    replay.save(folder)
    replay.commit()


def edits() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Changes to an index that somebody made on purpose, its checksum included."""

    def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], Any]:
        def edit(index: dict[str, Any]) -> None:
            for key in path[:-1]:
                index = index[key]
            index[path[-1]] = value

        return edit

    def rename(index: dict[str, Any]) -> None:
        """Observations are to be read from elsewhere."""
        index["spec"]["obs"]["../../../x"] = index["spec"]["obs"].pop("image")
        fields = index["signature"]["fields"]
        fields["obs.../../../x"] = fields.pop("obs.image")
        for stream in range(2):
            name = f"obs.image.{stream:04d}.bin"
            index["sums"][f"obs.../../../x.{stream:04d}.bin"] = index["sums"].pop(name)

    def quoted(index: dict[str, Any]) -> None:
        rename(index)
        for stream in range(2):
            name = f"obs.../../../x.{stream:04d}.bin"
            sums = index["sums"].pop(name)
            index["sums"][f"obs...%2F..%2F..%2Fx.{stream:04d}.bin"] = sums

    def enormous(index: dict[str, Any]) -> None:
        index["spec"]["obs"]["image"]["shape"] = [1 << 20, 1 << 20, 3]
        index["signature"]["fields"]["obs.image"][0] = [1 << 20, 1 << 20, 3]

    def many(index: dict[str, Any]) -> None:
        index["count"] = [1 << 45, 1 << 45]
        index["signature"]["rows per environment"] = 1 << 45

    column = {"shape": [], "dtype": "float32", "rewritable": True, "below": None}
    found = {
        "traversal": rename,
        "traversal, quoted": quoted,
        "enormous": enormous,
        "many rows": many,
        "negative": put("count", 0, value=-3),
        "boolean": put("count", 0, value=True),
        "fraction": put("count", 0, value=40.0),
        "floor": put("floor", 0, value=41),
        "cursor": put("cursor", 1, value=1 << 70),
        "streams": put("signature", "environments", value=1 << 40),
        "rows": put("signature", "rows per environment", value=0),
        "dtype": put("signature", "fields", "reward", 1, value="O"),
        "columns": put("signature", "columns", value=[]),
        "column": put("signature", "columns", "deter", value={"shape": [3]}),
        "column's shape": put("signature", "columns", "deter", "shape", value=[1 << 40]),
        "column's type": put("signature", "columns", "deter", "dtype", value="O"),
        "column's bound": put("signature", "columns", "stoch", "below", value="5"),
        "column's name": put("signature", "columns", "../x" * 100, value=column),
        "kind": put("spec", "action", "kind", value="python"),
        "sizes": put("spec", "action", "sizes", value=[1 << 62]),
        "sums": put("sums", "reward.0000.bin", value="zz" * 4),
        "no sums": put("sums", value={}),
        "generator": put("rng", "bit_generator", value="os.system"),
        "generator state": put("rng", "state", "inc", value=-1),
        "storage": put("storage", value="tape"),
        "token": put("token", value="../../../../etc"),
        "version": put("version", value=4),
        "old version": put("version", value=2),
    }
    return found


@pytest.mark.parametrize("name", list(edits()))
def test_a_hostile_index_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "a")
    path = tmp_path / "a" / "index.json"
    index = json.loads(path.read_text())
    changed = copy.deepcopy(index)
    edits()[name](changed)
    changed["crc"] = _crc({k: v for k, v in changed.items() if k != "crc"})
    path.write_text(json.dumps(changed))
    opened: list[Path] = []
    was = disk.open_file

    def spy(path: Path, write: bool = False) -> Any:
        assert not write
        opened.append(path)
        return was(path, write)

    monkeypatch.setattr(disk, "open_file", spy)
    for read in (Replay.open, make().load):
        with pytest.raises(
            ValueError, match=r"index\.json is damaged|is missing|of memory are free|differs from"
        ):
            read(tmp_path / "a")
    assert {p.parent for p in opened} == {tmp_path / "a"}
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("parent",), 5),
        (("parent",), None),  # as if it needed no base files; its runs are not all of the ring
        (("data",), [[[0, 3]], [[0, 3]]]),
        (("data", 0), [[-1, 7]]),
        (("data", 0), [[0, 1 << 40]]),
        (("data", 0), [[3, 10], [3, 3]]),
        (("data", 0), [[0.0, 7.0]]),
        (("data", 0), "x"),
        (("changed",), []),
        (("crcs", "reward.0000.bin"), 0),
        (("crcs", "../x.0000.bin"), 0),
        (("crcs",), None),
        (("index", "count"), [47]),
        (("index", "version"), 1),
    ],
)
def test_a_hostile_log_is_refused(tmp_path: Path, where: tuple[Any, ...], value: Any) -> None:
    saved(tmp_path / "a")
    replay = make()
    replay.load(tmp_path / "a")
    add(replay, 7)
    state = replay.save(tmp_path / "a")
    path = tmp_path / "a" / "delta.bin"
    data = path.read_bytes()
    length = TRAILER.unpack(data[-TRAILER.size :])[0]
    start = len(data) - TRAILER.size - length
    footer = json.loads(data[start : start + length])
    inner = footer
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    if where[0] == "index":
        footer["index"]["crc"] = _crc({k: v for k, v in footer["index"].items() if k != "crc"})
    text = json.dumps(footer).encode()
    path.write_bytes(data[:start] + text + TRAILER.pack(len(text), zlib.crc32(text), MAGIC))
    index = (tmp_path / "a" / "index.json").read_bytes()
    with pytest.raises(ReplayDamaged, match="does not hold save 2"):
        make().load(tmp_path / "a", state)
    with pytest.warns(UserWarning, match=r"delta\.bin is damaged"):
        assert Replay.open(tmp_path / "a").counts.tolist() == [40, 40]
    assert (tmp_path / "a" / "index.json").read_bytes() == index
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"version": 2}', "[" * 100_000, "1" * 5000, "\ufffd", '"x"']
)
def test_no_index_at_all_is_refused(tmp_path: Path, text: str) -> None:
    saved(tmp_path)
    (tmp_path / "index.json").write_text(text)
    for read in (Replay.open, make().load):
        with pytest.raises(ReplayDamaged, match=r"index\.json is damaged"):
            read(tmp_path)
    (tmp_path / "index.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReplayDamaged, match=r"index\.json is damaged"):
        Replay.open(tmp_path)


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    for name in ("reward.0000.bin", "index.json", "delta.bin"):
        path = tmp_path / "a" / name
        shutil.move(path, tmp_path / "elsewhere") if path.exists() else None
        for obstacle in (
            lambda path=path: path.symlink_to(tmp_path / "elsewhere"),
            lambda path=path: os.mkfifo(path),
        ):
            obstacle()
            if name == "delta.bin":
                with pytest.warns(UserWarning, match="not a regular file"):
                    Replay.open(tmp_path / "a")
            else:
                with pytest.raises(ValueError, match=r"not a regular file|truncated"):
                    Replay.open(tmp_path / "a")
            path.unlink()
        if name != "delta.bin":
            shutil.move(tmp_path / "elsewhere", path)
    assert len(Replay.open(tmp_path / "a")) == 60
