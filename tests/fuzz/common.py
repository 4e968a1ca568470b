"""What every kind of input shares: how many cases, what may come out, and odd values."""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from worldmodel.checkpoint import CheckpointError
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import EnvError, EnvFailed
from worldmodel.replay import ReplayDamaged
from worldmodel.replay.datasets import DatasetError

FULL = os.environ.get("FUZZ") == "full"
LEAST_CASES = 10_000  # of a full run over all kinds
OURS = (ConfigError, RunError, CheckpointError, EnvError, EnvFailed, ReplayDamaged, DatasetError)
ROOT = Path(__file__).resolve().parents[2]
# What code hidden in an input would leave behind; another process has another.
MARKER = Path(tempfile.gettempdir()) / f"worldmodel-fuzz-was-here-{os.getpid()}"
SECONDS = 10.0  # of this process; one case takes milliseconds, and what takes longer hangs
GROWTH = 256 << 20  # bytes that one case, of some kilobytes, may take at any moment
ROOM = 3 << 30  # bytes that the tests of this folder may take together

# kind of input -> [cases, refused]
done: dict[str, Counter[str]] = {}


def cases(fast: int, full: int) -> settings:
    """Hypothesis settings: `fast` cases, always the same ones, in the default run, and `full` new
    ones with FUZZ=full."""
    return settings(
        max_examples=full if FULL else fast,
        derandomize=not FULL,
        database=None,  # a machine's past must not decide what a test does
        deadline=None,  # `ours` limits the time, generously: a shared machine is slow at times
        print_blob=True,
        phases=set(Phase) - {Phase.explain},  # it traces each line: time would mean nothing
        suppress_health_check=[
            HealthCheck.too_slow,  # the same: a slow machine is no fault of a strategy
            HealthCheck.data_too_large,  # files are built from large draws on purpose
        ],
    )


@contextmanager
def ours(kind: str, *also: type[Exception], growth: int = GROWTH) -> Iterator[None]:
    """One case: nothing comes out of the block but our own errors (and `also`), with words, soon,
    and with no more than `growth` bytes of memory at any moment.

    A plain ValueError is ours where our own code raised it.
    """
    said, count = None, done.setdefault(kind, Counter())
    count["cases"] += 1
    began, before = time.process_time(), _memory(reset=True)
    try:
        yield
    except Exception as error:
        if type(error) not in (*OURS, *also) and not _raised_by_us(error):
            raise
        said = str(error)
        count["refused"] += 1
    assert said is None or len(said) > 10, f"'{said}' says nothing"
    assert time.process_time() - began < SECONDS, "it hangs"
    taken = _memory() - before
    assert taken < growth, f"it took {taken >> 20} MiB"


def _raised_by_us(error: Exception) -> bool:
    """Whether this is a ValueError that a `raise` of this package made."""
    if type(error) is not ValueError or error.__traceback__ is None:
        return False
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    where = Path(trace.tb_frame.f_code.co_filename)
    return any(where.is_relative_to(ROOT / part) for part in ("worldmodel", "agents"))


def _memory(reset: bool = False) -> int:
    """The most bytes that this process held since the last reset; 0 where only Linux could say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found.group(1)) << 10 if found else 0


# Odd values.

ODD_INTS = st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400])
ODD_FLOATS = st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, -1e30])
WORDS = st.sampled_from(
    ["", " ", "..", "../../etc/passwd", "/dev/zero", "\x00", "a\nb", "\ud800", "ä", "null", "nan",
     "true", "$", "${x}", "${oc.env:HOME}", "%s", "{}", "__class__", "0" * 5000, "x" * 5000]
)  # fmt: skip
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), ODD_INTS, st.floats(), ODD_FLOATS,
    st.text(max_size=20), WORDS, st.binary(max_size=20),
)  # fmt: skip
# What JSON can say: the values of damaged index, summary and lock files.
JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), ODD_INTS, st.floats(), ODD_FLOATS,
              st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def deep(depth: int) -> Any:
    """A list in a list in a list ..."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ARRAYS: st.SearchStrategy[Any] = st.builds(
    lambda shape, dtype, fill: np.full(shape, 0).astype(dtype) + np.array(fill).astype(dtype),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from(["?", "i1", "u1", "i8", "u8", "f2", "f4", "f8", "c16"]),
    st.sampled_from([0, 1, 2, 255]),
)
TENSORS: st.SearchStrategy[Any] = ARRAYS.map(lambda array: torch.from_numpy(np.array(array)))


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes of a file with a few flipped, cut off, repeated, moved or replaced."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 64))
        match draw(st.sampled_from(["flip", "set", "cut", "drop", "insert", "repeat", "zero"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + length]
            case "insert":
                data[at:at] = draw(st.binary(max_size=64))
            case "repeat":
                data[at:at] = data[at : at + length]
            case "zero":
                data[at : at + length] = bytes(length)
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, whole: Any, values: st.SearchStrategy[Any]) -> Any:
    """Nested dicts and lists with one to three places changed: a value replaced by another one, a
    key dropped, renamed or added, a list made longer or shorter."""
    tree = _copied(whole)
    for _ in range(draw(st.integers(1, 3))):
        tree = draw(_altered_once(tree, values))
    return tree


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


@st.composite
def _altered_once(draw: st.DrawFn, tree: Any, values: st.SearchStrategy[Any]) -> Any:
    inside: list[Any] = list(tree) if isinstance(tree, dict) else []
    if isinstance(tree, list):
        inside = list(range(len(tree)))
    # Mostly go down, so that deep places are reached as often as high ones.
    if inside and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(inside))
        tree[key] = draw(_altered_once(tree[key], values))
        return tree
    match draw(st.sampled_from(["replace", "drop", "add", "rename"])):
        case "drop" if inside:
            del tree[draw(st.sampled_from(inside))]
        case "add" if isinstance(tree, dict):
            tree[draw(st.one_of(st.text(max_size=5), WORDS))] = draw(values)
        case "add" if isinstance(tree, list):
            tree.insert(draw(st.integers(0, len(tree))), draw(values))
        case "rename" if isinstance(tree, dict) and inside:
            tree[draw(st.text(max_size=5))] = tree.pop(draw(st.sampled_from(inside)))
        case _:
            return draw(values)
    return tree
