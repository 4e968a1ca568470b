"""What one person does to a walk: acting, playing by itself, keys. No page here either.

Whatever touches the walk goes through `work`, which runs it in the one thread that the models and
environments belong to. What was asked wrongly, or failed, becomes a message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from agents.apps.episodes import Episodes
from agents.apps.play.session import EYES, VIEWS, Session
from agents.apps.play.show import shown
from agents.apps.play.world import World
from worldmodel.config import RunError

FASTEST = 60.0  # steps a second that one can ask for
PATIENCE = 5.0  # seconds without a picture drawn, after which playing stops
LEAP = 10  # steps of a long undo
WHO = ("you", "duel", "agent", "random")  # duel: you, and the agent answers
MODES = ("mode", "sample")
PUSH = {"ArrowLeft": -1.0, "ArrowRight": 1.0, "ArrowDown": 0.0}  # of the first number
AS_SET = "ArrowUp"  # act with what the sliders or selects say
LARGEST = 1e300
REPEATING = ("u", "Backspace", "r", "s", "a")  # keys that may be held down

Work = Callable[[Callable[[], Any]], Awaitable[Any]]


class Stage:
    """What all browsers share. run: the run folder. seed: of the walks. One thread belongs to all
    models and environments."""

    def __init__(self, world: World, recorded: Episodes | None, run: Path, seed: int) -> None:
        self.world, self.recorded, self.run, self.seed = world, recorded, run, seed
        self.title = f"{run.name} · {world.policy.env.id}"
        # Models and replay know one thread, and some renderers live in the thread that made them.
        self._thread = ThreadPoolExecutor(1, "dream")

    async def work(self, call: Callable[[], Any]) -> Any:
        """Run a call in the one thread of models and environments."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def first_start(self, session: Session) -> None:
        """Where a page begins by itself: the middle recorded episode, or a fresh reset."""
        if self.recorded is None:
            session.start_real(self.seed, self.world.context)
        else:
            episode = (len(self.recorded) - 1) // 2
            session.start_recorded(episode, (int(self.recorded.lengths[episode]) - 1) // 3)

    def close(self, sessions: Iterable[Session]) -> None:
        """Let go of the environments of these walks, and of the thread."""
        for session in sessions:
            self._thread.submit(session.close)
        self._thread.shutdown(wait=True)


class Driver:
    """One person's hands. draw: shows what `agents.apps.play.show.shown` returned, and a number by
    which `drawn` answers. notify: shows a message and its kind (info, positive, negative). changed:
    is called when playing starts and stops."""

    def __init__(
        self,
        session: Session,
        work: Work,
        draw: Callable[[dict[str, Any], int], None],
        notify: Callable[[str, str], None],
        changed: Callable[[bool], None],
    ) -> None:
        self.session, self.work = session, work
        self._show, self.notify, self._changed = draw, notify, changed
        self.spec = session.world.spec.action
        self.view, self.eyes, self.who, self.mode = "dream", "dream", "you", "mode"
        self.speed = 10.0
        self.values: list[Any] = [0.0] * self.spec.size  # continuous: one number each
        self.choice: list[Any] = [0] * len(self.spec.sizes)  # discrete: one class of each factor
        self.held = ""  # the acting key that is down while playing
        self.playing = self.busy = self.gone = False
        self.sent = self.seen = 0
        self._news = asyncio.Event()

    async def run(self, call: Callable[[], Any]) -> bool:
        """Do something to the walk, then draw; whether it went well."""
        if self.gone:
            return False
        self.busy = True
        try:
            state = await self.work(lambda: (call(), shown(self.session, self.view))[1])
        except (ValueError, RunError) as error:
            self.notify(str(error), "negative")
            return False
        finally:
            self.busy = False
        if not self.gone:
            self.sent += 1
            self._show(state, self.sent)
        return True

    async def begin(self, call: Callable[[], Any]) -> bool:
        """Start anew somewhere; beside reality, where it starts there."""
        self.stop()

        def start() -> None:
            call()
            self.view = self.session.view("both")

        return await self.run(start)

    def close(self) -> None:
        """The browser went away."""
        self.gone, self.playing = True, False
        self._news.set()

    # Acting.

    def action(self) -> np.ndarray:
        """What acts now, encoded [A]: the key that is held, or who was chosen to act."""
        if self.held or self.who in ("you", "duel"):
            return self.own_action(self.held)
        if self.who == "random":
            return self.session.random_action()
        return self.session.policy_action(
            self.eyes if self.session.has_real else "dream", self.mode
        )

    def own_action(self, key: str = "") -> np.ndarray:
        """What the sliders or selects say, or an acting key; ValueError where that is nothing."""
        if self.spec.kind == "continuous":
            values = [number(value) for value in self.values]
            if key in PUSH:
                values[0] = PUSH[key]
            return np.array(values, np.float32)
        choice = [int(key[1:])] if key.startswith("#") else self.choice
        fits = zip(choice, self.spec.sizes, strict=True)
        if any(type(c) is not int or not 0 <= c < n for c, n in fits):
            raise ValueError(
                f"There is no action {choice}; the classes of each factor are {self.spec.sizes}."
            )
        return self.spec.encode(choice[0] if len(choice) == 1 else choice)

    async def step(self) -> bool:
        """One step of whoever acts."""
        return await self.run(lambda: self._act(self.action()))

    def _act(self, action: np.ndarray) -> None:
        self.session.act(action)
        if self.who == "duel" and self.session.going:
            self.session.act(self.session.policy_action(self.eyes, self.mode))

    async def press(self, key: str) -> None:
        """One step of one's own, whoever acts otherwise; while playing, the key counts until it is
        let go."""
        if key.startswith("#"):
            self.choice = [int(key[1:])]
        if self.playing:
            self.held = key
        else:
            await self.run(lambda: self._act(self.own_action(key)))

    async def agent_step(self) -> None:
        """One step of the agent."""
        await self.run(lambda: self.session.act(self.session.policy_action(mode=self.mode)))

    async def undo(self, steps: int = 1) -> None:
        """Back."""
        self.stop()
        await self.run(lambda: self.session.undo(steps))

    async def redo(self, steps: int = 1) -> None:
        """Forward again along the same branch."""
        self.stop()
        await self.run(lambda: self.session.redo(steps))

    async def branch(self) -> None:
        """Let the next step open a branch."""
        self.stop()
        labels: list[str] = []
        if await self.run(lambda: labels.append(self.session.branch())):
            self.notify(f"The next step opens branch {labels[0]}.", "info")

    async def jump(self, asked: Any) -> None:
        """To {branch, depth}, as the page sent it."""
        self.stop()
        place = asked if isinstance(asked, dict) else {}
        branch, depth = place.get("branch"), place.get("depth")
        await self.run(lambda: self.session.jump_in(branch, depth))  # type: ignore[arg-type]

    async def set_view(self, view: Any) -> None:
        """dream, both or real."""
        if view in VIEWS and view != self.view:
            self.view = view
            await self.run(lambda: None)

    def set_choice(self, name: str, value: Any) -> None:
        """Who acts, what the agent sees and how it decides: only what exists is taken."""
        known = {"who": WHO, "eyes": EYES, "mode": MODES}[name]
        if value in known:
            setattr(self, name, value)

    def set_speed(self, value: Any) -> None:
        """Steps per second of playing; ValueError unless it is a number."""
        self.speed = min(FASTEST, max(1.0, number(value)))

    # Playing by itself.

    def stop(self) -> None:
        """Stop playing."""
        self.held = ""
        if self.playing:
            self.playing = False
            self._changed(False)

    async def play(self) -> None:
        """Step at the chosen speed until stopped, and never more than one picture ahead of the
        browser."""
        self.playing = True
        self._changed(True)
        due = time.perf_counter()
        try:
            while self.playing and await self.step() and await self._drawn(self.sent - 1):
                due = max(due + 1.0 / self.speed, time.perf_counter() - 0.1)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
        finally:
            if not self.gone:
                self.stop()

    def drawn(self, number: Any) -> None:
        """The browser has drawn this picture."""
        if type(number) is int and self.seen <= number <= self.sent:
            self.seen = number
            self._news.set()

    async def _drawn(self, number: int) -> bool:
        """Wait until the browser has drawn this picture; False where it no longer draws."""
        until = time.perf_counter() + PATIENCE
        while self.seen < number and not self.gone:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), max(0.0, until - time.perf_counter()))
            except TimeoutError:
                return False
        return not self.gone

    # Keys.

    def acting(self, key: str) -> str:
        """The action behind a key: a push, "#3" for the fourth class, AS_SET, or "" for none."""
        if key == AS_SET or (self.spec.kind == "continuous" and key in PUSH):
            return key
        if self.spec.kind == "continuous" or len(self.spec.sizes) > 1:
            return ""
        index, size = -1, self.spec.size
        if len(key) == 1 and key in "0123456789":
            index = (int(key) - 1) % 10
        elif size <= 3:  # left, (nothing,) right, as small environments number them
            arrows = {"ArrowLeft": 0, "ArrowRight": size - 1, "ArrowDown": 1 if size == 3 else -1}
            index = arrows.get(key, -1)
        return f"#{index}" if 0 <= index < size else ""

    async def key(self, event: Any) -> str:
        """A key went down or up: {key, down, repeat, shift}. Returns a command that only the page
        can do ("p" play, "g" film, "v" view, "n" start, "?" help), or ""."""
        event = event if isinstance(event, dict) else {}
        key, repeat = str(event.get("key", "")), bool(event.get("repeat"))
        act = self.acting(key)
        if not event.get("down"):
            if not key or act == self.held:
                self.held = ""
            return ""
        if repeat and (self.busy or not (act or key in REPEATING)):
            return ""
        if act:
            await self.press(act)
            return ""
        leap = LEAP if event.get("shift") else 1
        commands: dict[str, Callable[[], Awaitable[Any]]] = {
            "u": lambda: self.undo(leap),
            "Backspace": lambda: self.undo(leap),
            "r": lambda: self.redo(leap),
            "b": self.branch,
            "s": self.step,
            "a": self.agent_step,
        }
        if key in commands:
            await commands[key]()
            return ""
        return key


def number(value: Any) -> float:
    """A finite number that came from a page; ValueError for anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not abs(value) <= LARGEST:  # a NaN fails too, and so does 10**400
        raise ValueError(f"{value!r:.80} is not a number.")
    return float(value)


def integer(value: Any, what: str) -> int:
    """A whole number that came from a page (perhaps as 3.0); ValueError for anything else."""
    given = number(value)
    if given != int(given):
        raise ValueError(f"{what} must be a whole number, not {given:g}.")
    return int(given)
