"""The recurrent state-space model that learns latent dynamics from pixels."""

from worldmodel.rssm.filtering import filter_replay
from worldmodel.rssm.heads import Head, HeadConfig
from worldmodel.rssm.model import ModelConfig, ModelOutput, WorldModel

__all__ = ["Head", "HeadConfig", "ModelConfig", "ModelOutput", "WorldModel", "filter_replay"]
