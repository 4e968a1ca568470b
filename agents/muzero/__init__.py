"""MuZero and its kin: a learned world of hidden states, and a tree search in it for every action.

config    settings
nets      policy and value of hidden states
targets   what the unrolled model shall say
compiled  the search's simulations as machine code
agent     acting, learning, searching old positions again
"""

from agents.muzero.agent import MuZero
from agents.muzero.config import MuZeroConfig

__all__ = ["MuZero", "MuZeroConfig"]
