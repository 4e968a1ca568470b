"""The doctor tells what is missing, and fails only for what training needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.doctor import (
    GIB,
    PYGAME_PROBE,
    Check,
    Level,
    Package,
    as_text,
    check_disk,
    check_ffmpeg,
    check_gl,
    check_gpus,
    check_memory,
    check_mujoco_pair,
    check_package,
    check_pygame,
    check_python,
    doctor_command,
    exit_code,
    memory_bytes,
    run_probe,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 10), Level.FAIL), ((3, 11), Level.OK), ((3, 13), Level.OK), ((3, 14), Level.FAIL)],
)
def test_python_range(version: tuple[int, int], level: Level) -> None:
    assert check_python(version).level is level


def test_a_missing_package_fails_only_if_training_needs_it() -> None:
    needed = check_package(Package("torch", "every model"), version_of=lambda name: None)
    extra = check_package(Package("ale-py", "Atari", required=False), version_of=lambda name: None)
    assert (needed.level, extra.level) == (Level.FAIL, Level.WARN)
    assert needed.advice
    assert extra.advice
    assert exit_code([extra]) == 0
    assert exit_code([extra, needed]) == 1


def test_a_mujoco_that_breaks_dm_control_is_named() -> None:
    versions = {"mujoco": "4.0.0", "dm-control": "1.0.50"}
    found = check_mujoco_pair(versions.get)
    assert found is not None
    assert "4.0.0" in found.detail
    assert check_mujoco_pair((versions | {"mujoco": "3.17.0"}).get) is None
    assert check_mujoco_pair({"mujoco": "4.0.0"}.get) is None


@pytest.mark.parametrize(("gib", "level"), [(0.1, Level.FAIL), (2.0, Level.WARN), (50.0, Level.OK)])
def test_disk_levels(gib: float, level: Level) -> None:
    assert check_disk(free_bytes=int(gib * GIB)).level is level


def test_memory_levels() -> None:
    assert check_memory((GIB, 8 * GIB)).level is Level.WARN
    assert check_memory((4 * GIB, 8 * GIB)).level is Level.OK
    assert check_memory((0, 0)).level is Level.WARN
    available, total = memory_bytes()
    assert 0 <= available <= total


def test_no_gpu_is_fine_but_an_unused_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert [check.level for check in check_gpus(driver_seen=False)] == [Level.OK]
    assert [check.level for check in check_gpus(driver_seen=True)] == [Level.WARN]


def test_a_probe_survives_errors_crashes_and_hangs() -> None:
    assert run_probe("print('a'); print('b')") == (True, "b")
    assert run_probe("raise ValueError('no display')") == (False, "ValueError: no display")
    worked, said = run_probe("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert not worked
    assert "signal 11" in said
    worked, said = run_probe("import time; time.sleep(60)", timeout_s=0.5)
    assert not worked
    assert "0 s" in said


def test_rendering_failures_have_their_level_and_advice() -> None:
    gl = check_gl(probe="raise ImportError('no EGL, no OSMesa')")
    assert gl.level is Level.WARN
    assert "no EGL" in gl.detail
    assert "libegl1" in gl.advice
    assert check_pygame(probe="raise ImportError('no pygame')").level is Level.FAIL


def test_the_default_experiment_can_draw_and_film_here() -> None:
    assert check_pygame(PYGAME_PROBE).level is Level.OK
    assert check_ffmpeg().level is Level.OK


def test_text_names_the_advice_and_the_verdict() -> None:
    checks = [Check("disk", Level.OK, "9 GiB"), Check("torch", Level.FAIL, "gone", "install it")]
    text = as_text(checks)
    assert "FAIL  torch  gone" in text
    assert "-> install it" in text
    assert "cannot work" in text
    assert "Ready to train" in as_text(checks[:1])


def test_json_output_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Check("torch", Level.FAIL, "gone", "install it")]
    monkeypatch.setattr("scripts.doctor.all_checks", lambda: found)
    for argument in ("--json", "json=true"):
        assert doctor_command(print, [argument]) == 1
        assert json.loads(capsys.readouterr().out)[0]["level"] == "FAIL"


def test_an_unknown_argument_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/doctor.py", "--jsn"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Unknown argument '--jsn'. Known: --json" in done.stdout
