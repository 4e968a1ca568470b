"""Deployment: export folders that somebody changed, and whatever a robot's sensors may send."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.deploy import FallbackConfig
from agents.deploy.export.manifest import MANIFEST, SUMS, Export, seal
from tests.agents.deploy_doubles import Bench, observation
from tests.conftest import Once
from tests.fuzz.common import (
    ARRAYS,
    JSON,
    MARKER,
    SCALARS,
    WORDS,
    altered,
    cases,
    damaged,
    deep,
    ours,
)
from worldmodel.config import RunError

ROBOTS = 3


class Runs:
    """Unpickles into a call, which leaves a mark where nothing should ever run."""

    def __reduce__(self) -> Any:
        return (Path.touch, (MARKER,))


# Export folders.


@pytest.fixture(scope="module")
def exported(once: Once) -> Path:
    """The export of a small agent with a detector."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from tests.agents.test_deploy_export import export_box

    return once("export", export_box)


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def drive(folder: Path, graph: str | None = None, expected: str | None = None) -> None:
    """Open a folder and take two steps."""
    from agents.deploy.export.engine import ExportEngine

    engine = ExportEngine(folder, graph, expected)
    state = engine.initial(1)
    for first in (True, False):
        obs = observation(1, spec=engine.spec)
        sent = np.zeros((1, engine.spec.action.size), np.float32)
        _, state, _ = engine.step(obs, state, np.array([first]), sent)


def test_every_change_of_an_export_is_noticed(exported: Path, copy: Path) -> None:
    names = sorted(path.name for path in exported.iterdir())

    @cases(40, 600)
    @given(st.sampled_from(names), st.data())
    def fuzz(name: str, data: st.DataObject) -> None:
        whole = (exported / name).read_bytes()
        changed = data.draw(damaged(whole))
        (copy / name).write_bytes(changed)
        refused = False
        with ours("exports, changed"):
            try:
                Export(copy)
            except Exception:
                refused = True
                raise
        (copy / name).write_bytes(whole)
        # Line ends at the end of the list of checksums are no change of anything.
        assert refused or changed.split() == whole.split()

    fuzz()


def test_any_manifest_with_the_right_checksums(exported: Path, copy: Path) -> None:
    whole = json.loads((exported / MANIFEST).read_text())
    texts = st.one_of(
        altered(whole, st.one_of(JSON, WORDS)).map(json.dumps),
        altered(whole, st.one_of(JSON, WORDS)).map(json.dumps),
        JSON.map(json.dumps),
        st.text(max_size=50),
    )

    @cases(30, 400)
    @given(texts)
    @example("[" * 100_000)
    @example(json.dumps({**whole, "inputs": {**whole["inputs"], "x": deep(500)}}))
    def fuzz(text: str) -> None:
        (copy / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
        seal(copy)
        with ours("exports, manifest"):
            drive(copy)

    fuzz()


def test_any_graph_with_the_right_checksums(exported: Path, copy: Path) -> None:
    graphs = json.loads((exported / MANIFEST).read_text())["graphs"]
    file = graphs["float32"]["file"]
    whole = (exported / file).read_bytes()

    @cases(20, 300)
    @given(st.one_of(damaged(whole), st.binary(max_size=100)))
    @example(b"")
    @example(pickle.dumps(Runs()))
    def fuzz(content: bytes) -> None:
        (copy / file).write_bytes(content)
        seal(copy)
        with ours("exports, graph"):
            drive(copy)

    fuzz()
    assert not MARKER.exists()


def test_no_graph_of_torch_runs_code_of_its_own(exported: Path, copy: Path) -> None:
    graphs = json.loads((exported / MANIFEST).read_text())["graphs"]
    file = next(graph["file"] for graph in graphs.values() if graph["kind"] == "pt2")
    with zipfile.ZipFile(exported / file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    hostile = pickle.dumps(Runs())

    @cases(4, 150)
    @given(st.sampled_from(sorted(records)), st.one_of(st.just(hostile), st.binary(max_size=60)))
    def fuzz(name: str, content: bytes) -> None:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for known, value in records.items():
                archive.writestr(known, content if known == name else value)
        (copy / file).write_bytes(out.getvalue())
        digest = seal(copy)
        with ours("exports, graph of torch"):
            drive(copy, "torch", digest)  # as if its writer were known
        assert not MARKER.exists()

    pickled = [name for name in records if name.endswith(".pt")]
    assert pickled  # torch would load these by unpickling them
    for name in pickled:
        fuzz = example(name, hostile)(fuzz)
    fuzz()


def test_names_in_the_list_of_checksums_stay_inside(exported: Path, copy: Path) -> None:
    line = (exported / SUMS).read_text().splitlines()[0]

    @cases(40, 300)
    @given(st.one_of(WORDS, st.text(max_size=20), st.sampled_from(["/etc/passwd", "a/../../b"])))
    def fuzz(name: str) -> None:
        text = f"{line.split()[0]}  {name}\n"
        (copy / SUMS).write_bytes(text.encode("utf-8", "surrogatepass"))
        with (
            ours("exports, names"),
            pytest.raises(RunError, match="is not an export as it was written"),
        ):
            Export(copy)

    fuzz()


# A robot's sensors.

ODD = st.one_of(SCALARS, ARRAYS, JSON)
KNOWN = observation(ROBOTS)


@st.composite
def observations(draw: st.DrawFn) -> Any:
    """An observation as it should be, with parts replaced; or anything else."""
    if not draw(st.integers(0, 4)):
        return draw(ODD)
    obs: dict[Any, Any] = {key: value.copy() for key, value in KNOWN.items()}
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from([*KNOWN, "time_stamp", "is_first", "x"]))
        match draw(st.sampled_from(["odd", "drop", "nan", "type", "shape"])):
            case "odd":
                obs[key] = draw(ODD)
            case "drop":
                obs.pop(key, None)
            case "nan" if isinstance(obs.get(key), np.ndarray) and obs[key].dtype.kind == "f":
                obs[key].flat[: draw(st.integers(0, 9))] = np.nan
            case "type" if isinstance(obs.get(key), np.ndarray) and obs[key].dtype.kind in "fu":
                obs[key] = obs[key].astype(draw(st.sampled_from(["i8", "f8", "U3", "O", "?"])))
            case "shape" if isinstance(obs.get(key), np.ndarray) and obs[key].ndim:
                obs[key] = obs[key][: draw(st.integers(0, ROBOTS))]
    whole = draw(st.booleans())
    return obs if whole else [draw(st.one_of(st.none(), ODD, st.just(obs))) for _ in range(ROBOTS)]


TOLD = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["stamp", "reward", "is_first", "is_last", "is_terminal"], ODD)
)


@pytest.mark.parametrize("fallback", ["hold", "zero"])
def test_a_loop_that_runs_answers_whatever_it_is_shown(fallback: str) -> None:
    bench = Bench(ROBOTS, fallback=FallbackConfig(fallback), max_age_ms=50.0)

    @cases(80, 1000)
    @given(observations(), TOLD)
    def fuzz(obs: Any, told: Mapping[str, Any]) -> None:
        with ours("what a deployed agent is shown"):
            decisions = bench.tick(obs, **told)
            assert [d.robot for d in decisions] == list(range(ROBOTS))
            for decision in decisions:
                assert decision.action.shape == (2,)
                assert np.isfinite(decision.action).all()
                assert (abs(decision.action) <= 1).all()

    fuzz()
