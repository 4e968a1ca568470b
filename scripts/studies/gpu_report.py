"""`scripts/gpu_report.py`: what a GPU does with this project, as one JSON file, page and picture.

Every step is a command of its own (scripts/bench.py or pytest), so that one which fails or takes
too long leaves the others; report.json is written after each. Nothing draws with OpenGL, which a
machine with a GPU may lack.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.doctor import check_gpus
from scripts.studies.bench import machine
from worldmodel import config, plots, progress
from worldmodel.accel.devices import pick_device
from worldmodel.config import ConfigError
from worldmodel.folders import make_folder
from worldmodel.log import write_json

ROOT = Path(__file__).resolve().parents[2]
UPDATES, LOOP, PRECISION, TESTS = ("update_12m", "update_50m"), "loop", "precision", "tests"
GPU_TESTS = "tests/test_cuda.py -m gpu -n 6"
SMALL = "experiment=none size=tiny batch=2 length=4 image=32 horizon=2"
# Each step: its words, and for size=tiny others, which go through the same code in seconds.
COMMANDS: dict[str, tuple[str, str]] = {
    "update_12m": (
        "scripts/bench.py what=update size=12m batch=16 length=64 windows=3",
        f"scripts/bench.py what=update {SMALL} windows=1 warmup=1",
    ),
    "update_50m": (
        "scripts/bench.py what=update size=50m batch=16 length=64 windows=3",
        f"scripts/bench.py what=update {SMALL} windows=1 warmup=1",
    ),
    LOOP: (
        "scripts/bench.py what=train experiment=dmc_vision_2023 size=12m windows=3 seconds=8 "
        """'set=["env=pendulum","env.image_size=[64,64]","env.num_envs=8","env.vector=async"]'""",
        "scripts/bench.py what=train experiment=pendulum size=tiny batch=2 length=8 horizon=2 "
        "windows=1 seconds=0.2 set=[train_ratio=16]",
    ),
    PRECISION: (
        "scripts/bench.py what=precision size=12m batch=16 length=64 updates=40",
        f"scripts/bench.py what=precision {SMALL} updates=3",
    ),
    TESTS: (f"-m pytest {GPU_TESTS}", f"-m pytest {GPU_TESTS} --collect-only"),
}
# The line of a step that counts, by its "figure", and what is kept of it.
UPDATE_KEYS = ("first_update_s", "parameters", "peak_memory_mb", "of_peak", "phases_ms")
KEYS: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(UPDATES, ("update", UPDATE_KEYS)),
    LOOP: ("train", ("of_updates_alone", "updates_per_s", "agent_steps_per_s", "train_ratio")),
    PRECISION: ("precision", ("ratio", "first_apart", "float32", "bfloat16")),
}
AIMS = {
    "update 12m, ms": (12.0, "at most"),
    "update 50m, ms": (25.0, "at most"),
    "loop, of the rate of updates alone": (0.9, "at least"),
}


@dataclass
class Settings:
    """out: a folder for report.json, report.md, report.png and a log of each step. device: cuda, or
    cpu to go through every step. size: paper, or tiny for a trial of seconds. minutes: after which
    none goes on."""

    out: str = "runs/gpu-report"
    device: str = "cuda"
    size: str = "paper"
    minutes: float = 8.0

    def __post_init__(self) -> None:
        config.check_ranges(self, {"minutes": (0.01, 1e4)})
        if self.size not in ("paper", "tiny"):
            raise ConfigError(config.unknown("size", self.size, ("paper", "tiny")))


def gpu_report_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Measure and write the report; 1 where a step failed."""

    def work() -> int:
        settings = config.from_cli(Settings, arguments)
        check_device(settings.device)
        report = measure(settings, say)
        (Path(settings.out) / "report.md").write_text(page(report))
        draw(report, Path(settings.out) / "report.png")
        say(page(report))
        say(f"files: {settings.out}")
        return int(any("error" in step for step in report["steps"].values()))

    return config.guarded(work, say)


def check_device(device: str) -> None:
    """ConfigError, with what to do, where the report is to be of a GPU and there is none."""
    try:
        found = pick_device(device)
    except ValueError as error:
        if not device.startswith("cuda"):
            raise ConfigError(str(error)) from error
        why = "; ".join(" -> ".join(filter(None, (c.detail, c.advice))) for c in check_gpus())
        raise ConfigError(
            f"torch finds no GPU here ({why}). Run `make gpu-report` on a machine with an NVIDIA "
            "GPU and its driver; everything else is installed by it. device=cpu size=tiny goes "
            "through every step without one, and measures nothing."
        ) from error
    if found.type == "cpu" and device == "auto":
        raise ConfigError("device=auto found a CPU. Give device=cuda, or device=cpu for a trial.")


def measure(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Run every step and keep what it says; report.json is written after each."""
    out, began = Path(settings.out), time.monotonic()
    make_folder(out, "out")
    report: dict[str, Any] = {
        **machine(), "asked_device": settings.device, "size": settings.size, "steps": {},
    }  # fmt: skip
    for name in progress.each(list(COMMANDS), "measuring"):
        left = 60 * settings.minutes - (time.monotonic() - began)
        report["steps"][name] = found = run_step(name, settings, max(1.0, left))
        report |= figures(name, found)
        report["minutes"] = round((time.monotonic() - began) / 60, 2)
        write_json(out / "report.json", report)
        say(f"{name}: {found.get('error', 'done')} ({found['seconds']} s)")
    return report


def run_step(name: str, settings: Settings, left: float) -> dict[str, Any]:
    """One step: its command, its seconds, its JSON lines or the tests' last line, or its error."""
    words = shlex.split(COMMANDS[name][settings.size == "tiny"])
    if name != TESTS:
        words.append(f"device={settings.device}")
    began = time.monotonic()
    found: dict[str, Any] = {"command": shlex.join(words), "lines": []}
    try:
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, timeout=left, capture_output=True, text=True
        )
        (Path(settings.out) / f"{name}.log").write_text(done.stdout + done.stderr)
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        found["lines"] = [json.loads(line) for line in lines if line.startswith("{")]
        found["said"] = lines[-1] if lines else ""
        if done.returncode:
            failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            errors = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            why = "; ".join(failed) or (errors or ["nothing said"])[-1]
            found["error"] = f"ended with {done.returncode}: {why} ({name}.log has all it said)"
    except subprocess.TimeoutExpired:
        found["error"] = f"was stopped after {left:.0f} s, as no more time was left"
    found["seconds"] = round(time.monotonic() - began, 1)
    return found


def figures(name: str, step: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a step that the page and the claims read, under the step's name."""
    if name == TESTS:
        return {name: {"said": step.get("said", "")}}
    kind, keys = KEYS[name]
    for line in step["lines"]:
        if line.get("figure") == kind:
            also = {"ms": 1e3 * line["seconds"]} if name in UPDATES else {}
            return {name: {key: line[key] for key in keys} | also}
    return {}


def rows_of(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the page, by name."""
    rows: dict[str, float] = {}
    for name in UPDATES:
        if name in report:
            title = name.replace("_", " ")
            rows[f"{title}, ms"] = report[name]["ms"]
            rows[f"{title}, share of the peak of a matrix product"] = report[name]["of_peak"]
            rows[f"{title}, most memory, MB"] = report[name]["peak_memory_mb"]
            rows[f"{title}, first update of a process, s"] = report[name]["first_update_s"]
    if LOOP in report:
        rows["loop, of the rate of updates alone"] = report[LOOP]["of_updates_alone"]
        rows["loop, updates a second"] = report[LOOP]["updates_per_s"]
        rows["loop, agent steps a second"] = report[LOOP]["agent_steps_per_s"]
    if PRECISION in report:
        rows["total loss at the end, bfloat16 over float32"] = report[PRECISION]["ratio"]
        rows["first update's losses, farthest apart"] = max(
            report[PRECISION]["first_apart"].values()
        )
    return rows


def page(report: Mapping[str, Any]) -> str:
    """The report for people."""
    on = report["device"] if report["asked_device"] != "cpu" else "a CPU: no figure of a GPU"
    lines = [
        f"# Report of a GPU: {on}\n",
        f"Size {report['size']}; code {report['code']}, torch {report['versions']['torch']}, "
        f"{report['cpu']} ({report['cores']} cores); {report['minutes']} minutes.\n",
        "| figure | measured | aim |",
        "|---|---|---|",
    ]
    for name, value in rows_of(report).items():
        bound, word = AIMS.get(name, (0.0, ""))
        lines.append(f"| {name} | {value:.4g} | {f'{word} {bound:g}' if word else ''} |")
    lines += ["", "| step | seconds | |", "|---|---|---|"]
    for name, step in report["steps"].items():
        told = f"**{step['error']}**" if "error" in step else step["said"] * (name == TESTS)
        lines.append(f"| `{step['command']}` | {step['seconds']} | {told} |")
    return "\n".join([*lines, "", "![Phases of an update, and losses](report.png)\n"])


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Where the time of an update goes, and the losses in both precisions."""
    made, axes = plots.figure(2, width=6.0)
    left, right = axes[0]
    for place, name in enumerate(one for one in UPDATES if one in report):
        bottom = 0.0
        for i, (phase, ms) in enumerate(report[name]["phases_ms"].items()):
            colour = (*plots.COLOURS, "#999999", "#cccccc", "#8c564b", "#bcbd22")[i]
            label = phase if place == 0 else None
            left.bar(name.replace("_", " "), ms, bottom=bottom, color=colour, label=label)
            bottom += ms
    left.set_title("launched one after the other, by phase")
    left.set_ylabel("ms")
    left.set_xlim(-0.6, 2.6)
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8)
    losses = report.get(PRECISION, {})
    for name, style in (("float32", "-"), ("bfloat16", "--")):
        right.plot(losses.get(name, []), style, label=name)
    right.set_title("total loss on the same batches")
    right.set_xlabel("update")
    right.legend()
    plots.caption(made, f"{report['device']}; size {report['size']}; code {report['code']}")
    plots.save(made, path)
