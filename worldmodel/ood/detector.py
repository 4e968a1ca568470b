"""The detector: fit on what is known, calibrate on held-out episodes, score every tick."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel import progress, tree
from worldmodel.config import ConfigError, RunError
from worldmodel.models.vae import VAE
from worldmodel.ood.api import FIRST_KEY, STAMP_KEY, Memory, Score, Track
from worldmodel.ood.config import DetectorConfig, make_parts
from worldmodel.ood.conformal import threshold
from worldmodel.ood.fitting import as_floats, check_tracks, checked, looks, trace, train_vae
from worldmodel.ood.scorer import SLOW, Looker, Scorer
from worldmodel.types import EnvSpec

HELD_OUT = 4  # of the known episodes, every fourth tunes where no others are given
BITS = 1e-6  # of a float32, which knows seven digits; rounding takes one
SELDOM = 0.99  # the share of ordinary ticks below the level of 1, before the symlog
LEAST, LEAST_SLOW = 0.25, 0.05  # of a unit, in levels: 0.69 is that of one seldom tick
FARTHEST = 3  # of the tuning episodes: how far those went is a column's unit
NEAR = 1.0  # excesses: no threshold lies nearer to what an ordinary episode reaches
STALE = 2.0  # thresholds: there is nothing to calibrate about a repeated time stamp


class Stamps:
    """Whether time stamps are newer than those of the tick before: one that does not move on came
    with the same observation again, or an older one."""

    def __init__(self) -> None:
        self._newest: np.ndarray | None = None

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Forget the rows [B] where it is True; all of them for None."""
        if rows is None or self._newest is None or len(self._newest) != len(rows):
            self._newest = None
        else:
            self._newest[rows] = -np.inf

    def __call__(self, stamp: Any, is_first: np.ndarray) -> np.ndarray | None:
        """0 or 2 [B] float32, or None where there are no stamps. A stamp that is not finite is
        stale."""
        if stamp is None:
            return None
        stamps = np.broadcast_to(np.asarray(stamp, np.float64), is_first.shape)
        if self._newest is None or len(self._newest) != len(stamps):
            self._newest = np.full(stamps.shape, -np.inf)
        before = np.where(is_first, -np.inf, self._newest)
        stale = ~(stamps > before)
        self._newest = np.where(stale, before, stamps)
        return np.where(stale, STALE, 0.0).astype(np.float32)


class Detector:
    """Fitted on what is known, calibrated on held-out episodes, then asked at every tick.

    spec: what is observed. world: the agent's, or None; it is not changed, and not saved with the
    detector. say: takes lines of progress.

    scorer: the arithmetic, for export. calibration: how it was calibrated; empty where it was not.

    Raises ConfigError where spec and world leave none of the parts that the settings ask for, and
    for too few held-out episodes (it says how many are needed); RunError for a score before `fit`
    and `calibrate`; ValueError for observations of a wrong shape or type, and for values that are
    not finite.
    """

    def __init__(
        self,
        spec: EnvSpec,
        config: DetectorConfig,
        world: Any = None,
        device: torch.device | str = "cpu",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.spec, self.config, self.world, self.say = spec, config, world, say
        self.device = torch.device(device)
        vae = VAE(_image_shape(spec), config.vae) if spec.keys("image") else None
        parts = make_parts(config, spec, vae, world)
        names = [part.name for part in parts]
        slow = {name: rate for name, rate in config.slow.items() if name in names}
        every = [*names, *(name + SLOW for name in slow)]
        self.scorer = Scorer(Looker(spec, vae), parts, world, config.combined or every, slow)
        self.scorer.eval().requires_grad_(False).to(self.device)
        self.fitted = False
        self.calibration: dict[str, Any] = {}  # rate, confidence, episodes
        self._stamps = Stamps()
        self._memory: Memory | None = None

    def fit(self, observations: Sequence[Track], tuning: Sequence[Track] | None = None) -> None:
        """Learn what is known from complete episodes, whose states are not needed.

        tuning: other episodes, as the deployed agent lives them, that set the units of all parts;
        where they are not given, every fourth of the known ones is held out for that. Raises
        ConfigError where there is too little, ValueError where observations do not fit.
        """
        observations = list(observations)
        if tuning is None:
            tuning = observations[HELD_OUT - 1 :: HELD_OUT]
            observations = [t for i, t in enumerate(observations) if i % HELD_OUT != HELD_OUT - 1]
        if not observations or len(tuning) < 2:
            raise ConfigError(
                f"{len(observations)} episodes to learn from and {len(tuning)} to tune on are too "
                "few: at least 1 and 2 are needed. Record or play more episodes."
            )
        check_tracks(self.spec, observations, states=False)
        check_tracks(self.spec, tuning, self.scorer.with_states)
        c, scorer = self.config, self.scorer
        if (vae := scorer.looker.vae) is not None:
            keys = scorer.looker.images
            train_vae(vae, observations, keys, c.updates, c.batch, c.lr, c.seed, self.say)
        held = looks(scorer, tuning, c.rows, c.seed)
        with torch.no_grad():  # a flow asks for gradients itself
            for part in progress.each(scorer.parts, "fitting the parts"):
                part.fit(held)  # type: ignore[operator]
        self._set_units(tuning)
        self.fitted, self.calibration = True, {}

    def _set_units(self, tuning: Sequence[Track]) -> None:
        """Make the parts comparable: what is usual, what is seldom, and how far the worst tick of
        an ordinary episode goes."""
        scorer = self.scorer
        raws = np.concatenate(trace(scorer, tuning, scorer.raw))
        usual, seldom = np.nanmedian(raws, 0), np.nanquantile(raws, SELDOM, axis=0)
        # A part that hardly ever moves (a camera that never froze, a world that stands still)
        # still needs a unit, one that is not lost beside what is usual.
        grain = [
            max(part.grain, BITS * abs(u)) for part, u in zip(scorer.parts, usual, strict=True)
        ]
        spread = np.maximum(seldom - usual, np.asarray(grain))
        scorer.usual.copy_(torch.as_tensor(usual))
        scorer.seldom.copy_(torch.as_tensor(usual + spread))
        maxima = self.maxima(tuning)
        worst = np.median(maxima, 0)
        # Out where the threshold will lie: the odd episodes of one column, which a deviation of
        # all episodes hardly feels, would else set the threshold of every other.
        spread = np.sort(maxima, 0)[-FARTHEST:].mean(0) - worst
        least = [LEAST_SLOW if name.endswith(SLOW) else LEAST for name in scorer.names]
        scorer.worst.copy_(torch.as_tensor(worst))
        scorer.unit.copy_(torch.as_tensor(np.maximum(spread, least)))
        levels = torch.from_numpy(np.concatenate(trace(scorer, tuning, scorer.levels)))
        scorer.rest.fill_(float(scorer.excess(levels.to(self.device)).median()))

    def calibrate(self, episodes: Sequence[Track], false_alarm_rate: float) -> None:
        """Set the thresholds on episodes that `fit` did not see, so that a new normal episode
        raises one alarm or more with at most this probability.

        Each part's own threshold, and that of all together, hold the rate for themselves.
        """
        if not self.fitted:
            raise RunError("The detector is not fitted. Call fit before calibrate.")
        confidence = self.config.confidence
        threshold(np.zeros(len(episodes)), false_alarm_rate, confidence)  # before any work
        check_tracks(self.spec, episodes, self.scorer.with_states)
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
        self._stamps.reset(None if is_first is None else np.asarray(is_first, bool))
        if is_first is None:
            self._memory = None
        elif self._memory is not None:
            fresh = self.scorer.initial(len(is_first))
            self._memory = tree.where(np.asarray(is_first, bool), fresh, self._memory)

    @torch.inference_mode()
    def score(self, obs: Mapping[str, Any], state: Any = None, action: Any = None) -> Score:
        """How strange obs [B, ...] is, given the world's state after it and the action [B, A] that
        led to it. Parts that need what is not given are left out. obs may hold `is_first`, whose
        rows are forgotten first, and `time_stamp`."""
        if not self.fitted or not self.calibration:
            missing = "calibrated" if self.fitted else "fitted"
            raise RunError(
                f"The detector is not {missing}, so its scores mean nothing. Call fit with known "
                "episodes, then calibrate with held-out ones (scripts/fit_detector.py does both)."
            )
        tensors = checked(self.spec, obs, self.device)
        batch = tree.batch_size(tensors)
        first = np.zeros(batch, bool) if FIRST_KEY not in obs else np.asarray(obs[FIRST_KEY], bool)
        if self._memory is None or len(self._memory["slow"]) != batch:
            self._memory = self.scorer.initial(batch)
            self._stamps.reset()
        if state is not None:
            state = as_floats(state, self.device)
        if action is not None:
            action = torch.as_tensor(action, dtype=torch.float32, device=self.device)
        is_first = torch.as_tensor(first, device=self.device)
        value, parts, self._memory = self.scorer(tensors, state, action, is_first, self._memory)
        scorer = self.scorer
        found = Score.of(value.cpu().numpy(), parts.cpu().numpy(), scorer.names, scorer.threshold)
        stale = self._stamps(obs.get(STAMP_KEY), first)
        if stale is None:
            return found
        values, unknown = np.maximum(found.value, stale), found.unknown | (stale > 0)
        return Score(values, found.threshold, unknown, {**found.parts, "stale": stale})

    def state_dict(self) -> dict[str, Any]:
        """Weights, units, thresholds and how they were calibrated; without the world."""
        tensors = {
            key: value.detach().cpu().clone() for key, value in self.scorer.state_dict().items()
        }
        return {"tensors": tensors, "fitted": self.fitted, "calibration": dict(self.calibration)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put `state_dict()` back; ValueError where it belongs to other settings."""
        given = dict(state["tensors"])
        needed = self.scorer.state_dict().keys()
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


def _image_shape(spec: EnvSpec) -> tuple[int, int, int]:
    """(H, W, all channels) of the image keys; ConfigError where they differ in size."""
    shapes = {key: spec.obs[key].shape for key in spec.keys("image")}
    height, width, _ = next(iter(shapes.values()))
    if any(shape[:2] != (height, width) for shape in shapes.values()):
        raise ConfigError(f"All images must have one size, got {shapes}. Resize them alike.")
    return height, width, sum(shape[2] for shape in shapes.values())
