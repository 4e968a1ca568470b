"""How honest a model's dreams are: error against horizon, and promises against what came; and the
figures and sentences that say it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.apps.dreams.episodes import Windows
from agents.apps.dreams.page import Picture, Section
from worldmodel import dream, plots, progress, tree
from worldmodel.capabilities import Relabels
from worldmodel.dream import OpenLoop, metrics
from worldmodel.types import Batch, EnvSpec

HEADLINE_STEP = 20  # open-loop steps at which the one number is taken
CHUNK = 32  # windows dreamt at once, which bounds the memory for their images
ONE, MEAN, REPEATED = "one dream", "mean of its dreams", "last one repeated"
AVERAGE = "mean of all frames"


@dataclass(frozen=True)
class Honesty:
    """errors: {what: {who: [N, H]}} over N starts and the horizon 1 ... H, who being one dream of
    the model, the mean of several (its expectation), or a baseline: what came last, repeated, and
    for observations the mean over all rows of all starts.
    imagined, real: discounted returns [N]."""

    errors: dict[str, dict[str, np.ndarray]]
    imagined: np.ndarray
    real: np.ndarray

    @property
    def calibration(self) -> metrics.Calibration:
        """Whether what was promised is what came."""
        return metrics.calibration(self.imagined, self.real)

    def headline(self) -> dict[str, Any]:
        """Mean squared error of the first observation at HEADLINE_STEP steps (or the last): of
        the model's expectation, of one dream, and of the baselines; how many times less than that
        of what is repeated the model's are, and its expectation's than that of the mean of all
        frames. The means are over all starts."""
        what = next((name for name in self.errors if name.endswith("MSE")), None)
        if what is None:
            return {}
        found = self.errors[what]
        step = min(HEADLINE_STEP, found[ONE].shape[1])
        one, repeated, average = (
            float(found[who][:, step - 1].mean()) for who in (ONE, REPEATED, AVERAGE)
        )
        model = float(found[MEAN][:, step - 1].mean()) if MEAN in found else one

        def times_less(error: float, base: float = repeated) -> float:
            return base / error if error > 0 else float("inf")

        return {
            "what": what, "step": step, "model": model, "one_dream": one, "repeated": repeated,
            "ratio": times_less(model), "ratio_of_one_dream": times_less(one),
            "average": average, "ratio_to_average": times_less(model, average),
        }  # fmt: skip


def measure(model: Any, spec: EnvSpec, found: Windows, context: int, dreams: int = 1) -> Honesty:
    """Dream `dreams` times from every window and compare."""
    rows = found.batch.shape[0]
    average = {k: v.mean((0, 1), dtype=torch.float32) for k, v in found.batch.obs.items()}
    parts = [
        _compare(model, spec, found, slice(i, i + CHUNK), context, dreams, average)
        for i in progress.each(range(0, rows, CHUNK), "dreaming, batch")
    ]
    errors = {
        what: {who: np.concatenate([p.errors[what][who] for p in parts]) for who in curves}
        for what, curves in parts[0].errors.items()
    }
    imagined, real = (np.concatenate([getattr(p, n) for p in parts]) for n in ("imagined", "real"))
    return Honesty(errors, imagined, real)


def _compare(
    model: Any,
    spec: EnvSpec,
    found: Windows,
    which: slice,
    context: int,
    dreams: int,
    average: dict[str, Tensor],
) -> Honesty:
    batch = dream.cut(found.batch, which, slice(None)).to(dream.device_of(model))
    start = tree.map(lambda x: x[which], found.start)
    one = dream.open_loop(model, batch, context, surprise=True, start=start)
    loops = {ONE: one}
    if dreams > 1:
        loops[MEAN] = dream.open_loop(model, batch, context, dreams=dreams, start=start)
    unit = {key: 255 if spec.obs[key].kind == "image" else 1 for key in one.shown}
    still = {k: (average[k].to(v) / unit[k]).expand_as(v) for k, v in one.shown.items()}
    questions = _questions(model, spec, batch, one)
    errors: dict[str, dict[str, Tensor]] = {}
    for what, (measured, truths, guesses) in questions.items():
        errors[what] = {
            who: _error(measured, truths, guesses(loop), context) for who, loop in loops.items()
        }
        last = [truth[:, context - 1 : context].expand_as(truth) for truth in truths]
        errors[what][REPEATED] = _error(measured, truths, last, context)
        if what.endswith(("MSE", "SSIM")):
            guess = guesses(one._replace(shown=still))
            errors[what][AVERAGE] = _error(measured, truths, guess, context)
    if one.surprise is not None:
        errors["Latent KL"] = {ONE: one.surprise[:, context:]}
    (reward,), (lives,) = questions["Reward error"].truths, questions["Continue error"].truths
    discount = model.discount
    promised = loops.get(MEAN, one)
    return Honesty(
        {k: {w: v.double().cpu().numpy() for w, v in c.items()} for k, c in errors.items()},
        metrics.discounted(promised.reward[:, context:], discount * promised.cont[:, context:])
        .cpu()
        .numpy(),
        metrics.discounted(reward[:, context:], discount * lives[:, context:]).cpu().numpy(),
    )


class Question(NamedTuple):
    """What is measured: truths, and what a dream says of each."""

    measured: Callable[[Tensor, Tensor], Tensor]
    truths: list[Tensor]
    guesses: Callable[[OpenLoop], list[Tensor]]


def _questions(model: Any, spec: EnvSpec, batch: Batch, shown: OpenLoop) -> dict[str, Question]:
    found: dict[str, Question] = {}
    images = [key for key in spec.keys("image") if key in shown.shown]
    if images:
        truths = [batch.obs[key].float() / 255 for key in images]
        found["Image MSE"] = Question(metrics.mse, truths, lambda d: [d.shown[k] for k in images])
        if min(min(spec.obs[key].shape[:2]) for key in images) >= metrics.WINDOW:
            found["Image SSIM"] = found["Image MSE"]._replace(measured=metrics.ssim)
    for key in [*spec.keys("vector"), *spec.keys("discrete")]:
        if key in shown.shown:
            found[f"{key} MSE"] = Question(metrics.mse, [batch.obs[key]], partial(_of, key))
    lives = 1.0 - batch.is_terminal.float()
    found["Reward error"] = Question(_apart, [_recorded(model, batch)], lambda d: [d.reward])
    found["Continue error"] = Question(_apart, [lives], lambda d: [d.cont])
    return found


def _of(key: str, loop: OpenLoop) -> list[Tensor]:
    return [loop.shown[key]]


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs()


@torch.no_grad()
def _recorded(model: Any, batch: Batch) -> torch.Tensor:
    """What the model's reward predicts, as it was recorded [B, T]."""
    if not isinstance(model, Relabels):
        return batch.reward
    return model.recorded_reward(batch, dream.follow(model, batch))


def _error(
    measured: Callable[[Tensor, Tensor], Tensor],
    truths: list[Tensor],
    guesses: list[Tensor],
    context: int,
) -> Tensor:
    """A measure [N, H] after the context, the mean over pairs of truth and guess."""
    pairs = zip(truths, guesses, strict=True)
    return torch.stack([measured(t[:, context:], g[:, context:]) for t, g in pairs]).mean(0)


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
        f"then imagines {horizon} steps with the actions that were really taken. What the model "
        "expects is the mean of several dreams; of squared error that has the least. Lines are "
        "medians over the moments, bands hold the middle 80% (10th to 90th percentile). One "
        "baseline repeats what came last, which is good where little moves; the other always shows "
        "the mean of all frames, which is good where the frames are much alike.",
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


def figures(result: Honesty) -> dict[str, Any]:
    """Plain values for JSON, null where there is no number: the headline, the calibration of
    returns, and the mean over the starts of every curve."""
    fit = result.calibration._asdict()
    curves = {
        what: {who: found.mean(0).tolist() for who, found in values.items()}
        for what, values in result.errors.items()
    }
    return {
        "starts_used": len(result.real),
        "steps_imagined": next(iter(result.errors.values()))[ONE].shape[1],
        "headline": {k: _finite(v) for k, v in result.headline().items()},
        "return": {name: _finite(value) for name, value in fit.items()},
        "mean_errors": curves,
    }


def parts(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The figures of each kind of episodes that were measured."""
    return [part for part in (summary, summary["under_random_actions"]) if part is not None]


def headline(summary: Mapping[str, Any]) -> str:
    """The one number: how much better than repeating the last frame."""
    found = summary["headline"]
    if not found:
        return "Nothing that the model sees can be decoded, so there is no error to compare."
    words = (
        f"After {found['step']} open-loop steps the {found['what']} of what the model expects is "
        f"{found['model']:.3g}, that of repeating what came last {found['repeated']:.3g}"
    )
    if found["ratio"] is not None:
        verdict = "better" if round(found["ratio"], 2) > 1 else "no better"  # as it is printed
        words += f": a ratio of {found['ratio']:.2f}, {verdict} than not predicting at all"
    if found["ratio_of_one_dream"] not in (None, found["ratio"]):
        words += f"; of one dream alone {found['ratio_of_one_dream']:.2f}"
    words += f"; that of always showing the mean of all frames {found['average']:.3g}"
    if found["ratio_to_average"] is not None:
        words += f", a ratio of {found['ratio_to_average']:.2f}"
    return f"{words} (means over {summary['starts_used']} starts)."


def headlines(summary: Mapping[str, Any]) -> list[str]:
    """The headline of each kind of episodes, and what became of its promises."""
    return [f"{part['episodes_are']}. {headline(part)} {promises(part)}" for part in parts(summary)]


def promises(summary: Mapping[str, Any]) -> str:
    """Whether imagined returns come true."""
    fit = summary["return"]
    if fit["correlation"] is None:
        return f"Returns of one side do not vary: no slope to speak of; bias {fit['bias']:.3g}."
    return (
        f"Imagined against real return over {summary['steps_imagined']} steps: correlation "
        f"{fit['correlation']:.2f}, slope {fit['slope']:.2f}, bias {fit['bias']:.3g}."
    )


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table at the top of the page."""
    rows = [
        ("Run", str(summary["run"])),
        ("Dreams", f"{summary['context']} frames seen, then {summary['horizon']} imagined"),
        ("Seed", str(summary["seed"])),
    ]
    return rows + [("Note", text) for text in summary["left_out"]]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
