"""Whether an export does what the agent does, step after step on its own memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from agents.base import Policy
from agents.deploy.export.engine import ExportEngine
from agents.deploy.export.step import Step, Tensors, as_inputs, example_obs
from worldmodel import progress
from worldmodel.envs import EnvError, make_env
from worldmodel.replay import Replay

EPISODE = 100  # rows of an episode made up where there is no recording
LAST_DIGITS = 1e-6  # relative change of weights that may decide a step, where rounding does
TRIES = 32  # draws of such changes

Arrays = dict[str, np.ndarray]


def parity(
    step: Step, engine: ExportEngine, obs: list[Arrays], first: np.ndarray, tolerance: float
) -> dict[str, float]:
    """The export runs over these observations [1, ...] on its own memory; the agent's own step in
    Python is asked at every tick what it would do from there.

    `action`, `state` (relative), `score` (in thresholds): the largest differences of any tick; so
    the entire path of the export is one that the agent could have gone, to that tolerance. `ties`:
    ticks not compared, because rounding decides them: the answers differ by more than `tolerance`,
    and the agent gives the export's own answer when its weights change in their last digits, as
    where two classes of a latent are equally likely. After the first tick at which it does not, the
    graph has failed, and no later one is asked (that takes minutes).

    `free_median`, `free_max`: differences of actions where the agent runs beside on its own memory
    instead. Recurrent memories amplify rounding (so does the same agent in a batch of another
    size), so these say how far two programs drift apart, not whether one is wrong.
    """
    state, free = engine.initial(1), engine.initial(1)
    sent = alone = np.zeros((1, step.spec.action.size), np.float32)
    worst = {"action": 0.0, "state": 0.0, "ties": 0.0}
    drift, failed = [], False
    pairs = zip(obs, first, strict=True)
    doing = f"comparing {engine.graph} with the agent, tick"
    for seen, begins in progress.each(pairs, doing, len(obs)):
        is_first = np.array([begins])
        given = as_inputs(seen, state, sent, is_first)
        ours = _answer(step, given)
        beside = _answer(step, as_inputs(seen, free, alone, is_first))
        sent, state, score = engine.step(seen, state, is_first, sent)
        theirs = {"action": sent, **{f"next.{n[6:]}": value for n, value in state.items()}}
        if score is not None:
            theirs["score.value"] = score.value
        alone = beside["action"]
        free = {f"state.{n[5:]}": x for n, x in beside.items() if n.startswith("next.")}
        drift.append(float(np.abs(sent - alone).max()))
        found = _differences(ours, theirs)
        if not failed and max(found.values()) > tolerance:
            failed = not _rounding_decides(step, given, theirs, tolerance)
            if not failed:
                worst["ties"] += 1
                continue
        worst |= {name: max(worst.get(name, 0.0), value) for name, value in found.items()}
    return worst | {"free_median": float(np.median(drift)), "free_max": float(np.max(drift))}


@torch.no_grad()
def _answer(step: Step, given: Tensors) -> Arrays:
    return {name: tensor.numpy() for name, tensor in step.run(given).items()}


def _differences(ours: Mapping[str, np.ndarray], theirs: Arrays) -> dict[str, float]:
    """The largest difference of each kind of output; that of states relative to large numbers."""
    out: dict[str, float] = {}
    for name, value in theirs.items():
        kind = "state" if name.startswith("next.") else name.split(".")[0]
        a, b = np.asarray(ours[name], float), np.asarray(value, float)
        with np.errstate(invalid="ignore"):
            apart = np.abs(a - b) / (np.maximum(1.0, np.abs(a)) if kind == "state" else 1.0)
        apart = np.where(a == b, 0.0, apart)  # infinite ones too
        largest = float(apart.max()) if apart.size else 0.0
        # A NaN on one side alone is as far off as can be.
        out[kind] = max(out.get(kind, 0.0), largest if np.isfinite(largest) else np.inf)
    return out


def _rounding_decides(step: Step, given: Tensors, theirs: Arrays, tolerance: float) -> bool:
    """Whether the step gives an answer within tolerance with weights of other last digits."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(TRIES):
        with _other_digits(step, rng):
            if max(_differences(_answer(step, given), theirs).values()) <= tolerance:
                return True
    return False


@contextmanager
def _other_digits(step: Step, rng: torch.Generator) -> Iterator[None]:
    """Within the block, all weights are a little different."""
    weights = [(weight, weight.detach().clone()) for weight in step.parameters()]
    with torch.no_grad():
        for weight, _ in weights:
            noise = torch.randn(weight.shape, generator=rng, dtype=weight.dtype)
            weight.mul_(1 + LAST_DIGITS * noise)
        try:
            yield
        finally:
            for weight, before in weights:
                weight.copy_(before)


def observations(
    policy: Policy, replay: Replay | None, steps: int
) -> tuple[list[dict[str, np.ndarray]], np.ndarray, str]:
    """`steps` observations [1, ...], whether each begins an episode, and where they are from: the
    newest recorded ones; else played in the agent's environment; else made up."""
    if replay is not None and replay.counts.max() >= steps:
        stream = int(replay.counts.argmax())
        stop = int(replay.counts[stream])
        try:
            rows = replay.rows(stream, stop - steps, stop)
        except ValueError:  # a ring shorter than that
            rows = {}
        if rows:
            first = rows["is_first"].copy()
            first[0] = True
            return [{k: rows[k][t][None] for k in policy.spec.seen} for t in range(steps)], first, (
                "recorded"
            )  # fmt: skip
    try:
        return *_played(policy, steps), "played"
    except EnvError:  # a robot that is not here
        rng = torch.Generator().manual_seed(0)
        made = [example_obs(policy.spec, 1, rng) for _ in range(steps)]
        seen = [{k: v.numpy() for k, v in one.items()} for one in made]
        return seen, np.arange(steps) % EPISODE == 0, "made up"


def _played(policy: Policy, steps: int) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """The agent in its environment."""
    env = make_env(policy.env, seed=0, spec=policy.spec)
    seen: list[dict[str, np.ndarray]] = []
    first: list[bool] = []
    try:
        obs, state = env.reset()[0], None
        for _ in progress.each(range(steps), "playing for the comparison, tick"):
            seen.append({key: np.asarray(obs[key])[None].copy() for key in policy.spec.seen})
            first.append(state is None)
            action, state = policy.act({key: obs[key] for key in policy.spec.seen}, state)
            obs, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                obs, state = env.reset()[0], None
    finally:
        env.close()
    return seen, np.array(first)
