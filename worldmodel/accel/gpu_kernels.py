"""Triton kernels for a CUDA GPU; `worldmodel.accel.gpu` lends them tensors.

Each makes in one launch what PyTorch makes in five to ten, as the loops of `accel.kernels` do
on a CPU, whose names and arguments they share where they can. Numbers in memory are float32,
bfloat16 or float16; inside a kernel they are float32. Offsets into what may be large are 64 bits.

A program handles ROWS rows of c <= WIDE numbers at once. A sum over rows is left as partial sums,
one row of them for each program, so that results do not depend on timing.

A NaN goes through every one of them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def place(row, w, S: tl.constexpr):
    """Where the row of a pixel in blocks stands in the image (see `worldmodel.accel.kernels`)."""
    block, ab = row // (S * S), row % (S * S)
    return ((block // w * S + ab // S) * w + block % w) * S + ab % S


@triton.jit
def normed(x, scale, c, eps):
    """silu(RMSNorm(x)) of rows x [ROWS, WIDE], of which c numbers count, the rest being zero."""
    r = tl.rsqrt(tl.sum(x * x, 1) / c + eps)
    y = x * r[:, None] * scale
    return y * sigmoid(y)


@triton.jit
def normed_back(grad, x, scale, c, eps):
    """The gradients of `normed` to x, and to the scale in each row, [ROWS, WIDE]."""
    r = tl.rsqrt(tl.sum(x * x, 1) / c + eps)[:, None]
    h = x * r
    y = h * scale
    q = sigmoid(y)
    d = grad * q * (1.0 + y * (1.0 - q))
    t = d * scale
    mean = tl.sum(t * h, 1)[:, None] / c
    return r * (t - h * mean), d * h


@triton.jit
def norm_silu(x, scale, out, n, c, eps, w, S: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Rows x [n, c] as blocks, out as pixels (S = w = 1: no blocks)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, WIDE)
    inside = (row < n)[:, None] & (k < c)[None, :]
    v = tl.load(x + row[:, None] * c + k[None, :], mask=inside, other=0.0).to(tl.float32)
    s = tl.load(scale + k, mask=k < c, other=0.0).to(tl.float32)[None, :]
    y = normed(v, s, c, eps)
    tl.store(out + place(row, w, S)[:, None] * c + k[None, :], y, mask=inside)


@triton.jit
def norm_silu_back(
    grad,
    x,
    scale,
    dx,
    sums,
    n,
    c,
    eps,
    w,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """dx as x; sums [programs, c] for the gradient to the scale."""
    k = tl.arange(0, WIDE)
    s = tl.load(scale + k, mask=k < c, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((ROWS, WIDE), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0)):
        row = tl.arange(0, ROWS).to(tl.int64) + tile * ROWS
        inside = (row < n)[:, None] & (k < c)[None, :]
        at = row[:, None] * c + k[None, :]
        above = place(row, w, S)[:, None] * c + k[None, :]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + above, mask=inside, other=0.0).to(tl.float32)
        below, share = normed_back(g, v, s, c, eps)
        total += share
        tl.store(dx + at, below, mask=inside)
    tl.store(sums + tl.program_id(0) * c + k, tl.sum(total, 0), mask=k < c)


@triton.jit
def pool_norm_silu(
    x, scale, most, which, out, n, c, eps, w, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    """Rows x [4 n, c] -> out [n, c]; most [n, c] and which of the four it was, for the gradient.
    Among equals the first."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, WIDE)
    inside = (row < n)[:, None] & (k < c)[None, :]
    at = row[:, None] * c + k[None, :]
    pixel = (row // w * 2 * w + row % w) * 2
    first = pixel[:, None] * c + k[None, :]
    x0 = tl.load(x + first, mask=inside, other=0.0).to(tl.float32)
    x1 = tl.load(x + first + c, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(x + first + 2 * w * c, mask=inside, other=0.0).to(tl.float32)
    x3 = tl.load(x + first + (2 * w + 1) * c, mask=inside, other=0.0).to(tl.float32)
    upper, lower = tl.where(x1 > x0, x1, x0), tl.where(x3 > x2, x3, x2)
    top, bottom = tl.where(x1 > x0, 1, 0), tl.where(x3 > x2, 3, 2)
    v = tl.where(lower > upper, lower, upper)
    v += (x0 + x1 + x2 + x3) * 0.0  # a NaN loses every comparison
    tl.store(which + at, tl.where(lower > upper, bottom, top).to(tl.uint8), mask=inside)
    tl.store(most + at, v, mask=inside)
    s = tl.load(scale + k, mask=k < c, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, normed(v, s, c, eps), mask=inside)


@triton.jit
def pool_norm_silu_back(
    grad, most, which, scale, dx, sums, n, c, eps, w, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    k = tl.arange(0, WIDE)
    s = tl.load(scale + k, mask=k < c, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((ROWS, WIDE), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0)):
        row = tl.arange(0, ROWS).to(tl.int64) + tile * ROWS
        inside = (row < n)[:, None] & (k < c)[None, :]
        at = row[:, None] * c + k[None, :]
        v = tl.load(most + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        below, share = normed_back(g, v, s, c, eps)
        total += share
        chosen = tl.load(which + at, mask=inside, other=0)
        pixel = (row // w * 2 * w + row % w) * 2
        for q in tl.static_range(4):
            to = (pixel + (q // 2) * 2 * w + q % 2)[:, None] * c + k[None, :]
            tl.store(dx + to, tl.where(chosen == q, below, 0.0), mask=inside)
    tl.store(sums + tl.program_id(0) * c + k, tl.sum(total, 0), mask=k < c)


@triton.jit
def image_loss(
    x,
    centre,
    target,
    grad,
    out,
    pixels,
    c,
    w,
    chunk,
    S: tl.constexpr,
    BACK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Program (n, j): squared errors of the j-th chunk of image n, whose pixels x [n, pixels, c]
    stand in blocks, w of them a line, summed into out [n, chunks, c]. BACK: their gradient, for
    grad [n, c], into out, which is as x."""
    n, j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = tl.arange(0, WIDE)
    total = tl.zeros((ROWS, WIDE), tl.float32)
    if BACK:
        g = tl.load(grad + n * c + k, mask=k < c, other=0.0).to(tl.float32)[None, :]
    for start in range(j * chunk, tl.minimum((j + 1) * chunk, pixels), ROWS):
        row = tl.arange(0, ROWS) + start
        inside = (row < pixels)[:, None] & (k < c)[None, :]
        at = n * pixels * c + row[:, None] * c + k[None, :]
        there = place(row, w, S)[:, None] * c + k[None, :]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        p = sigmoid(v + tl.load(centre + there, mask=inside, other=0.0).to(tl.float32))
        seen = tl.load(target + n * pixels * c + there, mask=inside, other=0).to(tl.float32)
        d = tl.where(inside, p - seen / 255.0, 0.0)
        if BACK:
            tl.store(out + at, 2.0 * g * d * p * (1.0 - p), mask=inside)
        else:
            total += d * d
    if not BACK:
        to = out + (n * tl.num_programs(1) + j) * c + k
        tl.store(to, tl.sum(total, 0), mask=k < c)


@triton.jit
def two_hot_mean(logits, bins, out, n, c, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """The expected bin [n] under softmax(logits [n, c]), summed in symmetric pairs."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, WIDE)
    inside = (row < n)[:, None] & (k < c)[None, :]
    at = logits + row[:, None] * c
    low = -float("inf")
    v = tl.load(at + k[None, :], mask=inside, other=low).to(tl.float32)
    mirrored = tl.load(at + (c - 1 - k)[None, :], mask=inside, other=low).to(tl.float32)
    top = tl.where(row < n, tl.max(v, 1), 0.0)[:, None]
    e, other = tl.exp(v - top), tl.exp(mirrored - top)
    b = tl.load(bins + k, mask=(k < c) & (k > c // 2), other=0.0)[None, :]
    tl.store(out + row, tl.sum((e - other) * b, 1) / tl.sum(e, 1), mask=row < n)


@triton.jit
def two_hot_log_prob(
    logits, above, weight, norm, out, n, c, repeats, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    """logits [n, c] against targets [repeats, n]; norm [n] is kept for the gradient."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, WIDE)
    inside = (row < n)[:, None] & (k < c)[None, :]
    low = -float("inf")
    v = tl.load(logits + row[:, None] * c + k[None, :], mask=inside, other=low).to(tl.float32)
    top = tl.where(row < n, tl.max(v, 1), 0.0)
    total = top + tl.log(tl.sum(tl.exp(v - top[:, None]), 1))
    tl.store(norm + row, total, mask=row < n)
    for r in range(repeats):
        at = row + r * n
        high = tl.load(above + at, mask=row < n, other=1)
        share = tl.load(weight + at, mask=row < n, other=0.0)
        at_low = tl.load(logits + row * c + high - 1, mask=row < n, other=0.0).to(tl.float32)
        at_high = tl.load(logits + row * c + high, mask=row < n, other=0.0).to(tl.float32)
        tl.store(out + at, at_low + share * (at_high - at_low) - total, mask=row < n)


@triton.jit
def two_hot_log_prob_back(
    grad, logits, above, weight, norm, dx, n, c, repeats, ROWS: tl.constexpr, WIDE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, WIDE)
    inside = (row < n)[:, None] & (k < c)[None, :]
    at = row[:, None] * c + k[None, :]
    v = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
    p = tl.exp(v - tl.load(norm + row, mask=row < n, other=0.0)[:, None])
    d = tl.zeros((ROWS, WIDE), tl.float32)
    for r in range(repeats):
        there = row + r * n
        g = tl.load(grad + there, mask=row < n, other=0.0).to(tl.float32)[:, None]
        high = tl.load(above + there, mask=row < n, other=1)[:, None]
        share = tl.load(weight + there, mask=row < n, other=0.0)[:, None]
        d += g * (tl.where(k[None, :] == high, share, 0.0) - p)
        d += g * tl.where(k[None, :] == high - 1, 1.0 - share, 0.0)
    tl.store(dx + at, d, mask=inside)
