"""Checkpoints: all or nothing, and explained where they do not fit."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from worldmodel import checkpoint
from worldmodel.checkpoint import CheckpointError
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec


def test_keeps_the_one_before(tmp_path: Path) -> None:
    for number in range(3):
        checkpoint.save(tmp_path, {"number": number, "tensor": torch.full((2,), number)})
    assert checkpoint.load(tmp_path)["number"] == 2
    previous = torch.load(tmp_path / checkpoint.PREVIOUS, weights_only=True)
    assert previous["number"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoint.PREVIOUS, checkpoint.NAME]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_survives_a_failure_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    checkpoint.save(tmp_path, {"number": 1})

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    target = {"write": (torch, "save"), "fsync": (os, "fsync"), "replace": (os, "replace")}
    monkeypatch.setattr(*target[moment], fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, {"number": 2})
    monkeypatch.undo()
    assert checkpoint.load(tmp_path)["number"] == 1
    checkpoint.save(tmp_path, {"number": 3})
    assert checkpoint.load(tmp_path)["number"] == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / f"{checkpoint.NAME}.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, {"tensor": torch.zeros(100_000)})


def test_explains_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        checkpoint.load(tmp_path)
    path = checkpoint.save(tmp_path, {"tensor": torch.zeros(1000)})
    whole = path.read_bytes()
    for damage in (b"", whole[:700], b"x" * 900):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"is damaged .* start the run again"):
            checkpoint.load(tmp_path)
    path.write_bytes(whole)
    checkpoint.save(tmp_path, {"tensor": torch.zeros(1000)})
    path.write_bytes(whole[:700])
    with pytest.raises(CheckpointError, match=r"checkpoint.previous.pt': rename it"):
        checkpoint.load(tmp_path)


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('ran code from a checkpoint')",))


def test_never_runs_code_from_a_file(tmp_path: Path) -> None:
    torch.save({"state": Evil()}, tmp_path / checkpoint.NAME)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(tmp_path)
    (tmp_path / checkpoint.NAME).write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(tmp_path)


def test_lists_the_tensors_that_do_not_fit() -> None:
    small, large = nn.Linear(3, 2), nn.Linear(5, 2)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(large, small.state_dict(), "runs/x")
    assert "weight: needed [2, 5], checkpoint has [2, 3]" in str(caught.value)
    assert "bias" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"bias: needed \[2\], missing"):
        checkpoint.restore(nn.Linear(3, 2), nn.Linear(3, 2, bias=False).state_dict(), "runs/x")
    with pytest.raises(CheckpointError, match="bias"):
        checkpoint.restore(nn.Linear(3, 2, bias=False), small.state_dict(), "runs/x")
    checkpoint.restore(nn.Linear(3, 2), small.state_dict(), "runs/x")


def test_an_environment_is_remembered(tmp_path: Path) -> None:
    spec = EnvSpec(
        {"image": ObsSpec("image", (32, 32, 3)), "d": ObsSpec("discrete", (5,), (2, 3))},
        ActionSpec("discrete", (2, 4)),
    )
    checkpoint.save(tmp_path, {"spec": checkpoint.spec_to_dict(spec)})
    assert checkpoint.spec_from_dict(checkpoint.load(tmp_path)["spec"]) == spec
