"""`scripts/play.py`: settings in, a page on localhost, exit code out."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

import agents
from agents.apps.episodes import Episodes
from agents.apps.play.driver import Stage
from agents.apps.play.session import Session
from agents.apps.play.world import World
from agents.planning.acting import make_planner
from agents.planning.words import split_words
from worldmodel import config
from worldmodel.accel import devices

HIGHEST_PORT = 65535


@dataclass
class PlayConfig:
    """Which run's dream to step into, and where its page is served. planner=NAME and
    planner.SETTING=... (--help planner=NAME lists them): the agent plans, and the page shows its
    plans."""

    run: str = MISSING  # run folder
    port: int = 8123  # 0 takes any free one
    host: str = "127.0.0.1"  # this machine alone; 0.0.0.0 lets the network in, without a password
    seed: int = 0  # of the dreams, and of the first fresh reset
    device: str = "auto"
    threads: int = 1  # CPU threads inside operations; 0 leaves torch's choice
    patience: float = 10.0  # seconds that a browser may be away before its walk is let go

    def __post_init__(self) -> None:
        ranges = {
            "port": (0, HIGHEST_PORT), "seed": (0, 2**31 - 1), "threads": (0, 1 << 30),
            "patience": (1e-3, 3600),
        }  # fmt: skip
        config.check_ranges(self, ranges)


def play_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Serve the page of a run's dream until Ctrl-C; the process's exit code."""
    return config.guarded(lambda: _play(arguments, say), say)


def _play(words: Sequence[str], say: Callable[[str], None]) -> int:
    planner, rest = split_words(words)
    settings = config.from_cli(PlayConfig, rest, planner=planner)
    devices.set_threads(settings.threads)
    run = Path(settings.run)
    world, recorded = open_run(run, settings.device, settings.seed, say, planner)
    listening = listen(settings.host, settings.port)
    try:
        from agents.apps.play import serve
    except ModuleNotFoundError as error:
        listening.close()
        if (error.name or "").split(".")[0] not in ("nicegui", "fastapi", "uvicorn", "starlette"):
            raise
        raise config.ConfigError(
            'The page needs NiceGUI, which is not installed: pip install "worldmodel[play]"'
        ) from error
    local = is_local(settings.host)
    address, port = settings.host, listening.getsockname()[1]
    shown = f"[{address}]" if ":" in address else address
    if not local:
        say(
            f"warning: host={address} is open to the network. Whoever reaches this port can use "
            "the page and write films to the run folder; there is no password."
        )

    def ready() -> None:
        say(f"Step into the dream: http://{shown}:{port}")
        if local:
            there = f"ssh -L {port}:{shown}:{port} <this machine>"
            say(f"From another machine: {there}. Ctrl-C ends it.")

    pages = serve.Pages(Stage(world, recorded, run, settings.seed), settings.patience, say)
    hosts = ["localhost", "127.0.0.1", "::1", "[::1]", address] if local else None
    serve.serve(pages, listening, hosts, ready)
    return 0


def open_run(
    run: Path, device: str, seed: int, say: Callable[[str], None], planner: Any = None
) -> tuple[World, Episodes | None]:
    """The world of a run folder and, where it has one, its recorded experience. planner: settings
    of one that acts for the agent.

    Raises ConfigError or RunError where there is no model, or no place to start one.
    """
    try:
        policy = agents.load(run, device)
        searcher = planner and make_planner(planner, policy, 0)
        world = World(policy, searcher)
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    recorded: Episodes | None
    try:
        if not world.shows:
            raise config.ConfigError(
                f"The world of '{policy.agent.name}' has no decoder: the page shows reality, and "
                "of the dream what is foretold of reward, end and value."
            )
        if not world.spec.keys("image"):
            say("This run sees no image: the page shows its numbers as bars.")
        recorded = Episodes(agents.load_replay(run))
        if not len(recorded):
            raise config.ConfigError(f"The replay of '{run}' is empty.")
    except config.ConfigError as error:
        say(f"No recorded frames, so dreams start with a fresh reset. ({error})")
        recorded = None
        trial = Session(world, None, seed)
        trial.start_real(seed, 1)  # nothing else is left to start from: fail here, not in a page
        trial.close()
    return world, recorded


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; RunError where that is not possible."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise config.RunError(
            f"The host '{host}' is unknown: {error}. Use host=127.0.0.1 for this machine alone."
        ) from error
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
        made.listen(128)
    except OSError as error:
        made.close()
        why = {
            errno.EADDRINUSE: f"Port {port} on {host} is in use. Give another port=..., or port=0 "
            "for any free one.",
            errno.EACCES: f"Port {port} needs more rights. Give a port=... of 1024 or higher.",
            errno.EADDRNOTAVAIL: f"'{host}' is no address of this machine. Use host=127.0.0.1, or "
            "host=0.0.0.0 for every address that it has.",
        }
        text = why.get(error.errno or 0, f"Cannot listen on {host}:{port}: {error}.")
        raise config.RunError(text) from error
    return made


def is_local(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
