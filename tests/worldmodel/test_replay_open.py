"""A replay opened from its folder alone, also beside the process that writes there."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.replay_cycles import build, contents, cycle_of, twin, write_checkpoint
from tests.replay_rows import COLUMNS, SPEC, add, check, columns_of, make, same
from worldmodel.replay import Replay, ReplayConfig, RowIndex, disk, files
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

STORAGES = ("memory", "disk")


def listing(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("steps", [0, 3, 45])
@pytest.mark.parametrize("committed", [True, False])
def test_the_folder_is_enough(tmp_path: Path, storage: str, steps: int, committed: bool) -> None:
    replay = build(tmp_path, storage, exponent=0.0)  # draws are uniform where it is opened
    add(replay, 20)
    replay.save(tmp_path / "replay")
    replay.commit()
    add(replay, steps)
    replay.save(tmp_path / "replay")
    if committed:
        replay.commit()
    before = listing(tmp_path / "replay")
    opened = Replay.open(tmp_path / "replay")
    assert contents(opened) == contents(replay)
    assert (opened.spec, opened.columns, opened.num_envs) == (SPEC, COLUMNS, 2)
    assert (opened.capacity, len(opened)) == (60, len(replay))
    assert opened.episodes() == replay.episodes()
    assert same(*(x.sample(20, 4, context=COLUMNS) for x in (opened, replay)))
    assert opened.config.storage == storage
    assert listing(tmp_path / "replay") == before


def test_every_kind_of_row_comes_back(tmp_path: Path) -> None:
    obs = {"x": ObsSpec("vector", (3,)), "ä/.. %": ObsSpec("discrete", (5,), (2, 3))}
    spec = EnvSpec(obs, ActionSpec("discrete", (2, 4)))
    replay = Replay(spec, ReplayConfig(capacity=12), 1)
    replay.save(tmp_path)
    assert len(Replay.open(tmp_path)) == 0
    flag = np.zeros(1, bool)
    rows = {"x": np.ones((1, 3)), "ä/.. %": np.ones((1, 5)), "action": np.ones((1, 6))}
    rows |= {"reward": np.ones(1), "is_first": flag, "is_last": flag, "is_terminal": flag}
    replay.add(rows)
    replay.save(tmp_path)
    opened = Replay.open(str(tmp_path))
    assert opened.spec == spec
    assert opened.columns == {}
    assert contents(opened) == contents(replay)
    assert opened.sample(1, 1).context == {}


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_open_for_reading_takes_nothing(tmp_path: Path, storage: str) -> None:
    replay = build(tmp_path, storage)
    add(replay, 40)
    replay.save(tmp_path / "replay")
    replay.commit()
    opened = Replay.open(tmp_path / "replay")
    batch = opened.sample(4, 3)
    check(batch)
    rows = batch.index.start[:, None] + np.arange(3)
    attempts: list[Callable[[], Any]] = [
        lambda: add(opened, 1),
        lambda: opened.rewrite(
            batch.index, columns_of(batch.index.stream[:, None] + 0 * rows, rows)
        ),
        lambda: opened.save(tmp_path / "other"),
        lambda: opened.save(tmp_path / "replay"),
        lambda: opened.load(tmp_path / "replay"),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="opened for reading"):
            attempt()
    assert not (tmp_path / "other").exists()
    opened.commit()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing"):
        Replay.open(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing"):
        Replay.open(tmp_path / "missing")


@pytest.mark.parametrize("storage", STORAGES)
def test_a_reader_at_every_moment_of_a_cycle(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every single operation of a save and its commit, a reader sees one state whole."""
    expected = twin(6)
    replay = build(tmp_path, storage)
    for cycle in range(5):
        cycle_of(tmp_path, replay, cycle)
    seen = []

    def watched(name: str) -> Callable[..., None]:
        was = getattr(disk, name)

        def operation(*args: Any) -> None:
            found = contents(Replay.open(tmp_path / "replay"))
            seen.append(expected.index(found))
            was(*args)

        return operation

    for name in ("write", "sync", "sync_folder", "replace", "remove"):
        monkeypatch.setattr(disk, name, watched(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cycle_of(tmp_path, replay, 5)
    assert seen == sorted(seen)
    assert set(seen) == {4, 5}


@pytest.mark.parametrize("storage", STORAGES)
def test_a_run_that_saves_while_it_is_read(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has read the index when the run commits two saves; it reads again."""
    expected = twin(4)
    replay = build(tmp_path, storage)
    for cycle in range(2):
        cycle_of(tmp_path, replay, cycle)
    cycles, was = iter([2, 3]), files.Ring

    def slow(*args: Any) -> Any:
        ring = was(*args)
        for cycle in cycles:
            cycle_of(tmp_path, replay, cycle)
        return ring

    monkeypatch.setattr(files, "Ring", slow)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = Replay.open(tmp_path / "replay")
    assert contents(opened) == expected[3]


def test_a_run_that_never_rests_costs_torn_rows_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = make(online=False)
    add(replay, 40)
    replay.save(tmp_path)
    replay.commit()
    was = files.Ring

    def slow(*args: Any) -> Any:
        ring = was(*args)
        add(replay, 4)
        replay.save(tmp_path)
        replay.commit()
        return ring

    monkeypatch.setattr(files, "Ring", slow)
    with pytest.warns(UserWarning, match="dropped the oldest"):
        opened = Replay.open(tmp_path)
    assert opened.counts.tolist() == [40 + 4 * (files.TRIES - 1)] * 2
    if len(opened) > 8:
        check(opened.sample(50, 4))


def test_mapped_rows_that_the_run_overwrites_later_are_refused(tmp_path: Path) -> None:
    replay = build(tmp_path, "disk")
    add(replay, 40)  # rows 10 ... 39
    replay.save(tmp_path / "replay")
    replay.commit()
    opened = Replay.open(tmp_path / "replay")
    add(replay, 5)  # in the place of rows 10 ... 14
    write_checkpoint(tmp_path, 0, replay.save(tmp_path / "replay"))
    check(opened.gather(RowIndex(np.array([1]), np.array([10]), 8)))
    replay.commit()
    for start in (10, 14):
        with pytest.raises(ValueError, match="overwritten by the run"):
            opened.gather(RowIndex(np.array([1]), np.array([start]), 8))
        with pytest.raises(ValueError, match="overwritten by the run"):
            opened.rows(0, start, 20)
    index = RowIndex(np.array([1, 1]), np.array([15, 16]), 24)
    batch = opened.gather(index, context=COLUMNS)
    check(batch)
    assert batch.is_first[:, 0].tolist() == [True, False]  # the row before 15 is gone
    assert opened.episodes()[0] == (0, 15, 21)
    assert set(opened.sample(300, 5, online=False).index.start.tolist()) == set(range(15, 36))
    assert len(opened) == 2 * 25


def test_mapped_rows_are_right_or_refused_while_the_run_overwrites_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = build(tmp_path, "disk")
    add(replay, 40)  # rows 10 ... 39
    replay.save(tmp_path / "replay")
    replay.commit()
    opened = Replay.open(tmp_path / "replay")
    add(replay, 5)
    replay.save(tmp_path / "replay")
    was, refused = disk.write, []

    def write(*args: Any) -> None:
        was(*args)
        for row in (10, 14, 15):
            try:
                values = opened.rows(1, row, row + 1)
            except ValueError:
                refused.append(row)
            else:
                assert values["reward"].item() == values["a/b"][0, 1] == row
                assert values["image"][0, 1, 1, 0] == values["action"][0, 0] == row

    monkeypatch.setattr(disk, "write", write)
    replay.commit()
    assert set(refused) == {10, 14}
