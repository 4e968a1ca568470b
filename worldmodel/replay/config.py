"""What replay keeps, and how much of it: its config, and what follows from that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class ReplayConfig:
    """What replay keeps and how it hands it out."""

    capacity: float = 5e6  # environment steps kept, over all environments together
    capacity_gb: float | None = None  # 1e9 bytes kept; when given, it decides the capacity
    storage: str = "memory"  # memory, or disk: memory-mapped files in the directory
    directory: str | None = None  # folder for storage=disk, unless the caller names one
    online: bool = True  # hand out every environment's newest sequences first, each once


def rows_per_env(config: ReplayConfig, row_bytes: int, num_envs: int) -> int:
    """Rows of every stream. Raises ValueError where they are too few."""
    steps = config.capacity
    if config.capacity_gb is not None:
        steps = config.capacity_gb * 1e9 / row_bytes
    rows = int(steps) // num_envs if num_envs > 0 else 0
    if rows < 2:
        raise ValueError(
            f"A capacity of {steps:g} steps leaves {rows} rows for each of {num_envs} "
            "environments; at least 2 are needed."
        )
    return rows


def place_of(config: ReplayConfig, directory: str | Path | None) -> Path | None:
    """The folder of memory-mapped files, or None for storage=memory; ValueError otherwise."""
    if config.storage not in ("memory", "disk"):
        raise ValueError(f"Unknown storage '{config.storage}'. Known: memory, disk.")
    if config.storage == "memory":
        return None
    place = directory or config.directory
    if place is None:
        raise ValueError("storage=disk needs a directory: pass one, or set config.directory.")
    return Path(place)
