"""C, a linear controller, and the search for its weights by CMA-ES."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.policies import greedy
from agents.world_models.config import SearchConfig
from worldmodel import tree
from worldmodel.config import ConfigError
from worldmodel.models.mdnrnn import VMState, VMWorld
from worldmodel.seeding import spawn
from worldmodel.types import ActionSpec

WORST = 1e30  # the cost of a candidate whose return is not finite
# What decides a search's next candidates, by its name within `cma`.
DISTRIBUTION = (
    "mean", "sigma", "countiter", "pc", "adapt_sigma.ps", "adapt_sigma._ps_updated_iteration",
)  # fmt: skip
VARIANCES = ("sigma_vec.scaling",)
COVARIANCE = ("sm.C", "sm.B", "sm.D", "sm.count_tell", "sm.count_eigen", "sm.last_update")


def outputs(weights: Tensor, feat: Tensor) -> Tensor:
    """W feat + b: weights [..., A, F + 1], their last column b, and feat [..., F] -> [..., A]."""
    return (weights[..., :-1] @ feat.unsqueeze(-1)).squeeze(-1) + weights[..., -1]


def actions_of(
    values: Tensor, action: ActionSpec, one_sided: Sequence[int] = (), mask: Tensor | None = None
) -> Tensor:
    """Encoded actions [..., A] of a controller's outputs: tanh, or of each factor the class of the
    greatest one, among those that a mask allows."""
    if action.kind == "continuous":
        squashed = torch.tanh(values)
        if one_sided:
            chosen = torch.zeros(action.size, dtype=torch.bool, device=values.device)
            chosen[list(one_sided)] = True
            squashed = torch.where(chosen, 2 * squashed.clamp_min(0.0) - 1, squashed)
        return squashed
    masks = [None] * len(action.sizes) if mask is None else mask.split(action.sizes, -1)
    hot = []
    for part, allowed in zip(values.split(action.sizes, -1), masks, strict=True):
        best = greedy(part, allowed).unsqueeze(-1)
        hot.append(torch.zeros_like(part).scatter_(-1, best, 1.0))
    return torch.cat(hot, -1)


class Search:
    """CMA-ES over N weights with random numbers of its own, drawn anew for every generation.

    Its state is the distribution that the next candidates are drawn from, as numbers: they are the
    same bit for bit wherever and however often it is put back.

    start [N]: the first mean. Raises ConfigError where the package `cma` is not installed.
    """

    def __init__(self, start: np.ndarray, config: SearchConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        try:
            import cma
        except ModuleNotFoundError as error:
            raise ConfigError(
                "agent=world_models needs the package `cma` to evolve its controller: "
                'pip install -c constraints.txt -e ".[cma]"'
            ) from error
        self._rng = np.random.default_rng(seed)
        never: dict[str, float] = {
            "tolfun": 0,
            "tolfunhist": 0,
            "tolx": 0,
            "tolstagnation": 1 << 60,
        }
        never |= {"tolflatfitness": 1 << 60, "tolfacupx": np.inf, "tolupsigma": np.inf}
        quiet = {"verbose": -9, "verb_log": 0, "verb_disp": 0}
        options = {
            "popsize": config.population, "CMA_diagonal": config.diagonal,
            "CMA_mirrors": 0,  # as with six candidates or more: nothing else to keep
            "seed": np.nan, "randn": lambda *shape: self._rng.standard_normal(shape),
        }  # fmt: skip
        with _numpy_of(seed):
            self._es = cma.CMAEvolutionStrategy(
                np.array(start, np.float64), config.sigma, {**options, **never, **quiet}
            )
        self._asked: list[np.ndarray] | None = None

    @property
    def generation(self) -> int:
        """Generations that were told."""
        return int(self._es.countiter)

    @property
    def mean(self) -> np.ndarray:
        """The search's mean [N], which stands for it: better on new episodes than the candidate
        that was luckiest on the old ones."""
        mean: np.ndarray = np.array(self._es.result.xfavorite)
        return mean

    @property
    def sigma(self) -> float:
        """The step size."""
        return float(self._es.sigma)

    @property
    def _draws(self) -> int:
        """The seed of this generation's random numbers."""
        return spawn(self.seed, f"generation {self.generation}")

    def ask(self) -> np.ndarray:
        """The candidates of this generation [P, N], the same until they are told."""
        if self._asked is None:
            self._rng = np.random.default_rng(self._draws)
            with _numpy_of(self._draws):
                self._asked = self._es.ask()
        return np.stack(self._asked)

    def tell(self, returns: np.ndarray) -> None:
        """The mean returns [P] of the candidates; what is not finite counts as the worst."""
        self.ask()
        returns = np.array(returns, np.float64)
        costs = np.where(np.isfinite(returns), -returns, WORST)
        with _numpy_of(self._draws):
            self._es.tell(self._asked, costs.tolist())
        self._asked = None

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed} | {name: self._read(name) for name in self._names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put `state_dict()` back; ValueError where it is another search's. The same candidates
        come next, to the bit."""
        if self._es.countiter == 0:  # parts of it are made with the first generation
            self.tell(np.arange(float(self.config.population)))
        tree.check_plain_like(self.state_dict(), state, "the search")
        self.seed, self._asked = state["seed"], None
        for name in self._names:
            owner, last = self._owner(name)
            kept = state[name]
            setattr(owner, last, kept.numpy().copy() if isinstance(kept, Tensor) else kept)

    @property
    def _names(self) -> tuple[str, ...]:
        return DISTRIBUTION + (VARIANCES if self.config.diagonal else COVARIANCE)

    def _owner(self, name: str) -> tuple[Any, str]:
        """Where in `cma` a number of that name is kept, and what it is called there."""
        *path, last = name.split(".")
        return functools.reduce(getattr, path, self._es), last

    def _read(self, name: str) -> Any:
        value = getattr(*self._owner(name))
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.array(value, np.float64))
        return float(value) if isinstance(value, float) else int(value)


@contextmanager
def _numpy_of(seed: int) -> Iterator[None]:
    """`cma` draws from NumPy's global generator here and there: give it one of its own."""
    before = np.random.get_state(legacy=False)
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


class Dreamed:
    """What a population earned in dreams: returns [P, R], float64, and steps lived [P, R]."""

    def __init__(self, returns: Tensor, steps: Tensor) -> None:
        self.returns, self.steps = returns, steps


@torch.no_grad()
def dream(
    world: VMWorld,
    weights: Tensor,
    start: VMState,
    steps: int,
    rng: torch.Generator,
    action: ActionSpec,
    one_sided: Sequence[int] = (),
    ends: str = "likely",
) -> Dreamed:
    """Let controllers, weights [P, A, F + 1], act in dreams that begin in start [R, ...]: all P x R
    in one batch, the R dreams with the same noise for every controller.

    A dream ends where the model finds that likelier than not, or after `steps`; its return is the
    sum of its rewards, undiscounted, the last one included. ends="expected": each reward counts by
    the probability that the dream goes on until then.
    """
    count, trials = len(weights), len(start.z)
    state = VMState(*(x.repeat(count, 1) for x in start))  # [P * R, ...]
    total = torch.zeros(count * trials, dtype=torch.float64, device=start.z.device)
    lives, lived = torch.ones_like(total), torch.zeros_like(total)
    matrix, bias = weights[..., :-1].transpose(1, 2), weights[..., -1].unsqueeze(1)
    size = (steps, trials, world.latent)
    uniform = torch.rand(size, generator=rng).to(start.z.device)
    normal = torch.randn(size, generator=rng).to(start.z.device)
    for step in range(steps):
        feat = world.feat(state).view(count, trials, -1)
        chosen = actions_of(torch.baddbmm(bias, feat, matrix), action, one_sided).flatten(0, 1)
        noise = uniform[step].repeat(count, 1), normal[step].repeat(count, 1)
        state, reward, cont = world.predict(state, chosen, noise)
        total += torch.where(lives > 0, lives * reward, 0.0)
        lived += lives
        lives *= cont if ends == "expected" else cont >= 0.5
        if not lives.any():
            break
    return Dreamed(total.view(count, trials), lived.view(count, trials))
