"""The commands behind scripts/: settings in, exit code out."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import agents
from agents.run.config import TrainConfig
from agents.run.train import train
from worldmodel import config
from worldmodel.accel.ranks import launched_first
from worldmodel.compose import launch, store, swept_keys, swept_values
from worldmodel.models import WORLDS, world_class
from worldmodel.words import at_home, for_hydra, texts

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GROUP, WORLD = "agent", "world"
SWEEP = "hydra.sweep.dir"


def register(words: Sequence[str] = ()) -> None:
    """Tell Hydra which settings exist: TrainConfig, and those of each agent, which the files of
    configs/agent build on as `/schema: NAME`, and of each world (configs/world, `/world_schema:`).

    words: of the command line; "agent=module:Class" adds a user's own agent, and
    "world=module:Class" a world.
    """
    store("train_schema", TrainConfig)
    for name in agents.AGENTS:
        store(name, agents.agent_class(name).Config, "schema", GROUP)
    for name in own_classes(words, GROUP):
        store(name, own_config(name), GROUP)
    for name in WORLDS:
        store(name, world_settings(name), "world_schema", GROUP)
    for name in own_classes(words, WORLD):
        store(name, world_settings(name), WORLD, GROUP)


def own_classes(words: Sequence[str], group: str) -> list[str]:
    """What the words name as module:Class for a group."""
    given = [word.partition("=")[2] for word in words if word.startswith(f"{group}=")]
    return [name for names in given for name in names.split(",") if ":" in name]


def own_config(name: str) -> type:
    """The Config of the agent module:Class. Raises ConfigError where its `name`, by which a run
    finds the class, is that of another agent: an inherited Config, say."""
    found = agents.agent_class(name).Config
    meant = getattr(found, "name", None)
    if meant != name and agents.AGENTS.get(str(meant)) != name:
        cls = name.partition(":")[2]
        raise config.ConfigError(
            f"agent={name}, but its Config.name is {meant!r}. Give {cls} a Config of its own with "
            f"name: str = '{name}'."
        )
    return found


def world_settings(name: str) -> dict[str, Any]:
    """The settings of an agent that plans in this world, as far as they are the world's."""
    return {"world": name, "model": world_class(name).Config}


def complete_words(words: Sequence[str]) -> list[str]:
    """The words of a command with its two short forms written out.

    `agent=NAME` leaves out the default experiment, which is of the default agent; and a setting
    that only the named agent has needs no "agent." before it: `agent=dyna_q n=50`.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if GROUP not in given:
        return list(words)
    own: set[str] = set()
    if given[GROUP] in agents.AGENTS:
        own = {field.name for field in fields(agents.agent_class(given[GROUP]).Config)}
        own -= {path.name for path in CONFIGS.iterdir()} | {f.name for f in fields(TrainConfig)}
    done = [f"{GROUP}.{word}" if word.split("=", 1)[0] in own else word for word in words]
    return done if "experiment" in given else [*done, "experiment=none"]


def train_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Train as the command line says; under torchrun as one of its ranks."""
    wrong = say if launched_first() else lambda text: None  # all ranks read the same words

    run = next((word.partition("=")[2] for word in arguments if word.startswith("run=")), "")
    swept: set[str] = set()
    typed: list[str] = []

    def start() -> int:
        words = complete_words(arguments)
        typed.extend(words)
        register(words)
        given = for_hydra(words, texts(TrainConfig), _sweeps(words))
        if _sweeps(words):
            swept.update(swept_keys(given))
            given += _sweep_folder(run, one_folder(), words)
        return launch(job, CONFIGS, "train", _settings_first(given), wrong)

    def one_folder() -> bool:
        return run != "" and "run" not in swept and "${" not in run

    def job(composed: DictConfig) -> int:
        def go() -> int:
            if swept and one_folder():
                composed.run = str(Path(composed.run, swept_values(swept)))
            settings = config.build(composed, TrainConfig)
            check_heard(typed, settings.agent, swept)
            return config.guarded(lambda: train(settings, say), say)

        return config.guarded(go, wrong)

    return config.guarded(start, wrong)


def check_heard(words: Sequence[str], settings: Any, swept: Collection[str]) -> None:
    """ConfigError for a word that sets a section of the agent which its choice leaves aside: with
    `agent.planner=cem` nothing reads `agent.icem.horizon`. A sweep over the choice reads all."""
    for choice, sections in getattr(type(settings), "choices", {}).items():
        chosen, setting = getattr(settings, choice), f"{GROUP}.{choice}"
        for word in words if setting not in swept else ():
            group, _, rest = word.partition("=")[0].lstrip("+").partition(".")
            section = rest.partition(".")[0]
            if group == GROUP and section in sections and section != chosen:
                raise config.ConfigError(
                    f"'{word}' is a setting of {choice} {section}, but {setting} is {chosen}, "
                    f"which does not read it. Leave it out, or set {setting}={section}."
                )


def _sweep_folder(run: str, one: bool, words: Sequence[str]) -> list[str]:
    """The word that says where Hydra notes what a sweep was: in the folder that its runs share, or
    above the first of theirs; none where no run is named."""
    if not run or any(word.startswith(f"{SWEEP}=") for word in words):
        return []
    plain = run.strip("'\"")
    folder = plain if one else str(Path(re.split(r",|\$\{", plain)[0]).parent)
    return for_hydra([f"{SWEEP}={at_home(folder)}"], {SWEEP: False}, False)


def _settings_first(words: Sequence[str]) -> list[str]:
    """Settings before flags, since Hydra takes none after `-m`."""
    return sorted(words, key=lambda word: word.startswith("-") or "=" not in word)


def _sweeps(words: Sequence[str]) -> bool:
    return "-m" in words or "--multirun" in words
