"""World Models (Ha and Schmidhuber 2018).

config: hyperparameters. agent: phases, learning, checkpoints. acting: its state, and the exported
step. controller: C, its search and its dreams. trials: who plays which episode. memory: what is
read from the replay.
"""

from agents.world_models.agent import WorldModels
from agents.world_models.config import SearchConfig, WorldModelsConfig

__all__ = ["SearchConfig", "WorldModels", "WorldModelsConfig"]
