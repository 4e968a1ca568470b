"""Configs composed by Hydra from YAML files and the words of a command."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from worldmodel.config import (
    FULL_ERROR,
    ConfigError,
    bad_key,
    explain,
    first_line,
    guarded,
    keys_of,
    unknown,
)


def store(name: str, node: Any, group: str | None = None, package: str | None = None) -> None:
    """Register a dataclass as the schema of a config, or as one choice of a group; package: which
    section of the config it describes, unless that of the group's name."""
    ConfigStore.instance().store(name=name, node=node, group=group, package=package)


def compose_config(directory: Path, name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a config as the command line would; ConfigError where that fails."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(Path(directory).resolve()), version_base="1.3"):
            return compose(name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explain(error, _known_keys(directory, name, overrides)) from error


def launch(
    task: Callable[[DictConfig], int],
    directory: Path,
    name: str,
    words: Sequence[str],
    say: Callable[[str], None],
) -> int:
    """Compose from the words of a command, run `task` (or a sweep of it), and return an exit code.

    0 or what `task` returned; 2 for a wrong setting and 1 for a run that cannot go on, both said
    in one line without a traceback (HYDRA_FULL_ERROR=1 shows it).
    """
    codes: list[int] = []

    def job(config: DictConfig) -> int:
        codes.append(task(config))
        if codes[-1] >= 128:  # a signal asked to stop: the rest of a sweep, too
            raise SystemExit(codes[-1])
        return codes[-1]

    wrapped = hydra_main(version_base="1.3", config_path=str(directory.resolve()), config_name=name)

    def call() -> int:
        sys.argv[1:] = words  # where Hydra reads them
        before = os.environ.get(FULL_ERROR)
        os.environ[FULL_ERROR] = "1"  # otherwise Hydra prints and exits before we can explain
        try:
            wrapped(job)()
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(error, _known_keys(directory, name, words)) from error
        except ValueError as error:
            if isinstance(error, ConfigError) or not _raised_in_hydra(error):
                raise
            raise ConfigError(
                f"{first_line(error)}. A choice of a group is a name; --help lists them."
            ) from error
        finally:
            if before is None:
                del os.environ[FULL_ERROR]
        return max(codes, default=0)

    return guarded(call, say)


def _raised_in_hydra(error: Exception) -> bool:
    """Whether Hydra itself, and not what it called, refused something."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "hydra" in Path(trace.tb_frame.f_code.co_filename).parts


def _explain(error: Exception, known: Iterable[str]) -> ConfigError:
    """One clear ConfigError for whatever Hydra, or OmegaConf within it, found wrong."""
    text = str(error)
    if isinstance(error, MissingConfigException):
        found = re.search(r"Could not (?:find|load) '(?:(.*)/)?([^/']*)'", text)
        options = re.findall(r"^\t([^\s=]+)$", text, re.M)
        if found and found.group(1):
            return ConfigError(unknown(found.group(1), found.group(2), options))
        return ConfigError(text.split("\nConfig search path")[0])
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"Cannot read '{error.override}'. Settings are given as key=value, with quotes round "
            "odd text."
        )
    absent = re.match(r"(?:In '([^']*)': )?Could not override '([^'@]*)'. No match in", text)
    if absent:
        where = f"configs/{absent[1]}.yaml: " if absent[1] else ""
        return ConfigError(f"{where}'{absent[2]}' is no choice beside the others. Leave it out.")
    preset, key = re.match(r"In '([^']+)': \w+ raised while composing", text), bad_key(error)
    if preset and key is not None:
        return ConfigError(
            f"configs/{preset.group(1)}.yaml sets '{key}', which does not exist with the other "
            f"choices made. Choose another {preset.group(1).split('/')[0]} (or none) beside them."
        )
    return explain(error, known)


def _known_keys(directory: Path, name: str, overrides: Sequence[str]) -> list[str]:
    """Every key and group that exists, under those group choices that do compose."""
    groups = {path.name for path in Path(directory).iterdir() if path.is_dir()}
    chosen = [word for word in overrides if word.split("=")[0] in groups and "," not in word]
    for attempt in (chosen, []):
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(Path(directory).resolve()), version_base="1.3"):
                return [*keys_of(compose(name, overrides=attempt)), *groups]
        except (HydraException, OmegaConfBaseException, ValueError):
            continue
    return sorted(groups)
