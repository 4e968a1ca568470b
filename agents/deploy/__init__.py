"""A trained agent on a robot: it acts on time, and says when it does not know."""

from __future__ import annotations

from agents.deploy.config import CautionConfig, DeployConfig, FallbackConfig, RetrainConfig
from agents.deploy.decision import Decision
from agents.deploy.runtime import Runtime

__all__ = [
    "CautionConfig",
    "Decision",
    "DeployConfig",
    "FallbackConfig",
    "RetrainConfig",
    "Runtime",
]
