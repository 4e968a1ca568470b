"""Loops in machine code for one step of the recurrent core, and back; see `accel.kernels`.

Rows b are independent. A layer of D numbers lies in blocks, [G, B, D / G], where a block-diagonal
product reads or writes it, and side by side, [B, D], elsewhere. `worldmodel.rssm.steps` says what
each loop computes; their plain definition is `RSSM.recur` and `RSSM.sample`.
"""

from __future__ import annotations

import numpy as np

from worldmodel.accel.kernels import compiled, exp, expanded, f32, sigmoid, tanh


@expanded
def normed(x, added, keep, scale, eps, out):  # type: ignore[no-untyped-def]
    """silu(RMSNorm(x)) of one row, to which (or to zeros, unless keep) is first added in place."""
    total = f32(0.0)
    for k in range(len(x)):
        v = added[k] + (x[k] if keep else f32(0.0))
        x[k] = v
        total += v * v
    r = f32(1.0) / np.sqrt(total / f32(len(x)) + eps)
    for k in range(len(x)):
        y = x[k] * r * scale[k]
        out[k] = y * sigmoid(y)


@expanded
def normed_back(grad, x, scale, eps, dx, dscale):  # type: ignore[no-untyped-def]
    """The gradient of `normed` to x; adds the one to the scale."""
    wide = f32(len(x))
    total = f32(0.0)
    for k in range(len(x)):
        total += x[k] * x[k]
    r = f32(1.0) / np.sqrt(total / wide + eps)
    dot = f32(0.0)
    for k in range(len(x)):
        h = x[k] * r
        y = h * scale[k]
        q = sigmoid(y)
        t = grad[k] * q * (f32(1.0) + y * (f32(1.0) - q))
        dscale[k] += t * h
        t *= scale[k]
        dx[k] = t
        dot += t * h
    mean = dot * r / wide
    for k in range(len(x)):
        dx[k] = r * (dx[k] - x[k] * mean)


@compiled
def embed(first, last, deter, stoch, bias, scale, eps, reset, out):  # type: ignore[no-untyped-def]
    """deter [B, n, h] (the last of n) and stoch [B, h], each plus its bias; their norms."""
    for b in range(first, last):
        for i in range(2):
            x = stoch[b] if i else deter[b, -1]
            normed(x, bias[i], not reset[b], scale[i], eps, out[b, i])


@compiled
def embed_back(first, last, grad, deter, stoch, scale, eps, reset, ddeter, dstoch, sums):  # type: ignore[no-untyped-def]
    """sums [4 h]: of the two biases, then of the two scales."""
    h = stoch.shape[1]
    for b in range(first, last):
        for i in range(2):
            x, dx = (stoch[b], dstoch[b]) if i else (deter[b, -1], ddeter[b, -1])
            dbias, dscale = sums[i * h : (i + 1) * h], sums[(i + 2) * h : (i + 3) * h]
            normed_back(grad[b, i], x, scale[i], eps, dx, dscale)
            for k in range(h):
                dbias[k] += dx[k]
            if reset[b]:
                dx[:] = f32(0.0)


@compiled
def mix(first, last, own, shared, action, bias, scale, eps, reset, x, out):  # type: ignore[no-untyped-def]
    """x [B, D] = own in blocks + shared + action + bias; out, in blocks: silu(RMSNorm(x))."""
    d = own.shape[2]
    for b in range(first, last):
        total = f32(0.0)
        for g in range(own.shape[0]):
            for k in range(d):
                i = g * d + k
                v = shared[b, i] + action[b, i] + bias[i]
                v += f32(0.0) if reset[b] else own[g, b, k]
                x[b, i] = v
                total += v * v
        r = f32(1.0) / np.sqrt(total / f32(x.shape[1]) + eps)
        for g in range(own.shape[0]):
            for k in range(d):
                y = x[b, g * d + k] * r * scale[g * d + k]
                out[g, b, k] = y * sigmoid(y)


@compiled
def mix_back(first, last, grad, x, scale, eps, dx, dscale):  # type: ignore[no-untyped-def]
    """The gradient [B, D] of `mix` to x, for grad in blocks; adds that to the scale."""
    d, wide = grad.shape[2], f32(x.shape[1])
    for b in range(first, last):
        total = f32(0.0)
        for k in range(x.shape[1]):
            total += x[b, k] * x[b, k]
        r = f32(1.0) / np.sqrt(total / wide + eps)
        dot = f32(0.0)
        for g in range(grad.shape[0]):
            for k in range(d):
                i = g * d + k
                h = x[b, i] * r
                y = h * scale[i]
                q = sigmoid(y)
                t = grad[g, b, k] * q * (f32(1.0) + y * (f32(1.0) - q))
                dscale[i] += t * h
                t *= scale[i]
                dx[b, i] = t
                dot += t * h
        mean = dot * r / wide
        for k in range(x.shape[1]):
            dx[b, k] = r * (dx[b, k] - x[b, k] * mean)


@compiled
def gru(first, last, gates, bias, deter, reset, out):  # type: ignore[no-untyped-def]
    """gates [G, B, 3 D / G] without bias: reset, candidate, update; deter, out: [B, D]."""
    d = gates.shape[2] // 3
    for b in range(first, last):
        for g in range(gates.shape[0]):
            y = bias[g * 3 * d : (g + 1) * 3 * d]
            for k in range(d):
                open_ = sigmoid(gates[g, b, k] + y[k])
                raw = gates[g, b, d + k] + y[d + k]
                candidate = tanh(open_ * raw)
                update = sigmoid(gates[g, b, 2 * d + k] + y[2 * d + k] - f32(1.0))
                h = f32(0.0) if reset[b] else deter[b, g * d + k]
                out[b, g * d + k] = h + update * (candidate - h)


@compiled
def gru_back(first, last, grad, direct, again, gates, bias, deter, reset, dgates):  # type: ignore[no-untyped-def]
    """grad, direct: [B, D], to what `gru` gave; the gradient to deter goes into direct."""
    # One array written in each loop: with more, the compiler does not dare to use whole vectors.
    d = gates.shape[2] // 3
    scratch = np.empty((4, d), np.float32)
    opening, candidate, update, dh = scratch[0], scratch[1], scratch[2], scratch[3]
    for b in range(first, last):
        for g in range(gates.shape[0]):
            x, dx = gates[g, b], dgates[g, b]
            y = bias[g * 3 * d : (g + 1) * 3 * d]
            at = slice(g * d, (g + 1) * d)
            h, above, below = deter[b, at], grad[b, at], direct[b, at]
            for k in range(d):
                opening[k] = sigmoid(x[k] + y[k])
            for k in range(d):
                candidate[k] = tanh(opening[k] * (x[d + k] + y[d + k]))
            for k in range(d):
                update[k] = sigmoid(x[2 * d + k] + y[2 * d + k] - f32(1.0))
            for k in range(d):
                dh[k] = above[k] + (f32(0.0) if again[b] else below[k])
            for k in range(d):
                below[k] = dh[k] * (f32(1.0) - update[k])
            for k in range(d):
                before = f32(0.0) if reset[b] else h[k]
                du = dh[k] * (candidate[k] - before)
                dx[2 * d + k] = du * update[k] * (f32(1.0) - update[k])
            for k in range(d):  # dh becomes that to the candidate, before its tanh
                dh[k] *= update[k] * (f32(1.0) - candidate[k] * candidate[k])
            for k in range(d):
                dx[d + k] = dh[k] * opening[k]
            for k in range(d):
                raw = x[d + k] + y[d + k]
                dx[k] = dh[k] * raw * opening[k] * (f32(1.0) - opening[k])


@compiled
def infer(first, last, deter, seen, scale, eps, out):  # type: ignore[no-untyped-def]
    """The first of deter [B, n, h] plus seen [B, h], and its norm."""
    for b in range(first, last):
        normed(deter[b, 0], seen[b], True, scale, eps, out[b])


@compiled
def infer_back(first, last, grad, deter, scale, eps, ddeter, sums):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        normed_back(grad[b], deter[b, 0], scale, eps, ddeter[b, 0], sums)


@compiled
def one_hot(first, last, logits, noise, unimix, out):  # type: ignore[no-untyped-def]
    """One-hot rows [n, K] drawn by exponential clocks (noise) from softmax(logits), mixed."""
    count = logits.shape[1]
    for n in range(first, last):
        top = logits[n, 0]
        for k in range(1, count):
            top = logits[n, k] if logits[n, k] > top else top
        total = f32(0.0)
        for k in range(count):
            out[n, k] = exp(logits[n, k] - top)
            total += out[n, k]
        share, even = (f32(1.0) - unimix) / total, unimix / f32(count)
        chosen, most = 0, f32(-1.0)
        for k in range(count):
            speed = (share * out[n, k] + even) / noise[n, k]
            if speed > most:
                chosen, most = k, speed
            out[n, k] = f32(0.0)
        out[n, chosen] = f32(1.0) + total * f32(0.0)  # no draw from what is not a number


@compiled
def one_hot_back(first, last, grad, logits, unimix, dlogits):  # type: ignore[no-untyped-def]
    """Adds the straight-through gradient of `one_hot`: that of the mixed probabilities."""
    count = logits.shape[1]
    for n in range(first, last):
        top = logits[n, 0]
        for k in range(1, count):
            top = logits[n, k] if logits[n, k] > top else top
        total, dot = f32(0.0), f32(0.0)
        for k in range(count):
            e = exp(logits[n, k] - top)
            total += e
            dot += e * grad[n, k]
        for k in range(count):
            p = exp(logits[n, k] - top) / total
            dlogits[n, k] += (f32(1.0) - unimix) * p * (grad[n, k] - dot / total)


@compiled
def normal(first, last, params, noise, out):  # type: ignore[no-untyped-def]
    """mean + std * noise, [n, 1], of params [n, 2] (see `RSSM.dist`)."""
    for n in range(first, last):
        std = f32(2.0) * sigmoid(params[n, 1] * f32(0.5)) + f32(0.1)
        out[n, 0] = params[n, 0] + std * noise[n, 0]


@compiled
def normal_back(first, last, grad, params, noise, dparams):  # type: ignore[no-untyped-def]
    """Adds the gradient of `normal` to params."""
    for n in range(first, last):
        q = sigmoid(params[n, 1] * f32(0.5))
        dparams[n, 0] += grad[n, 0]
        dparams[n, 1] += grad[n, 0] * noise[n, 0] * q * (f32(1.0) - q)
