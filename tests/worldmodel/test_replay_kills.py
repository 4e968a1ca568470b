"""A replay killed at any moment: to the bit what the checkpoint says, in both storages."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.replay_cycles import build, contents, cycle_of, resume, twin, work, write_checkpoint
from worldmodel.replay import disk

STORAGES = ("memory", "disk")
KINDS = ("before", "torn", "power")
BEGUN, FAILING, END = 4, 4, 7  # cycles done before, the one that is killed, and the last one


class Killed(BaseException):
    """Like a kill: nothing in the package catches it."""


class Faulty:
    """The disk, until operation number `at`: then the process is gone before it, in the middle of
    it, or the power is gone with everything that was not synced. log: the operations so far."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, kind: str) -> None:
        self.left, self.kind = at, kind
        self.log: list[str] = []
        self._unsynced: dict[str, bytes] = {}  # what the disk holds of files written since
        self._names: list[Callable[[], Any]] = []  # undo renames and removals since
        self._was = {n: getattr(disk, n) for n in ("write", "sync", "sync_folder")}
        self._was |= {n: getattr(disk, n) for n in ("replace", "remove")}
        for name in self._was:
            patch.setattr(disk, name, getattr(self, name))

    def write(self, file: Any, data: Any, offset: int) -> None:
        self._unsynced.setdefault(str(file.name), Path(str(file.name)).read_bytes())
        half = memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
        self._do(
            "write",
            lambda: self._was["write"](file, data, offset),
            torn=lambda: self._was["write"](file, half, offset),
        )

    def sync(self, file: Any) -> None:
        self._do(
            "sync", lambda: (self._was["sync"](file), self._unsynced.pop(str(file.name), None))
        )

    def sync_folder(self, folder: Path) -> None:
        self._do("sync_folder", lambda: (self._was["sync_folder"](folder), self._names.clear()))

    def replace(self, old: Path, new: Path) -> None:
        lost = new.read_bytes() if new.exists() else None

        def undo() -> None:
            os.replace(new, old)
            if lost is not None:
                new.write_bytes(lost)

        def do() -> None:
            self._was["replace"](old, new)
            self._names.append(undo)
            if str(old) in self._unsynced:
                self._unsynced[str(new)] = self._unsynced.pop(str(old))

        self._do("replace", do)

    def remove(self, path: Path) -> None:
        lost = path.read_bytes() if path.exists() else None

        def do() -> None:
            self._was["remove"](path)
            if lost is not None:
                self._names.append(lambda: path.write_bytes(lost))

        self._do("remove", do)

    def _do(
        self, name: str, operation: Callable[[], Any], torn: Callable[[], Any] | None = None
    ) -> None:
        self.log.append(name)
        self.left -= 1
        if self.left >= 0:
            operation()
            return
        if self.kind == "torn" and torn is not None:
            torn()
        if self.kind == "power":
            for path, data in self._unsynced.items():
                Path(path).write_bytes(data)
            for undo in reversed(self._names):
                undo()
        raise Killed


@pytest.fixture(scope="module")
def straight() -> list[dict[str, bytes]]:
    return twin(END + 1)


@pytest.fixture(scope="module", params=STORAGES)
def begun(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder after some cycles without a fault; the ring has come round."""
    folder = tmp_path_factory.mktemp(request.param)
    replay = build(folder, request.param)
    for cycle in range(BEGUN):
        cycle_of(folder, replay, cycle)
    assert replay.counts.min() > 30
    return folder, request.param


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real waiting for the disk, where its failures are played anyway."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_killed_at_every_operation_of_a_cycle(
    begun: tuple[Path, str], straight: list[dict[str, bytes]], kind: str, tmp_path: Path
) -> None:
    origin, storage = begun
    rehearsal = tmp_path / "rehearsal"
    shutil.copytree(origin, rehearsal)
    replay, _ = resume(rehearsal, storage)
    with pytest.MonkeyPatch.context() as patch:
        operations = Faulty(patch, 10_000, kind).log
        cycle_of(rehearsal, replay, FAILING)
    assert {"write", "sync", "sync_folder", "replace", "remove"} == set(operations)
    reached: list[int] = []
    for at in range(len(operations)):
        if kind == "torn" and operations[at] != "write":
            continue  # as before it
        folder = tmp_path / str(at)
        shutil.copytree(origin, folder)
        replay, cycle = resume(folder, storage)
        assert (cycle, contents(replay)) == (BEGUN - 1, straight[BEGUN - 1])
        with pytest.MonkeyPatch.context() as patch:
            Faulty(patch, at, kind)
            with pytest.raises(Killed):
                cycle_of(folder, replay, FAILING)
        replay, cycle = resume(folder, storage)
        assert contents(replay) == straight[cycle], (at, cycle)
        reached.append(cycle)
        for later in range(cycle + 1, END if at % 8 == 0 else cycle + 2):
            cycle_of(folder, replay, later)
            assert contents(replay) == straight[later]
        replay, cycle = resume(folder, storage)
        assert contents(replay) == straight[cycle]
        shutil.rmtree(folder)
    assert set(reached) == {FAILING - 1, FAILING}
    assert reached == sorted(reached)


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("storage", STORAGES)
def test_killed_while_it_recovers(
    tmp_path: Path, storage: str, straight: list[dict[str, bytes]]
) -> None:
    """Loading folds what a commit left over, and is killed in that at every operation, too."""
    origin = tmp_path / "origin"
    origin.mkdir()
    replay = build(origin, storage)
    for cycle in range(BEGUN):
        cycle_of(origin, replay, cycle)
    work(replay, BEGUN)
    write_checkpoint(origin, BEGUN, replay.save(origin / "replay"))  # killed before the commit
    for at in range(10_000):
        folder = tmp_path / str(at)
        shutil.copytree(origin, folder)
        with pytest.MonkeyPatch.context() as patch:
            Faulty(patch, at, KINDS[at % len(KINDS)])
            try:
                resume(folder, storage)
                break
            except Killed:
                pass
        replay, cycle = resume(folder, storage)
        assert cycle == BEGUN
        assert contents(replay) == straight[BEGUN]
    assert at > 30


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("storage", STORAGES)
def test_the_checkpoint_before_while_the_newest_was_being_folded(
    straight: list[dict[str, bytes]], storage: str, tmp_path: Path
) -> None:
    """The newest checkpoint turns out to be damaged: before its commit began, the one before is
    exact; from then on it gets what is left, with a warning, and never rows that do not belong."""
    origin = tmp_path / "origin"
    origin.mkdir()
    replay = build(origin, storage)
    for cycle in range(BEGUN):
        cycle_of(origin, replay, cycle)
    exact: list[bool] = []
    for at in range(0, 10_000, 3):
        folder = tmp_path / str(at)
        shutil.copytree(origin, folder)
        replay, _ = resume(folder, storage)
        work(replay, FAILING)
        replay.save(folder / "replay")  # its checkpoint will not be readable
        with pytest.MonkeyPatch.context() as patch:
            Faulty(patch, at, "before")
            try:
                replay.commit()
                break
            except Killed:
                pass
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            replay, _ = resume(folder, storage)
        exact.append(contents(replay) == straight[BEGUN - 1])
        words = " ".join(str(w.message) for w in caught)
        assert ("not equal to the bit" in words) != exact[-1]
        for stream in range(2):
            low, high = int(replay._ring.oldest[stream]), int(replay.counts[stream])
            assert high == int(np.frombuffer(straight[BEGUN - 1]["count"], np.int64)[stream])
            rows = replay.rows(stream, low, high)
            assert rows["a/b"][:, 1].tolist() == list(range(low, high))
            assert rows["reward"].tolist() == list(range(low, high))
        shutil.rmtree(folder)
    assert exact[0]
    assert not exact[-1]
    assert exact == sorted(exact, reverse=True)


def test_a_commit_that_fails_is_finished_by_the_next_save(
    tmp_path: Path, straight: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is no kill: the same process goes on, and must not lose the log."""
    replay = build(tmp_path, "memory")
    for cycle in range(2):
        cycle_of(tmp_path, replay, cycle)
    write, left = disk.write, iter(range(10))

    def full(file: Any, data: Any, offset: int) -> None:
        if "delta" not in str(file.name) and next(left, None) is None:
            raise OSError(28, "No space left on device")
        write(file, data, offset)

    work(replay, 2)
    state = replay.save(tmp_path / "replay")
    write_checkpoint(tmp_path, 2, state)
    monkeypatch.setattr(disk, "write", full)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            replay.commit()
    work(replay, 3)
    with pytest.raises(OSError, match="No space"):
        replay.save(tmp_path / "replay")  # cannot rest on base files that are half-way
    monkeypatch.undo()
    assert contents(resume(tmp_path, "memory")[0]) == straight[2]
    write_checkpoint(tmp_path, 3, replay.save(tmp_path / "replay"))
    replay.commit()
    assert contents(resume(tmp_path, "memory")[0]) == straight[3]


def test_saves_without_a_checkpoint_take_each_others_place(
    tmp_path: Path, straight: list[dict[str, bytes]]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    replay = build(folder, "memory")
    for cycle in range(2):
        cycle_of(folder, replay, cycle)
    for cycle in range(2, 5):  # the checkpoints of these fail
        work(replay, cycle)
        replay.save(folder / "replay")
        shutil.copytree(folder, tmp_path / str(cycle))
        again, reached = resume(tmp_path / str(cycle), "memory")
        assert (reached, contents(again)) == (1, straight[1])
    newest = build(folder, "memory")
    newest.load(folder / "replay")  # without a checkpoint, the newest counts
    assert contents(newest) == straight[4]


def test_a_real_kill_at_any_time(tmp_path: Path) -> None:
    """SIGKILLs within cycles and recoveries; every process goes on from where the last one was."""
    kills = 5
    done = subprocess.run(
        [sys.executable, "-m", "tests.replay_cycles", str(tmp_path), str(kills)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for storage, reached in json.loads(done.stdout).items():
        assert len(reached) == kills
        assert reached == sorted(reached), storage
        assert reached[-1] > 0
