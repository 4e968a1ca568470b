"""A recorded function gives what the function gives, at every call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.recorded_ops import RecordedOps
from worldmodel.accel.graphs import Recorded, Tensors

CPU = torch.device("cpu")


class Walk:
    """Adds noise and its input to a place of its own, and counts."""

    def __init__(self, python: bool = False) -> None:
        self.place, self.count = torch.zeros(3), torch.zeros((), dtype=torch.long)
        self.python = 0 if python else None

    def __call__(self, inputs: Tensors) -> Tensors:
        self.count.add_(1)
        step = inputs["x"] / self.count
        if self.python is not None:
            self.python += 1
            step = inputs["x"] / self.python
        self.place.add_(step + torch.rand(3))
        return {"place": self.place * 2, "count": self.count}


def recorded(walk: Walk) -> RecordedOps:
    class Here(RecordedOps):
        @staticmethod
        def changed() -> list[Tensor]:
            return [walk.place, walk.count]

    return Here(walk, CPU)


def steps(launch: Recorded, calls: int) -> list[Tensors]:
    torch.manual_seed(0)
    return [launch.launch({"x": torch.full((3,), float(i))}).wait() for i in range(calls)]


def test_replays_give_what_calls_give() -> None:
    plain, replayed = Recorded(Walk(), CPU), recorded(Walk())
    expected, found = steps(plain, 8), steps(replayed, 8)
    assert replayed.replays == 5
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a["place"], b["place"])  # and earlier ones were not written over
        assert torch.equal(a["count"], b["count"])


def test_what_python_counts_is_not_replayed() -> None:
    """The rule that the tests of updates rely on."""
    expected = steps(Recorded(Walk(python=True), CPU), 8)
    found = steps(recorded(Walk(python=True)), 8)
    assert torch.equal(expected[3]["place"], found[3]["place"])
    assert not torch.equal(expected[7]["place"], found[7]["place"])


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x * float(x.sum()),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor(1.0),
        lambda x: x.nonzero(),
    ],
    ids=["a number", "a mask", "a constant", "positions"],
)
def test_where_recording_fails_the_function_runs_as_it_is(reads: object) -> None:
    launch = RecordedOps(lambda inputs: {"y": reads(inputs["x"])}, CPU, warmup=1)  # type: ignore[operator]
    x = torch.tensor([-1.0, 2.0])
    assert torch.equal(launch.launch({"x": x}).wait()["y"], reads(x))  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"could not be recorded .* cannot be recorded"):
        found = launch.launch({"x": x}).wait()
    assert torch.equal(found["y"], reads(x))  # type: ignore[operator]
    assert launch.replays == 0


def test_other_shapes_are_refused() -> None:
    launch = Recorded(lambda inputs: inputs, CPU)
    launch.launch({"x": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"These inputs are .*\(4,\).* first call .*\(3,\)"):
        launch.launch({"x": torch.zeros(4)})
