"""What lies in the folder of a saved replay, and which of it makes up the state asked for."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from worldmodel.replay import disk
from worldmodel.replay.delta import DELTA, FOLDING, FRESH, Delta
from worldmodel.replay.index import INDEX, Index, ReplayDamaged, file_name, read_index
from worldmodel.replay.ring import Ring

# Names that `file_name` gives; somebody's own "weights.0001.bin" is none of them.
BASE_FILE = re.compile(r"(obs\..+|column\..+|action|reward|flags|priority|row)\.\d{4,}\.bin")
LEFT_OVER = (FRESH, DELTA, FOLDING, "index.new")


@dataclass(frozen=True)
class Plan:
    """How to get a state: these logs on top of the base files. older: the state is older than
    what the files then hold."""

    logs: list[Delta]
    index: Index
    older: bool = False


class Folder:
    """The index and the logs of one folder as they are now; a context that closes the logs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._wrong: dict[str, Exception] = {}
        self.index: Index | None = None
        try:
            self.index = read_index(place)
        except (FileNotFoundError, ReplayDamaged) as error:
            self._wrong[INDEX] = error
        self.folding, self.delta = self._log(FOLDING), self._log(DELTA)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        for log in (self.folding, self.delta):
            if log is not None:
                log.file.close()

    def plan(self, state: Index | None) -> Plan:
        """How to get this state, or with None the newest one.

        A log that was being folded counts in any case: the base files may be half-way to it.
        Raises FileNotFoundError where nothing is saved, ReplayDamaged where the state is not to
        be had.
        """
        logs: list[Delta] = []
        base = self.index
        for log in (self.folding, self.delta):
            if log is None or (base is not None and log.index.token == base.token):
                continue
            wanted = state is None or log is self.folding or log.index.token == state.token
            follows = log.parent is None or (base is not None and log.parent == base.token)
            if wanted and follows and self._sound(log):
                logs = [log] if log.parent is None else [*logs, log]
                base = log.index
        if base is None:
            raise self._first_wrong()
        if FOLDING in self._wrong or (state is None and DELTA in self._wrong):
            warnings.warn(
                f"{self._wrong.get(FOLDING) or self._wrong[DELTA]} The replay is read without it, "
                "as the save before left it.",
                stacklevel=5,
            )
        return Plan(logs, base, state is not None and self._is_older(state, base))

    def check_sizes(self, plan: Plan) -> None:
        """Raises ReplayDamaged where base files are missing or too short for their index."""
        if self.index is None or (plan.logs and plan.logs[0].parent is None):
            return
        for stream, filled in enumerate(self.index.filled):
            for name, field in plan.index.fields.items() if filled else ():
                path, need = self.place / file_name(name, stream), filled * field.nbytes
                if not path.exists():
                    raise ReplayDamaged(f"Replay file {path} is missing; use a copy of the folder.")
                if path.stat().st_size < need:
                    raise ReplayDamaged(
                        f"Replay file {path} is truncated: it has {path.stat().st_size:,} bytes, "
                        f"the index needs {need:,}. Use a copy of the folder."
                    )

    def unchanged(self) -> bool:
        """Whether no later save has begun to change the base files since this was made."""
        known = [x.index.token for x in (self.folding, self.delta) if x is not None]
        known += [] if self.index is None else [self.index.token]
        with Folder(self.place) as now:
            newer = [] if now.index is None else [now.index.token]
            newer += [] if now.folding is None else [now.folding.index.token]
        return set(newer) <= set(known)

    def _log(self, name: str) -> Delta | None:
        try:
            return Delta.open(self.place / name)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self._wrong[name] = error
            return None

    def _sound(self, log: Delta) -> bool:
        try:
            log.check()
        except ReplayDamaged as error:
            self._wrong[FOLDING if log is self.folding else DELTA] = error
            return False
        return True

    def _is_older(self, state: Index, base: Index) -> bool:
        """False where it is the base, True where it is older, and ReplayDamaged otherwise."""
        if state.token == base.token and state.state() == base.state():
            return False
        if state.series == base.series and state.generation < base.generation:
            return True
        why = " ".join(str(error) for error in self._wrong.values())
        raise ReplayDamaged(
            f"The replay at {self.place} does not hold save {state.generation} "
            f"({state.token}), which the checkpoint needs: "
            + (
                f"it holds save {base.generation} ({base.token}). {why}".strip()
                if state.series == base.series
                else "the files are those of another replay."
            )
        )

    def _first_wrong(self) -> Exception:
        damaged = [e for e in self._wrong.values() if not isinstance(e, FileNotFoundError)]
        return damaged[0] if damaged else self._wrong[INDEX]


def finish(place: Path, log: Delta, keep_files: bool) -> None:
    """Fold a log into the base files for good; killed anywhere, it can be done again.

    keep_files: the base files are mapped, and must not be made anew where the log is whole.
    """
    if Path(str(log.file.name)).name == DELTA:
        disk.replace(place / DELTA, place / FOLDING)
        disk.sync_folder(place)
    if log.parent is None and not keep_files:
        remove_base(place)
    log.fold(place)
    disk.write_text(place / INDEX, json.dumps(log.index.to_json()))
    disk.remove(place / FOLDING)


def remove_base(place: Path) -> None:
    """Remove the base files of whatever replay."""
    for path in sorted(place.glob("*.bin")):
        if BASE_FILE.fullmatch(path.name) and (path.is_symlink() or not path.is_dir()):
            disk.remove(path)


def holds_committed(place: Path) -> bool:
    """Whether a folder holds a replay that some checkpoint rests on, or what looks like one."""
    return any((place / name).exists() or (place / name).is_symlink() for name in (INDEX, FOLDING))


def clear(place: str | Path) -> None:
    """Remove a saved replay from a folder, and nothing that is not part of it.

    Raises ValueError where a folder bears the name of one of its files.
    """
    for name in (INDEX, *LEFT_OVER):
        check_no_folder(Path(place) / name)
    for name in (INDEX, *LEFT_OVER):
        disk.remove(Path(place) / name)
    remove_base(Path(place))


def tidy(place: Path) -> None:
    """Remove what is not needed beside the base files and their index."""
    for name in LEFT_OVER:
        if (place / name).exists():
            check_no_folder(place / name)
            disk.remove(place / name)


def check_no_folder(path: Path) -> None:
    """ReplayDamaged where a folder stands in the place of a file."""
    if path.is_dir():
        raise ReplayDamaged(
            f"'{path}' is a folder, where a replay has a file. Choose another directory, or move "
            "it away."
        )


def read_base(place: Path, ring: Ring, filled: list[int]) -> None:
    """Read the first rows of every base file into a ring in memory."""
    for stream, used in enumerate(filled):
        for name in ring.fields if used else ():
            with disk.open_file(place / file_name(name, stream)) as file:
                disk.read(file, ring.arrays[name][stream][:used], 0)
