"""What a detector is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from worldmodel.capabilities import Decodes, Expects, Surprises, Uncertain
from worldmodel.config import ConfigError, check_ranges, unknown
from worldmodel.models.vae import VAE, VAEConfig
from worldmodel.ood import pictures, steps
from worldmodel.ood.density import Flow, Mixture, Neighbours
from worldmodel.ood.scorer import SLOW, Part
from worldmodel.types import EnvSpec

BASELINE = "reconstruction"
OF_IMAGES = (BASELINE, "typicality", "patch", "kl", "statistics")
OF_FEATURES = ("density", "flow", "neighbours", "frozen")  # of images or vectors
OF_WORLDS = ("forecast", "surprise", "drift", "weaker", "pushed", "disagreement")
KNOWN = (*OF_IMAGES, *OF_FEATURES, *OF_WORLDS)


@dataclass
class DetectorConfig:
    """parts: what is computed at each tick; those that this run has nothing for (no images, no
    world that can answer, no ensemble) are left out. combined: columns whose maximum decides;
    empty: all of them. slow: parts that have a running mean too (its column ends in "_slow"), and
    its rate. drift_steps: ticks that the world looks ahead. confidence: with which the false alarm
    rate holds for this one calibration; 0: on average over calibrations. updates, batch, lr: of
    the autoencoder's training. rows: on which parts are fitted, at most."""

    vae: VAEConfig = field(default_factory=VAEConfig)
    updates: int = 6000
    batch: int = 32
    lr: float = 1e-3
    rows: int = 4096
    parts: list[str] = field(
        default_factory=lambda: [
            BASELINE, "typicality", "patch", "kl", "statistics", "density", "neighbours", "frozen",
            "surprise", "drift", "weaker", "pushed", "disagreement",
        ]
    )  # fmt: skip
    combined: list[str] = field(default_factory=list)
    slow: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("typicality", "density", "surprise", "drift"), 0.1)
    )
    drift_steps: int = 6
    confidence: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, {
            "updates": (1, 10_000_000), "batch": (1, 65536), "lr": (0, 1), "rows": (16, 1 << 20),
            "drift_steps": (1, 100), "confidence": (0, 0.999), "seed": (0, 2**32 - 1),
        })  # fmt: skip
        for name in (*self.parts, *self.slow):
            if name not in KNOWN:
                raise ConfigError(unknown("part of a detector", name, KNOWN))
        for name, rate in self.slow.items():
            if not 0 < rate <= 1:
                raise ConfigError(f"slow.{name} is {rate}; allowed: above 0, up to 1.")
        columns = [*self.parts, *(name + SLOW for name in self.slow)]
        for name in self.combined:
            if name not in columns:
                raise ConfigError(unknown("column to combine", name, columns))
        if len(set(self.parts)) < len(self.parts) or not self.parts:
            raise ConfigError(f"parts is {self.parts}; name each part once, and at least one.")


def make_parts(config: DetectorConfig, spec: EnvSpec, vae: VAE | None, world: Any) -> list[Part]:
    """The parts that the settings ask for, and spec and world (or None) have something for.

    Raises ConfigError where none is left.
    """
    makers: dict[str, Callable[[], Part]] = {}
    keys = [*spec.keys("vector"), *spec.keys("discrete")]
    size = sum(math.prod(spec.obs[key].shape) for key in keys)
    if size:
        makers |= {"frozen": lambda: pictures.Frozen("vector", (size,))}
    if vae is not None:
        height, width, channels = vae.shape
        size += vae.config.latent + 2
        makers |= {
            BASELINE: pictures.Reconstruction,
            "typicality": pictures.Typicality,
            "patch": pictures.WorstPatch,
            "kl": pictures.Divergence,
            "statistics": lambda: pictures.Statistics(channels),
            "frozen": lambda: pictures.Frozen("image", (channels, height, width)),
        }
    if size:
        makers |= {
            "density": lambda: Mixture(size),
            "flow": lambda: Flow(size),
            "neighbours": lambda: Neighbours(size),
        }
    if isinstance(world, Surprises):
        makers |= {
            "surprise": lambda: steps.Surprise(world),
            "weaker": lambda: steps.Weaker(world, spec.action),
        }
        if spec.action.kind == "continuous":
            makers |= {"pushed": lambda: steps.Pushed(world, spec.action.size)}
    if isinstance(world, Expects) and isinstance(world, Surprises):
        makers |= {"drift": lambda: steps.Drift(world, config.drift_steps)}
    if isinstance(world, Expects) and isinstance(world, Decodes) and vae is not None:
        makers |= {"forecast": lambda: steps.Forecast(world, spec.keys("image"))}
    if isinstance(world, Uncertain):
        makers |= {"disagreement": lambda: steps.Disagreement(world)}
    made = [makers[name]() for name in config.parts if name in makers]
    if not made:
        raise ConfigError(
            f"Nothing is left of the parts {', '.join(config.parts)}: this run has "
            f"{'no' if vae is None else 'an'} image and {'no' if world is None else 'a'} learned "
            f"world. It could have: {', '.join(makers) or 'none'}."
        )
    return made
