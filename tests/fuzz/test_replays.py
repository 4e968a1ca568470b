"""Replay folders: damaged by a disk, or made up by somebody who knows the format."""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests import replay_rows
from tests.fuzz.common import JSON, ODD_INTS, WORDS, altered, cases, damaged, ours
from tests.replay_cycles import contents
from tests.replay_rows import COLUMNS, SPEC, add, check
from worldmodel.replay import Replay, clear, disk
from worldmodel.replay.delta import DELTA, FOLDING, MAGIC, TRAILER
from worldmodel.replay.index import BLOCK, INDEX, _crc
from worldmodel.replay.schema import Schema

ROWS = 40  # per stream; the ring holds 30, so that it has come round
FIELDS = Schema(SPEC, COLUMNS, priorities=True).fields
BYTES = {name: field.nbytes for name, field in FIELDS.items()}
Files = dict[str, bytes]


make = partial(replay_rows.make, exponent=0.6)


class Saved(NamedTuple):
    """A folder in one of the states that a run may leave it in. state: a checkpoint's; good: what
    may be read from it, by whoever asks with that state or without one."""

    name: str
    files: Files
    state: dict[str, Any]
    good: list[Any]
    storage: str

    def __repr__(self) -> str:
        return self.name


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def fill(folder: Path, files: Files) -> None:
    """Make these the only files of the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def folders(place: Path, storage: str) -> Iterator[Saved]:
    """A commit; a save on top of it; one that was being folded; and a first save alone."""
    place.mkdir()
    replay = make(storage=storage, directory=str(place))
    add(replay, ROWS)
    for _ in range(20):
        drawn = replay.transitions(8)
        replay.reweigh(drawn.index, drawn.reward + 0.5)
    state = replay.save(place)
    whole = contents(replay)
    yield Saved("a first save", files_of(place), state, [whole], storage)
    replay.commit()
    yield Saved("a commit", files_of(place), state, [whole], storage)
    add(replay, 11, episode=5)
    newer = replay.save(place)
    later = contents(replay)
    files = files_of(place)
    yield Saved("a save on a commit", files, state, [whole, later], storage)
    folding = {FOLDING if name == DELTA else name: content for name, content in files.items()}
    yield Saved("a commit under way", folding, newer, [later, whole], storage)


@pytest.fixture(scope="module")
def saved(place: Path) -> list[Saved]:
    return [s for kind in ("memory", "disk") for s in folders(place / f"made-{kind}", kind)]


@pytest.fixture
def folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where cases lie; nothing outside of it may be opened, and no disk needs to be waited for."""
    (place / "outside.bin").write_bytes(bytes(4096))
    where, was = place / "replay", disk.open_file

    def watched(path: Path, write: bool = False) -> Any:
        assert path.parent == where, f"{path} was opened"
        return was(path, write)

    monkeypatch.setattr(disk, "open_file", watched)
    monkeypatch.setattr(disk, "sync", lambda file: None)
    monkeypatch.setattr(disk, "sync_folder", lambda folder: None)
    return where


def look(replay: Replay, honest: bool) -> None:
    """Read all of it. honest: rows are those that they say they are."""
    if replay.num_sequences(3):
        batch = replay.sample(6, 3)
        if honest:
            check(batch)
        if replay._draws.priorities is not None:  # not where it was opened for reading
            replay.reweigh(batch.index, np.arange(1, 7))
    for stream, start, stop in replay.episodes():
        replay.rows(stream, start, stop)


def read(folder: Path, one: Saved, kind: str, honest: bool) -> None:
    """Open the folder, load it with the checkpoint's state and without one, and go on from it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ours(f"{kind}, opened", FileNotFoundError):
            opened = Replay.open(folder)
            same = contents(opened) in one.good
            assert same or caught or not honest, "a damage that nobody noticed"
            look(opened, honest)
        before = files_of(folder) if folder.exists() else {}
        del caught[:]
        for state in (one.state, None):
            fill(folder, before)
            with ours(f"{kind}, loaded", FileNotFoundError):
                replay = make(storage=one.storage, directory=str(folder))
                replay.load(folder, state)
                same = contents(replay) in one.good
                assert same or caught or not honest, "a damage that nobody noticed"
                look(replay, honest)
                go_on(replay, folder)


def go_on(replay: Replay, folder: Path) -> None:
    """What a run does next; what it saves is whole again."""
    add(replay, 2)
    replay.save(folder)
    replay.commit()
    again = Replay.open(folder)
    assert contents(again) == contents(replay)


def unharmed(place: Path) -> None:
    assert (place / "outside.bin").read_bytes() == bytes(4096)
    kept = {"outside.bin", "replay", "made-memory", "made-disk"}
    assert set(os.listdir(place)) == kept


def test_damaged_files(saved: list[Saved], folder: Path, place: Path) -> None:
    @cases(15, 200)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(saved))
        name = data.draw(st.sampled_from(sorted(one.files)))
        fill(folder, one.files | {name: data.draw(damaged(one.files[name]))})
        read(folder, one, "replays, bytes", honest=True)

    fuzz()
    unharmed(place)


def test_files_that_are_gone_or_others(saved: list[Saved], folder: Path, place: Path) -> None:
    @cases(30, 300)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        one, other = data.draw(st.sampled_from(saved)), data.draw(st.sampled_from(saved))
        fill(folder, one.files)
        for name in data.draw(st.lists(st.sampled_from(sorted(one.files)), min_size=1, max_size=3)):
            path = folder / name
            path.unlink(missing_ok=True) if not path.is_dir() else path.rmdir()
            match data.draw(st.sampled_from(["gone", "link", "folder", "pipe", "other", "file"])):
                case "link":
                    path.symlink_to(place / "outside.bin")
                case "folder":
                    path.mkdir()
                case "pipe":
                    os.mkfifo(path)
                case "other" if name in other.files:  # the file of another moment
                    path.write_bytes(other.files[name])
                case "file":
                    path.write_bytes(one.files[data.draw(st.sampled_from(sorted(one.files)))])
        with ours("replays, other files", FileNotFoundError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            look(Replay.open(folder), honest=False)
        with ours("replays, other files", FileNotFoundError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            replay = make(storage=one.storage, directory=str(folder))
            replay.load(folder, one.state)
            look(replay, honest=False)

    fuzz()
    unharmed(place)


# Made up: every checksum is right.

VALUES = st.one_of(JSON, ODD_INTS, WORDS.filter(lambda word: "\ud800" not in word))


def sealed(value: Any) -> Any:
    """An index with the checksum that it must have."""
    if not isinstance(value, dict):
        return value
    return {**value, "crc": _crc({k: v for k, v in value.items() if k != "crc"})}


def log_parts(content: bytes) -> tuple[bytes, dict[str, Any]]:
    length, _, _ = TRAILER.unpack(content[-TRAILER.size :])
    start = len(content) - TRAILER.size - length
    return content[:start], json.loads(content[start : start + length])


def log_of(rows: bytes, footer: Any) -> bytes:
    text = json.dumps(footer).encode()
    return rows + text + TRAILER.pack(len(text), zlib.crc32(text), MAGIC)


def resealed(files: Files, count: list[int]) -> Files:
    """Base files with other rows in them, and the index whose checksums say that they are right."""
    index = json.loads(files[INDEX])
    for stream, number in enumerate(count):
        for field, size in BYTES.items():
            name = next(n for n in index["sums"] if n.startswith(_quoted(field, stream)))
            used = files[name][: min(number, 30) * size]
            blocks = [used[i : i + BLOCK * size] for i in range(0, len(used), BLOCK * size)]
            index["sums"][name] = b"".join(
                zlib.crc32(block).to_bytes(4, "little") for block in blocks
            ).hex()
    return files | {INDEX: json.dumps(sealed(index)).encode()}


def _quoted(field: str, stream: int) -> str:
    return f"{field.replace('/', '%2F')}.{stream:04d}."


def test_an_index_that_somebody_made(saved: list[Saved], folder: Path, place: Path) -> None:
    committed = [one for one in saved if INDEX in one.files]

    @cases(40, 300)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(committed))
        index = data.draw(altered(json.loads(one.files[INDEX]), VALUES))
        fill(folder, one.files | {INDEX: json.dumps(sealed(index)).encode()})
        read(folder, one, "replays, index", honest=False)

    fuzz()
    unharmed(place)


def test_a_log_that_somebody_made(saved: list[Saved], folder: Path, place: Path) -> None:
    logged = [one for one in saved if {DELTA, FOLDING} & set(one.files)]

    @cases(15, 200)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(logged))
        name = DELTA if DELTA in one.files else FOLDING
        rows, footer = log_parts(one.files[name])
        footer = data.draw(altered(footer, VALUES))
        if isinstance(footer, dict) and data.draw(st.booleans()):
            footer["index"] = sealed(footer.get("index"))
        fill(folder, one.files | {name: log_of(rows, footer)})
        read(folder, one, "replays, log", honest=False)

    fuzz()
    unharmed(place)


def test_rows_that_somebody_made(saved: list[Saved], folder: Path, place: Path) -> None:
    committed = [one for one in saved if INDEX in one.files and len(one.good) == 1]

    @cases(15, 200)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(committed))
        name = data.draw(st.sampled_from(sorted(set(one.files) - {INDEX})))
        content = bytearray(one.files[name])
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] = data.draw(st.sampled_from([0, 1, 127, 128, 255]))
        fill(folder, resealed({**one.files, name: bytes(content)}, one.state["count"]))
        read(folder, one, "replays, rows", honest=False)

    fuzz()
    unharmed(place)


def test_a_state_of_a_checkpoint(saved: list[Saved], folder: Path, place: Path) -> None:
    @cases(40, 300)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(saved))
        fill(folder, one.files)
        state = data.draw(altered(one.state, VALUES))
        with ours("replays, state of a checkpoint", FileNotFoundError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            replay = make(storage=one.storage, directory=str(folder))
            replay.load(folder, state)
            look(replay, honest=False)

    fuzz()
    unharmed(place)


def test_clear_takes_what_is_ours_alone(saved: list[Saved], folder: Path, place: Path) -> None:
    @cases(20, 200)
    @given(st.lists(st.sampled_from(
        ["notes.txt", "photo.bin", "model.0001.bin", "a.0000.bin.bak", "index.json.bak", "new.bin"]
    ), unique=True), st.sampled_from(range(4)))  # fmt: skip
    @example(["model.0001.bin"], 0)
    def fuzz(names: list[str], which: int) -> None:
        one = saved[which]
        fill(folder, one.files | dict.fromkeys(names, b"mine"))
        with ours("replays, cleared"):
            clear(folder)
            assert {path.name for path in folder.iterdir()} == set(names)

    fuzz()
    unharmed(place)
