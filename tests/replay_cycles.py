"""Save, checkpoint, commit: the cycle of a run, repeatable to the bit, and what it leaves."""

import json
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tests.replay_rows import COLUMNS, SPEC, add, columns_of
from worldmodel.replay import Replay, ReplayConfig, clear

CHECKPOINT = "checkpoint.json"
EXPONENT = 0.6  # of the priorities


def build(folder: Path, storage: str, capacity: float = 60, exponent: float = EXPONENT) -> Replay:
    config = ReplayConfig(capacity=capacity, storage=storage)
    return Replay(SPEC, config, 2, COLUMNS, 5, folder / "replay", exponent)


def work(replay: Replay, cycle: int) -> None:
    """New rows, uneven and with cut-off episodes; columns and priorities of rows drawn by them."""
    add(replay, 3 + 5 * cycle % 11, episode=4 + cycle % 3)
    add(replay, 2 + cycle % 4, ids=[cycle % 2])
    batch = replay.sample(3, 2)
    row = batch.index.start[:, None] + np.arange(2)
    stream = batch.index.stream[:, None].repeat(2, 1)
    replay.rewrite(batch.index, columns_of(stream, row + 100 * cycle))
    drawn = replay.transitions(4, n=2)
    replay.reweigh(drawn.index, 0.1 + (drawn.index.start * 7 + cycle) % 13)


def write_checkpoint(folder: Path, cycle: int, state: dict[str, Any]) -> None:
    """What a trainer does at its commit point."""
    fresh = folder / "checkpoint.new"
    with fresh.open("w") as file:
        json.dump({"cycle": cycle, "state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, folder / CHECKPOINT)


def read_checkpoint(folder: Path) -> tuple[int, dict[str, Any] | None]:
    """The newest finished cycle and its state; -1 and None where there is none."""
    if not (folder / CHECKPOINT).exists():
        return -1, None
    saved = json.loads((folder / CHECKPOINT).read_text())
    return saved["cycle"], saved["state"]


def contents(replay: Replay) -> dict[str, bytes]:
    """Everything that decides how a replay goes on, to the bit."""
    ring = replay._ring
    parts: dict[str, Any] = {
        "count": ring.count,
        "floor": ring.floor,
        "cursor": replay._draws.cursor,
        "rng": repr(replay._draws.rng.bit_generator.state),
    }
    for stream in range(ring.streams):
        slots = np.arange(ring.oldest[stream], ring.count[stream]) % ring.rows
        for name, arrays in ring.arrays.items():
            parts[f"{name}.{stream}"] = arrays[stream][slots]
    return {k: v.encode() if isinstance(v, str) else v.tobytes() for k, v in parts.items()}


def twin(cycles: int) -> list[dict[str, bytes]]:
    """The contents after every cycle of a run that nothing interrupts."""
    replay = Replay(SPEC, ReplayConfig(capacity=60), 2, COLUMNS, 5, priority_exponent=EXPONENT)
    found = []
    for cycle in range(cycles):
        work(replay, cycle)
        found.append(contents(replay))
    return found


def cycle_of(folder: Path, replay: Replay, cycle: int) -> None:
    """One whole cycle."""
    work(replay, cycle)
    state = replay.save(folder / "replay")
    write_checkpoint(folder, cycle, state)
    replay.commit()


def resume(folder: Path, storage: str) -> tuple[Replay, int]:
    """A new process; the cycle that it has reached."""
    cycle, state = read_checkpoint(folder)
    if state is None:  # killed before its first checkpoint
        clear(folder / "replay")
    replay = build(folder, storage)
    if state is not None:
        replay.load(folder / "replay", state)
    return replay, cycle


def go_on(folder: Path, storage: str, tell: int) -> None:
    """Go on for ever from where the last process was killed; tell of every finished cycle."""
    replay, cycle = resume(folder, storage)
    while True:
        os.write(tell, b".")
        cycle += 1
        cycle_of(folder, replay, cycle)


def kill_once(folder: Path, storage: str, cycles: int, rng: np.random.Generator) -> None:
    """Kill `go_on` at a random moment of its recovery (0), or of a cycle after the first ones."""
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            go_on(folder, storage, tell)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(tell)
    took, began = 0.02, time.monotonic()
    for _ in range(cycles):
        assert os.read(hear, 1), "the process ended by itself"
        took, began = max(0.005, time.monotonic() - began), time.monotonic()
    time.sleep(rng.uniform(0, 1.5 * took))
    os.kill(child, signal.SIGKILL)
    os.close(hear)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the process ended by itself"


def kill_often(folder: Path, storage: str, kills: int) -> list[int]:
    """Kill `go_on` again and again; the cycles reached, compared with `twin` each."""
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    reached = []
    for number in range(kills):
        kill_once(folder, storage, number % 4, rng)
        copy = folder.with_name(f"{storage}.{number}")
        shutil.copytree(folder, copy)
        reached.append(resume(copy, storage))
    expected = twin(max(cycle for _, cycle in reached) + 1)
    for replay, cycle in reached:
        assert cycle < 0 or contents(replay) == expected[cycle]
    return [cycle for _, cycle in reached]


def main(folder: Path, kills: int) -> None:
    """Both storages; prints the cycles reached."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    # A kill loses nothing that was written, and waiting for the disk hides the other moments.
    os.fsync = lambda _: None
    found = {}
    for storage in ("memory", "disk"):
        (folder / storage).mkdir()
        found[storage] = kill_often(folder / storage, storage, kills)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
