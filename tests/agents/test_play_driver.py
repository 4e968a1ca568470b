"""What keys, sliders and playing do, and what nonsense from a page does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from agents.apps.play import driver as driver_module
from agents.apps.play.driver import Driver, integer, number
from tests.agents.play_runs import counting, left_right, session
from worldmodel.envs import EnvConfig

CONTINUOUS = left_right(actions="box", length=50)


class Page:
    """Stands for a page: keeps what it was shown, and answers if asked to."""

    def __init__(self, env: EnvConfig, answers: bool = True) -> None:
        self.walk = session(env, steps=20)
        self.walk.start_recorded(0, 3)
        self.shown: list[int] = []
        self.told: list[str] = []
        self.playing: list[bool] = []
        self.driver = Driver(self.walk, self.work, self.draw, self.tell, self.playing.append)
        self.answers = answers

    async def work(self, call: Callable[[], Any]) -> Any:
        return call()

    def draw(self, state: dict[str, Any], number: int) -> None:
        self.shown.append(number)
        if self.answers:
            asyncio.get_running_loop().call_soon(self.driver.drawn, number)

    def tell(self, text: str, kind: str) -> None:
        self.told.append(f"{kind}: {text}")

    def keys(self, *names: str) -> list[str]:
        """Press and let go of keys; the commands left to the page."""

        async def press() -> list[str]:
            left = []
            for name in names:
                left.append(await self.driver.key({"key": name, "down": True}))
                await self.driver.key({"key": name, "down": False})
            return left

        return asyncio.run(press())

    @property
    def actions(self) -> list[list[float]]:
        return [action.tolist() for action in self.walk.actions()]


def test_arrows_push_the_first_number_and_keep_the_others() -> None:
    page = Page(counting(actions="box", length=50))
    page.driver.values = [0.25, -0.75]
    assert page.keys("ArrowLeft", "ArrowRight", "ArrowDown", "ArrowUp", "5") == [
        "",
        "",
        "",
        "",
        "5",
    ]
    assert page.actions == [[-1, -0.75], [1, -0.75], [0, -0.75], [0.25, -0.75]]


def test_digits_and_arrows_name_discrete_actions() -> None:
    page = Page(counting(length=50))
    page.keys("3", "1", "ArrowLeft", "ArrowDown", "ArrowRight", "4", "0")
    assert [int(np.argmax(a)) for a in page.actions] == [2, 0, 0, 1, 2]
    page.keys("ArrowUp")  # what was chosen last
    assert int(np.argmax(page.actions[-1])) == 2


def test_factors_are_chosen_one_by_one() -> None:
    page = Page(counting(actions="multidiscrete", length=50))
    page.driver.choice = [1, 2]
    page.keys("ArrowUp")
    assert page.actions == [[0, 1, 0, 0, 1]]
    page.driver.choice = [1, 3]
    page.keys("ArrowUp")
    page.driver.choice = [None, 0]
    page.keys("s")
    assert len(page.actions) == 1
    assert len(page.told) == 2
    assert "There is no action [1, 3]" in page.told[0]


def test_keys_go_back_branch_and_leave_the_rest_to_the_page() -> None:
    page = Page(CONTINUOUS)
    page.keys(*["ArrowLeft"] * 12)
    page.keys("u", "Backspace", "r")
    assert page.walk.node.depth == 11
    asyncio.run(page.driver.key({"key": "u", "down": True, "shift": True}))
    assert page.walk.node.depth == 1
    page.keys("b", "a", "s")
    assert len(page.walk.branches) == 2
    assert page.told == ["info: The next step opens branch B."]
    assert page.keys("p", "g", "v", "n", "?") == ["p", "g", "v", "n", "?"]


@pytest.mark.parametrize(
    "event", [None, 3, "u", {}, {"key": None, "down": 1}, {"key": ["u"], "down": True}]
)
def test_nonsense_from_the_page_does_nothing(event: Any) -> None:
    page = Page(CONTINUOUS)
    page.keys("ArrowLeft")
    asyncio.run(page.driver.key(event))
    asyncio.run(page.driver.jump(event))
    asyncio.run(page.driver.set_view(event))
    for name in ("who", "eyes", "mode"):
        page.driver.set_choice(name, event)
    page.driver.drawn(event)
    assert (len(page.walk.nodes), page.walk.at, page.driver.view) == (2, 1, "dream")
    assert (page.driver.who, page.driver.eyes, page.driver.mode) == ("you", "dream", "mode")
    assert all(text.startswith("negative: There is no branch") for text in page.told)


def test_numbers_of_a_page_are_checked() -> None:
    assert (number(2), number(-0.5), integer(3.0, "It")) == (2.0, -0.5, 3)
    for bad in (None, "1", True, float("nan"), float("inf"), [1]):
        with pytest.raises(ValueError, match="not a number"):
            number(bad)
    with pytest.raises(ValueError, match=r"The row must be a whole number, not 2.5"):
        integer(2.5, "The row")
    page = Page(CONTINUOUS)
    page.driver.values = [float("nan")]
    page.keys("ArrowUp")
    assert page.actions == []
    assert len(page.told) == 1


def test_playing_keeps_its_pace_and_stops_when_told() -> None:
    page = Page(CONTINUOUS)

    async def play() -> float:
        page.driver.set_speed(50)
        page.driver.set_choice("who", "agent")
        started = time.perf_counter()
        task = asyncio.create_task(page.driver.play())
        while len(page.actions) < 10:
            await asyncio.sleep(0.005)
        page.driver.stop()
        await task
        return time.perf_counter() - started

    assert asyncio.run(play()) > 9 / 50 * 0.8  # no faster than asked
    assert page.playing == [True, False]
    assert page.told == []


def test_a_held_key_acts_while_playing() -> None:
    page = Page(CONTINUOUS)

    async def play() -> None:
        page.driver.set_speed(60)
        page.driver.set_choice("who", "random")
        task = asyncio.create_task(page.driver.play())
        await asyncio.sleep(0)
        await page.driver.key({"key": "ArrowRight", "down": True})
        before = len(page.actions)
        while len(page.actions) < before + 4:
            await asyncio.sleep(0.005)
        held = page.actions[before + 1 :]
        assert held == [[1.0]] * len(held)
        await page.driver.key({"key": "", "down": False})  # the window lost its focus
        before = len(page.actions)
        while len(page.actions) < before + 4:
            await asyncio.sleep(0.005)
        page.driver.stop()
        await task
        assert [1.0] not in page.actions[before + 1 :]

    asyncio.run(play())


def test_playing_never_runs_ahead_of_the_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "PATIENCE", 0.1)
    page = Page(CONTINUOUS, answers=False)
    asyncio.run(page.driver.play())
    assert len(page.actions) == 2  # one drawn too late, one in advance
    assert page.playing == [True, False]


def test_a_browser_that_left_is_not_drawn_for() -> None:
    page = Page(CONTINUOUS)

    async def leave() -> None:
        task = asyncio.create_task(page.driver.play())
        while len(page.actions) < 2:
            await asyncio.sleep(0.001)
        page.driver.close()
        await asyncio.wait_for(task, 2)
        drawn = len(page.shown)
        assert not await page.driver.step()
        assert len(page.shown) == drawn

    asyncio.run(leave())


def test_what_goes_wrong_becomes_a_message() -> None:
    page = Page(CONTINUOUS)
    page.walk.close()

    def fail() -> None:
        page.walk.start_recorded(77, 0)

    assert not asyncio.run(page.driver.begin(fail))
    assert page.told == ["negative: There is no episode 77: they are numbered 0 to 0."]
