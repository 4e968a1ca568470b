"""`what=play`: how fast one steps through a dream: the walk alone, and the page in a browser."""

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
from scripts.studies.bench_timing import timed
from worldmodel.accel import devices
from worldmodel.config import RunError, check_ranges

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SERVER = (
    "import sys; from agents.apps.play.cli import play_command as command; "
    "sys.exit(command(print, sys.argv[1:]))"
)
PAINTED = "+document.querySelector('.dream-screen').dataset.painted"


@dataclass
class Settings:
    """run: folder of a trained run. steps: of one window. windows: the median of which counts.
    seconds: that the page plays, in each view; 0 leaves the browser out."""

    run: str = MISSING
    steps: int = 100
    windows: int = 5
    seconds: float = 10.0
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        check_ranges(self, {"steps": (1, 1e9), "windows": (1, 1e6), "seconds": (0, 1e6)})


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """Steps per second of the agent acting, and milliseconds of CPU for each: of the walk, of the
    walk with all that a page is sent for it, and as a headless Chromium on this machine paints
    them. The CPU times say, on a busy machine, what a quiet one would do."""
    devices.set_threads(settings.threads)
    world, recorded = open_run(Path(settings.run), settings.device, 0, lambda text: None)
    starts: dict[str, Callable[[Session], Any]] = {"both": lambda walk: walk.start_real(0)}
    if recorded is not None:
        starts = {"dream": lambda walk: walk.start_recorded(0, 0), **starts}
    for view, start in starts.items():
        walk = Session(world, recorded)
        start(walk)
        for name, look in (("step", False), ("step and show", True)):
            yield {"figure": name, "view": view, **_walked(settings, walk, view, look)}
        walk.close()
    if settings.seconds:
        yield from _page(settings, list(starts))


def _walked(settings: Settings, walk: Session, view: str, look: bool) -> dict[str, float]:
    """Medians over the windows, each from the start anew."""

    def step() -> None:
        walk.act(walk.policy_action())
        if look:
            shown(walk, view)

    windows = []
    for _ in range(settings.windows + 1):  # the first one warms up
        walk.undo(settings.steps)
        windows.append(timed(time.perf_counter, step, settings.steps))
    wall, cpu = (statistics.median(found) for found in zip(*windows[1:], strict=True))
    return {"steps_per_s": round(1 / wall, 1), "cpu_ms": round(1e3 * cpu, 2)}


def _page(settings: Settings, views: list[str]) -> Iterator[dict[str, Any]]:
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None or importlib.util.find_spec("playwright") is None:
        yield {"figure": "page", "left_out": "no Chromium, or no playwright (the extra dev)"}
        return
    from playwright.sync_api import sync_playwright

    with _server(settings) as (address, server), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.wait_for_selector(".shots img")
        for view in views:
            figure = {"figure": "page", "view": view}
            yield {**figure, **_played(page, server, settings.seconds, view)}
        browser.close()


@contextlib.contextmanager
def _server(settings: Settings) -> Iterator[tuple[str, int]]:
    """The page's address, and the number of the process that serves it."""
    words = [f"run={settings.run}", "port=0", f"device={settings.device}"]
    command = [sys.executable, "-u", "-c", SERVER, *words, f"threads={settings.threads}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        lines = (re.search(r"Step into the dream: (\S+)", line) for line in server.stdout)
        found = next(filter(None, lines), None)
        if found is None:
            raise RunError("The page did not come up; try scripts/play.py by hand.")
        yield found.group(1), server.pid
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
    before, began, spent = page.evaluate(PAINTED), time.perf_counter(), _cpu_seconds(server)
    time.sleep(seconds)
    painted, passed = page.evaluate(PAINTED) - before, time.perf_counter() - began
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
            process = int(path.parent.name)
            parents[process] = int(words[1])
            seconds[process] = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    ours = {os.getpid()}
    for _ in range(10):  # generations
        ours |= {child for child, parent in parents.items() if parent in ours}
    others = ours - {os.getpid(), server}
    return seconds.get(server, 0.0), sum(
        seconds[process] for process in others if process in seconds
    )
