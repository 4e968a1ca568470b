"""The page of one browser: where things stand, and which of them calls what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nicegui import background_tasks, ui
from nicegui.element import Element

from agents.apps.play import show
from agents.apps.play.dialogs import StartDialog, help_dialog
from agents.apps.play.driver import FASTEST, Driver, Stage, number
from agents.apps.play.session import VIEWS, Session
from worldmodel.envs.boards import board_width

WEB = Path(__file__).with_name("web")
# Until the first picture is there: the page's own parts take seconds, and so may the first start.
WAITING = (
    '<p id="waiting" role="status" style="position:fixed;inset:40% 0 auto;z-index:9;margin:0;'
    'text-align:center;font:16px sans-serif;color:#9aa3b2;pointer-events:none">'
    "Making the first picture ...</p>"
)
VIEW_NAMES = {"dream": "Dream", "both": "Side by side", "real": "Reality"}
WHO_NAMES = {"you": "You", "duel": "Duel", "agent": "Agent", "random": "Random"}


class Screen(Element, component="web/screen.js"):
    """Pictures, numbers and curves; also listens to the keyboard."""


class Branches(Element, component="web/branches.js"):
    """The futures that were kept."""


class Page:
    """Builds the page of one browser around one walk. Made inside a page function of NiceGUI."""

    def __init__(self, stage: Stage, session: Session) -> None:
        self.stage, self.session = stage, session
        self.driver = Driver(session, stage.work, self._draw, self.notify, self._playing)
        self.spec = self.driver.spec
        ui.add_css(WEB / "page.css")
        ui.add_body_html(WAITING)
        ui.colors(primary="#ff8c00", dark="#181c23", dark_page="#0f1217")
        self.start_dialog = StartDialog(stage, self.driver)
        self.help = help_dialog(self.spec)
        self._build_top()
        with ui.element("div").classes("play-grid"):
            self.screen = Screen().on("drawn", self._on_drawn).on("key", self._on_key)
            with ui.element("div").classes("side"):
                self._build_view()
                self._build_act()
                self._build_time()
            with _card("Branches").classes("kept"):
                self.branches = Branches().on("jump", lambda e: self.driver.jump(e.args))

    def notify(self, text: str, kind: str = "negative") -> None:
        """A message on the page; kind: info, positive or negative."""
        if not self.driver.gone:
            with self.screen:
                ui.notify(text, type=kind, multi_line=True, timeout=4000)  # type: ignore[arg-type]

    # Layout.

    def _build_top(self) -> None:
        with ui.element("header").classes("top"):
            with ui.element("div").classes("name"):
                _html("<h1>Step into the <b>dream</b></h1>")
                ui.label(self.stage.title).classes("task")
            new = ui.button("New start", icon="restart_alt", on_click=self.start_dialog.open)
            new.props("unelevated no-caps dense text-color=dark").classes("q-px-sm")
            ask = ui.button(icon="help_outline", on_click=self.help.open)
            ask.props('flat round dense color=grey-5 aria-label="Help and keys"')

    def _build_view(self) -> None:
        with _card("What you see"):
            self.view_toggle = _toggle(VIEW_NAMES, "dream", self.driver.set_view)
            self.view_hint = ui.label().classes("quiet gap")

    def _build_act(self) -> None:
        driver = self.driver
        world = self.stage.world
        possible = {"agent": world.acts, "duel": world.acts and world.duels}
        names = {who: name for who, name in WHO_NAMES.items() if possible.get(who, True)}
        first = "duel" if "duel" in names else "you"
        with _card("Who acts"):
            _toggle(names, first, self._set_who)
            with ui.element("div").classes("gap") as self.yours:
                if self.spec.kind == "continuous":
                    self._build_sliders()
                elif len(self.spec.sizes) == 1:
                    self._build_buttons()
                else:
                    self._build_selects()
            with ui.element("div").classes("gap") as self.theirs:
                self._build_agent()
            with ui.element("div").classes("row-of gap"):
                _button("Step", "skip_next", driver.step)
                self.play = _button("Play", "play_arrow", self._toggle_play, "unelevated")
                self.play.props("text-color=dark")
            with ui.element("div").classes("act-row gap"):
                ui.label("Speed")
                speed = ui.slider(min=1, max=FASTEST, value=driver.speed)
                speed.props('aria-label="Steps per second"').on_value_change(self._set_speed)
                self.speed_label = ui.label(f"{driver.speed:.0f}/s").classes("value")
        self._set_who(first)

    def _build_sliders(self) -> None:
        self.value_labels: list[ui.label] = []
        with ui.element("div").classes("acts"):
            for i in range(self.spec.size):
                with ui.element("div").classes("act-row"):
                    ui.label(f"Action {i + 1}" if self.spec.size > 1 else "Action")
                    slider = ui.slider(min=-1, max=1, step=0.01, value=0)
                    slider.props(f'aria-label="Action {i + 1}" selection-color=transparent')
                    slider.on_value_change(lambda e, i=i: self._set_value(i, e.value))
                    self.value_labels.append(ui.label("+0.00").classes("value"))
        with ui.element("div").classes("row-of gap"):
            for key, text in (("ArrowLeft", "← -1"), ("ArrowDown", "↓ 0"), ("ArrowRight", "+1 →")):
                self._holdable(text, key)
        first = "the first number" if self.spec.size > 1 else "the action"
        _keys(f"The arrows push {first} and step; <kbd>↑</kbd> steps with the slider.")

    def _build_buttons(self) -> None:
        width = board_width(self.stage.world.policy.env)
        row = ui.element("div").classes("row-of wrap")
        if width:  # the buttons lie as the cells do
            row.style(f"display: grid; grid-template-columns: repeat({width}, 1fr)")
        with ui.element("div").classes("acts"), row:
            self.choices = [self._holdable(str(i), f"#{i}") for i in range(self.spec.size)]
        last = min(self.spec.size, 10)
        arrows = "; so do the arrows" if self.spec.size <= 3 else ""
        _keys(
            f"Keys <kbd>1</kbd> to <kbd>{last % 10}</kbd> take actions 0 to {last - 1}{arrows}. "
            "Step takes the one chosen last."
            + " In a duel the agent answers; <kbd>A</kbd> lets it begin."
            * self.stage.world.duels
        )

    def _build_selects(self) -> None:
        self.factors: list[ui.select] = []
        with ui.element("div").classes("acts"):
            for i, size in enumerate(self.spec.sizes):
                select = ui.select(list(range(size)), value=0, label=f"Factor {i + 1}")
                select.on_value_change(lambda e, i=i: self._set_factor(i, e.value))
                select.props("dense options-dense outlined").classes("w-full")
                self.factors.append(select)
        _keys("Choose one of each, then step with <kbd>↑</kbd> or <kbd>S</kbd>.")

    def _build_agent(self) -> None:
        modes = {"mode": "Likeliest action", "sample": "Sampled"}
        _toggle(modes, "mode", lambda v: self.driver.set_choice("mode", v), "grey-8")
        eyes = {"dream": "Sees the dream", "real": "Sees reality"}
        self.eyes = _toggle(eyes, "dream", lambda v: self.driver.set_choice("eyes", v), "grey-8")
        self.eyes.classes("gap")

    def _build_time(self) -> None:
        driver = self.driver
        with _card("Time"):
            with ui.element("div").classes("row-of"):
                self.undo = _button("Undo", "undo", driver.undo)
                self.redo = _button("Redo", "redo", driver.redo)
            with ui.element("div").classes("row-of gap"):
                _button("Branch here", "call_split", driver.branch)
                self.save = _button("Save GIF", "download", self._save)
            _keys("Acting after going back opens a new branch; nothing is lost.")

    def _holdable(self, text: str, key: str) -> ui.button:
        """A button whose press steps once or, while playing, acts for as long as it is held."""
        driver = self.driver
        button = _button(text, None, lambda: None if driver.playing else driver.press(key))
        button.on("pointerdown", lambda: driver.press(key) if driver.playing else None, [])
        for event in ("pointerup", "pointerleave", "pointercancel"):
            button.on(event, lambda: setattr(driver, "held", ""), [])
        return button

    # From the page.

    async def _on_drawn(self, event: Any) -> None:
        self.driver.drawn(event.args)
        if event.args != 0:
            return
        if self.session.nodes:  # the same page, built once more by the browser
            await self.driver.run(lambda: None)
        else:
            begun = await self.driver.begin(lambda: self.stage.first_start(self.session))
            if not begun and not self.driver.gone:
                self.screen.run_method("settle")  # the message says why there is no picture

    async def _on_key(self, event: Any) -> None:
        command = await self.driver.key(event.args)
        if command == "p":
            self._toggle_play()
        elif command == "g":
            await self._save()
        elif command == "v" and self.session.has_real:
            after = VIEWS.index(self.driver.view) + 1
            self.view_toggle.set_value(VIEWS[after % len(VIEWS)])
        elif command == "n":
            await self.start_dialog.open()
        elif command == "?":
            self.help.open()

    def _toggle_play(self) -> None:
        if self.driver.playing:
            self.driver.stop()
        else:
            background_tasks.create(self.driver.play(), name="play")

    async def _save(self) -> None:
        driver = self.driver
        self.save.props("loading")
        try:
            path, data = await self.stage.work(
                lambda: show.save_film(self.session, self.stage.run, driver.view, driver.speed)
            )
        except (ValueError, OSError) as error:
            self.notify(f"The film was not saved: {error}")
            return
        finally:
            self.save.props(remove="loading")
        if not driver.gone:
            with self.screen:
                ui.download.content(data, path.name, "image/gif")
            self.notify(f"Saved as {path}", "positive")

    def _set_value(self, index: int, value: Any) -> None:
        try:
            self.driver.values[index] = number(value)
        except ValueError as error:
            self.notify(str(error))
        self.value_labels[index].set_text(f"{self.driver.values[index]:+.2f}")

    def _set_factor(self, index: int, value: Any) -> None:
        self.driver.choice[index] = value

    def _set_who(self, who: Any) -> None:
        self.driver.set_choice("who", who)
        self.yours.set_visibility(self.driver.who in ("you", "duel"))
        self.theirs.set_visibility(self.driver.who == "agent")

    def _set_speed(self, event: Any) -> None:
        try:
            self.driver.set_speed(event.value)
        except ValueError as error:
            self.notify(str(error))
        self.speed_label.set_text(f"{self.driver.speed:.0f}/s")

    # To the page.

    def _draw(self, state: dict[str, Any], number: int) -> None:
        rows = state.pop("branches")
        state["n"], state["branch"] = number, rows["rows"][rows["on"]]["label"]
        self.screen.run_method("show", state)
        self.branches.run_method("show", rows)
        _enable(self.undo, rows["depth"] > 0)
        _enable(self.redo, rows["depth"] < rows["rows"][rows["on"]]["tip"])
        if state["mask"] is not None:
            self._obey([value > 0.5 for value in state["mask"]])
        real = self.session.has_real and self.stage.world.shows
        if self.view_toggle.value != self.driver.view:
            self.view_toggle.set_value(self.driver.view)
        if self.view_toggle.enabled != real or not self.view_hint.text:
            _enable(self.view_toggle, real)
            self.eyes.set_visibility(real)
            self.view_hint.set_text(
                "Reality takes every action that the dream takes."
                if real
                else "Recorded frames cannot be acted in: for reality, use New start."
                if self.stage.world.shows
                else "This world has no decoder: its dream has numbers and no picture."
            )

    def _obey(self, allowed: list[bool]) -> None:
        """Offer only the actions that a mask [A] allows."""
        if len(self.spec.sizes) == 1:
            for button, free in zip(self.choices, allowed, strict=True):
                _enable(button, free)
            return
        for i, (size, select) in enumerate(zip(self.spec.sizes, self.factors, strict=True)):
            first = sum(self.spec.sizes[:i])
            options = [c for c in range(size) if allowed[first + c]]
            if select.options != options:
                kept = select.value if select.value in options else options[0]
                select.set_options(options, value=kept)

    def _playing(self, playing: bool) -> None:
        self.play.set_text("Pause" if playing else "Play")
        self.play.props(f"icon={'pause' if playing else 'play_arrow'}")


def _card(title: str) -> Any:
    card = ui.element("section").classes("card")
    with card:
        _html(f"<h2>{title}</h2>")
    return card


def _toggle(options: dict[str, str], value: str, call: Any, colour: str = "primary") -> ui.toggle:
    toggle = ui.toggle(options, value=value, on_change=lambda e: call(e.value))
    toggle.props(f"unelevated no-caps spread toggle-color={colour} color=dark text-color=grey-4")
    if colour == "primary":
        toggle.props("toggle-text-color=dark")
    return toggle.classes("w-full toggle")


def _button(text: str, icon: str | None, call: Any, look: str = "outline") -> ui.button:
    return ui.button(text, icon=icon, on_click=lambda: call()).props(f"{look} no-caps")


def _enable(element: Any, value: bool) -> None:
    if element.enabled != value:
        element.set_enabled(value)


def _html(text: str) -> None:
    ui.html(text, sanitize=False)


def _keys(text: str) -> None:
    ui.html(text, sanitize=False).classes("keys")
