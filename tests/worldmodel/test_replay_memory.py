"""Memory that is free: of the machine, and of the control groups around the process."""

from pathlib import Path

import numpy as np
import pytest

from worldmodel.replay import Replay, ReplayConfig
from worldmodel.replay.memory import available_memory
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

GB = 10**9


@pytest.fixture
def system(tmp_path: Path) -> tuple[Path, Path]:
    """A machine with 8 GB free, without control groups."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {8 * GB // 1024} kB\n")
    groups.mkdir()
    return proc, groups


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_the_machine_alone(system: tuple[Path, Path], tmp_path: Path) -> None:
    free = available_memory(*system)
    assert free is not None
    assert free == pytest.approx(8 * GB, abs=1024)
    assert available_memory() is not None


def test_a_container_leaves_its_limit_less_what_it_uses(system: tuple[Path, Path]) -> None:
    write(system[1], max=5 * GB, current=2 * GB)
    assert available_memory(*system) == 3 * GB
    # Files that are only cached go when memory is needed; shared memory does not.
    stat = f"anon 1\nfile {GB}\nshmem {GB // 2}\nactive_file {GB // 4}\ninactive_file {GB // 4}"
    write(system[1], stat=stat)
    assert available_memory(*system) == 3.5 * GB
    write(system[1], current=9 * GB)
    assert available_memory(*system) == 0
    write(system[1], max="max")
    assert available_memory(*system) == pytest.approx(8 * GB, abs=1024)


def test_the_narrowest_group_around_us_counts(system: tuple[Path, Path]) -> None:
    proc, groups = system
    (proc / "self" / "cgroup").write_text("1:cpu:/x\n0::/a/b\n")
    write(groups / "a" / "b", max="max", current=GB)
    write(groups / "a", max=4 * GB, current=GB)
    write(groups / "other", max=1, current=0)
    assert available_memory(proc, groups) == 3 * GB
    (proc / "self" / "cgroup").write_text("0::/../../other\n")  # seen from a name space
    assert available_memory(proc, groups) == pytest.approx(8 * GB, abs=1024)


def test_control_groups_of_version_1(system: tuple[Path, Path]) -> None:
    proc, groups = system
    (proc / "self" / "cgroup").write_text("5:devices:/y\n4:cpu,memory:/job\n0::/\n")
    write(groups / "memory", limit_in_bytes=1 << 63, usage_in_bytes=7 * GB)
    write(groups / "memory" / "job", limit_in_bytes=3 * GB, usage_in_bytes=2 * GB)
    assert available_memory(proc, groups) == GB
    write(groups / "memory" / "job", stat=f"total_inactive_file {GB // 2}")
    assert available_memory(proc, groups) == 1.5 * GB


def test_rows_that_never_come_need_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of few steps has room for all the steps of a long one; what it says and asks for is
    its own. More rows than were expected go in all the same."""
    spec = EnvSpec({"image": ObsSpec("image", (64, 64, 3))}, ActionSpec("continuous", (1,)))
    config = ReplayConfig(capacity=4e7)  # half a TB
    with pytest.raises(ValueError, match="needs 49"):
        Replay(spec, config, 2)
    replay = Replay(spec, config, 2, expected=100)
    assert replay.footprint().startswith("replay: 100 of 40,000,000 steps x 12.3 KB = 0.00123 GB")
    row = {
        "image": np.full((2, 64, 64, 3), 7, np.uint8), "action": np.zeros((2, 1), np.float32),
        "reward": np.zeros(2, np.float32), "is_first": np.zeros(2, bool),
        "is_last": np.zeros(2, bool), "is_terminal": np.zeros(2, bool),
    }  # fmt: skip
    for _ in range(80):
        replay.add(row)
    assert (len(replay), int(replay.sample(4, 8).obs["image"].min())) == (160, 7)
