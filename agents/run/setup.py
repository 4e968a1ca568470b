"""What a run begins with: the world it lives in, a recording to learn from, an empty replay."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.base import Agent
from agents.run.config import TrainConfig
from worldmodel import checkpoint, seeding
from worldmodel.config import ConfigError
from worldmodel.envs import EnvConfig, env_spec, make_env
from worldmodel.envs.actions import native_space
from worldmodel.envs.observe import native_observations
from worldmodel.log import write_picture
from worldmodel.replay import Replay, clear, holds_committed
from worldmodel.replay.datasets import Convention, Dataset
from worldmodel.types import PLAYER_KEY, EnvSpec

FIRST_FRAME = "first_frame.png"  # of a recording, as the model sees it


def recording(settings: TrainConfig, say: Callable[[str], None]) -> Dataset:
    """The dataset that `offline` names, checked from beginning to end, and against the environment
    where one is named; says what was found. Raises ValueError where anything does not fit."""
    bounds = settings.offline_action_range
    limits: Any = None if bounds is None else tuple(bounds)
    convention = Convention(
        settings.offline_alignment, settings.offline_done, limits, settings.offline_actions,
        settings.offline_axes, settings.offline_names,
    )  # fmt: skip
    if settings.has_env:
        with closing(make_env(replace(settings.env, num_envs=1))) as env:
            spec, spaces = env_spec(env), (native_space(env), native_observations(env))
        dataset = Dataset(
            settings.offline, convention, spec, spaces[0], None, spaces[1], settings.env
        )
    else:
        height, width = settings.env.image_size
        size = (height, width)
        dataset = Dataset(settings.offline, convention, image_size=size, config=settings.env)
    for line in dataset.findings:
        say(line)
    picture = dataset.summary.picture()
    if picture is not None:
        path = settings.folder / FIRST_FRAME
        write_picture(path, picture)
        say(f"  first frame: {path} ({', '.join(dataset.summary.frames)})")
    return dataset


def check_judged(config: EnvConfig, spec: EnvSpec) -> None:
    """That the environment can also be made as evaluations want it, where they want another one,
    and looks the same. Raises EnvError."""
    if config.eval_kwargs:
        make_env(config.judged, whole=True, spec=spec).close()


def recorded(settings: TrainConfig) -> tuple[EnvSpec, int]:
    """The spec and the rows of a run that learns from a recording and has begun: its own, from its
    checkpoint, so that the recording need not be there any more."""
    saved = checkpoint.load(settings.folder)
    with checkpoint.explain_errors("replay", settings.folder):
        rows = sum(map(int, saved["replay"]["count"]))
    return checkpoint.spec_from_dict(saved["spec"]), rows


def make_replay(
    settings: TrainConfig,
    spec: EnvSpec,
    agent: Agent,
    fresh: bool,
    place: Path | None = None,
    rows: int | None = None,
) -> Replay:
    """The run's replay, still empty; fresh: files of a run that never had a checkpoint go.

    place: where its files lie, unless where the settings say. rows: about how many it will be
    given, where that is known. Raises ConfigError where a directory that the user named holds
    somebody else's replay.
    """
    place = place or settings.replay_folder
    if fresh:
        if settings.replay.directory is not None and holds_committed(place):
            raise ConfigError(
                f"replay.directory='{place}' holds a replay already (its index.json), and this run "
                "is a new one. Choose an empty directory; to learn from that replay, give its "
                "folder as offline=...; to be rid of it, remove it yourself."
            )
        clear(place)
    streams = 1 if settings.offline else settings.env.num_envs
    seed = seeding.spawn(settings.seed, "replay")
    columns, exponent = agent.columns, agent.priority_exponent
    return Replay(spec, settings.replay, streams, columns, seed, place, exponent, rows)


def load_replay(
    replay: Replay, place: Path, state: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Bring the replay to a checkpoint's state; says what of it was lost. Raises ReplayDamaged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            replay.load(place, state)
        finally:
            for one in caught:
                say(f"warning: {one.message}")


def fill(replay: Replay, dataset: Dataset, agent: Agent) -> None:
    """Put a recording into the replay, and let the agent make it ready where it wants to.

    Raises ConfigError where it holds too little for a single update.
    """
    dataset.fill(replay)
    if not replay.can_sample(agent.in_a_row):
        raise ConfigError(
            f"The recording has {dataset.rows:,} rows, but one sequence takes "
            f"{agent.in_a_row}. Lower {agent.window_words}."
        )
    agent.prepare(replay)


def check_can_learn(
    settings: TrainConfig,
    agent: Agent,
    replay: Replay,
    ranks: int = 1,
    say: Callable[[str], None] | None = None,
) -> None:
    """ConfigError where the first update would never come; says where it comes later than
    `prefill` asks. ranks: how many have such a replay."""
    if settings.offline:
        if not agent.learns:
            raise ConfigError(f"The agent '{settings.agent.name}' cannot learn from a recording.")
        return
    if not agent.learns:
        return
    if PLAYER_KEY in replay.spec.obs and not agent.both_sides:
        raise ConfigError(
            f"Two players move in turn here ('{PLAYER_KEY}' is observed), and agent="
            f"{settings.agent.name} would count what the other one earns as its own. Use "
            "agent=muzero; or let the environment answer, as env.kwargs.opponent=random "
            "env.kwargs.alternates=false does for this house's board games."
        )
    need, length, steps = agent.min_rows, agent.in_a_row, settings.steps
    words = f"agent.batch_size, {agent.window_words}"
    capacity, streams = replay.capacity, replay.num_envs
    if capacity < need or capacity // streams < length:
        raise ConfigError(
            f"replay.capacity holds {capacity:,} rows for {streams} environments together; the "
            f"first update needs {need:,}, and {length} of one environment. Raise "
            f"replay.capacity, or lower those that ask for so many ({words})."
        )
    prefill = settings.prefill
    if steps <= prefill:
        raise ConfigError(
            f"steps={steps} must be more than prefill={prefill}, or nothing is learned."
        )
    if agent.agenda is not None:
        first = agent.agenda.prefill
        if steps <= first:
            raise ConfigError(
                f"steps={steps} must be more than the {first:,} that agent="
                f"{settings.agent.name} collects before its first update, or nothing is learned."
            )
        if capacity < first:
            raise ConfigError(
                f"replay.capacity={capacity:,} is less than the {first:,} steps that agent="
                f"{settings.agent.name} collects before its first update: the oldest would be lost "
                "before it learns from them. Raise replay.capacity."
            )
        if prefill and say is not None:
            say(
                f"prefill={prefill} does nothing: agent={settings.agent.name} decides itself when "
                "steps and updates come"
            )
        return
    rows = ranks * max(need, length * streams)
    reason = f"replay must hold {rows:,} rows first ({words})"
    if steps < rows:
        raise ConfigError(
            f"steps={steps} is less than the first update needs, so that nothing is learned: "
            f"{reason}. Raise steps, or lower those."
        )
    ratio = settings.train_ratio / (ranks * agent.batch_size * agent.batch_length)  # updates a step
    learning = steps + ranks * streams - max(prefill, rows)  # steps; the last ones go beyond
    if settings.first_updates + learning * ratio < 1:
        raise ConfigError(
            f"steps={steps} earn less than one update with train_ratio={settings.train_ratio:g}: "
            f"each takes {1 / ratio:,.0f} steps, and {learning:,} are left after the first "
            f"{max(prefill, rows):,}, so that nothing is learned. Raise steps or train_ratio, or "
            "lower prefill."
        )
    if say is not None and (rows - prefill) * ratio >= 1:
        say(f"updates begin at about step {rows:,}, not at prefill={prefill}: {reason}")
