"""Observed vectors as a state, and as what networks see and say of it: units, angles, changes.

values [D] --(angles -> sin, cos), action, units--> inputs
after - values (after itself, where an entry is absolute), reward --units--> targets
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.config import ConfigError, unknown
from worldmodel.types import EnvSpec

LEAST_DEVIATION = 1e-12  # a column that varies less is constant


class Rows(NamedTuple):
    """Transitions as a world of vectors learns them: values, after [N, D]; action [N, A]; reward,
    goes_on [N]."""

    values: Tensor
    action: Tensor
    reward: Tensor
    goes_on: Tensor
    after: Tensor

    def at(self, where: Tensor) -> Rows:
        """Some of them."""
        return Rows(*(part[where] for part in self))


class Vectors(nn.Module):
    """The numbers of a world whose state is what is observed.

    angles, absolute: entries "key.index": seen as sine and cosine; predicted as they are, not as
    changes. reward: whether it is a target, the last one. scaled: whether targets are in units of
    the data, as inputs are. Raises ConfigError where the observation has no vector, or an image or
    a symbol that would not be seen; and for entries that do not exist.
    """

    base: Tensor
    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    change_variance: Tensor

    def __init__(
        self, spec: EnvSpec, angles: Sequence[str] = (), absolute: Sequence[str] = (),
        reward: bool = True, scaled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.action, self.reward, self.scaled = spec.action, reward, scaled
        self.keys = spec.keys("vector")
        _check_spec(spec, self.keys)
        self.sizes = [spec.obs[key].shape[0] for key in self.keys]
        self.size = sum(self.sizes)
        self._angles = self._places(angles)
        self._plain = [i for i in range(self.size) if i not in self._angles]
        self.inputs_size = self.size + len(angles) + spec.action.size
        self.targets_size = outputs = self.size + reward
        base = torch.ones(self.size)
        base[self._places(absolute)] = 0.0
        for name, value in {
            "base": base,
            "input_mean": torch.zeros(self.inputs_size), "input_std": torch.ones(self.inputs_size),
            "target_mean": torch.zeros(outputs), "target_std": torch.ones(outputs),
            "change_variance": torch.ones(outputs),
        }.items():  # fmt: skip
            self.register_buffer(name, value)

    def flat(self, obs: dict[str, Tensor]) -> Tensor:
        """Vectors side by side [..., D]."""
        parts = [obs[key].float() for key in self.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def by_key(self, values: Tensor) -> dict[str, Tensor]:
        """The inverse of `flat`."""
        return dict(zip(self.keys, values.split(self.sizes, -1), strict=True))

    def inputs(self, values: Tensor, action: Tensor, normalised: bool = True) -> Tensor:
        """What is seen of a step [..., in]."""
        parts = [values, self.action.clip(action)]
        if self._angles:
            turned = values[..., self._angles]
            parts[:1] = [values[..., self._plain], torch.sin(turned), torch.cos(turned)]
        x = torch.cat(parts, -1)
        return (x - self.input_mean) / self.input_std if normalised else x

    def targets(self, rows: Rows, scaled: bool = True) -> Tensor:
        """What is to be said of steps [N, O]."""
        target = rows.after - self.base * rows.values
        if self.reward:
            target = torch.cat([target, rows.reward.unsqueeze(-1)], -1)
        return (target - self.target_mean) / self.target_std if scaled else target

    @torch.no_grad()
    def normalise(self, rows: Rows) -> None:
        """Take the units of inputs and targets from these rows."""
        mean, std = units(self.inputs(rows.values, rows.action, normalised=False))
        self.input_mean.copy_(mean)
        self.input_std.copy_(std)
        mean, std = units(self.targets(rows, scaled=False))
        self.change_variance.copy_(std.square())
        if self.scaled:
            self.target_mean.copy_(mean)
            self.target_std.copy_(std)

    def _places(self, names: Sequence[str]) -> list[int]:
        """Of entries "key.index" in the state."""
        sizes = zip(self.keys, self.sizes, strict=True)
        known = [f"{key}.{i}" for key, n in sizes for i in range(n)]
        for name in names:
            if name not in known:
                raise ConfigError(unknown("entry of the state", name, known))
        return [known.index(name) for name in names]


def _check_spec(spec: EnvSpec, keys: list[str]) -> None:
    images, symbols = spec.keys("image"), spec.keys("discrete")
    unseen = images + symbols
    if keys and not unseen:
        return
    kind = "an image" if images else "discrete"
    what = f"'{unseen[0]}' is {kind}" if unseen else "there is no vector"
    ways = ["env.pixels=false"] if images else []
    if keys and symbols:
        ways.append(f"env.keys=[{','.join(keys)}]")
    advice = f"Set {' and '.join(ways)}. " if ways else ""
    others = ["from images agent=dreamer learns a world"] if images else []
    others += ["of symbols agent=dyna_q learns one"] if symbols else []
    advice += f"{'; '.join(others).capitalize()}." if others else "Give the environment one."
    raise ConfigError(f"A Gaussian world learns vectors, but {what}. {advice}")


def units(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of columns [N, F]; 1 for a constant one."""
    wide = x.double()
    mean, std = wide.mean(0), wide.std(0, correction=0)
    constant = (wide.amax(0) == wide.amin(0)) | (std < LEAST_DEVIATION)
    return mean.to(x.dtype), torch.where(constant, 1.0, std).to(x.dtype)
