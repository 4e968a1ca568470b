"""Updates that are recorded, and settled one later, are the updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.dreamer import Dreamer, DreamerConfig
from agents.dreamer.pipeline import Pipeline
from agents.run.train import train
from scripts.studies.bench_faults import Settings, small_run
from tests.model_batches import SPECS, random_batch, tiny
from tests.recorded_ops import RecordedOps
from worldmodel import checkpoint
from worldmodel.accel import fused
from worldmodel.config import RunError
from worldmodel.optim import OptimConfig
from worldmodel.types import Batch

CPU = torch.device("cpu")
UPDATES = 8


class NoReplay:
    """Where fresh states would go; keeps what it is given."""

    def __init__(self) -> None:
        self.written: list[tuple[Any, Any]] = []

    def rewrite(self, index: Any, values: Any) -> None:
        self.written.append((index, values))


@pytest.fixture(autouse=True)
def _definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device without loops of ours; those would not be seen."""
    monkeypatch.setattr(fused, "in_loops", lambda *_: False)
    monkeypatch.setattr("worldmodel.rssm.scan.in_loops", lambda *_: False, raising=False)


def make(spec: str, **config: Any) -> Dreamer:
    torch.manual_seed(0)
    optim = OptimConfig(lr=1e-3, warmup=6, anneal=9)  # every update differs from the one before
    settings = {"entropy_anneal": 9, "batch_size": 3, "batch_length": 5, "horizon": 3} | config
    settings = {"optim": optim} | settings
    model = tiny(**settings.pop("model", {}))
    return Dreamer(SPECS[spec], DreamerConfig(**settings, model=model), CPU)


def pipelined(agent: Dreamer) -> Pipeline:
    class Here(RecordedOps):
        @staticmethod
        def changed() -> list[Tensor]:
            flat = agent.optim
            own = [flat.flat, flat.grad, flat.mean, flat.square, flat._updates]
            return [*own, *agent.module.buffers(), *agent.slow_critic.parameters()]

    pack = None if agent.config.freeze_model else agent.model.pack
    agent._pipeline = Pipeline(agent._learn, agent.optim.check, pack, CPU, Here)
    return agent._pipeline


def batches(spec: str, frozen: Dreamer | None = None) -> list[Batch]:
    out = [random_batch(SPECS[spec], seed=i) for i in range(UPDATES)]
    for i, batch in enumerate(out):
        batch.index = i
        if frozen is not None:
            states = frozen.model.initial(batch.reward.numel())
            packed = frozen.model.pack(states)
            batch.columns = {k: v.unflatten(0, batch.shape) for k, v in packed.items()}
    return out


def same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


KINDS: dict[str, Callable[[], Dreamer]] = {
    "image": lambda: make("image"),
    "mixed": lambda: make("mixed", imagination_starts=2),
    "gaussian": lambda: make("vector", model={"latent": "gaussian"}),
    "frozen": lambda: make("vector", freeze_model=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_updates_are_the_updates_to_the_bit(kind: str) -> None:
    """Nothing that changes from one to the next is left in Python: neither the step size, nor the
    debiasing, nor what is drawn."""
    plain, other = KINDS[kind](), KINDS[kind]()
    pipeline, replay = pipelined(other), NoReplay()
    spec = {"gaussian": "vector", "frozen": "vector"}.get(kind, kind)
    drawn = batches(spec, plain if kind == "frozen" else None)
    torch.manual_seed(1)
    expected = [plain.train_on(batch) for batch in drawn]
    torch.manual_seed(1)
    told = [pipeline.update(replay, b) for b in drawn]  # type: ignore[arg-type]
    told.append(pipeline.settle(replay))  # type: ignore[arg-type]
    assert pipeline._recorded.replays == UPDATES - 3  # type: ignore[attr-defined]
    same(plain.state_dict(), other.state_dict())
    assert told[0] == {}
    for (metrics, _), late in zip(expected, told[1:], strict=True):
        same({k: float(v) for k, v in metrics.items()}, late)
    if kind == "frozen":
        assert replay.written == []
        return
    assert [index for index, _ in replay.written] == list(range(UPDATES))
    for (_, states), (_, packed) in zip(expected, replay.written, strict=True):
        same(plain.model.pack(states), packed)


@pytest.mark.parametrize("bad", [1, 5], ids=["before it is recorded", "replayed"])
def test_one_that_is_not_finite_changes_nothing_and_is_told_one_later(bad: int) -> None:
    plain, other = make("vector"), make("vector")
    pipeline, replay = pipelined(other), NoReplay()
    drawn = batches("vector")
    drawn[bad].reward[1, 2] = float("nan")
    torch.manual_seed(1)
    for batch in drawn:
        try:
            plain.train_on(batch)
        except FloatingPointError as error:
            reason = str(error)
    torch.manual_seed(1)
    for i, batch in enumerate(drawn):
        if i == bad + 1:
            with pytest.raises(FloatingPointError) as caught:
                pipeline.update(replay, batch)  # type: ignore[arg-type]
            assert str(caught.value) == reason
            assert caught.value.batch is drawn[bad]  # type: ignore[attr-defined]
        else:
            pipeline.update(replay, batch)  # type: ignore[arg-type]
    pipeline.settle(replay)  # type: ignore[arg-type]
    same(plain.state_dict(), other.state_dict())
    assert other.optim.updates == UPDATES - 1
    assert [index for index, _ in replay.written] == [i for i in range(UPDATES) if i != bad]


# In a run


SILENT = lambda text: None  # noqa: E731


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every agent settles its updates as on a GPU."""

    def pipelined(agent: Dreamer) -> Pipeline:
        if agent._pipeline is None:
            agent._pipeline = Pipeline(agent._learn, agent.optim.check, agent.model.pack, CPU)
        return agent._pipeline

    monkeypatch.setattr(Dreamer, "_pipelined", pipelined)


@pytest.mark.usefixtures("late")
def test_a_run_counts_keeps_and_logs_what_settles_late(tmp_path: Path) -> None:
    config = replace(small_run(tmp_path, Settings(steps=90)), checkpoint_minutes=1.0, eval_every=0)
    train(config, SILENT)
    saved = checkpoint.load(tmp_path)
    assert saved["counters"]["updates"] == saved["agent"]["optim"]["updates"] > 4
    assert (tmp_path / "metrics.jsonl").read_text().count("loss/total") >= 2
    assert saved["means"]["counts"].get("loss/total", 0) >= 1  # the last one, settled by the save


@pytest.mark.usefixtures("late")
def test_updates_that_fail_late_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one of all as well, which only the last save brings to its end."""
    config = replace(small_run(tmp_path, Settings(steps=80)), checkpoint_minutes=1.0, eval_every=0)
    train(replace(config, run=str(tmp_path / "all")), SILENT)
    updates = checkpoint.load(tmp_path / "all")["counters"]["updates"]
    learn, calls = Dreamer._learn, []

    def poisoned(agent: Dreamer, batch: Batch) -> Any:
        calls.append(1)
        if len(calls) in (2, 3, updates):
            batch.reward[0, 1] = float("nan")
        return learn(agent, batch)

    monkeypatch.setattr(Dreamer, "_learn", poisoned)
    said: list[str] = []
    train(replace(config, run=str(tmp_path / "some")), said.append)
    told = [text.partition(":")[0] for text in said if text.startswith("skipped")]
    assert told == [f"skipped update {number}" for number in (2, 2, updates - 2)]
    saved = checkpoint.load(tmp_path / "some")
    assert saved["counters"]["skipped"] == 3
    assert saved["counters"]["updates"] == saved["agent"]["optim"]["updates"] == updates - 3


@pytest.mark.usefixtures("late")
def test_no_checkpoint_follows_an_update_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes back would otherwise come to weights that fail already."""
    learn, calls = Dreamer._learn, []

    def poisoned(agent: Dreamer, batch: Batch) -> Any:
        calls.append(1)
        if len(calls) > 3:
            batch.reward[0, 1] = float("nan")
        return learn(agent, batch)

    monkeypatch.setattr(Dreamer, "_learn", poisoned)
    config = replace(
        small_run(tmp_path, Settings(steps=100)), nonfinite_limit=3, max_rollbacks=0, eval_every=0
    )
    config.checkpoint_minutes = 1e-9  # after every step
    with pytest.raises(RunError, match="3 updates in a row were not finite"):
        train(config, SILENT)
    counters = checkpoint.load(tmp_path)["counters"]
    assert counters["updates"] == 3
    assert counters["skipped"] == 0


@pytest.mark.usefixtures("late")
def test_deterministic_runs_do_not_depend_on_when_they_were_saved(tmp_path: Path) -> None:
    config = replace(
        small_run(tmp_path / "a", Settings(steps=70)), deterministic=True, eval_every=0
    )
    config.checkpoint_minutes = 1.0
    try:
        train(config, SILENT)
        other = replace(config, run=str(tmp_path / "b"))
        train(replace(other, steps=55), SILENT)
        train(other, SILENT)
    finally:
        torch.use_deterministic_algorithms(False)
    saved = [checkpoint.load(tmp_path / name)["agent"] for name in "ab"]
    same(saved[0], saved[1])
