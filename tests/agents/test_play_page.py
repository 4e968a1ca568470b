"""The page of scripts/play.py in a headless Chromium: start, act, branch, jump, save, leave."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import imageio.v2 as imageio
import numpy as np
import pytest

from agents.apps.play.cli import listen
from tests.agents.play_runs import left_right, run_folder

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
MISSING = [name for name in ("playwright", "nicegui") if importlib.util.find_spec(name) is None]
WAIT = 20_000  # milliseconds
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium"
)


class Server:
    """scripts/play.py in a process of its own."""

    def __init__(self, run: Path, *words: str) -> None:
        command = [sys.executable, str(ROOT / "scripts" / "play.py"), f"run={run}", "port=0"]
        self.process = subprocess.Popen(
            [*command, *words],
            cwd=run.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.url = self.wait_for(r"Step into the dream: (\S+)")

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def wait_for(self, pattern: str, seconds: float = 40) -> str:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = re.search(pattern, "".join(self.lines))
            if found:
                return found.group(found.lastindex or 0)
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no '{pattern}' in:\n{''.join(self.lines)}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """End it as Ctrl-C does; its exit code."""
        self.process.send_signal(how)
        code = self.process.wait(20)
        self.reader.join(5)
        return code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    env = left_right(actions="box", length=30)
    return run_folder(tmp_path_factory.mktemp("play") / "tiny", env)


@needs_browser
def test_ten_actions_a_branch_a_jump_a_film_and_a_clean_end(run: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    server = Server(run, "patience=0.5")
    asked: list[str] = []
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        at_step(page, 0)
        for i, key in enumerate(["ArrowLeft", "ArrowRight"] * 5):
            page.keyboard.press(key)
            at_step(page, i + 1)
        main = picture(page)
        assert number(page, "reward") is not None
        assert number(page, "surprise") is None  # there is no reality beside recorded frames

        for _ in range(4):
            page.get_by_role("button", name="Undo").click()
        at_step(page, 6)
        page.get_by_role("button", name="+1 →").click()
        at_step(page, 7)
        expect(page.locator(".branch")).to_have_count(2)  # drawn after the picture
        page.locator("[data-branch=A]").click()
        at_step(page, 10)
        expect(page.locator(".shots .dream img")).to_have_attribute("src", main)  # the very same

        with page.expect_download() as download:
            page.get_by_role("button", name="Save GIF").click()
        saved = tmp_path / "film.gif"
        download.value.save_as(saved)
        written = run / "play" / download.value.suggested_filename
        assert saved.read_bytes() == written.read_bytes()
        frames = imageio.mimread(saved)
        assert len(frames) > 5
        assert len({np.asarray(frame).tobytes() for frame in frames}) > 5

        start_in_reality(page)
        expect(page.locator(".shots figure")).to_have_count(3)
        page.get_by_role("button", name="Random", exact=True).click()
        page.get_by_role("button", name="Play", exact=True).click()
        page.wait_for_function("+document.querySelector('.dream-screen').dataset.step >= 8")
        page.get_by_role("button", name="Pause").click()
        assert number(page, "surprise") is not None
        shot = page.screenshot(path=tmp_path / "page.png")
        assert len(shot) > 20_000  # not a blank page
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 1280
        for size in ((390, 844), (1280, 900)):
            page.set_viewport_size({"width": size[0], "height": size[1]})
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        page.close()
        server.wait_for("A browser left; 0 remain.")  # and its environment is closed
        browser.new_page().goto(server.url)
        with pytest.raises(OSError, match="400"):  # a page elsewhere that reaches for this one
            urlopen(Request(server.url, headers={"Host": "evil.example"}))
        assert server.stop() == 0  # Ctrl-C, while somebody looks
        browser.close()
    assert_nothing_is_left(server)
    hosts = {urlparse(url).hostname for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}
    assert errors == []


def start_in_reality(page: Any) -> None:
    """New start, at a fresh reset."""
    page.get_by_role("button", name="New start").click()
    page.locator(".thumbs img[src]").first.wait_for()
    page.get_by_role("button", name="Real environment").click()
    page.get_by_label("Seed of the reset").fill("3")
    page.get_by_role("button", name="Start here").click()
    at_step(page, 0)
    page.locator(".dialog").wait_for(state="hidden")


def at_step(page: Any, step: int) -> None:
    page.locator(f".dream-screen[data-step='{step}'] .shots img").first.wait_for()


def picture(page: Any) -> str:
    return page.locator(".shots .dream img").get_attribute("src")


def number(page: Any, name: str) -> float | None:
    text = page.locator(f".tile[data-name={name}] .number").inner_text()
    found = re.match(r"[\u2212-]?[\d.]+", text)
    return float(found.group().replace("\u2212", "-")) if found else None


def test_a_kill_ends_it_cleanly_an_open_address_is_warned_of_an_unknown_one_leads_back(
    run: Path,
) -> None:
    made = Server(run, "host=0.0.0.0")
    assert "warning: host=0.0.0.0 is open to the network" in "".join(made.lines)
    with pytest.raises(HTTPError, match="404") as refused:
        urlopen(f"http://127.0.0.1:{urlparse(made.url).port}/non<sense")
    text = refused.value.read().decode()
    assert f"<title>{run.name} · " in text
    assert "There is no page '/non&lt;sense'. <a href='/'>The dream is at /</a>." in text
    assert made.stop(signal.SIGTERM) == 128 + signal.SIGTERM
    assert_nothing_is_left(made)


def assert_nothing_is_left(server: Server) -> None:
    """No traceback, no process of its group, and its port is free again."""
    text = "".join(server.lines)
    assert "Traceback" not in text
    assert text.removesuffix("stopped by SIGTERM.\n").endswith("The page is closed.\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(server.process.pid, 0)
    listen("127.0.0.1", urlparse(server.url).port or 0).close()
