"""Open-loop predictions of a learned world, films of them, and the world as an environment.

rollout   open loop: what a model shows and predicts after its context
films     strips and films of it, with a mark where imagination starts
metrics   how far a dream is from what happened
starts    where dreams begin
env       a learned world as a gymnasium environment, one or many at a time
view      what agents see of it, and the real environment seen the same way
"""

from worldmodel.dream.env import DreamEnv, DreamVectorEnv
from worldmodel.dream.films import MARK, film, film_of, strip, titled
from worldmodel.dream.rollout import OpenLoop, cut, decoded, device_of, follow, open_loop
from worldmodel.dream.starts import Starts, rows_of_frames, starts_from, starts_of
from worldmodel.dream.view import AwakeEnv

__all__ = [
    "MARK",
    "AwakeEnv",
    "DreamEnv",
    "DreamVectorEnv",
    "OpenLoop",
    "Starts",
    "cut",
    "decoded",
    "device_of",
    "film",
    "film_of",
    "follow",
    "open_loop",
    "rows_of_frames",
    "starts_from",
    "starts_of",
    "strip",
    "titled",
]
