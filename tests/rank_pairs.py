"""Several ranks in processes of their own, as torchrun starts them, but in a tenth of the time."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.tensorboard  # slow to import: once here, and not in every process

PATIENCE = 200.0  # seconds for all of them


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def begin(call: Callable[[int], Any], size: int = 2) -> list[tuple[Any, Any]]:
    """Start call(rank) in `size` processes; (process, pipe) of each."""
    context, port = multiprocessing.get_context("fork"), free_port()
    ranks = []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_live, args=(call, rank, size, port, theirs))
        process.start()
        theirs.close()
        ranks.append((process, ours))
    return ranks


def end(ranks: list[tuple[Any, Any]]) -> list[Any]:
    """What each returned; AssertionError with what it raised, or where one hangs or died."""
    found = []
    try:
        for rank, (_, pipe) in enumerate(ranks):
            assert pipe.poll(PATIENCE), f"rank {rank} hangs"
            found.append(pickle.loads(pipe.recv_bytes()))
    except EOFError as error:
        raise AssertionError(f"rank {len(found)} died") from error
    finally:
        for process, _ in ranks:
            process.kill()
            process.join()
    errors = [words for kind, words in found if kind == "error"]
    assert not errors, errors
    return [value for _, value in found]


def together(call: Callable[[int], Any], size: int = 2) -> list[Any]:
    """What call(rank) returns in each of `size` processes that torchrun could have started."""
    return end(begin(call, size))


def _live(call: Callable[[int], Any], rank: int, size: int, port: int, pipe: Any) -> None:
    told = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    torch.set_num_threads(1)
    try:
        answer = ("value", call(rank))
    except BaseException as error:
        answer = ("error", f"rank {rank}: {error!r}")
    pipe.send_bytes(pickle.dumps(answer))  # not `send`: tensors in it need their process alive
