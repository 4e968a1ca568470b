"""A recording, checked from beginning to end before anything learns from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel.replay.buffer import Replay
from worldmodel.replay.datasets.align import Aligner, Convention, DatasetError, Episode, Source
from worldmodel.replay.datasets.readers import ActionReader, guess, read_obs
from worldmodel.replay.datasets.sources import open_source
from worldmodel.types import EnvSpec, ObsSpec

Rows = dict[str, np.ndarray]  # one episode as replay rows, [T + 1, ...] each


class Dataset:
    """Recorded experience, ready to go into a replay.

    name: a file, a folder, or "minari:ID" (see `sources`). convention: what the recording does
    not say itself. spec, action_space: what the environment observes, and what it takes natively,
    where one is named; the recording must fit it. image_size: [H, W] of pictures, else their own.

    spec: what its rows hold. rows: how many, with the first one of each episode. findings: lines
    for people. Raises DatasetError, before anything is written, where anything does not fit.
    """

    def __init__(
        self,
        name: str,
        convention: Convention | None = None,
        spec: EnvSpec | None = None,
        action_space: Any = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        convention = convention or Convention()
        self._source = open_source(name)
        self._aligner = Aligner(convention)
        given = action_space if action_space is not None else self._source.action_space
        self._actions = ActionReader(given, convention.action_range)
        self._own = self._source.own is not None
        if not self._own:
            self._aligner.study(self._source.episodes())
        self._wanted, self._size = spec, image_size
        self.findings: list[str] = []
        self.spec = self._spec(action_space)
        self._check_all(name)

    def _spec(self, action_space: Any) -> EnvSpec:
        """The spec of the rows, the environment's where one is named."""
        if self._own:
            ours = self._source.spec
            assert ours is not None
            if self._wanted is not None:
                _check_same(ours, self._wanted)
            return self._wanted or ours
        native = self._source.action_space
        if action_space is not None and native is not None and not _alike(action_space, native):
            raise DatasetError(
                f"The dataset's actions are {native}, but the environment takes {action_space}. "
                "Name the environment of the recording."
            )
        for episode in self._aligned():
            self._actions.study(episode.where, episode.action)
        notes = self._actions.settle()
        assert self._actions.spec is not None
        obs = self._observations()
        if self._wanted is not None and self._wanted.action != self._actions.spec:
            raise DatasetError(
                f"The dataset has {self._actions.spec}, but the environment "
                f"{self._wanted.action}. Name the environment of the recording."
            )
        self.findings += notes
        return EnvSpec(obs, self._actions.spec)

    def _observations(self) -> dict[str, ObsSpec]:
        """What the rows observe: what the environment does, else all that was recorded."""
        first = next(self._aligned())
        if self._wanted is not None:
            missing = sorted(set(self._wanted.obs) - set(first.obs))
            if missing:
                raise DatasetError(
                    f"The environment observes {sorted(self._wanted.obs)}, but the dataset has "
                    f"{sorted(first.obs)}: {', '.join(missing)} is missing. Name the environment "
                    "of the recording (env=..., env.keys, env.pixels), or env=none for no "
                    "environment."
                )
            return dict(self._wanted.obs)
        declared = _declared(self._source)
        found = {}
        for key, value in first.obs.items():
            spec = declared.get(key) or guess(value)
            if spec.kind == "image" and self._size is not None:
                spec = ObsSpec("image", (*self._size, spec.shape[2]))
            found[key] = spec
        return found

    def _check_all(self, name: str) -> None:
        """Read every episode once, as it will be written, and note what there is."""
        lengths, ended, total, best, worst, unused = [], 0, 0.0, -np.inf, np.inf, set()
        for episode, rows in self._episodes():
            lengths.append(len(episode))
            ended += episode.terminated
            total += float(rows["reward"].sum())
            best = max(best, float(rows["reward"].max()))
            worst = min(worst, float(rows["reward"].min()))
            unused |= set(episode.obs) - set(self.spec.obs)
        if not lengths:
            raise DatasetError(f"'{name}' holds no episode with a step in it.")
        self.steps, self.rows = sum(lengths), sum(lengths) + len(lengths)
        way = (
            "action t led to observation t (our own rows)"
            if self._own
            else self._aligner.describe()
        )
        note = f"; the last step of each is left out, {self._aligner.lost_ends} of them terminal"
        shown = note if self._aligner.way == "taken_at" and self._aligner.lost_ends else ""
        lines = [
            f"dataset: {name} ({self._source.kind}): {len(lengths):,} episodes of "
            f"{min(lengths):,} to {max(lengths):,} steps, {self.steps:,} in all",
            f"  alignment: {way}{shown}",
            f"  ends: {ended:,} terminated, {len(lengths) - ended:,} cut off",
            f"  rewards: from {worst:.4g} to {best:.4g}, {total / len(lengths):.4g} an episode",
            *(f"  {line}" for line in self.findings),
        ]
        unused |= self._source.ignored
        if unused:
            lines.append(f"  not used: {', '.join(sorted(unused))}")
        self.findings = lines

    def fill(self, replay: Replay) -> None:
        """Add every episode to a replay's first stream, one after another.

        Raises DatasetError where it does not hold so many rows.
        """
        if replay.capacity // replay.num_envs < self.rows:
            raise DatasetError(
                f"The dataset has {self.rows:,} rows, but the replay holds {replay.capacity:,}. "
                "Raise replay.capacity (replay.storage=disk where memory is short)."
            )
        for _, rows in self._episodes():
            replay.add_many(0, rows)

    def _aligned(self) -> Iterator[Episode]:
        for raw in self._source.episodes():
            episode = self._aligner.align(raw)
            if len(episode):
                yield episode

    def _episodes(self) -> Iterator[tuple[Episode, Rows]]:
        """Every episode, and its rows as the replay takes them."""
        self._aligner.lost_ends = 0
        for episode in self._source.own() if self._source.own else self._aligned():
            yield episode, self._rows(episode)

    def _rows(self, episode: Episode) -> Rows:
        where, steps = episode.where, len(episode)
        rows: Rows = {}
        for key, spec in self.spec.obs.items():
            if key not in episode.obs:
                raise DatasetError(f"{where} has no '{key}', which the others have.")
            rows[key] = read_obs(where, key, episode.obs[key], spec)
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


def _declared(source: Source) -> Mapping[str, ObsSpec]:
    """What a dataset says of its own observations."""
    from worldmodel.envs.spaces import class_counts, leaves

    found = {}
    if source.observation_space is not None:
        for leaf in leaves(source.observation_space):
            if leaf.kind == "discrete":
                sizes = class_counts(leaf.space)
                found[leaf.key] = ObsSpec("discrete", (sum(sizes),), sizes)
    return found


def _alike(one: Any, other: Any) -> bool:
    """Whether two action spaces take the same actions, whatever their dtype."""
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        return one.shape == other.shape and all(
            np.allclose(a, b) for a, b in ((one.low, other.low), (one.high, other.high))
        )
    return bool(one == other)


def _check_same(ours: EnvSpec, wanted: EnvSpec) -> None:
    """Raises DatasetError, with every difference, unless our rows hold what is wanted."""
    lines = [
        f"'{key}': recorded {ours.obs.get(key, 'nothing')}, needed {spec}"
        for key, spec in wanted.obs.items()
        if ours.obs.get(key) != spec
    ]
    if ours.action != wanted.action:
        lines.append(f"actions: recorded {ours.action}, needed {wanted.action}")
    if lines:
        raise DatasetError(
            "The recording does not fit the environment:\n  "
            + "\n  ".join(lines)
            + "\nName the environment of the recording, or env=none for no environment."
        )
