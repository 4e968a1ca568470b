"""How honest a model's dreams are: error against horizon, and promises against what came."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.dreams.episodes import Windows
from agents.dreams.page import Picture, Section
from agents.dreams.settings import HEADLINE_STEP
from worldmodel import dream, plots
from worldmodel.dream import metrics
from worldmodel.types import Batch, EnvSpec

CHUNK = 32  # windows dreamt at once, which bounds the memory for their images
MODEL, REPEATED = "model", "last one repeated"


@dataclass(frozen=True)
class Honesty:
    """errors: {what: {who: [N, H]}} over N starts and the horizon 1 ... H, who being the model
    or the baseline that repeats what came last. imagined, real: discounted returns [N]."""

    errors: dict[str, dict[str, np.ndarray]]
    imagined: np.ndarray
    real: np.ndarray

    @property
    def calibration(self) -> metrics.Calibration:
        """Whether what was promised is what came."""
        return metrics.calibration(self.imagined, self.real)

    def headline(self) -> dict[str, Any]:
        """Mean squared error of the first observation at HEADLINE_STEP steps (or the last), the
        baseline's, and how many times less the model's is; the means are over all starts."""
        what = next((name for name in self.errors if name.endswith("MSE")), None)
        if what is None:
            return {}
        found = self.errors[what]
        step = min(HEADLINE_STEP, found[MODEL].shape[1])
        ours, theirs = (float(found[who][:, step - 1].mean()) for who in (MODEL, REPEATED))
        ratio = theirs / ours if ours > 0 else float("inf")
        return {"what": what, "step": step, "model": ours, "repeated": theirs, "ratio": ratio}


def measure(model: Any, spec: EnvSpec, found: Windows, context: int) -> Honesty:
    """Dream from every window and compare."""
    parts = [
        _compare(model, spec, dream.cut(found.batch, slice(i, i + CHUNK), slice(None)), context)
        for i in range(0, found.batch.shape[0], CHUNK)
    ]
    errors = {
        what: {who: np.concatenate([p.errors[what][who] for p in parts]) for who in curves}
        for what, curves in parts[0].errors.items()
    }
    imagined, real = (np.concatenate([getattr(p, n) for p in parts]) for n in ("imagined", "real"))
    return Honesty(errors, imagined, real)


def _compare(model: Any, spec: EnvSpec, batch: Batch, context: int) -> Honesty:
    batch = batch.to(dream.device_of(model))
    loop = dream.open_loop(model, batch, context, surprise=True)
    errors: dict[str, dict[str, torch.Tensor]] = {}
    images = [key for key in spec.keys("image") if key in loop.shown]
    if images:
        pairs = [(batch.obs[key].float() / 255, loop.shown[key]) for key in images]
        errors["Image MSE"] = _both(metrics.mse, pairs, context)
        if min(min(spec.obs[key].shape[:2]) for key in images) >= metrics.WINDOW:
            errors["Image SSIM"] = _both(metrics.ssim, pairs, context)
    for key in [*spec.keys("vector"), *spec.keys("discrete")]:
        if key in loop.shown:
            errors[f"{key} MSE"] = _both(metrics.mse, [(batch.obs[key], loop.shown[key])], context)
    reward = _recorded(model, batch)
    lives = 1.0 - batch.is_terminal.float()
    goes_on = dream.goes_on(model, loop.cont)
    for what, truth, ours in (("Reward", reward, loop.reward), ("Continue", lives, goes_on)):
        errors[f"{what} error"] = _both(lambda a, b: (a - b).abs(), [(truth, ours)], context)
    if loop.surprise is not None:
        errors["Latent KL"] = {MODEL: loop.surprise[:, context:]}
    discount = getattr(model, "discount", 1.0)
    return Honesty(
        {k: {w: v.double().cpu().numpy() for w, v in c.items()} for k, c in errors.items()},
        metrics.discounted(loop.reward[:, context:], loop.cont[:, context:]).cpu().numpy(),
        metrics.discounted(reward[:, context:], discount * lives[:, context:]).cpu().numpy(),
    )


@torch.no_grad()
def _recorded(model: Any, batch: Batch) -> torch.Tensor:
    """What the model's reward predicts, as it was recorded [B, T]."""
    recorded = getattr(model, "recorded_reward", None)
    if recorded is None:
        return batch.reward
    found: torch.Tensor = recorded(batch, dream.follow(model, batch))
    return found


def _both(
    measured: Any, pairs: list[tuple[torch.Tensor, torch.Tensor]], context: int
) -> dict[str, torch.Tensor]:
    """A measure of the model and of the baseline, each the mean over pairs of truth and
    prediction, [N, H]."""
    ours, theirs = [], []
    for truth, predicted in pairs:
        after, last = truth[:, context:], truth[:, context - 1 : context]
        ours.append(measured(after, predicted[:, context:]))
        theirs.append(measured(after, last.expand_as(after)))
    return {MODEL: torch.stack(ours).mean(0), REPEATED: torch.stack(theirs).mean(0)}


WORDS = {
    "Image MSE": "Mean squared error of the pixels, which lie in [0, 1]. Lower is better.",
    "Image SSIM": "Structural similarity; 1 is the same picture. Higher is better.",
    "Reward error": "Absolute error of the reward of each step.",
    "Continue error": "Absolute error of the probability that the episode goes on.",
    "Latent KL": "What the real frame would have told the dreaming model beyond its own "
    "prediction, in nats: KL of the posterior from the prior at the dreamt state.",
}


def draw(result: Honesty, about: str, horizon: int, folder: Path, name: str) -> Section:
    """The honesty section, its plots and tables written to files that begin with `name`; about:
    which episodes they are measured on."""
    pictures = []
    for what, values in result.errors.items():
        curves = [metrics.band(who, found) for who, found in values.items()]
        path = folder / f"{name}_{what.lower().replace(' ', '_')}.png"
        figure, axes = plots.figure()
        unit = "KL (nats)" if what == "Latent KL" else what
        plots.draw(axes[0][0], curves, what, "imagined steps", unit)
        plots.save(figure, path)
        plots.write_curves(path.with_suffix(".csv"), {what: curves})
        words = WORDS.get(what, "Mean squared error, in the vector's own units.")
        alt = f"{what} against the horizon, 1 to {horizon} imagined steps"
        pictures.append(Picture(path, alt, words))
    pictures.append(_promises(result, horizon, folder / f"{name}_return.png"))
    text = [
        f"Measured on {about}: at {len(result.real)} moments, evenly spread over them. Each time "
        "the model has followed the episode from its beginning, sees the frame of that moment, and "
        f"then imagines {horizon} steps with the actions that were really taken. Lines are medians "
        "over the moments, bands hold the middle 80% (10th to 90th percentile). The baseline "
        "repeats what came last.",
    ]
    if "policy" in about:
        text.append(
            "An agent that holds an unstable system still makes the baseline nearly perfect, "
            "and every open-loop prediction hopeless: the smallest error grows, and the recorded "
            "actions do not answer it. Random actions ask about the world alone."
        )
    return Section(f"How honest the dreams are: {about.split(',')[0]}", text, pictures)


def _promises(result: Honesty, horizon: int, path: Path) -> Picture:
    """Imagined against real returns, as a scatter plot and a table."""
    figure, axes = plots.figure()
    panel = axes[0][0]
    panel.scatter(result.imagined, result.real, s=12, alpha=0.6, color=plots.COLOURS[0])
    both = np.concatenate([result.imagined, result.real])
    ends = np.array([both.min(), both.max()])
    panel.plot(ends, ends, color="0.5", linestyle="--", linewidth=1, label="honest")
    fit = result.calibration
    if np.isfinite(fit.slope):
        span = np.array([result.imagined.min(), result.imagined.max()])
        label = f"fit: slope {fit.slope:.2f}, r {fit.correlation:.2f}"
        panel.plot(span, fit.slope * span + fit.intercept, color=plots.COLOURS[1], label=label)
    panel.set_title("Return")
    panel.set_xlabel("imagined")
    panel.set_ylabel("real")
    panel.legend()
    plots.save(figure, path)
    rows = list(zip(result.imagined.tolist(), result.real.tolist(), strict=True))
    plots.write_table(path.with_suffix(".csv"), ("imagined", "real"), rows)
    words = (
        f"Discounted return over {horizon} steps, promised in the dream and received in "
        "the episode, for the same actions and with the model's discount."
    )
    return Picture(path, "Imagined against real return of every moment", words)
