"""A recording, checked from beginning to end before anything learns from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel import progress
from worldmodel.envs.config import EnvConfig
from worldmodel.replay.buffer import Replay
from worldmodel.replay.datasets.actions import ActionReader
from worldmodel.replay.datasets.align import Aligner
from worldmodel.replay.datasets.names import ROLES, Names
from worldmodel.replay.datasets.readers import ObsReader, declared
from worldmodel.replay.datasets.recording import Convention, DatasetError, Episode
from worldmodel.replay.datasets.sources import open_source
from worldmodel.replay.datasets.summary import Summary
from worldmodel.types import EnvSpec, ObsSpec

Rows = dict[str, np.ndarray]  # one episode as replay rows, [T + 1, ...] each


class Dataset:
    """Recorded experience, ready to go into a replay.

    name: a file, a folder, or "minari:ID" (see `sources`). convention: what the recording does
    not say itself. spec, action_space, observation_space: what the environment observes, and what
    it takes and gives natively, where one is named; the recording must fit it. image_size: [H, W]
    of pictures, else their own. config: keys, kinds and ranges choose and explain what is observed.

    spec: what its rows hold. rows: how many, with the first one of each episode. summary: what was
    found; findings: the same as lines for people. Raises DatasetError, before anything is written,
    where anything does not fit.
    """

    def __init__(
        self,
        name: str,
        convention: Convention | None = None,
        spec: EnvSpec | None = None,
        action_space: Any = None,
        image_size: tuple[int, int] | None = None,
        observation_space: Any = None,
        config: EnvConfig | None = None,
    ) -> None:
        convention = convention or Convention()
        self._wanted, self._size, self._config = spec, image_size, config or EnvConfig("none")
        asked = self._config.keys if spec is None else None
        keys = asked if spec is None else list(spec.obs)
        names = Names(convention.names, keys, asked is not None)
        self._source = open_source(name, names, convention.axes, convention.alignment)
        self._aligner = Aligner(convention)
        native = self._source.action_space
        if action_space is not None and native is not None and not _alike(action_space, native):
            raise DatasetError(
                f"The dataset's actions are {native}, but the environment takes {action_space}. "
                "Name the environment of the recording."
            )
        given = action_space if action_space is not None else native
        self._actions = ActionReader(given, convention.action_range, convention.actions)
        self._readers: dict[str, ObsReader] = {}
        self._observed = observation_space
        self._own = self._source.own is not None
        if not self._own:
            self._aligner.study(self._source.episodes())
        self.summary = Summary(name, self._source.kind)
        self.spec = self._own_spec() if self._own else self._study()
        self._check_all()

    @property
    def findings(self) -> list[str]:
        """What was found, a line each."""
        return self.summary.lines()

    def _own_spec(self) -> EnvSpec:
        """The spec of our own rows, the environment's where one is named."""
        ours = self._source.spec
        assert ours is not None
        if self._wanted is not None:
            if wrong := self._wanted.differences(ours):
                raise DatasetError(
                    f"The recording is of another environment: {'; '.join(wrong)}. Name the "
                    "environment of the recording, or env=none for no environment."
                )
        elif self._config.keys is not None:
            missing = [key for key in self._config.keys if key not in ours.obs]
            if missing:
                raise DatasetError(
                    f"env.keys names '{missing[0]}', which was not recorded. Known: "
                    f"{', '.join(ours.obs)}."
                )
            ours = EnvSpec({key: ours.obs[key] for key in self._config.keys}, ours.action)
        return self._wanted or ours

    def _study(self) -> EnvSpec:
        """See all episodes once, and decide how their arrays are read."""
        given: dict[str, dict[str, Any]] = {}
        episodes, self._reward = 0, False
        for space in (self._source.observation_space, self._observed):
            given |= declared(space, self._config, self._wanted is not None)
        counts: dict[str, int] = {}
        for raw in self._source.episodes():
            episode = self._aligner.align(raw)
            self._reward |= raw.reward is not None
            if not len(episode):
                continue
            episodes += 1
            self._actions.study(episode.where, episode.action)
            for key, value in episode.obs.items():
                if key not in self._readers:
                    asked, span = self._config.kinds.get(key, ""), self._config.ranges.get(key)
                    limits = None if span is None else (span[0], span[1])
                    self._readers[key] = ObsReader(
                        key, asked, limits, crop=self._config.crop, gray=self._config.grayscale,
                        **given.get(key, {}),
                    )  # fmt: skip
                self._readers[key].study(episode.where, value)
                counts[key] = counts.get(key, 0) + 1
        notes = self._actions.settle()
        assert self._actions.spec is not None
        self.summary.actions = ", ".join(notes)
        if self._wanted is not None and self._wanted.action != self._actions.spec:
            raise DatasetError(
                f"The dataset has {self._actions.spec}, but the environment "
                f"{self._wanted.action}. Name the environment of the recording."
            )
        everywhere = [key for key, count in counts.items() if count == episodes]
        for key in sorted(set(counts) - set(everywhere)):
            self._source.out[key] = f"only in {counts[key]} of {episodes} episodes"
        return EnvSpec(self._observations(everywhere), self._actions.spec)

    def _observations(self, keys: list[str]) -> dict[str, ObsSpec]:
        """What the rows observe: what the environment does, else all that was recorded."""
        wanted = None if self._wanted is None else self._wanted.obs
        some = sorted(set(wanted or self._config.keys or ()) - set(keys))
        if some:
            raise DatasetError(f"'{some[0]}' was recorded {self._source.out[some[0]]}.")
        if not keys:
            raise DatasetError("No observation is there in all episodes.")
        readers = {key: self._readers[key] for key in wanted or self._config.keys or keys}
        return {
            key: reader.settle(None if wanted is None else wanted[key], self._size)
            for key, reader in readers.items()
        }

    def _check_all(self) -> None:
        """Read every episode once, as it will be written, and note what there is."""
        summary = self.summary
        for episode, rows in self._episodes():
            summary.count(episode, rows)
            unused = set(episode.obs) - set(self.spec.obs)
            self._source.out.update(dict.fromkeys(unused, "not asked for"))
        if not summary.lengths:
            raise DatasetError(f"'{summary.name}' holds no episode with a step in it.")
        self.steps = sum(summary.lengths)
        self.rows = self.steps + len(summary.lengths)
        summary.unused = dict(sorted(self._source.out.items()))
        if self._own:
            summary.alignment = "action t led to observation t (our own rows)"
            summary.observed = [f"{k} ({o.kind})" for k, o in self.spec.obs.items()]
            summary.actions = str(self.spec.action)
            return
        summary.align(self._aligner)
        for what, places in self._source.notes.items():
            summary.warnings.append(f"{sum(places.values()):,} {what}")
        summary.observed = [self._readers[key].describe() for key in self.spec.obs]
        if not self._reward:
            summary.warnings.append(
                "no reward was found, so all are 0. Looked for: "
                f"{', '.join(ROLES['reward'])}; offline_names={{reward: NAME}} says which it is"
            )

    def fill(self, replay: Replay) -> None:
        """Add every episode to a replay's first stream, one after another.

        Raises DatasetError where it does not hold so many rows.
        """
        if replay.capacity // replay.num_envs < self.rows:
            raise DatasetError(
                f"The dataset has {self.rows:,} rows, but the replay holds {replay.capacity:,}. "
                "Raise replay.capacity (replay.storage=disk where memory is short)."
            )
        with progress.step("filling the replay, row", self.rows) as filling:
            for episode, rows in self._episodes():
                replay.add_many(0, rows)
                filling.done += len(episode) + 1

    def _aligned(self) -> Iterator[Episode]:
        self._aligner.forget()
        for raw in self._source.episodes():
            episode = self._aligner.align(raw)
            if len(episode):
                yield episode

    def _episodes(self) -> Iterator[tuple[Episode, Rows]]:
        """Every episode, and its rows as the replay takes them."""
        found = self._source.own() if self._source.own else self._aligned()
        for episode in progress.each(found, "reading the recording, episode"):
            yield episode, self._rows(episode)

    def _rows(self, episode: Episode) -> Rows:
        where, steps = episode.where, len(episode)
        rows: Rows = {}
        for key in self.spec.obs:
            value = episode.obs[key]
            rows[key] = value if episode.encoded else self._readers[key].read(where, value)
        action = episode.action if episode.encoded else self._actions.read(episode.action)
        reward = np.asarray(episode.reward)
        if reward.shape != (steps,) or reward.dtype.kind not in "biuf":
            raise DatasetError(
                f"{where}: rewards are {reward.dtype} {list(reward.shape)}; {steps} numbers are "
                "needed."
            )
        if not np.isfinite(reward).all():
            t = int(np.argwhere(~np.isfinite(reward))[0][0])
            raise DatasetError(f"{where}: the reward of step {t} is not finite: {reward[t]}.")
        rows["action"] = np.concatenate([np.zeros_like(action[:1]), action])
        rows["reward"] = np.concatenate([[0.0], reward]).astype(np.float32)
        first, last = np.zeros(steps + 1, bool), np.zeros(steps + 1, bool)
        first[0], last[-1] = True, True
        return rows | {"is_first": first, "is_last": last, "is_terminal": last & episode.terminated}


def _alike(one: Any, other: Any) -> bool:
    """Whether two action spaces take the same actions, whatever their dtype."""
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        return one.shape == other.shape and all(
            np.allclose(a, b) for a, b in ((one.low, other.low), (one.high, other.high))
        )
    return bool(one == other)
