"""Where to start, and which keys there are: the two dialogs of the page."""

from __future__ import annotations

from typing import Any

import numpy as np
from nicegui import ui

from agents.apps.play.driver import Driver, Stage, integer
from agents.apps.play.session import MOST_CONTEXT
from agents.apps.play.show import png
from worldmodel.types import ActionSpec

THUMBS = 8
KEYS = {
    "S": "one step of whoever acts",
    "A": "one step of the agent",
    "P": "play and pause",
    "U": "undo; with Shift, ten steps",
    "R": "redo; with Shift, ten steps",
    "B": "branch: the next step opens another future",
    "V": "dream, side by side, reality",
    "G": "save a GIF",
    "N": "new start",
}


class StartDialog:
    """Choose a recorded frame, by thumbnails or slider, or a fresh reset of the environment."""

    def __init__(self, stage: Stage, driver: Driver) -> None:
        self.stage, self.driver = stage, driver
        self.recorded = stage.recorded
        self.marks: list[int] = []
        self.filling = False
        with ui.dialog() as self.dialog, ui.element("div").classes("dialog"):
            ui.html("<h2>Where does the dream begin?</h2>", sanitize=False)
            kinds = {"recorded": "Recorded frame", "real": "Real environment"}
            if self.recorded is None:
                kinds.pop("recorded")
            self.kind = ui.toggle(kinds, value=next(iter(kinds)))
            self.kind.props("unelevated no-caps spread toggle-text-color=dark color=dark")
            self.kind.classes("toggle")
            self.kind.on_value_change(self._switch)
            with ui.element("div") as self.recorded_part:
                if self.recorded is not None:
                    self._build_recorded()
            with ui.element("div") as self.real_part:
                self._build_real()
            self.context = ui.number(
                "Frames that the model sees before it dreams",
                value=stage.world.context, min=1, max=MOST_CONTEXT, precision=0,
            ).props("dense outlined")  # fmt: skip
            with ui.element("div").classes("row-of"):
                ui.button("Cancel", on_click=self.dialog.close).props(
                    "outline no-caps color=grey-5"
                )
                self.start = ui.button("Start here", icon="play_arrow", on_click=self._start)
                self.start.props("unelevated no-caps text-color=dark")
        self._switch()

    def _build_recorded(self) -> None:
        assert self.recorded is not None
        most = len(self.recorded) - 1
        with ui.element("div").classes("beside"):
            self.preview = ui.element("img").classes("preview").props('alt="The chosen frame"')
            with ui.element("div").classes("grow"):
                self.episode = ui.number(
                    f"Episode, 0 to {most}",
                    value=min(most, most // 2),
                    min=0,
                    max=most,
                    precision=0,
                ).props("dense outlined")
                self.episode.on_value_change(self._fill)
                self.about = ui.label().classes("quiet gap")
                self.row = ui.slider(min=0, max=1, value=0).props('aria-label="Row"')
                self.row.on_value_change(self._look)
                self.row_label = ui.label().classes("quiet")
        self.thumbs = []
        with ui.element("div").classes("thumbs gap"):
            for i in range(THUMBS):
                button = ui.element("button").props(f'type="button" aria-label="Frame {i + 1}"')
                button.on("click", lambda i=i: self._pick(i))
                with button:
                    self.thumbs.append(ui.element("img").props('alt=""'))

    def _build_real(self) -> None:
        ui.label(
            "A fresh reset: the dream and the real environment go on side by side under the same "
            "actions. Going back repeats the episode from its seed, which is exact where the "
            "environment is deterministic; where it is not, the page says so."
        ).classes("quiet")
        self.seed = ui.number("Seed of the reset", value=0, min=0, precision=0)
        self.seed.props("dense outlined").classes("gap")

    async def open(self) -> None:
        """Show the dialog."""
        self.driver.stop()
        self.dialog.open()
        if self.recorded is not None and not self.marks:
            await self._fill()

    def _switch(self) -> None:
        recorded = self.kind.value == "recorded"
        self.recorded_part.set_visibility(recorded)
        self.real_part.set_visibility(not recorded)

    async def _fill(self) -> None:
        """Show another episode."""
        recorded = self.recorded
        assert recorded is not None

        def read() -> tuple[int, float, list[int], list[str]]:
            episode = integer(self.episode.value, "The episode")
            recorded.check(episode)
            rewards = recorded.read(episode)["reward"]
            marks = [int(i) for i in np.linspace(0, len(rewards) - 1, THUMBS)]
            return len(rewards), float(rewards.sum()), marks, self._pictures(episode, marks)

        try:
            length, score, self.marks, pictures = await self.stage.work(read)
        except ValueError as error:
            self.driver.notify(str(error), "negative")
            return
        self.about.set_text(f"{length} frames, return {score:.1f}")
        for image, source in zip(self.thumbs, pictures, strict=True):
            _source(image, source)
        self.filling = True
        self.row.props(f"max={length - 1}")
        self.row.set_value(min(length // 3, length - 1))
        self.filling = False
        await self._look()

    async def _look(self) -> None:
        """Show the chosen row."""
        if self.filling:
            return

        def read() -> tuple[int, list[str]]:
            row = integer(self.row.value, "The row")
            return row, self._pictures(integer(self.episode.value, "The episode"), [row])

        try:
            row, pictures = await self.stage.work(read)
        except ValueError as error:
            self.driver.notify(str(error), "negative")
            return
        self.row_label.set_text(f"row {row}")
        _source(self.preview, pictures[0])

    def _pick(self, index: int) -> None:
        if index < len(self.marks):
            self.row.set_value(self.marks[index])

    async def _start(self) -> None:
        def begin() -> Any:
            context = integer(self.context.value, "The number of frames")
            if self.kind.value == "real":
                return self.driver.session.start_real(integer(self.seed.value, "The seed"), context)
            episode, row = (
                integer(self.episode.value, "The episode"),
                integer(self.row.value, "The row"),
            )
            return self.driver.session.start_recorded(episode, row, context)

        self.start.props("loading")  # some environments take seconds to make
        try:
            if await self.driver.begin(begin):
                self.dialog.close()
        finally:
            self.start.props(remove="loading")

    def _pictures(self, episode: int, rows: list[int]) -> list[str]:
        recorded, world = self.recorded, self.stage.world
        assert recorded is not None
        for row in rows:
            recorded.check(episode, row)
        return [png(world.picture(recorded.observation(episode, row))) for row in rows]


def help_dialog(action: ActionSpec) -> ui.dialog:
    """What one sees, and the keys."""
    acting = {"← ↓ →": "push the first number to -1, 0, +1 and step", "↑": "step as set"}
    if action.kind == "discrete":
        acting = {"↑": "step as chosen last"}
        if len(action.sizes) == 1:
            acting = {"1 … 9, 0": "take that action", **acting}
    rows = "".join(f"<kbd>{key}</kbd><span>{what}</span>" for key, what in (acting | KEYS).items())
    with ui.dialog() as dialog, ui.element("div").classes("dialog"):
        ui.html("<h2>What you see</h2>", sanitize=False)
        ui.label(
            "The orange picture is imagined: from the start frame on, the model sees nothing but "
            "the actions. Reward, continue and value are what it predicts. Surprise says, in nats, "
            "how far the real frame is from what the dream foretold; “one step” is the same "
            "for a model that had seen every real frame before. Both need the real environment. "
            "In the difference, mid-grey is right."
        ).classes("quiet")
        ui.html("<h2>Keys</h2>", sanitize=False)
        ui.html(f'<div class="help-list">{rows}</div>', sanitize=False)
        ui.button("Close", on_click=dialog.close).props("outline no-caps color=grey-5")
    return dialog


def _source(image: Any, source: str) -> None:
    image.props["src"] = source
    image.update()
