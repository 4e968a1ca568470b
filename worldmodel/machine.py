"""The machine that this process runs on: its processor and its memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> tuple[str, int]:
    """The processor's name, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return model, cores or 1


def memory_bytes() -> tuple[int, int]:
    """(available, total) memory in bytes; a container's limit counts, zeros mean unknown."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" not in names:
            return 0, 0
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    total = int(fields["MemTotal"].split()[0]) * 1024
    available = int(fields.get("MemAvailable", fields["MemTotal"]).split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        allowed = int(limit.read_text())
        total = min(total, allowed)
        available = min(available, max(0, allowed - int(used.read_text())))
    return available, total
