"""A detector beside the run that it was fitted on.

    <run>/detector/detector.json    settings, calibration, which world, and what the bytes must be
                   weights.pt       tensors alone; nothing in it is executed
                   *.png, *.csv     what fitting drew

It is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from worldmodel import checkpoint, config
from worldmodel.atomic import replaced
from worldmodel.config import ConfigError, RunError
from worldmodel.log import write_tensors
from worldmodel.ood.config import DetectorConfig
from worldmodel.ood.detector import Detector
from worldmodel.types import EnvSpec

FOLDER, ABOUT, WEIGHTS = "detector", "detector.json", "weights.pt"
FORMAT = 2


def save(
    run: str | Path,
    detector: Detector,
    files: Callable[[Path], None] = lambda folder: None,
    also: dict[str, Any] | None = None,
) -> Path:
    """Store a detector in a run folder, all or nothing, in place of one that is there.

    files: writes what goes beside it into the folder that it is given. also: for detector.json.
    Returns the folder.
    """
    final = Path(run) / FOLDER
    with replaced(final) as fresh:
        state = detector.state_dict()
        write_tensors(fresh / WEIGHTS, state["tensors"])
        about = {
            "format": FORMAT,
            "sha256": _digest(fresh / WEIGHTS),
            "fitted": state["fitted"],
            "calibration": state["calibration"],
            "columns": list(detector.scorer.names),
            "world": fingerprint(detector.world),
            "spec": checkpoint.spec_to_dict(detector.spec),
            "config": asdict(detector.config),
            **(also or {}),
        }
        about["seal"] = _seal(about)
        (fresh / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        files(fresh)
    return final


def exists(run: str | Path) -> bool:
    """Whether a run has a detector, damaged or not."""
    return (Path(run) / FOLDER / ABOUT).is_file()


def load(
    run: str | Path,
    spec: EnvSpec,
    world: Any,
    device: torch.device | str = "cpu",
) -> Detector:
    """The detector of a run, for the agent's world that it was fitted with, or None.

    Raises ConfigError where there is none, and RunError where a file was changed, or where the
    world is not the one that it knows.
    """
    about = read(run)
    folder = Path(run) / FOLDER
    again = f"Fit it again: scripts/fit_detector.py run={run}"
    if about["world"] != fingerprint(world):
        raise RunError(
            f"The detector in '{folder}' was fitted with other weights of the world than "
            f"this run has now; its scores would mean nothing. {again}"
        )
    if about["spec"] != json.loads(json.dumps(checkpoint.spec_to_dict(spec))):
        raise RunError(f"The detector in '{folder}' was fitted on other observations. {again}")
    path = folder / WEIGHTS
    try:
        if _digest(path) != about["sha256"]:
            raise RunError(
                f"'{path}' was changed: its bytes are not those that were written. {again}"
            )
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        settings = config.build(OmegaConf.create(about["config"]), DetectorConfig)
        detector = Detector(spec, settings, world, device)
        state = {key: about[key] for key in ("fitted", "calibration")}
        detector.load_state_dict({"tensors": tensors, **state})
    except (*checkpoint.NONSENSE, pickle.UnpicklingError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"The detector in '{folder}' cannot be read ({config.first_line(error)}). {again}"
        ) from error
    return detector


def read(run: str | Path) -> dict[str, Any]:
    """What detector.json says. Raises ConfigError where there is none, RunError where it was
    changed."""
    path = Path(run) / FOLDER / ABOUT
    again = f"Fit it again: scripts/fit_detector.py run={run}"
    if not path.is_file():
        raise ConfigError(f"'{run}' has no detector. Fit one: scripts/fit_detector.py run={run}")
    try:
        about = json.loads(path.read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, this version reads {FORMAT}")
        seal = about.pop("seal")
        if seal != _seal(about):
            raise ValueError("its text is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"'{path}' was changed or is damaged ({error}). {again}") from error
    assert isinstance(about, dict)
    return about


def fingerprint(world: Any) -> str:
    """What tells a learned world from any other weights; "" for none, and for one that is no
    module."""
    if not isinstance(world, nn.Module):
        return ""
    digest = hashlib.sha256()
    for name, value in sorted(world.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue  # what trains it
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _seal(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
