"""One decision of a planner, drawn: candidates, elites and the plan, as what the world imagines of
them; the plan as a film; the tree of a tree search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from agents.apps.play.world import bars_words, picture_of
from agents.planning.base import Plan
from agents.planning.imagine import Scored
from agents.planning.tree_rules import Trees
from worldmodel import seeding, tree
from worldmodel.capabilities import Decodes
from worldmodel.dream import films
from worldmodel.log import enlarged, gif, write_picture
from worldmodel.types import EnvSpec

SIDE, GAP, COLUMNS = 72, 3, 8  # pixels of a frame and between two, frames of a row
MOST = 200  # candidates that are averaged
FONT, SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.36  # of the labels in a tree
DEEPEST, LEAST = 6, 2  # levels of a tree that are drawn, and visits of a node that is


def draw_decision(
    folder: Path, world: Any, spec: EnvSpec, state: Any, plan: Plan, seed: int = 0
) -> list[Path]:
    """Write plan.png and plan.gif, or tree.png, of the decision in a state [1, ...]; the files.
    none where the world cannot show its states, and no tree was searched."""
    if isinstance(plan.searched, Trees):
        path = folder / "tree.png"
        write_picture(path, draw_tree(plan.searched))
        return [path]
    if not isinstance(world, Decodes) or not isinstance(plan.searched, Scored):
        return []
    rows = imagined_rows(world, spec, state, plan, seed)
    write_picture(folder / "plan.png", draw_rows(rows, bars_words(spec)))
    (folder / "plan.gif").write_bytes(gif(unfolding(rows), fps=4))
    return [folder / "plan.png", folder / "plan.gif"]


def plan_strip(world: Any, spec: EnvSpec, state: Any, plan: Plan, seed: int) -> np.ndarray:
    """The plan of a state [1, ...] as one picture: what is imagined of it, or the tree."""
    if plan.sequence is None:
        return draw_tree(plan.searched)
    film = frames(world, spec, state, plan.sequence[:1], seed)[0]
    picks = np.linspace(0, len(film) - 1, min(COLUMNS, len(film))).round().astype(int)
    cells = []
    for t in picks:
        cell = enlarged(film[t], SIDE)
        cells.append(np.concatenate([films.lines([f"+{t + 1}"], cell.shape[1], films.MARK), cell]))
    return films.tiled(cells, len(cells), GAP)


def imagined_rows(
    world: Any, spec: EnvSpec, state: Any, plan: Plan, seed: int
) -> list[tuple[str, list[np.ndarray]]]:
    """A title and frames uint8 [h, w, 3] of H steps, for the plan, the best candidates, the worst,
    and the mean picture of all."""
    assert plan.sequence is not None
    returns, actions = plan.searched.returns[0], plan.searched.actions[0]
    order = returns.argsort(descending=True)
    order = order[returns[order].isfinite()]
    rows = [("the plan", frames(world, spec, state, plan.sequence[:1], seed)[0])]
    for name, picks in (("best", order[:3]), ("worst", order[-1:])):
        for number, pick in enumerate(picks.tolist()):
            title = f"{name} {number + 1}: {float(returns[pick]):.2f}"
            rows.append((title, frames(world, spec, state, actions[pick : pick + 1], seed)[0]))
    if len(order):
        many = frames(world, spec, state, actions[order[:MOST]], seed)
        mean = [np.mean(column, 0).astype(np.uint8) for column in zip(*many, strict=True)]
        rows.append((f"mean of {len(many)}", mean))
    return rows


@torch.no_grad()
def frames(
    world: Any, spec: EnvSpec, state: Any, actions: Tensor, seed: int
) -> list[list[np.ndarray]]:
    """What a world imagines of actions [N, H, A] from a state [1, ...]: N films of H pictures under
    the same random numbers."""
    states = tree.map(lambda x: x.repeat_interleave(len(actions), 0), state)
    shown = []
    with seeding.Stream(seed, actions.device):
        for t in range(actions.shape[1]):
            states = world.step(states, actions[:, t]).state
            shown.append({k: v.float().cpu().numpy() for k, v in world.decode(states).items()})
    return [
        [picture_of({k: v[n] for k, v in one.items()}, spec) for one in shown]
        for n in range(len(actions))
    ]


def draw_rows(rows: list[tuple[str, list[np.ndarray]]], words: list[str]) -> np.ndarray:
    """Rows of frames below their titles, time from left to right, as one picture. words: lines
    that say what the frames show."""
    length = len(rows[0][1])
    picks = np.linspace(0, length - 1, min(COLUMNS, length)).round().astype(int)
    parts = []
    for number, (title, film) in enumerate(rows):
        cells = [enlarged(film[t], SIDE) for t in picks]
        body = films.tiled(cells, len(cells), GAP)
        ink = films.MARK if number == 0 else films.INK
        parts += [films.lines([title], body.shape[1], ink), body]
    width = parts[1].shape[1]
    count = "imagined steps " + ", ".join(str(t + 1) for t in picks)
    return np.concatenate([films.lines([count, *words], width, films.INK), *parts], 0)


def unfolding(rows: list[tuple[str, list[np.ndarray]]]) -> list[np.ndarray]:
    """The frames of a film: the plan beside the mean of the candidates, step by step."""
    chosen = [rows[0], rows[-1]] if len(rows) > 1 else rows[:1]
    out = []
    for t in range(len(chosen[0][1])):
        cells = []
        for title, film in chosen:
            big = enlarged(film[t], 2 * SIDE)
            words = [title, f"step {t + 1} of {len(film)}"]
            cells.append(np.concatenate([films.lines(words, big.shape[1], films.MARK), big], 0))
        out.append(films.tiled(cells, len(cells), GAP))
    return films.coarse(out)


def draw_tree(trees: Trees, root: int = 0) -> np.ndarray:
    """The tree of one root: its nodes by depth from left to right; a line is as thick as its edge
    was visited, and redder the more its value lies above the others'."""
    children: dict[int, list[int]] = {0: []}
    depth = {0: 0}
    for node in range(1, int(trees.nodes[root])):
        parent, action = int(trees.parent[root, node]), int(trees.action[root, node])
        visits = int(trees.visits[root, parent, action])
        if parent in children and visits >= LEAST and depth[parent] < DEEPEST:
            children[parent].append(node)
            children[node], depth[node] = [], depth[parent] + 1
    rows = _rows_of(children)
    edges = {n: (int(trees.parent[root, n]), int(trees.action[root, n])) for n in children if n}
    visited = {n: int(trees.visits[root][e]) for n, e in edges.items()}
    values = {n: float(trees.total[root][e]) / visited[n] for n, e in edges.items()}
    labels = {n: f"{edges[n][1]}: {values[n]:.2f} ({visited[n]})" for n in edges}
    # An edge ends level, and long enough for its label to stand above it, clear of its siblings.
    level = 8 + max((cv2.getTextSize(t, FONT, SIZE, 1)[0][0] for t in labels.values()), default=0)
    high, wide = 24, level + 60
    height = int(high * (max(rows.values()) + 2))
    width = max(240, wide * max(depth.values()) + 24)  # of the title, at least
    out = np.full((height, width, 3), films.BLANK, np.uint8)

    def place(node: int) -> tuple[int, int]:
        return 12 + wide * depth[node], int(high * (rows[node] + 1))

    total = max(1, int(trees.visits[root, 0].sum()))
    least, most = min(values.values(), default=0.0), max(values.values(), default=0.0)
    for node, (parent, _) in edges.items():
        share = (values[node] - least) / max(1e-9, most - least)
        ink = tuple(
            int(a + share * (b - a)) for a, b in zip((70, 110, 190), films.MARK, strict=True)
        )
        thick = 1 + round(7 * (visited[node] / total) ** 0.5)
        x, y = place(node)
        for start, end in ((place(parent), (x - level, y)), ((x - level, y), (x, y))):
            cv2.line(out, start, end, ink, thick, cv2.LINE_AA)
    for node, text in labels.items():
        x, y = place(node)
        cv2.putText(out, text, (x - level + 4, y - 7), FONT, SIZE, films.INK, 1, cv2.LINE_AA)
    for node in children:
        cv2.circle(out, place(node), 4, films.INK, -1, cv2.LINE_AA)
    best = int(trees.visits[root, 0].argmax())
    title = f"{total} visits; action: value (visits); taken: {best}"
    return np.concatenate([films.lines([title], out.shape[1]), out], 0)


def _rows_of(children: dict[int, list[int]]) -> dict[int, float]:
    """The row of each node: leaves one below the other, a parent in the middle of its children."""
    rows: dict[int, float] = {}
    taken = 0
    order, stack = [], [0]
    while stack:
        node = stack.pop()
        order.append(node)
        stack += reversed(children[node])
    for node in order:
        if not children[node]:
            rows[node], taken = float(taken), taken + 1
    for node in reversed(order):
        if children[node]:
            rows[node] = float(np.mean([rows[child] for child in children[node]]))
    return rows
