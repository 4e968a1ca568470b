"""One search tree for each of B roots, in flat arrays, and the kernels that walk them together.

Node 0 is the root and M the most nodes of a tree. A node is one outcome of an action: a world that
draws its outcomes leads from an edge to several nodes, at most K, and comes back to each as often
as it was drawn. With K = 1 an edge leads to one node.

    backup:  G <- reward + discount * G, from the leaf to the root;  Q of an edge: the mean of its G
"""

from __future__ import annotations

import numba as nb
import numpy as np

from agents.planning.tree_rules import (
    EXPANDED,
    GUMBEL,
    NONE,
    TREE,
    Trees,
    gumbel_best,
    improve,
    mean_value,
    node_value,
    select,
    uniform,
)


def make_trees(
    batch: int, most: int, actions: int, outcomes: int, rng: np.random.Generator
) -> Trees:
    """Trees of nothing but their roots."""
    edges, nodes = (batch, most, actions), (batch, most)
    return Trees(
        np.zeros(edges, np.int64), np.zeros(edges), np.full((*edges, outcomes), NONE, np.int64),
        np.zeros((*edges, outcomes), np.int64), np.full(edges, 1.0 / actions), np.zeros(edges),
        np.ones(edges, np.bool_), np.full(nodes, NONE, np.int64), np.full(nodes, NONE, np.int64),
        np.zeros(nodes), np.ones(nodes), np.zeros(nodes), np.zeros(batch, np.int64),
        np.ones(batch, np.int64), np.full(batch, np.inf), np.full(batch, -np.inf),
        np.zeros((batch, actions)), rng.integers(1, 1 << 63, batch, np.uint64),
    )  # fmt: skip


@nb.njit(cache=True)
def descend(trees, rule, table, done, most_depth, leaf, edge, depth):  # type: ignore[no-untyped-def]
    """Walk down every tree. leaf [B]: the node where the walk stopped; edge [B]: the action there
    that leads to a new outcome, or NONE where the node itself is to be valued again (it ends the
    episode, is as deep as allowed, or has no legal action). depth [B]: of the leaf. table: of
    `considered_visits`, for simulation number `done`. Returns how many edges are NONE."""
    outcomes = trees.child.shape[3]
    scratch = np.empty(trees.visits.shape[2])
    again = 0
    for b in range(len(leaf)):
        considered = 0
        if rule.kind == GUMBEL:
            considered = table[min(trees.legal[b, 0].sum(), table.shape[0] - 1), done]
        node, level, mean = 0, 0, 0.0
        while True:
            if level >= most_depth or (node > 0 and trees.discount[b, node] == 0.0):
                leaf[b], edge[b] = node, NONE
                break
            if rule.scale == EXPANDED:
                mean = mean_value(trees, b, node, mean)
            a = select(trees, b, node, rule, considered, mean, scratch)
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
            k = 0
            if outcomes > 1:
                at = uniform(trees.random, b) * draws
                while k < outcomes - 1 and at >= trees.drawn[b, node, a, k]:
                    at -= trees.drawn[b, node, a, k]
                    k += 1
            node = trees.child[b, node, a, k]
            level += 1
        depth[b] = level
        again += edge[b] == NONE
    return again


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
def expand(trees, leaf, edge, keys, key, reward, cont, discount, new):  # type: ignore[no-untyped-def]
    """Attach what the world answered at each leaf's edge: reward, cont [B]. key [B]: of the outcome
    that came; one that an edge has led to before is the same node. new [B]: the node, or that of
    the leaf without an edge. Returns how many answers were not finite; such an edge is closed,
    unless it is the last one."""
    wrong = 0
    for b in range(len(leaf)):
        new[b] = leaf[b]
        if edge[b] == NONE:
            continue
        finite = np.isfinite(reward[b]) and np.isfinite(cont[b])
        wrong += not finite
        if not finite and trees.legal[b, leaf[b]].sum() > 1:
            trees.legal[b, leaf[b], edge[b]] = False
            edge[b] = NONE
            continue
        k = find_outcome(trees, b, leaf[b], edge[b], keys, key[b])
        child = trees.child[b, leaf[b], edge[b], k]
        trees.drawn[b, leaf[b], edge[b], k] += 1
        if child == NONE:
            child = trees.nodes[b]
            trees.nodes[b] += 1
            trees.child[b, leaf[b], edge[b], k] = child
            trees.parent[b, child], trees.action[b, child] = leaf[b], edge[b]
            if finite:
                trees.reward[b, child], trees.discount[b, child] = reward[b], discount * cont[b]
            else:
                trees.reward[b, child], trees.discount[b, child] = -1e30, 0.0
            keys[b, child] = key[b]
        new[b] = child
    return wrong


@nb.njit(cache=True)
def backup(trees, rule, node, value, drawn):  # type: ignore[no-untyped-def]
    """Give nodes [B] their values [B], and add those to all edges above them. One that is not
    finite is not counted; unless it was `drawn`, so that it may be another the next time, its edge
    is closed. Returns how many were not finite."""
    wrong = 0
    for b in range(len(node)):
        at = node[b]
        g = float(value[b])
        if not np.isfinite(g):
            wrong += 1
            up = trees.parent[b, at]
            if up != NONE and not drawn and trees.legal[b, up].sum() > 1:
                trees.legal[b, up, trees.action[b, at]] = False
            continue
        trees.raw[b, at] = g
        while trees.parent[b, at] != NONE:
            # Nothing counts behind an end, not even what is not finite.
            g = trees.reward[b, at] + (trees.discount[b, at] * g if trees.discount[b, at] else 0.0)
            up, a = trees.parent[b, at], trees.action[b, at]
            trees.visits[b, up, a] += 1
            trees.total[b, up, a] += g
            if rule.scale == TREE:
                q = trees.total[b, up, a] / trees.visits[b, up, a]
                trees.low[b] = min(trees.low[b], q)
                trees.high[b] = max(trees.high[b], q)
            at = up
        if rule.scale == EXPANDED:
            _rescale(trees, b)
    return wrong


@nb.njit(cache=True)
def _rescale(trees, b):  # type: ignore[no-untyped-def]
    """The range of all Q of a tree as they are now."""
    trees.low[b], trees.high[b] = np.inf, -np.inf
    for node in range(trees.nodes[b]):
        for a in range(trees.visits.shape[2]):
            if trees.visits[b, node, a] > 0:
                q = trees.total[b, node, a] / trees.visits[b, node, a]
                trees.low[b], trees.high[b] = min(trees.low[b], q), max(trees.high[b], q)


@nb.njit(cache=True)
def root_values(trees):  # type: ignore[no-untyped-def]
    """The value of each root [B]."""
    out = np.empty(trees.visits.shape[0])
    for b in range(len(out)):
        out[b] = node_value(trees, b, 0)
    return out


@nb.njit(cache=True)
def improved_policies(trees, rule):  # type: ignore[no-untyped-def]
    """softmax(logits + sigma(Q)) of each root, [B, A], and the action [B] that is best among the
    most visited ones: what Gumbel search learns from and does."""
    batch, actions = trees.visits.shape[0], trees.visits.shape[2]
    policies, chosen = np.empty((batch, actions)), np.empty(batch, np.int64)
    for b in range(batch):
        improve(trees, b, 0, rule, policies[b])
        chosen[b] = gumbel_best(trees, b, trees.visits[b, 0].max(), rule, np.empty(actions))
    return policies, chosen
