"""The report of a GPU: every step runs on a CPU too, and without a GPU it says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts.studies import gpu_report
from scripts.studies.reproduce.claim import stored
from scripts.studies.reproduce.table import CLAIMS


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_step_runs_on_a_cpu(tmp_path: Path) -> None:
    said: list[str] = []
    words = ["device=cpu", "size=tiny", f"out={tmp_path / 'report'}", "minutes=20"]
    assert gpu_report.gpu_report_command(said.append, words) == 0, "\n".join(said)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["steps"].keys() == gpu_report.COMMANDS.keys()
    rows = gpu_report.rows_of(report)
    assert len(rows) == 13
    assert rows.keys() >= gpu_report.AIMS.keys()
    assert rows["total loss at the end, bfloat16 over float32"] == 1  # both are float32 here
    assert report["precision"]["float32"] == report["precision"]["bfloat16"]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "a CPU: no figure of a GPU" in text
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")
    claim = next(claim for claim in CLAIMS if claim.name == "gpu")
    for measure in claim.measures:  # the claim reads what is there
        measure.read(tmp_path)
    assert stored("report/report.json", "update_12m.ms")(tmp_path) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(tmp_path: Path) -> None:
    said: list[str] = []
    assert gpu_report.gpu_report_command(said.append, [f"out={tmp_path / 'report'}"]) == 2
    assert len(said) == 1
    assert "torch finds no GPU here" in said[0]
    assert "device=cpu size=tiny goes through every step" in said[0]
    assert not (tmp_path / "report").exists()


def test_a_step_that_fails_or_has_no_time_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = dict.fromkeys(gpu_report.COMMANDS, ("-c pass", "-c pass"))
    commands["update_12m"] = ("-c ''", "-c 'import sys; sys.exit(\"no memory\")'")
    commands["loop"] = ("-c ''", "-c 'import time; time.sleep(600)'")
    two = "-c 'print(\"FAILED a\\nERROR b\\nall in all\"); raise SystemExit(1)'"
    commands["tests"] = (two, two)
    monkeypatch.setattr(gpu_report, "COMMANDS", commands)
    settings = gpu_report.Settings(str(tmp_path), "cpu", "tiny", minutes=0.05)
    report = gpu_report.measure(settings, lambda _: None)
    error = report["steps"]["update_12m"]["error"]
    assert error == "ended with 1: no memory (update_12m.log has all it said)"
    assert (tmp_path / "update_12m.log").read_text() == "no memory\n"
    assert report["steps"]["tests"]["error"].startswith("ended with 1: FAILED a; ERROR b (tests")
    assert "was stopped after" in report["steps"]["loop"]["error"]
    assert report["steps"].keys() == commands.keys()
    gpu_report.draw(report, tmp_path / "report.png")
    assert "no memory" in gpu_report.page(report)
