"""Train a Gaussian world on all that was recorded: bootstrap, held-out rows, each network's best.

    rows -> held out (a share, drawn anew at every training) | the rest
    rest -> normaliser -> each network draws rows of its own -> epochs
    epoch -> squared error of each network on what was held out
          -> a network that improved by more than 1% keeps a copy of its weights
    none improved for some epochs -> each goes back to its best

Weights and Adam's moments go on from one training to the next. Janner et al. (2019), appendix; PETS
(2018) with a fixed number of epochs and nothing held out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.adam import Adam, AdamConfig
from worldmodel.config import ConfigError, check_ranges, unknown
from worldmodel.models.predictors import Predictor
from worldmodel.models.vectors import Rows, Vectors
from worldmodel.replay import Replay
from worldmodel.seeding import Stream

DRAWS = ("bootstrap", "shuffle")
WORST = 1e10  # what the first epoch has to beat


@dataclass
class FitConfig:
    """lr: of Adam. batch_size: rows of one step, of each network. epochs: at most, of one training.
    rows: "bootstrap" (every network draws its own, with replacement) or "shuffle" (all rows).
    holdout: share of the rows that is not learned from; 0 means none, and all epochs are done.
    most_holdout: rows held out at most. patience: epochs without an improvement after which a
    training ends. improvement: what counts as one, relative."""

    lr: float = 1e-3
    batch_size: int = 256
    epochs: int = 1000
    rows: str = "bootstrap"
    holdout: float = 0.2
    most_holdout: int = 5000
    patience: int = 5
    improvement: float = 0.01

    def __post_init__(self) -> None:
        many = (1, 1 << 31)
        check_ranges(self, {
            "lr": (0, 10), "batch_size": many, "epochs": many, "holdout": (0, 0.9),
            "most_holdout": many, "patience": (0, 1 << 31), "improvement": (0, 1),
        })  # fmt: skip
        if self.rows not in DRAWS:
            raise ConfigError(unknown("rows", self.rows, DRAWS))

    @property
    def least_rows(self) -> int:
        """Fewer cannot be learned from: one must be held out and one be left."""
        return 1 if self.holdout == 0 else int(np.ceil(1 / self.holdout)) + 1


def recorded(vectors: Vectors, replay: Replay) -> Rows | None:
    """All transitions that a replay holds, oldest first; none crosses an episode. None where there
    is none."""
    parts: list[list[np.ndarray]] = []
    for stream, start, stop in replay.episodes():
        if stop - start < 2:
            continue
        rows = replay.rows(stream, start, stop)
        values = np.concatenate([rows[key] for key in vectors.keys], -1)
        goes_on = 1.0 - rows["is_terminal"][1:]
        parts.append([values[:-1], rows["action"][1:], rows["reward"][1:], goes_on, values[1:]])
    if not parts:
        return None
    joined = (np.concatenate(column) for column in zip(*parts, strict=True))
    device = vectors.base.device
    return Rows(*(torch.from_numpy(x.astype(np.float32)).to(device) for x in joined))


def warn_of_few(config: FitConfig) -> None:
    """Warn that nothing is learned yet, since there are fewer rows than `least_rows`."""
    warnings.warn(
        f"Nothing is learned before {config.least_rows:,} transitions are recorded, since a share "
        f"of agent.model.fit.holdout={config.holdout:g} is less than one of them until then. Raise "
        "it, or set it to 0 to hold none out.",
        stacklevel=3,
    )


def check_rows(rows: Rows, least: int) -> None:
    """ValueError where rows are too few, or one is not finite."""
    count = len(rows.reward)
    if count < least:
        raise ValueError(
            f"There are {count} transitions; {least} are the least of which some can be held out. "
            "Record more, or set holdout=0."
        )
    for name, value in rows._asdict().items():
        bad = ~value.reshape(count, -1).isfinite().all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"{int(bad.sum())} of {count} transitions are not finite, the first is number "
                f"{first}, in its {name}: {value[first].tolist()}. Nothing was learned."
            )


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of inputs, targets and goes_on [M, N, ...]


class Fitter:
    """Trains the networks of a world; keeps the optimizer and the random numbers of it.

    loss: of every network's own rows, summed. seed: of the random numbers.
    """

    def __init__(
        self, predictor: Predictor, vectors: Vectors, loss: Loss, config: FitConfig, seed: int = 0
    ) -> None:
        self.predictor, self.vectors, self.loss, self.config = predictor, vectors, loss, config
        self.optim = Adam([("model", predictor)], AdamConfig(lr=config.lr))
        self.rng = np.random.default_rng(seed)
        self.stream = Stream(seed, vectors.base.device)  # of dropout's masks
        self._body = list(predictor.body.parameters())

    def fit(self, rows: Rows) -> tuple[dict[str, float], np.ndarray]:
        """One training: how it went, and each network's least error on what was held out [M], 0
        where nothing was. Raises ValueError for rows that cannot be learned from, and
        FloatingPointError where a loss is not finite; then the weights are those of the last step.
        """
        check_rows(rows, self.config.least_rows)
        with self.stream:
            return self._fit(rows)

    def _fit(self, rows: Rows) -> tuple[dict[str, float], np.ndarray]:
        c, vectors, networks = self.config, self.vectors, self.predictor.networks
        held, rest = self._split(rows)
        vectors.normalise(rest)
        x, y = vectors.inputs(rest.values, rest.action), vectors.targets(rest)
        best = np.full(networks, WORST)
        kept = [p.detach().clone() for p in self._body]
        epoch = waited = 0
        while epoch < c.epochs and waited <= c.patience:
            loss = self._epoch(x, y, rest.goes_on)
            epoch += 1
            if held is None:
                continue
            error = self.errors(held)
            better = (best - error) / best > c.improvement
            self._keep(kept, better)
            best = np.where(better, error, best)
            waited = 0 if better.any() else waited + 1
        found = {
            "model/rows": float(len(rows.reward)), "model/epochs": float(epoch), "model/loss": loss,
        }  # fmt: skip
        if held is None:
            return found, np.zeros(networks)
        self._restore(kept)
        found["model/holdout_mse"] = float(best.mean())
        return found, best

    @torch.no_grad()
    def errors(self, rows: Rows) -> np.ndarray:
        """The mean squared error of each network's mean [M]."""
        x, y = self.vectors.inputs(rows.values, rows.action), self.vectors.targets(rows)
        mean = self.predictor(x.expand(self.predictor.networks, *x.shape)).mean
        return np.asarray((mean - y).square().mean((1, 2)).double().cpu())

    def _split(self, rows: Rows) -> tuple[Rows | None, Rows]:
        """What is held out, and the rest."""
        c, count = self.config, len(rows.reward)
        hidden = min(int(c.holdout * count), c.most_holdout)
        if not hidden:
            return None, rows
        order = torch.from_numpy(self.rng.permutation(count)).to(rows.reward.device)
        return rows.at(order[:hidden]), rows.at(order[hidden:])

    def _epoch(self, x: Tensor, y: Tensor, goes_on: Tensor) -> float:
        """Every network sees as many rows as there are; the mean loss of one network."""
        c, networks, count = self.config, self.predictor.networks, len(x)
        if c.rows == "bootstrap":
            index = self.rng.integers(count, size=(networks, count))
        else:
            index = np.stack([self.rng.permutation(count) for _ in range(networks)])
        total = 0.0
        for at in range(0, count, c.batch_size):
            rows = torch.from_numpy(index[:, at : at + c.batch_size]).to(x.device)
            loss = self.loss(x[rows], y[rows], goes_on[rows])
            self.optim.step(loss)
            total += float(loss.detach()) * rows.shape[1]
        return total / count / networks

    @torch.no_grad()
    def _keep(self, kept: list[Tensor], better: np.ndarray) -> None:
        where = torch.from_numpy(better)
        for copy, p in zip(kept, self._body, strict=True):
            copy[where.to(p.device)] = p[where.to(p.device)]

    @torch.no_grad()
    def _restore(self, kept: list[Tensor]) -> None:
        for copy, p in zip(kept, self._body, strict=True):
            p.copy_(copy)

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and random numbers; the world's weights are the world's."""
        return {
            "optim": self.optim.state_dict(),
            "rng": self.rng.bit_generator.state,
            "stream": self.stream.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back."""
        self.optim.load_state_dict(state["optim"])
        self.rng.bit_generator.state = state["rng"]
        self.stream.load_state_dict(state["stream"])
