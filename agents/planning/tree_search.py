"""One search tree for each of B roots, in flat arrays, and the kernels that walk them together.

Node 0 is the root and M the most nodes of a tree. A node is one outcome of an action: a world that
draws its outcomes leads from an edge to several nodes, at most K, and comes back to each as often
as it was drawn. With K = 1 an edge leads to one node.

    backup:  G <- reward + discount * G, from the leaf to the root;  Q of an edge: the mean of its G
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

UCB1, PUCT = 0, 1  # how `descend` selects
NONE = -1


class Trees(NamedTuple):
    """Arrays of B trees of at most M nodes with A actions and K outcomes of each.

    visits [B, M, A] and total [B, M, A]: of edges, total the sum of G. child, drawn [B, M, A, K]:
    nodes that an edge led to, and how often. prior [B, M, A]; legal [B, M, A].
    parent, action, slot [B, M]: the edge to a node; reward, discount [B, M]: of arriving at it,
    discount 0 where the episode ends there. value [B, M]: the leaf value of a node. nodes [B].
    low, high [B]: of all Q so far. random [B]: the state of each root's generator.
    """

    visits: np.ndarray
    total: np.ndarray
    child: np.ndarray
    drawn: np.ndarray
    prior: np.ndarray
    legal: np.ndarray
    parent: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    value: np.ndarray
    nodes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    random: np.ndarray


def make_trees(
    batch: int, most: int, actions: int, outcomes: int, rng: np.random.Generator
) -> Trees:
    """Trees of nothing but their roots."""
    edges, nodes = (batch, most, actions), (batch, most)
    return Trees(
        np.zeros(edges, np.int32), np.zeros(edges), np.full((*edges, outcomes), NONE, np.int32),
        np.zeros((*edges, outcomes), np.int32), np.full(edges, 1.0 / actions), np.ones(edges, bool),
        np.full(nodes, NONE, np.int32), np.full(nodes, NONE, np.int32), np.zeros(nodes),
        np.ones(nodes), np.zeros(nodes), np.ones(batch, np.int32), np.full(batch, np.inf),
        np.full(batch, -np.inf), rng.integers(1, 1 << 63, batch, np.uint64),
    )  # fmt: skip


@nb.njit(cache=True)
def _uniform(state, b):  # type: ignore[no-untyped-def]
    """A number in [0, 1) from root b's generator (xorshift64*; Vigna 2016)."""
    x = state[b]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[b] = x
    return float((x * np.uint64(2685821657736338717)) >> np.uint64(11)) / 9007199254740992.0


@nb.njit(cache=True)
def _select(trees, b, node, rule, c1, c2):  # type: ignore[no-untyped-def]
    """The edge of a node that the rule goes down next; NONE where no action is legal."""
    visits = trees.visits[b, node]
    count = visits.sum()
    span = trees.high[b] - trees.low[b]
    best, best_score = NONE, -np.inf
    explore = np.sqrt(float(max(count, 1)))
    factor = c1 + np.log((count + c2 + 1.0) / c2) if rule == PUCT else 0.0
    log_count = np.log(float(max(count, 1)))
    for a in range(visits.shape[0]):
        if not trees.legal[b, node, a]:
            continue
        n = visits[a]
        quality = 0.0
        if n > 0 and span > 0:
            quality = (trees.total[b, node, a] / n - trees.low[b]) / span
        if rule == UCB1:
            score = 1e9 if n == 0 else quality + c1 * np.sqrt(log_count / n)
        else:
            score = quality + trees.prior[b, node, a] * explore / (1.0 + n) * factor
        score += (
            1e-7 * _uniform(trees.random, b)
            if n > 0 or rule == PUCT
            else 1e3 * _uniform(trees.random, b)
        )
        if score > best_score:
            best, best_score = a, score
    return best


@nb.njit(cache=True)
def descend(trees, rule, c1, c2, most_depth, leaf, edge, depth):  # type: ignore[no-untyped-def]
    """Walk down every tree. leaf [B]: the node where the walk stopped; edge [B]: the action there
    that leads to a new outcome, or NONE where the node itself is to be valued again (it ends the
    episode, is as deep as allowed, or has no legal action). depth [B]: of the leaf."""
    outcomes = trees.child.shape[3]
    for b in range(len(leaf)):
        node, level = 0, 0
        while True:
            if level >= most_depth or (node > 0 and trees.discount[b, node] == 0.0):
                leaf[b], edge[b] = node, NONE
                break
            a = _select(trees, b, node, rule, c1, c2)
            if a == NONE:
                leaf[b], edge[b] = node, NONE
                break
            draws = 0
            for k in range(outcomes):
                draws += trees.drawn[b, node, a, k]
            full = trees.child[b, node, a, outcomes - 1] != NONE
            # A stochastic world is asked again while an edge has been drawn less than half as
            # often as it was walked, and there is a place for what it answers.
            if draws == 0 or (outcomes > 1 and not full and 2 * draws <= trees.visits[b, node, a]):
                leaf[b], edge[b] = node, a
                break
            at = _uniform(trees.random, b) * draws
            k = 0
            while k < outcomes - 1 and at >= trees.drawn[b, node, a, k]:
                at -= trees.drawn[b, node, a, k]
                k += 1
            node = trees.child[b, node, a, k]
            level += 1
        depth[b] = level


@nb.njit(cache=True)
def find_outcome(trees, b, node, a, keys, key):  # type: ignore[no-untyped-def]
    """The slot of an edge whose node has this key, or the first empty one."""
    outcomes = trees.child.shape[3]
    for k in range(outcomes):
        child = trees.child[b, node, a, k]
        if child == NONE or keys[b, child] == key:
            return k
    return outcomes - 1


@nb.njit(cache=True)
def expand(trees, leaf, edge, keys, key, reward, discount, new):  # type: ignore[no-untyped-def]
    """Attach what the world answered at each leaf's edge. key [B]: of the outcome that came; one
    that an edge has led to before is the same node. new [B]: the node, or NONE without an edge."""
    for b in range(len(leaf)):
        new[b] = NONE
        if edge[b] == NONE:
            continue
        k = find_outcome(trees, b, leaf[b], edge[b], keys, key[b])
        child = trees.child[b, leaf[b], edge[b], k]
        trees.drawn[b, leaf[b], edge[b], k] += 1
        if child == NONE:
            child = trees.nodes[b]
            trees.nodes[b] += 1
            trees.child[b, leaf[b], edge[b], k] = child
            trees.parent[b, child], trees.action[b, child] = leaf[b], edge[b]
            trees.reward[b, child], trees.discount[b, child] = reward[b], discount[b]
            keys[b, child] = key[b]
        new[b] = child


@nb.njit(cache=True)
def backup(trees, node, value):  # type: ignore[no-untyped-def]
    """Add the values [B] of nodes [B] to all edges above them. A root whose node is NONE is left
    out."""
    for b in range(len(node)):
        at = node[b]
        if at == NONE:
            continue
        g = value[b]
        while trees.parent[b, at] != NONE:
            g = trees.reward[b, at] + trees.discount[b, at] * g
            up, a = trees.parent[b, at], trees.action[b, at]
            trees.visits[b, up, a] += 1
            trees.total[b, up, a] += g
            q = trees.total[b, up, a] / trees.visits[b, up, a]
            trees.low[b] = min(trees.low[b], q)
            trees.high[b] = max(trees.high[b], q)
            at = up
