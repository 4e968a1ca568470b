"""Runs an export folder: satisfies `agents.deploy.brain.Engine` without the agent's own code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agents.deploy.engine import scored
from agents.deploy.export.graphs import session
from agents.deploy.export.manifest import Export
from worldmodel.checkpoint import CheckpointError, spec_from_dict
from worldmodel.config import ConfigError, RunError, unknown
from worldmodel.ood.api import Score
from worldmodel.types import EnvSpec

KINDS = {"onnx": "onnx", "pt2": "torch"}


class ExportEngine:
    """An exported agent, by ONNX Runtime or by torch, on one CPU thread.

    graph: one of the manifest's; None: its default. expected: the folder's digest, where known.
    seed: of the noise, where latents are drawn. Raises RunError for a folder that was changed, and
    ConfigError for a graph that is not there.
    """

    def __init__(
        self,
        folder: str | Path,
        graph: str | None = None,
        expected: str | None = None,
        seed: int = 0,
    ) -> None:
        self.export = Export(folder, expected)
        self.manifest = manifest = self.export.manifest
        try:
            self.spec: EnvSpec = spec_from_dict(manifest.get("spec"))
        except CheckpointError as error:
            raise RunError(f"'{folder}': {error}") from error
        self.continuous = self.spec.action.kind == "continuous"
        name = graph or manifest["default"]
        if name not in manifest["graphs"]:
            raise ConfigError(unknown("graph", name, manifest["graphs"]))
        self.graph = name
        self._inputs: dict[str, Any] = manifest["inputs"]
        self._outputs = list(manifest["outputs"])
        self._call = self._opened(name)
        foretell = manifest.get("foretell")
        self._foretell = None if foretell is None else session(self.export.file(foretell["file"]))
        self._detector = manifest["detector"]
        self._rng = np.random.default_rng(seed)

    def ignore_scores(self) -> None:
        """Run without the detector, though one was exported."""
        self._detector = None

    def _opened(self, name: str) -> Any:
        """A function from named arrays to a list of arrays."""
        data = self.export.file(self.manifest["graphs"][name]["file"])
        kind = self.manifest["graphs"][name]["kind"]
        if kind == "onnx":
            run = session(data)
            return lambda feed: run.run(self._outputs, feed)
        if kind == "pt2":
            return _TorchGraph(data)
        raise ConfigError(unknown("kind of graph", str(kind), KINDS))

    def initial(self, batch_size: int) -> dict[str, np.ndarray]:
        """The state before the first observation: by its inputs' names, as the manifest says."""
        first = self.manifest["initial"]
        out = {}
        for name, tensor in self._inputs.items():
            if name.startswith("state."):
                shape = (batch_size, *tensor["shape"][1:])
                out[name] = np.full(shape, first.get(name, 0), tensor["type"])
        return out

    def step(
        self,
        obs: Mapping[str, np.ndarray],
        state: dict[str, np.ndarray],
        is_first: np.ndarray,
        sent: np.ndarray,
    ) -> tuple[np.ndarray, Any, Score | None]:
        """One action, and the score of what led to it."""
        feed = {**state, "state.action": sent.astype(np.float32, copy=False), "is_first": is_first}
        for key, value in obs.items():
            if f"obs.{key}" in self._inputs:
                feed[f"obs.{key}"] = value
        if "noise" in self._inputs:
            feed["noise"] = self._noise(len(is_first))
        found = dict(zip(self._outputs, self._call(feed), strict=True))
        after = {
            "state." + name.removeprefix("next."): value
            for name, value in found.items()
            if name.startswith("next.")
        }
        return found["action"], after, self._score(found)

    def _score(self, found: Mapping[str, np.ndarray]) -> Score | None:
        if self._detector is None:
            return None
        value, parts = found["score.value"], found["score.parts"]
        return scored(value, parts, self._detector["names"], self._detector["threshold"])

    def _noise(self, batch_size: int) -> np.ndarray:
        shape = (batch_size, *self._inputs["noise"]["shape"][1:])
        if self.manifest["noise"] == "exponential":
            return self._rng.standard_exponential(shape, np.float32)
        return self._rng.standard_normal(shape, np.float32)

    def blend(
        self, old: dict[str, np.ndarray], new: dict[str, np.ndarray], keep: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The old state's rows where keep, else the new one's."""
        return {
            name: np.where(keep.reshape(-1, *[1] * (value.ndim - 1)), old[name], value)
            for name, value in new.items()
        }

    def predict(self, state: dict[str, np.ndarray], sent: np.ndarray) -> dict[str, Any] | None:
        """What follows a state through an action, where that was exported."""
        if self._foretell is None:
            return None
        feed = {name: state[name] for name in ("state.deter", "state.stoch")}
        names = [output.name for output in self._foretell.get_outputs()]
        found = self._foretell.run(names, feed | {"action": sent.astype(np.float32)})
        return {name.removeprefix("obs."): v for name, v in zip(names, found, strict=True)}


class _TorchGraph:
    """A torch.export graph behind named arrays."""

    def __init__(self, data: bytes) -> None:
        import torch

        self._torch = torch
        self._module = torch.export.load(io.BytesIO(data)).module()

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        torch = self._torch
        tensors = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in feed.items()}

        def part(prefix: str) -> dict[str, Any]:
            names = sorted(name for name in tensors if name.startswith(prefix))
            return {name.removeprefix(prefix): tensors[name] for name in names}

        args = [part("obs."), part("state."), tensors["is_first"]]
        with torch.inference_mode():
            found = self._module(*args, *([tensors["noise"]] if "noise" in tensors else []))
        action, after, score = found
        return [x.numpy() for x in (action, *after.values(), *score.values())]
