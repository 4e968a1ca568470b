"""How much memory this process could still take."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# Control groups of version 2 and 1: the folder of ours, its limit, its use, and in memory.stat
# what of that use is files that the system would drop for us.
V2 = ("memory.max", "memory.current", ("active_file", "inactive_file"))
V1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def available_memory(
    proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes of memory that this process could still take, or None where nobody can tell: what
    the machine has free, and what the control groups around this process leave it."""
    limits = []
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder, (maximum, current, reclaimable) in _groups(proc, groups):
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no limit
            limit, used = (int((folder / name).read_text()) for name in (maximum, current))
            with contextlib.suppress(OSError, ValueError):
                pairs = dict(
                    line.split() for line in (folder / "memory.stat").read_text().splitlines()
                )
                used -= sum(int(pairs.get(name, 0)) for name in reclaimable)
            limits.append(max(0, limit - max(0, used)))
    return min(limits, default=None)


def _groups(proc: Path, root: Path) -> list[tuple[Path, tuple[str, str, tuple[str, str]]]]:
    """Our control groups for memory and those around them; inside a container the root is ours."""
    found = {root: V2, root / "memory": V1}
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            number, _, rest = line.partition(":")
            kinds, _, path = rest.partition(":")
            if number == "0" or "memory" in kinds.split(","):
                top, words = (root, V2) if number == "0" else (root / "memory", V1)
                folder = top / path.strip("/")
                while folder != top and top in folder.parents and ".." not in folder.parts:
                    found[folder] = words
                    folder = folder.parent
    return list(found.items())
