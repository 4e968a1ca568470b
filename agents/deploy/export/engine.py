"""Runs an export folder without the agent's code; satisfies `agents.deploy.inference.Engine`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agents.deploy.export.graphs import only_weights, session
from agents.deploy.export.manifest import Export
from worldmodel.checkpoint import CheckpointError, spec_from_dict
from worldmodel.config import ConfigError, RunError, first_line, unknown
from worldmodel.ood.api import Score
from worldmodel.types import EnvSpec

KINDS = {"onnx": "onnx", "pt2": "torch"}


class ExportEngine:
    """An exported agent, by ONNX Runtime or by torch, on one CPU thread.

    graph: one of the manifest's; None: its default. expected: the folder's digest, where known;
    torch's own graphs are opened only with it. Raises RunError for a folder that was changed and
    for graphs that do not work, and ConfigError for a graph that is not there.
    """

    def __init__(
        self, folder: str | Path, graph: str | None = None, expected: str | None = None
    ) -> None:
        self.export = Export(folder, expected)
        self.manifest = manifest = self.export.manifest
        try:
            self.spec: EnvSpec = spec_from_dict(manifest.get("spec"))
        except CheckpointError as error:
            raise RunError(f"'{folder}': {error}") from error
        name = graph or manifest["default"]
        if name not in manifest["graphs"]:
            raise ConfigError(unknown("graph", name, manifest["graphs"]))
        self.graph = name
        self._inputs: dict[str, Any] = manifest["inputs"]
        self._outputs = list(manifest["outputs"])
        self._detector = manifest["detector"]
        try:
            self._call = self._opened(name, expected is not None)
            predict = manifest["predict"]
            self._predict = predict and session(self.export.file(predict["file"]))
            self._rehearse()
        except (ConfigError, RunError):
            raise
        except Exception as error:  # of ONNX Runtime or torch, in whatever class they like
            raise self.export.error(
                f"graph '{name}' cannot be run ({type(error).__name__}: {first_line(error)})"
            ) from error

    def _rehearse(self) -> None:
        """One step on zeros: what does not fit together fails here, and not in a loop."""
        obs = {
            name.removeprefix("obs."): np.zeros((1, *tensor["shape"][1:]), tensor["type"])
            for name, tensor in self._inputs.items()
            if name.startswith("obs.")
        }
        state, sent = self.initial(1), np.zeros((1, self.spec.action.size), np.float32)
        action, after, score = self.step(obs, state, np.ones(1, bool), sent)
        if action.shape != sent.shape or after.keys() != state.keys():
            raise ValueError("its outputs are not the next step's inputs")
        if (self._detector is None) != (score is None):
            raise ValueError("its scores are missing")
        self.predict(after, sent)

    def ignore_scores(self) -> None:
        """Run without the detector, though one was exported."""
        self._detector = None

    def _opened(self, name: str, trusted: bool) -> Any:
        """A function from named arrays to a list of arrays."""
        kind = self.manifest["graphs"][name].get("kind")
        if kind not in KINDS:
            raise ConfigError(unknown("kind of graph", str(kind), KINDS))
        if kind == "pt2" and not trusted:
            raise RunError(
                f"The graph '{name}' is torch's own, and torch may run code that such a file "
                "holds. Only one that you wrote yourself is opened: give the digest that "
                "scripts/export.py printed (expected=...), or take another graph."
            )
        data = self.export.file(self.manifest["graphs"][name]["file"])
        return self._torch(data) if kind == "pt2" else self._onnx(name, data)

    def _onnx(self, name: str, data: bytes) -> Any:
        run = session(data)
        given = {one.name for one in run.get_inputs()}
        made = {one.name for one in run.get_outputs()}
        if given != self._inputs.keys() or not made >= set(self._outputs):
            raise RunError(
                f"The graph '{name}' has other inputs or outputs than its manifest says."
            )
        return lambda feed: run.run(self._outputs, feed)

    def _torch(self, data: bytes) -> Any:
        import torch

        with only_weights():
            module = torch.export.load(io.BytesIO(data)).module()

        def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            args = [torch.from_numpy(np.ascontiguousarray(feed[name])) for name in self._inputs]
            with torch.inference_mode():
                return [tensor.numpy() for tensor in module(*args)]

        return run

    def initial(self, batch_size: int) -> dict[str, np.ndarray]:
        """The state before the first observation, by its inputs' names. Zeros: with is_first the
        graph begins anew, whatever it is given."""
        return {
            name: np.zeros((batch_size, *tensor["shape"][1:]), tensor["type"])
            for name, tensor in self._inputs.items()
            if name.startswith("state.")
        }

    def step(
        self,
        obs: Mapping[str, np.ndarray],
        state: dict[str, np.ndarray],
        is_first: np.ndarray,
        sent: np.ndarray,
    ) -> tuple[np.ndarray, Any, Score | None]:
        """One action, and the score of what led to it."""
        feed = {**state, "sent": sent.astype(np.float32, copy=False), "is_first": is_first}
        for key, value in obs.items():
            if f"obs.{key}" in self._inputs:
                feed[f"obs.{key}"] = value
        answer = self._call(feed)
        found = dict(zip(self._outputs, answer, strict=True))
        after = {
            "state." + name.removeprefix("next."): value
            for name, value in found.items()
            if name.startswith("next.")
        }
        return found["action"], after, self._score(found)

    def _score(self, found: Mapping[str, np.ndarray]) -> Score | None:
        if self._detector is None:
            return None
        detector = self._detector
        return Score.of(
            found["score.value"], found["score.parts"], detector["names"], detector["threshold"]
        )

    def predict(self, state: dict[str, np.ndarray], sent: np.ndarray) -> dict[str, Any] | None:
        """What follows a state through an action, where that was exported."""
        if self._predict is None:
            return None
        feed = {one.name: state.get(one.name) for one in self._predict.get_inputs()}
        feed["action"] = sent.astype(np.float32)
        names = [output.name for output in self._predict.get_outputs()]
        found = self._predict.run(names, feed)
        return {name.removeprefix("obs."): v for name, v in zip(names, found, strict=True)}
