"""The processes ("ranks") that train one run together, each on its own share; or one alone.

They are started by torchrun, which tells each who it is; this is a thin layer over
torch.distributed: NCCL between GPUs, one for each rank, and gloo between CPUs.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from worldmodel.accel.devices import pick_device
from worldmodel.config import ConfigError, RunError, first_line

T = TypeVar("T")
# That one rank waits for another, while that evaluates, say. Without a word for so long, it hangs.
PATIENCE = timedelta(hours=1)
TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by torchrun, in the environment


class RankLost(RunError):
    """Another rank is gone."""


class FailedElsewhere(RunError):
    """Some rank cannot go on, so that none can; rank 0 says why."""


class Ranks:
    """`Ranks()` is one process alone: it waits for nobody and copies nothing. `Ranks.join()` is
    one of the processes that torchrun started.

    rank: the number of this one, from 0. size: how many there are. Every method but `device` is to
    be called by all of them, in the same order. Each raises RankLost where another one is gone.
    """

    rank, size = 0, 1
    _here = 0  # the number among those of this machine
    _parent = 0  # the process that started this one
    _meetings = 0  # in this process

    @classmethod
    def join(cls) -> Ranks:
        """All ranks have met when this returns; alone without torchrun.

        Raises ConfigError where the environment names ranks but does not say how they meet.
        """
        self = cls()
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return self
        missing = [name for name in TOLD if name not in os.environ]
        if missing:
            raise ConfigError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set. "
                "Start several processes with torchrun (docs/DISTRIBUTED.md), or unset WORLD_SIZE."
            )
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._here = int(os.environ.get("LOCAL_RANK", self.rank))
        self._parent = os.getppid()
        with self._together():
            self._meet()
        return self

    def _meet(self) -> None:
        gpus = torch.cuda.is_available() and torch.distributed.is_nccl_available()
        # torchrun's store outlives the ranks: those that meet a second time (the next run of a
        # sweep, or all started again on one machine) must not find the addresses of the first.
        Ranks._meetings += 1
        again = str(Ranks._meetings)
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            again += "." + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store, rank, size = next(torch.distributed.rendezvous("env://", timeout=PATIENCE))
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=torch.distributed.PrefixStore(again, store),
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )

    def __repr__(self) -> str:
        return f"rank {self.rank} of {self.size}"

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes what the run leaves behind."""
        return self.rank == 0

    @property
    def orphaned(self) -> bool:
        """Whether torchrun is gone, and nobody looks after the ranks any more."""
        return self.size > 1 and os.getppid() != self._parent

    def device(self, name: str) -> torch.device:
        """The device of that name for this rank: on GPUs one for each rank of a machine.

        Raises ValueError where there is none, or not enough.
        """
        device = pick_device(name)
        if self.size == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise ConfigError(f"device is {name}; several ranks take auto, cuda or cpu.")
        count = torch.cuda.device_count()
        if self._here >= count:
            raise ConfigError(
                f"This machine has {count} GPUs, and a rank number {self._here} that would need "
                f"one of its own. Give --nproc-per-node {count}, or device=cpu."
            )
        torch.cuda.set_device(self._here)
        return torch.device("cuda", self._here)

    def all_reduce_mean(self, tensor: Tensor) -> None:
        """Put the mean over all ranks in the place of a tensor."""
        if self.size > 1:
            with self._together():
                torch.distributed.all_reduce(tensor)
            tensor.div_(self.size)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """[N, ...] of every rank, all of one shape -> [size * N, ...] on all of them."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._together():
            torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Put the values of rank 0 in the place of all others'."""
        if self.size > 1:
            with self._together():
                for tensor in tensors:
                    torch.distributed.broadcast(tensor, 0)

    def sums(self, *numbers: float) -> list[float]:
        """The sums over all ranks."""
        return self._reduced(numbers, "SUM")

    def largest(self, *numbers: float) -> list[float]:
        """The largest over all ranks."""
        return self._reduced(numbers, "MAX")

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.largest(flag)[0])

    def gather_objects(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._together():
            torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Returns when all ranks are here."""
        self.largest(0)

    def all_or_none(self, call: Callable[[], T]) -> T:
        """What a call that needs no other rank returns here, unless it fails on any.

        Then all raise: rank 0 a ConfigError or RunError with the words of the first rank that
        failed, which it is to say, and the others FailedElsewhere. An error that is neither is
        raised where it came up, and everywhere else it is RankLost.
        """
        if self.size == 1:
            return call()
        error: Exception | None = None
        try:
            result = call()
        except RankLost:
            raise
        except Exception as found:
            error = found
        if not self.agree(error is not None):
            return result
        reports = self.gather_objects(error and (type(_ours(error)), _words(error)))
        failed, (kind, words) = next((r, t) for r, t in enumerate(reports) if t)
        if error is not None and failed == self.rank and (self.first or kind is RankLost):
            raise error
        if kind is RankLost or self.first:
            raise kind(f"Rank {failed}: {words}")
        raise FailedElsewhere(words) from error

    def close(self) -> None:
        """Part from the other ranks, whether or not they are there."""
        if self.size > 1:
            torch.distributed.destroy_process_group()

    def _reduced(self, numbers: Iterable[float], how: str) -> list[float]:
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(list(numbers), dtype=torch.float64)
        with self._together():
            torch.distributed.all_reduce(values, getattr(torch.distributed.ReduceOp, how))
        return values.tolist()

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """While ranks speak with each other: whatever fails there means that one is gone."""
        try:
            yield
        except RuntimeError as error:
            raise RankLost(
                f"Rank {self.rank} lost the others: one ended, or cannot be reached "
                f"({_cause(error)}). What became of it stands above, if it could say so. The "
                "last checkpoint is intact: the same command continues."
            ) from error


def launched_first() -> bool:
    """Whether this process is alone or rank 0, by what torchrun says; before any `join`."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return not several or int(os.environ.get("RANK", "0")) == 0


def _ours(error: Exception) -> ConfigError | RunError:
    """What an error means for other ranks: what is none of ours, they do not survive."""
    for kind in (ConfigError, RunError):
        if isinstance(error, kind):
            return kind()
    return RankLost()


def _words(error: Exception) -> str:
    ours = isinstance(error, ConfigError | RunError)
    return str(error) if ours else f"{type(error).__name__}: {error}"


def _cause(error: RuntimeError) -> str:
    """What gloo or NCCL says, without where in its source, and its advice."""
    text = re.sub(r"^\[[^]]*\] *", "", first_line(error))
    return text.partition(". This is typically")[0].rstrip(".")
