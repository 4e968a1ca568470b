"""The detector: fit on what is known, calibrate on held-out episodes, score every tick."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.config import ConfigError, RunError
from worldmodel.models.vae import VAE
from worldmodel.ood.api import FIRST_KEY, STAMP_KEY, Memory, Score, Track
from worldmodel.ood.autoencoder import train_vae
from worldmodel.ood.checks import checked, checked_tracks
from worldmodel.ood.config import DetectorConfig, make_parts
from worldmodel.ood.conformal import threshold
from worldmodel.ood.look import Looker
from worldmodel.ood.scorer import SLOW, Scorer
from worldmodel.ood.stale import Stale
from worldmodel.ood.trace import looks, trace
from worldmodel.rssm.codec import image_shape
from worldmodel.rssm.model import WorldModel
from worldmodel.types import EnvSpec

HELD_OUT = 4  # of the known episodes, every fourth tunes where no others are given
SELDOM = 0.99  # the share of ordinary ticks below the level of 1, before the symlog
LEAST, LEAST_SLOW = 0.1, 0.02  # of a unit, in levels: 0.69 is that of one seldom tick
NEAR = 2.0  # excesses: no threshold lies nearer to what an ordinary episode reaches
MODEL = "looker.model."  # how the names of the agent's own weights begin


class CombinedDetector:
    """Autoencoder, world model and memory combined; satisfies `worldmodel.ood.Detector`.

    spec: what is observed. model: the agent's world model, or None; it is not changed, and not
    saved with the detector. say: takes lines of progress.

    Raises ConfigError where spec and model leave none of the parts that the settings ask for.
    """

    def __init__(
        self,
        spec: EnvSpec,
        config: DetectorConfig,
        model: WorldModel | None = None,
        device: torch.device | str = "cpu",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.spec, self.config, self.say = spec, config, say
        self.device = torch.device(device)
        keys = spec.keys("image")
        vae = VAE(image_shape(spec), config.vae) if keys else None
        parts = make_parts(config, vae, model)
        names = [part.name for part in parts]
        slow = {name: rate for name, rate in config.slow.items() if name in names}
        every = [*names, *(name + SLOW for name in slow)]
        foretells = any("foretold" in part.needs for part in parts)
        looker = Looker(keys, vae, model, foretells)
        self.scorer = Scorer(looker, parts, config.combined or every, slow)
        self.scorer.eval().to(self.device)
        for own in (vae, self.scorer.parts):  # the world model stays as it is
            if own is not None:
                own.requires_grad_(False)
        self.fitted = False
        self.calibration: dict[str, Any] = {}  # rate, confidence, episodes, limits
        self._stale = Stale()
        self._memory: Memory | None = None

    def fit(self, observations: Sequence[Track], tuning: Sequence[Track] | None = None) -> None:
        """Learn what is known from whole episodes.

        tuning: other episodes, as the deployed agent lives them, that set the units of all parts;
        where they are not given, every fourth of the known ones is held out for that. Raises
        ConfigError where there is too little, ValueError where observations do not fit.
        """
        observations = list(observations)
        if tuning is None:
            tuning = observations[HELD_OUT - 1 :: HELD_OUT]
            observations = [t for i, t in enumerate(observations) if i % HELD_OUT != HELD_OUT - 1]
        if len(observations) < 2 or len(tuning) < 2:
            raise ConfigError(
                f"{len(observations)} episodes to learn from and {len(tuning)} to tune on are too "
                "few: at least 2 of each are needed. Record or play more episodes."
            )
        checked_tracks(self.spec, [*observations, *tuning], self.scorer.looker.model is not None)
        c, scorer = self.config, self.scorer
        if scorer.looker.vae is not None:
            scorer.looker.vae.requires_grad_(True)
            keys = scorer.looker.keys
            train_vae(
                scorer.looker.vae, observations, keys, c.updates, c.batch, c.lr, c.seed, self.say
            )
        known = looks(scorer, observations, c.rows, c.seed)
        held = looks(scorer, tuning, c.rows, c.seed)
        for part in scorer.parts:
            part.fit(known, held)  # type: ignore[operator]
        self._set_units(tuning)
        self.fitted, self.calibration = True, {}

    def _set_units(self, tuning: Sequence[Track]) -> None:
        """Make the parts comparable: what is usual, what is seldom, and how far the worst tick of
        an ordinary episode goes."""
        scorer = self.scorer
        raws = np.concatenate(trace(scorer, tuning, self._raw))
        usual, seldom = np.nanmedian(raws, 0), np.nanquantile(raws, SELDOM, axis=0)
        # A part that hardly ever moves (a camera that never froze) still needs a unit.
        grain = [part.grain for part in scorer.parts]
        spread = np.maximum(seldom - usual, np.asarray(grain))
        scorer.usual.copy_(torch.as_tensor(usual))
        scorer.seldom.copy_(torch.as_tensor(usual + spread))
        maxima = self.maxima(tuning)
        worst = np.median(maxima, 0)
        # The deviation upwards, and no quantile far out: few episodes tell little about the tail.
        above = np.clip(maxima - worst, 0, None)
        spread = np.sqrt(np.square(above).sum(0) / np.maximum((above > 0).sum(0), 1))
        least = [LEAST_SLOW if name.endswith(SLOW) else LEAST for name in scorer.names]
        scorer.worst.copy_(torch.as_tensor(worst))
        scorer.unit.copy_(torch.as_tensor(np.maximum(spread, least)))
        levels = torch.from_numpy(np.concatenate(trace(scorer, tuning, scorer.levels)))
        scorer.rest.fill_(float(scorer.excess(levels.to(self.device)).median()))

    def calibrate(self, episodes: Sequence[Track], false_alarm_rate: float) -> None:
        """Set all thresholds on episodes that `fit` did not see; see `Detector.calibrate`.

        Each part's own threshold, and that of all together, hold the rate for themselves.
        """
        if not self.fitted:
            raise RunError("The detector is not fitted. Call fit before calibrate.")
        confidence = self.config.confidence
        threshold(np.zeros(len(episodes)), false_alarm_rate, confidence)  # before any work
        checked_tracks(self.spec, episodes, self.scorer.looker.model is not None)
        scorer, maxima = self.scorer, self.maxima(episodes)
        limits = [threshold(m, false_alarm_rate, confidence) for m in maxima.T]
        excess = scorer.excess(torch.from_numpy(maxima).to(self.device)).cpu().numpy()
        limit = torch.tensor(limits, device=self.device)
        scorer.limit.copy_(torch.maximum(limit, scorer.worst + NEAR * scorer.unit))
        scorer.final.fill_(max(NEAR, threshold(excess, false_alarm_rate, confidence)))
        self.calibration = {
            "false_alarm_rate": float(false_alarm_rate),
            "confidence": float(confidence),
            "episodes": len(episodes),
        }
        self.reset()

    def maxima(self, tracks: Sequence[Track]) -> np.ndarray:
        """The largest level of each episode, by column: [episodes, K]."""
        return np.stack([t.max(0) for t in trace(self.scorer, tracks, self.scorer.levels)])

    @torch.inference_mode()  # as the memory itself
    def reset(self, is_first: np.ndarray | None = None) -> None:
        """Forget the rows of the batch [B] where it is True; all of them for None."""
        if is_first is None:
            self._memory = None
            self._stale.reset()
            return
        self._stale.reset(np.asarray(is_first, bool))
        if self._memory is not None:
            rows = torch.as_tensor(np.asarray(is_first, bool), device=self.device)
            for value in self._memory.values():
                value[rows] = 0.0

    @torch.inference_mode()
    def score(self, obs: Mapping[str, Any], state: Any = None, action: Any = None) -> Score:
        """How strange obs [B, ...] is; see `Detector.score`."""
        if not self.fitted or not self.calibration:
            missing = "calibrated" if self.fitted else "fitted"
            raise RunError(
                f"The detector is not {missing}, so its scores mean nothing. Call fit with known "
                "episodes, then calibrate with held-out ones (scripts/fit_detector.py does both)."
            )
        tensors = checked(self.spec, obs, self.device)
        batch = len(next(iter(tensors.values())))
        first = np.zeros(batch, bool) if FIRST_KEY not in obs else np.asarray(obs[FIRST_KEY], bool)
        if self._memory is None or len(next(iter(self._memory.values()))) != batch:
            self._memory = self.scorer.initial(batch)
            self._stale.reset()
        if state is not None:
            state = state.map(lambda x: x.to(self.device).float())
        moved = None
        if action is not None:
            moved = torch.as_tensor(action, dtype=torch.float32, device=self.device)
        is_first = torch.as_tensor(first, device=self.device)
        value, parts, self._memory = self.scorer(tensors, state, moved, is_first, self._memory)
        return self._told(value, parts, self._stale(obs.get(STAMP_KEY), first))

    def _told(self, value: Tensor, parts: Tensor, stale: np.ndarray | None) -> Score:
        values, columns = value.cpu().numpy(), parts.cpu().numpy()
        named = {
            name: columns[:, i]
            for i, name in enumerate(self.scorer.names)
            if not np.isnan(columns[0, i])
        }
        if stale is not None:
            named["stale"] = stale
            values = np.maximum(values, stale)
        # A score that is not finite is no proof that all is well.
        unknown = ~(values <= self.scorer.threshold)
        return Score(values, self.scorer.threshold, unknown, named)

    def _raw(
        self, obs: Any, state: Any, action: Any, is_first: Tensor, memory: Memory
    ) -> tuple[Tensor, Memory]:
        """As `Scorer.levels` within one episode, but the raw scores of the parts."""
        return self.scorer.raw(self.scorer.looker(obs, state, action), memory)

    def state_dict(self) -> dict[str, Any]:
        """Weights, units, thresholds and how they were calibrated; without the world model."""
        tensors = {
            key: value.detach().cpu().clone()
            for key, value in self.scorer.state_dict().items()
            if not key.startswith(MODEL)
        }
        return {"tensors": tensors, "fitted": self.fitted, "calibration": dict(self.calibration)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back; ValueError where it belongs to other settings."""
        given = dict(state["tensors"])
        ours = self.scorer.state_dict()
        needed = {key for key in ours if not key.startswith(MODEL)}
        if needed != given.keys():
            wrong = sorted(needed ^ given.keys())
            raise ValueError(
                f"The detector's state belongs to other settings: {len(wrong)} tensors are too "
                f"many or missing (first: {wrong[0]})."
            )
        for name, value in given.items():
            _put(self.scorer, name, value.to(self.device))
        self.fitted = bool(state["fitted"])
        self.calibration = dict(state["calibration"])
        self.reset()


def _put(module: torch.nn.Module, name: str, value: Tensor) -> None:
    """Set one tensor by its dotted name. Some are as long as what was fitted on (the neighbours'
    bank), so that they are set, not copied into; weights keep their shapes."""
    *path, leaf = name.split(".")
    for word in path:
        module = getattr(module, word)
    before = getattr(module, leaf)
    if isinstance(before, torch.nn.Parameter):
        if before.shape != value.shape:
            raise ValueError(
                f"{name} has shape {list(value.shape)}; these settings need {list(before.shape)}."
            )
        before.data.copy_(value)
        return
    if before.dim() != value.dim():
        raise ValueError(f"{name} has {value.dim()} axes; these settings need {before.dim()}.")
    setattr(module, leaf, value.to(before.dtype))
