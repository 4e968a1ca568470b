"""Loops over arrays in machine code, for a CPU in float32; `accel.fused` lends them tensors.

Each makes in one pass what PyTorch makes in five to ten, each of them through memory. What a kernel
computes stands as a plain PyTorch definition in `accel.fused`, which every other device and
type uses; tests hold the two equal, gradients included.

Every kernel works on a range [first, last) of independent rows, lines or images, so that threads
can share it, and writes only what belongs to it: results do not depend on timing.

A NaN goes through every one of them, hence no promise to the compiler that there is none.

Where rows are pixels, `blocks` says how they lie. An image of h x w blocks of s x s pixels is kept

    as blocks   [line, j, a, b, channel]     line = image * h + i; pixel (i s + a, j s + b)
    as pixels   [line, a, j, b, channel]     the image itself, row after row
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np

import worldmodel.accel.compiling  # noqa: F401

F = TypeVar("F", bound=Callable[..., Any])
f32 = np.float32
# Not "there is no NaN", nor that x / 255 is x times what 1 / 255 is rounded to.
_MATHS = {"contract", "reassoc", "nsz"}


def machine_code(function: F, state: str, **options: Any) -> F:
    """numba.njit(function, **options), kept on disk so that the next process starts at once.

    The code lies in NUMBA_CACHE_DIR where that is set, else beside the source, else in the user's
    cache folder; where none of them can be written it is compiled anew in each process. numba alone
    would not notice a change in another file that the function calls, hence a folder for each
    `state` of such sources (see `state_of`).
    """
    settings, njit = cast(Any, numba.config), cast(Any, numba.njit)
    before = settings.CACHE_DIR
    place = Path(before or Path(function.__code__.co_filename).parent / "__pycache__")
    settings.CACHE_DIR = str(place / f"numba-{state}")
    try:
        made = njit(function, cache=True, **options)
    except RuntimeError:  # "cannot cache function": no folder can be written
        made = njit(function, **options)
    finally:
        settings.CACHE_DIR = before
    return cast(F, made)


def state_of(sources: Iterable[Path]) -> str:
    """A short name for what these files say."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


_STATE = state_of([Path(__file__)])


def compiled(function: F) -> F:
    """The kernel in machine code, without the interpreter's lock."""
    options = {"nogil": True, "fastmath": _MATHS, "error_model": "numpy"}
    return machine_code(function, _STATE, **options)


def expanded(function: F) -> F:
    """The function, written out wherever a kernel calls it."""
    njit: Any = numba.njit
    return cast(F, njit(function, inline="always"))


@expanded
def exp(x):  # type: ignore[no-untyped-def]
    """e^x within 4e-7 of itself, for x in [-87, 87]; a loop over it uses whole vectors."""
    # Written so that a NaN, of which every comparison is false, stays.
    x = f32(-87.0) if x < f32(-87.0) else x
    x = f32(87.0) if x > f32(87.0) else x
    k = np.floor(x * f32(1.4426950408889634) + f32(0.5))
    r = x - k * f32(0.6931471805599453)  # e^x = 2^k e^r, |r| < 0.35
    p = f32(1 / 720)
    p = p * r + f32(1 / 120)
    p = p * r + f32(1 / 24)
    p = p * r + f32(1 / 6)
    p = p * r + f32(0.5)
    p = p * r + f32(1.0)
    p = p * r + f32(1.0)
    return p * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)


@expanded
def sigmoid(x):  # type: ignore[no-untyped-def]
    return f32(1.0) / (f32(1.0) + exp(-x))


@expanded
def tanh(x):  # type: ignore[no-untyped-def]
    return f32(2.0) / (f32(1.0) + exp(f32(-2.0) * x)) - f32(1.0)


@compiled
def norm_silu(first, last, x, scale, eps, w, s, out):  # type: ignore[no-untyped-def]
    """silu(RMSNorm(x)) of rows [n, C]: x as blocks, out as pixels (s = w = 1: no blocks)."""
    c = x.shape[1]
    for line in range(first, last):
        for j in range(w):
            for ab in range(s * s):
                i = (line * w + j) * s * s + ab
                o = ((line * s + ab // s) * w + j) * s + ab % s
                total = f32(0.0)
                for k in range(c):
                    total += x[i, k] * x[i, k]
                r = f32(1.0) / np.sqrt(total / f32(c) + eps)
                for k in range(c):
                    y = x[i, k] * r * scale[k]
                    out[o, k] = y * sigmoid(y)


@compiled
def norm_silu_back(first, last, grad, x, scale, eps, w, s, dx, dscale):  # type: ignore[no-untyped-def]
    """The gradient [n, C] of `norm_silu` to x, as blocks; adds the one to the scale."""
    c = x.shape[1]
    for line in range(first, last):
        for j in range(w):
            for ab in range(s * s):
                i = (line * w + j) * s * s + ab
                o = ((line * s + ab // s) * w + j) * s + ab % s
                total = f32(0.0)
                for k in range(c):
                    total += x[i, k] * x[i, k]
                r = f32(1.0) / np.sqrt(total / f32(c) + eps)
                dot = f32(0.0)
                for k in range(c):
                    h = x[i, k] * r
                    y = h * scale[k]
                    q = sigmoid(y)
                    d = grad[o, k] * q * (f32(1.0) + y * (f32(1.0) - q))
                    dscale[k] += d * h
                    t = d * scale[k]
                    dx[i, k] = t
                    dot += t * h
                mean = dot * r / f32(c)
                for k in range(c):
                    dx[i, k] = r * (dx[i, k] - x[i, k] * mean)


@compiled
def pool_norm_silu(first, last, x, scale, eps, w, most, place, out):  # type: ignore[no-untyped-def]
    """silu(RMSNorm(.)) of the largest of each 2 x 2 pixels: rows x [4 n, C] -> out [n, C]. `most`
    [n, C] and its `place` among the four are kept for the gradient; among equals the first."""
    c = x.shape[1]
    for line in range(first, last):
        for j in range(w):
            o, i = line * w + j, (line * 2 * w + j) * 2
            below = i + 2 * w
            total = f32(0.0)
            for k in range(c):
                x0, x1, x2, x3 = x[i, k], x[i + 1, k], x[below, k], x[below + 1, k]
                above = x1 if x1 > x0 else x0
                under = x3 if x3 > x2 else x2
                where = np.uint8(1) if x1 > x0 else np.uint8(0)
                other = np.uint8(3) if x3 > x2 else np.uint8(2)
                place[o, k] = other if under > above else where
                m = under if under > above else above
                m += (x0 + x1 + x2 + x3) * f32(0.0)  # a NaN loses every comparison
                most[o, k] = m
                total += m * m
            r = f32(1.0) / np.sqrt(total / f32(c) + eps)
            for k in range(c):
                y = most[o, k] * r * scale[k]
                out[o, k] = y * sigmoid(y)


@compiled
def unpool(first, last, grad, place, w, dx):  # type: ignore[no-untyped-def]
    """The gradient [4 n, C] of the pooling to x, for that to the largest [n, C]."""
    for line in range(first, last):
        for j in range(w):
            o, i = line * w + j, (line * 2 * w + j) * 2
            for q in range(4):
                row = i + (q // 2) * 2 * w + q % 2
                for k in range(grad.shape[1]):
                    dx[row, k] = grad[o, k] if place[o, k] == np.uint8(q) else f32(0.0)


@compiled
def image_loss(first, last, x, centre, target, h, s, sums, row):  # type: ignore[no-untyped-def]
    """Squared errors of sigmoid(x + centre) summed over each image: x as blocks
    [n h w, s, s C], centre [H, W C], target bytes [n, H, W C] -> sums [n, W C]."""
    wide, sc = centre.shape[1], x.shape[2]
    w = wide // sc
    for n in range(first, last):
        sums[n, :] = f32(0.0)
        for i in range(h):
            for a in range(s):
                y = i * s + a
                for j in range(w):
                    for k in range(sc):
                        row[j * sc + k] = x[(n * h + i) * w + j, a, k]
                for k in range(wide):
                    d = sigmoid(row[k] + centre[y, k]) - f32(target[n, y, k]) / f32(255.0)
                    sums[n, k] += d * d


@compiled
def image_loss_back(first, last, grad, x, centre, target, h, s, dx, row):  # type: ignore[no-untyped-def]
    """The gradient of `image_loss` to x, in its shape, for grad [n, W C] of the sums."""
    wide, sc = centre.shape[1], x.shape[2]
    w = wide // sc
    for n in range(first, last):
        for i in range(h):
            for a in range(s):
                y = i * s + a
                for j in range(w):
                    for k in range(sc):
                        row[j * sc + k] = x[(n * h + i) * w + j, a, k]
                for k in range(wide):
                    p = sigmoid(row[k] + centre[y, k])
                    d = p - f32(target[n, y, k]) / f32(255.0)
                    row[k] = f32(2.0) * grad[n, k] * d * p * (f32(1.0) - p)
                for j in range(w):
                    for k in range(sc):
                        dx[(n * h + i) * w + j, a, k] = row[j * sc + k]


@compiled
def image_input(first, last, images, mean, out):  # type: ignore[no-untyped-def]
    """Bytes [n, m] -> images / 255 - mean [m]."""
    for n in range(first, last):
        for k in range(images.shape[1]):
            out[n, k] = f32(images[n, k]) / f32(255.0) - mean[k]


@compiled
def two_hot_mean(first, last, logits, bins, out, row):  # type: ignore[no-untyped-def]
    """The expected bin [n] under softmax(logits [n, K]), summed in symmetric pairs."""
    count = bins.shape[0]
    middle = count // 2
    for n in range(first, last):
        top = logits[n, 0]
        for k in range(count):
            top = logits[n, k] if logits[n, k] > top else top
        total = f32(0.0)
        for k in range(count):
            row[k] = exp(logits[n, k] - top)
            total += row[k]
        pairs = f32(0.0)
        for k in range(1, middle + 1):
            pairs += (row[middle + k] - row[middle - k]) * bins[middle + k]
        out[n] = pairs / total


@compiled
def two_hot_log_prob(first, last, logits, above, weight, norm, out):  # type: ignore[no-untyped-def]
    """log softmax(logits [n, K]) against targets [R, n] between bins `above` - 1 and `above`, the
    share `weight` at the upper one; norm [n] is kept for the gradient."""
    for n in range(first, last):
        top = logits[n, 0]
        for k in range(logits.shape[1]):
            top = logits[n, k] if logits[n, k] > top else top
        total = f32(0.0)
        for k in range(logits.shape[1]):
            total += exp(logits[n, k] - top)
        norm[n] = top + np.log(total)
        for r in range(above.shape[0]):
            low = logits[n, above[r, n] - 1]
            high = logits[n, above[r, n]]
            out[r, n] = low + weight[r, n] * (high - low) - norm[n]


@compiled
def two_hot_log_prob_back(first, last, grad, logits, above, weight, norm, dx):  # type: ignore[no-untyped-def]
    """The gradient [n, K] of `two_hot_log_prob` to the logits, for grad [R, n]."""
    for n in range(first, last):
        total = f32(0.0)
        for r in range(grad.shape[0]):
            total += grad[r, n]
        for k in range(logits.shape[1]):
            dx[n, k] = -total * exp(logits[n, k] - norm[n])
        for r in range(grad.shape[0]):
            dx[n, above[r, n] - 1] += grad[r, n] * (f32(1.0) - weight[r, n])
            dx[n, above[r, n]] += grad[r, n] * weight[r, n]


@compiled
def norm_mish(first, last, x, scale, shift, eps, out):  # type: ignore[no-untyped-def]
    """mish(LayerNorm(x)) of rows [n, C]; scale and shift [E, C], of each E-th part of the rows."""
    c, part = x.shape[1], x.shape[0] // scale.shape[0]
    for i in range(first, last):
        e = i // part
        total = f32(0.0)
        for k in range(c):
            total += x[i, k]
        mean = total / f32(c)
        total = f32(0.0)
        for k in range(c):
            total += (x[i, k] - mean) * (x[i, k] - mean)
        r = f32(1.0) / np.sqrt(total / f32(c) + eps)
        for k in range(c):
            y = (x[i, k] - mean) * r * scale[e, k] + shift[e, k]
            p = exp(f32(20.0) if y > f32(20.0) else y)
            n = p * (p + f32(2.0))  # tanh(log(1 + e^y)) = n / (n + 2)
            out[i, k] = y * (n / (n + f32(2.0)))


@compiled
def norm_mish_back(first, last, grad, x, scale, shift, eps, dx, sums):  # type: ignore[no-untyped-def]
    """The gradient [n, C] of `norm_mish` to x; adds those to scale and shift [E, 2, C]."""
    c, part = x.shape[1], x.shape[0] // scale.shape[0]
    for i in range(first, last):
        e = i // part
        total = f32(0.0)
        for k in range(c):
            total += x[i, k]
        mean = total / f32(c)
        total = f32(0.0)
        for k in range(c):
            total += (x[i, k] - mean) * (x[i, k] - mean)
        r = f32(1.0) / np.sqrt(total / f32(c) + eps)
        one, dot = f32(0.0), f32(0.0)
        for k in range(c):
            h = (x[i, k] - mean) * r
            y = h * scale[e, k] + shift[e, k]
            p = exp(f32(20.0) if y > f32(20.0) else y)
            q = f32(1.0) / (p * (p + f32(2.0)) + f32(2.0))
            d = f32(1.0) - f32(2.0) * q + y * f32(4.0) * p * (p + f32(1.0)) * q * q
            d *= grad[i, k]
            sums[e, 0, k] += d * h
            sums[e, 1, k] += d
            t = d * scale[e, k]
            dx[i, k] = t
            one += t
            dot += t * h
        one, dot = one / f32(c), dot / f32(c)
        for k in range(c):
            dx[i, k] = r * (dx[i, k] - one - (x[i, k] - mean) * r * dot)
