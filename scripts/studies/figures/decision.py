"""One decision of a tree search in a run's world: the policy before and after it, its tree, and the
moves that both sides are expected to make.

    scripts/plot.py figure=decision run=runs/ttt 'moves=[4,1]'
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

import agents
from agents.apps.plans import draw_tree
from agents.base import Policy
from agents.planning.mcts import MCTS
from agents.planning.tree_config import MCTSConfig
from agents.planning.tree_growth import Found
from agents.planning.tree_rules import NONE, Trees
from worldmodel import config, plots
from worldmodel.envs import boards, make_env
from worldmodel.log import write_picture
from worldmodel.types import MASK_KEY

LONGEST = 6  # moves of the expected line


@dataclass
class Settings:
    """run: of an agent with a world and discrete actions. moves: actions by number that lead to the
    position, from the environment's reset with `seed`; what is masked is refused. rule,
    simulations: of the search. out: a folder for the PNGs and the CSV."""

    run: str = MISSING
    moves: list[int] = field(default_factory=list)
    seed: int = 0
    rule: str = "gumbel"
    simulations: int = 50
    out: str = "figures"

    def __post_init__(self) -> None:
        config.check_ranges(self, {"seed": (0, 2**31), "simulations": (1, 1 << 16)})


def make(settings: Settings) -> list[Path]:
    """Search once, and draw it; the files."""
    policy = agents.load(settings.run)
    state, mask, board = reach(policy, settings.moves, settings.seed)
    search = MCTSConfig(rule=settings.rule, simulations=settings.simulations, gumbel=0.0)
    planner = MCTS(policy.spec.action, search, 0, policy.device)
    found = planner.search(policy.model, state, policy.agent.evaluate, mask)
    line = expected_line(found.trees)
    made, axes = plots.figure(2 if board is not None else 1, 1, height=3.4)
    _bars(axes[0][0], found)
    if board is not None:
        game = boards.GAMES[policy.env.id]
        picture = np.concatenate([pad(p) for p in positions(game, board, line)], 1)
        axes[0][1].imshow(picture)
        axes[0][1].set_axis_off()
        axes[0][1].set_title("the moves that are expected")
    value = f"value {found.value[0]:.2f}, expected: {', '.join(map(str, line))}"
    plots.caption(made, f"{settings.simulations} simulations, rule={settings.rule}; {value}")
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    write_picture(out / "tree.png", draw_tree(found.trees))
    rows = list(zip(*columns(found).values(), strict=True))
    return [
        plots.save(made, out / "decision.png"),
        out / "tree.png",
        plots.write_table(out / "decision.csv", list(columns(found)), rows),
    ]


@torch.no_grad()
def reach(
    policy: Policy, moves: list[int], seed: int
) -> tuple[Any, torch.Tensor | None, np.ndarray | None]:
    """The world's state and the mask where some moves lead, and the board of a board game. Raises
    ConfigError where there is no world, and for moves that cannot be made."""
    agent, spec = policy.agent, policy.spec
    if spec.action.kind != "discrete" or agent.world_state(agent.initial(1)) is None:
        raise config.ConfigError(
            f"figure=decision needs an agent with a world and discrete actions; this is agent="
            f"{agent.name}, whose actions are {spec.action.kind}."
        )
    with closing(make_env(policy.env, seed, spec=spec)) as env:
        obs, _ = env.reset(seed=seed)
        state: Any = None
        for number in range(len(moves) + 1):
            seen = {key: np.asarray(obs[key])[None] for key in spec.seen}
            seen["is_first"] = np.array([number == 0])
            _, state, _ = agent.follow(seen, state, "mode")
            if number == len(moves):
                break
            if not 0 <= moves[number] < spec.action.sizes[0]:
                most = spec.action.sizes[0] - 1
                raise config.ConfigError(
                    f"There is no action {moves[number]} (moves); allowed: 0 to {most}."
                )
            action = spec.action.encode(np.array([moves[number]]))
            state = agent.replace_action(state, action)
            obs, _, terminated, truncated, _ = env.step(spec.action.decode(action)[0])
            if terminated or truncated:
                raise config.ConfigError(f"The episode ends after {number + 1} of these moves.")
        inner: Any = env.unwrapped
        board = inner.board.copy() if isinstance(inner, boards.BoardGame) else None
    mask = None
    if spec.has_mask:
        mask = torch.as_tensor(seen[MASK_KEY], device=policy.device)
    return agent.world_state(state), mask, board


def columns(found: Found) -> dict[str, list[float]]:
    """Of each action: the policy before the search and after it, visits, and the value found."""
    trees = found.trees
    visits, total = trees.visits[0, 0], trees.total[0, 0]
    before = np.where(trees.legal[0, 0], np.exp(trees.logits[0, 0]), 0.0)
    value = np.where(visits > 0, total / np.maximum(visits, 1), np.nan)
    return {
        "action": list(range(len(visits))), "before": (before / before.sum()).tolist(),
        "after": found.policy[0].tolist(), "visits": visits.tolist(), "value": value.tolist(),
    }  # fmt: skip


def expected_line(trees: Trees) -> list[int]:
    """The most visited actions from the root down, as far as they were visited twice and the world
    does not take the episode to be over."""
    node, line = 0, list[int]()
    while len(line) < LONGEST:
        action = int(trees.visits[0, node].argmax())
        child = int(trees.child[0, node, action, 0])
        if trees.visits[0, node, action] < 2 or child == NONE:
            break
        line.append(action)
        if abs(trees.discount[0, child]) < 0.5:
            break
        node = child
    return line


def positions(game: boards.Game, board: np.ndarray, line: list[int]) -> list[np.ndarray]:
    """Pictures of a board now and after each move of a line, as far as they are legal."""
    board, player = board.copy(), 1 if (board != 0).sum() % 2 == 0 else -1
    shown = [boards.draw(board)]
    for move in line:
        if not boards.legal(game, board)[move]:
            break
        where = boards.place(game, board, move, player)
        won = boards.winning(game, board, *where)
        shown.append(boards.draw(board, won))
        if won:
            break
        player = -player
    return shown


def pad(picture: np.ndarray) -> np.ndarray:
    """A picture with a white edge."""
    return np.pad(picture, ((6, 6), (6, 6), (0, 0)), constant_values=255)


def _bars(axes: Any, found: Found) -> None:
    shown = columns(found)
    x = np.arange(len(shown["action"]))
    axes.bar(x - 0.2, shown["before"], 0.4, color=plots.COLOURS[5], label="before the search")
    axes.bar(x + 0.2, shown["after"], 0.4, color=plots.COLOURS[1], label="after it")
    for i, value in enumerate(shown["value"]):
        if np.isfinite(value):
            axes.text(i, 1.01, f"{value:.2f}", ha="center", fontsize=7, color="#555555")
    axes.set_xticks(x)
    axes.set_ylim(0, 1.08)
    axes.set_xlabel("action (above: its value)")
    axes.set_title("policy")
    axes.legend()
