"""The recurrent state-space model that learns latent dynamics from pixels."""

from worldmodel.rssm.config import ModelConfig
from worldmodel.rssm.filtering import filter_replay
from worldmodel.rssm.heads import Head, HeadConfig
from worldmodel.rssm.model import ModelOutput, WorldModel
from worldmodel.rssm.state import LatentState

__all__ = [
    "Head",
    "HeadConfig",
    "LatentState",
    "ModelConfig",
    "ModelOutput",
    "WorldModel",
    "filter_replay",
]
