"""Checkpoints: all or nothing, damage is noticed, and nothing in a file is executed."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from worldmodel import checkpoint
from worldmodel.checkpoint import FOLDER, CheckpointError
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec


def numbers(run: Path) -> list[int]:
    return [torch.load(p, weights_only=True)["number"] for p in checkpoint.found(run)]


def place(run: Path, number: int, content: bytes) -> Path:
    """A file that bears the right name for its content."""
    (run / FOLDER).mkdir(exist_ok=True)
    path = run / FOLDER / f"{number:06d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keeps_the_newest(tmp_path: Path, keep: int) -> None:
    for number in range(5):
        checkpoint.save(tmp_path, {"number": number, "tensor": torch.full((2,), number)}, keep)
    assert checkpoint.load(tmp_path)["number"] == 4
    assert numbers(tmp_path) == list(range(4, 4 - keep, -1))
    assert len(list((tmp_path / FOLDER).iterdir())) == keep


def test_numbers_go_on_beyond_six_digits(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, {"number": 0})
    path.rename(path.with_name(f"999999-{path.name[7:]}"))
    for number in (1, 2):
        checkpoint.save(tmp_path, {"number": number}, keep=3)
    assert numbers(tmp_path) == [2, 1, 0]


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
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, {"tensor": torch.zeros(100_000)})


def test_a_file_that_a_kill_left_unfinished_is_no_checkpoint(tmp_path: Path) -> None:
    whole = checkpoint.save(tmp_path, {"number": 1}).read_bytes()
    (tmp_path / FOLDER / "unfinished").write_bytes(whole[:300])
    assert checkpoint.load(tmp_path)["number"] == 1
    checkpoint.save(tmp_path, {"number": 2})
    assert len(list((tmp_path / FOLDER).iterdir())) == 2


def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"number": 1, "tensor": torch.zeros(1000)}, keep=3)
    checkpoint.save(tmp_path, {"number": 2, "tensor": torch.zeros(1000)}, keep=3)
    path = checkpoint.save(tmp_path, {"number": 3, "tensor": torch.zeros(1000)}, keep=3)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # one bit, in the tensor: still a valid file of this form
    for damage in (b"", whole[:700], b"x" * 900, bytes(flipped)):
        path.write_bytes(damage)
        said: list[str] = []
        assert checkpoint.load(tmp_path, said.append)["number"] == 2
        assert len(said) == 1
        assert str(path) in said[0]
        assert "Going on from the one before: '000002-" in said[0]
    for each in checkpoint.found(tmp_path):
        each.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"000003.*000001.*start the run again"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        checkpoint.load(tmp_path / "nowhere")


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('ran code from a checkpoint')",))


def test_never_runs_code_from_a_file(tmp_path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT, "state": Evil()}, tmp_path / "evil")
    place(tmp_path, 1, (tmp_path / "evil").read_bytes())
    with pytest.raises(CheckpointError, match=r"damaged or no checkpoint of ours \(Weights only"):
        checkpoint.load(tmp_path)
    place(tmp_path, 2, pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError, match="no checkpoint of ours"):
        checkpoint.load(tmp_path)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "future")
    place(tmp_path, 1, (tmp_path / "future").read_bytes())
    with pytest.raises(CheckpointError, match=r"format 99; this version reads 2"):
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


def test_large_numbers_and_nested_values_come_back(tmp_path: Path) -> None:
    """Random generators hold integers of 128 bits."""
    state = {"big": 2**127 + 5, "nest": [{"a": None, "b": [True, 1.5, "x"]}], "none": None}
    checkpoint.save(tmp_path, state)
    assert checkpoint.load(tmp_path) == {"format": checkpoint.FORMAT, **state}
