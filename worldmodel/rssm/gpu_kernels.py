"""Triton kernels for one step of the recurrent core, and back; see `worldmodel.accel.gpu_kernels`.

A program handles a row b, or some numbers of it, and adds to the sums over rows that belong to it
alone. Biases, scales, noise and sums are float32. `worldmodel.rssm.steps` says what each kernel
computes. No argument may be called params, options, specialization or backend: Triton wraps a
kernel in a function with local names like these.
"""

from __future__ import annotations

import triton
import triton.language as tl

from worldmodel.accel.gpu_kernels import normed, normed_back, sigmoid


@triton.jit
def tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def embed(deter, stoch, bias, scale, reset, out, last, h, eps, WIDE: tl.constexpr):
    """Program (b, i): i = 0 for deter, number `last` of its row b; i = 1 for stoch."""
    b, i = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = tl.arange(0, WIDE)
    of_deter, of_stoch = k < h * (1 - i), k < h * i
    at_deter, at_stoch = deter + (b * (last + 1) + last) * h + k, stoch + b * h + k
    x = tl.load(at_deter, mask=of_deter, other=0.0) + tl.load(at_stoch, mask=of_stoch, other=0.0)
    x = tl.where(tl.load(reset + b) != 0, 0.0, x.to(tl.float32))
    x += tl.load(bias + i * h + k, mask=k < h, other=0.0)
    x = x.to(out.dtype.element_ty)  # what the gradient will find
    tl.store(at_deter, x, mask=of_deter)
    tl.store(at_stoch, x, mask=of_stoch)
    s = tl.load(scale + i * h + k, mask=k < h, other=0.0)
    y = normed(x.to(tl.float32)[None, :], s[None, :], h, eps)
    tl.store(out + (b * 2 + i) * h + k[None, :], y, mask=(k < h)[None, :])


@triton.jit
def embed_back(
    grad, deter, stoch, scale, reset, ddeter, dstoch, sums, last, h, eps, WIDE: tl.constexpr
):
    """sums [B, 4 h]: of the two biases, then of the two scales."""
    b, i = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = tl.arange(0, WIDE)[None, :]
    of_deter, of_stoch = k < h * (1 - i), k < h * i
    to_deter, to_stoch = (b * (last + 1) + last) * h + k, b * h + k
    x = tl.load(deter + to_deter, mask=of_deter, other=0.0).to(tl.float32)
    x += tl.load(stoch + to_stoch, mask=of_stoch, other=0.0).to(tl.float32)
    g = tl.load(grad + (b * 2 + i) * h + k, mask=k < h, other=0.0).to(tl.float32)
    s = tl.load(scale + i * h + k, mask=k < h, other=0.0)
    dx, dscale = normed_back(g, x, s, h, eps)
    at = sums + (b * 4 + i) * h + k
    tl.store(at, tl.load(at, mask=k < h, other=0.0) + dx, mask=k < h)
    at += 2 * h
    tl.store(at, tl.load(at, mask=k < h, other=0.0) + dscale, mask=k < h)
    dx = tl.where(tl.load(reset + b) != 0, 0.0, dx)
    tl.store(ddeter + to_deter, dx, mask=of_deter)
    tl.store(dstoch + to_stoch, dx, mask=of_stoch)


@triton.jit
def mix(
    own, shared, action, bias, scale, reset, mixed, out, rows, d, wide, eps, WIDE: tl.constexpr
):
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDE)
    inside, flat = k < wide, b * wide + k
    blocked = (k // d * rows + b) * d + k % d
    x = tl.load(own + blocked, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(tl.load(reset + b) != 0, 0.0, x)
    x += tl.load(shared + flat, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(action + flat, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias + k, mask=inside, other=0.0)
    x = x.to(mixed.dtype.element_ty)  # what the gradient will find
    tl.store(mixed + flat, x, mask=inside)
    s = tl.load(scale + k, mask=inside, other=0.0)
    y = normed(x.to(tl.float32)[None, :], s[None, :], wide, eps)
    tl.store(out + blocked[None, :], y, mask=inside[None, :])


@triton.jit
def mix_back(grad, mixed, scale, dmixed, sums, rows, d, wide, eps, WIDE: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDE)[None, :]
    inside, flat = k < wide, b * wide + k
    g = tl.load(grad + (k // d * rows + b) * d + k % d, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(mixed + flat, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(scale + k, mask=inside, other=0.0)
    dx, dscale = normed_back(g, x, s, wide, eps)
    tl.store(dmixed + flat, dx, mask=inside)
    tl.store(sums + flat, tl.load(sums + flat, mask=inside, other=0.0) + dscale, mask=inside)


@triton.jit
def gated(gates, bias, b, k, rows, d, inside):
    """Where numbers k of row b have their gates; opening, raw candidate, candidate, update."""
    at = (k // d * rows + b) * 3 * d + k % d
    to = k // d * 3 * d + k % d
    opening = tl.load(gates + at, mask=inside, other=0.0).to(tl.float32)
    opening = sigmoid(opening + tl.load(bias + to, mask=inside, other=0.0))
    raw = tl.load(gates + at + d, mask=inside, other=0.0).to(tl.float32)
    raw += tl.load(bias + to + d, mask=inside, other=0.0)
    update = tl.load(gates + at + 2 * d, mask=inside, other=0.0).to(tl.float32)
    update = sigmoid(update + tl.load(bias + to + 2 * d, mask=inside, other=0.0) - 1.0)
    return at, opening, raw, tanh(opening * raw), update


@triton.jit
def gru(gates, bias, deter, reset, out, rows, d, wide, WIDE: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside, flat = k < wide, b * wide + k
    _, _, _, candidate, update = gated(gates, bias, b, k, rows, d, inside)
    h = tl.load(deter + flat, mask=inside, other=0.0).to(tl.float32)
    h = tl.where(tl.load(reset + b) != 0, 0.0, h)
    tl.store(out + flat, h + update * (candidate - h), mask=inside)


@triton.jit
def gru_back(
    grad, direct, again, gates, bias, deter, reset, dgates, rows, d, wide, WIDE: tl.constexpr
):
    b = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside, flat = k < wide, b * wide + k
    at, opening, raw, candidate, update = gated(gates, bias, b, k, rows, d, inside)
    h = tl.load(deter + flat, mask=inside, other=0.0).to(tl.float32)
    h = tl.where(tl.load(reset + b) != 0, 0.0, h)
    dh = tl.load(direct + flat, mask=inside, other=0.0).to(tl.float32)
    dh = tl.where(tl.load(again + b) != 0, 0.0, dh)
    dh += tl.load(grad + flat, mask=inside, other=0.0).to(tl.float32)
    dc = dh * update * (1.0 - candidate * candidate)
    tl.store(dgates + at, dc * raw * opening * (1.0 - opening), mask=inside)
    tl.store(dgates + at + d, dc * opening, mask=inside)
    du = dh * (candidate - h)
    tl.store(dgates + at + 2 * d, du * update * (1.0 - update), mask=inside)
    tl.store(direct + flat, dh * (1.0 - update), mask=inside)


@triton.jit
def infer(deter, seen, scale, out, heads, h, eps, WIDE: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDE)[None, :]
    at = deter + b * heads * h + k
    x = tl.load(at, mask=k < h, other=0.0).to(tl.float32)
    x += tl.load(seen + b * h + k, mask=k < h, other=0.0).to(tl.float32)
    x = x.to(out.dtype.element_ty)  # what the gradient will find
    tl.store(at, x, mask=k < h)
    s = tl.load(scale + k, mask=k < h, other=0.0)
    tl.store(out + b * h + k, normed(x.to(tl.float32), s, h, eps), mask=k < h)


@triton.jit
def infer_back(grad, deter, scale, ddeter, sums, heads, h, eps, WIDE: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDE)[None, :]
    x = tl.load(deter + b * heads * h + k, mask=k < h, other=0.0).to(tl.float32)
    g = tl.load(grad + b * h + k, mask=k < h, other=0.0).to(tl.float32)
    s = tl.load(scale + k, mask=k < h, other=0.0)
    dx, dscale = normed_back(g, x, s, h, eps)
    tl.store(ddeter + b * heads * h + k, dx, mask=k < h)
    at = sums + b * h + k
    tl.store(at, tl.load(at, mask=k < h, other=0.0) + dscale, mask=k < h)


@triton.jit
def softmax(x):
    """Of rows [ROWS, WIDE], in which what does not count is -inf."""
    e = tl.exp(x - tl.max(x, 1)[:, None])
    return e / tl.sum(e, 1)[:, None]


@triton.jit
def one_hot(
    logits,
    bias,
    noise,
    out,
    n,
    groups,
    c,
    unimix,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One-hot rows [n, c] drawn by exponential clocks, made of uniform noise."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, WIDE)[None, :]
    inside = (row < n)[:, None] & (k < c)
    at = row[:, None] * c + k
    x = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias + (row % groups)[:, None] * c + k, mask=inside, other=0.0)
        x = x.to(logits.dtype.element_ty).to(tl.float32)
        tl.store(logits + at, x, mask=inside)
    p = softmax(tl.where(k < c, x, -float("inf")))
    clock = -tl.log(tl.load(noise + at, mask=inside, other=0.5))
    counts = (k < c) & (p == p)  # a NaN takes no part
    speed = tl.where(counts, ((1.0 - unimix) * p + unimix / c) / clock, -1.0)
    chosen = tl.argmax(speed, 1)[:, None]
    hot = tl.where(k == chosen, 1.0, 0.0) + p * 0.0  # no draw from what is not a number
    tl.store(out + at, hot, mask=inside)


@triton.jit
def one_hot_back(grad, logits, dlogits, n, c, unimix, ROWS: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, WIDE)[None, :]
    inside = (row < n)[:, None] & (k < c)
    at = row[:, None] * c + k
    x = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
    p = softmax(tl.where(k < c, x, -float("inf")))
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    d = (1.0 - unimix) * p * (g - tl.sum(p * g, 1)[:, None])
    d += tl.load(dlogits + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dlogits + at, d, mask=inside)


@triton.jit
def normal(stats, bias, noise, out, n, groups, BIAS: tl.constexpr, ROWS: tl.constexpr):
    """mean + std * noise, [n], of stats [n, 2] (see `RSSM.dist`)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    mean = tl.load(stats + 2 * row, mask=inside, other=0.0).to(tl.float32)
    raw = tl.load(stats + 2 * row + 1, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        to = bias + row % groups * 2
        mean += tl.load(to, mask=inside, other=0.0)
        raw += tl.load(to + 1, mask=inside, other=0.0)
        mean = mean.to(stats.dtype.element_ty).to(tl.float32)
        raw = raw.to(stats.dtype.element_ty).to(tl.float32)
        tl.store(stats + 2 * row, mean, mask=inside)
        tl.store(stats + 2 * row + 1, raw, mask=inside)
    z = tl.load(noise + row, mask=inside, other=0.0)
    tl.store(out + row, mean + (2.0 * sigmoid(raw * 0.5) + 0.1) * z, mask=inside)


@triton.jit
def normal_back(grad, stats, noise, dstats, n, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    g = tl.load(grad + row, mask=inside, other=0.0).to(tl.float32)
    q = sigmoid(tl.load(stats + 2 * row + 1, mask=inside, other=0.0).to(tl.float32) * 0.5)
    z = tl.load(noise + row, mask=inside, other=0.0)
    mean = tl.load(dstats + 2 * row, mask=inside, other=0.0).to(tl.float32)
    raw = tl.load(dstats + 2 * row + 1, mask=inside, other=0.0).to(tl.float32)
    tl.store(dstats + 2 * row, mean + g, mask=inside)
    tl.store(dstats + 2 * row + 1, raw + g * z * q * (1.0 - q), mask=inside)
