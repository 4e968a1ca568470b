"""One line where numba compiles, which takes it up to a minute.

Importing this module is enough; whatever has functions for numba does.
"""

from __future__ import annotations

from numba.core import event

from worldmodel import progress

TEXT = "compiling machine code, up to a minute; later runs take it from the cache"


class _Listener(event.Listener):
    """Says it when the first function of the process is not found in the cache."""

    said = False

    def on_start(self, event: event.Event) -> None:
        if not self.said:
            self.said = True
            progress.note(TEXT)

    def on_end(self, event: event.Event) -> None:
        """Nothing: whoever waits sees it go on."""


LISTENER = _Listener()
event.register("numba:compile", LISTENER)
