"""Runs an exported agent with NumPy and ONNX Runtime alone; copy it, change it, port it.

python run_export.py              # plays a thousand steps of noise, and tells how long they take

agent = ExportedAgent("folder")
action, score = agent(obs)        # obs: {"image": uint8 [B, H, W, C], ...}
action, score = agent(obs, is_first=np.array([True]))     # a new episode begins
action, score = agent(obs, sent=what_was_sent_instead)    # the action before was not the agent's
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class ExportedAgent:
    """The policy, its memory, and the detector, if one was exported.

    folder: as scripts/export.py wrote it; every file is checked against SHA256SUMS. robots: B.
    """

    def __init__(self, folder: str | Path, graph: str | None = None, robots: int = 1) -> None:
        if isinstance(robots, bool) or not isinstance(robots, int) or robots < 1:
            raise ValueError(f"robots is {robots!r}; a whole number from 1 on is needed")
        folder = Path(folder)
        sums = {}
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            digest, _, name = line.partition("  ")
            if "/" in name or "\\" in name or name.startswith("."):
                raise ValueError(f"SHA256SUMS names a file elsewhere: {name!r}")
            sums[name] = digest

        def checked(name: str) -> bytes:
            data = (folder / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != sums.get(name):
                raise ValueError(f"'{folder / name}' was changed since it was exported")
            return data

        self.manifest = json.loads(checked("manifest.json"))
        graph = graph or self.manifest["default"]
        if graph not in self.manifest["graphs"]:
            known = ", ".join(self.manifest["graphs"])
            raise ValueError(f"there is no graph '{graph}' in '{folder}'; known: {known}")
        chosen = self.manifest["graphs"][graph]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # From the bytes that were checked, not from the file again.
        self.session = onnxruntime.InferenceSession(
            checked(chosen["file"]), options, providers=["CPUExecutionProvider"]
        )
        self.robots = robots
        self.inputs, self.outputs = self.manifest["inputs"], list(self.manifest["outputs"])
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.state = {
            name: np.zeros((self.robots, *tensor["shape"][1:]), tensor["type"])
            for name, tensor in self.inputs.items()
            if name.startswith("state.")
        }
        self.last = np.zeros((self.robots, self.inputs["sent"]["shape"][1]), np.float32)
        self.begun = False

    def __call__(
        self, obs: dict[str, Any], is_first: Any = None, sent: Any = None
    ) -> tuple[np.ndarray, dict[str, Any] | None]:
        """Encoded actions [B, A], and the score: None, or its value in units of the threshold,
        whether it is unknown, and its parts by name, [B] each."""
        first = np.full(self.robots, not self.begun) if is_first is None else is_first
        last = self.last if sent is None else np.asarray(sent, np.float32)
        feed = {**self.state, "sent": last, "is_first": np.asarray(first, bool)}
        for name, tensor in self.inputs.items():
            if name.startswith("obs."):
                if name[4:] not in obs:
                    raise ValueError(f"the observation has {sorted(obs)}; '{name[4:]}' is needed")
                array = np.asarray(obs[name[4:]])
                if str(array.dtype) != tensor["type"]:
                    raise ValueError(f"{name} is {array.dtype}; {tensor['type']} is needed")
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise ValueError(f"{name} is not finite, which would stay in the memory")
                feed[name] = array
        for name, array in feed.items():
            shape = [self.robots, *self.inputs[name]["shape"][1:]] if name in self.inputs else []
            if shape and list(np.shape(array)) != shape:
                raise ValueError(
                    f"{name} is {list(np.shape(array))}; {shape} is needed: this agent "
                    f"remembers {self.robots} robots. For others: ExportedAgent(folder, robots=...)"
                )
        found = dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))
        self.state = {
            "state." + name[5:]: value for name, value in found.items() if name.startswith("next.")
        }
        self.last, self.begun = found["action"], True
        return found["action"], self._score(found)

    def _score(self, found: dict[str, np.ndarray]) -> dict[str, Any] | None:
        detector = self.manifest["detector"]
        if detector is None:
            return None
        level = found["score.value"] / detector["threshold"]
        parts = dict(zip(detector["names"], found["score.parts"].T, strict=True))
        return {"level": level, "unknown": ~(level <= 1.0), "parts": parts}


def main() -> None:
    """A thousand steps of noise."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    agent = ExportedAgent(folder)
    rng = np.random.default_rng(0)
    took = []
    for _ in range(1000):
        obs = {
            name[4:]: rng.integers(0, 256, (1, *tensor["shape"][1:])).astype(tensor["type"])
            for name, tensor in agent.inputs.items()
            if name.startswith("obs.")
        }
        start = time.perf_counter()
        action, score = agent(obs)
        took.append(1e3 * (time.perf_counter() - start))
    print(f"action {action[0].tolist()}, score {score and score['level'].tolist()}")
    print(f"{np.median(took):.3f} ms a step, {np.percentile(took, 99.9):.3f} ms at p99.9")


if __name__ == "__main__":
    main()
