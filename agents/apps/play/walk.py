"""What a walk is made of: its moments, and the futures that they lie on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.apps.play.reality import Moment
from agents.apps.play.world import Sight


@dataclass(frozen=True)
class Real:
    """What really happened beside a node. latent: the posterior that has seen every real frame.
    surprise: KL in nats between what the dream foretold and what the real frame says.
    news: the same from the posterior before it, so that only the last step was foretold."""

    moment: Moment
    picture: np.ndarray
    latent: Any
    surprise: float | None = None
    news: float | None = None


@dataclass(frozen=True)
class Node:
    """One moment of a walk. action: encoded [A], which led here from `parent`."""

    number: int
    parent: int | None
    branch: int
    depth: int
    action: np.ndarray | None
    sight: Sight
    real: Real | None = None


@dataclass
class Branch:
    """One future: it leaves `parent` (another branch, or None) at node `fork` and ends at `tip`."""

    label: str
    parent: int | None
    fork: int
    tip: int


def label_of(index: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    text = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        text = chr(ord("A") + letter) + text
    return text
