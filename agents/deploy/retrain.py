"""When the model no longer predicts what happens: a request to train, with the data for it.

Nothing is trained here, and nothing in the control thread: a request is a folder that somebody may
train on, or not.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.deploy.config import RetrainConfig
from worldmodel.replay import Replay, ReplayConfig
from worldmodel.types import EnvSpec


class Row(NamedTuple):
    """One tick of one robot, aligned as worldmodel.types draws it; obs: None where refused."""

    obs: Mapping[str, np.ndarray] | None
    action: np.ndarray
    reward: float
    is_first: bool
    is_last: bool
    is_terminal: bool


@dataclass(frozen=True)
class RetrainRequest:
    """Please train: `kind` of prediction error of a robot was above its threshold on average.

    folder: with request.json and the replay of the last rows; None where nothing is saved.
    rewards: whether all those rows had one; missing ones are stored as 0.
    """

    tick: int
    robot: int
    kind: str
    error: float
    threshold: float
    window: int
    rows: int
    rewards: bool
    folder: str | None
    command: str


class RetrainMonitor:
    """Follows the prediction errors of B robots, and keeps the rows that led there.

    run: where the agent came from, for the command in the request.
    """

    def __init__(self, config: RetrainConfig, spec: EnvSpec, robots: int, run: str = "RUN") -> None:
        self.config, self.run = config, run
        self.spec = EnvSpec(spec.seen, spec.action)
        self.rows: list[deque[Row]] = [deque(maxlen=config.keep) for _ in range(robots)]
        self.thresholds = {"image": config.image, "vector": config.image}
        if config.reward_range:
            self.thresholds["reward"] = config.reward
        self._recent: dict[tuple[str, int], deque[float]] = {}
        self._silent_until = -1
        self.requests: list[RetrainRequest] = []

    def see(self, rows: Sequence[Row]) -> None:
        """The rows of one tick, one for each robot."""
        for kept, row in zip(self.rows, rows, strict=True):
            kept.append(row)

    def errors(self, tick: int, errors: Mapping[str, np.ndarray]) -> RetrainRequest | None:
        """One-step errors [B] by kind (NaN where unknown); a request, at most one, where their
        mean over a full window is too large."""
        for kind, values in errors.items():
            if self.thresholds.get(kind) is None:
                continue
            unit = self.config.reward_range if kind == "reward" else 1.0
            for robot, value in enumerate(np.asarray(values, float) / (unit or 1.0)):
                if np.isfinite(value):
                    recent = self._window(kind, robot)
                    recent.append(float(value))
        return self._judge(tick)

    def mean(self, kind: str, robot: int = 0) -> float:
        """The mean error over the window so far; NaN before the first."""
        recent = self._window(kind, robot)
        return float(np.mean(recent)) if recent else float("nan")

    def _window(self, kind: str, robot: int) -> deque[float]:
        return self._recent.setdefault((kind, robot), deque(maxlen=self.config.window))

    def _judge(self, tick: int) -> RetrainRequest | None:
        if tick < self._silent_until:
            return None
        for (kind, robot), recent in self._recent.items():
            limit = self.thresholds[kind]
            assert limit is not None
            if len(recent) == self.config.window and float(np.mean(recent)) > limit:
                self._silent_until = tick + self.config.cooldown
                return self._emit(tick, robot, kind, float(np.mean(recent)), limit)
        return None

    def _emit(self, tick: int, robot: int, kind: str, error: float, limit: float) -> RetrainRequest:
        rows = list(self.rows[robot])
        count = sum(row.obs is not None for row in rows)
        root, number = self.config.folder, len(self.requests)
        while root is not None and (Path(root) / f"{number:06d}").exists():
            number += 1  # an earlier process's
        folder = None if root is None else str(Path(root) / f"{number:06d}")
        command = (
            f"scripts/train.py from_run={self.run} offline={folder or 'FOLDER'}/replay run=NEW"
        )
        rewards = all(np.isfinite(row.reward) for row in rows if row.obs is not None)
        request = RetrainRequest(
            tick, robot, kind, error, limit, self.config.window, count, rewards, folder, command
        )
        if folder is not None:
            save(Path(folder), rows, self.spec, asdict(request))
        self.requests.append(request)
        return request


def save(folder: Path, rows: Sequence[Row], spec: EnvSpec, about: Mapping[str, Any]) -> None:
    """Write rows as a replay, complete or not at all; a refused row cuts its episode in two."""
    replay = Replay(spec, ReplayConfig(capacity=max(2, len(rows))), 1)
    begins = True
    for row in rows:
        if row.obs is None:
            begins = True
            continue
        first = begins or row.is_first
        begins = False
        reward = row.reward if np.isfinite(row.reward) and not first else 0.0
        replay.add({
            **{key: value[None] for key, value in row.obs.items()},
            "action": np.zeros_like(row.action)[None] if first else row.action[None],
            "reward": np.array([reward], np.float32),
            "is_first": np.array([first]),
            "is_last": np.array([row.is_last]),
            "is_terminal": np.array([row.is_terminal]),
        })  # fmt: skip
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    replay.save(fresh / "replay")
    replay.commit()
    (fresh / "request.json").write_text(json.dumps(dict(about), indent=2) + "\n")
    fresh.rename(folder)
