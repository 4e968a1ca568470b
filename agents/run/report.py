"""What a run reports: lines of metrics, the summary, returns of an evaluation, films of episodes
and dreams."""

from __future__ import annotations

import csv
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import worldmodel
from agents.base import Agenda, parameters_count
from agents.run.config import TrainConfig
from agents.run.evaluate import EvalResult, frames_of, score_line
from agents.run.state import Counters, RunState
from worldmodel import dream, seeding
from worldmodel.accel.ranks import Ranks
from worldmodel.atomic import replaced_file
from worldmodel.capabilities import Decodes
from worldmodel.config import ConfigError, keys_of
from worldmodel.envs import EnvConfig
from worldmodel.log import RunLog, write_json, write_picture, write_video
from worldmodel.replay import Replay, RowIndex
from worldmodel.types import Batch

SUMMARY = "summary.json"
DREAM_ROWS = 50  # rows of one dream, where the episode is long enough
# What `table` and a run that may be finished read of it, and as what.
TEXT, WHOLE, NUMBER = (str,), (int,), (int, float)
READ_AGAIN = {
    "task": TEXT, "agent": TEXT, "device": TEXT, "seed": WHOLE, "agent_steps": WHOLE,
    "env_frames": WHOLE, "updates": WHOLE, "parameters": WHOLE, "wall_clock_s": NUMBER,
    "maximised": TEXT,
}  # fmt: skip
EVALUATED = {"eval_return_mean": NUMBER, "eval_return_std": NUMBER, "eval_episodes": WHOLE}


def summarise(
    settings: TrainConfig, state: RunState, device: torch.device, result: EvalResult | None
) -> dict[str, Any]:
    """Everything that one wants to know of a finished run, as plain values; without a result
    there was no environment to evaluate in."""
    counters = state.counters
    return {
        "task": settings.env.id,
        "agent": settings.agent.name,
        "seed": settings.seed,
        "maximised": objective(state.agent.control, settings.env.reward),
        **progress(counters),
        "rollbacks": counters.rollbacks,
        **unfinished(state.agent.agenda),
        "wall_clock_s": round(counters.train_seconds, 2),
        "eval_s": round(counters.eval_seconds, 2),
        **({"eval_mode": settings.eval_mode} | evaluated(result) if result else {}),
        "parameters": parameters_count(state.agent),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "code": code_version(),
        "config": keys_of(settings),
    }


def unfinished(agenda: Agenda | None) -> dict[str, str]:
    """The phase in which an agent that learns in phases stopped before it had learned all."""
    return {} if agenda is None or agenda.finished else {"stopped_in": agenda.phase}


def objective(control: Mapping[str, float], function: str | None) -> str:
    """What an agent maximises, as a sum: "left", "1 x reward + 0.1 x disagreement". function: the
    one of `env.reward`, where that stands in place of the task's own reward."""
    names = {name: name for name in control}
    if function is not None and "reward" in names:
        names["reward"] = f"reward ({function})"
    if list(control.values()) == [1.0]:
        return next(iter(names.values()))
    return " + ".join(f"{weight:g} x {names[name]}" for name, weight in control.items())


def evaluated(result: EvalResult) -> dict[str, Any]:
    """Returns and lengths of an evaluation, as every file holds them."""
    return {
        "eval_return_mean": result.mean,
        "eval_return_std": result.std,
        "eval_episodes": len(result.returns),
        "eval_returns": result.returns,
        "eval_lengths": result.lengths,
        "eval_cut_off": result.cut_off,
    }


def progress(counters: Counters) -> dict[str, float]:
    """What every line of metrics holds beside its agent steps."""
    return {
        "agent_steps": counters.agent_steps,
        "env_frames": counters.env_frames,
        "updates": counters.updates,
        "episodes": counters.episodes,
        "skipped_updates": counters.skipped,
        "env_failures": counters.env_failures,
        "wall_clock_s": counters.train_seconds,
    }


def metrics(state: RunState, ranks: Ranks) -> dict[str, float]:
    """Means since the last line, counters and rates, over all ranks."""
    counters = state.counters
    seconds = max(counters.train_seconds, 1e-9)
    means = ranks.gather_objects(state.means.read())  # each of as many updates
    return {
        **{name: sum(one[name] for one in means) / len(means) for name in means[0]},
        **state.scores.read(),
        **progress(counters),
        "steps_per_s": counters.agent_steps / seconds,
        "updates_per_s": counters.updates / seconds,
        "replay_rows": int(ranks.sums(len(state.replay))[0]),
    }


def scores(result: EvalResult, counters: Counters) -> dict[str, float]:
    """A line of metrics about an evaluation."""
    return {"eval/return": result.mean, "eval/return_std": result.std, **progress(counters)}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """summary.json in the run folder."""
    write_json(folder / SUMMARY, dict(summary))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None. Raises ConfigError where it is damaged."""
    path = folder / SUMMARY
    if not path.is_file():
        return None
    again = "Delete it: the same command writes it anew from the run's checkpoint."
    try:
        summary = json.loads(path.read_bytes())
        has_env = "eval_return_mean" in summary
        read_again = READ_AGAIN | EVALUATED if has_env else READ_AGAIN
        lacking = [name for name in read_again if name not in summary]
        for name in read_again.keys() - lacking:
            value, kinds = summary[name], read_again[name]
            if type(value) not in kinds or (type(value) is int and abs(value) >= 1 << 62):
                raise ValueError(f"{name} is {value!r:.40}")
    except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
        raise ConfigError(
            f"'{path}' is damaged ({type(error).__name__}: {str(error)[:200]}). {again}"
        ) from error
    if lacking:
        raise ConfigError(
            f"'{path}' does not say {', '.join(lacking)}: an older version wrote it, or it is "
            f"damaged. {again}"
        )
    return dict(summary)


def table(summary: Mapping[str, Any]) -> str:
    """The summary in a few lines."""
    lines = {"task": f"{summary['task']} ({summary['agent']}, seed {summary['seed']})"}
    if "eval_return_mean" in summary:
        found = (summary[f"eval_{name}"] for name in ("return_mean", "return_std", "episodes"))
        lines["return"] = score_line(*found) + (
            ", its actions sampled" if summary.get("eval_mode") == "sample" else ""
        )
    if summary.get("eval_cut_off"):
        lines["no end"] = (
            f"{summary['eval_cut_off']} evaluation episodes were cut off, since nothing ended them "
            "(env.longest_episode)"
        )
    if summary.get("stopped_in"):
        lines["unfinished"] = (
            f"stopped in its phase '{summary['stopped_in']}': given more steps, updates or "
            "max_minutes, the same command goes on"
        )
    lines |= {
        "maximised": summary["maximised"],
        "agent steps": f"{summary['agent_steps']:,} ({summary['env_frames']:,} frames)",
        "updates": f"{summary['updates']:,}",
        "training": f"{summary['wall_clock_s']:.0f} s on {summary['device']}",
        "parameters": f"{summary['parameters']:,}",
    }
    width = max(map(len, lines))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in lines.items())


def write_returns(folder: Path, result: EvalResult, about: Mapping[str, Any]) -> None:
    """returns.json and returns.csv of an evaluation."""
    episodes = list(zip(result.returns, result.lengths, strict=True))
    with replaced_file(folder / "returns.csv") as fresh:
        with fresh.open("w", newline="") as file:
            csv.writer(file).writerows([("episode", "return", "length")])
            csv.writer(file).writerows((i, *episode) for i, episode in enumerate(episodes))
        write_json(folder / "returns.json", {**about, **evaluated(result)})


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


def device_name(device: torch.device) -> str:
    """The device as torch names it, with the model of a GPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version(), "worldmodel": worldmodel.__version__}
    for name in ("torch", "gymnasium", "numpy", "dm-control", "mujoco", "ale-py"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def code_version() -> str:
    """`git describe` of this source tree, or "unknown" outside of one."""
    here, command = Path(__file__).resolve().parent, ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.decode().strip()
