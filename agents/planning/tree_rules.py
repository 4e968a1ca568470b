"""Which edge of a tree a search goes down next, and what it says at its root in the end.

    UCB1    argmax Q + c sqrt(ln n / n_a), untried actions first           (Kocsis, Szepesvari 2006)
    PUCT    argmax Q + P_a sqrt(n) / (1 + n_a) (c + ln((n + c2 + 1) / c2))  (MuZero, 2020)
    GUMBEL  at the root sequential halving over  gumbel + logits + sigma(Q),
            inside argmax softmax(logits + sigma(Q)) - n_a / (1 + sum n)    (Danihelka et al. 2022)

Q is brought to [0, 1] in one of four ways (SCALES); sigma(Q) = (visit_scale + max n) value_scale Q
of completed values: an action that was not tried counts as the node's mixed value.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

import worldmodel.accel.compiling  # noqa: F401

UCB1, PUCT, GUMBEL = 0, 1, 2
RULES = {"ucb1": UCB1, "puct": PUCT, "gumbel": GUMBEL}
# tree      the range of all Q so far; untried actions are worth its lower end (MuZero's paper)
# node      the range of the node's own value and its tried actions, or of completed values (mctx)
# expanded  the range of all Q now, at least 0.01 wide; an untried action is worth the mean of the
#           tried ones and, below the root, of what its parent had for that (EfficientZero)
# bounds    a known range
TREE, NODE, EXPANDED, BOUNDS = 0, 1, 2, 3
SCALES = {"tree": TREE, "node": NODE, "expanded": EXPANDED, "bounds": BOUNDS}
NONE = -1


class Rule(NamedTuple):
    """How a search selects. kind, scale: of the tables above. c, c2: of UCB1 and PUCT.
    value_scale, visit_scale: of sigma. low, high: the known range."""

    kind: int
    scale: int
    c: float
    c2: float
    value_scale: float
    visit_scale: float
    low: float
    high: float


class Trees(NamedTuple):
    """Arrays of B trees of at most M nodes with A actions and K outcomes of each.

    visits [B, M, A] and total [B, M, A]: of edges, total the sum of G. child, drawn [B, M, A, K]:
    nodes that an edge led to, and how often. prior, logits [B, M, A]: of the policy; the root's
    prior may hold noise. legal [B, M, A]. parent, action [B, M]: the edge to a node. reward,
    discount [B, M]: of arriving at it; discount is 0 where the episode ends there, and negative
    where the other player moves next. raw [B, M]: the value that a node was given when it was
    reached. known [B]: whether raw counts as one visit of its node. nodes [B]. low, high [B]: the
    range of Q (see SCALES). gumbel [B, A]: noise of the root. random [B]: the state of each
    root's generator.
    """

    visits: np.ndarray
    total: np.ndarray
    child: np.ndarray
    drawn: np.ndarray
    prior: np.ndarray
    logits: np.ndarray
    legal: np.ndarray
    parent: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    raw: np.ndarray
    known: np.ndarray
    nodes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gumbel: np.ndarray
    random: np.ndarray


@nb.njit(cache=True)
def uniform(state, b):  # type: ignore[no-untyped-def]
    """A number in [0, 1) from root b's generator (xorshift64*; Vigna 2016)."""
    x = state[b]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[b] = x
    return float((x * np.uint64(2685821657736338717)) >> np.uint64(11)) / 9007199254740992.0


@nb.njit(cache=True)
def node_value(trees, b, node):  # type: ignore[no-untyped-def]
    """The mean of what was found at and below a node: its raw value, where that counts, and all
    G of its edges."""
    weight, total = float(trees.known[b]), trees.raw[b, node] * trees.known[b]
    for a in range(trees.visits.shape[2]):
        weight += trees.visits[b, node, a]
        total += trees.total[b, node, a]
    return total / weight if weight > 0 else 0.0


@nb.njit(cache=True)
def _range(trees, b, rule):  # type: ignore[no-untyped-def]
    """Lower end and width of Q in a whole tree."""
    if rule.scale == BOUNDS:
        return rule.low, rule.high - rule.low
    low, width = trees.low[b], trees.high[b] - trees.low[b]
    if rule.scale == EXPANDED and width >= 0.0:
        width = max(width, 0.01)
    return low, width


@nb.njit(cache=True)
def mean_value(trees, b, node, before):  # type: ignore[no-untyped-def]
    """What EfficientZero takes for untried actions of a node, whose parent had `before` for it."""
    total, tried = 0.0, 0
    for a in range(trees.visits.shape[2]):
        if trees.visits[b, node, a] > 0:
            total += trees.total[b, node, a] / trees.visits[b, node, a]
            tried += 1
    if node == 0:
        return total / tried if tried > 0 else 0.0
    return (before + total) / (tried + 1)


@nb.njit(cache=True)
def _scaled(trees, b, node, rule, mean, out):  # type: ignore[no-untyped-def]
    """Q of a node's actions in [0, 1], for UCB1 and PUCT."""
    low, width = _range(trees, b, rule)
    if rule.scale == NODE:
        low = high = node_value(trees, b, node)
        for a in range(len(out)):
            if trees.visits[b, node, a] > 0:
                q = trees.total[b, node, a] / trees.visits[b, node, a]
                low, high = min(low, q), max(high, q)
        width = max(high - low, 1e-8)
    for a in range(len(out)):
        n = trees.visits[b, node, a]
        q = trees.total[b, node, a] / n if n > 0 else (mean if rule.scale == EXPANDED else low)
        out[a] = (q - low) / width if width > 0 else 0.0
        if rule.scale == EXPANDED or rule.scale == BOUNDS:
            out[a] = min(max(out[a], 0.0), 1.0)


@nb.njit(cache=True)
def completed(trees, b, node, rule, out):  # type: ignore[no-untyped-def]
    """sigma(Q) of all actions of a node, tried or not."""
    actions = len(out)
    top = -np.inf
    for a in range(actions):
        if trees.legal[b, node, a]:
            top = max(top, trees.logits[b, node, a])
    mass, weighted, count, most = 0.0, 0.0, 0, 0
    for a in range(actions):
        n = trees.visits[b, node, a]
        if n > 0:
            p = max(np.exp(trees.logits[b, node, a] - top), 1e-30)
            mass += p
            weighted += p * trees.total[b, node, a] / n
            count += n
            most = max(most, n)
    mixed = trees.raw[b, node]
    if count > 0:
        mixed = (trees.raw[b, node] + count * weighted / mass) / (count + 1)
    low, high = np.inf, -np.inf
    for a in range(actions):
        n = trees.visits[b, node, a]
        out[a] = trees.total[b, node, a] / n if n > 0 else mixed
        low, high = min(low, out[a]), max(high, out[a])
    width = max(high - low, 1e-8)
    if rule.scale != NODE:
        low, width = _range(trees, b, rule)
    factor = (rule.visit_scale + most) * rule.value_scale
    for a in range(actions):
        q = (out[a] - low) / width if width > 0 else 0.0
        out[a] = factor * (q if rule.scale == NODE else min(max(q, 0.0), 1.0))


@nb.njit(cache=True)
def improve(trees, b, node, rule, out):  # type: ignore[no-untyped-def]
    """softmax(logits + sigma(Q)) over the legal actions of a node."""
    completed(trees, b, node, rule, out)
    top = -np.inf
    for a in range(len(out)):
        out[a] += trees.logits[b, node, a]
        if trees.legal[b, node, a]:
            top = max(top, out[a])
    mass = 0.0
    for a in range(len(out)):
        out[a] = np.exp(out[a] - top) if trees.legal[b, node, a] else 0.0
        mass += out[a]
    for a in range(len(out)):
        out[a] /= mass


@nb.njit(cache=True)
def gumbel_best(trees, b, considered, rule, scratch):  # type: ignore[no-untyped-def]
    """The root's action of the greatest gumbel + logits + sigma(Q) among those that were visited
    `considered` times; NONE where there is none."""
    completed(trees, b, 0, rule, scratch)
    top = -np.inf
    for a in range(len(scratch)):
        if trees.legal[b, 0, a]:
            top = max(top, trees.logits[b, 0, a])
    best, best_score = NONE, -np.inf
    for a in range(len(scratch)):
        if trees.legal[b, 0, a] and trees.visits[b, 0, a] == considered:
            score = trees.gumbel[b, a] + trees.logits[b, 0, a] - top + scratch[a]
            score = max(score, -1e9) + 1e-7 * uniform(trees.random, b)
            if score > best_score:
                best, best_score = a, score
    return best


@nb.njit(cache=True)
def select(trees, b, node, rule, considered, mean, scratch):  # type: ignore[no-untyped-def]
    """The edge of a node that the rule goes down next; NONE where no action is legal."""
    if rule.kind == GUMBEL and node == 0:
        return gumbel_best(trees, b, considered, rule, scratch)
    count = trees.visits[b, node].sum()
    best, best_score = NONE, -np.inf
    if rule.kind == GUMBEL:
        improve(trees, b, node, rule, scratch)
    else:
        _scaled(trees, b, node, rule, mean, scratch)
    own = count + trees.known[b]  # visits of the node: its edges', and its own
    explore = np.sqrt(float(max(own, 1)))
    factor = rule.c + np.log((own + rule.c2 + 1.0) / rule.c2)
    log_count = np.log(float(max(count, 1)))
    for a in range(len(scratch)):
        if not trees.legal[b, node, a]:
            continue
        n = trees.visits[b, node, a]
        noise = 1e-7 * uniform(trees.random, b)
        if rule.kind == UCB1:
            score = scratch[a] + rule.c * np.sqrt(log_count / n) if n > 0 else 1e9 * (1 + noise)
        elif rule.kind == PUCT:
            score = scratch[a] + trees.prior[b, node, a] * explore / (1.0 + n) * factor
        else:
            score = scratch[a] - n / (1.0 + count)
        score += noise
        if score > best_score:
            best, best_score = a, score
    return best


def considered_visits(most: int, simulations: int) -> np.ndarray:
    """How often the action that simulation i takes at the root was visited before, [m + 1, N], for
    every number of considered actions up to m: sequential halving (Karnin et al. 2013)."""
    table = np.zeros((most + 1, simulations), np.int64)
    for m in range(most + 1):
        table[m] = _halving(m, simulations) if m > 1 else np.arange(simulations)
    return table


def _halving(m: int, simulations: int) -> list[int]:
    rounds = int(np.ceil(np.log2(m)))
    visits = [0] * m
    listed: list[int] = []
    left = m
    while len(listed) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            listed += visits[:left]
            visits[:left] = [n + 1 for n in visits[:left]]
        left = max(2, left // 2)
    return listed[:simulations]
