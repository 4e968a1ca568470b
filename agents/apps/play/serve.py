"""The server of the page: one thread for all models and environments, one walk per browser."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable
from html import escape
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from nicegui import app, ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from agents.apps.play.driver import Stage
from agents.apps.play.page import Page
from agents.apps.play.session import Session
from worldmodel import progress

MOST_BROWSERS = 16  # that may dream at the same time
ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><rect width='32' height='32' "
    "rx='8' fill='#181c23'/><path d='M21 6a10 10 0 1 0 5 14A9 9 0 0 1 21 6z' fill='#ff8c00'/></svg>"
)


class Pages:
    """The page of each browser that is here. patience: seconds that one may be away before its walk
    is let go."""

    def __init__(self, stage: Stage, patience: float, say: Callable[[str], None]) -> None:
        self.stage, self.patience, self.say = stage, patience, say
        self.pages: dict[str, Page] = {}  # by the client's id

    def join(self, client: Any) -> None:
        """Build the page of a browser that has come, and let its walk go when it leaves."""
        if len(self.pages) >= MOST_BROWSERS:
            ui.label(f"{MOST_BROWSERS} browsers are dreaming here already. Close one and reload.")
            return
        stage = self.stage
        session = Session(stage.world, stage.recorded, stage.seed)
        page = self.pages[client.id] = Page(stage, session)

        async def leave() -> None:
            page.driver.close()
            if self.pages.pop(client.id, None) is not None:
                await stage.work(session.close)
                self.say(f"A browser left; {len(self.pages)} remain.")

        client.on_delete(leave)

    def close(self) -> None:
        """Let go of every environment, and of the thread."""
        pages, self.pages = self.pages, {}
        for page in pages.values():
            page.driver.close()
        self.stage.close(page.session for page in pages.values())


def serve(
    pages: Pages, listening: socket.socket, hosts: list[str] | None, ready: Callable[[], None]
) -> None:
    """Serve until Ctrl-C; ready is called once signals and requests are answered.

    hosts: names by which browsers may ask, or None for any; on a loopback address others would be
    pages of somewhere else that reach for this one.
    """

    @ui.page("/", title=pages.stage.title, reconnect_timeout=pages.patience)
    def index() -> None:
        pages.join(ui.context.client)

    @app.exception_handler(404)
    def not_found(request: Request, error: Exception) -> HTMLResponse:
        text = f"There is no page '{escape(request.url.path)}'. <a href='/'>The dream is at /</a>."
        head = f"<meta charset='utf-8'><title>{escape(pages.stage.title)}</title>"
        return HTMLResponse(f"<!doctype html>{head}<p>{text}</p>", 404)

    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    ui.run_with(
        outer,
        dark=True,
        favicon=ICON,
        tailwind=False,
        show_welcome_message=False,
        message_history_length=100,
        reconnect_timeout=pages.patience,
    )
    if hosts is not None:
        outer.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    settings = uvicorn.Config(
        outer, log_level="error", access_log=False, timeout_graceful_shutdown=2, lifespan="on"
    )
    # NiceGUI looks for its server among all objects there are, and torch warns of one of its own.
    warnings.filterwarnings("ignore", "`torch.distributed.reduce_op`", FutureWarning)
    app.on_startup(ready)
    app.on_shutdown(pages.close)
    try:
        with progress.step("serving", waits=True):
            uvicorn.Server(settings).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # uvicorn gives its signals back after its own clean end
    finally:
        pages.close()
        listening.close()
        pages.say("The page is closed.")
