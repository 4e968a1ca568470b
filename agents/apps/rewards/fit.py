"""Fit a head on the latents of a frozen model, and measure how far it can be believed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from agents.apps.rewards.experience import Experience
from agents.apps.rewards.latents import Latents
from agents.apps.rewards.split import Examples
from worldmodel.config import RunError
from worldmodel.optim import LaProp, OptimConfig
from worldmodel.rssm import Head, HeadConfig

Said = Callable[[str], None]
AHEAD = (1, 5, 10, 15)  # steps into a dream at which rewards are compared with the truth
STARTS = 512  # dreams for that comparison
PREDICT = 4096  # rows predicted together
QUARTERS = 4  # words of progress


def new_head(model: Any, kind: str, layers: int, seed: int) -> Head:
    """An untrained head that fits the model's states; it predicts 0 everywhere."""
    torch.manual_seed(seed)
    units, bins = model.config.units, model.config.bins
    config = HeadConfig(target="", kind=kind, layers=layers, outscale=0.0, trains_latent=False)
    return Head(config, model.feat_size, units, bins).to(next(model.parameters()).device)


def train(
    head: Head,
    updates: int,
    lr: float,
    loss: Callable[[np.random.Generator], Tensor],
    seed: int,
    say: Said,
) -> float:
    """`updates` gradient steps on what `loss` draws; the mean loss of the last tenth.

    Raises RunError where it is not finite.
    """
    rng = np.random.default_rng(seed)
    warmup = max(1, updates // 20)
    optim = LaProp([("head", head)], OptimConfig(lr=lr, warmup=warmup, anneal=updates))
    head.requires_grad_(True)
    began, losses = time.monotonic(), []
    for done in range(1, updates + 1):
        value = loss(rng)
        try:
            optim.step(value)
        except FloatingPointError as error:
            raise RunError(f"Fitting diverged at update {done}: {error} Lower lr.") from error
        losses.append(value.detach())
        if done * QUARTERS // updates > (done - 1) * QUARTERS // updates:
            recent = float(torch.stack(losses[-max(1, updates // 10) :]).mean())
            say(
                f"  update {done:,} of {updates:,}: loss {recent:.4g}, "
                f"{time.monotonic() - began:.1f} s"
            )
    head.requires_grad_(False)
    return recent


def regression(
    head: Head, latents: Latents, examples: Examples, batch: int, dropout: float
) -> Callable[[np.random.Generator], Tensor]:
    """The loss of a batch of labelled rows, drawn with a generator from those not held out.

    A mse head learns labels of mean 0 and deviation 1, whatever their unit; see `unit_of`.
    """
    rows = rows_of(latents, examples)
    mean, deviation = unit_of(head, examples)
    target = torch.from_numpy((examples.value - mean) / deviation).float()
    taught = np.flatnonzero(~examples.held_out)
    device = next(head.parameters()).device

    def loss(rng: np.random.Generator) -> Tensor:
        picks = rng.choice(taught, batch)
        feat = F.dropout(latents.feat(rows[picks]).to(device), dropout)
        return head.loss(feat, target[picks].to(device)).mean()

    return loss


def unit_of(head: Head, examples: Examples) -> tuple[float, float]:
    """What a label of 0, and one more than that, is worth while the head learns: mean and
    deviation of those not held out for a mse head, whose steps are of one size; 0 and 1 for the
    others, which know what they predict."""
    if head.config.kind != "mse":
        return 0.0, 1.0
    taught = examples.value[~examples.held_out]
    return float(taught.mean()), float(taught.std()) or 1.0


@torch.no_grad()
def rescale(head: Head, mean: float, deviation: float) -> None:
    """Make a mse head predict mean + deviation times what it predicted."""
    head.out.weight.mul_(deviation)
    head.out.bias.mul_(deviation).add_(mean)


def rows_of(latents: Latents, examples: Examples) -> np.ndarray:
    """The rows [N] of the latents that the examples label."""
    first = np.array([latents.first[int(number)] for number in examples.episode], np.int64)
    return first + examples.step


@torch.no_grad()
def predicted(head: Head, latents: Latents, rows: np.ndarray) -> np.ndarray:
    """What the head says of rows [N], float64 [N]."""
    device = next(head.parameters()).device
    parts = [
        head.predict(latents.feat(rows[i : i + PREDICT]).to(device)).double().cpu().numpy()
        for i in range(0, len(rows), PREDICT)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def errors(predicted: np.ndarray, truth: np.ndarray, constant: float) -> dict[str, float]:
    """Mean absolute and root mean squared error of predictions [N], the same of a constant, and
    r2 = 1 - squared error / squared error of the constant (NaN where the constant is perfect)."""
    off, base = predicted - truth, constant - truth
    square = float((base**2).mean())
    return {
        "rows": len(truth),
        "mae": float(np.abs(off).mean()),
        "rmse": float(np.sqrt((off**2).mean())),
        "r2": 1.0 - float((off**2).mean()) / square if square > 0 else float("nan"),
        "constant_mae": float(np.abs(base).mean()),
        "constant_rmse": float(np.sqrt(square)),
    }


@torch.no_grad()
def errors_ahead(
    head: Head, model: Any, experience: Experience, latents: Latents, examples: Examples, seed: int
) -> dict[str, dict[str, float]]:
    """`errors` in dreams: states that the model imagines for recorded actions, `AHEAD` steps
    after the last row that it saw, against the labels of the rows that really came.

    On held-out episodes (on all, where none are held out); by the number of steps. An actor that
    learns in dreams is paid by these predictions.
    """
    judged = examples.held_out if examples.held_out.any() else ~examples.held_out
    constant = float(examples.value[~examples.held_out].mean())
    label = {
        (int(e), int(t)): v
        for e, t, v in zip(
            examples.episode[judged], examples.step[judged], examples.value[judged], strict=True
        )
    }
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, float]] = {}
    for ahead in AHEAD:
        places = [(e, t - ahead) for e, t in label if t >= ahead]
        if not places:
            continue
        picks = [places[i] for i in rng.permutation(len(places))[:STARTS]]
        start = np.array([latents.first[e] + t for e, t in picks])
        state = latents.states(start).map(lambda x: x.to(next(head.parameters()).device))
        actions = [_actions(experience, e, t, ahead) for e, t in picks]
        torch.manual_seed(seed)
        states, _ = model.imagine(state, torch.from_numpy(np.stack(actions)).to(state.deter), ahead)
        guess = head.predict(states.feat[:, -1]).double().cpu().numpy()
        truth = np.array([label[e, t + ahead] for e, t in picks])
        found[str(ahead)] = errors(guess, truth, constant)
    return found


def _actions(experience: Experience, episode: int, step: int, count: int) -> np.ndarray:
    """The encoded actions [count, A] taken from a step on."""
    stream, start, _ = experience.places[episode]
    begin = start + step + 1
    rows = experience.replay.rows(stream, begin, begin + count)
    action: np.ndarray = rows["action"]
    return action
