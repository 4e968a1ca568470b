"""Exports: the same actions without our code, and nothing believed that was changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.base import Policy
from agents.deploy.engine import AgentEngine
from agents.deploy.export import graphs
from agents.deploy.export.engine import ExportEngine
from agents.deploy.export.manifest import Export, seal
from agents.deploy.export.write import ExportOptions, export_agent
from agents.dreamer import Dreamer, DreamerConfig
from agents.random import Random
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import EnvConfig
from worldmodel.rssm import ModelConfig
from worldmodel.rssm.state import LatentState
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

IMAGES = {"image": ObsSpec("image", (32, 32, 3))}
BOX = EnvSpec(IMAGES, ActionSpec("continuous", (2,)))
MASKED = EnvSpec(
    {"speed": ObsSpec("vector", (3,)), "action_mask": ObsSpec("vector", (5,))},
    ActionSpec("discrete", (5,)),
)


class Tally(nn.Module):
    """A scorer that adds up brightness, action and latent since the episode began."""

    names = ("light", "motion")
    threshold = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(0.01))

    def initial(self, batch_size: int) -> dict[str, Tensor]:
        return {"sum": torch.zeros(batch_size)}

    def forward(
        self, obs: Any, state: LatentState, action: Tensor, is_first: Tensor, memory: Any
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        light = next(iter(obs.values())).float().flatten(1).mean(1) / 255
        motion = action.abs().sum(-1) + state.deter.square().mean(-1)
        total = memory["sum"].masked_fill(is_first, 0.0) * 0.9 + self.weight * motion
        parts = torch.stack([light, motion], -1)
        return parts.amax(-1) + total, parts, {"sum": total}


class Detects:
    scorer = Tally()

    def __init__(self) -> None:
        self.calibration = {"episodes": 99}


def policy(spec: EnvSpec, latent: str = "categorical") -> Policy:
    torch.manual_seed(0)
    model = ModelConfig(
        deter=16, hidden=8, groups=3, classes=4, depth=8, units=8, mults=[1, 1, 1], latent=latent
    )
    device = torch.device("cpu")
    agent = Dreamer(spec, DreamerConfig(batch_size=2, batch_length=6, model=model), device)
    with torch.no_grad():  # at birth the actor hardly looks
        agent.actor.out.weight.mul_(100)
    return Policy(agent, spec, EnvConfig("no_such_package:Robot"), device)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Path]:
    made = policy(BOX)
    folder = tmp_path_factory.mktemp("exports") / "box"
    export_agent(made, folder, ExportOptions(smaller=[], steps=500), Detects())
    return made, folder


@pytest.fixture
def copy(exported: tuple[Policy, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported[1], tmp_path / "copy"))


def test_every_graph_goes_the_agents_way_for_500_steps(exported: tuple[Policy, Path]) -> None:
    manifest = Export(exported[1]).manifest
    assert set(manifest["graphs"]) == {"float32", "torch"}
    for found in manifest["parity"].values():
        assert found["steps"] == 500
        assert found["action"] <= 1e-4
        assert found["score"] <= 1e-4
        assert found["ties"] <= 5
    assert manifest["parity"]["float32"]["deter"] > 0  # it really was another program


def test_the_tolerance_is_held_against_what_is_measured(tmp_path: Path) -> None:
    made = policy(BOX)
    options = ExportOptions(smaller=[], steps=20, tolerance=1e-12)
    with pytest.raises(RunError, match="float32 is not the agent"):
        export_agent(made, tmp_path / "x", options)
    assert not list(tmp_path.iterdir())


def frames(count: int, robots: int = 1) -> np.ndarray:
    shape = (count, robots, 32, 32, 3)
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


def test_robots_in_a_batch_do_not_mix(exported: tuple[Policy, Path]) -> None:
    engine = ExportEngine(exported[1])
    seen, first = frames(4, 3), np.zeros((4, 3), bool)
    first[2, 1] = True
    together, state = [], engine.initial(3)
    sent = np.zeros((3, 2), np.float32)
    for obs, begins in zip(seen, first, strict=True):
        sent, state, score = engine.step({"image": obs}, state, begins, sent)
        assert score is not None
        assert score.parts["light"].shape == (3,)
        together.append(sent)
    for robot in range(3):
        state, sent = engine.initial(1), np.zeros((1, 2), np.float32)
        for t in range(4):
            obs, begins = seen[t][robot, None], first[t][robot, None]
            sent, state, _ = engine.step({"image": obs}, state, begins, sent)
            np.testing.assert_allclose(sent[0], together[t][robot], atol=1e-5)


def test_the_action_that_was_sent_changes_what_comes_next(exported: tuple[Policy, Path]) -> None:
    folder = exported[1]
    a, b = frames(2)
    acts = []
    for sent in (np.full((1, 2), -1, np.float32), np.full((1, 2), 1, np.float32)):
        for engine in (ExportEngine(folder), ExportEngine(folder, "torch", Export(folder).digest)):
            obs = {"image": a}
            _, state, _ = engine.step(obs, engine.initial(1), np.ones(1, bool), 0 * sent)
            acts.append(engine.step({"image": b}, state, np.zeros(1, bool), sent)[0])
    np.testing.assert_allclose(acts[0], acts[1], atol=1e-4)
    np.testing.assert_allclose(acts[2], acts[3], atol=1e-4)
    assert np.abs(acts[0] - acts[2]).max() > 1e-3


def test_what_is_foretold_is_what_the_model_decodes(exported: tuple[Policy, Path]) -> None:
    made, folder = exported
    engine, ours = ExportEngine(folder), AgentEngine(made.agent)
    obs, first, sent = {"image": frames(1)[0]}, np.ones(1, bool), np.zeros((1, 2), np.float32)
    _, state, _ = engine.step(obs, engine.initial(1), first, sent)
    found = engine.predict(state, sent)
    assert found is not None
    assert set(found) == {"image", "reward"}
    assert found["image"].shape == (1, 32, 32, 3)
    assert 0 < found["image"].min() < found["image"].max() < 1
    _, mind, _ = ours.step(obs, ours.initial(1), first, sent)
    drawn = ours.predict(mind, sent)
    assert drawn is not None
    assert drawn["image"].shape == found["image"].shape


def test_the_example_needs_none_of_our_code(exported: tuple[Policy, Path], tmp_path: Path) -> None:
    folder = exported[1]
    script = tmp_path / "use.py"
    script.write_text(
        f"""
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("worldmodel", "agents", "torch"):
            raise ImportError(f"{{name}} is not here")
sys.meta_path.insert(0, Nothing())
sys.path.insert(0, {str(folder)!r})
import json, numpy as np
from run_export import ExportedAgent
agent = ExportedAgent({str(folder)!r})
seen = np.load({str(tmp_path / "seen.npy")!r})
out = []
for t, obs in enumerate(seen):
    action, score = agent({{"image": obs}}, is_first=np.array([t == 3]))
    out.append([*action[0].tolist(), float(score["level"][0]), bool(score["unknown"][0])])
print(json.dumps(out))
"""
    )
    seen = frames(6)
    np.save(tmp_path / "seen.npy", seen)
    done = subprocess.run(
        [sys.executable, "-I", str(script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    engine = ExportEngine(folder)
    state, sent = engine.initial(1), np.zeros((1, 2), np.float32)
    for t, obs in enumerate(seen):
        sent, state, score = engine.step({"image": obs}, state, np.array([t == 3]), sent)
        assert score is not None
        level = float(score.value[0] / score.threshold)
        np.testing.assert_allclose(theirs[t][:3], [*sent[0], level], atol=1e-5)
        assert theirs[t][3] == bool(score.unknown[0])


def test_a_changed_folder_is_refused_by_both_readers(copy: Path) -> None:
    target = copy / "step_float32.onnx"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(bytes(data))
    with pytest.raises(RunError, match=r"'step_float32.onnx' was changed.*scripts/export.py"):
        ExportEngine(copy)
    done = subprocess.run(
        [sys.executable, str(copy / "run_export.py")], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "was changed since it was exported" in done.stderr


def test_a_lower_threshold_in_the_manifest_is_a_change(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"threshold": 2.0', '"threshold": 9.0'))
    with pytest.raises(RunError, match=r"'manifest.json' was changed"):
        ExportEngine(copy)
    seal(copy)  # whoever changes both is found out by the folder's own digest alone
    ExportEngine(copy)
    digest = hashlib.sha256(b"the one that was written down").hexdigest()
    with pytest.raises(RunError, match="its checksum is"):
        ExportEngine(copy, expected=digest)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", ".hidden", "a\\b", ""])
def test_names_that_lead_outside_are_refused(copy: Path, name: str) -> None:
    with (copy / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(RunError, match="no checksum"):
        Export(copy)


def changed(copy: Path, **values: Any) -> Path:
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    seal(copy)
    return copy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 99}, "its format is 99"),
        ({"graphs": {"float32": {"kind": "onnx", "file": "../../x"}}}, "no file here"),
        ({"inputs": {"state.deter": {"shape": ["B", 1 << 40], "type": "float32"}}}, "shape"),
        ({"inputs": {"state.deter": {"shape": ["B", 2], "type": "object"}}}, "type"),
        ({"detector": {"threshold": float("nan"), "names": []}}, "threshold"),
        ({"inputs": None}, "'inputs' is None"),
        ({"initial": {"state.deter": "x"}}, "the first 'state.deter'"),
        ({"outputs": {}}, "not those of a step"),
        ({"default": "nothing"}, "no graph"),
    ],
)
def test_a_hostile_manifest_is_refused(copy: Path, values: Any, message: str) -> None:
    with pytest.raises(RunError, match=message):
        ExportEngine(changed(copy, **values))


def test_missing_files_links_and_other_folders(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        ExportEngine(tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'float32'"):
        ExportEngine(copy, "float3")
    (copy / "step.pt2").rename(tmp_path / "elsewhere")
    (copy / "step.pt2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link"):
        ExportEngine(copy)


def test_nothing_but_an_export_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no export"):
        export_agent(policy(BOX), tmp_path, ExportOptions())
    spec = EnvSpec(IMAGES, ActionSpec("discrete", (3,)))
    other = Random(spec, Random.Config(), torch.device("cpu"))
    whole = Policy(other, spec, EnvConfig("x:Y"), torch.device("cpu"))
    with pytest.raises(ConfigError, match="Random cannot be exported"):
        export_agent(whole, tmp_path / "new", ExportOptions())
    with pytest.raises(ConfigError, match="Did you mean 'int8'"):
        ExportOptions(smaller=["int4", "int"])


class Twice(nn.Module):
    """Uses one weight for two products, as a detector that asks the world model again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.layer(torch.relu(self.layer(x)))
        again: Tensor = self.layer(first.unsqueeze(1).expand(-1, 3, -1))
        return first + again.sum(1)


def test_eight_bit_weights_may_be_shared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Twice().eval(), torch.randn(5, 8)
    plain = graphs.to_onnx(torch.export.export(module, (x,)), ["x"], ["y"])
    small = graphs.session(graphs.to_int8(plain, tmp_path))
    with torch.no_grad():
        wanted = module(x).numpy()
    (found,) = small.run(None, {"x": x.numpy()})
    assert 0 < np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


def test_an_uncalibrated_detector_is_an_error() -> None:
    detector = Detects()
    detector.calibration = {}
    with pytest.raises(RunError, match="not calibrated"):
        AgentEngine(policy(BOX).agent, detector)  # type: ignore[arg-type]


def test_a_graph_of_torch_is_opened_only_where_its_writer_is_known(copy: Path) -> None:
    with pytest.raises(RunError, match=r"may run code.*expected="):
        ExportEngine(copy, "torch")
    ExportEngine(copy, "torch", Export(copy).digest)


def test_a_graph_that_is_none_is_one_clear_error(copy: Path) -> None:
    (copy / "step_float32.onnx").write_bytes(b"no graph at all")
    seal(copy)
    with pytest.raises(RunError, match=r"'float32' cannot be run"):
        ExportEngine(copy)


@pytest.mark.slow
@pytest.mark.parametrize("latent", ["categorical", "gaussian"])
def test_drawn_latents_masks_and_vectors(latent: str, tmp_path: Path) -> None:
    made = policy(MASKED, latent)
    options = ExportOptions(latent="sample", smaller=[], steps=200)
    found = export_agent(made, tmp_path / "x", options).manifest
    assert found["noise"] == ("exponential" if latent == "categorical" else "normal")
    assert found["parity"]["float32"]["action"] <= 1e-4
    engine = ExportEngine(tmp_path / "x")
    mask = np.zeros((2, 5), np.float32)
    mask[:, 3] = 1
    obs = {"speed": np.ones((2, 3), np.float32), "action_mask": mask}
    action, _, score = engine.step(
        obs, engine.initial(2), np.ones(2, bool), np.zeros((2, 5), np.float32)
    )
    assert action.argmax(-1).tolist() == [3, 3]
    assert score is None
