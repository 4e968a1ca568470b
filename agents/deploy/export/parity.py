"""Whether an export does what the agent does, step after step on its own memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from agents.base import Policy
from agents.deploy.engine import AgentEngine, Mind
from agents.deploy.export.engine import ExportEngine
from agents.deploy.export.step import MEMORY, drawn, example_obs
from worldmodel.distributions import exponential_
from worldmodel.envs import EnvError, make_env
from worldmodel.replay import Replay
from worldmodel.rssm.state import LatentState

EPISODE = 100  # rows of an episode made up where there is no recording
TIE = 1e-3  # relative difference of two probabilities that rounding may decide


def parity(
    policy: Policy,
    engine: ExportEngine,
    detector: Any,
    obs: list[dict[str, np.ndarray]],
    first: np.ndarray,
) -> dict[str, float]:
    """The export runs over these observations [1, ...] on its own memory; the Python agent
    (`Agent.act` itself) is asked at every step what it would do from there.

    `action`, `deter`, `score` (in thresholds): the largest differences of any step; so the whole
    path of the export is one that the agent could have gone, to that tolerance. With latent=mode
    the agent's latents, too, are the likeliest; with latent=sample both take the same noise.
    `ties`: steps not compared, because two classes of a latent were equally likely but for
    rounding.

    `free_median`, `free_max`: differences of actions where the agent runs beside on its own memory
    instead. Recurrent memories amplify rounding (so does the same agent in a batch of another
    size), so these say how far two programs drift apart, not whether one is wrong.
    """
    ours = AgentEngine(policy.agent, detector)
    model: Any = policy.model
    drawing = engine.manifest["latent"] == "sample"
    other_agent = AgentEngine(policy.agent)
    state, free, blank = engine.initial(1), other_agent.initial(1), ours.initial(1)
    sent = alone = np.zeros((1, policy.spec.action.size), np.float32)
    worst = {"action": 0.0, "deter": 0.0, "ties": 0.0}
    drift = []
    for tick, (seen, begins) in enumerate(zip(obs, first, strict=True)):
        is_first = np.array([begins])
        with _reproducible(model.core, drawing, tick):
            noise = _noise(model.core) if drawing else None
        with _reproducible(model.core, drawing, tick):
            a, mine, score = ours.step(seen, _as_theirs(blank, state), is_first, sent)
        with _reproducible(model.core, drawing, tick):
            c, free, _ = other_agent.step(seen, free, is_first, alone)
        with _given(engine, noise):
            b, state, other = engine.step(seen, state, is_first, sent)
        a, c = (np.clip(x, -1, 1) if engine.continuous else x for x in (a, c))
        sent, alone = b, c
        drift.append(float(np.abs(b - c).max()))
        if _tied(model, seen, mine.policy.latent, state["state.stoch"], noise):
            worst["ties"] += 1
            continue
        _widen(worst, "action", a, b)
        _widen(worst, "deter", mine.policy.latent.deter.numpy(), state["state.deter"])
        if score is not None and other is not None:
            _widen(worst, "score", score.value / score.threshold, other.value / other.threshold)
    return worst | {"free_median": float(np.median(drift)), "free_max": float(np.max(drift))}


def _as_theirs(blank: Mind, state: dict[str, np.ndarray]) -> Mind:
    """The export's memory as the agent's own state."""
    latent = LatentState(
        *(torch.from_numpy(state[f"state.{n}"].copy()) for n in ("deter", "stoch"))
    )
    action = torch.from_numpy(state["state.action"].copy())
    start = f"state.{MEMORY}"
    memory = {
        name.removeprefix(start): torch.from_numpy(value.copy())
        for name, value in state.items()
        if name.startswith(start)
    }
    return Mind(blank.policy._replace(latent=latent, action=action), memory)


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
    env = make_env(policy.env, seed=0)
    seen: list[dict[str, np.ndarray]] = []
    first: list[bool] = []
    try:
        obs, state = env.reset()[0], None
        for _ in range(steps):
            seen.append({key: np.asarray(obs[key])[None].copy() for key in policy.spec.seen})
            first.append(state is None)
            action, state = policy.act({key: obs[key] for key in policy.spec.seen}, state)
            obs, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                obs, state = env.reset()[0], None
    finally:
        env.close()
    return seen, np.array(first)


def _tied(model: Any, obs: Any, latent: Any, other: np.ndarray, noise: np.ndarray | None) -> bool:
    """Whether latents differ, and only in groups where both choices were as good as equal."""
    ours = latent.stoch.numpy()[0]
    differ = np.flatnonzero(np.abs(ours - other[0]).max(-1) > 0.5)
    if model.core.gaussian or not len(differ):
        return False
    with torch.inference_mode():
        embed = model.encoder({key: torch.from_numpy(value) for key, value in obs.items()})
        params = model.core.post_out(model.core.post_in(torch.cat([latent.deter, embed], -1)))
        dist = model.core.dist(params.unflatten(-1, (model.core.groups, -1)))
        race = dist.probs[0].numpy() / (1.0 if noise is None else noise[0])
    mine, theirs = (race * ours).sum(-1)[differ], (race * other[0]).sum(-1)[differ]
    return bool((np.abs(mine - theirs) <= TIE * mine).all())


@contextmanager
def _reproducible(core: Any, drawing: bool, seed: int) -> Iterator[None]:
    """The same random numbers each time; or, without drawing, the likeliest latents."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not drawing:
            core.sample = lambda params: drawn(core, params, None)
        try:
            yield
        finally:
            core.__dict__.pop("sample", None)


def _noise(core: Any) -> np.ndarray:
    empty = torch.empty(1, core.groups, core.classes)
    return (empty.normal_() if core.gaussian else exponential_(empty)).numpy()


@contextmanager
def _given(engine: ExportEngine, noise: np.ndarray | None) -> Iterator[None]:
    """For one step the engine takes this noise instead of drawing its own."""
    if noise is not None:
        engine._noise = lambda batch_size: noise  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.__dict__.pop("_noise", None)


def _widen(worst: dict[str, float], name: str, a: Any, b: Any) -> None:
    with np.errstate(invalid="ignore"):
        difference = float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max())
    # A NaN on one side alone is as far off as can be.
    difference = np.inf if not np.isfinite(difference) else difference
    worst[name] = max(worst.get(name, 0.0), difference)
