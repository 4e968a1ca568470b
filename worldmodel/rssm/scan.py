"""The recurrent core over many steps: fewer operations than its definition, gradient by hand.

A sequence of 64 small steps costs more for the number of its operations than for their arithmetic:
about sixty a step and twice as many on the way back, most of them through autograd. Here a step is
six products and five elementwise parts (`worldmodel.rssm.steps`): loops in machine code on a CPU,
Triton kernels on a GPU. On the way back only what the next step needs is computed step by step, and
every weight gets its gradient afterwards, as one product over all steps.

No shape and no branch depends on what a tensor holds, so a GPU never has to wait for the host.

`RSSM` is the definition; tests hold this file equal to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldmodel.accel.fused import in_loops, on_gpu
from worldmodel.rssm.core import RSSM
from worldmodel.rssm.state import LatentState
from worldmodel.rssm.steps import Steps, Vectors


def steps_for(core: RSSM, rows: int, like: Tensor, vectors: Vectors) -> Steps:
    """The elementwise parts of this core's steps for so many rows, where `like` lives."""
    kind = core.gaussian, core.unimix, core.eps, vectors, rows
    if in_loops(like):
        from worldmodel.rssm.cpu import Loops

        return Loops(*kind, core.deter)
    from worldmodel.rssm.gpu import Launches  # Triton is only where a GPU is

    return Launches(*kind)


class Weights(NamedTuple):
    """The matrices of the recurrence and the posterior, in the precision of their products.

    mix: [G, D/G + 3 h, D/G]: rows of a block's own deter, then those of what all blocks share: the
    embedded deter, stoch and action. infer: the posterior's columns for deter.
    """

    deter: Tensor
    stoch: Tensor
    mix: Tensor
    gates: Tensor
    infer: Tensor
    out: Tensor


def weights_of(core: RSSM, dtype: torch.dtype) -> tuple[Weights, Vectors]:
    """What a core multiplies with, and what it adds and scales by; all with gradient."""
    deter: Any = core.deter_in
    stoch: Any = core.stoch_in
    after: Any = core.post_out
    infer = core.post_in.weight[:, : core.deter]
    matrices = (deter[0].weight, stoch[0].weight, core.mix.weight, core.gates.weight)
    return Weights(*(x.to(dtype) for x in (*matrices, infer, after[1].weight))), Vectors(
        torch.stack([deter[0].bias, stoch[0].bias]),
        torch.stack([deter[1].norm.scale, stoch[1].norm.scale]),
        core.mix.bias, core.mix_norm.norm.scale, core.gates.bias,
        after[0].norm.scale, after[1].bias,
    )  # fmt: skip


class Tape:
    """The recurrence for rows B, keeping what T steps compute on their way, for the gradient.

    deter is read by one product for all n that embed it: the posterior of its own step, where there
    is one, and the next step. So `read` comes before each `step`.
    """

    def __init__(
        self, core: RSSM, weights: Weights, vectors: Vectors, steps: int, rows: int, infer: bool
    ) -> None:
        self.weights = w = Weights(*(x.detach() for x in weights))
        self.ops = steps_for(core, rows, w.mix, Vectors(*(x.detach() for x in vectors)))
        self.blocks, _, self.d = g, _, d = w.mix.shape
        h = len(w.deter)
        self.own = w.mix[:, :d]  # [G, D/G, D/G]
        shared = w.mix[:, d:].transpose(0, 1).reshape(3 * h, g * d)  # all blocks side by side
        self.from_outer, self.from_action = shared.split([2 * h, h])
        self.reader = torch.cat([w.infer, w.deter]) if infer else w.deter  # [n h, D]
        new = w.mix.new_empty
        self.heads = new(steps + 1, rows, len(self.reader) // h, h)  # embedded deter, before ...
        self.stochs = new(steps, rows, h)  # ... and embedded stoch, before ...
        self.outer = new(steps, rows, 2, h)  # ... and both after their norms
        self.mixed = new(steps, rows, g * d)  # before ...
        self.normed = new(steps, g, rows, d)  # ... and after its norm
        self.gates = new(steps, g, rows, 3 * d)
        self._own, self._shared = new(g, rows, d), new(rows, g * d)

    def in_blocks(self, x: Tensor) -> Tensor:
        """[B, D] as [G, B, D / G]."""
        return x.view(-1, self.blocks, self.d).transpose(0, 1)

    def embed(self, action: Tensor) -> Tensor:
        """What embedded actions [..., h] add to the mix, [..., D]."""
        return torch.mm(action.flatten(0, -2), self.from_action).view(*action.shape[:-1], -1)

    def read(self, t: int, deter: Tensor) -> None:
        """Embed the deter [B, D] before step t."""
        torch.mm(deter, self.reader.t(), out=self.heads[t].flatten(1))

    def step(
        self, t: int, deter: Tensor, stoch: Tensor, action: Tensor, reset: Tensor, out: Tensor
    ) -> None:
        """The next deter [B, D] into `out`, from deter, stoch [B, S K] and `embed(action)`; both
        count as zeros in rows where reset [B]."""
        w, ops = self.weights, self.ops
        outer, mixed, normed, gates = self.outer[t], self.mixed[t], self.normed[t], self.gates[t]
        embedded = torch.mm(stoch, w.stoch.t(), out=self.stochs[t])
        ops.embed(self.heads[t], embedded, reset, outer)
        shared = torch.mm(outer.flatten(1), self.from_outer, out=self._shared)
        own = torch.bmm(self.in_blocks(deter), self.own, out=self._own)
        ops.mix(own, shared, action, reset, mixed, normed)
        torch.bmm(normed, w.gates, out=gates)
        ops.gru(gates, deter, reset, out)


class _Back:
    """The way back through a tape whose steps lie between deters [T + 1, B, D], with resets where
    first [T, B]."""

    def __init__(self, tape: Tape, deters: Tensor, first: Tensor) -> None:
        self.tape, self.deters, ops = tape, deters, tape.ops
        self.resets = torch.cat([first, torch.zeros_like(first[:1])])  # none after the last step
        self.dheads, self.dstochs = torch.empty_like(tape.heads), torch.empty_like(tape.stochs)
        self.dheads[-1].zero_()
        self.dmixed, self.dgates = torch.empty_like(tape.mixed), torch.empty_like(tape.gates)
        # What step t hands to the deter before it, except through `Tape.read`.
        self.direct = torch.zeros_like(deters[0])
        h = tape.stochs.shape[-1]
        self.embed_sums, self.mix_sums = ops.sums(4 * h), ops.sums(deters.shape[-1])
        self.infer_sums = ops.sums(h)

    def step(self, t: int, ddeter: Tensor) -> None:
        """Through step t, with the gradient [B, D] of its deter but for `direct`, which becomes
        that to the deter before it."""
        tape, w, ops, resets = self.tape, self.tape.weights, self.tape.ops, self.resets
        dmixed, dgates = self.dmixed[t], self.dgates[t]
        args = tape.gates[t], self.deters[t], resets[t], dgates
        ops.gru_back(ddeter, self.direct, resets[t + 1], *args)
        dnormed = torch.bmm(dgates, w.gates.transpose(1, 2))
        ops.mix_back(dnormed, tape.mixed[t], dmixed, self.mix_sums)
        douter = torch.mm(dmixed, tape.from_outer.t()).view_as(tape.outer[t])
        before, below = (tape.heads[t], tape.stochs[t]), (self.dheads[t], self.dstochs[t])
        ops.embed_back(douter, *before, resets[t], *below, self.embed_sums)
        blocks = tape.in_blocks(dmixed), tape.own.transpose(1, 2)
        tape.in_blocks(self.direct).baddbmm_(*blocks)

    def first_deter(self) -> Tensor:
        """The gradient [B, D] to the deter before step 0."""
        direct = self.direct.masked_fill(self.resets[0].unsqueeze(-1), 0.0)
        return direct.addmm_(self.dheads[0, :, -1], self.tape.weights.deter)

    def weights(
        self, stochs: Tensor, actions: Tensor, after: Tensor, dparams: Tensor
    ) -> tuple[Tensor, Weights, Vectors]:
        """The gradients of embedded actions [T, B, h] and of all weights, over all steps, which
        lie between stochs [T + 1, B, S K]; dparams [T, B, S K] is that of what `after` gave."""
        tape, ops, reset = self.tape, self.tape.ops, self.resets[:-1].unsqueeze(-1)
        g, d, h = tape.blocks, tape.d, actions.shape[-1]
        # Without a NaN of the episode before, which would survive a product with zero.
        deter = self.deters[:-1].masked_fill(reset, 0.0).flatten(0, 1)
        stoch = stochs[:-1].masked_fill(reset, 0.0).flatten(0, 1)
        ddeter, dstoch = self.dheads[:-1, :, -1].flatten(0, 1), self.dstochs.flatten(0, 1)
        dinfer, dmixed = self.dheads[1:, :, 0].flatten(0, 1), self.dmixed.flatten(0, 1)
        outer = torch.cat([tape.outer.flatten(2), actions], -1).flatten(0, 1)
        shared = (outer.t() @ dmixed).view(3 * h, g, d).transpose(0, 1)
        own = torch.bmm(tape.in_blocks(deter).transpose(1, 2), tape.in_blocks(dmixed))
        normed, dgates = (x.transpose(0, 1).flatten(1, 2) for x in (tape.normed, self.dgates))
        dout = dparams.flatten(0, 1)
        matrices = Weights(
            ddeter.t() @ deter, dstoch.t() @ stoch, torch.cat([own, shared], 1),
            torch.bmm(normed.transpose(1, 2), dgates),
            dinfer.t() @ self.deters[1:].flatten(0, 1), dout.t() @ after.flatten(0, 1),
        )  # fmt: skip
        embed_b, embed_scale = ops.total(self.embed_sums).view(2, 2, h)
        vectors = Vectors(
            embed_b, embed_scale, _sum(dmixed, 0), ops.total(self.mix_sums),
            _sum(dgates, 1).flatten(), ops.total(self.infer_sums), _sum(dout, 0),
        )  # fmt: skip
        return dmixed @ tape.from_action.t(), matrices, vectors


def _sum(x: Tensor, dim: int) -> Tensor:
    return x.sum(dim, dtype=torch.float32)


class _Scan(torch.autograd.Function):
    """What `RSSM.follow` loops over, all steps of it. Time comes first: [T, B, ...].

    Each step, and back in the order of the arrows turned round:

        heads, stoch, action -> outer -> mixed -> normed -> gates -> deter -> heads
        heads, seen -> after -> params -> stoch
    """

    @staticmethod
    def forward(ctx: Any, core: RSSM, *tensors: Tensor) -> tuple[Tensor, ...]:
        deter, stoch, actions, seen, first, *rest = (x.detach() for x in tensors)
        w, vectors = Weights(*rest[:6]), Vectors(*rest[6:])
        steps, rows = first.shape
        tape = Tape(core, w, vectors, steps, rows, infer=True)
        ops, added, new = tape.ops, tape.embed(actions), actions.new_empty
        deters, stochs = new(steps + 1, *deter.shape), new(steps + 1, *stoch.shape)
        deters[0], stochs[0] = deter, stoch
        after, params = torch.empty_like(seen), new(steps, rows, core.groups, core.numbers)
        noise = new(steps, rows, core.groups, core.classes, dtype=torch.float32)
        ops.noise(noise)
        tape.read(0, deters[0])
        for t in range(steps):
            tape.step(t, deters[t], stochs[t], added[t], first[t], deters[t + 1])
            tape.read(t + 1, deters[t + 1])
            ops.infer(tape.heads[t + 1], seen[t], after[t])
            torch.mm(after[t], w.out.t(), out=params[t].flatten(1))
            ops.draw(params[t], noise[t], stochs[t + 1], biased=False)
        ctx.save_for_backward(deters, stochs, actions, first, noise, after, params)
        ctx.tape = tape
        return deters[1:].clone(), stochs[1:].clone(), params.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tape, ops, w = ctx.tape, ctx.tape.ops, ctx.tape.weights
        deters, stochs, actions, first, noise, after, params = ctx.saved_tensors
        back = _Back(tape, deters, first)
        ddeter, dstoch, dparams = (g.clone(memory_format=torch.contiguous_format) for g in grads)
        for t in reversed(range(len(first))):
            ops.draw_back(dstoch[t], params[t], noise[t], dparams[t])
            dafter = torch.mm(dparams[t].flatten(1), w.out)
            dheads = back.dheads[t + 1]
            ops.infer_back(dafter, tape.heads[t + 1], dheads, back.infer_sums)
            ddeter[t].addmm_(dheads.flatten(1), tape.reader)
            back.step(t, ddeter[t])
            if t:
                dstoch[t - 1].addmm_(back.dstochs[t], w.stoch)
        dstart = back.first_deter(), torch.mm(back.dstochs[0], w.stoch)
        dactions, dweights, dvectors = back.weights(stochs, actions, after, dparams.flatten(2))
        dseen = back.dheads[1:, :, 0]
        dinputs = dactions.view_as(actions), dseen, None
        return None, *dstart, *dinputs, *dweights, *dvectors


def scan(
    core: RSSM, state: LatentState, actions: Tensor, seen: Tensor, first: Tensor
) -> tuple[LatentState, Tensor]:
    """What `RSSM.follow` does with embedded actions [B, T, h], seen [B, T, h] (what the embedded
    observations add before the posterior's norm) and first [B, T]: states [B, T, ...] and the
    posterior's parameters."""
    dtype = actions.dtype  # of the products: the networks' precision, under autocast
    weights, vectors = weights_of(core, dtype)
    deter, stoch, params = _Scan.apply(
        core, state.deter.to(dtype), state.stoch.flatten(1).to(dtype),
        *(x.transpose(0, 1).contiguous() for x in (actions, seen, first)),
        *weights, *vectors,
    )  # fmt: skip
    deter, stoch, params = (x.transpose(0, 1) for x in (deter, stoch, params))
    return LatentState(deter, stoch.unflatten(-1, (core.groups, -1))), params


class Stepper:
    """`RSSM.step` for rows B without gradient; what does not change from step to step is made
    once."""

    def __init__(self, core: RSSM, rows: int) -> None:
        self.core, weight = core, core.mix.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device)
        if not torch.is_autocast_enabled(device):
            dtype = weight.dtype
        self.tape = Tape(core, *weights_of(core, dtype), 1, rows, infer=False)
        self.never = torch.zeros(rows, dtype=torch.bool, device=weight.device)

    def __call__(self, state: LatentState, action: Tensor) -> LatentState:
        tape, ops = self.tape, self.tape.ops
        deter, stoch = (x.to(tape.heads.dtype) for x in (state.deter, state.stoch.flatten(1)))
        added = tape.embed(self.core.embed_action(action))
        out = LatentState(torch.empty_like(deter), torch.empty_like(stoch))
        tape.read(0, deter)
        tape.step(0, deter, stoch, added, self.never, out.deter)
        noise = ops.noise(torch.empty_like(state.stoch, dtype=torch.float32))
        ops.draw(self.core.prior(out.deter), noise, out.stoch, biased=True)
        return LatentState(out.deter, out.stoch.view_as(state.stoch))


def usable(core: RSSM, steps: int, *tensors: Tensor) -> bool:
    """Whether this file may, and should, stand in for its definition for so many steps."""
    if steps < 2 or "sample" in core.__dict__:  # replaced by a user who wants other draws
        return False
    tensors = core.mix.weight, *tensors
    if in_loops(*tensors):
        return not torch.is_autocast_enabled("cpu")  # the loops know float32 alone
    return on_gpu(*tensors)


class FastRSSM(RSSM):
    """The same model: in fewer operations where this file may stand in for its definition."""

    def follow(
        self, state: LatentState, actions: Tensor, seen: Tensor, is_first: Tensor
    ) -> tuple[LatentState, Tensor]:
        if usable(self, is_first.shape[1], state.deter, state.stoch, actions, seen):
            return scan(self, state, actions, seen, is_first)
        return super().follow(state, actions, seen, is_first)

    def stepper(
        self, start: LatentState, steps: int
    ) -> Callable[[LatentState, Tensor], LatentState]:
        """`step`, sooner where no gradient is needed: what does not change from step to step is
        made once, and a step is a few fused operations."""
        if not torch.is_grad_enabled() and usable(self, steps, start.deter, start.stoch):
            return Stepper(self, len(start.deter))
        return self.step
