"""Six worlds that say how sure they are, on a pendulum with noise: are they right about it?

Each learns from the same steps, of a pendulum that hangs and is pushed gently. Then: how often do
predicted intervals hold what happens; do imagined futures spread as far as they err; does the
uncertainty tell states that were never seen; and a fan of futures around what really happened.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.studies.figures.job import Job, draw_panels
from worldmodel import plots, progress
from worldmodel.models import calibration
from worldmodel.models.fitting import FitConfig
from worldmodel.models.gaussian import Gaussian, GaussianConfig
from worldmodel.models.oracle import Motion, Pendulum
from worldmodel.models.vectors import Rows
from worldmodel.plots import COLOURS, Curve

ROWS, HORIZON, STARTS, PARTICLES, NOISE = 600, 25, 40, 60, 0.15
KINDS = ("ensemble", "dropout", "priors", "evidential", "process", "linear")
COLOUR = dict(zip(KINDS, COLOURS, strict=False))


class Lab:
    """A pendulum whose speed is knocked at random at every step. seed: of everything it draws."""

    def __init__(self, seed: int) -> None:
        self.world, self.rng = Pendulum(), torch.Generator().manual_seed(seed)

    def starts(self, count: int, outside: bool) -> Tensor:
        """Motions [N, 2]: hanging and slow, or anywhere above the pivot and fast."""
        draw = 2 * torch.rand(count, 2, generator=self.rng) - 1
        if outside:
            return draw * torch.tensor([1.0, 1.5]) + torch.tensor([0.0, 5.5])
        return draw * torch.tensor([1.2, 2.0]) + torch.tensor([torch.pi, 0.0])

    def step(self, motion: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The next motion and the reward."""
        new, reward, _ = self.world.step(Motion(motion), action)
        knock = NOISE * torch.randn(len(motion), generator=self.rng)
        return new.values + torch.stack([0.05 * knock, knock], -1), reward

    def seen(self, motion: Tensor) -> Tensor:
        """What is observed: cosine, sine, speed."""
        return self.world.feat(Motion(motion))

    def live(self, motion: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gentle pushes that last: values [N, steps + 1, 3], actions [N, steps, 1], rewards."""
        push = torch.randn(len(motion), steps, 1, generator=self.rng)
        actions = (0.3 * push.cumsum(1)).sin() * 0.4
        values, rewards = [self.seen(motion)], []
        for step in range(steps):
            motion, reward = self.step(motion, actions[:, step])
            values.append(self.seen(motion))
            rewards.append(reward)
        return torch.stack(values, 1), actions, torch.stack(rewards, 1)

    def rows(self, count: int, outside: bool = False) -> Rows:
        """So many steps, of short lives."""
        length = 1 if outside else 10
        values, actions, rewards = self.live(self.starts(-(-count // length), outside), length)
        flat = values[:, :-1].flatten(0, 1), actions.flatten(0, 1), rewards.flatten()
        return Rows(*flat, torch.ones(len(flat[2])), values[:, 1:].flatten(0, 1)).at(
            torch.arange(count)
        )


def trained(kind: str, rows: Rows, seed: int, quick: bool) -> Gaussian:
    """A world of one kind that learned from these rows."""
    torch.manual_seed(seed)
    fit = FitConfig(lr=3e-3, batch_size=64, epochs=2 if quick else 120, patience=20)
    many = 10 if kind == "dropout" else 5
    config = GaussianConfig(
        kind=kind, members=many, elites=many, layers=2, units=64, decay=[1e-5], reward="pendulum",
        terminal="never", prior_scale=1.0, fit=fit,
    )  # fmt: skip
    world = Gaussian(Pendulum.spec, config)
    world.fit_rows(rows)
    return world


def measure(kind: str, seed: int, quick: bool) -> tuple[dict[str, np.ndarray], Any]:
    """Numbers of one kind and seed, and a fan: its imagined futures and the real one."""
    lab = Lab(seed)
    rows, held = lab.rows(60 if quick else ROWS), lab.rows(400)
    world = trained(kind, rows, seed, quick)
    report = calibration.step_report(world, held, lab.rows(400, outside=True))
    values, actions, _ = lab.live(lab.starts(STARTS, False), HORIZON)
    imagined = calibration.futures(world, values[:, 0], actions, PARTICLES)
    unit = held.values.std(0)
    spread, error = calibration.spread_and_error(imagined, values[:, 1:], unit)
    numbers = {
        "coverage": np.array(report.coverage), "spread": spread.numpy(), "error": error.numpy(),
        "steps": np.array([report.mse, report.nll, report.auroc]),
    }  # fmt: skip
    return numbers, (imagined[:, 0, :, 2], values[0, 1:, 2])


def fan(imagined: Tensor, real: Tensor, colour: str) -> list[Curve]:
    """Bands of futures [P, H] and what really happened [H]."""
    x = np.arange(1, len(real) + 1)
    middle = imagined.median(0).values.numpy()
    shares = calibration.SHARES[::-1]
    edges = reversed(calibration.bands(imagined))
    names = [f"{', '.join(f'{share:.0%}' for share in shares)} of futures", "", ""]
    curves = [
        Curve(name, x, middle, low.numpy(), high.numpy(), colour)
        for name, (low, high) in zip(names, edges, strict=True)
    ]
    return [*curves, Curve("what happened", x, real.numpy(), colour="#000000")]


def make(job: Job) -> None:
    """Train all kinds, draw what they know of themselves, and say their numbers."""
    seeds, x = job.seeds(5), np.arange(1, HORIZON + 1)
    found: dict[str, list[dict[str, np.ndarray]]] = {kind: [] for kind in KINDS}
    fans: dict[str, Any] = {}
    for seed in progress.each(seeds, "runs"):
        for kind in KINDS:
            numbers, one = measure(kind, seed, job.quick)
            found[kind].append(numbers)
            fans.setdefault(kind, one)
    wanted = np.array(calibration.SHARES)
    panels: dict[str, list[Curve]] = {
        "coverage": [Curve("wanted", wanted, wanted, colour="#888888", style=":")],
        "futures: error (line), spread (dashed)": [],
    }
    coverage, horizon = panels.values()
    for kind in KINDS:
        runs = {name: np.stack([one[name] for one in found[kind]]) for name in found[kind][0]}
        colour = COLOUR[kind]
        coverage.append(plots.mean_curve(kind, wanted, runs["coverage"], colour=colour))
        horizon.append(plots.mean_curve(kind, x, runs["error"], colour=colour))
        horizon.append(plots.mean_curve("", x, runs["spread"], colour=colour, style="--"))
        mse, nll, auroc = runs["steps"].mean(0)
        shares = ", ".join(f"{v:.0%}" for v in runs["coverage"].mean(0))
        job.say(
            f"  {kind}: squared error {mse:.4f}, {nll:.2f} nats, 50/80/95% hold {shares}, AUROC "
            f"{auroc:.2f}, after {HORIZON} steps error {runs['error'].mean(0)[-1]:.2f} and spread "
            f"{runs['spread'].mean(0)[-1]:.2f}"
        )
    made, axes = draw_panels(
        panels, [("share that should be held", "share that is"), ("steps ahead", "deviations")]
    )
    axes[1].set_yscale("log")
    note = f"A pendulum with noise, {ROWS} steps of it; mean and 95% band,"
    job.save(made, panels, note)
    _save_fans(job, fans)


def _save_fans(job: Job, fans: dict[str, Any]) -> None:
    """The fans of all kinds beside each other, under a name of their own."""
    panels = {kind: fan(one[0], one[1], COLOUR[kind]) for kind, one in fans.items()}
    made, axes = plots.figure(3, 2, width=4.0, height=2.9)
    for panel, (kind, curves) in zip(axes.flatten(), panels.items(), strict=True):
        plots.draw(panel, curves, kind, "steps ahead", "speed, rad/s")
        panel.legend(fontsize=7)
        panel.set_ylim(*(1.4 * np.array([-1, 1]) * np.abs(curves[-1].y).max()))
    plots.caption(
        made, f"Speed of a pendulum as imagined and as it was, first of {job.seeds_text}."
    )
    job.files.append(plots.save(made, job.path("png", "fan")))
    also = {"seeds": job.seeds_text}
    job.files.append(plots.write_curves(job.path("csv", "fan"), panels, also))
