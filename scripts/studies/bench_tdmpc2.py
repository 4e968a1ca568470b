"""What makes TD-MPC2 fast on a CPU: acting and updating, with and without each of its savings.

All variants take turns in one process, and the least time of each counts, so that what else the
machine does weighs on all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from agents.tdmpc2 import TDMPC2, TDMPC2Config
from worldmodel import config
from worldmodel.models.latent import LatentWorld
from worldmodel.models.latent_nets import LatentConfig
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

SIZES = {  # encoder, layers, units, latent, heads
    "tiny": (96, 2, 96, 64, 2), "1m": (256, 2, 384, 128, 2), "5m": (256, 2, 512, 512, 5),
}  # fmt: skip


@dataclass
class Settings:
    """size: tiny, 1m or 5m. obs, actions: numbers seen and action entries. rounds: of all
    variants. The planner and the batch are the published ones."""

    size: str = "1m"
    obs: int = 24
    actions: int = 6
    rounds: int = 5


def make(settings: Settings, **planner: Any) -> TDMPC2:
    """An agent that plans, with its weights as they begin."""
    encoder, layers, units, latent, heads = SIZES[settings.size]
    world = LatentConfig(
        latent=latent, units=units, encoder_units=encoder, encoder_layers=layers, ends=False
    )
    whole = TDMPC2Config(heads=heads, model=world)
    spec = EnvSpec(
        {"o": ObsSpec("vector", (settings.obs,))}, ActionSpec("continuous", (settings.actions,))
    )
    torch.manual_seed(0)
    chosen = replace(whole, planner=replace(whole.planner, **planner))
    agent = TDMPC2(spec, chosen, torch.device("cpu"))
    agent.optim.updates = 1
    return agent


def replay_of(agent: TDMPC2) -> Replay:
    """A thousand random rows."""
    replay, rng = Replay(agent.spec, ReplayConfig(capacity=1000), 1), np.random.default_rng(0)
    for t in range(1000):
        replay.add({
            "o": rng.normal(size=(1, *agent.spec.obs["o"].shape)).astype(np.float32),
            "action": rng.uniform(-1, 1, (1, agent.spec.action.size)).astype(np.float32),
            "reward": rng.normal(size=1).astype(np.float32),
            "is_first": np.array([t % 100 == 0]), "is_last": np.array([t % 100 == 99]),
            "is_terminal": np.zeros(1, bool),
        })  # fmt: skip
    return replay


def plain_mish(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm and mish by PyTorch."""
    return F.mish(torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), scale))


def without_fusing() -> list[AbstractContextManager[Any]]:
    """PyTorch's mish in both places that use ours."""
    places = ("worldmodel.models.latent_nets", "agents.tdmpc2.networks")
    return [mock.patch(f"{place}.norm_mish", plain_mish) for place in places]


def without_own_softmax() -> list[AbstractContextManager[Any]]:
    """PyTorch's softmax of small groups in both places that use ours."""

    def plain(x: Tensor, group: int) -> Tensor:
        return torch.softmax(x.float().unflatten(-1, (-1, group)), -1).flatten(-2)

    places = ("worldmodel.models.latent_nets", "worldmodel.models.latent")
    return [mock.patch(f"{place}.sim_norm", plain) for place in places]


def variants(settings: Settings) -> dict[str, tuple[Callable[[], Any], list[Any]]]:
    """What is timed by name, and what is changed around it."""
    agent, slow = make(settings), make(settings, decay=1.25)
    replay, obs = replay_of(agent), {"o": np.zeros((1, settings.obs), np.float32)}
    every = mock.patch("agents.tdmpc2.networks.Networks.two", return_value=None)
    unprepared = mock.patch.object(LatentWorld, "prepared", lambda self, state: state)

    short = mock.patch.object(agent.config, "cpu_precision", "bfloat16")

    def act(one: TDMPC2) -> Callable[[], Any]:
        return lambda: one.act(obs)

    def update() -> Any:
        return agent.update(replay)

    return {
        "act": (act(agent), []),
        "act, PyTorch's mish": (act(agent), without_fusing()),
        "act, PyTorch's softmax": (act(agent), without_own_softmax()),
        "act, bfloat16": (act(agent), [short]),
        "act, all Q functions": (act(agent), [every]),
        "act, first layers anew": (act(agent), [unprepared]),
        "act, decay 1.25": (act(slow), []),
        "update": (update, []),
        "update, PyTorch's mish": (update, without_fusing()),
        "update, PyTorch's softmax": (update, without_own_softmax()),
        "update, bfloat16": (update, [short]),
    }


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """Milliseconds of each variant, how often a second, and its ratio to the whole."""
    if settings.size not in SIZES:
        raise config.ConfigError(config.unknown("size", settings.size, SIZES))
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    timed = variants(settings)
    for _ in range(settings.rounds + 1):
        for name, (call, patches) in timed.items():
            with ExitStack() as changed:
                for patch in patches:
                    changed.enter_context(patch)
                began = time.perf_counter()
                call()
                spent = 1e3 * (time.perf_counter() - began)
            found[name] = min(found.get(name, np.inf), spent)
    for name, spent in found.items():
        ratio = spent / found[name.split(",")[0]]
        yield {"variant": name, "ms": spent, "per_second": 1e3 / spent, "ratio": ratio}
