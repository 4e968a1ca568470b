"""What a frozen model makes of recorded rows: the states that it passes through while it is shown
whole episodes, kept once; and how far single observations are from a goal.

A goal is an observation that somebody likes, and the reward is how near others are to one: the root
of the mean squared difference between what the model makes of each observation alone, without a
past.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.apps.episodes import Episodes
from agents.apps.rewards.labels import Labels
from worldmodel import dream, progress, tree
from worldmodel.capabilities import Compares, Packs, start_of
from worldmodel.config import ConfigError
from worldmodel.seeding import Stream
from worldmodel.types import EnvSpec

SIDE_BY_SIDE = 64  # episodes that are filtered together
CHUNK = 64  # rows of them at a time
SEEN = 512  # observations looked at together
FRAME = re.compile(r"(\d+):(\d+)")


class Latents:
    """The posteriors of whole episodes, as replay stores them where the model packs its states; on
    the CPU.

    episodes: numbers of the filtered episodes. first: the row of `stored` where each of them
    begins. count: of all rows.
    """

    def __init__(self, model: Any, episodes: Sequence[int], lengths: np.ndarray) -> None:
        self._model = model
        self.episodes = list(episodes)
        ends = np.cumsum([lengths[number] for number in self.episodes])
        begins = [0, *ends[:-1].tolist()]
        self.first = dict(zip(self.episodes, begins, strict=True))
        self.count = int(ends[-1]) if len(ends) else 0
        self.stored = tree.map(
            lambda x: np.zeros((self.count, *x.shape[1:]), x.cpu().numpy().dtype),
            self._pack(model.initial(1)),
        )

    def _pack(self, state: Any) -> Any:
        return self._model.pack(state) if isinstance(self._model, Packs) else state

    def rows(self, episode: int | np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Row numbers [N] of steps [N], all of one episode or of an episode [N] each."""
        first = np.array([self.first[int(number)] for number in np.atleast_1d(episode)], np.int64)
        return first + steps

    def write(self, rows: np.ndarray, states: Any) -> None:
        """Keep states [N, ...] for rows [N]."""

        def put(old: np.ndarray, new: Tensor) -> None:
            old[rows] = new.cpu().numpy()

        tree.map(put, self.stored, self._pack(states))

    def states(self, rows: np.ndarray) -> Any:
        """The states [N, ...] of rows [N], on the CPU."""
        found = tree.map(lambda x: torch.from_numpy(x[rows]), self.stored)
        return self._model.unpack(found) if isinstance(self._model, Packs) else found

    def feat(self, rows: np.ndarray) -> Tensor:
        """Their features [N, F]."""
        feat: Tensor = self._model.feat(self.states(rows))
        return feat


@torch.no_grad()
def filtered(model: Any, episodes: Episodes, used: Sequence[int], seed: int = 0) -> Latents:
    """Show whole episodes to a model, each from its beginning on, and keep its posteriors.

    An episode whose beginning is overwritten starts from the state that replay stored before it,
    or from nothing. Draws no global random numbers.
    """
    latents = Latents(model, used, episodes.lengths)
    device = dream.device_of(model)
    # Episodes of like lengths go together; those that have ended leave the group.
    order = sorted(latents.episodes, key=lambda number: -episodes.lengths[number])
    showing = progress.step("showing the model its rows", latents.count)
    with Stream(seed, device), showing as shown:
        for i in range(0, len(order), SIDE_BY_SIDE):
            _follow(model, episodes, latents, order[i : i + SIDE_BY_SIDE], device, shown)
    return latents


def _follow(
    model: Any,
    episodes: Episodes,
    latents: Latents,
    group: list[int],
    device: torch.device,
    showing: progress.Step,
) -> None:
    """Filter some episodes side by side, longest first, a chunk of rows at a time."""
    state: Any = None
    begin = 0
    while group:
        # Every chunk ends where the shortest episode of the group does, or earlier.
        length = min(CHUNK, int(episodes.lengths[group[-1]]) - begin)
        batch = episodes.batch(group, begin, length)
        batch.obs = {key: batch.obs[key] for key in episodes.spec.seen}
        batch = batch.to(device)
        if state is None:
            state = start_of(model, batch)
        else:
            batch.is_first[:, 0] = False  # replay may know no state before these rows; we do
        states = dream.follow(model, batch, state)
        for i, number in enumerate(group):
            rows = latents.rows(number, np.arange(begin, begin + length))
            latents.write(rows, tree.index(states, i))
            showing.done += length
        begin += length
        group = [number for number in group if episodes.lengths[number] > begin]
        state = tree.index(states, (slice(len(group)), -1))  # longest first


def goal_labels(what: str, episodes: Episodes, model: Any, scale: float = 0.0) -> Labels:
    """The nearness of every row to the nearest goal: minus the distance or, with a scale,
    exp(-distance / scale).

    Raises ConfigError where a goal is neither a picture nor a frame of the replay.
    """
    targets = look(model, episodes.spec, goal_observations(what, episodes))
    labels = []
    for number in range(len(episodes)):
        rows = episodes.read(number)
        seen = look(model, episodes.spec, {key: rows[key] for key in episodes.spec.seen})
        apart = (seen[:, None] - targets[None]).square().mean(-1).sqrt().amin(1)
        distance = apart.double().cpu().numpy()
        labels.append(np.exp(-distance / scale) if scale else -distance)
    return Labels(labels)


def goal_observations(what: str, episodes: Episodes) -> dict[str, np.ndarray]:
    """The goals' observations [G, ...] by key; pictures are scaled to the run's own size."""
    spec = episodes.spec
    found: list[dict[str, Any]] = []
    for part in (word.strip() for word in what.split(",")):
        named = FRAME.fullmatch(part)
        if named:
            episode, step = (int(n) for n in named.groups())
            episodes.check(episode, step, f"The goal '{part}': ")
            found.append(episodes.observation(episode, step))
        else:
            found.append(_picture(part, episodes))
    return {key: np.stack([one[key] for one in found]) for key in spec.seen}


@torch.no_grad()
def look(model: Any, spec: EnvSpec, obs: dict[str, np.ndarray]) -> Tensor:
    """What the model makes of observations [N, ...] without a past, [N, G]: what it compares them
    by where it has such a thing, else the features of its states."""
    device = dream.device_of(model)
    parts = []
    count = len(next(iter(obs.values())))
    for i in range(0, count, SEEN):
        part = {k: torch.from_numpy(v[i : i + SEEN]).to(device) for k, v in obs.items()}
        if isinstance(model, Compares):
            parts.append(model.comparable(part))
            continue
        size = min(SEEN, count - i)
        action = torch.zeros(size, spec.action.size, device=device)
        first = torch.ones(size, dtype=torch.bool, device=device)
        parts.append(model.feat(model.observe(model.initial(size), part, action, first)))
    return torch.cat(parts)


def _picture(name: str, episodes: Episodes) -> dict[str, np.ndarray]:
    """A picture as the run would have seen it, uint8 [H, W, C], by its key."""
    spec = episodes.spec
    if list(spec.seen) != spec.keys("image") or len(spec.seen) != 1:
        raise ConfigError(
            f"The goal '{name}' is a picture, but this run sees {sorted(spec.seen)}. Name frames "
            "of its replay instead, as goal:EPISODE:STEP."
        )
    if not Path(name).is_file():
        raise ConfigError(
            f"There is no picture '{name}' (looked in '{Path.cwd()}'). A frame of the replay is "
            "named goal:EPISODE:STEP."
        )
    import cv2  # loads slowly

    picture: Any = cv2.imread(name, cv2.IMREAD_COLOR)
    if picture is None:
        raise ConfigError(f"'{name}' is no picture that can be read. Known: PNG, JPEG and others.")
    (key,) = spec.keys("image")
    height, width, channels = spec.obs[key].shape
    if channels not in (1, 3):
        raise ConfigError(
            f"The run's pictures have {channels} channels, so no file can show one. Name frames of "
            "its replay instead, as goal:EPISODE:STEP."
        )
    if channels == 3 and _grey(picture) and not _grey(episodes.observation(0, 0)[key]):
        raise ConfigError(
            f"'{name}' is a grey picture, but this run sees colours. Give it in colour, or name "
            "frames of its replay, as goal:EPISODE:STEP."
        )
    if picture.shape[:2] != (height, width):
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    code = cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGR2GRAY
    return {key: cv2.cvtColor(picture, code).reshape(height, width, channels)}


def _grey(picture: np.ndarray) -> bool:
    """Whether a picture [H, W, 3] has no colours."""
    return bool((picture == picture[..., :1]).all())
