"""The recurrent core on a CPU: the same steps with fewer operations, and their gradient by hand.

A sequence of 64 small steps costs more for the number of its operations than for their arithmetic:
about sixty a step and twice as many on the way back, most of them through autograd. Here a step is
seven products and five loops (`worldmodel.rssm.kernels`); on the way back only what the next step
needs is computed step by step, and every weight gets its gradient afterwards, as one product over
all steps.

`RSSM.recur` and `RSSM.observe` are the definition; tests hold this file equal to them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldmodel import distributions
from worldmodel.fused import in_loops, loops, ranges, share, sums_for
from worldmodel.types import LatentState

if TYPE_CHECKING:
    from worldmodel.rssm.core import RSSM


@cache
def _kernels() -> Any:
    from worldmodel.rssm import kernels  # numba takes a while to load

    return kernels


class Weights(NamedTuple):
    """What the recurrence and the posterior multiply with. G blocks, h hidden.

    mix: [G, D/G + 3 h, D/G]: rows of a block's own deter, then those of what all blocks share: the
    embedded deter, stoch and action.
    """

    deter_w: Tensor
    deter_b: Tensor
    deter_scale: Tensor
    stoch_w: Tensor
    stoch_b: Tensor
    stoch_scale: Tensor
    mix: Tensor
    mix_b: Tensor
    mix_scale: Tensor
    gates: Tensor
    gates_b: Tensor

    @classmethod
    def of(cls, core: RSSM) -> Weights:
        """The weights of this core, themselves."""
        deter: Any = core.deter_in
        stoch: Any = core.stoch_in
        return cls(
            deter[0].weight, deter[0].bias, deter[1].norm.scale,
            stoch[0].weight, stoch[0].bias, stoch[1].norm.scale,
            core.mix.weight, core.mix.bias, core.mix_norm.norm.scale,
            core.gates.weight, core.gates.bias,
        )  # fmt: skip


class Tape:
    """The recurrence for rows B, keeping what T steps compute on their way, for the gradient."""

    def __init__(self, weights: Weights, eps: float, steps: int, rows: int) -> None:
        self.weights = w = Weights(*(x.detach() for x in weights))
        self.blocks, _, self.d = w.mix.shape
        g, d, h = self.blocks, self.d, len(w.deter_b)
        self.rows, self.eps = rows, np.float32(eps)
        self.parts = ranges(rows, rows * g * d)
        self.own = w.mix[:, :d]  # [G, D/G, D/G]
        shared = w.mix[:, d:].transpose(0, 1).reshape(3 * h, g * d)  # all blocks side by side
        self.from_deter, self.from_stoch, self.from_action = shared.split(h)
        self.scales = [x.numpy() for x in (w.deter_scale, w.stoch_scale, w.mix_scale)]
        self.gates_b = w.gates_b.view(g, 3 * d).numpy()
        # Before and after the norms of embedded deter and stoch; before and after that of the mix.
        self.inner, self.outer = torch.empty(2, steps, 2, rows, h).unbind(0)
        self.mixed = torch.empty(steps, rows, g * d)
        self.normed = torch.empty(steps, g, rows, d)
        self.gates = torch.empty(steps, g, rows, 3 * d)
        self.arrays = [
            x.numpy() for x in (self.inner, self.outer, self.mixed, self.normed, self.gates)
        ]
        self._own, self._shared = torch.empty(g, rows, d), torch.empty(rows, g * d)

    def in_blocks(self, x: Tensor) -> Tensor:
        """[B, D] as [G, B, D / G]."""
        return x.view(-1, self.blocks, self.d).transpose(0, 1)

    def embed(self, action: Tensor) -> Tensor:
        """What embedded actions [..., h] add to the mix, [..., D], its bias included."""
        return torch.addmm(self.weights.mix_b, action.flatten(0, -2), self.from_action).view(
            *action.shape[:-1], -1
        )

    def step(self, t: int, deter: Tensor, stoch: Tensor, action: Tensor, out: Tensor) -> None:
        """The next deter [B, D] into `out`, from deter, stoch [B, S K] and `embed(action)`."""
        w, k = self.weights, _kernels()
        inner, outer, mixed, normed, gates = (x[t] for x in self.arrays)
        torch.addmm(w.deter_b, deter, w.deter_w.t(), out=self.inner[t, 0])
        torch.addmm(w.stoch_b, stoch, w.stoch_w.t(), out=self.inner[t, 1])
        for i in range(2):
            share(loops().norm_silu, self.parts, inner[i], self.scales[i], self.eps, 1, 1, outer[i])
        shared = torch.addmm(action, self.outer[t, 0], self.from_deter, out=self._shared)
        shared.addmm_(self.outer[t, 1], self.from_stoch)
        own = torch.bmm(self.in_blocks(deter), self.own, out=self._own)
        args = own.numpy(), shared.numpy(), self.scales[2], self.eps, mixed, normed
        share(k.mix_norm_silu, self.parts, *args)
        torch.bmm(self.normed[t], w.gates, out=self.gates[t])
        share(k.gru, self.parts, gates, self.gates_b, deter.numpy(), out.numpy())


def draw(core: RSSM, params: Tensor, noise: Tensor, out: Tensor) -> None:
    """Latents [..., S, K] into `out`, as `RSSM.sample` draws them, without gradient."""
    rows = [x.numpy().reshape(-1, x.shape[-1]) for x in (params, noise, out)]
    split = ranges(len(rows[0]), params.numel())
    if core.gaussian:
        share(_kernels().normal, split, *rows)
    else:
        share(_kernels().one_hot, split, *rows[:2], np.float32(core.unimix), rows[2])


def clocks(core: RSSM, noise: Tensor) -> Tensor:
    """Fill with what `RSSM.sample` draws latents [..., S, K] by."""
    return noise.normal_() if core.gaussian else distributions.exponential_(noise)


def draw_back(core: RSSM, grad: Tensor, params: Tensor, noise: Tensor, dparams: Tensor) -> None:
    """Add to `dparams` the gradient of `draw` for the latents' grad; flat rows, [B, ...]."""
    width = 2 if core.gaussian else core.classes
    grads, drawn = (x.numpy().reshape(-1, core.classes) for x in (grad, noise))
    rows, below = (x.numpy().reshape(-1, width) for x in (params, dparams))
    split = ranges(len(rows), params.numel())
    if core.gaussian:
        share(_kernels().normal_back, split, grads, rows, drawn, below)
    else:
        share(_kernels().one_hot_back, split, grads, rows, np.float32(core.unimix), below)


class _Back:
    """The way back through a tape whose steps began at deter_in [T, B, D]."""

    def __init__(self, tape: Tape, deter_in: Tensor) -> None:
        self.tape, self.deter_in = tape, deter_in
        self.dinner, self.dmixed = torch.empty_like(tape.inner), torch.empty_like(tape.mixed)
        self.dgates = torch.empty_like(tape.gates)
        self.arrays = [x.numpy() for x in (self.dinner, self.dmixed, self.dgates)]
        self.dscales = [sums_for(tape.parts, len(x)) for x in tape.scales]

    def step(self, t: int, ddeter: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient of step t's deter [B, D]: those of the deter and stoch before it."""
        tape, w, k = self.tape, self.tape.weights, _kernels()
        inner, _, mixed, _, gates = (x[t] for x in tape.arrays)
        dinner, dmixed, dgates = (x[t] for x in self.arrays)
        before = torch.empty_like(ddeter)
        args: tuple[Any, ...]
        args = gates, tape.gates_b, self.deter_in[t].numpy(), dgates, before.numpy()
        share(k.gru_back, tape.parts, ddeter.numpy(), *args)
        dnormed = torch.bmm(self.dgates[t], w.gates.transpose(1, 2))
        args = dnormed.numpy(), mixed, tape.scales[2], tape.eps, dmixed
        share(k.mix_norm_silu_back, tape.parts, *args, own=(self.dscales[2],))
        for i, source in enumerate((tape.from_deter, tape.from_stoch)):
            douter = torch.mm(self.dmixed[t], source.t()).numpy()
            args = douter, inner[i], tape.scales[i], tape.eps, 1, 1, dinner[i]
            share(loops().norm_silu_back, tape.parts, *args, own=(self.dscales[i],))
        before.addmm_(self.dinner[t, 0], w.deter_w)
        blocks = torch.bmm(tape.in_blocks(self.dmixed[t]), tape.own.transpose(1, 2))
        tape.in_blocks(before).add_(blocks)
        return before, torch.mm(self.dinner[t, 1], w.stoch_w)

    def weights(self, stoch_in: Tensor, actions: Tensor) -> tuple[Tensor, Weights]:
        """The gradients of embedded actions [T, B, h] and of all weights, over all steps."""
        tape = self.tape
        g, d, h = tape.blocks, tape.d, actions.shape[-1]
        deter, stoch, dmixed = (x.flatten(0, 1) for x in (self.deter_in, stoch_in, self.dmixed))
        ddeter, dstoch = (x.flatten(0, 1) for x in self.dinner.unbind(1))
        outer = torch.cat([*tape.outer.unbind(1), actions], -1).flatten(0, 1)
        shared = (outer.t() @ dmixed).view(3 * h, g, d).transpose(0, 1)
        own = torch.bmm(tape.in_blocks(deter).transpose(1, 2), tape.in_blocks(dmixed))
        normed, dgates = (x.transpose(0, 1).flatten(1, 2) for x in (tape.normed, self.dgates))
        scales = [torch.from_numpy(x.sum(0)) for x in self.dscales]
        return dmixed @ tape.from_action.t(), Weights(
            ddeter.t() @ deter, ddeter.sum(0), scales[0],
            dstoch.t() @ stoch, dstoch.sum(0), scales[1],
            torch.cat([own, shared], 1), dmixed.sum(0), scales[2],
            torch.bmm(normed.transpose(1, 2), dgates), dgates.sum(1).flatten(),
        )  # fmt: skip


class _Scan(torch.autograd.Function):
    """What `RSSM.observe` loops over, all steps of it. Time comes first: [T, B, ...].

    Each step, and back in the order of the arrows turned round:

        deter, stoch, action -> inner -> outer -> mixed -> normed -> gates -> deter
        deter, seen -> before -> after -> params -> stoch
    """

    @staticmethod
    def forward(ctx: Any, core: RSSM, *tensors: Tensor) -> tuple[Tensor, ...]:
        deter, stoch, actions, seen, first, noise, *rest = tensors
        weights, (post_w, post_scale, out_w, out_b) = Weights(*rest[:11]), rest[11:]
        steps, rows = first.shape
        tape = Tape(weights, core.eps, steps, rows)
        added = tape.embed(actions)
        deters = torch.empty(steps + 1, *deter.shape)
        stochs = torch.empty(steps + 1, *stoch.shape)
        deters[0], stochs[0] = deter, stoch
        before, after = torch.empty_like(seen), torch.empty_like(seen)
        params = torch.empty(steps, rows, len(out_b))
        scale, anew = post_scale.detach().numpy(), first.any(1).tolist()
        for t in range(steps):
            deter, stoch = deters[t], stochs[t]
            if anew[t]:  # a new episode begins from zeros
                reset = first[t].unsqueeze(-1)
                deter, stoch = deter.masked_fill(reset, 0.0), stoch.masked_fill(reset, 0.0)
            tape.step(t, deter, stoch, added[t], deters[t + 1])
            torch.addmm(seen[t], deters[t + 1], post_w.t(), out=before[t])
            args = before[t].numpy(), scale, tape.eps, 1, 1, after[t].numpy()
            share(loops().norm_silu, tape.parts, *args)
            torch.addmm(out_b, after[t], out_w.t(), out=params[t])
            draw(
                core,
                params[t].unflatten(-1, (core.groups, -1)),
                noise[t],
                stochs[t + 1].view_as(noise[t]),
            )
        ctx.save_for_backward(deters, stochs, actions, first, noise, before, after, params, *rest)
        ctx.core, ctx.tape = core, tape
        return deters[1:].clone(), stochs[1:].clone(), params.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        core, tape = ctx.core, ctx.tape
        deters, stochs, actions, first, noise, before, after, params, *rest = ctx.saved_tensors
        post_w, post_scale, out_w, _ = rest[11:]
        reset = first.unsqueeze(-1)
        deter_in = deters[:-1].masked_fill(reset, 0.0)
        stoch_in = stochs[:-1].masked_fill(reset, 0.0)
        back = _Back(tape, deter_in)
        ddeter, dstoch, dparams = (g.clone(memory_format=torch.contiguous_format) for g in grads)
        dbefore = torch.empty_like(before)
        dscale = sums_for(tape.parts, len(post_scale))
        scale, anew = post_scale.detach().numpy(), first.any(1).tolist()
        for t in reversed(range(len(first))):
            draw_back(core, dstoch[t], params[t], noise[t], dparams[t])
            dafter = torch.mm(dparams[t], out_w)
            args = dafter.numpy(), before[t].numpy(), scale, tape.eps, 1, 1, dbefore[t].numpy()
            share(loops().norm_silu_back, tape.parts, *args, own=(dscale,))
            ddeter[t].addmm_(dbefore[t], post_w)
            earlier = back.step(t, ddeter[t])
            for grad, total in zip(earlier, (ddeter, dstoch), strict=True):
                if anew[t]:
                    grad.masked_fill_(reset[t], 0.0)
                if t:
                    total[t - 1] += grad
        dpost_w = dbefore.flatten(0, 1).t() @ deters[1:].flatten(0, 1)
        dout_w = dparams.flatten(0, 1).t() @ after.flatten(0, 1)
        dactions, dweights = back.weights(stoch_in, actions)
        return (
            None, *earlier, dactions.view_as(actions), dbefore, None, None, *dweights,
            dpost_w, torch.from_numpy(dscale.sum(0)), dout_w, dparams.sum((0, 1)),
        )  # fmt: skip


def scan(
    core: RSSM, state: LatentState, actions: Tensor, seen: Tensor, first: Tensor
) -> tuple[LatentState, Tensor]:
    """What `RSSM.observe` does with embedded actions [B, T, h], seen [B, T, h] (what the embedded
    observations add before the posterior's norm) and first [B, T]: states [B, T, ...] and the
    posterior's parameters."""
    noise = actions.new_empty(first.shape[1], *state.stoch.shape)
    for step in noise.unbind(0):
        clocks(core, step)
    post_w = core.post_in.weight[:, : core.deter]
    norm: Any = core.post_out[0]
    out: Any = core.post_out[1]
    deter, stoch, params = _Scan.apply(
        core, state.deter, state.stoch.flatten(1),
        *(x.transpose(0, 1).contiguous() for x in (actions, seen, first)), noise,
        *Weights.of(core), post_w, norm.norm.scale, out.weight, out.bias,
    )  # fmt: skip
    deter, stoch, params = (x.transpose(0, 1) for x in (deter, stoch, params))
    groups = (core.groups, -1)
    return LatentState(deter, stoch.unflatten(-1, groups)), params.unflatten(-1, groups)


class Stepper:
    """`RSSM.step` for rows B of ordinary float32 on a CPU, without gradient; what does not change
    from step to step is made once."""

    def __init__(self, core: RSSM, rows: int) -> None:
        self.core = core
        self.tape = Tape(Weights.of(core), core.eps, 1, rows)

    def __call__(self, state: LatentState, action: Tensor) -> LatentState:
        added = self.tape.embed(self.core.embed_action(action))
        deter = torch.empty_like(state.deter)
        self.tape.step(0, state.deter, state.stoch.flatten(1), added, deter)
        params = self.core.prior(deter)
        stoch = torch.empty_like(state.stoch)
        draw(self.core, params, clocks(self.core, torch.empty_like(stoch)), stoch)
        return LatentState(deter, stoch)


def usable(core: RSSM, steps: int, *tensors: Tensor) -> bool:
    """Whether this file may, and should, stand in for its definition for so many steps."""
    if steps < 2 or "sample" in core.__dict__:  # replaced by a user who wants other draws
        return False
    return in_loops(core.mix.weight, *tensors)
