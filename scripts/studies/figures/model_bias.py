"""What a policy believes that it earns, and what it earns: MBPO on Pendulum-v1, three worlds.

A policy that learns in a world finds the world's mistakes. Imagined: the return that the policy's
mode is promised in its own world, over 100 steps from states of the replay. Real: what the true
equations pay for the same, from the same states. The distance is the model's bias.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.mbpo import MBPO, MBPOConfig
from agents.rollouts import RolloutConfig
from agents.run.collect import Collector
from agents.sac import SACConfig
from scripts.studies.figures.job import Job, draw_panels
from worldmodel import plots, progress
from worldmodel.adam import AdamConfig
from worldmodel.envs import EnvConfig, env_spec, make_vector
from worldmodel.models.fitting import FitConfig
from worldmodel.models.gaussian import GaussianConfig
from worldmodel.models.oracle import Pendulum
from worldmodel.plots import COLOURS, Curve
from worldmodel.replay import Replay, ReplayConfig

STEPS, EVERY, UPDATES, PREFILL, HORIZON, STARTS = 2000, 200, 4, 200, 100, 30
WORST = -16.3 * HORIZON  # of Pendulum-v1
ENSEMBLE = GaussianConfig(
    members=5, elites=3, layers=2, units=64, decay=[1e-5], terminal="never", particles="ts1",
    fit=FitConfig(lr=3e-3, batch_size=32, epochs=60, patience=10),  # as agent=mbpo
)  # fmt: skip
ROLLOUTS = RolloutConfig(every=EVERY, starts=1000, schedule=[0, 1, 5, 5])
# name -> world, rollouts
VARIANTS = {
    "one network, no noise": (
        replace(ENSEMBLE, members=1, elites=1, probabilistic=False), ROLLOUTS,
    ),
    "ensemble": (ENSEMBLE, ROLLOUTS),
    "ensemble, pessimistic": (
        replace(ENSEMBLE, doubt="largest"), replace(ROLLOUTS, pessimism=1.0),
    ),
}  # fmt: skip


def promised(world: Any, agent: MBPO, values: Tensor) -> float:
    """The median return of the policy's mode over HORIZON steps from values [B, 3], in a world:
    one path of thirty that leaves all that was ever seen may earn -1e11 in a learned one."""
    obs = {"state": values}
    nothing = torch.zeros(len(values), 1)
    state = world.observe(world.initial(len(values)), obs, nothing, torch.ones(len(values)).bool())
    total = torch.zeros(len(values))
    with torch.no_grad():
        for _ in range(HORIZON):
            action = agent.learner.judge(world.decode(state)).prior.mode()
            state, reward, _ = world.step(state, action)
            total += reward
    return float(total.median())


def measure(name: str, seed: int, steps: int) -> list[tuple[float, float]]:
    """(imagined, real) at every EVERY steps after the first PREFILL."""
    model, rollouts = VARIANTS[name]
    torch.manual_seed(seed)
    envs = make_vector(EnvConfig("Pendulum-v1", pixels=False), 1, seed)
    spec = env_spec(envs)
    sac = SACConfig(units=64, optim=AdamConfig(lr=1e-3))
    config = MBPOConfig(batch_size=128, model=model, rollouts=rollouts, sac=sac)
    agent = MBPO(spec, config, torch.device("cpu"))
    replay = Replay(spec, ReplayConfig(capacity=2 * steps), 1, seed=seed)
    collector, found = Collector(envs, spec, agent, seed), []
    for step in range(1, steps + 1):
        collector.step(replay, explore=step <= PREFILL)
        if step <= PREFILL:
            continue
        for _ in range(UPDATES):
            agent.update(replay)
        if step % EVERY == 0:
            values = replay.transitions(STARTS).obs["state"]
            with agent.stream:  # a world's draws
                imagined = promised(agent.model, agent, values)
            found.append((imagined, promised(Pendulum(), agent, values)))
    envs.close()
    return found


def make(job: Job) -> None:
    """Train all, draw what they believe and what is true."""
    seeds, steps = job.seeds(3), 2 * PREFILL if job.quick else STEPS
    x = np.arange(PREFILL + EVERY, steps + 1, EVERY)
    panels: dict[str, list[Curve]] = {
        "return of 100 steps: imagined (dashed), real": [],
        "bias": [],
    }
    returns, bias = panels.values()
    for name, colour in zip(VARIANTS, COLOURS, strict=False):
        runs = [measure(name, seed, steps) for seed in progress.each(seeds, "runs")]
        imagined, real = np.moveaxis(np.array(runs), -1, 0)
        returns.append(plots.mean_curve(name, x, real, colour=colour))
        returns.append(plots.mean_curve("", x, imagined, colour=colour, style="--"))
        bias.append(plots.mean_curve(name, x, imagined - real, colour=colour))
        job.say(
            f"  {name}: at the end imagined {imagined[:, -1].mean():.0f}, real "
            f"{real[:, -1].mean():.0f}; bias over all {np.abs(imagined - real).mean():.0f}"
        )
    made, axes = draw_panels(panels, [("real steps", "return"), ("real steps", "imagined - real")])
    # A world that is left earns anything: the picture ends where real returns do.
    axes[0].set_ylim(WORST, 50)
    axes[1].set_ylim(WORST / 2, -WORST / 4)
    axes[1].axhline(0, color="#888888", linewidth=0.9, linestyle=":")
    job.save(made, panels, "MBPO on Pendulum-v1, paths of 5 steps; mean and 95% band,")
