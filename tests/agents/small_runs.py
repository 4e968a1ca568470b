"""What the tests of one-file agents share: a replay of random rows, and what a run does for every
agent without knowing it. The checks are functions of a config: `small_config(folder, agent)`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import agents
from agents.base import Policy
from agents.deploy.cli import deploy_command, export_command
from agents.deploy.fit import fit_detector_command
from agents.run.config import TrainConfig
from agents.run.evaluate import evaluate
from agents.run.train import build, train
from scripts.studies.bench_faults import compare
from worldmodel.envs import EnvConfig
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.types import MASK_KEY, PLAYER_KEY, EnvSpec

ENV = "tests.envs_for_tests:SteadyEnv"
# Deadlines that a machine which is busy with other things keeps too.
PATIENT = ["deploy.period_ms=20000", "deploy.soft_ms=9000", "deploy.hard_ms=9000", "pace=false"]
SILENT = lambda text: None  # noqa: E731


def filled_replay(
    spec: EnvSpec,
    steps: int = 40,
    reward: Callable[[np.ndarray], np.ndarray] | None = None,
    terminal: bool = False,
    num_envs: int = 2,
    **settings: Any,
) -> Replay:
    """Random rows in episodes of five; they end, or with terminal=True each step ends one.

    reward: of the actions [N, A]; random without.
    """
    replay = Replay(spec, ReplayConfig(capacity=1000), num_envs, seed=3, **settings)
    rng = np.random.default_rng(0)
    length = 2 if terminal else 5
    for step in range(steps):
        first, last = step % length == 0, step % length == length - 1
        action = rng.uniform(-1, 1, (num_envs, spec.action.size)).astype(np.float32)
        if spec.action.kind == "discrete":
            action = spec.action.encode(spec.action.decode(action))
        paid = rng.normal(size=num_envs) if reward is None else reward(action)
        rows: dict[str, Any] = {
            "action": np.zeros_like(action) if first else action,
            "reward": np.zeros(num_envs, np.float32) if first else paid.astype(np.float32),
            "is_first": np.full(num_envs, first),
            "is_last": np.full(num_envs, last),
            "is_terminal": np.full(num_envs, last and (terminal or step % 2 == 0)),
        }
        columns = {
            name: rng.uniform(0.1, 1, (num_envs, *column.shape)).astype(column.dtype)
            for name, column in replay.columns.items()
        }
        replay.add(rows | observed(spec, num_envs, seed=step) | columns)
    return replay


def observed(spec: EnvSpec, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random observations [B, ...]; a mask allows one action at least."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for key, one in spec.obs.items():
        if one.kind == "image":
            out[key] = rng.integers(256, size=(batch, *one.shape)).astype(np.uint8)
            continue
        out[key] = rng.normal(size=(batch, *one.shape)).astype(np.float32)
        if one.kind == "discrete" or key == MASK_KEY:
            drawn = rng.integers(one.shape[0], size=batch)
            drawn = np.full(batch, seed % 2) if key == PLAYER_KEY else drawn  # by turns
            hot = np.eye(one.shape[0], dtype=np.float32)[drawn]
            out[key] = hot if key != MASK_KEY else np.maximum(hot, out[key] > 0)
    return out


def small_config(
    folder: Path, agent: Any, actions: str = "discrete", **changes: Any
) -> TrainConfig:
    """60 steps of the environment that counts, from its vector, with an update for every second."""
    base = TrainConfig(
        run=str(folder), steps=60, prefill=20, train_ratio=agent.batch_size / 2, log_every=20,
        eval_every=0, final_episodes=2, eval_envs=2, video_every=0, device="cpu", threads=1,
        env=EnvConfig(
            ENV, pixels=False, keys=["count"], kwargs={"actions": actions, "end": "alternate"}
        ),
        replay=ReplayConfig(capacity=500), agent=agent,
    )  # fmt: skip
    return replace(base, **changes)


def live(config: TrainConfig) -> None:
    """Train without the evaluation at the end."""
    trainer = build(config, SILENT)
    try:
        trainer.run()
    finally:
        trainer.close()


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All weights of a run, by part and name."""
    parts = agents.load(run).agent.parts
    return {f"{p}.{n}": t.detach() for p, part in parts.items() for n, t in part.tensors.items()}


def check_resumes(folder: Path, config: TrainConfig) -> None:
    """Stopped in the middle and continued, the run is the one that was not, to the bit."""
    whole, parts = (replace(config, run=str(folder / name)) for name in ("whole", "parts"))
    live(whole)
    for steps in (config.steps // 2 + 1, config.steps):
        live(replace(parts, steps=steps))
    found = compare(Path(whole.run), Path(parts.run))
    assert not found, found


def check_trains_and_evaluates(config: TrainConfig) -> None:
    assert train(config, SILENT) == 0
    summary = json.loads((Path(config.run) / "summary.json").read_text())
    assert summary["agent_steps"] == config.steps
    assert summary["updates"] > 10
    assert len(summary["eval_returns"]) == config.final_episodes
    lines = [json.loads(line) for line in (Path(config.run) / "metrics.jsonl").open()]
    assert any("grad_norm" in line for line in lines)


def check_evaluates_alike(policy: Policy) -> None:
    """The same actions from the same seed, however often it was evaluated before, so that a run
    that is killed after its last evaluation comes to the same end."""
    found = []
    for _ in range(2):
        result = evaluate(policy.agent, policy.spec, policy.env, 1, num_envs=1, record=True)
        found.append(np.stack([row["action"] for row in result.rows]))
    np.testing.assert_array_equal(*found)


def check_starts_from(config: TrainConfig, old: Path) -> None:
    """All parts of a trained run, and then the old weights exactly."""
    config = replace(config, from_run=str(old), load_parts=[])
    trainer = build(config, SILENT)
    trainer.close()
    ours, theirs = weights(Path(config.run)), weights(old)
    assert ours
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def check_learns_offline(config: TrainConfig, old: Path) -> None:
    config = replace(config, offline=str(old), updates=10)
    assert train(config, SILENT) == 0
    summary = json.loads((Path(config.run) / "summary.json").read_text())
    assert (summary["agent_steps"], summary["updates"]) == (0, 10)


def check_learns_from_images(folder: Path, agent: Any, actions: str = "discrete") -> None:
    """A bright square shows which action pays; chance earns 4 an episode, the best policy 8."""
    env = EnvConfig("tests.envs_for_tests:LeftRightEnv", kwargs={"actions": actions})
    env = replace(env, image_size=[32, 32])
    ratio = agent.batch_size  # an update a step
    config = small_config(folder, agent, steps=200, train_ratio=ratio, env=env, final_episodes=5)
    check_trains_and_evaluates(config)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["eval_return_mean"] > 7


def check_exports_and_deploys(run: Path, to: Path) -> None:
    """As graphs that need none of our code, whose actions are ours; and in a loop that a detector
    guards."""
    said: list[str] = []
    action = agents.load(run).spec.action
    # A robot at rest: discrete actions have no zero.
    rest = [] if action.kind == "continuous" else [f"deploy.fallback.rest={[1, 0, 0]}"]
    fit = ["episodes=10", "false_alarm_rate=0.25", "detector.confidence=0"]
    assert fit_detector_command(said.append, [f"run={run}", *fit]) == 0, said
    assert export_command(said.append, [f"run={run}", "smaller=[]", "steps=100"]) == 0, said
    words = [f"to={to}", "episodes=2", "deploy.warmup=2", *PATIENT, *rest]
    for source in (run, run / "export"):
        said.clear()
        assert deploy_command(said.append, [f"run={source}", *words]) == 0, said
        assert not any("has no detector" in line for line in said), said
        summary = json.loads((to / "summary.json").read_text())
        assert len(summary["trials"]["guarded"]["returns"]) == 2
