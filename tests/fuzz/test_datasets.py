"""Recordings and tables that somebody sends: NPZ and HDF5 episodes, labels, preferences."""

from __future__ import annotations

import io
import pickle
import shutil
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.apps.episodes import Episodes
from agents.apps.rewards.labels import parse
from agents.apps.rewards.pipeline import labels_of
from agents.apps.rewards.tables import PAIRS, read_pairs
from tests.fuzz.common import ARRAYS, MARKER, WORDS, altered, cases, damaged, ours
from tests.fuzz.test_checkpoints import CALLS
from tests.replay_rows import add, make
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.replay.datasets import ALIGNMENTS, ENDINGS, Convention, Dataset, DatasetError
from worldmodel.replay.datasets.recording import ACTIONS, AXES
from worldmodel.replay.datasets.vocabulary import MAPPABLE

Arrays = dict[str, Any]
LENGTH = 6
NAMES = st.sampled_from([
    "action", "actions", "reward", "rewards", "obs", "observation", "obs/image", "next_obs",
    "next/observations", "image", "state", "is_first", "is_last", "is_terminal", "terminals",
    "timeouts", "done", "dones", "episode", "info", "action_mask", "deter", "..", "../../x", "/x",
    "a/b", "a.b", "", "é", "x" * 300, "rew", "next.reward", "next/done", "obs_next",
    "episode_index", "traj_ids", "frame_index", "timestamp", "masks", "success", "reset",
    "episode_starts", "my_reward", "actions_0", "observations_0", "terminated_0", "indices", "acts",
    "terminal", "steps/action", "step_type", "discount", "collector/mask", "valid_mask", "mask",
    "meta/episode_ends", "episode_lengths", "ep_offset", "data/action", "data/state", "new_obs",
    "not_done", "absorbing", "last", "first", "episode_end", "dones_float", "terminateds", "eps_id",
    "time_outs", "end", "is_over", "touch", "obs2",
])  # fmt: skip
T = st.sampled_from([LENGTH, LENGTH, LENGTH + 1, LENGTH + 1, 1, 0, 2])


@st.composite
def columns(draw: st.DrawFn) -> np.ndarray:
    """An array that could be part of an episode."""
    shape = (draw(T), *draw(st.sampled_from([(), (1,), (2,), (3, 3), (8, 8, 3), (8, 8), (0,)])))
    kind = draw(st.sampled_from(["f4", "f8", "u1", "i8", "?", "f2", "c8", "i1"]))
    values = draw(st.sampled_from([0.0, 1.0, -1.0, 3.0, np.nan, np.inf, 1e300, 255.0]))
    with np.errstate(all="ignore"):
        array = np.zeros(shape).astype(kind)
        if array.size:
            array.flat[draw(st.integers(0, array.size - 1))] = np.array(values).astype(kind)
    return array


STRANGE = st.sampled_from([
    np.array("x"), np.array(["a", "b"]), np.array([b"a"]), np.zeros(6, "M8[s]"), np.array(3.0),
    np.zeros(6, [("a", "f4"), ("b", "i2")]), np.zeros(6, "V3"), np.zeros((6, 0)), np.zeros((0, 3)),
])  # fmt: skip
WHOLE = {
    "action": np.linspace(-1, 1, LENGTH, dtype=np.float32)[:, None],
    "reward": np.arange(LENGTH, dtype=np.float32),
    "state": np.arange(2 * LENGTH + 2, dtype=np.float32).reshape(-1, 2),
    "terminals": np.eye(LENGTH, dtype=bool)[-1],
}
NEAR = st.dictionaries(
    st.sampled_from(
        [*WHOLE, "is_first", "done", "next_state", "mask", "step_type", "discount", "episode_ends"]
    ),
    columns(),
    max_size=2,
)
# The following rows of the state, under names that say so, half say so and do not.
FOLLOWED = {**WHOLE, "state": WHOLE["state"][:-1]}
FOLLOWERS = st.dictionaries(
    st.sampled_from(["state2", "new_state", "state_next", "prev_state", "then", "STATE", "obs"]),
    st.sampled_from([WHOLE["state"][1:], WHOLE["state"][:-1], WHOLE["state"], -WHOLE["state"][1:]]),
    max_size=3,
)
EPISODES = st.one_of(
    FOLLOWERS.map(lambda more: {**FOLLOWED, **more}),
    NEAR.map(lambda changed: {**WHOLE, **changed}),
    st.fixed_dictionaries({"action": columns(), "state": columns()},
                          optional={"reward": columns(), "is_first": columns(), "done": columns(),
                                    "next_state": columns(), "terminals": columns()}),
    st.dictionaries(NAMES, st.one_of(columns(), columns(), STRANGE, ARRAYS), max_size=5),
)  # fmt: skip
CONVENTIONS = st.builds(
    Convention,
    st.sampled_from(ALIGNMENTS),
    st.sampled_from(ENDINGS),
    st.sampled_from([None, (-1.0, 1.0), (-1e30, 1e30), (0.0, 5e-324), (-np.inf, np.inf)]),
    st.sampled_from(ACTIONS),
    st.sampled_from(AXES),
    st.dictionaries(st.sampled_from([*MAPPABLE, "x"]), st.one_of(NAMES, st.none(), st.lists(NAMES)),
                    max_size=1),
)  # fmt: skip


def npz(arrays: Arrays, packed: bool = False) -> bytes:
    """As np.savez writes it, under whatever names."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            file.writestr(f"{name}.npy", npy(array))
    return out.getvalue()


def npy(array: Any) -> bytes:
    """One array; raw bytes, where somebody has made them up, are left as they are."""
    if isinstance(array, bytes):
        return array
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    """An array whose header somebody wrote."""
    line = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line + data


HEADERS = [
    "{'descr': '|O', 'fortran_order': False, 'shape': (6,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 60,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 4)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2000000000,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
    "{'descr': '<f4', 'fortran_order': 3, 'shape': 6}",
    "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (6,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 40 + ")}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", "{'shape': ", "[]", "", "(" * 900,
    "__import__('os').system('touch " + str(MARKER) + "')",
]  # fmt: skip


def reads(path: Path, convention: Convention, kind: str) -> None:
    """Check a recording from beginning to end, and put it into a replay, as a run does."""
    with ours(kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = Dataset(str(path), convention)
        assert dataset.findings
        replay = Replay(dataset.spec, ReplayConfig(capacity=100), 1)
        dataset.fill(replay)
        assert len(replay) == dataset.rows
    assert not MARKER.exists()


@cases(80, 700)
@given(st.lists(EPISODES, min_size=1, max_size=2), CONVENTIONS)
@example([{**WHOLE, "action": header(HEADERS[1])}], Convention())
@example([{**WHOLE, "not_done": np.zeros(LENGTH, "f4,i2")}], Convention())
def test_arrays_of_any_kind(place: Path, episodes: list[Arrays], convention: Convention) -> None:
    folder = place / "npz"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for i, arrays in enumerate(episodes):
        (folder / f"{i}.npz").write_bytes(npz(arrays))
    reads(folder, convention, "datasets, NPZ arrays")
    assert {path.name for path in place.iterdir()} <= {"npz", "one.npz", "h5", "replay", "table"}


@cases(80, 700)
@given(st.one_of(
    damaged(npz(WHOLE)), damaged(npz(WHOLE, packed=True)),
    st.tuples(st.sampled_from(list(WHOLE)), st.one_of(
        st.sampled_from(HEADERS).map(header), damaged(npy(WHOLE["state"])),
        st.sampled_from(CALLS).map(lambda call: header(HEADERS[0], pickle.dumps(call, 2))),
        st.sampled_from(CALLS).map(lambda call: pickle.dumps(call, 2)), st.binary(max_size=40),
    )).map(lambda changed: npz({**WHOLE, changed[0]: changed[1]})),
    st.binary(max_size=60), st.sampled_from(CALLS).map(lambda call: pickle.dumps(call, 2)),
))  # fmt: skip
@example(npz({"../../x": WHOLE["state"], "/etc/x": WHOLE["state"], "action": WHOLE["action"]}))
def test_damaged_and_hostile_npz(place: Path, content: bytes) -> None:
    path = place / "one.npz"
    path.write_bytes(content)
    reads(path, Convention(), "datasets, NPZ bytes")


def test_a_recording_larger_than_the_memory_is_refused_before_it_is_read(place: Path) -> None:
    """A header that promises 8 GB, in an entry that says so too."""
    path, text = place / "one.npz", header(HEADERS[3])
    content = bytearray(npz({**WHOLE, "state": text}))
    size = struct.pack("<I", len(text))
    assert content.count(2 * size) == 2  # packed and unpacked, in the archive twice
    path.write_bytes(content.replace(2 * size, size + struct.pack("<I", 1 << 32 - 1)))
    with ours("datasets, NPZ enormous"), pytest.raises(DatasetError, match=r"larger|memory|read"):
        Dataset(str(path))


def h5(arrays: Arrays, path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


@pytest.fixture(scope="module")
def whole_h5(place: Path) -> bytes:
    (place / "h5").mkdir()
    h5(WHOLE, place / "h5" / "whole.h5")
    return (place / "h5" / "whole.h5").read_bytes()


@cases(40, 300)
@given(EPISODES, st.booleans(), CONVENTIONS)
def test_groups_of_any_kind(
    place: Path, whole_h5: bytes, arrays: Arrays, links: bool, convention: Convention
) -> None:
    path = place / "h5" / "one.h5"
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if name.strip("/.") and name not in file and array.dtype.kind not in "UMV":
                try:
                    file[name] = array
                except (ValueError, TypeError, OSError):
                    continue  # HDF5 itself refuses that name or array
        if links:  # to itself, to nothing, and to other files
            file["loop"] = h5py.SoftLink("/")
            file["gone"] = h5py.SoftLink("/nothing")
            file["away"] = h5py.ExternalLink("/etc/passwd", "/")
            file["beside"] = h5py.ExternalLink(str(place / "h5" / "whole.h5"), "/")
    reads(path, convention, "datasets, HDF5 groups")


def test_damaged_h5(place: Path, whole_h5: bytes) -> None:
    path = place / "h5" / "damaged.h5"

    @cases(40, 300)
    @given(damaged(whole_h5))
    def fuzz(content: bytes) -> None:
        path.write_bytes(content)
        reads(path, Convention(), "datasets, HDF5 bytes")

    fuzz()


# Labels and preferences.

LABELS = {"episode": [0, 0, 1], "step": [1, 2, 3], "value": [0.5, -1.0, 2.0]}
SEGMENTS = {"episode_a": [0, 1], "start_a": [0, 1], "episode_b": [1, 0], "start_b": [2, 0],
         "length": [2, 1], "preferred": [1, 0.5]}  # fmt: skip
CELLS = st.one_of(
    st.integers(-2, 9), st.floats(), WORDS, st.sampled_from([1e30, "1e400", "٣", "1_0", "0x1", '"'])
)


@pytest.fixture(scope="module")
def experience() -> Episodes:
    replay = make()
    add(replay, 20)
    return Episodes(replay)


def csv_of(table: Any) -> bytes:
    """A table of columns as CSV; columns may differ in length."""
    if not isinstance(table, dict):
        return str(table).encode(errors="replace")
    lists = [v if isinstance(v, list) else [v] for v in table.values()]
    height = max(map(len, lists), default=0)
    lines = [",".join(map(str, table))]
    lines += [",".join(str(v[i]) for v in lists if i < len(v)) for i in range(height)]
    return "\n".join(lines).encode(errors="replace")


def tables(table: Arrays) -> st.SearchStrategy[bytes]:
    text = csv_of(table)
    return st.one_of(
        damaged(text), altered(table, CELLS).map(csv_of), altered(table, CELLS).map(csv_of),
        st.binary(max_size=60),
        st.sampled_from([b"", b"\n", b"\xff\xfe", text + b"\x00", b'"' + 200_000 * b"x", b"\xef\xbb"
                         b"\xbf" + text, b"episode,step,value\n" + 5000 * b"9" + b",1,1"]),
    )  # fmt: skip


def arrays_of(table: Arrays) -> st.SearchStrategy[bytes]:
    whole = {name: np.array(values, np.float64) for name, values in table.items()}
    column = st.one_of(ARRAYS, columns(), STRANGE, st.sampled_from(HEADERS).map(header))
    return st.one_of(
        st.tuples(st.sampled_from(list(whole)), column).map(lambda c: npz({**whole, c[0]: c[1]})),
        damaged(npz(whole)),
    )


def test_labels(place: Path, experience: Episodes) -> None:
    @cases(80, 1000)
    @given(st.one_of(st.tuples(st.just(".csv"), tables(LABELS)),
                     st.tuples(st.just(".npz"), arrays_of(LABELS))))  # fmt: skip
    @example((".csv", csv_of(LABELS)))
    def fuzz(file: tuple[str, bytes]) -> None:
        path = place / "table" / f"labels{file[0]}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(file[1])
        with ours(f"labels, {file[0][1:].upper()}"):
            labels = labels_of(parse(f"labels:{path}"), experience)
            assert len(labels.all) > 0
            assert np.isfinite(labels.all).all()

    fuzz()
    assert not MARKER.exists()


def test_preferences(place: Path, experience: Episodes) -> None:
    @cases(80, 700)
    @given(st.one_of(st.tuples(st.just(".csv"), tables(SEGMENTS)),
                     st.tuples(st.just(".npz"), arrays_of(SEGMENTS))))  # fmt: skip
    @example((".csv", csv_of(SEGMENTS)))
    def fuzz(file: tuple[str, bytes]) -> None:
        path = place / "table" / f"pairs{file[0]}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(file[1])
        with ours(f"preferences, {file[0][1:].upper()}"):
            assert set(PAIRS) == set(SEGMENTS)
            assert len(read_pairs(str(path), experience)) > 0

    fuzz()
    assert not MARKER.exists()


@cases(80, 1000)
@given(st.one_of(
    WORDS, st.text(max_size=12),
    st.builds(":".join, st.lists(st.one_of(
        st.sampled_from(["key", "labels", "goal", "preferences", "os", "0", "99", "reward", "a/b",
                         "image", "tests.envs_for_tests", "system", "-1", "9" * 30, "x.py", "1,2",
                         "../x.py", "/etc/passwd", "0,0", "kye"]), WORDS), max_size=4)),
))  # fmt: skip
def test_sources_of_rewards(experience: Episodes, words: str) -> None:
    with ours("rewards by name"):
        source = parse(words)
        if source.kind in ("key", "labels"):
            labels_of(source, experience)
