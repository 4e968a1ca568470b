"""What a detector is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from worldmodel.config import ConfigError, check_ranges, unknown
from worldmodel.models.vae import VAE, VAEConfig
from worldmodel.ood.density import Flow, Mixture
from worldmodel.ood.disagreement import Disagreement
from worldmodel.ood.divergence import Divergence
from worldmodel.ood.drift import Drift
from worldmodel.ood.frozen import Frozen
from worldmodel.ood.neighbours import Neighbours
from worldmodel.ood.part import Part
from worldmodel.ood.patches import WorstForetold, WorstPatch
from worldmodel.ood.reconstruction import Reconstruction, Typicality
from worldmodel.ood.scorer import SLOW
from worldmodel.ood.surprise import Surprise
from worldmodel.rssm.model import WorldModel

BASELINE = "reconstruction"
OF_IMAGES = (BASELINE, "typicality", "patch", "kl", "density", "flow", "neighbours", "frozen")
OF_MODELS = ("forecast", "surprise", "drift", "disagreement")
KNOWN = (*OF_IMAGES, *OF_MODELS)


@dataclass
class DetectorConfig:
    """parts: what is computed at each tick; those that this run has nothing for (no images, no
    world model, no ensemble) are left out. combined: columns whose maximum decides; empty: all of
    them. slow: parts that have a running mean too (its column ends in "_slow"), and its rate.
    drift_steps: ticks that the model imagines ahead. confidence: with which the false alarm rate
    holds for this one calibration; 0: on average over calibrations. updates, batch, lr: of the
    autoencoder's training. rows: on which parts are fitted, at most."""

    vae: VAEConfig = field(default_factory=VAEConfig)
    updates: int = 6000
    batch: int = 32
    lr: float = 1e-3
    rows: int = 4096
    parts: list[str] = field(
        default_factory=lambda: [
            BASELINE, "typicality", "patch", "kl", "density", "neighbours", "frozen",
            "surprise", "drift", "disagreement",
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


def make_parts(config: DetectorConfig, vae: VAE | None, model: WorldModel | None) -> list[Part]:
    """The parts that the settings ask for and this run has something for.

    Raises ConfigError where none is left.
    """
    makers: dict[str, Callable[[], Part]] = {}
    if vae is not None:
        height, width, channels = vae.shape
        size = vae.config.latent
        makers |= {
            BASELINE: Reconstruction,
            "typicality": Typicality,
            "patch": WorstPatch,
            "kl": Divergence,
            "density": lambda: Mixture(size),
            "flow": lambda: Flow(size),
            "neighbours": lambda: Neighbours(size),
            "frozen": lambda: Frozen((channels, height, width)),
        }
    if model is not None:
        core, ensemble = model.core, model.ensemble
        makers |= {"surprise": lambda: Surprise(core)}
        makers |= {"drift": lambda: Drift(core, config.drift_steps)}
        if vae is not None:
            makers |= {"forecast": WorstForetold}
        if ensemble is not None:
            makers |= {"disagreement": lambda: Disagreement(ensemble, model.feat_size)}
    made = [makers[name]() for name in config.parts if name in makers]
    if not made:
        raise ConfigError(
            f"Nothing is left of the parts {', '.join(config.parts)}: this run has "
            f"{'no' if vae is None else 'an'} image and {'no' if model is None else 'a'} world "
            f"model. It could have: {', '.join(makers) or 'none'}."
        )
    return made
