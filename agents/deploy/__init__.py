"""A trained agent on a robot: it acts on time, and says when it does not know."""

from __future__ import annotations

from agents.deploy.decision import Decision
from agents.deploy.runtime import Runtime
from agents.deploy.settings import CautionConfig, DeployConfig, FallbackConfig, RetrainConfig

__all__ = [
    "CautionConfig",
    "Decision",
    "DeployConfig",
    "FallbackConfig",
    "RetrainConfig",
    "Runtime",
]
