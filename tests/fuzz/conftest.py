"""Count the cases of every kind, and hold a full run to its number."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents.counting_agent import CountingConfig
from tests.fuzz import common, runs


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not common.done:
        return
    for kind, count in sorted(common.done.items()):
        terminalreporter.write_line(
            f"fuzz: {kind}: {count['cases']:,} cases, {count['refused']:,} refused"
        )
    total = sum(count["cases"] for count in common.done.values())
    terminalreporter.write_line(f"fuzz: {total:,} cases in all")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """What a worker of pytest-xdist counted."""
    for kind, count in getattr(node, "workeroutput", {}).get("fuzz", {}).items():
        common.done.setdefault(kind, Counter()).update(count)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """`make fuzz` fails where it ran too few cases; a part of it, chosen by hand, may be small."""
    if hasattr(session.config, "workeroutput"):  # the process that started this worker counts
        session.config.workeroutput["fuzz"] = {k: dict(count) for k, count in common.done.items()}
        return
    total = sum(count["cases"] for count in common.done.values())
    if common.FULL and os.environ.get("FUZZ_LEAST") == "1" and total < common.LEAST_CASES:
        print(f"\nfuzz: {total:,} cases are fewer than {common.LEAST_CASES:,}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True, scope="package")
def _no_more_memory_than_this() -> Iterator[None]:
    """An input that asks for all the memory gets an error, and takes nothing from the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + common.ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="package")
def counting_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of the counting agent."""
    folder = tmp_path_factory.mktemp("runs") / "counting"
    runs.make(folder, CountingConfig())
    return folder


@pytest.fixture(scope="package")
def dreamer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of a tiny Dreamer."""
    folder = tmp_path_factory.mktemp("runs") / "dreamer"
    runs.make(folder, runs.TINY)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the cases of one file, one after the other."""
    return tmp_path_factory.mktemp("place")
