"""Writes an export folder: graphs, manifest, checksums, and an example that needs none of ours."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from agents.base import Policy
from agents.deploy.export import graphs
from agents.deploy.export.engine import ExportEngine
from agents.deploy.export.manifest import FORMAT, MANIFEST, Export, seal
from agents.deploy.export.native import native
from agents.deploy.export.parity import observations, parity
from agents.deploy.export.step import Prediction, Step
from agents.deploy.inference import can_predict
from worldmodel import progress
from worldmodel.atomic import replaced
from worldmodel.checkpoint import spec_to_dict
from worldmodel.config import ConfigError, RunError, unknown
from worldmodel.log import write_json
from worldmodel.replay import Replay

RUNNER = Path(__file__).with_name("standalone.py")
CANDIDATES = ("half", "int8")
PACKAGES = ("torch", "numpy", "onnx", "onnxscript", "onnxruntime")
FASTER = 0.9  # a smaller graph is worth keeping at this share of float32's time, or less


@dataclass
class ExportOptions:
    """smaller: what else to try beside float32: half, int8; kept where it takes at most 0.9 of the
    time and stays within smaller_tolerance. steps: of the parity check. tolerance: largest
    difference of an action, a score or (relative) a state that it allows float32. compile: also
    write an AOTInductor package, where a C++ compiler is there.
    """

    smaller: list[str] = field(default_factory=lambda: [*CANDIDATES])
    smaller_tolerance: float = 0.02
    steps: int = 500
    tolerance: float = 1e-4
    compile: bool = False

    def __post_init__(self) -> None:
        for name in self.smaller:
            if name not in CANDIDATES:
                raise ConfigError(unknown("precision", name, CANDIDATES))
        if self.steps < 1 or not min(self.tolerance, self.smaller_tolerance) > 0:
            raise ConfigError("steps and the tolerances must be above 0.")


def export_agent(
    policy: Policy,
    folder: str | Path,
    options: ExportOptions,
    detector: Any = None,
    replay: Replay | None = None,
    about: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Export:
    """The agent, with its detector where there is one, as a folder; complete or not at all.

    replay: recorded experience for the parity check; without it observations are made up. about:
    for the manifest. Raises ConfigError for agents that cannot be exported and folders that hold
    something else, RunError where the export does not do what the agent does.
    """
    folder = Path(folder)
    _check_place(folder)
    scorer = None if detector is None else detector.scorer
    step = Step(policy.agent, policy.spec, scorer).eval()
    with replaced(folder) as fresh:
        manifest = _manifest(policy, detector, about or {})
        _write_graphs(step, policy, fresh, options, manifest, say)
        shutil.copyfile(RUNNER, fresh / "run_export.py")
        digest = _seal(fresh, manifest)
        _check(step, policy, replay, fresh, digest, options, manifest, say)
        _seal(fresh, manifest)
        Export(fresh)
    return Export(folder)


def _check_place(folder: Path) -> None:
    """Only a former export is written over."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if (folder / MANIFEST).is_file():
            return
        raise ConfigError(f"'{folder}' holds something that is no export. Choose another: to=...")


def _manifest(policy: Policy, detector: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    names = {name: _version(name) for name in PACKAGES}
    return {
        "format": FORMAT,
        "about": {**about, "task": policy.env.id, "agent": type(policy.agent).__name__},
        "versions": {"python": platform.python_version(), **names},
        "spec": spec_to_dict(policy.spec),
        "env": asdict(policy.env),
        "normalisation": {
            "image": "uint8 [B, H, W, C] as the camera gives it; normalised in the graph",
            "vector": "float32 [B, N] in its own units; normalised in the graph",
            "action": "float32 [B, A]: continuous in [-1, 1], discrete one-hot by factor",
            "low_high": policy.spec.action.kind == "continuous" and [-1.0, 1.0],
        },
        "native": native(policy),
        "detector": None if detector is None else {
            "threshold": float(detector.scorer.threshold), "names": list(detector.scorer.names),
        },
        "inputs": {}, "outputs": {}, "graphs": {}, "predict": None,
        "default": "float32", "rejected": {}, "parity": {},
    }  # fmt: skip


def _write_graphs(
    step: Step,
    policy: Policy,
    folder: Path,
    options: ExportOptions,
    manifest: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    inputs = step.example(2)
    with torch.no_grad():
        outputs = step.run(inputs)
    manifest["inputs"] = {name: _described(tensor) for name, tensor in inputs.items()}
    manifest["outputs"] = {name: _described(tensor) for name, tensor in outputs.items()}
    say("tracing the step ...")
    program = graphs.traced(step, tuple(inputs.values()))
    (folder / "step.pt2").write_bytes(graphs.to_pt2(program))
    plain = graphs.to_onnx(program, list(inputs), list(outputs))
    made = {"float32": plain}
    for name in progress.each(options.smaller, "making smaller graphs"):
        try:
            made[name] = graphs.to_half(plain) if name == "half" else graphs.to_int8(plain, folder)
        except Exception as error:  # a converter that does not know an operation
            manifest["rejected"][name] = f"cannot be made: {type(error).__name__}: {error}"[:300]
    for name in ("float32.onnx", "int8.onnx"):  # what the quantiser was given
        (folder / name).unlink(missing_ok=True)
    for name, data in made.items():
        (folder / f"step_{name}.onnx").write_bytes(data)
        manifest["graphs"][name] = {"kind": "onnx", "file": f"step_{name}.onnx"}
    manifest["graphs"]["torch"] = {"kind": "pt2", "file": "step.pt2"}
    if options.compile:
        _compiled(program, folder, manifest, say)
    if can_predict(policy.model):
        say("tracing the prediction ...")
        _write_prediction(step, folder, manifest)


def _described(tensor: torch.Tensor) -> dict[str, Any]:
    return {"shape": ["B", *tensor.shape[1:]], "type": str(tensor.dtype).removeprefix("torch.")}


def _write_prediction(step: Step, folder: Path, manifest: dict[str, Any]) -> None:
    module = Prediction(step).eval()
    inputs = {**step.example(2), "action": torch.zeros(2, step.spec.action.size)}
    inputs = {name: inputs[name] for name in module.names}
    with torch.no_grad():
        names = list(module.run(inputs))
    program = graphs.traced(module, tuple(inputs.values()))
    (folder / "predict.onnx").write_bytes(graphs.to_onnx(program, module.names, names))
    manifest["predict"] = {"file": "predict.onnx", "outputs": names}


def _compiled(
    program: Any, folder: Path, manifest: dict[str, Any], say: Callable[[str], None]
) -> None:
    """An AOTInductor package, for C++ programs; its absence is said, not an error."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        manifest["rejected"]["aotinductor"] = "there is no C++ compiler here"
        return
    say("compiling with AOTInductor (minutes) ...")
    target = folder / "step_aoti.pt2"
    try:
        with graphs.no_warnings(), torch.no_grad():
            torch._inductor.aoti_compile_and_package(program, package_path=str(target))
        manifest["aotinductor"] = target.name
    except Exception as error:
        manifest["rejected"]["aotinductor"] = f"{type(error).__name__}: {error}"[:300]
        target.unlink(missing_ok=True)


def _seal(folder: Path, manifest: Mapping[str, Any]) -> str:
    write_json(folder / MANIFEST, manifest)
    return seal(folder)


def _check(
    step: Step,
    policy: Policy,
    replay: Replay | None,
    folder: Path,
    digest: str,
    options: ExportOptions,
    manifest: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Parity and speed of every graph; what does not hold or does not pay is left out."""
    left_out = []
    seen, first, source = observations(policy, replay, options.steps)
    for name in list(manifest["graphs"]):
        engine = ExportEngine(folder, name, digest)
        tolerance = options.smaller_tolerance if name in CANDIDATES else options.tolerance
        worst = parity(step, engine, seen, first, tolerance)
        took = _milliseconds(engine, seen[0])
        manifest["parity"][name] = {"steps": len(seen), "of": source, "ms": round(took, 4), **worst}
        say(
            f"{name}: {took:.3f} ms a step; over {len(seen)} {source} steps actions differ by at "
            f"most {worst['action']:.2g}"
        )
        why = _refused(name, manifest["parity"], options)
        if why and name in CANDIDATES:
            manifest["rejected"][name] = why
            left_out.append(folder / manifest["graphs"].pop(name)["file"])
            say(f"{name} is left out: {why}")
        elif why:
            raise RunError(f"The export by {name} is not the agent: {why}.")
    for path in left_out:
        path.unlink()


def _refused(name: str, found: Mapping[str, Any], options: ExportOptions) -> str:
    """Why a graph is not kept, or ""."""
    tolerance = options.smaller_tolerance if name in CANDIDATES else options.tolerance
    for what in ("action", "score") if name in CANDIDATES else ("action", "score", "state"):
        if not found[name].get(what, 0.0) <= tolerance:
            return f"{what} differs by {found[name][what]:.2g}; allowed: {tolerance:g}"
    if name in CANDIDATES and found[name]["ms"] > FASTER * found["float32"]["ms"]:
        return f"{found[name]['ms']:.3f} ms a step, float32 {found['float32']['ms']:.3f} ms"
    return ""


def _milliseconds(engine: ExportEngine, obs: Mapping[str, Any]) -> float:
    import numpy as np

    state = engine.initial(1)
    first, sent = np.zeros(1, bool), np.zeros((1, engine.spec.action.size), np.float32)
    return graphs.milliseconds(lambda: engine.step(obs, state, first, sent))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
