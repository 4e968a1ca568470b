"""On a CUDA GPU, an update is the update of a CPU; run by `make test-gpu`.

Bounds: losses and gradient norm of one update of the paper's agent (size 1m, 4 x 16 steps) from
the same weights, batch and draws, relative to a CPU's in float32: 1e-3 in float32, 0.05 in bfloat16
(where rounding flips some of the draws).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.apps.evaluate import evaluate_command
from agents.dreamer import Dreamer
from agents.run.cli import train_command
from agents.run.train import train
from scripts.studies import bench_subject
from scripts.studies.bench_faults import Settings, compare, small_run
from tests.agents.small_runs import filled_replay, observed
from tests.agents.test_dqn import MIXED
from tests.agents.test_dqn import make as make_dqn
from tests.agents.test_sac import IMAGES
from tests.agents.test_sac import make as make_sac
from worldmodel import distributions, tree
from worldmodel.rssm.steps import Steps
from worldmodel.types import Batch

pytestmark = pytest.mark.gpu
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
CPU = torch.device("cpu")
BOUNDS = {"float32": 1e-3, "bfloat16": 0.05}
UPDATES = 8
# Every agent but those that learn a table: its preset, made small.
WORDS = {
    "dreamer": "steps=300 prefill=200",
    "planet": "experiment=planet_small steps=520 prefill=500",
    "pets": "experiment=pets_pendulum steps=210 prefill=200",
    "priors": "experiment=pets_pendulum steps=210 prefill=200 agent.model.kind=priors",
    "mbpo": "agent=mbpo steps=410",
    "dqn": "agent=dqn steps=1100",
    "sac": "agent=sac steps=1100",
    "tdmpc2": "agent=tdmpc2 steps=300 prefill=250 first_updates=20",
    "tdmpc2_pixels": "experiment=tdmpc2_pixels env=pendulum steps=260 prefill=250 first_updates=5",
    "muzero": "agent=muzero steps=560",
    "gumbel_muzero": "experiment=gumbel_muzero env=cartpole_state steps=560 prefill=500",
    "efficientzero": "experiment=efficientzero env=cartpole steps=210 prefill=200",
    "world_models": "agent=world_models agent.iterations=1 agent.collect=300 agent.vae_updates=5 "
    "agent.rnn_updates=5 agent.search.generations=2",
}


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    assert torch.cuda.is_available(), "These tests need a CUDA GPU."
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*CUDA graph")  # that it could not be recorded
        yield torch.device("cuda")


def subject(device: torch.device, **given: Any) -> bench_subject.Subject:
    return bench_subject.Subject(**({"batch": 4, "length": 16, "device": str(device)} | given))


def batches(agent: Any, replay: Any, count: int) -> list[Batch]:
    return [replay.sample(agent.batch_size, agent.batch_length) for _ in range(count)]


def draws_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device draws the same numbers, in float32 from one generator of the CPU."""
    generator = torch.Generator().manual_seed(0)

    def exponential(x: Tensor) -> Tensor:
        uniform = torch.rand(x.shape, generator=generator)
        return x.copy_(uniform.log_().neg_())

    def normal(x: Tensor, **_: Any) -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x)

    def uniform(steps: Steps, out: Tensor) -> Tensor:
        for step in out.view(-1, *out.shape[-3:]):  # as the loops of a CPU draw
            step.copy_(exponential(step).neg_().exp_())
        return out

    monkeypatch.setattr(distributions, "exponential_", exponential)
    monkeypatch.setattr(torch, "randn_like", normal)
    monkeypatch.setattr("worldmodel.rssm.gpu.Launches.noise", uniform)


@pytest.mark.parametrize("precision", BOUNDS)
def test_one_update_finds_the_losses_of_a_cpu(
    gpu: torch.device, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for device in (CPU, gpu):
        made = bench_subject.make(subject(device, precision=precision))
        (batch,) = batches(made.agent, bench_subject.filled_replay(made), 1)
        with monkeypatch.context() as patch:
            draws_of_the_host(patch)
            metrics, _ = made.agent.train_on(batch.to(device))
        found[device] = {k: float(v) for k, v in metrics.items()}
    for name, value in found[CPU].items():
        if name.startswith("loss/") or name == "grad_norm":
            near = pytest.approx(value, rel=BOUNDS[precision], abs=1e-4)
            assert found[gpu][name] == near, name


@pytest.mark.parametrize("precision", BOUNDS)
def test_recorded_updates_find_what_launched_ones_find(gpu: torch.device, precision: str) -> None:
    norms: dict[bool, dict[str, float]] = {}
    for graph in (False, True):
        made = bench_subject.make(subject(gpu, precision=precision))
        agent: Dreamer = made.agent
        agent.config = replace(agent.config, cuda_graph=graph)
        replay = bench_subject.filled_replay(made)
        torch.manual_seed(1)
        for _ in range(UPDATES):
            agent.update(replay)
            agent.settle(replay)  # at once, so that both begin at the same stored states
        state = agent.state_dict()
        assert state["optim"]["updates"] == UPDATES
        norms[graph] = {k: float(v.float().norm()) for k, v in state["module"].items()}
        if graph:
            assert agent._pipeline is not None
            assert agent._pipeline._recorded._replay is not None  # it was recorded
    assert norms[True] == pytest.approx(norms[False], rel=1e-2, abs=1e-3)


def test_one_that_is_not_finite_is_told_one_later_and_changes_nothing(gpu: torch.device) -> None:
    made = bench_subject.make(subject(gpu))
    agent, replay = made.agent, bench_subject.filled_replay(made)
    for _ in range(UPDATES):
        agent.update(replay)
    agent.settle(replay)
    sample = replay.sample
    before = agent.optim.flat.clone()

    def poisoned(*args: Any, **options: Any) -> Batch:
        batch: Batch = sample(*args, **options)
        batch.reward[0, 1] = float("nan")
        return batch

    replay.sample = poisoned
    agent.update(replay)
    replay.sample = sample
    with pytest.raises(FloatingPointError, match="Weights were not changed"):
        agent.settle(replay)
    assert torch.equal(agent.optim.flat, before)
    agent.update(replay)
    assert agent.settle(replay)["grad_norm"] > 0
    assert agent.optim.updates == UPDATES + 1


def test_a_run_learns_stops_and_goes_on(gpu: torch.device, tmp_path: Path) -> None:
    config = replace(small_run(tmp_path / "a", Settings(steps=100)), device=str(gpu))
    config.deterministic, config.checkpoint_minutes = True, 1.0
    try:
        train(config, lambda text: None)
        other = replace(config, run=str(tmp_path / "b"))
        train(replace(other, steps=70), lambda text: None)
        train(other, lambda text: None)
    finally:
        torch.use_deterministic_algorithms(False)
    differences = [x for x in compare(tmp_path / "a", tmp_path / "b") if "agent" in x]
    assert differences == []


@pytest.mark.parametrize("make", [make_dqn, make_sac], ids=["dqn", "sac"])
def test_small_agents_learn_as_on_a_cpu_and_move_there(gpu: torch.device, make: Any) -> None:
    spec = MIXED if make is make_dqn else IMAGES
    here, there = make(spec), make(spec, device=gpu)
    there.load_state_dict(tree.to_plain(here.state_dict()))
    replays, obs = [filled_replay(spec), filled_replay(spec)], observed(spec, 3)
    for _ in range(3):
        ours, theirs = (agent.update(r) for agent, r in zip((here, there), replays, strict=True))
        for name, value in ours.items():
            assert float(theirs[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), name
    np.testing.assert_allclose(there.act(obs)[0], here.act(obs)[0], atol=1e-3)
    here.load_state_dict(tree.to_plain(there.state_dict()))
    np.testing.assert_allclose(
        there.act(obs, mode="mode")[0], here.act(obs, mode="mode")[0], atol=1e-4
    )


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_every_agent_trains_here_and_plays_on_a_cpu(
    gpu: torch.device, words: str, tmp_path: Path
) -> None:
    run, said = f"run={tmp_path / 'run'}", list[str]()
    common = [run, f"device={gpu}", "final_episodes=1", "eval_every=0", "video_every=0"]
    assert train_command(said.append, [*common, *words.split()]) == 0, said[-1]
    assert evaluate_command(said.append, [run, "device=cpu", "episodes=1"]) == 0, said[-1]
