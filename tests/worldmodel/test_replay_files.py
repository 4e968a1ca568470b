"""Replay on disk: round trips, incremental saves, memory-mapped storage, room."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.replay_cycles import contents
from tests.replay_rows import COLUMNS, SPEC, add, columns_of, make, same
from worldmodel.replay import Replay, ReplayConfig, RowIndex, clear, disk
from worldmodel.replay.delta import Delta
from worldmodel.types import ActionSpec, Column, EnvSpec, ObsSpec


def on_disk(directory: Path, capacity: float = 60) -> Replay:
    config = ReplayConfig(capacity=capacity, storage="disk", directory=str(directory))
    return Replay(SPEC, config, 2, COLUMNS)


def assert_equal(a: Replay, b: Replay) -> None:
    """Both go on alike: the same draws, online ones included, and the same whole contents."""
    for _ in range(3):
        assert same(*(x.sample(16, 5, context=COLUMNS) for x in (a, b)))
        for replay in (a, b):
            add(replay, 4)
    assert a.episodes() == b.episodes()
    for stream, start, stop in a.episodes():
        x, y = a.rows(stream, start, stop), b.rows(stream, start, stop)
        assert all(x[key].tobytes() == y[key].tobytes() for key in x)


@pytest.mark.parametrize("steps", [0, 11, 30, 77])
def test_round_trip_is_bit_equal(tmp_path: Path, steps: int) -> None:
    replay, other = make(seed=3), make(seed=4)
    add(replay, steps)
    if replay.can_sample(5):
        replay.sample(3, 5)
    replay.save(tmp_path)
    other.load(tmp_path)
    for r in (replay, other):
        add(r, 6)
    assert_equal(replay, other)


@pytest.mark.parametrize("more", [1, 13, 30, 31, 95])
def test_incremental_save_equals_a_full_one(tmp_path: Path, more: int) -> None:
    replay = make()
    add(replay, 26)
    replay.save(tmp_path)
    batch = replay.sample(8, 5)
    moved = batch.index.start[:, None] + [0, 1, 2, 3, 4]
    fresh = columns_of(batch.index.stream[:, None].repeat(5, 1), moved + 100)
    replay.rewrite(batch.index, fresh)
    replay.save(tmp_path)  # columns only
    add(replay, more, episode=13)  # the first row changes the flags of a row already saved
    replay.save(tmp_path)
    other = make(seed=9)
    other.load(tmp_path)
    assert_equal(replay, other)


def test_a_save_writes_only_what_changed(tmp_path: Path) -> None:
    replay = make(capacity=2000)
    add(replay, 500)

    def written() -> int:
        """Bytes of rows in the log of a save, which is then committed."""
        replay.save(tmp_path)
        with Delta.open(tmp_path / "delta.bin") as log:
            size = sum(part.nbytes for part in log.parts())
        replay.commit()
        return size

    row, columns = replay.row_bytes, 6 + 2 + 1
    assert written() == 1000 * row
    assert written() == 0
    add(replay, 3, episode=1000)  # no row before is cut off
    assert written() == 6 * row
    index = RowIndex(np.array([0, 1, 1]), np.array([40, 7, 300]), 8)
    rows = index.start[:, None] + np.arange(8)
    replay.rewrite(index, columns_of(index.stream[:, None].repeat(8, 1), rows + 100))
    assert written() == 24 * columns
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the checksums of old blocks are those of their new values
        make(capacity=2000).load(tmp_path)
    (tmp_path / "index.json").unlink()  # somebody tidied up: nothing there can be trusted
    assert written() == 1006 * row
    again = make(capacity=2000)
    again.load(tmp_path)
    assert_equal(replay, again)


def test_a_save_touches_nothing_that_is_there(tmp_path: Path) -> None:
    replay = make()
    add(replay, 45)
    replay.save(tmp_path)
    replay.commit()

    def there() -> dict[str, bytes]:
        names = {path.name for path in tmp_path.iterdir()} - {"delta.bin"}
        return {name: (tmp_path / name).read_bytes() for name in names}

    before = there()
    assert len(before) == 1 + 2 * len(replay._ring.fields)
    add(replay, 20)
    replay.save(tmp_path)
    assert there() == before
    replay.commit()
    assert there() != before
    assert not (tmp_path / "delta.bin").exists()
    replay.commit()  # nothing more to do


def test_the_state_of_a_save_is_plain_and_fits_a_checkpoint(tmp_path: Path) -> None:
    replay = make()
    add(replay, 45)
    replay.sample(4, 5)
    replay._draws.rng.integers(3, size=3, dtype=np.uint32)  # leaves half a draw in the generator
    state = replay.save(tmp_path / "replay")
    torch.save(state, tmp_path / "checkpoint.pt")
    for saved in (
        json.loads(json.dumps(state)),
        torch.load(tmp_path / "checkpoint.pt", weights_only=True),
    ):
        assert saved == state
        again = make(seed=8)
        again.load(tmp_path / "replay", saved)
        assert contents(again) == contents(replay)


def test_loading_brings_the_folder_to_the_state(tmp_path: Path) -> None:
    """Another program copies a run folder: base files and index alone are then enough."""
    replay = make()
    add(replay, 45)
    state = replay.save(tmp_path / "a")
    make().load(tmp_path / "a", state)
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".bin", ".json"}
    assert not (tmp_path / "a" / "delta.bin").exists()
    assert sum(f.stat().st_size for f in (tmp_path / "a").glob("*.bin")) == 60 * replay.row_bytes


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_the_folder_never_holds_more_than_announced(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ReplayConfig(capacity=1600, storage=storage)
    replay = Replay(SPEC, config, 2, COLUMNS, directory=tmp_path)
    sizes: list[int] = []
    was = disk.sync

    def sync(file: Any) -> None:  # whenever a file is whole, and perhaps beside the one it replaces
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
        assert sizes[-1] <= replay.disk_bytes(int(replay.counts.sum())) <= replay.disk_bytes()
        was(file)

    monkeypatch.setattr(disk, "sync", sync)
    for steps in (0, 300, 799, 5, 1000):
        add(replay, steps)
        for action in (lambda: replay.save(tmp_path), lambda: replay.save(tmp_path), replay.commit):
            action()
    # The announcement is not wasteful either: two logs as large as the rows were there.
    assert max(sizes) > 3 * 1600 * replay.row_bytes
    base = list(tmp_path.glob("*.bin"))
    assert sum(path.stat().st_size for path in base) == 1600 * replay.row_bytes


def test_a_folder_can_be_cleared_of_a_replay_and_nothing_else(tmp_path: Path) -> None:
    replay = make()
    add(replay, 5)
    replay.save(tmp_path)
    replay.commit()
    replay.save(tmp_path)
    for other in ("notes.txt", "weights.bin", "x.12.bin"):
        (tmp_path / other).write_text("mine")
    clear(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"notes.txt", "weights.bin", "x.12.bin"}
    clear(tmp_path / "missing")


def test_mapped_rows_leave_no_memory_behind(tmp_path: Path) -> None:
    """Private memory grows with what changes, and is given back by every commit; neither save
    nor commit takes memory of the size of the ring."""
    spec = EnvSpec({"image": ObsSpec("image", (64, 64, 3))}, ActionSpec("discrete", (3,)))
    config = ReplayConfig(capacity=3000, storage="disk")
    replay = Replay(spec, config, 1, directory=tmp_path)
    image = np.zeros((1, 64, 64, 3), np.uint8)
    flag = np.zeros(1, bool)
    flags = {"is_first": flag, "is_last": flag, "is_terminal": flag}
    changed, kept, peak = [], [], [0]
    was = disk.write

    def write(*args: Any) -> None:
        peak[0] = max(peak[0], private_bytes())
        was(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "write", write)
        for step in range(6):
            for row in range(600):  # 7.4 MB
                image[:] = (step * 600 + row) % 256
                replay.add({"image": image, "action": np.eye(3)[:1], "reward": [0.0], **flags})
            changed.append(private_bytes())
            replay.save(tmp_path)
            replay.commit()
            kept.append(private_bytes())
    grown = np.subtract(changed[1:], kept[:-1])
    assert grown.min() > 6e6, "the measurement does not see what changes"
    # Five saves of 7.4 MB: less than one of them stays, which is the allocator's own play.
    assert max(kept[1:]) - kept[0] < 7e6
    assert peak[0] - max(changed) < 14e6  # chunks of 4 MiB, and not the ring's 37 MB
    images = replay.rows(0, 600, 3600)["image"]
    assert np.array_equal(images[:, 5, 5, 1], np.arange(600, 3600) % 256)


def private_bytes() -> int:
    """Memory that belongs to this process alone and differs from any file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("Private_Dirty:"))


def test_rows_added_between_a_save_and_its_commit_are_not_lost(tmp_path: Path) -> None:
    replay = on_disk(tmp_path)
    add(replay, 40)
    state = replay.save(tmp_path)
    saved = contents(replay)
    add(replay, 9, episode=5)
    before = contents(replay)
    replay.commit()
    assert contents(replay) == before
    again = on_disk(tmp_path)
    again.load(tmp_path, state)
    assert contents(again) == saved
    replay.save(tmp_path)
    replay.commit()
    again.load(tmp_path)
    assert contents(again) == before
    assert_equal(replay, again)


def test_disk_and_memory_are_the_same_and_read_each_other(tmp_path: Path) -> None:
    memory, disk = make(), on_disk(tmp_path / "a")
    for replay in (memory, disk):
        add(replay, 45)
    assert same(*(x.sample(8, 5, context=COLUMNS) for x in (memory, disk)))
    disk.save(tmp_path / "a")
    memory.save(tmp_path / "b")
    disk.save(tmp_path / "copy")
    for directory in ("a", "b", "copy"):
        back = make(seed=7)
        back.load(tmp_path / directory)
        original = make()
        add(original, 45)
        original.sample(8, 5)
        assert_equal(original, back)
    mapped = on_disk(tmp_path / "b")
    mapped.load(tmp_path / "b")
    assert_equal(memory, mapped)
    assert "disk" in mapped.footprint()


def test_saved_rows_on_disk_are_not_overwritten_by_mistake(tmp_path: Path) -> None:
    replay = on_disk(tmp_path)
    add(replay, 10)
    replay.save(tmp_path)
    careless = on_disk(tmp_path)
    with pytest.raises(ValueError, match="holds a saved replay"):
        add(careless, 1)
    with pytest.raises(ValueError, match="holds a saved replay"):
        careless.save(tmp_path)
    careless.load(tmp_path)
    assert_equal(replay, careless)


def test_what_differs_is_named(tmp_path: Path) -> None:
    replay = make()
    add(replay, 10)
    replay.save(tmp_path)
    config = ReplayConfig(capacity=60)
    discrete = EnvSpec(SPEC.obs, ActionSpec("discrete", (2,)))
    for message, other in {
        "rows per environment: saved 30, here 40": make(capacity=80),
        "environments: saved 2, here 3": make(num_envs=3),
        "columns: saved": Replay(SPEC, config, 2, {**COLUMNS, "stoch": Column((2,), "uint8")}),
        "action: saved": Replay(discrete, config, 2, COLUMNS),
        "fields: saved": make(stored=False),
    }.items():
        with pytest.raises(ValueError, match=message):
            other.load(tmp_path)


def test_a_disk_too_small_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of disk are free"):
        on_disk(tmp_path, capacity=1e15)
