"""An agent of your own in one file: soft Q-learning. Run it from the root of the repository:

    python scripts/train.py agent=docs.examples.soft_q:SoftQ \\
        env.id=CartPole-v1 env.pixels=false steps=20000 train_ratio=32 run=runs/soft_q

Actions are drawn from softmax(Q / temperature), and Q(s, a) becomes r + discount * temperature *
logsumexp(Q'(s') / temperature). docs/ADD_AN_AGENT.md goes through this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from agents.base import Agent, Part, check_mode
from agents.policies import EncoderConfig, Greedy, Torso
from worldmodel import tree
from worldmodel.adam import Adam, AdamConfig
from worldmodel.config import ConfigError
from worldmodel.nets import EMACopy, ReluMLP
from worldmodel.types import EnvSpec


@dataclass
class SoftQConfig:
    """batch_size: transitions of one update. temperature: in units of reward."""

    name: str = "docs.examples.soft_q:SoftQ"
    batch_size: int = 64
    units: int = 64
    discount: float = 0.98
    temperature: float = 0.1
    target_rate: float = 0.01
    optim: AdamConfig = field(default_factory=lambda: AdamConfig(lr=1e-3, clip=10.0))


class SoftQ(Agent):
    Config = SoftQConfig

    def __init__(self, spec: EnvSpec, config: SoftQConfig, device: torch.device) -> None:
        if spec.action.kind != "discrete" or len(spec.action.sizes) > 1 or spec.has_mask:
            raise ConfigError("SoftQ needs one discrete action without a mask. Use agent=dreamer.")
        self.spec, self.config, self.device = spec, config, device
        self.batch_size = self.min_rows = config.batch_size
        torso = Torso(spec, EncoderConfig())
        head = ReluMLP(torso.out_features, config.units, 2, spec.action.size)
        self.q = nn.Sequential(torso, head).to(device)
        self.target = EMACopy(self.q, config.target_rate)
        self.networks = nn.ModuleDict({"q": self.q, "target": self.target})
        self.optim = Adam([("q", self.q)], config.optim)

    def initial(self, batch_size: int) -> None:
        return None  # it remembers nothing

    @torch.no_grad()
    def act(self, obs: Any, state: Any = None, mode: str = "sample") -> tuple[np.ndarray, Any, Any]:
        check_mode(mode)
        q = self.q({k: torch.as_tensor(obs[k], device=self.device) for k in self.spec.seen})
        if mode == "mode":
            index = q.argmax(-1)
        else:  # from torch's generator, which a run saves and restores
            index = torch.softmax(q / self.config.temperature, -1).multinomial(1).squeeze(-1)
        return F.one_hot(index, q.shape[-1]).float().cpu().numpy(), None, {}

    def tick(self) -> nn.Module:
        return Greedy(self.q)

    def update(self, replay: Any) -> dict[str, Any]:
        c = self.config
        batch = replay.transitions(c.batch_size, 1, c.discount).to(self.device)
        with torch.no_grad():  # Q follows its target, not it Q
            value = c.temperature * torch.logsumexp(self.target(batch.next_obs) / c.temperature, -1)
        error = batch.reward + batch.discount * value - (self.q(batch.obs) * batch.action).sum(-1)
        loss = error.square().mean()
        metrics = self.optim.step(loss)
        self.target.update(self.q)
        return metrics | {"loss": loss.detach(), "value_mean": value.mean()}

    @property
    def parts(self) -> dict[str, Part]:
        return {"q": Part(self.networks.state_dict(keep_vars=True))}

    def state_dict(self) -> dict[str, Any]:
        return {"networks": self.networks.state_dict(), "optim": self.optim.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        tree.check_plain_like(tree.to_plain(self.state_dict()), state, "the agent")
        self.networks.load_state_dict(state["networks"])
        self.optim.load_state_dict(state["optim"])
