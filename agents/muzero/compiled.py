"""A search's simulations as machine code, for small worlds of vectors on a CPU.

What `Search.simulate` does with PyTorch's operations, each of which costs more than its arithmetic
here: walk down, step the model, predict, attach, back up; the same kernels of the tree, and the
same formulas as worldmodel.models.muzero and agents.muzero.nets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
import torch

from agents.muzero.nets import Networks
from agents.planning.tree_rules import NONE, Rule, Trees
from agents.planning.tree_search import backup, descend, expand
from worldmodel.models.muzero import FlatDynamics

MOST_BINS = 128  # beyond, PyTorch's exponentials are faster than these
REORDER = {"reassoc", "contract"}  # sums in any order, eight at a time; what is not finite stays so


class Weights(NamedTuple):
    """Of the dynamics, the reward, the end and the prediction; views of the network's own, so that
    they are always those of now. points: of the bins. ends, scaled: of the model's config."""

    w1: np.ndarray
    b1: np.ndarray
    g1: np.ndarray
    s1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray
    wr: np.ndarray
    br: np.ndarray
    we: np.ndarray
    be: np.ndarray
    w3: np.ndarray
    b3: np.ndarray
    g3: np.ndarray
    s3: np.ndarray
    w4: np.ndarray
    b4: np.ndarray
    points: np.ndarray
    ends: bool
    scaled: bool


class Compiled:
    """Simulations of these networks; `fits` says whether they can be had."""

    def __init__(self, networks: Networks) -> None:
        world: Any = networks.model
        prediction: Any = networks.prediction
        layers = [world.dynamics.hidden[:2], [world.dynamics.out, world.reward, world.ends]]
        layers += [prediction.hidden[:2], [prediction.out]]
        arrays = [
            tensor.detach().numpy()
            for group in layers
            for layer in group
            for tensor in (layer.weight, layer.bias)
        ]
        c = world.config
        points = networks.support.points.numpy()
        self.weights = Weights._make((*arrays, points, c.ends, c.scaled))

    @staticmethod
    def fits(networks: Networks) -> bool:
        """Vectors on a CPU, one discrete action, few bins, no sums of rewards."""
        world, action = networks.model, networks.action
        flat = isinstance(world.dynamics, FlatDynamics) and action.kind == "discrete"
        small = world.config.bins <= MOST_BINS and not world.config.prefix
        on_cpu = world.reward.weight.device.type == "cpu"
        return flat and small and on_cpu and len(action.sizes) == 1

    def __call__(
        self,
        trees: Trees,
        rule: Rule,
        considered: np.ndarray,
        simulations: int,
        depth: int,
        states: tuple[torch.Tensor, ...],
        discount: float,
        deepest: np.ndarray,
    ) -> int:
        """Simulate; returns how many answers were not finite. states: of all nodes."""
        latents = states[0].numpy()
        return int(
            _simulate(
                trees, rule, considered, simulations, depth, latents, self.weights, discount,
                deepest,
            )
        )  # fmt: skip


@nb.njit(cache=True, fastmath=REORDER)
def _dense(x, weight, bias, scale, shift):  # type: ignore[no-untyped-def]
    """Linear, LayerNorm, ReLU."""
    out = np.dot(x, weight.T)
    width = out.shape[1]
    for b in range(out.shape[0]):
        mean = np.float32(0.0)
        for i in range(width):
            out[b, i] += bias[i]
            mean += out[b, i]
        mean /= width
        square = np.float32(0.0)
        for i in range(width):
            out[b, i] -= mean
            square += out[b, i] * out[b, i]
        factor = np.float32(1.0) / np.sqrt(square / width + np.float32(1e-5))
        for i in range(width):
            out[b, i] = max(out[b, i] * factor * scale[i] + shift[i], np.float32(0.0))
    return out


@nb.njit(cache=True, fastmath=REORDER)
def _mean(logits, points):  # type: ignore[no-untyped-def]
    """`Support.mean` of one row of logits."""
    top = logits.max()
    mass, total = 0.0, 0.0
    for i in range(len(points)):
        p = np.exp(logits[i] - top)
        mass += p
        total += p * points[i]
    y = total / mass
    root = (np.sqrt(1.0 + 0.004 * (abs(y) + 1.001)) - 1.0) / 0.002
    return np.sign(y) * (root * root - 1.0)


@nb.njit(cache=True, fastmath=REORDER)
def _bounded(x):  # type: ignore[no-untyped-def]
    """Each row in [0, 1] by its least and greatest entry."""
    for b in range(x.shape[0]):
        low, high = x[b].min(), x[b].max()
        width = high - low
        if width < np.float32(1e-5):
            width += np.float32(1e-5)
        for i in range(x.shape[1]):
            x[b, i] = (x[b, i] - low) / width


@nb.njit(cache=True)
def _simulate(trees, rule, table, simulations, most, latents, w, discount, deepest):  # type: ignore[no-untyped-def]
    batch, nodes, actions = trees.visits.shape
    size = latents.shape[1]
    leaf, edge = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
    depth, new = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
    keys, key = np.zeros((batch, nodes), np.uint64), np.zeros(batch, np.uint64)
    before = np.zeros((batch, size), np.float32)
    inputs = np.zeros((batch, size + actions), np.float32)
    reward, cont, value = np.zeros(batch), np.ones(batch), np.zeros(batch)
    wrong = 0
    for done in range(simulations):
        descend(trees, rule, table, done, most, leaf, edge, depth)
        for b in range(batch):
            deepest[b] = max(deepest[b], depth[b] + 1)
            before[b] = latents[b * nodes + leaf[b]]
            inputs[b, :size] = before[b]
            inputs[b, size:] = 0.0
            inputs[b, size + max(edge[b], 0)] = 1.0
        hidden = _dense(inputs, w.w1, w.b1, w.g1, w.s1)
        after = before + np.dot(hidden, w.w2.T) + w.b2
        if w.scaled:
            _bounded(after)
        rewards, ends = np.dot(hidden, w.wr.T) + w.br, np.dot(hidden, w.we.T) + w.be
        for b in range(batch):
            reward[b] = _mean(rewards[b], w.points)
            if w.ends:
                cont[b] = 1.0 / (1.0 + np.exp(-ends[b, 0]))
        wrong += expand(trees, leaf, edge, keys, key, reward, cont, discount, new)
        for b in range(batch):
            if edge[b] == NONE:
                after[b] = before[b]
            latents[b * nodes + new[b]] = after[b]
        out = np.dot(_dense(after, w.w3, w.b3, w.g3, w.s3), w.w4.T) + w.b4
        for b in range(batch):
            value[b] = _mean(out[b, actions:], w.points)
            top, mass = out[b, :actions].max(), 0.0
            for a in range(actions):
                mass += np.exp(out[b, a] - top)
            for a in range(actions):
                log_p = out[b, a] - top - np.log(mass)
                trees.logits[b, new[b], a] = log_p
                trees.prior[b, new[b], a] = np.exp(log_p)
        wrong += backup(trees, rule, new, value, False)
    return wrong
