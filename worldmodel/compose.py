"""Configs composed by Hydra from YAML files and the words of a command."""

from __future__ import annotations

import copy
import errno
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra._internal.hydra as hydra_app
from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from worldmodel.config import (
    ConfigError,
    bad_key,
    check_entry,
    check_once,
    explain,
    first_line,
    guarded,
    keys_of,
    unknown,
)
from worldmodel.entry import FULL_ERROR
from worldmodel.maps import Map, given_map, maps_of


def store(name: str, node: Any, group: str | None = None, package: str | None = None) -> None:
    """Register a dataclass as the schema of a config, or as one choice of a group; package: which
    section of the config it describes, unless that of the group's name."""
    ConfigStore.instance().store(name=name, node=node, group=group, package=package)


def compose_config(directory: Path, name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a config as the command line would; ConfigError where that fails."""
    GlobalHydra.instance().clear()
    try:
        with _our_loader(), initialize_config_dir(str(directory.resolve()), version_base="1.3"):
            return compose(name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explain(error, directory, _known_keys(directory, name, overrides)) from error


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
            with _our_loader():
                wrapped(job)()
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(error, directory, _known_keys(directory, name, words)) from error
        except ValueError as error:
            if isinstance(error, ConfigError) or not _raised_in_hydra(error):
                raise
            raise ConfigError(
                f"{first_line(error)}. A choice of a group is a name; --help lists them."
            ) from error
        except OSError as error:  # Hydra looks for a file of that name
            if error.errno != errno.ENAMETOOLONG:
                raise
            long = max(words, key=len, default="")
            raise ConfigError(
                f"'{long[:60]}...' is too long: no file has such a name. --help lists the choices."
            ) from error
        except AssertionError as error:  # the whole of what Hydra has to say, for some of them
            own = [word for word in words if word.lstrip("+~").startswith("hydra.")]
            if not own or not _raised_in_hydra(error):
                raise
            raise ConfigError(
                f"Hydra does not take this: {' '.join(own)}. These are settings of Hydra's own; "
                "leave them out, or look them up at https://hydra.cc/docs/configure_hydra/intro."
            ) from error
        finally:
            if before is None:
                del os.environ[FULL_ERROR]
        return max(codes, default=0)

    return guarded(call, say)


def swept_keys(words: Sequence[str]) -> set[str]:
    """The keys to which words of a sweep give several values; none where a word cannot be read,
    which `launch` explains."""
    given = [word for word in words if not word.startswith("-")]
    try:
        found = OverridesParser.create().parse_overrides(given)
    except HydraException:
        return set()
    return {one.key_or_group for one in found if one.is_sweep_override()}


def swept_values(keys: Collection[str]) -> str:
    """What differs in this run of a sweep, as a name: "seed=1,agent=dqn"."""
    own = HydraConfig.get().overrides.task
    return ",".join(word.replace("/", "-") for word in own if word.split("=")[0] in keys)


class _Loader(ConfigLoaderImpl):
    """Hydra's loader with our rule for maps (`worldmodel.maps`): what a file or a word gives
    replaces what the files before it gave."""

    _files: Any = None

    def _parse_overrides_and_create_caching_repo(self, config_name: Any, overrides: Any) -> Any:
        found = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        self._words = found[0]
        return found

    def get_group_options(
        self, group_name: str, results_filter: Any = ObjectType.CONFIG, *about: Any, **named: Any
    ) -> list[str]:
        """As Hydra's, which copies all configs anew for each group: --help asks for ninety."""
        if about or named:
            found = super().get_group_options(group_name, results_filter, *about, **named)
        else:
            if self._files is None:
                self._files = self._parse_overrides_and_create_caching_repo(None, [])[1]
            found = self._files.get_group_options(group_name, results_filter)
        return list(found)

    def _load_single_config(self, default: Any, repo: Any) -> Any:
        found = super()._load_single_config(default, repo)
        self._layers.append(copy.deepcopy(found.config))  # what is merged may be written to
        return found

    def _compose_config_from_defaults_list(self, defaults: Any, repo: Any) -> DictConfig:
        self._layers: list[Any] = []
        config = super()._compose_config_from_defaults_list(defaults, repo)
        for one in maps_of(config):
            if one.name.startswith("hydra."):
                continue
            given = (given_map(layer, one.name) for layer in reversed(self._layers))
            newest = next((value for value in given if value is not None), None)
            if one.replaced and newest is not None:
                OmegaConf.update(config, one.name, newest, merge=False)
            self._make_room(config, one)
        return config

    def _make_room(self, config: DictConfig, one: Map) -> None:
        """Ready a map for what the words, which are merged into it next, give of it."""
        whole = [word for word in self._words if _gives(word, one.name)]
        below = [w for w in self._words if w.key_or_group.startswith(f"{one.name}.")]
        check_once(one, len(whole))
        if whole and one.replaced:
            OmegaConf.update(config, one.name, {}, merge=False)
        node = OmegaConf.select(config, one.name)
        if whole or one.open:
            OmegaConf.set_struct(node, False)
        for word in below if not whole else []:
            key, added = word.key_or_group, word.is_add() or word.is_force_add()
            if added and not one.replaced and isinstance(word.value(), dict):
                OmegaConf.set_struct(node, False)
                node.merge_with({one.entry_of(key): {}})  # a section, to be filled by the word
            elif not added and not word.is_delete():
                check_entry(one, key, node)
            if one.replaced and isinstance(word.value(), dict):
                OmegaConf.update(config, key, {}, merge=False, force_add=True)


def _gives(word: Any, name: str) -> bool:
    """Whether a word gives the map of that name, itself or within a section above it."""
    key, value = f"{word.key_or_group}.", word.value()
    for part in f"{name}.".removeprefix(key).split(".")[:-1]:
        value = value.get(part) if isinstance(value, dict) else None
    return f"{name}.".startswith(key) and isinstance(value, dict)


@contextmanager
def _our_loader() -> Iterator[None]:
    """Let Hydra compose with our loader, in a sweep too."""
    theirs = hydra_app.ConfigLoaderImpl
    hydra_app.ConfigLoaderImpl = _Loader  # type: ignore[misc]
    try:
        yield
    finally:
        hydra_app.ConfigLoaderImpl = theirs  # type: ignore[misc]


def _raised_in_hydra(error: Exception) -> bool:
    """Whether Hydra itself, and not what it called, refused something."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "hydra" in Path(trace.tb_frame.f_code.co_filename).parts


def _explain(error: Exception, directory: Path, known: Iterable[str]) -> ConfigError:
    """One clear ConfigError for whatever Hydra, or OmegaConf within it, found wrong. directory: of
    the configs. known: the keys that exist."""
    text = str(error)
    if isinstance(error, MissingConfigException):
        found = re.search(r"Could not (?:find|load) '(?:(.*)/)?([^/']*)'", text)
        options = re.findall(r"^\t([^\s=]+)$", text, re.M)
        if found and found.group(1):
            below = (directory / found.group(1)).glob("*/*.yaml")
            options += [f"{path.parent.name}/{path.stem}" for path in below]
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
        owners = ", ".join(_choices_with(directory, absent[2]))
        goes = f"; {absent[2]}= goes with {owners}" if owners else ""
        leave = f"Choose another {absent[1].split('/')[0]}" if absent[1] else "Leave it out"
        way = f"{leave}, or choose one of those" if owners else leave
        return ConfigError(f"{where}'{absent[2]}' is no choice beside the others{goes}. {way}.")
    preset, key = re.match(r"In '([^']+)': \w+ raised while composing", text), bad_key(error)
    if preset and key is not None:
        group, _, choice = preset.group(1).partition("/")
        below = (directory / group).glob(f"*/{choice}.yaml")
        others = [f"{group}={path.parent.name}/{choice}" for path in below]
        hint = f" Did you mean {' or '.join(others)}?" if others else ""
        return ConfigError(
            f"configs/{preset.group(1)}.yaml sets '{key}', which does not exist with the other "
            f"choices made. Choose another {group} (or none) beside them.{hint}"
        )
    return explain(error, known)


def _choices_with(directory: Path, group: str) -> list[str]:
    """The choices, as group=name, that bring a choice of this group with them."""
    brings = re.compile(rf"^\s*- /{re.escape(group)}:", re.M)
    files = sorted(path for path in directory.glob("*/*.yaml") if brings.search(path.read_text()))
    return [f"{path.parent.name}={path.stem}" for path in files]


def _known_keys(directory: Path, name: str, overrides: Sequence[str]) -> list[str]:
    """Every key and group that exists, under those group choices that do compose."""
    groups = {path.name for path in Path(directory).iterdir() if path.is_dir()}
    chosen = [word for word in overrides if word.split("=")[0] in groups and "," not in word]
    for attempt in (chosen, []):
        GlobalHydra.instance().clear()
        try:
            with _our_loader(), initialize_config_dir(str(directory.resolve()), version_base="1.3"):
                return [*keys_of(compose(name, overrides=attempt)), *groups]
        except (HydraException, OmegaConfBaseException, OSError, ValueError):
            continue
    return sorted(groups)
