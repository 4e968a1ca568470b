"""Replay on disk: round trips, incremental saves, memory-mapped storage, damage."""

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.replay_rows import LATENT, SPEC, add, check, latent_of, make, same
from worldmodel.replay import LatentSpec, Replay, ReplayConfig, files
from worldmodel.types import ActionSpec, EnvSpec


def on_disk(directory: Path, capacity: float = 60) -> Replay:
    config = ReplayConfig(capacity=capacity, storage="disk", directory=str(directory))
    return Replay(SPEC, config, 2, LATENT)


def assert_equal(a: Replay, b: Replay) -> None:
    """Both go on alike: the same draws, online ones included, and the same whole contents."""
    for _ in range(3):
        assert same(a.sample(16, 5), b.sample(16, 5))
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
    fresh = latent_of(batch.index.stream[:, None].repeat(5, 1), moved + 100)
    replay.write_latents(batch.index, fresh)
    replay.save(tmp_path)  # latents only
    add(replay, more, episode=13)  # the first row changes the flags of a row already saved
    replay.save(tmp_path)
    other = make(seed=9)
    other.load(tmp_path)
    assert_equal(replay, other)


def test_incremental_save_writes_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = files._write

    def spy(path: Path, array: Any, runs: list[tuple[int, int]], whole: bool = True) -> None:
        written.append(sum(b - a for a, b in runs))
        write(path, array, runs, whole)

    monkeypatch.setattr(files, "_write", spy)
    replay = make(capacity=2000)
    add(replay, 500)
    replay.save(tmp_path)
    written.clear()
    add(replay, 3, episode=1000)
    replay.save(tmp_path)
    assert max(written) == 3
    (tmp_path / "index.json").unlink()  # somebody tidied up: nothing there can be trusted
    replay.save(tmp_path)
    assert max(written) == 503
    again = make(capacity=2000)
    again.load(tmp_path)
    assert_equal(replay, again)


def test_disk_and_memory_are_the_same_and_read_each_other(tmp_path: Path) -> None:
    memory, disk = make(), on_disk(tmp_path / "a")
    for replay in (memory, disk):
        add(replay, 45)
    assert same(memory.sample(8, 5), disk.sample(8, 5))
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


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_a_killed_run_never_joins_unrelated_rows(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = make() if storage == "memory" else on_disk(tmp_path)
    add(replay, 40)
    replay.save(tmp_path)
    add(replay, 12)

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        replay.save(tmp_path)
    monkeypatch.undo()
    back = make(online=False) if storage == "memory" else on_disk(tmp_path)
    with pytest.warns(UserWarning, match="dropped the oldest 12 rows of 30"):
        back.load(tmp_path)
    assert len(back) == 2 * 18  # rows 22 ... 39
    check(back.sample(200, 4))
    add(back, 12)
    back.save(tmp_path)
    again = make(online=False)
    again.load(tmp_path)
    check(again.sample(200, 4))
    assert len(again) == 60


@pytest.mark.parametrize("writes", range(1, 22, 3))
def test_a_save_killed_anywhere_leaves_the_one_before(
    tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = make()
    add(replay, 42, episode=1000)
    replay.save(tmp_path)
    add(replay, 12)  # the first row at 42 cuts the long episode off at row 41, already saved
    left = iter(range(writes))
    write = files._write

    def killed(*args: Any, **kwargs: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(*args, **kwargs)

    monkeypatch.setattr(files, "_write", killed)
    with contextlib.suppress(KeyboardInterrupt):
        replay.save(tmp_path)
    finished = next(left, None) is not None
    monkeypatch.undo()
    back = make(online=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        back.load(tmp_path)
    assert bool(caught) != finished
    assert back.counts.tolist() == ([54, 54] if finished else [42, 42])
    assert len(back) == 60 if finished else 36 <= len(back) < 60
    check(back.sample(200, 4))


def test_what_differs_is_named(tmp_path: Path) -> None:
    replay = make()
    add(replay, 10)
    replay.save(tmp_path)
    config = ReplayConfig(capacity=60)
    discrete = EnvSpec(SPEC.obs, ActionSpec("discrete", (2,)))
    for message, other in {
        "rows per environment: saved 30, here 40": make(capacity=80),
        "environments: saved 2, here 3": make(num_envs=3),
        "latent: saved": Replay(SPEC, config, 2, LatentSpec(3, 2, 6)),
        "action: saved": Replay(discrete, config, 2, LATENT),
        "fields: saved": make(latents=False),
    }.items():
        with pytest.raises(ValueError, match=message):
            other.load(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing"):
        make().load(tmp_path)
    replay = make()
    add(replay, 10)
    replay.save(tmp_path)
    image = tmp_path / "obs.image.0001.bin"
    whole = image.read_bytes()
    image.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="truncated"):
        make().load(tmp_path)
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"obs\.image\.0001\.bin is missing"):
        make().load(tmp_path)
    image.write_bytes(whole)
    index = json.loads((tmp_path / "index.json").read_text())
    for text in (json.dumps(index)[:50], json.dumps({**index, "count": None}), "[]"):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match="damaged"):
            make().load(tmp_path)


def test_a_disk_too_small_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of disk are free"):
        on_disk(tmp_path, capacity=1e15)
