"""Fit a head on the latents of a frozen model to labels, and measure how far it can be believed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from agents.apps.episodes import Episodes
from agents.apps.rewards.labels import Examples
from agents.apps.rewards.latents import Latents
from worldmodel import dream, progress, tree
from worldmodel.config import RunError
from worldmodel.optim import LaProp, OptimConfig
from worldmodel.rssm import Head, HeadConfig
from worldmodel.rssm.fitted import new_head

Draw = Callable[[np.random.Generator], Tensor]  # the loss of a batch that a generator picks
AHEAD = (1, 5, 10, 15)  # steps into a dream at which rewards are compared with the truth
STARTS = 512  # dreams for that comparison
PREDICT = 4096  # rows predicted together
QUARTERS = 4  # words of progress


def blank_head(model: Any, kind: str, layers: int, seed: int) -> Head:
    """An untrained head that fits the model's states; it predicts 0 everywhere."""
    torch.manual_seed(seed)
    config = HeadConfig(target="", kind=kind, layers=layers, outscale=0.0, trains_latent=False)
    return new_head(model, config).to(dream.device_of(model))


def train(
    head: Head, updates: int, lr: float, loss: Draw, seed: int, say: Callable[[str], None]
) -> float:
    """`updates` gradient steps on what `loss` draws; the mean loss of the last tenth.

    Raises RunError where it is not finite.
    """
    rng = np.random.default_rng(seed)
    warmup = max(1, updates // 20)
    optim = LaProp([("head", head)], OptimConfig(lr=lr, warmup=warmup, anneal=updates))
    head.requires_grad_(True)
    began, losses = time.monotonic(), []
    for done in progress.each(range(1, updates + 1), "fitting the head, update"):
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
) -> Draw:
    """The loss of labelled rows, drawn from those not held out.

    A mse head learns labels of mean 0 and deviation 1, whatever their unit; see `unit_of`.
    """
    rows = latents.rows(examples.episode, examples.step)
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
    return float(examples.taught.mean()), float(examples.taught.std()) or 1.0


@torch.no_grad()
def rescale(head: Head, mean: float, deviation: float) -> None:
    """Make a mse head predict mean + deviation times what it predicted."""
    head.out.weight.mul_(deviation)
    head.out.bias.mul_(deviation).add_(mean)


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
    head: Head, model: Any, episodes: Episodes, latents: Latents, examples: Examples, seed: int
) -> dict[str, dict[str, float]]:
    """`errors` in dreams: states that the model imagines for recorded actions, `AHEAD` steps
    after the last row that it saw, against the labels of the rows that really came.

    By the number of steps, on the rows that judge. An actor that learns in dreams is paid by these
    predictions.
    """
    constant = float(examples.taught.mean())
    judging = examples.judging
    parts = (examples.episode[judging], examples.step[judging], examples.value[judging])
    label = {(int(e), int(t)): v for e, t, v in zip(*parts, strict=True)}
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, float]] = {}
    for ahead in progress.each(AHEAD, "dreaming ahead"):
        places = [(e, t - ahead) for e, t in label if t >= ahead]
        if not places:
            continue
        picks = [places[i] for i in rng.permutation(len(places))[:STARTS]]
        episode, step = np.array(picks).T
        device = next(head.parameters()).device
        state = tree.to(latents.states(latents.rows(episode, step)), device)
        actions = [episodes.read(e, t + 1, t + 1 + ahead)["action"] for e, t in picks]
        action = torch.from_numpy(np.stack(actions)).to(device)
        torch.manual_seed(seed)
        try:
            for h in range(ahead):
                state = model.step(state, action[:, h]).state
        except ValueError:  # a table that never saw what it drew: there is nothing to compare
            continue
        guess = head.predict(model.feat(state)).double().cpu().numpy()
        truth = np.array([label[e, t + ahead] for e, t in picks])
        found[str(ahead)] = errors(guess, truth, constant)
    return found
