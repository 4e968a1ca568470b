"""How fast one steps through a dream: the walk alone, and through the page in a browser."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from agents.apps.play.cli import open_run
from agents.apps.play.driver import FASTEST
from agents.apps.play.session import Session
from agents.apps.play.show import shown
from worldmodel import config
from worldmodel.accel import devices

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SERVER = (
    "import sys; from agents.apps.play.cli import play_command as command; "
    "sys.exit(command(print, sys.argv[1:]))"
)
CLOCK = os.sysconf("SC_CLK_TCK")
PAINTED = "+document.querySelector('.dream-screen').dataset.painted"


@dataclass
class Settings:
    """run: folder of a trained run. steps: of one window. windows: the median of which is told.
    seconds: that the page plays, in each view; 0 leaves the browser out."""

    run: str = MISSING
    steps: int = 100
    windows: int = 5
    seconds: float = 10.0
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.windows < 1 or self.seconds < 0:
            raise config.ConfigError(
                f"steps={self.steps} and windows={self.windows} must be at least 1, and "
                f"seconds={self.seconds} not negative."
            )


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """Steps per second of the agent acting, and milliseconds of CPU for each: of the walk, of the
    walk with all that a page is sent for it, and as a headless Chromium on this machine paints
    them. The CPU times tell, on a busy machine, what a quiet one would do."""
    devices.set_threads(settings.threads)
    run = Path(settings.run)
    world, recorded = open_run(run, settings.device, 0, lambda text: None)
    starts: dict[str, Callable[[Session], Any]] = {"both": lambda walk: walk.start_real(0)}
    if recorded is not None:
        starts = {"dream": lambda walk: walk.start_recorded(0, 0), **starts}
    for view, start in starts.items():
        walk = Session(world, recorded)
        start(walk)
        for name, look in (("step", False), ("step and show", True)):
            yield {"figure": name, "view": view, **_rate(settings, walk, view, look)}
        walk.close()
    if settings.seconds:
        yield from _page(settings, list(starts))


def _rate(settings: Settings, walk: Session, view: str, look: bool) -> dict[str, float]:
    """Medians over the windows, each from the start anew."""
    rates, costs = [], []
    for _ in range(settings.windows + 1):
        walk.undo(settings.steps)
        begun, spent = time.perf_counter(), time.process_time()
        for _ in range(settings.steps):
            walk.act(walk.policy_action())
            if look:
                shown(walk, view)
        rates.append(settings.steps / (time.perf_counter() - begun))
        costs.append(1e3 * (time.process_time() - spent) / settings.steps)
    return {
        "steps_per_s": round(statistics.median(rates[1:]), 1),
        "cpu_ms": round(statistics.median(costs[1:]), 2),
    }


def _page(settings: Settings, views: list[str]) -> Iterator[dict[str, Any]]:
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None or importlib.util.find_spec("playwright") is None:
        yield {"figure": "page", "left_out": "no Chromium, or no playwright (the extra dev)"}
        return
    from playwright.sync_api import sync_playwright

    words = [f"run={settings.run}", "port=0", f"device={settings.device}"]
    command = [sys.executable, "-u", "-c", SERVER, *words, f"threads={settings.threads}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = None
        for line in server.stdout:
            found = found or re.search(r"Step into the dream: (\S+)", line)
            if found:
                break
        if found is None:
            raise config.RunError("The page did not come up; try scripts/play.py by hand.")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(found.group(1))
            page.wait_for_selector(".shots img")
            for view in views:
                yield {
                    "figure": "page",
                    "view": view,
                    **_played(page, server.pid, settings.seconds, view),
                }
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def _played(page: Any, server: int, seconds: float, view: str) -> dict[str, Any]:
    """Pictures painted per second while the agent plays at the highest speed."""
    if view == "both" and not page.locator(".view-both").count():
        page.keyboard.press("n")
        page.get_by_role("button", name="Real environment").click()
        page.get_by_role("button", name="Start here").click()
        page.wait_for_selector(".view-both")
        page.locator(".dialog").wait_for(state="hidden")
    page.get_by_role("button", name="Agent", exact=True).click()
    slider = page.get_by_label("Steps per second").locator("[tabindex]")
    for _ in range(int(FASTEST) // 10):
        slider.press("PageUp")
    page.get_by_role("button", name="Play", exact=True).click()
    time.sleep(1)  # until it runs evenly
    before, begun, spent = page.evaluate(PAINTED), time.perf_counter(), _cpu_seconds(server)
    time.sleep(seconds)
    painted, passed = page.evaluate(PAINTED) - before, time.perf_counter() - begun
    costs = zip(_cpu_seconds(server), spent, strict=True)
    ours, theirs = (round(1e3 * (after - then) / max(1, painted), 2) for after, then in costs)
    page.get_by_role("button", name="Pause").click()
    return {
        "steps_per_s": round(painted / passed, 1),
        "asked_for": FASTEST,
        "server_cpu_ms": ours,
        "browser_cpu_ms": theirs,
    }


def _cpu_seconds(server: int) -> tuple[float, float]:
    """Seconds of CPU of the server, and of all other processes that this one started (the
    browser); zeros where there is no /proc."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            words = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(words[1])
            seconds[int(path.parent.name)] = (int(words[11]) + int(words[12])) / CLOCK
    ours = {os.getpid()}
    for _ in range(10):  # generations
        ours |= {child for child, parent in parents.items() if parent in ours}
    others = ours - {os.getpid(), server}
    return seconds.get(server, 0.0), sum(seconds[process] for process in others)
