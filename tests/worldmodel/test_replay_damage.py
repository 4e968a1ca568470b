"""Damaged, hostile and old replay folders: what is lost is said, and nothing else happens."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.replay_cycles import contents
from tests.replay_rows import COLUMNS, SPEC, add, check, make
from worldmodel.replay import Replay, ReplayConfig, ReplayDamaged
from worldmodel.replay.index import BLOCK

ROWS = 900  # per stream: some blocks


def big(storage: str = "memory", directory: Path | None = None) -> Replay:
    config = ReplayConfig(capacity=2 * ROWS, online=False, storage=storage)
    return Replay(SPEC, config, 2, COLUMNS, directory=directory)


def saved(folder: Path, steps: int = 40) -> dict[str, Any]:
    """A small committed replay; its state."""
    replay = make()
    add(replay, steps)
    state = replay.save(folder)
    replay.commit()
    return state


def flip(path: Path, at: int, bits: int = 0x10) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bits
    path.write_bytes(data)


@pytest.mark.parametrize("storage", ["memory", "disk"])
@pytest.mark.parametrize("name", ["obs.image", "obs.a%2Fb", "reward", "flags", "row"])
def test_damaged_rows_go_with_what_is_older(tmp_path: Path, storage: str, name: str) -> None:
    replay = big(storage, tmp_path)
    add(replay, ROWS + 300)  # the stream holds rows 300 ... 1199; slot s < 300 holds row 900 + s
    state = replay.save(tmp_path)
    replay.commit()
    path = tmp_path / f"{name}.0001.bin"
    flip(path, path.stat().st_size * (BLOCK + 50) // ROWS)  # slots 256 ... 511 are not believed
    lost = 900 + 299 + 1 - 300  # the newest of them is row 1199: all 900 rows
    again = big(storage, tmp_path)
    with pytest.warns(UserWarning, match=f"stream 1: dropped the oldest {lost} rows of 900"):
        again.load(tmp_path, state)
    assert len(again) == ROWS
    flip(path, path.stat().st_size * (BLOCK + 50) // ROWS)
    flip(path, path.stat().st_size * (2 * BLOCK + 50) // ROWS)  # slots 512 ... 767, rows as slots
    again = big(storage, tmp_path)
    with pytest.warns(UserWarning, match=r"dropped the oldest 468 rows of 900; .*is damaged"):
        again.load(tmp_path, state)  # 300 ... 767
    assert len(again) == ROWS + 900 - 468
    check(again.sample(300, 4))
    # The next save heals the files.
    add(again, 3)
    state = again.save(tmp_path)
    again.commit()
    healed = big(storage, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        healed.load(tmp_path, state)
    assert contents(healed) == contents(again)


@pytest.mark.parametrize("name", ["deter", "stoch"])
def test_a_damaged_column_costs_the_columns_of_its_rows_only(tmp_path: Path, name: str) -> None:
    replay = big()
    add(replay, ROWS)
    replay.save(tmp_path)
    replay.commit()
    flip(tmp_path / f"column.{name}.0000.bin", 0)
    again = big()
    with pytest.warns(UserWarning, match="stream 0: 256 rows lost their columns"):
        again.load(tmp_path)
    assert len(again) == 2 * ROWS
    batch = again.sample(2000, 2, context=COLUMNS)
    check(batch)
    known = ~((batch.index.stream == 0) & (batch.index.start <= BLOCK)) & (batch.index.start > 0)
    first = (batch.index.start % 7 == 0) | ~known
    assert np.array_equal(batch.is_first[:, 0], first)
    again.save(tmp_path)
    again.commit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        big().load(tmp_path)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    state = saved(tmp_path / "a")
    good = make()
    good.load(tmp_path / "a", state)
    expected, rng = contents(good), np.random.default_rng(0)
    for path in sorted((tmp_path / "a").iterdir()):
        data = path.read_bytes()
        for at in rng.choice(len(data), size=min(len(data), 12), replace=False).tolist():
            flip(path, at, 1 << int(rng.integers(8)))
            replay = make()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    replay.load(tmp_path / "a", state)
                    noticed = bool(caught)
                except ReplayDamaged:
                    noticed = True
            assert noticed, (path.name, at)
            path.write_bytes(data)
    replay = make()
    replay.load(tmp_path / "a", state)
    assert contents(replay) == expected


def test_every_changed_byte_of_the_index_is_noticed_without_a_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path)
    expected, rng = contents(Replay.open(tmp_path)), np.random.default_rng(2)
    path = tmp_path / "index.json"
    data = path.read_bytes()
    digits = [at for at in range(len(data)) if chr(data[at]).isdigit()]
    for at in rng.choice(digits, 60, replace=False).tolist():
        flip(path, at, 1)  # another digit
        with pytest.raises(ReplayDamaged, match=r"index\.json is damaged"):
            Replay.open(tmp_path)
        path.write_bytes(data)
    assert contents(Replay.open(tmp_path)) == expected


def test_a_damaged_log_sends_back_to_the_checkpoint_before(tmp_path: Path) -> None:
    older = saved(tmp_path / "a")
    replay = make()
    replay.load(tmp_path / "a", older)
    before = contents(replay)
    add(replay, 12)
    newer = replay.save(tmp_path / "a")
    log = tmp_path / "a" / "delta.bin"
    rng = np.random.default_rng(1)
    places = [*rng.choice(log.stat().st_size, 40).tolist(), *range(-20, 0)]
    for at in (*places, None):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        if at is None:
            (tmp_path / "b" / "delta.bin").unlink()
        else:
            flip(tmp_path / "b" / "delta.bin", at)
        files = {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
        again = make()
        with pytest.raises(ReplayDamaged, match="does not hold save 2"):
            again.load(tmp_path / "b", newer)
        assert {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()} == files
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again.load(tmp_path / "b", older)
        assert contents(again) == before
        shutil.rmtree(tmp_path / "b")
    flip(log, 5)
    with pytest.warns(UserWarning, match="read without it"):
        make().load(tmp_path / "a")


def test_a_log_that_rests_on_other_files_is_not_applied(tmp_path: Path) -> None:
    """A delta put back from a copy of the folder, when the base files have moved on."""
    saved(tmp_path)
    replay = make()
    replay.load(tmp_path)
    states = []
    for number in range(2):
        add(replay, 5)
        states.append(replay.save(tmp_path))
        if number == 0:
            shutil.copy(tmp_path / "delta.bin", tmp_path / "copy")
        replay.commit()
    shutil.move(tmp_path / "copy", tmp_path / "delta.bin")
    assert contents(Replay.open(tmp_path)) == contents(replay)
    again = make()
    again.load(tmp_path)
    assert contents(again) == contents(replay)
    with pytest.warns(UserWarning, match="not equal to the bit"):
        again.load(tmp_path, states[0])


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_an_older_checkpoint_keeps_what_it_can(tmp_path: Path, storage: str) -> None:
    config = ReplayConfig(capacity=60, storage=storage)

    def fresh() -> Replay:
        return Replay(SPEC, config, 2, COLUMNS, directory=tmp_path)

    replay = fresh()
    add(replay, 40)
    replay.sample(2, 5)
    older = replay.save(tmp_path)
    replay.commit()
    add(replay, 12)
    replay.save(tmp_path)
    replay.commit()
    again = fresh()
    with pytest.warns(UserWarning, match="sound, but not equal to the bit") as caught:
        again.load(tmp_path, older)
    words = "\n".join(str(w.message) for w in caught)
    assert "dropped the oldest 12 rows of 30" in words
    assert again.counts.tolist() == [40, 40]
    assert len(again) == 2 * 18  # rows 22 ... 39
    assert again._draws.cursor.tolist() == older["cursor"]
    assert again._draws.rng.bit_generator.state == older["rng"]
    check(again.sample(50, 4))
    add(again, 20)
    state = again.save(tmp_path)
    assert state["generation"] == 3
    again.commit()
    more = fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        more.load(tmp_path, state)
    assert contents(more) == contents(again)


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    state = saved(tmp_path / "a")
    with pytest.raises(ReplayDamaged, match="those of another replay"):
        make().load(tmp_path / "a", saved(tmp_path / "b"))
    for change in ({"count": [41, 40]}, {"generation": 7}, {"token": "f" * 16}):
        with pytest.raises(ReplayDamaged, match="does not hold save"):
            make().load(tmp_path / "a", {**state, **change})
    for bad in ({}, {**state, "count": [1]}, {**state, "rng": None}, {**state, "cursor": "x"}, []):
        with pytest.raises(ReplayDamaged, match="state of the replay is damaged"):
            make().load(tmp_path / "a", bad)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing"):
        make().load(tmp_path / "c", state)


def test_missing_and_short_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing"):
        make().load(tmp_path)
    saved(tmp_path, 10)
    image = tmp_path / "obs.image.0001.bin"
    whole = image.read_bytes()
    image.write_bytes(whole[:-1])
    for read in (make().load, Replay.open):
        with pytest.raises(ReplayDamaged, match="truncated"):
            read(tmp_path)
    image.unlink()
    for read in (make().load, Replay.open):
        with pytest.raises(ReplayDamaged, match=r"obs\.image\.0001\.bin is missing"):
            read(tmp_path)
