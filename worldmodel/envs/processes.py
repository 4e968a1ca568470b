"""Environments in a process each, and what to say when one dies."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode


class EnvProcessError(RuntimeError):
    """An environment's process ended without an answer."""


class Processes(AsyncVectorEnv):
    """Steps environments in a process each; autoreset is NEXT_STEP.

    makers must be picklable. Raises EnvProcessError where a process dies, and passes on what an
    environment raises.
    """

    def __init__(self, makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> None:
        # A fork of a process that has threads, CUDA or a GL context may hang; a fresh one does not.
        methods = multiprocessing.get_all_start_methods()
        context = "forkserver" if "forkserver" in methods else "spawn"
        if context == "forkserver":
            # Imported once by the server rather than by every process; nothing here needs torch.
            multiprocessing.set_forkserver_preload(["worldmodel.envs.observe"])
        with self._explained():
            super().__init__(makers, context=context, autoreset_mode=AutoresetMode.NEXT_STEP)

    def reset_wait(self, timeout: float | None = None) -> Any:
        with self._explained():
            return super().reset_wait(timeout)

    def step_async(self, actions: Any) -> None:
        with self._explained():
            super().step_async(actions)

    def step_wait(self, timeout: float | None = None) -> Any:
        with self._explained():
            return super().step_wait(timeout)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError) as error:
            codes = {}
            processes = getattr(self, "processes", [])
            for index, process in enumerate(processes):
                process.join(0.2)
                if process.exitcode is not None:
                    codes[index] = process.exitcode
            for process in processes:
                process.terminate()
                process.join()
            self.closed = True  # close() would wait for the answers that never come
            raise EnvProcessError(
                f"An environment's process ended without an answer; exit codes by environment: "
                f"{codes} (-9: killed, often for want of memory). Its own messages are above. A "
                f"program that starts processes must do its work under "
                f"`if __name__ == '__main__':`. With vector=sync there are no processes."
            ) from error
