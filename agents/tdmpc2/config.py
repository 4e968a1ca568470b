"""Hyperparameters of TD-MPC2; the defaults are the paper's, size 5M."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from agents.planning.mppi import MPPIConfig
from worldmodel.accel import devices
from worldmodel.accel.devices import PRECISIONS
from worldmodel.adam import AdamConfig
from worldmodel.config import ConfigError, check_ranges, free, unknown
from worldmodel.models.latent_nets import LatentConfig

GUIDES = ("none", "constraint", "imitation")


def published_planner() -> MPPIConfig:
    """488 drawn candidates and 24 of the policy, six times; 64 elites."""
    return MPPIConfig(
        horizon=3, iterations=6, candidates=488, policy_candidates=24, elites=64, std=2.0,
        least_std=0.05, greatest_std=2.0, gain=0.5, filter=1.0, fit_std=True, sample=True,
        repeat_last=False,
    )  # fmt: skip


@dataclass
class TDMPC2Config:
    """batch_size: slices of one update. horizon: steps of each slice. heads: Q functions. dropout:
    of their first layer. target_rate: share of the way that the target heads move at each update.
    encoder_rate: learning rate of the encoder, as a share of the others'. value_scale: weight of
    the values' loss. entropy: weight of the policy's entropy. squashed_entropy: that of the action,
    as in the paper; false: that of the normal distribution before tanh, as its code since 2024.
    guide: what else the policy learns from the planner, whose distributions replay then stores:
    nothing, "constraint" (stay likely under them; TD-M(PC)^2), or "imitation" (nothing but them;
    BMPC). replan: slices of a batch whose stored distributions are planned anew at every
    replan_every-th update (BMPC: 20, 10); 0: they stay as they were. plan: act by planning; false:
    by the policy alone. precision: of the networks on a GPU ("bfloat16" or "float32").
    cpu_precision: on a CPU, where bfloat16 is quicker if the processor multiplies it (avx512_bf16
    or amx among its flags), and slower if not. planner: its `sample` is for training; an action of
    mode "mode" is the mean of the plan. policy_optim: of the policy."""

    name: str = "tdmpc2"
    batch_size: int = 256
    horizon: int = 3
    heads: int = 5
    dropout: float = 0.01
    target_rate: float = 0.01
    encoder_rate: float = 0.3
    value_scale: float = 0.1
    entropy: float = 1e-4
    squashed_entropy: bool = True
    guide: str = "none"
    replan: int = 0
    replan_every: int = 10
    plan: bool = free(True)
    precision: str = "bfloat16"
    cpu_precision: str = "float32"
    model: LatentConfig = field(default_factory=LatentConfig)
    planner: MPPIConfig = field(default_factory=published_planner)
    optim: AdamConfig = field(default_factory=lambda: AdamConfig(lr=3e-4, clip=20.0))
    policy_optim: AdamConfig = field(default_factory=lambda: AdamConfig(3e-4, clip=20.0, eps=1e-5))

    def __post_init__(self) -> None:
        check_ranges(self, {
            "batch_size": (1, 1 << 16), "horizon": (1, 1000), "heads": (2, 1000),
            "dropout": (0, 0.99), "target_rate": (1e-9, 1), "encoder_rate": (0, 1e3),
            "value_scale": (0, 1e6), "entropy": (0, 1e6), "replan": (0, 1 << 16),
            "replan_every": (1, 1 << 40),
        })  # fmt: skip
        if self.guide not in GUIDES:
            raise ConfigError(unknown("guide", self.guide, GUIDES))
        if self.replan and self.guide == "none":
            raise ConfigError(
                f"replan is {self.replan}, of plans that the policy learns from, and guide=none "
                "learns from none. Set guide=imitation or constraint, or leave it out."
            )
        for name in ("precision", "cpu_precision"):
            if getattr(self, name) not in PRECISIONS:
                raise ConfigError(unknown(name, getattr(self, name), PRECISIONS))

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The precision of the networks on a device."""
        return devices.autocast(device, self.precision, self.cpu_precision)

    def replans(self, updates: int) -> bool:
        """Whether old rows are planned anew after so many updates."""
        return bool(self.replan and updates and updates % self.replan_every == 0)

    @property
    def log_std(self) -> tuple[float, float]:
        """Bounds of the policy's log deviation; narrower where it imitates (BMPC)."""
        return (-3.0, 1.0) if self.guide == "imitation" else (-10.0, 2.0)
