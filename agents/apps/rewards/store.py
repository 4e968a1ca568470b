"""Heads by name, beside the model that they were fitted on.

    <run>/heads/<name>/head.json      where the reward comes from, what was measured, which model
                      weights.pt      the head's weights; nothing in it is executed
                      *.png, *.csv    what `report` drew

A head is written under another name and renamed when it is whole; head.json says what the bytes of
the weights must be, and which state of the model they belong to.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel import checkpoint, config
from worldmodel.atomic import replaced
from worldmodel.config import ConfigError, RunError
from worldmodel.rssm import Head, HeadConfig

FOLDER = "heads"
ABOUT, WEIGHTS = "head.json", "weights.pt"
FORMAT = 1
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
SEEN_BY_HEADS = ("encoder.", "core.")  # the weights that decide what a head reads


@dataclass(frozen=True)
class Stored:
    """One fitted head. source: the words after `reward=`, and `goal_scale` where it counts.
    head: its HeadConfig. fitted: what was done and measured. checkpoint: the file of the model;
    model: the fingerprint of that model."""

    name: str
    source: dict[str, Any]
    head: dict[str, Any]
    fitted: dict[str, Any]
    checkpoint: str
    model: str
    sha256: str = ""
    format: int = FORMAT
    folder: Path = field(default=Path(), compare=False)

    @property
    def config(self) -> HeadConfig:
        """For the model that it becomes a part of."""
        return HeadConfig(**self.head)

    def weights(self) -> dict[str, Tensor]:
        """Its weights on the CPU. Raises RunError where the file is damaged or gone."""
        path = self.folder / WEIGHTS
        try:
            if _digest(path) != self.sha256:
                raise RunError(
                    f"The head in '{self.folder}' is damaged: the bytes of {WEIGHTS} are not those "
                    f"that were written. Remove it with remove={self.name}, and fit it again."
                )
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"The head in '{self.folder}' cannot be read: {error}.") from error
        assert isinstance(state, dict)
        return state


def check_name(run: str | Path, name: str, taken: Iterable[str], replace: bool) -> None:
    """ConfigError unless a new head of that name can be stored in a run.

    taken: names that the model, its observations or its agent have in use.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"name='{name}' cannot name a head: use letters, digits and underscores, a letter "
            "first, at most 64. It becomes a folder, and a word in control={...}."
        )
    if name in taken:
        raise ConfigError(
            f"The name '{name}' is taken by the model itself (its heads, losses and observations "
            f"are {', '.join(sorted(taken))}). Choose another."
        )
    if (Path(run) / FOLDER / name).exists() and not replace:
        raise ConfigError(
            f"'{run}' has a head '{name}' already. Choose another name, say replace=true to fit it "
            f"anew, or remove={name} to delete it."
        )


def write(run: str | Path, stored: Stored, head: Head, files: Path | None = None) -> Stored:
    """Store a head, all or nothing, in place of one of the same name; `files` is a folder whose
    contents go beside it."""
    folder = Path(run) / FOLDER
    final = folder / stored.name
    with replaced(final) as fresh:
        if files is not None:
            shutil.copytree(files, fresh, dirs_exist_ok=True)
        torch.save({k: v.cpu().clone() for k, v in head.state_dict().items()}, fresh / WEIGHTS)
        whole = Stored(
            **{**_plain(stored), "sha256": _digest(fresh / WEIGHTS)}, folder=final
        )  # fmt: skip
        (fresh / ABOUT).write_text(json.dumps(_plain(whole), indent=2) + "\n")
    return whole


def names(run: str | Path) -> list[str]:
    """The heads of a run, sorted."""
    folder = Path(run) / FOLDER
    return sorted(
        path.parent.name for path in folder.glob(f"*/{ABOUT}") if path.parent.name[0] != "."
    )


def read(run: str | Path, name: str) -> Stored:
    """One head of a run. Raises ConfigError where there is none of that name, and RunError where
    it is damaged."""
    if name not in names(run):
        raise ConfigError(
            config.unknown("head", name, names(run)) if names(run) else _none(run, name)
        )
    path = Path(run) / FOLDER / name / ABOUT
    try:
        about = json.loads(path.read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, this version reads {FORMAT}")
        stored = Stored(**about, folder=path.parent)
        HeadConfig(**stored.head)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"The head in '{path.parent}' is damaged ({error}). Remove it with remove={name}, and "
            "fit it again."
        ) from error
    return stored


def remove(run: str | Path, name: str) -> Path:
    """Delete a head, damaged or not; returns the folder that it was in. Raises ConfigError where
    there is none of that name."""
    if not NAME.fullmatch(name) or not (Path(run) / FOLDER / name).is_dir():
        raise ConfigError(
            config.unknown("head", name, names(run)) if names(run) else _none(run, name)
        )
    folder = Path(run) / FOLDER / name
    shutil.rmtree(folder)
    return folder


def fingerprint(model: Any) -> str:
    """What tells the states that a model passes through from those of any other weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(SEEN_BY_HEADS):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def checkpoint_name(run: str | Path) -> str:
    """The file that the run's newest model is in."""
    found = checkpoint.found(Path(run))
    return found[0].name if found else "no checkpoint"


def _none(run: str | Path, name: str) -> str:
    return (
        f"'{run}' has no heads, so none named '{name}'. Fit one: "
        f"scripts/fit_reward.py run={run} name={name} reward=..."
    )


def _plain(stored: Stored) -> dict[str, Any]:
    return {key: value for key, value in asdict(stored).items() if key != "folder"}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
