"""TD-MPC2: plans in a learned latent world, with values learned by temporal differences.

agent      acting and learning
config     hyperparameters
losses     of values and policy, as functions
networks   values, policy, and the distribution of actions
"""

from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.config import TDMPC2Config

__all__ = ["TDMPC2", "TDMPC2Config"]
