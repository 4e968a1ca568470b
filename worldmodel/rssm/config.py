"""What the world model is made of, and what of it fits an environment."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from worldmodel.config import ConfigError, check_ranges
from worldmodel.models.ensemble import EnsembleConfig
from worldmodel.rssm.heads import HeadConfig, head_size
from worldmodel.types import MASK_KEY, EnvSpec

DISAGREEMENT = "disagreement"  # of the ensemble: its loss, and its name in `control`


def _default_heads() -> dict[str, HeadConfig]:
    return {
        "reward": HeadConfig("reward", "twohot", outscale=0.0),
        "cont": HeadConfig("cont", "bernoulli"),
    }


@dataclass
class ModelConfig:
    """Sizes, losses and heads of the world model.

    deter: width of the recurrent state. hidden: width inside the core. groups x classes: the
    categorical latents (groups alone for gaussian). depth: channels of the first image stage
    before `mults`. units: width of heads and vector MLPs. blocks: of the recurrence.
    latent: categorical or gaussian. unimix: share of uniform in the categoricals.
    free_nats, dyn_scale, rep_scale: of the KL. image_scale, vector_scale: of reconstruction.
    discount_horizon: steps h of the discount 1 - 1/h in the continue head. bins: of two-hot
    heads. kernel, mults, layers: of encoder and decoder. convolution: "pool" (stride 1 and
    max-pool, the paper's), "strided" (kernel 4, a quarter of the arithmetic) or "patch" (strided,
    but the stage at the image takes patches of 4x4 pixels: a tenth, and one stage fewer).
    centre_images: measure images from their mean over the first batches (see ImageCentre), not
    from mid-grey as the paper does. heads: by name; one that a file or the command line names is
    added, or changed, and the others stay. control: weights of the heads whose sum is the reward
    to maximise; a map that is given replaces the default. "disagreement" is that of the ensemble,
    which needs ensemble.members.
    """

    deter: int = 512
    hidden: int = 64
    groups: int = 32
    classes: int = 4
    depth: int = 4
    units: int = 64
    blocks: int = 8
    latent: str = "categorical"
    unimix: float = 0.01
    free_nats: float = 1.0
    dyn_scale: float = 1.0
    rep_scale: float = 0.1
    image_scale: float = 1.0
    vector_scale: float = 1.0
    discount_horizon: int = 333
    bins: int = 255
    kernel: int = 5
    mults: list[int] = field(default_factory=lambda: [2, 3, 4, 4])
    layers: int = 3
    convolution: str = "pool"
    centre_images: bool = False
    heads: dict[str, HeadConfig] = field(default_factory=_default_heads)
    control: dict[str, float] = field(default_factory=lambda: {"reward": 1.0})
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)

    def __post_init__(self) -> None:
        wide, weight = (1, 1 << 16), (0, 1e6)
        check_ranges(
            self,
            {
                **dict.fromkeys(("deter", "hidden", "units", "blocks"), wide),
                **dict.fromkeys(("groups", "classes", "depth", "mults"), (1, 4096)),
                **dict.fromkeys(("dyn_scale", "rep_scale", "image_scale", "vector_scale"), weight),
                "unimix": (0, 1), "free_nats": weight, "discount_horizon": (1, 1 << 30),
                "bins": (3, 65535), "kernel": (1, 31), "layers": (0, 64),
            },
        )  # fmt: skip
        if not 1 <= len(self.mults) <= 8:
            raise ConfigError(f"mults is {self.mults}; allowed: 1 to 8 numbers.")
        if self.bins % 2 == 0:
            raise ConfigError(f"bins is {self.bins}; it must be odd, so that one of them is 0.")
        for name, weight_of in self.control.items():
            if not math.isfinite(weight_of):
                raise ConfigError(f"control.{name} is {weight_of}; it must be finite.")
        if not self.control:
            raise ConfigError("control names no head, so there is nothing to maximise.")


def check_fits(spec: EnvSpec, config: ModelConfig) -> None:
    """ValueError where a model of this environment cannot have these sizes and heads."""
    c = config
    if (
        c.blocks < 1
        or c.deter % c.blocks
        or (spec.keys("image") and c.depth * c.mults[-1] % c.blocks)
    ):
        raise ValueError(
            f"deter={c.deter} and depth*mults[-1]={c.depth * c.mults[-1]} must both be "
            f"multiples of blocks={c.blocks}."
        )
    known = [*c.heads, *([DISAGREEMENT] if c.ensemble.members else [])]
    if DISAGREEMENT in c.control and DISAGREEMENT not in known:
        raise ValueError(
            "'disagreement' is the reward of an ensemble, and there is none: set "
            "agent.model.ensemble.members, 5 for example, or leave it out of "
            "agent.model.control."
        )
    for name in [*c.control, "cont"]:
        if name not in known:
            raise ValueError(f"Unknown head '{name}'. Known heads: {', '.join(known)}.")
    for name in c.heads:
        if name in {"dyn", "rep", DISAGREEMENT, MASK_KEY, *spec.seen} or hasattr(
            nn.ModuleDict, name
        ):
            raise ValueError(
                f"The head '{name}' needs another name: a loss of that name exists already "
                "(dyn, rep, disagreement, one of each observation), or PyTorch reserves it."
            )
    for name in c.control:
        if name in c.heads and head_size(spec, c.heads[name]) is not None:
            raise ValueError(
                f"The head '{name}' predicts several numbers, so it cannot be controlled. "
                "Name heads of one number in agent.model.control."
            )
    if c.convolution == "pool" and c.kernel % 2 == 0:
        raise ValueError(f"kernel={c.kernel} must be odd with convolution=pool.")
