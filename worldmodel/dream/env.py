"""A learned world as gymnasium environments: any agent can step into the dream."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldmodel import tree
from worldmodel.capabilities import start_of
from worldmodel.dream.starts import Starts, starts_of
from worldmodel.dream.view import View
from worldmodel.seeding import Stream
from worldmodel.types import MASK_KEY, Batch, EnvSpec

ENDING = ("threshold", "sample")
FPS = 15


class _Dreams:
    """B dreams side by side: their states and their random numbers; one model call steps all."""

    def __init__(self, view: View, count: int, horizon: int, ending: str) -> None:
        if ending not in ENDING:
            raise ValueError(f"Unknown ending '{ending}'. Known: {', '.join(ENDING)}.")
        if horizon < 1 or count < 1:
            raise ValueError(f"horizon={horizon} and num_envs={count} must be at least 1.")
        self.view, self.model = view, view.model
        self.horizon, self.ending = horizon, ending
        self.stream = Stream(0, view.device)
        with torch.no_grad():
            self.state = self.model.initial(count)
        self.steps = np.zeros(count, np.int64)

    def begin(self, which: np.ndarray, batch: Batch) -> None:
        """Start the dreams numbered `which` [n] from the rows [n, T] that their models see."""
        if batch.shape[0] != len(which):
            raise ValueError(f"{len(which)} dreams begin, but {batch.shape[0]} starts were given.")
        batch = batch.to(self.view.device)
        with self.stream, torch.no_grad():
            fresh = start_of(self.model, batch)
            for t in range(batch.shape[1]):
                obs = {key: value[:, t] for key, value in batch.obs.items()}
                fresh = self.model.observe(fresh, obs, batch.action[:, t], batch.is_first[:, t])
        index = torch.from_numpy(which).to(self.view.device)
        self.state = tree.map(lambda old, new: old.index_copy(0, index, new), self.state, fresh)
        self.steps[which] = 0

    def step(self, native: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rewards [B] float64, terminated, truncated [B] bool, and P(goes on) [B]."""
        action = self.view.encoded(native, len(self.steps))
        with self.stream, torch.no_grad():
            self.state, reward, on = self.model.step(self.state, action)
            ends = torch.rand_like(on) >= on if self.ending == "sample" else on < 0.5
        self.steps += 1
        return (
            reward.double().cpu().numpy(),
            ends.cpu().numpy(),
            self.steps >= self.horizon,
            on.float().cpu().numpy(),
        )

    @torch.no_grad()
    def seen(self, on: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
        """Observations [B, ...], and what info says of them."""
        info = {"cont": on}
        mask = self.view.mask(self.state)
        if mask is not None:
            info[MASK_KEY] = mask.astype(np.int8)
        return self.view(self.state), info

    @torch.no_grad()
    def render(self) -> list[np.ndarray]:
        return self.view.render(self.state)


def _start_of(options: dict[str, Any] | None) -> Batch | None:
    """The rows that a reset was told to begin with."""
    start = (options or {}).get("start")
    if start is not None and not isinstance(start, Batch):
        raise ValueError(
            f"options['start'] is a {type(start).__name__}; needed: a Batch of rows, such as "
            "worldmodel.dream.rows_of_frames(spec, frames, actions) makes."
        )
    return start


class DreamEnv(gymnasium.Env[Any, Any]):
    """A learned world as one environment.

    model: any `Dynamics`; one that Decodes can be rendered and seen as pixels, one with Features
    be seen as these. spec: of the real environment. starts: where dreams begin,
    `starts_from(replay)` or a Batch of rows [B, T] of which one is drawn;
    `reset(options={"start": batch})` gives the rows [1, T] of one reset. observe: "latent", "image"
    or "dict" (see `View`). horizon: steps after which a dream is cut off. ending: a dream is over
    when the model finds that likelier than not ("threshold"), or as often as it says ("sample").
    Rewards are the model's.

    Actions are native, as `worldmodel.envs.make_env` takes them. info holds "cont", the model's
    P(the episode goes on), and "action_mask" where the specification has one. The same seed and
    actions give the same dream, whatever else draws random numbers.
    """

    def __init__(
        self,
        model: Any,
        spec: EnvSpec,
        starts: Starts | Batch,
        observe: str = "latent",
        horizon: int = 50,
        ending: str = "threshold",
        render_mode: str | None = None,
    ) -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}
        self.view = View(model, spec, observe)
        self.render_mode = _render_mode(render_mode, self.view)
        self.starts = starts_of(starts) if isinstance(starts, Batch) else starts
        self.observation_space = self.view.observation_space
        self.action_space = self.view.action_space
        self._dreams = _Dreams(self.view, 1, horizon, ending)
        self._phase = "before the first reset"  # or "running", or "after the end of the dream"

    @property
    def state(self) -> Any:
        """The state of the dream, [1, ...]."""
        return self._dreams.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._phase == "before the first reset":
            self._dreams.stream.seed(int(self.np_random.integers(2**32)))
        given = _start_of(options)
        start = self.starts(self.np_random, 1) if given is None else given
        self._dreams.begin(np.arange(1), start)
        self._phase = "running"
        return self._seen(np.ones(1, np.float32))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._phase != "running":
            raise ValueError(f"step was called {self._phase}. Call reset first.")
        reward, ended, cut_off, on = self._dreams.step(np.asarray(action)[None])
        if ended[0] or cut_off[0]:
            self._phase = "after the end of the dream"
        obs, info = self._seen(on)
        return obs, float(reward[0]), bool(ended[0]), bool(cut_off[0]), info

    def render(self) -> np.ndarray | None:
        """uint8 [H, W, 3], what the model decodes; None unless made with render_mode."""
        return self._dreams.render()[0] if self.render_mode else None

    def _seen(self, on: np.ndarray) -> tuple[Any, dict[str, Any]]:
        obs, info = self._dreams.seen(on)
        one = {k: v[0] for k, v in obs.items()} if isinstance(obs, dict) else obs[0]
        return one, {"cont": float(on[0])} | {k: v[0] for k, v in info.items() if k != "cont"}


class DreamVectorEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` dreams that step together, one model call for all; the rest is `DreamEnv`'s.

    Autoreset is NEXT_STEP, as in `worldmodel.envs.make_vector`: the step after a row that ended a
    dream ignores its action and returns the beginning of a new one with reward 0.
    """

    def __init__(
        self,
        model: Any,
        spec: EnvSpec,
        starts: Starts | Batch,
        num_envs: int,
        observe: str = "latent",
        horizon: int = 50,
        ending: str = "threshold",
        render_mode: str | None = None,
    ) -> None:
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": FPS,
            "autoreset_mode": AutoresetMode.NEXT_STEP,
        }
        self.view = View(model, spec, observe)
        self.render_mode = _render_mode(render_mode, self.view)
        self.starts = starts_of(starts) if isinstance(starts, Batch) else starts
        self._dreams = _Dreams(self.view, num_envs, horizon, ending)
        self.num_envs = num_envs
        self.single_observation_space = self.view.observation_space
        self.single_action_space = self.view.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over: np.ndarray | None = None

    @property
    def state(self) -> Any:
        """The states of the dreams, [B, ...]."""
        return self._dreams.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._over is None:
            self._dreams.stream.seed(int(self.np_random.integers(2**32)))
        given = _start_of(options)
        start = self.starts(self.np_random, self.num_envs) if given is None else given
        self._dreams.begin(np.arange(self.num_envs), start)
        self._over = np.zeros(self.num_envs, bool)
        return self._seen(np.ones(self.num_envs, np.float32))

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._over is None:
            raise ValueError("step was called before the first reset. Call reset first.")
        reward, ended, cut_off, on = self._dreams.step(actions)
        fresh = np.flatnonzero(self._over)
        if len(fresh):
            self._dreams.begin(fresh, self.starts(self.np_random, len(fresh)))
            reward[fresh], on[fresh] = 0.0, 1.0
            ended[fresh] = cut_off[fresh] = False
        self._over = ended | cut_off
        obs, info = self._seen(on)
        return obs, reward, ended, cut_off, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """uint8 [H, W, 3] of every dream; None unless made with render_mode."""
        return tuple(self._dreams.render()) if self.render_mode else None

    def _seen(self, on: np.ndarray) -> tuple[Any, dict[str, Any]]:
        obs, info = self._dreams.seen(on)
        there = {f"_{key}": np.ones(self.num_envs, bool) for key in info}
        return obs, {**info, **there}


def _render_mode(mode: str | None, view: View) -> str | None:
    if mode not in (None, "rgb_array"):
        raise ValueError(f"Unknown render_mode '{mode}'. Known: rgb_array.")
    if mode and not view.can_render:
        raise ValueError("render_mode=rgb_array needs a decoder and an image; use None.")
    return mode
