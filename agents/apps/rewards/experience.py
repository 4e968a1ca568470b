"""The recorded experience of a run, by episode and step, as labels and rewards name it.

episode   number in the replay, from 0: oldest first, one environment after the other
step      row of the episode, from 0, its first row (the reset); the reward of step t is for
          arriving there through action t
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from worldmodel.config import ConfigError
from worldmodel.replay import Replay
from worldmodel.types import EnvSpec


class Experience:
    """Episodes of a replay by number. An episode may lack its beginning (overwritten) or its end
    (the run stopped in it); then step 0 is its oldest row.
    """

    def __init__(self, replay: Replay, spec: EnvSpec | None = None) -> None:
        self.replay, self.spec = replay, spec or replay.spec
        self.places = replay.episodes()
        self.lengths = np.array([stop - start for _, start, stop in self.places], np.int64)

    def __len__(self) -> int:
        """How many episodes there are."""
        return len(self.places)

    @property
    def rows(self) -> int:
        """Rows of all episodes."""
        return int(self.lengths.sum())

    def episode(self, number: int) -> dict[str, np.ndarray]:
        """Every key of one episode [T, ...]: observations, action (encoded), reward and flags."""
        return self.replay.rows(*self.places[number])

    def transitions(
        self, number: int
    ) -> tuple[dict[str, Any], np.ndarray, dict[str, Any], dict[str, np.ndarray]]:
        """What led to the rows 1 ... T-1 of an episode, [T-1, ...] each: the observations before,
        native actions as the environment took them, the observations after, and info."""
        rows = self.episode(number)
        obs = {key: rows[key] for key in self.spec.obs}
        action = rows["action"][1:]
        if self.spec.action.kind == "continuous":
            action = np.clip(action, -1.0, 1.0)  # recorded as drawn, taken as clipped
        steps = np.arange(1, len(rows["reward"]))
        info = {
            "reward": rows["reward"][1:],
            "is_last": rows["is_last"][1:],
            "is_terminal": rows["is_terminal"][1:],
            "episode": np.full(len(steps), number),
            "step": steps,
        }
        before = {key: value[:-1] for key, value in obs.items()}
        after = {key: value[1:] for key, value in obs.items()}
        return before, self.spec.action.decode(action), after, info

    def check(self, episode: int, step: int, where: str) -> None:
        """ConfigError, naming `where` it was asked for, unless that episode has that step."""
        if not 0 <= episode < len(self):
            raise ConfigError(
                f"{where}: there is no episode {episode}; the replay holds 0 to {len(self) - 1}."
            )
        last = int(self.lengths[episode]) - 1
        if not 0 <= step <= last:
            raise ConfigError(
                f"{where}: there is no step {step} in episode {episode}; it has 0 to {last}."
            )

    def observation(self, episode: int, step: int) -> Mapping[str, np.ndarray]:
        """What was observed at one step, by key."""
        stream, start, _ = self.places[episode]
        rows = self.replay.rows(stream, start + step, start + step + 1)
        return {key: rows[key][0] for key in self.spec.obs}
