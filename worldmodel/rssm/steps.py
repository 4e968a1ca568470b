"""What `worldmodel.rssm.scan` asks of a device besides products: the parts between them.

Two devices answer: `worldmodel.rssm.cpu` with loops in machine code, `worldmodel.rssm.gpu` with
Triton kernels. Results go into tensors that the caller gives. Shapes: B rows, G blocks, D deter,
h hidden, S groups, K classes (2 numbers for gaussian latents); reset [B] says which rows begin an
episode: what their state before gave counts as zero, be it a NaN. `sums` come from `sums()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor


class Vectors(NamedTuple):
    """The biases and scales, float32.

    embed_b, embed_scale: [2, h], of deter and of stoch. mix_b, mix_scale: [D]. gates_b: [3 D].
    infer_scale: [h], of the posterior's norm. out_b: [S K], of its parameters.
    """

    embed_b: Tensor
    embed_scale: Tensor
    mix_b: Tensor
    mix_scale: Tensor
    gates_b: Tensor
    infer_scale: Tensor
    out_b: Tensor


class Steps(ABC):
    """The elementwise parts of one step, and their gradients."""

    def __init__(self, gaussian: bool, unimix: float, eps: float, vectors: Vectors) -> None:
        self.gaussian, self.unimix, self.eps, self.vectors = gaussian, unimix, eps, vectors

    @abstractmethod
    def sums(self, width: int) -> Any:
        """Zeros to which each part of the rows adds its share of `width` sums."""

    @abstractmethod
    def total(self, sums: Any) -> Tensor:
        """The sums [width] of all rows, in float32."""

    @abstractmethod
    def embed(self, deter: Tensor, stoch: Tensor, reset: Tensor, out: Tensor) -> None:
        """silu(RMSNorm(.)) of embedded deter, the last of [B, n, h], and stoch [B, h], to which
        their biases are added in place, into [B, 2, h]."""

    @abstractmethod
    def embed_back(
        self, grad: Tensor, deter: Tensor, stoch: Tensor, reset: Tensor, ddeter: Tensor,
        dstoch: Tensor, sums: Any,
    ) -> None:  # fmt: skip
        """The gradients to deter and stoch as they were given and, added to sums [4 h], to the
        biases and scales; for deter and stoch as `embed` left them."""

    @abstractmethod
    def mix(
        self, own: Tensor, shared: Tensor, action: Tensor, reset: Tensor, mixed: Tensor,
        out: Tensor,
    ) -> None:  # fmt: skip
        """mixed [B, D] = own [G, B, D/G] (zero where reset) + shared + action + bias; out,
        in blocks: silu(RMSNorm(mixed))."""

    @abstractmethod
    def mix_back(self, grad: Tensor, mixed: Tensor, dmixed: Tensor, sums: Any) -> None:
        """The gradients to mixed and, added to sums [D], to the scale."""

    @abstractmethod
    def gru(self, gates: Tensor, deter: Tensor, reset: Tensor, out: Tensor) -> None:
        """The next deter [B, D] from gates [G, B, 3 D/G] (reset, candidate, update; without their
        bias) and the deter before."""

    @abstractmethod
    def gru_back(
        self, grad: Tensor, direct: Tensor, again: Tensor, gates: Tensor, deter: Tensor,
        reset: Tensor, dgates: Tensor,
    ) -> None:  # fmt: skip
        """The gradients to gates and deter of a step whose deter has the gradient grad and, in
        rows that do not begin `again` [B] at the next step, direct; that to deter into direct."""

    @abstractmethod
    def infer(self, deter: Tensor, seen: Tensor, out: Tensor) -> None:
        """silu(RMSNorm(.)) of the first of [B, n, h], to which seen [B, h] is added in place."""

    @abstractmethod
    def infer_back(self, grad: Tensor, deter: Tensor, ddeter: Tensor, sums: Any) -> None:
        """The gradients to deter and seen alike, into the first of [B, n, h], and, added to sums
        [h], to the scale; for deter as `infer` left it."""

    @abstractmethod
    def noise(self, out: Tensor) -> Tensor:
        """Fill out, float32 [B, S, K] or [T, B, S, K], with what `draw` draws by, from torch's
        generator as `RSSM.sample` does."""

    @abstractmethod
    def draw(self, params: Tensor, noise: Tensor, out: Tensor, biased: bool) -> None:
        """Latents [B, S K], as `RSSM.sample` draws them, from params [B, S, K], to which their bias
        is first added in place unless they are `biased` already."""

    @abstractmethod
    def draw_back(self, grad: Tensor, params: Tensor, noise: Tensor, dparams: Tensor) -> None:
        """Add the straight-through gradient of `draw` to dparams, for params as `draw` left
        them."""
