"""What an agent sees of a learned world's states, asleep or awake."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from worldmodel.capabilities import Decodes, Features, Masks
from worldmodel.dream.films import pictures
from worldmodel.dream.rollout import device_of
from worldmodel.seeding import Stream
from worldmodel.types import MASK_KEY, EnvSpec

OBSERVE = ("latent", "image", "dict")


class View:
    """What an agent sees of a model's states, and what it may do: spaces and conversions.

    observe: "latent" (the features, float32 [F]), "image" (the one decoded image, uint8), or
    "dict" (every key of the real environment, decoded). Raises ValueError where the model has
    nothing of the kind.
    """

    def __init__(self, model: Any, spec: EnvSpec, observe: str) -> None:
        if observe not in OBSERVE:
            raise ValueError(f"Unknown view '{observe}'. Known: {', '.join(OBSERVE)}.")
        images = spec.keys("image")
        if observe != "latent" and not isinstance(model, Decodes):
            raise ValueError(f"observe={observe} needs a decoder, which this model lacks.")
        if observe == "latent" and not isinstance(model, Features):
            raise ValueError("observe=latent needs features, which this model's states lack.")
        if observe == "image" and len(images) != 1:
            raise ValueError(
                f"observe=image needs exactly one image; the keys are {images or 'none'}. Use "
                "observe=dict or observe=latent."
            )
        self.model, self.spec, self.observe, self.images = model, spec, observe, images
        self.can_render = bool(images) and isinstance(model, Decodes)
        self.device = device_of(model)
        self.observation_space = self._space()
        self.action_space = _action_space(spec)

    def __call__(self, state: Any) -> Any:
        """Observations with a batch axis: an array, or a dict of arrays."""
        if self.observe == "latent":
            return self.model.feat(state).float().cpu().numpy()
        shown = self.model.decode(state)
        out = {}
        for key, obs in self.spec.seen.items():
            if key == MASK_KEY:
                out[key] = self.mask(state)
            elif obs.kind == "image":
                pixels = (shown[key].float().clamp(0, 1) * 255).round().byte()
                out[key] = pixels.cpu().numpy()
            else:
                out[key] = shown[key].float().cpu().numpy()
        return out[self.images[0]] if self.observe == "image" else out

    def mask(self, state: Any) -> np.ndarray | None:
        """Which actions the model thinks allowed, float32 [B, A], where it says so at all."""
        asked = self.spec.has_mask and isinstance(self.model, Masks)
        found = self.model.action_mask(state) if asked else None
        return None if found is None else found.float().cpu().numpy()

    def encoded(self, native: Any, count: int) -> torch.Tensor:
        """Native actions [B, ...] -> [B, A] on the model's device; ValueError where they do not
        fit the action space."""
        array = np.asarray(native)
        wanted = (count, *(self.action_space.shape or ()))
        if array.shape != wanted:
            raise ValueError(f"The actions have shape {array.shape}; needed: {wanted}.")
        if self.spec.action.kind == "continuous":
            if not np.isfinite(array).all():
                raise ValueError(f"The action is not finite: {array}.")
            array = self.spec.action.clip(array)
        else:
            sizes = np.asarray(self.spec.action.sizes)
            limit = sizes[0] if len(sizes) == 1 else sizes
            if array.dtype.kind not in "iu" or (array < 0).any() or (array >= limit).any():
                raise ValueError(f"The action {array} lies outside of {self.action_space}.")
        return torch.from_numpy(self.spec.action.encode(array)).to(self.device)

    def render(self, state: Any) -> list[np.ndarray]:
        """A picture uint8 [H, W, 3] for each state [B, ...], several images side by side."""
        return pictures(self.spec, self.model.decode(state))

    def _space(self) -> spaces.Space[Any]:
        if self.observe == "latent":
            bound = self.model.feat_bound
            return spaces.Box(-bound, bound, (self.model.feat_size,), np.float32)
        boxes: dict[str, spaces.Space[Any]] = {}
        for key, obs in self.spec.seen.items():
            if obs.kind == "image":
                boxes[key] = spaces.Box(0, 255, obs.shape, np.uint8)
            elif obs.kind == "discrete" or key == MASK_KEY:
                boxes[key] = spaces.Box(0.0, 1.0, obs.shape, np.float32)
            else:
                boxes[key] = spaces.Box(-np.inf, np.inf, obs.shape, np.float32)
        return boxes[self.images[0]] if self.observe == "image" else spaces.Dict(boxes)


class AwakeEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A real environment in the dream's clothes: what was trained in `DreamEnv` acts in it.

    env: from `worldmodel.envs.make_env`. The model follows what happens, and the observation is
    its state, or (observe "image" or "dict") what the environment really showed. `seed`: of the
    model's draws, until a reset is given one.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        model: Any,
        spec: EnvSpec,
        observe: str = "latent",
        seed: int = 0,
    ) -> None:
        super().__init__(env)
        self.view = View(model, spec, observe)
        self.observation_space = self.view.observation_space
        self._stream = Stream(seed, self.view.device)
        self._state = model.initial(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._stream.seed(seed)
        nothing = torch.zeros(1, self.view.spec.action.size, device=self.view.device)
        self._state = self.view.model.initial(1)
        return self._seen(obs, nothing, first=True), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        encoded = self.view.encoded(np.asarray(action)[None], 1)
        return self._seen(obs, encoded, first=False), float(reward), terminated, truncated, info

    def _seen(self, obs: Any, action: torch.Tensor, first: bool) -> Any:
        view = self.view
        if view.observe != "latent":
            return obs[view.images[0]] if view.observe == "image" else obs
        tensors = {
            key: torch.as_tensor(obs[key], device=view.device)[None] for key in view.spec.seen
        }
        is_first = torch.tensor([first], device=view.device)
        with self._stream, torch.no_grad():
            self._state = view.model.observe(self._state, tensors, action, is_first)
            return view(self._state)[0]


def _action_space(spec: EnvSpec) -> spaces.Space[Any]:
    """The native actions of `worldmodel.envs.make_env`."""
    action = spec.action
    if action.kind == "continuous":
        return spaces.Box(-1.0, 1.0, (action.size,), np.float32)
    if len(action.sizes) == 1:
        return spaces.Discrete(action.sizes[0])
    return spaces.MultiDiscrete(list(action.sizes))
