"""What of the world model concerns heads that are fitted later (`worldmodel.rssm.fitted`), and not
how it learns."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from worldmodel.models.ensemble import Ensemble
from worldmodel.rssm.codec import Encoder
from worldmodel.rssm.config import DISAGREEMENT, ModelConfig
from worldmodel.rssm.core import RSSM
from worldmodel.rssm.heads import Head, HeadConfig
from worldmodel.types import EnvSpec


class TakesFittedHeads(nn.Module):
    """A part of `WorldModel`, which has the attributes."""

    spec: EnvSpec
    config: ModelConfig
    encoder: Encoder
    core: RSSM
    heads: nn.ModuleDict
    ensemble: Ensemble | None
    feat_size: int

    @property
    def paying(self) -> list[str]:
        """Names that `control` may weigh."""
        return [*self.config.heads, *([DISAGREEMENT] if self.ensemble is not None else [])]

    @property
    def scalar_heads(self) -> dict[str, Head]:
        """Its heads of one number, by name."""
        return {k: h for k, h in self.heads.items() if h.scalar}  # type: ignore[misc]

    @property
    def feat_weights(self) -> dict[str, Tensor]:
        """The weights that decide features: of encoder and core."""
        return {n: x for n, x in self.state_dict().items() if n.startswith(("encoder.", "core."))}

    def new_head(self, config: HeadConfig, size: int | None = None) -> Head:
        """An untrained head, of one number or `size`, that could become a part of it."""
        return Head(config, self.feat_size, self.config.units, self.config.bins, size)

    def with_heads(self, heads: Mapping[str, Head], control: Mapping[str, float]) -> Any:
        """A copy with these heads too, paid by a weighted sum of some; ValueError where a name or
        a head cannot be."""
        configs = self.config.heads | {name: head.config for name, head in heads.items()}
        config = replace(copy.deepcopy(self.config), heads=configs, control=dict(control))
        made = type(self)(self.spec, config)
        weights = self.state_dict()
        for name, head in heads.items():
            weights |= {f"heads.{name}.{key}": value for key, value in head.state_dict().items()}
        made.load_state_dict(weights)
        return made.to(next(self.parameters()).device)

    def comparable(self, obs: dict[str, Tensor]) -> Tensor:
        """The posterior's logits [B, S * K] after one frame of a new episode, each group centred
        (the means [B, S], for gaussian latents): the best of what docs/REWARDS.md compares."""
        seen = self.core.see(self.encoder(obs))
        action = self.core.embed_action(seen.new_zeros(len(seen), self.spec.action.size))
        deter = self.core.recur(self.core.initial(len(seen)), action)
        params = self.core.posterior(deter, seen).float()
        params = params[..., 0] if self.core.gaussian else params - params.mean(-1, keepdim=True)
        return params.flatten(1)
