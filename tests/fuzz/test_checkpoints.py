"""Checkpoints: damaged, hostile, or whole and nonsense."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import agents
from agents.run.train import build
from tests.agents.counting_agent import CountingConfig
from tests.fuzz import runs
from tests.fuzz.common import MARKER, SCALARS, TENSORS, altered, cases, damaged, ours
from worldmodel import checkpoint
from worldmodel.checkpoint import FOLDER, FORMAT


def only(run: Path, content: bytes, name: str | None = None) -> None:
    """Make this the only checkpoint of a run folder; by default under the name for its content."""
    for old in checkpoint.found(run):
        old.unlink()
    digest = hashlib.sha256(content).hexdigest()[:16]
    (run / FOLDER / (name or f"000001-{digest}.pt")).write_bytes(content)


def archive(records: dict[str, bytes], packed: bool = False) -> bytes:
    """A zip archive as torch writes it, or packed."""
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", kind) as file:
        for name, content in records.items():
            name = name.encode(errors="replace").decode()  # zipfile writes no half of a pair,
            if name.split("\0")[0]:  # and no entry without a name
                file.writestr(name, content)
    return out.getvalue()


def records_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


def with_pickle(content: bytes) -> bytes:
    """An archive with this pickle and nothing else."""
    return archive({"a/data.pkl": content, "a/version": b"3\n", "a/byteorder": b"little"})


def saved(state: Any) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


@pytest.fixture(scope="module")
def small() -> bytes:
    """A checkpoint of everything that one may hold, in a few kilobytes."""
    state = {
        "format": FORMAT,
        "agent": {"weight": torch.randn(3, 4), "half": torch.ones(2, dtype=torch.bfloat16)},
        "nest": [1, 2.5, None, True, "text", (1, 2), {"big": 2**100, "empty": []}],
        "shared": [torch.arange(6), torch.arange(6)[2:4]],
        "module": OrderedDict(a=torch.zeros(2)),
    }
    return saved(state)


class Runs:
    """Unpickles into a call, which leaves a mark where nothing should ever run."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


TOUCH = f"open('{MARKER}', 'w')"
CALLS = [
    Runs(exec, TOUCH), Runs(eval, TOUCH), Runs(open, str(MARKER), "w"),
    Runs(subprocess.call, ["touch", str(MARKER)]), Runs(getattr, [], "append"),
    Runs(bytearray, 1 << 33), Runs(bytearray, 1 << 62), Runs(range, 3), Runs(print, "x"),
    Runs(torch.zeros, 1 << 40), Runs(torch.load, str(MARKER)), Runs(OrderedDict, [[1, 2]]),
    Runs(__import__, "os"), Runs(torch.hub.load, "x", "y"), Runs(io.open_code, "/etc/passwd"),
]  # fmt: skip
OPCODES = [
    b"(", b")", b"]", b"}", b"t", b"l", b"d", b"e", b"a", b"s", b"u", b"R", b"b", b"o", b"0", b"1",
    b"2", b"N", b"Q", b".", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x8f", b"\x90", b"\x91",
    b"\x93", b"\x94", b"\x81", b"\x92", b"K\x01", b"M\x01\x02", b"J\xff\xff\xff\x7f", b"I1\n",
    b"I9999999999999999999999\n", b"F1.5\n", b"G" + b"\x7f" * 8, b"L5L\n", b"Vx\n", b"S'x'\n",
    b"P1\n", b"U\x01x", b"X\x01\x00\x00\x00x", b"\x8c\x01x", b"B\x00\x00\x00\x00", b"C\x01x",
    b"q\x00", b"r\x00\x00\x00\x00", b"h\x00", b"h\x07", b"j\xff\xff\xff\xff", b"p0\n", b"g0\n",
    b"\x8a\x01\x05", b"\x8b\xff\xff\xff\x7f", b"\x8b\x04\x00\x00\x00\xff\xff\xff\xff",
    b"\x8d" + b"\xff" * 8, b"X\xff\xff\xff\xff", b"\x95" + b"\xff" * 8, b"\x80\x02", b"\x80\xff",
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"c__builtin__\nbytearray\n", b"ctorch\nSize\n",
    b"ctorch\nTensor\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n", b"ctorch.serialization\n_get_layout\n",
    b"ctorch._utils\n_rebuild_wrapper_subclass\n", b"ctorch._utils\n_rebuild_qtensor\n",
    b"ctorch\nfloat32\n", b"ctorch\ndevice\n", b"ccollections\nCounter\n", b"ios\nsystem\n",
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ",
    b"K\x00K\x04\x85K\x01\x85\x89)R", b"\xff", b"",
]  # fmt: skip
PICKLES = st.one_of(
    st.lists(st.sampled_from(OPCODES), max_size=30).map(lambda ops: b"\x80\x02" + b"".join(ops)),
    st.lists(st.sampled_from(OPCODES), max_size=30).map(lambda ops: b"".join(ops) + b"."),
    st.sampled_from(CALLS).map(lambda call: pickle.dumps({"format": FORMAT, "x": call}, 2)),
    st.builds(pickle.dumps, SCALARS, st.integers(2, 5)),
    st.binary(max_size=60),
)


def loads(run: Path, kind: str) -> None:
    with ours(kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has much to say of odd files
        checkpoint.load(run)
    assert not MARKER.exists()


@pytest.fixture(scope="module")
def empty(place: Path) -> Path:
    (place / FOLDER).mkdir(parents=True)
    return place


@pytest.mark.parametrize("named", [True, False])
def test_damaged_files(small: bytes, empty: Path, named: bool) -> None:
    name = f"000001-{hashlib.sha256(small).hexdigest()[:16]}.pt"

    @cases(40, 600)
    @given(damaged(small))
    def fuzz(content: bytes) -> None:
        only(empty, content, None if named else name)
        loads(empty, "checkpoints, bytes under their right name" if named else "checkpoints, bytes")

    fuzz()


def test_damaged_pickles_in_whole_archives(small: bytes, empty: Path) -> None:
    records = records_of(small)
    name = next(name for name in records if name.endswith("data.pkl"))

    @cases(60, 1000)
    @given(st.one_of(damaged(records[name]), PICKLES))
    def fuzz(content: bytes) -> None:
        only(empty, archive({**records, name: content}))
        loads(empty, "checkpoints, pickles in archives")

    fuzz()


@cases(100, 600)
@given(PICKLES, st.booleans())
def test_hostile_pickles_are_not_run(empty: Path, content: bytes, bare: bool) -> None:
    only(empty, content if bare else with_pickle(content))
    loads(empty, "checkpoints, hostile pickles")


def test_damaged_records(small: bytes, empty: Path) -> None:
    records = records_of(small)

    @cases(50, 300)
    @given(altered(records, st.binary(max_size=40)), st.booleans())
    def fuzz(changed: Any, packed: bool) -> None:
        if isinstance(changed, dict):
            only(empty, archive(changed, packed))
            loads(empty, "checkpoints, records of archives")

    fuzz()


def test_a_packed_archive_is_refused_before_it_grows(empty: Path) -> None:
    records = records_of(saved({"format": FORMAT, "x": torch.zeros(1 << 26)}))
    content = archive(records, packed=True)
    assert len(content) < 1 << 20  # of 256 MiB
    only(empty, content)
    refused = pytest.raises(checkpoint.CheckpointError, match="its entries are packed")
    with ours("checkpoints, packed", growth=16 << 20), refused:
        checkpoint.load(empty)


def test_what_refers_to_itself_ends(empty: Path) -> None:
    values = {
        "itself": b"h\x00",  # the dict around it
        "twice": b"](K\x01q\x01" + 60 * b"](h\x01h\x01eq\x01" + b"e",
        "deep": 5000 * b"]" + 4999 * b"a",
    }
    for value in values.values():
        only(empty, with_pickle(b"\x80\x02}q\x00X\x01\x00\x00\x00x" + value + b"s."))
        refused = pytest.raises(checkpoint.CheckpointError, match="nested without end")
        with ours("checkpoints, endless"), refused:
            checkpoint.load(empty)


# Whole, but nonsense.

VALUES = st.one_of(
    SCALARS, TENSORS, st.builds(list), st.builds(dict), st.sampled_from([(), (0,), (3, 3)])
)


def changed(run: Path) -> st.SearchStrategy[Any]:
    """The state in a run's newest checkpoint with other values, keys, shapes and types, as far as
    a checkpoint can hold them."""
    tree = _lists(checkpoint.load(run))
    return altered(tree, VALUES).filter(_plain)


def _lists(tree: Any) -> Any:
    """Tuples as lists, so that they can be altered."""
    if isinstance(tree, dict):
        return {key: _lists(value) for key, value in tree.items()}
    return [_lists(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _plain(tree: Any) -> bool:
    try:
        checkpoint.check_plain(tree)
        return isinstance(tree, dict)
    except ValueError:
        return False


def test_agents_from_nonsense(dreamer_run: Path, place: Path) -> None:
    run = runs.copy(dreamer_run, place / "agent")

    @cases(15, 150)
    @given(changed(dreamer_run))
    @example({"format": FORMAT})
    def fuzz(state: Any) -> None:
        only(run, saved(state))
        with ours("checkpoints, agents of whole nonsense"):
            agents.load(run, "cpu")

    fuzz()


def test_runs_that_go_on_from_nonsense(counting_run: Path, place: Path) -> None:
    run = place / "run"
    settings = runs.settings(run, CountingConfig())

    @cases(20, 300)
    @given(changed(counting_run))
    @example({"format": FORMAT})
    def fuzz(state: Any) -> None:
        runs.copy(counting_run, run)  # the case before may have gone on from there
        only(run, saved(state))
        with ours("checkpoints, runs of whole nonsense"):
            trainer = build(settings, lambda text: None)
            try:
                trainer.state.collector.step(trainer.state.replay)
                trainer.learner.update()
                trainer.save()
            finally:
                trainer.close()

    fuzz()
