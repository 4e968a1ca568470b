"""Experience that somebody recorded, from files into the replay: our own replays, NPZ and HDF5
episodes, Minari datasets.

sources    where episodes come from, each with the names that its arrays bear
align      which action led to which observation, and how episodes ended
readers    images, vectors and actions as a model takes them
dataset    all of it checked, described in a few lines, and written to a replay
"""

from worldmodel.replay.datasets.align import ALIGNMENTS, ENDINGS, Convention, DatasetError
from worldmodel.replay.datasets.dataset import Dataset

__all__ = ["ALIGNMENTS", "ENDINGS", "Convention", "Dataset", "DatasetError"]
