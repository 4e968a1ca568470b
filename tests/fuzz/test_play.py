"""What a browser may send to the page of scripts/play.py, in any order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.apps.play import show
from agents.apps.play.cli import PlayConfig, is_local, listen
from agents.apps.play.driver import Driver, integer, number
from agents.apps.play.session import MOST_CONTEXT, Session
from tests.agents.play_runs import counting, session
from tests.fuzz.common import ARRAYS, JSON, ODD_FLOATS, ODD_INTS, SCALARS, WORDS, cases, ours
from worldmodel import config

# Whatever JSON can say, and now and then what the page itself would send.
KEYS = st.sampled_from(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "u", "r", "b", "s", "a",
                        "p", "g", "v", "n", "?", "1", "2", "3", "0", "Backspace", "#1", "#-1",
                        "#x", "", "٣", "²", "x" * 1000])  # fmt: skip
WHOLE = st.one_of(st.integers(-2, 9), st.just(3.0), ODD_INTS, ODD_FLOATS, JSON)
EVENTS = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {"key": st.one_of(KEYS, KEYS, JSON), "down": st.one_of(st.just(True), st.booleans(), JSON)},
        optional={"repeat": st.booleans(), "shift": st.booleans()},
    ),
)
ASKED = st.one_of(
    st.tuples(st.just("key"), EVENTS),
    st.tuples(st.just("key"), EVENTS),
    st.tuples(st.just("jump"), st.one_of(
        JSON, st.fixed_dictionaries({"branch": WHOLE, "depth": WHOLE}),
        st.fixed_dictionaries({"branch": st.integers(0, 2), "depth": st.integers(0, 4)}),
    )),
    st.tuples(st.just("view"), st.one_of(JSON, st.sampled_from(["dream", "both", "real"]))),
    st.tuples(st.sampled_from(["who", "eyes", "mode"]), st.one_of(
        JSON, st.sampled_from(["you", "agent", "random", "dream", "real", "mode", "sample"]))),
    st.tuples(st.just("speed"), st.one_of(JSON, ODD_FLOATS, st.floats())),
    st.tuples(st.just("value"), st.one_of(JSON, ODD_FLOATS, st.floats(-1, 1), st.integers(0, 2))),
    st.tuples(st.just("choice"), st.one_of(JSON, st.integers(-1, 3))),
    st.tuples(st.just("drawn"), WHOLE),
    st.tuples(st.just("start recorded"), st.tuples(WHOLE, WHOLE, WHOLE)),
    st.tuples(st.just("start real"), st.tuples(WHOLE, WHOLE)),
    st.tuples(st.just("act"), st.one_of(SCALARS, ARRAYS, JSON, st.just([1.0, 0.0, 0.0]))),
    st.tuples(st.sampled_from(["step", "agent", "undo", "redo", "branch", "film"]), st.none()),
)  # fmt: skip


@pytest.fixture(scope="module")
def walks() -> Iterator[list[Session]]:
    """With discrete actions, with continuous ones, with two factors and with a mask."""
    made = [
        session(counting(), steps=12),
        session(counting(actions="box"), steps=12),
        session(counting(actions="multidiscrete"), steps=12),
    ]
    yield made
    for one in made:
        one.close()


class Page:
    """A page without a browser: what would be drawn and told must be what JSON can hold."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.driver = Driver(session, self._work, self._draw, self._tell, lambda playing: None)

    async def _work(self, call: Callable[[], Any]) -> Any:
        return call()

    def _draw(self, state: dict[str, Any], number: int) -> None:
        assert state["pictures"]
        assert state["step"] >= 0

    def _tell(self, text: str, kind: str) -> None:
        assert kind in ("negative", "info")
        assert len(text) > 10
        assert len(text) < 100_000

    async def ask(self, what: str, value: Any) -> None:
        """What `page.py` does with it; number and whole are its own checks."""
        driver, walk = self.driver, self.session
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "key": lambda: driver.key(value),
            "jump": lambda: driver.jump(value),
            "view": lambda: driver.set_view(value),
            "step": driver.step,
            "agent": driver.agent_step,
            "undo": driver.undo,
            "redo": driver.redo,
            "branch": driver.branch,
            "act": lambda: driver.run(lambda: walk.act(value)),
            "start recorded": lambda: driver.begin(lambda: walk.start_recorded(
                integer(value[0], "The episode"), integer(value[1], "The row"),
                integer(value[2], "The number of frames"))),
            "start real": lambda: driver.begin(lambda: walk.start_real(
                integer(value[0], "The seed"), integer(value[1], "The number of frames"))),
        }  # fmt: skip
        if what in calls:
            await calls[what]()
        elif what in ("who", "eyes", "mode"):
            driver.set_choice(what, value)
        elif what == "speed":
            driver.set_speed(value)
        elif what == "value":
            driver.values[0] = number(value)
        elif what == "choice":
            driver.choice[0] = value
        elif what == "drawn":
            driver.drawn(value)
        else:
            assert show.film_of(walk, driver.view, driver.speed).startswith(b"GIF8")


def test_anything_that_a_browser_sends(walks: list[Session]) -> None:
    @cases(60, 400)
    @given(st.integers(0, 2), st.lists(ASKED, min_size=1, max_size=4))
    def fuzz(which: int, asked: list[tuple[str, Any]]) -> None:
        walk = walks[which]
        if not walk.nodes or len(walk.nodes) > 40:
            walk.start_recorded(0, 3)
        page = Page(walk)

        async def run() -> None:
            for what, value in asked:
                with ours(f"play, {what}"):
                    await page.ask(what, value)

        asyncio.run(run())
        assert 0 <= walk.at < len(walk.nodes)
        assert walk.node.depth < 64 + MOST_CONTEXT
        assert np.isfinite(page.driver.values).all()

    fuzz()


HOSTS = st.one_of(
    WORDS, st.text(max_size=10),
    st.sampled_from(["127.0.0.1", "::1", "localhost", "0.0.0.0", "256.1.1.1", "1", "127.1", "[::1]",
                     "-1", "127.0.0.1:80", "http://localhost", "a" * 300, "xn--a", ".", "0x7f.1"]),
)  # fmt: skip


def test_hosts_and_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but this machine is called local; and no name is asked of the network here."""

    def known(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        return was(host, port, *rest, **{**more, "flags": socket.AI_NUMERICHOST})

    was = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", known)

    @cases(40, 400)
    @given(HOSTS, st.sampled_from([0, 1, 80, 65535]))
    def fuzz(host: str, port: int) -> None:
        with ours("play, host"):
            made = listen(host, port)
            address = made.getsockname()[0]
            made.close()
            assert not is_local(host) or address in ("127.0.0.1", "::1") or "127." in address

    fuzz()
    assert is_local(PlayConfig("x").host)


def test_settings(tmp_path: Path) -> None:
    names = st.sampled_from(["port", "host", "seed", "device", "threads", "patience", "x", "run"])

    @cases(50, 400)
    @given(st.lists(st.builds("{}={}".format, names, st.one_of(SCALARS, WORDS)), max_size=3))
    def fuzz(words: list[str]) -> None:
        with ours("play, settings"):
            config.from_cli(PlayConfig, [f"run={tmp_path}", *words])

    fuzz()
