"""Heads that were fitted on a trained world, by name, beside its run; and worlds that take them.

    <run>/heads/<name>/head.json      where the reward comes from, what was measured, which model
                      weights.pt      the head's weights; nothing in it is executed
                      *.png, *.csv    pictures and tables of what was measured

head.json says what the bytes of the weights must be, and which state of the model they belong to.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from worldmodel import checkpoint, config
from worldmodel.capabilities import Features
from worldmodel.config import ConfigError, RunError
from worldmodel.rssm.heads import Head, HeadConfig
from worldmodel.types import Batch

FOLDER = "heads"
ABOUT, WEIGHTS = "head.json", "weights.pt"
FORMAT = 1
UNITS = 64  # of a head on a world that has no say in it


@runtime_checkable
class TakesHeads(Features[Any], Protocol):
    """A world that fitted heads can become a part of, which they then pay."""

    @property
    def paying(self) -> list[str]:
        """Names that `control` may weigh: its own heads and rewards."""
        ...

    @property
    def scalar_heads(self) -> dict[str, Head]:
        """Its own heads of one number, by name."""
        ...

    @property
    def feat_weights(self) -> dict[str, Tensor]:
        """The weights that decide its features."""
        ...

    def new_head(self, config: HeadConfig) -> Head:
        """An untrained head that could become a part of it."""
        ...

    def with_heads(self, heads: Mapping[str, Head], control: Mapping[str, float]) -> Any:
        """A copy with these heads too, paid by a weighted sum of some; ValueError where a name or
        a head cannot be."""
        ...

    def loss_and_feat(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The scalar that it learns from a batch, and the features [B, T, F] of its states, both
        with gradient."""
        ...


@dataclass(frozen=True)
class FittedHead:
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

    def plain(self) -> dict[str, Any]:
        """What head.json holds."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}

    def weights(self) -> dict[str, Tensor]:
        """Its weights on the CPU. Raises RunError where the file is damaged or gone."""
        path = self.folder / WEIGHTS
        try:
            whole = digest(path) == self.sha256
            state = torch.load(path, map_location="cpu", weights_only=True) if whole else None
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise RunError(f"The head in '{self.folder}' cannot be read: {error}.") from error
        if state is None:
            raise RunError(
                f"The head in '{self.folder}' is damaged: the bytes of {WEIGHTS} are not those "
                f"that were written. Remove it with remove={self.name}, and fit it again."
            )
        assert isinstance(state, dict)
        return state

    def load(self, model: Features[Any], run: str | Path) -> Head:
        """The head itself, on the CPU. Raises RunError where it is damaged, and unless it was
        fitted on this very state of the model of a run."""
        if self.model != fingerprint(model):
            raise RunError(
                f"The head '{self.name}' was fitted on the model of {self.checkpoint}, but the run "
                f"has another by now ({checkpoint_name(run)}): it was trained on. Fit the head "
                f"again: scripts/fit_reward.py run={run} name={self.name} "
                f"reward='{self.source['reward']}' replace=true"
            )
        head = new_head(model, self.config)
        try:
            head.load_state_dict(self.weights())
        except RunError:
            raise
        except RuntimeError as error:
            raise RunError(f"A head does not fit the model of '{run}': {error}") from error
        return head.requires_grad_(False)


def head_names(run: str | Path) -> list[str]:
    """The fitted heads of a run, sorted."""
    paths = (Path(run) / FOLDER).glob(f"*/{ABOUT}")
    return sorted(path.parent.name for path in paths if path.parent.name[0] != ".")


def read_head(run: str | Path, name: str) -> FittedHead:
    """One fitted head of a run. Raises ConfigError where there is none of that name, and RunError
    where it is damaged."""
    if name not in head_names(run):
        raise no_head(run, name)
    path = Path(run) / FOLDER / name / ABOUT
    try:
        about = json.loads(path.read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, this version reads {FORMAT}")
        found = FittedHead(**about, folder=path.parent)
        HeadConfig(**found.head)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"The head in '{path.parent}' is damaged ({error}). Remove it with remove={name}, and "
            "fit it again."
        ) from error
    return found


def no_head(run: str | Path, name: str) -> ConfigError:
    """The error for a name that no fitted head of a run has."""
    if head_names(run):
        return ConfigError(config.unknown("head", name, head_names(run)))
    return ConfigError(
        f"'{run}' has no heads, so none named '{name}'. Fit one: "
        f"scripts/fit_reward.py run={run} name={name} reward=..."
    )


def new_head(model: Features[Any], config: HeadConfig) -> Head:
    """An untrained head that reads the features of a world."""
    if isinstance(model, TakesHeads):
        return model.new_head(config)
    return Head(config, model.feat_size, UNITS)


def fingerprint(model: Any) -> str:
    """What tells the features of a world from those of any other weights; features that nothing
    learned decides are all alike."""
    found = hashlib.sha256()
    weights = model.state_dict() if isinstance(model, nn.Module) else {}
    if isinstance(model, TakesHeads):
        weights = model.feat_weights
    for name, value in sorted(weights.items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def checkpoint_name(run: str | Path) -> str:
    """The file that the run's newest model is in."""
    found = checkpoint.found(Path(run))
    return found[0].name if found else "no checkpoint"


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
