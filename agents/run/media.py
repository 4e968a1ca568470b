"""Films and pictures of a run: an episode as the agent saw it, and dreams of its world."""

from __future__ import annotations

import numpy as np

from agents.run.evaluate import EvalResult, frames_of
from agents.run.state import RunState
from worldmodel import dream, seeding
from worldmodel.capabilities import Decodes
from worldmodel.envs import EnvConfig
from worldmodel.log import RunLog, write_picture, write_video
from worldmodel.replay import Replay, RowIndex
from worldmodel.types import Batch

DREAM_ROWS = 50  # rows of one dream, where the episode is long enough


def write_last(
    log: RunLog, clock: int, state: RunState, env: EnvConfig, result: EvalResult | None
) -> None:
    """eval.mp4 of the recorded episode, and dream.png where the agent's world can be drawn: of
    that episode, or of the replay's newest one."""
    if result is None:
        batch = newest_episode(state.replay)
    else:
        batch = result.batch(state.spec)
        frames = frames_of(result, state.agent, state.spec, env)
        if frames:
            write_video(log.folder / "eval.mp4", frames)
            log.video(clock, "eval/episode", frames)
    film, context = film_dream(state, batch)
    if film:
        picture = dream.strip(film, context)
        write_picture(log.folder / "dream.png", picture)
        log.image(clock, "dream/strip", picture)


def log_dream(log: RunLog, clock: int, state: RunState) -> None:
    """A dream that starts from recorded experience; it leaves the random generators alone."""
    before = seeding.rng_state()
    film, context = film_dream(state, newest_episode(state.replay))
    seeding.set_rng_state(before)
    if film:
        log.video(clock, "dream/film", dream.titled(film, context))
        log.image(clock, "dream/strip", dream.strip(film, context))


def newest_episode(replay: Replay) -> Batch | None:
    """The newest recorded episode that is long enough to show, [1, T, ...]."""
    lived = [e for e in replay.episodes() if e[2] - e[1] >= 3]
    if not lived:
        return None
    stream, start, stop = lived[-1]
    index = RowIndex(np.array([stream]), np.array([start]), min(stop - start, DREAM_ROWS))
    return replay.gather(index, context=replay.columns)


def film_dream(state: RunState, batch: Batch | None) -> tuple[list[np.ndarray], int]:
    """Truth, open-loop prediction and error of the batch's first sequence, and how many frames
    the model was shown; nothing where the agent has no world that can be drawn."""
    model = state.agent.model
    if batch is None or not state.spec.keys("image") or not isinstance(model, Decodes):
        return [], 0
    length = min(batch.shape[1], DREAM_ROWS)
    context = max(1, min(5, length // 3))
    if length <= context:
        return [], 0
    shown = dream.cut(batch, slice(0, 1), slice(0, length)).to(dream.device_of(model))
    return dream.film(model, state.spec, shown, context), context
