"""How a latent state is packed into one replay row, and unpacked again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from worldmodel.types import LatentState

HALF_MAX = 65504.0  # the largest float16


class Packed(NamedTuple):
    """A state in few bytes, still where it was computed (see `LatentSpec.reduce`)."""

    deter: torch.Tensor
    stoch: torch.Tensor
    sound: torch.Tensor


@dataclass(frozen=True)
class LatentSpec:
    """The sizes of a latent state: deter D, groups S and classes K (K = 1: real-valued).

    Packed, deter is float16 [D]; stoch is a class index [S] (uint8, or uint16 where K > 256), or
    float16 [S] where K = 1.
    """

    deter: int
    groups: int
    classes: int

    def __post_init__(self) -> None:
        if min(self.deter, self.groups, self.classes) < 1 or self.classes > 65536:
            raise ValueError(f"Latent sizes must be 1 or more, and classes 65536 or less: {self}")

    @property
    def stoch_dtype(self) -> np.dtype:
        """The element type of a packed stoch."""
        if self.classes == 1:
            return np.dtype(np.float16)
        return np.dtype(np.uint8 if self.classes <= 256 else np.uint16)

    def pack(self, deter: Any, stoch: Any) -> tuple[np.ndarray, np.ndarray]:
        """deter [..., D] and stoch [..., S, K], arrays or tensors on any device -> packed
        [..., D] and [..., S].

        Raises ValueError where the shapes differ from the spec, or where a value is not finite
        or does not fit float16.
        """
        deter, stoch = _tensor(deter), _tensor(stoch)
        self._check_shapes(deter, stoch)
        if not deter.is_cpu:  # a GPU sends bytes instead of one-hot floats
            return self.arrays(self.reduce(LatentState(deter, stoch)))
        _check_sound(_fits(deter) and _fits(stoch))
        # By NumPy, which spends no time on waking threads for a few numbers.
        array = stoch.numpy()
        packed = array[..., 0] if self.classes == 1 else array.argmax(-1)
        return deter.to(torch.float16).numpy(), packed.astype(self.stoch_dtype)

    def reduce(self, state: LatentState) -> Packed:
        """The state [..., D], [..., S, K] as float16 [..., D], and float16 or int32 [..., S], and
        whether all of it is finite and fits float16. Nothing is read: a GPU goes on."""
        deter, stoch = state.deter, state.stoch
        sound = torch.stack([x.detach().abs().amax() <= HALF_MAX for x in state]).all()
        packed = stoch.squeeze(-1).half() if self.classes == 1 else stoch.argmax(-1).int()
        return Packed(deter.half(), packed, sound)

    def arrays(self, packed: Packed) -> tuple[np.ndarray, np.ndarray]:
        """What `pack` returns, of a state that was reduced. Raises ValueError as it does."""
        _check_sound(bool(packed.sound))
        return packed.deter.cpu().numpy(), packed.stoch.cpu().numpy().astype(self.stoch_dtype)

    def _check_shapes(self, deter: torch.Tensor, stoch: torch.Tensor) -> None:
        tail = (self.groups, self.classes)
        if (
            deter.shape[-1:] != (self.deter,)
            or stoch.shape[-2:] != tail
            or deter.shape[:-1] != stoch.shape[:-2]
        ):
            raise ValueError(
                f"Latent state has deter {tuple(deter.shape)} and stoch {tuple(stoch.shape)}; "
                f"expected [..., {self.deter}] and [..., {self.groups}, {self.classes}]."
            )

    def unpack(self, deter: np.ndarray, stoch: np.ndarray) -> LatentState:
        """Packed [..., D] and [..., S] -> a float32 state on the CPU, [..., D] and [..., S, K]."""
        if self.classes == 1:
            return LatentState(
                torch.from_numpy(deter.astype(np.float32)),
                torch.from_numpy(stoch.astype(np.float32)).unsqueeze(-1),
            )
        index = torch.from_numpy(stoch.astype(np.int64)).unsqueeze(-1)
        one_hot = torch.zeros(*stoch.shape, self.classes).scatter_(-1, index, 1.0)
        return LatentState(torch.from_numpy(deter.astype(np.float32)), one_hot)


def _tensor(values: Any) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach().float()  # NumPy has no bfloat16
    return torch.from_numpy(np.require(values, np.float32, "W"))  # PyTorch has no read-only ones


def _fits(values: torch.Tensor) -> bool:
    """Whether all values, on the CPU, are finite and within float16; NaN fails both comparisons."""
    array = values.numpy()
    return bool(array.min(initial=0) >= -HALF_MAX and array.max(initial=0) <= HALF_MAX)


def _check_sound(sound: bool) -> None:
    if not sound:
        raise ValueError("Latent state has values that are not finite or do not fit float16.")
