"""The learned table: right counts, outcomes drawn as they came, and a Dynamics like the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel import dream
from worldmodel.models import tables
from worldmodel.models.tabular import TabularConfig, TabularModel, TabularState
from worldmodel.types import ActionSpec, Batch, Dynamics, EnvSpec, ObsSpec

ROOT = Path(__file__).resolve().parents[2]
SPEC = EnvSpec({"state": ObsSpec("discrete", (5,), (5,))}, ActionSpec("discrete", (2,)))
STEP = st.tuples(
    st.integers(0, 4), st.integers(0, 1), st.sampled_from([0.0, 1.0, -0.5]), st.integers(0, 4),
    st.booleans(),
)  # fmt: skip


def model(kind: str = "counts", unknown: str = "error") -> TabularModel:
    return TabularModel(SPEC, TabularConfig(kind, unknown))


def learn(world: TabularModel, steps: list[tuple[int, int, float, int, bool]]) -> None:
    world.record(*(list(column) for column in zip(*steps, strict=True)))


def at(*states: int) -> TabularState:
    return TabularState(torch.eye(5)[list(states)])


def do(*actions: int) -> torch.Tensor:
    return torch.eye(2)[list(actions)]


# The generator


def test_splitmix_gives_the_published_numbers() -> None:
    """The first five numbers for the seed 1234567, as published with the algorithm."""
    rng = np.array([1234567], np.uint64)
    drawn = [int(tables.draw(rng)) for _ in range(5)]
    assert drawn == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip


def test_draws_are_uniform() -> None:
    rng = tables.random_state(0)
    floats = np.array([tables.uniform(rng) for _ in range(20_000)])
    assert 0 <= floats.min() < floats.max() < 1
    assert np.abs(np.histogram(floats, 10, (0, 1))[0] / 20_000 - 0.1).max() < 0.01
    whole = np.array([tables.below(rng, 7) for _ in range(20_000)])
    assert np.abs(np.bincount(whole, minlength=7) / 20_000 - 1 / 7).max() < 0.01
    assert {tables.below(rng, 1) for _ in range(5)} == {0}


# What is remembered


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=60), st.sampled_from(["deterministic", "counts"]))
def test_remembers_what_happened(steps: list[Any], kind: str) -> None:
    world = model(kind)
    if steps:
        learn(world, steps)
    t = world.tables
    led: dict[int, Counter[tuple[int, int]]] = {s: Counter() for s in range(5)}
    for s, a in np.ndindex(5, 2):
        happened = [step[2:] for step in steps if step[:2] == (s, a)]
        chances = Counter(happened if kind == "counts" else happened[-1:])
        told = {(r, s2, end): share for share, s2, r, end in world.outcomes(s, a)}
        total = sum(chances.values())
        assert told == {key: n / total for key, n in chances.items()}
        when = [i + 1 for i, step in enumerate(steps) if step[:2] == (s, a)]
        assert t.seen[2 * s + a] == len(when)
        assert t.last[2 * s + a] == max(when, default=0)
        for _, s2, _ in chances:
            led[s2][s, a] += 1
    first = list(dict.fromkeys(step[0] for step in steps))
    assert t.states[: t.counters[tables.KNOWN]].tolist() == first
    for s in range(5):
        tried = list(dict.fromkeys(a for there, a, *_ in steps if there == s))
        assert t.tried[2 * s : 2 * s + t.num_tried[s]].tolist() == tried
        found, row = Counter(), int(t.first[s])
        while row >= 0:
            found[divmod(int(t.pair[row]), 2)] += 1
            row = int(t.after[row])
        assert found == led[s]  # the predecessors
    assert t.counters[tables.TIME] == len(steps)


def test_saved_and_loaded_it_is_the_same() -> None:
    rng = np.random.default_rng(0)
    steps = [
        (int(rng.integers(5)), int(rng.integers(2)), float(rng.normal()), 0, False)
        for _ in range(200)
    ]
    world, again = model(), model()
    learn(world, steps[:100])
    again.load_state_dict(world.state_dict())
    for one in (world, again):
        learn(one, steps[100:])
    ours, theirs = world.state_dict(), again.state_dict()
    assert set(ours) == {"tables", "more"}
    for part in ("tables", "more"):
        assert all(torch.equal(ours[part][key], theirs[part][key]) for key in ours[part])
    state, action = at(*[2] * 50), do(*[1] * 50)
    told = []
    for one in (world, again, again):
        torch.manual_seed(len(told) // 2)
        told.append(one.step(state, action).reward)
    assert torch.equal(told[0], told[1])
    assert not torch.equal(told[1], told[2])
    assert set(model().state_dict()) == {"tables"}


# A world to dream in


def test_is_a_dynamics() -> None:
    world = model()
    assert isinstance(world, Dynamics)
    nothing = world.initial(3)
    assert world.feat(nothing).shape == (3, 5)
    seen = world.observe(nothing, {"state": torch.eye(5)[[1, 0, 4]]}, do(0, 0, 0), torch.ones(3))
    assert seen.place.argmax(-1).tolist() == [1, 0, 4]
    assert world.decode(seen)["state"].tolist() == torch.eye(5)[[1, 0, 4]].tolist()


def test_outcomes_come_together_and_as_often_as_they_were_seen() -> None:
    world = model()
    learn(
        world,
        [(0, 1, 1.0, 3, True)] * 30 + [(0, 1, -0.5, 2, False)] * 60 + [(0, 1, 7.0, 2, False)] * 10,
    )
    told = world.step(at(*[0] * 20_000), do(*[1] * 20_000))
    after = told.state.place.argmax(-1)
    assert set(zip(after.tolist(), told.reward.tolist(), told.cont.tolist(), strict=True)) == {
        (3, 1.0, 0.0), (2, -0.5, 1.0), (2, 7.0, 1.0),
    }  # fmt: skip
    shares = [float((told.reward == r).float().mean()) for r in (1.0, -0.5, 7.0)]
    assert shares == pytest.approx([0.3, 0.6, 0.1], abs=0.015)


def test_the_deterministic_table_believes_what_it_saw_last() -> None:
    world = model("deterministic")
    learn(world, [(0, 1, 1.0, 3, True), (0, 1, -0.5, 2, False)])
    told = world.step(at(0, 0), do(1, 1))
    assert told.reward.tolist() == [-0.5, -0.5]
    assert told.state.place.argmax(-1).tolist() == [2, 2]
    assert told.cont.tolist() == [1.0, 1.0]


def test_the_unknown_is_an_error_or_stays() -> None:
    world = model()
    learn(world, [(0, 1, 1.0, 3, False)])
    with pytest.raises(ValueError, match=r"Action 0 was never tried in state 4.*\(1 of 10 pairs"):
        world.step(at(0, 4), do(1, 0))
    with pytest.raises(ValueError, match="Call observe first"):
        world.step(world.initial(1), do(0))
    staying = model(unknown="stay")
    told = staying.step(at(4), do(0))
    assert told.state.place[0].argmax() == 4
    assert (told.reward.item(), told.cont.item()) == (0.0, 1.0)


def test_dreams_follow_the_learned_ring() -> None:
    world = model("deterministic")
    learn(world, [(s, 1, float(s), (s + 1) % 5, False) for s in range(5)])
    states = torch.arange(8) % 5
    no = torch.zeros(1, 8, dtype=torch.bool)
    batch = Batch(
        {"state": torch.eye(5)[states][None]}, do(*[1] * 8)[None], torch.zeros(1, 8), no, no, no
    )
    out = dream.open_loop(world, batch, context=2)
    assert out.shown["state"][0].argmax(-1).tolist() == states.tolist()
    assert out.reward[0, 2:].tolist() == [1.0, 2.0, 3.0, 4.0, 0.0, 1.0]


@pytest.mark.parametrize(("spec", "told"), [
    (EnvSpec({"image": ObsSpec("image", (64, 64, 3))}, SPEC.action), r"observes image \(image\)"),
    (EnvSpec({"x": ObsSpec("vector", (3,))}, SPEC.action), r"observes x \(vector\)"),
    (EnvSpec(SPEC.obs, ActionSpec("continuous", (2,))), r"takes 1 continuous actions"),
    (EnvSpec(SPEC.obs, ActionSpec("discrete", (2, 3))), r"takes 6 discrete actions"),
    (EnvSpec({"state": ObsSpec("discrete", (5,), (2, 3))}, SPEC.action), r"one discrete"),
    (EnvSpec({**SPEC.obs, "action_mask": ObsSpec("vector", (2,))}, SPEC.action), r"action_mask"),
])  # fmt: skip
def test_other_worlds_do_not_fit(spec: EnvSpec, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TabularModel(spec)


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown kind 'average'\. Known: deterministic, counts"):
        TabularConfig(kind="average")


def test_compiled_code_is_kept_and_does_without_a_folder(tmp_path: Path) -> None:
    """With a folder to write, machine code is there afterwards; without any, it still works."""
    code = (
        "import numpy as np; from worldmodel.models import tables;"
        "assert 0 <= tables.below(tables.random_state(0), 9) < 9;"
        "assert tables.__file__.startswith({!r})"
    )

    def run(root: Path, home: Path, **env: str) -> None:
        clean = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "HOME": str(home), **env}
        command = [sys.executable, "-c", code.format(str(root))]
        subprocess.run(command, check=True, env=clean, cwd=tmp_path)

    place = tmp_path / "cache"
    run(ROOT, tmp_path, NUMBA_CACHE_DIR=str(place))
    assert list(place.rglob("numba-*/**/*.nbc"))
    copy, home = tmp_path / "copy", tmp_path / "home"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "worldmodel" / "models", copy / "worldmodel" / "models", ignore=skip)
    # A file where a folder is wanted cannot be written to, whoever asks.
    (copy / "worldmodel" / "models" / "__pycache__").write_text("")
    home.write_text("")
    run(copy, home)
