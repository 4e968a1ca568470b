"""The recurrent core over many steps: fewer operations than its definition, gradient by hand.

A sequence of 64 small steps costs more for the number of its operations than for their arithmetic:
about sixty a step and twice as many on the way back, most of them through autograd. Here a step is
six products and five elementwise parts (`worldmodel.rssm.steps`): loops in machine code on a CPU,
Triton kernels on a GPU. On the way back only what the next step needs is computed step by step, and
every weight gets its gradient afterwards, as one product over all steps.

No shape and no branch depends on what a tensor holds, so a GPU never has to wait for the host.

`RSSM.recur` and `RSSM.observe` are the definition; tests hold this file equal to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldmodel.fused import in_loops, on_gpu
from worldmodel.rssm.steps import Steps
from worldmodel.types import LatentState

if TYPE_CHECKING:
    from worldmodel.rssm.core import RSSM


def steps_for(core: RSSM, rows: int, like: Tensor) -> Steps:
    """The elementwise parts of this core's steps for so many rows, where `like` lives."""
    kind = core.gaussian, core.unimix, core.eps
    if in_loops(like):
        from worldmodel.rssm.cpu import Loops

        return Loops(*kind, rows, core.deter)
    from worldmodel.rssm.gpu import Launches  # Triton is only where a GPU is

    return Launches(*kind, rows, like.device)


class Weights(NamedTuple):
    """What the recurrence multiplies with. G blocks, h hidden.

    embed_b, embed_scale: [2, h], of deter and of stoch. mix: [G, D/G + 3 h, D/G]: rows of a block's
    own deter, then those of what all blocks share: the embedded deter, stoch and action.
    """

    deter_w: Tensor
    stoch_w: Tensor
    embed_b: Tensor
    embed_scale: Tensor
    mix: Tensor
    mix_b: Tensor
    mix_scale: Tensor
    gates: Tensor
    gates_b: Tensor

    @classmethod
    def of(cls, core: RSSM, dtype: torch.dtype) -> Weights:
        """The weights of this core; the matrices in the precision of its products."""
        deter: Any = core.deter_in
        stoch: Any = core.stoch_in
        return cls(
            deter[0].weight.to(dtype), stoch[0].weight.to(dtype),
            torch.stack([deter[0].bias, stoch[0].bias]),
            torch.stack([deter[1].norm.scale, stoch[1].norm.scale]),
            core.mix.weight.to(dtype), core.mix.bias, core.mix_norm.norm.scale,
            core.gates.weight.to(dtype), core.gates.bias,
        )  # fmt: skip


class Tape:
    """The recurrence for rows B, keeping what T steps compute on their way, for the gradient.

    deter is read by one product for all n that embed it: the posterior of its own step, where there
    is one, and the next step. So `read` comes before each `step`.
    """

    def __init__(
        self, core: RSSM, weights: Weights, steps: int, rows: int, post_w: Tensor | None = None
    ) -> None:
        self.weights = w = Weights(*(x.detach() for x in weights))
        self.ops = steps_for(core, rows, w.mix)
        self.blocks, _, self.d = g, _, d = w.mix.shape
        h = w.embed_b.shape[1]
        self.own = w.mix[:, :d]  # [G, D/G, D/G]
        shared = w.mix[:, d:].transpose(0, 1).reshape(3 * h, g * d)  # all blocks side by side
        self.from_outer, self.from_action = shared.split([2 * h, h])
        self.reader = w.deter_w if post_w is None else torch.cat([post_w, w.deter_w])  # [n h, D]
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
        embedded = torch.mm(stoch, w.stoch_w.t(), out=self.stochs[t])
        ops.embed(self.heads[t], embedded, w.embed_b, w.embed_scale, reset, outer)
        shared = torch.mm(outer.flatten(1), self.from_outer, out=self._shared)
        own = torch.bmm(self.in_blocks(deter), self.own, out=self._own)
        ops.mix(own, shared, action, w.mix_b, w.mix_scale, reset, mixed, normed)
        torch.bmm(normed, w.gates, out=gates)
        ops.gru(gates, w.gates_b, deter, reset, out)


class _Back:
    """The way back through a tape whose steps began at deters [T, B, D], reset where first."""

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

    def step(self, t: int, ddeter: Tensor) -> None:
        """Through step t, with the gradient [B, D] of its deter but for `direct`, which becomes
        that to the deter before it."""
        tape, w, ops, resets = self.tape, self.tape.weights, self.tape.ops, self.resets
        dmixed, dgates = self.dmixed[t], self.dgates[t]
        args = tape.gates[t], w.gates_b, self.deters[t], resets[t], dgates
        ops.gru_back(ddeter, self.direct, resets[t + 1], *args)
        dnormed = torch.bmm(dgates, w.gates.transpose(1, 2))
        ops.mix_back(dnormed, tape.mixed[t], w.mix_scale, dmixed, self.mix_sums)
        douter = torch.mm(dmixed, tape.from_outer.t()).view_as(tape.outer[t])
        before, below = (tape.heads[t], tape.stochs[t]), (self.dheads[t], self.dstochs[t])
        ops.embed_back(douter, *before, w.embed_scale, resets[t], *below, self.embed_sums)
        blocks = tape.in_blocks(dmixed), tape.own.transpose(1, 2)
        tape.in_blocks(self.direct).baddbmm_(*blocks)

    def first_deter(self) -> Tensor:
        """The gradient [B, D] to the deter before step 0."""
        direct = self.direct.masked_fill(self.resets[0].unsqueeze(-1), 0.0)
        return direct.addmm_(self.dheads[0, :, -1], self.tape.weights.deter_w)

    def weights(self, stochs: Tensor, actions: Tensor) -> tuple[Tensor, Weights]:
        """The gradients of embedded actions [T, B, h] and of all weights, over all steps, which
        began at stochs [T, B, S K]."""
        tape, reset = self.tape, self.resets[:-1].unsqueeze(-1)
        g, d, h = tape.blocks, tape.d, actions.shape[-1]
        # Without a NaN of the episode before, which would survive a product with zero.
        deter = self.deters.masked_fill(reset, 0.0).flatten(0, 1)
        stoch = stochs.masked_fill(reset, 0.0).flatten(0, 1)
        ddeter, dstoch = self.dheads[:-1, :, -1].flatten(0, 1), self.dstochs.flatten(0, 1)
        dmixed = self.dmixed.flatten(0, 1)
        outer = torch.cat([tape.outer.flatten(2), actions], -1).flatten(0, 1)
        shared = (outer.t() @ dmixed).view(3 * h, g, d).transpose(0, 1)
        own = torch.bmm(tape.in_blocks(deter).transpose(1, 2), tape.in_blocks(dmixed))
        normed, dgates = (x.transpose(0, 1).flatten(1, 2) for x in (tape.normed, self.dgates))
        embed_b, embed_scale = tape.ops.total(self.embed_sums).view(2, 2, h)
        return dmixed @ tape.from_action.t(), Weights(
            ddeter.t() @ deter, dstoch.t() @ stoch, embed_b, embed_scale,
            torch.cat([own, shared], 1), _sum(dmixed, 0), tape.ops.total(self.mix_sums),
            torch.bmm(normed.transpose(1, 2), dgates), _sum(dgates, 1).flatten(),
        )  # fmt: skip


def _sum(x: Tensor, dim: int) -> Tensor:
    return x.sum(dim, dtype=torch.float32)


class _Scan(torch.autograd.Function):
    """What `RSSM.observe` loops over, all steps of it. Time comes first: [T, B, ...].

    Each step, and back in the order of the arrows turned round:

        heads, stoch, action -> outer -> mixed -> normed -> gates -> deter -> heads
        heads, seen -> after -> params -> stoch
    """

    @staticmethod
    def forward(ctx: Any, core: RSSM, *tensors: Tensor) -> tuple[Tensor, ...]:
        deter, stoch, actions, seen, first, noise, *rest = (x.detach() for x in tensors)
        post_w, post_scale, out_w, out_b = rest[9:]
        steps, rows = first.shape
        tape = Tape(core, Weights(*rest[:9]), steps, rows, post_w)
        ops, added, new = tape.ops, tape.embed(actions), actions.new_empty
        deters, stochs = new(steps + 1, *deter.shape), new(steps + 1, *stoch.shape)
        deters[0], stochs[0] = deter, stoch
        after, params = torch.empty_like(seen), new(steps, rows, core.groups, core.numbers)
        tape.read(0, deters[0])
        for t in range(steps):
            tape.step(t, deters[t], stochs[t], added[t], first[t], deters[t + 1])
            tape.read(t + 1, deters[t + 1])
            ops.infer(tape.heads[t + 1], seen[t], post_scale, after[t])
            torch.mm(after[t], out_w.t(), out=params[t].flatten(1))
            ops.draw(params[t], out_b, noise[t], stochs[t + 1])
        ctx.save_for_backward(
            deters, stochs, actions, first, noise, after, params, post_scale, out_w
        )
        ctx.tape = tape
        return deters[1:].clone(), stochs[1:].clone(), params.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tape, ops = ctx.tape, ctx.tape.ops
        deters, stochs, actions, first, noise, after, params, *rest = ctx.saved_tensors
        post_scale, out_w = rest
        back = _Back(tape, deters[:-1], first)
        ddeter, dstoch, dparams = (g.clone(memory_format=torch.contiguous_format) for g in grads)
        scale_sums = ops.sums(len(post_scale))
        for t in reversed(range(len(first))):
            ops.draw_back(dstoch[t], params[t], noise[t], dparams[t])
            dafter = torch.mm(dparams[t].flatten(1), out_w)
            heads, dheads = tape.heads[t + 1], back.dheads[t + 1]
            ops.infer_back(dafter, heads, post_scale, dheads, scale_sums)
            ddeter[t].addmm_(dheads.flatten(1), tape.reader)
            back.step(t, ddeter[t])
            if t:
                dstoch[t - 1].addmm_(back.dstochs[t], tape.weights.stoch_w)
        dseen = back.dheads[1:, :, 0]
        dlogits = dparams.flatten(2).flatten(0, 1)
        dactions, dweights = back.weights(stochs[:-1], actions)
        return (
            None, back.first_deter(), torch.mm(back.dstochs[0], tape.weights.stoch_w),
            dactions.view_as(actions), dseen, None, None, *dweights,
            dseen.flatten(0, 1).t() @ deters[1:].flatten(0, 1), ops.total(scale_sums),
            dlogits.t() @ after.flatten(0, 1), _sum(dlogits, 0),
        )  # fmt: skip


def scan(
    core: RSSM, state: LatentState, actions: Tensor, seen: Tensor, first: Tensor
) -> tuple[LatentState, Tensor]:
    """What `RSSM.observe` does with embedded actions [B, T, h], seen [B, T, h] (what the embedded
    observations add before the posterior's norm) and first [B, T]: states [B, T, ...] and the
    posterior's parameters."""
    dtype = actions.dtype  # of the products: the networks' precision, under autocast
    like = actions.new_empty(first.shape[1], *state.stoch.shape, dtype=torch.float32)
    noise = steps_for(core, 1, actions).noise(like)
    post_w = core.post_in.weight[:, : core.deter]
    norm: Any = core.post_out[0]
    out: Any = core.post_out[1]
    deter, stoch, params = _Scan.apply(
        core, state.deter.to(dtype), state.stoch.flatten(1).to(dtype),
        *(x.transpose(0, 1).contiguous() for x in (actions, seen, first)), noise,
        *Weights.of(core, dtype),
        post_w.to(dtype), norm.norm.scale, out.weight.to(dtype), out.bias,
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
        self.tape = Tape(core, Weights.of(core, dtype), 1, rows)
        self.never = torch.zeros(rows, dtype=torch.bool, device=weight.device)

    def __call__(self, state: LatentState, action: Tensor) -> LatentState:
        tape, ops = self.tape, self.tape.ops
        deter, stoch = (x.to(tape.heads.dtype) for x in (state.deter, state.stoch.flatten(1)))
        added = tape.embed(self.core.embed_action(action))
        out = LatentState(torch.empty_like(deter), torch.empty_like(stoch))
        tape.read(0, deter)
        tape.step(0, deter, stoch, added, self.never, out.deter)
        noise = ops.noise(torch.empty_like(state.stoch, dtype=torch.float32))
        ops.draw(self.core.prior(out.deter), None, noise, out.stoch)
        return LatentState(out.deter, out.stoch.view_as(state.stoch))


def usable(core: RSSM, steps: int, *tensors: Tensor) -> bool:
    """Whether this file may, and should, stand in for its definition for so many steps."""
    if steps < 2 or "sample" in core.__dict__:  # replaced by a user who wants other draws
        return False
    tensors = core.mix.weight, *tensors
    if in_loops(*tensors):
        return not torch.is_autocast_enabled("cpu")  # the loops know float32 alone
    return on_gpu(*tensors)
