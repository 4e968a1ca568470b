"""One process at a time writes to a run folder."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from worldmodel.config import RunError
from worldmodel.log import write_json

LOCK, HOLDER = ".lock", ".holder.json"


class RunLock:
    """Holds a run folder for as long as the `with` block, or the process, lives.

    The system lets go of the lock when its process dies, however that happens, so a lock that is
    held always has a living holder; what a dead one left behind is recognised and said.
    Raises RunError where another process holds the folder.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = Path(folder), say
        self._lock = FileLock(self._folder / LOCK, blocking=False)

    def __enter__(self) -> RunLock:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RunError(
                f"'{self._folder}' is in use by {self._holder() or 'another process'}. Wait until "
                "it has ended, stop it, or choose another run=..."
            ) from error
        except NotImplementedError as error:
            raise RunError(
                f"'{self._folder}' lies on a file system without locks ({error}), where two "
                "processes could destroy each other's run. Choose another run=..."
            ) from error
        left = self._holder()
        if left:
            self._say(f"'{self._folder}' was left without a word by {left}; going on from there.")
        about = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}
        write_json(self._folder / HOLDER, about)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        (self._folder / HOLDER).unlink(missing_ok=True)
        self._lock.release()

    def _holder(self) -> str:
        """Who holds, or last held, the folder; empty where nobody says so."""
        path = self._folder / HOLDER
        try:
            about = json.loads(path.read_bytes()) if path.is_file() else {}
            words = f"process {about['pid']:d} on {about['host']} since {about['since']}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return ""
        return words if len(words) < 200 and words.isprintable() else "a process without a name"
