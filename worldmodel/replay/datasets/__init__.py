"""Experience that somebody recorded, from files into the replay: our own replays, NPZ and HDF5
episodes, folders of LeRobot and imitation, Minari datasets.

recording  what a recording is made of: its episodes as they were recorded, and as steps
sources    where episodes come from, each with the names that its arrays bear
lerobot, trajectories, minari_source   those that come with a format of their own
names      what the arrays are, by the names that other tools give them
questions  names that only look like a part of an episode: when to ask
followers  next observations, by what they hold
parts      the arrays of a file as episodes: one, several one after another, or stacked
boundaries where one episode ends and the next begins
align      which action led to which observation, and how episodes ended
readers    images, vectors and actions as a model takes them
dataset    all of it checked, described in a table, and written to a replay
"""

from worldmodel.replay.datasets.dataset import Dataset
from worldmodel.replay.datasets.recording import ALIGNMENTS, ENDINGS, Convention, DatasetError

__all__ = ["ALIGNMENTS", "ENDINGS", "Convention", "Dataset", "DatasetError"]
