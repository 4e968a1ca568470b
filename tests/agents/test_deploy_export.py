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
from gymnasium import spaces
from torch import Tensor, nn

from agents.base import Agent, Policy
from agents.deploy.config import ISOLATION
from agents.deploy.export import graphs
from agents.deploy.export.engine import ExportEngine
from agents.deploy.export.manifest import Export, seal
from agents.deploy.export.native import native
from agents.deploy.export.parity import _rounding_decides
from agents.deploy.export.step import Step
from agents.deploy.export.write import ExportOptions, export_agent
from agents.deploy.inference import AgentEngine
from agents.dreamer import Dreamer, DreamerConfig
from agents.random import Random
from tests.agents.deploy_doubles import check_starts
from tests.conftest import Once
from worldmodel import tree
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import EnvConfig, env_spec, make_env
from worldmodel.models.vae import VAEConfig
from worldmodel.ood.api import Track
from worldmodel.ood.config import DetectorConfig
from worldmodel.ood.detector import Detector
from worldmodel.rssm import ModelConfig
from worldmodel.rssm.state import LatentState
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from agents.deploy.export.standalone import ExportedAgent

STEPS = 150  # of the comparison; an episode that is made up has 100
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
        deter=16, hidden=8, groups=3, classes=4, depth=8, units=8, layers=1, mults=[1, 1],
        latent=latent,
    )  # fmt: skip
    device = torch.device("cpu")
    config = DreamerConfig(
        batch_size=2, batch_length=6, actor_layers=1, critic_layers=1, model=model
    )
    agent = Dreamer(spec, config, device)
    with torch.no_grad():  # at birth the actor hardly looks
        agent.actor.out.weight.mul_(100)
    return Policy(agent, spec, EnvConfig("no_such_package:Robot"), device)


def export_box(folder: Path) -> None:
    """A small agent with a detector. It takes many seconds, so all tests share one."""
    export_agent(policy(BOX), folder, ExportOptions(smaller=[], steps=STEPS), Detects())


@pytest.fixture(scope="module")
def exported(once: Once) -> tuple[Policy, Path]:
    return policy(BOX), once("export", export_box)


@pytest.fixture
def copy(exported: tuple[Policy, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported[1], tmp_path / "copy"))


@pytest.mark.parametrize("isolation", ISOLATION)
def test_an_export_starts_with_default_settings(
    exported: tuple[Policy, Path], isolation: str
) -> None:
    check_starts(exported[1], isolation)


def test_every_graph_goes_the_agents_way(exported: tuple[Policy, Path]) -> None:
    manifest = Export(exported[1]).manifest
    assert set(manifest["graphs"]) == {"float32", "torch"}
    for found in manifest["parity"].values():
        assert found["steps"] == STEPS
        assert found["action"] <= 3e-5
        assert found["score"] <= 1e-4
        assert found["state"] <= 1e-4
        assert found["ties"] <= 5
    assert manifest["parity"]["float32"]["state"] > 0  # it really was another program


def test_the_manifest_says_what_the_environment_takes(exported: tuple[Policy, Path]) -> None:
    assert "no_such_package" in Export(exported[1]).manifest["native"]["unknown"]  # it is not here
    kwargs = {
        "observation_space": spaces.Dict(gear=spaces.Discrete(3, start=-1), x=spaces.Box(0, 1)),
        "observation": {"gear": 0, "x": np.zeros(1, "f4")},
        "action_space": spaces.Box(np.array([10, -1], "f4"), np.array([800, 1], "f4")),
    }
    env = EnvConfig("tests.envs_for_tests:OddSpacesEnv", pixels=False, kwargs=kwargs)
    made = policy(env_spec(make_env(env)))
    made.env = env
    assert native(made) == {
        "action": {"low": [10, -1], "high": [800, 1]},
        "observation": {"gear": {"start": [-1], "classes": [3]}},
    }
    env.kwargs["action_space"] = spaces.Discrete(4, start=2)
    made = Policy(made.agent, env_spec(make_env(env)), env, made.device)
    assert native(made)["action"] == {"start": [2], "classes": [4]}


def test_another_number_of_robots_is_refused_in_one_sentence(
    exported: tuple[Policy, Path],
) -> None:
    agent = ExportedAgent(exported[1], robots=2)
    agent({"image": frames(1, 2)[0]})
    for robots in (1, 5):
        with pytest.raises(ValueError, match=r"obs.image is .*; \[2, 32.*robots=\.\.\."):
            agent({"image": frames(1, robots)[0]})
    with pytest.raises(ValueError, match=r"has \['camera'\]; 'image' is needed"):
        agent({"camera": frames(1, 2)[0]})
    agent({"image": frames(1, 2)[0]}, is_first=[0, 1])  # flags of any kind
    for robots in (0, -1, 2.0, True):  # none at all ends ONNX Runtime, and Python with it
        with pytest.raises(ValueError, match="a whole number from 1 on is needed"):
            ExportedAgent(exported[1], robots=robots)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"there is no graph 'int9' in '.*'; known: .*float32"):
        ExportedAgent(exported[1], graph="int9")


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


def test_what_is_predicted_is_what_the_model_decodes(exported: tuple[Policy, Path]) -> None:
    made, folder = exported
    engine, ours = ExportEngine(folder), AgentEngine(made.agent)
    obs, first, sent = {"image": frames(1)[0]}, np.ones(1, bool), np.zeros((1, 2), np.float32)
    _, state, _ = engine.step(obs, engine.initial(1), first, sent)
    found = engine.predict(state, sent)
    assert found is not None
    assert set(found) == {"image", "reward"}
    assert found["image"].shape == (1, 32, 32, 3)
    assert 0 < found["image"].min() < found["image"].max() < 1
    _, after, _ = ours.step(obs, ours.initial(1), first, sent)
    drawn = ours.predict(after, sent)
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
        [sys.executable, "-I", "-B", str(script)], capture_output=True, text=True, cwd=tmp_path
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
        ({"inputs": {"state.policy": {"shape": ["B", 1 << 40], "type": "float32"}}}, "shape"),
        ({"inputs": {"state.policy": {"shape": ["B", 2], "type": "object"}}}, "type"),
        ({"detector": {"threshold": float("nan"), "names": []}}, "threshold"),
        ({"inputs": None}, "'inputs' is None"),
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
    with pytest.raises(ConfigError, match="agent=random cannot be exported"):
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
def test_masks_and_vectors(latent: str, tmp_path: Path) -> None:
    made = policy(MASKED, latent)
    found = export_agent(made, tmp_path / "x", ExportOptions(smaller=[], steps=50)).manifest
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


class Linear(Agent):
    """No world, no state: an action is a product of the observed vector and fixed weights."""

    Config = dict
    learns = False

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec
        self.net = nn.Linear(3, spec.action.size)

    def initial(self, batch_size: int) -> None:
        return None

    @torch.no_grad()
    def act(self, obs: Any, state: Any = None, mode: str = "sample") -> Any:
        action = self.net(torch.as_tensor(obs["speed"]))
        return action.numpy(), None, {}

    def tick(self) -> nn.Module:
        return Tick(self.net, self.spec)

    def update(self, replay: Any) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])


class Tick(nn.Module):
    def __init__(self, net: nn.Module, spec: EnvSpec) -> None:
        super().__init__()
        self.net, self.spec = net, spec

    def forward(self, obs: dict[str, Tensor], state: None, is_first: Tensor) -> Any:
        return self.spec.action.clip(self.net(obs["speed"])), None


class Off(Tick):
    """Does a little more where it is traced."""

    def forward(self, obs: dict[str, Tensor], state: None, is_first: Tensor) -> Any:
        action, _ = super().forward(obs, state, is_first)
        return (0.9 * action if torch.compiler.is_exporting() else action), None


VECTOR = EnvSpec({"speed": ObsSpec("vector", (3,))}, ActionSpec("continuous", (2,)))


def speeds(count: int, seed: int) -> list[Track]:
    """Episodes of five rows in which the second number is nearly twice the first."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        x = rng.normal(size=(5, 1))
        speed = np.concatenate([x, 2 * x + rng.normal(0, 0.05, (5, 1)), 0 * x], 1)
        out.append(Track({"speed": speed.astype(np.float32)}, np.zeros((5, 2), np.float32)))
    return out


def test_the_tolerance_is_held_against_what_is_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent = Linear(VECTOR)
    agent.tick = lambda: Off(agent.net, VECTOR)  # type: ignore[method-assign]
    made = Policy(agent, VECTOR, EnvConfig("no_such_package:Robot"), torch.device("cpu"))
    with pytest.raises(RunError, match="float32 is not the agent"):
        export_agent(made, tmp_path / "x", ExportOptions(smaller=[], steps=20))
    assert not list(tmp_path.iterdir())
    loose = ExportOptions(smaller=[], steps=20, tolerance=0.11)
    found = export_agent(made, tmp_path / "x", loose).manifest["parity"]
    assert found["float32"]["action"] == pytest.approx(0.1)  # of actions up to 1


def test_an_agent_of_vectors_without_world_or_state_behind_a_detector(tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent = Linear(VECTOR)
    made = Policy(agent, VECTOR, EnvConfig("no_such_package:Robot"), torch.device("cpu"))
    detector = Detector(VECTOR, DetectorConfig(confidence=0.0), agent.model)
    assert detector.scorer.names == ("density", "neighbours", "frozen", "density_slow")
    detector.fit(speeds(100, 0))
    detector.calibrate(speeds(99, 1), 0.05)
    export_agent(made, tmp_path / "x", ExportOptions(smaller=[], steps=50), detector)
    engines = AgentEngine(agent, detector), ExportEngine(tmp_path / "x")
    usual, strange = [1.0, 2.0, 0.0], [1.0, -2.0, 0.0]  # each number alone is an ordinary one
    obs = {"speed": np.array([usual, strange], np.float32)}
    sent, first = np.zeros((2, 2), np.float32), np.ones(2, bool)
    (a, state, one), (b, _, two) = (e.step(obs, e.initial(2), first, sent) for e in engines)
    np.testing.assert_allclose(np.clip(a, -1, 1), b, atol=3e-6)
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(one.value, two.value, atol=1e-4)
    assert one.unknown.tolist() == two.unknown.tolist() == [False, True]
    assert "density" in two.strange(1)
    assert engines[0].predict(state, sent) is None


@pytest.mark.slow
def test_a_detector_with_a_world_is_exported_with_it(tmp_path: Path) -> None:
    made = policy(BOX)
    parts = [
        "reconstruction", "statistics", "frozen", "surprise", "drift", "weaker", "pushed",
        "forecast",
    ]  # fmt: skip
    config = DetectorConfig(VAEConfig(4, [4]), updates=5, parts=parts, confidence=0.0)
    detector = Detector(BOX, config, made.model)
    rng = np.random.default_rng(0)

    def episode() -> Track:
        action = rng.uniform(-1, 1, (6, 2)).astype(np.float32)
        images = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
        with torch.no_grad():
            seen = {"image": torch.from_numpy(images)[None]}
            first = torch.arange(6)[None] == 0
            model = made.model
            states = model.observe(model.initial(1), seen, torch.from_numpy(action)[None], first)
        return Track({"image": images}, action, tree.map(lambda x: x[0], states))

    detector.fit([episode() for _ in range(8)])
    detector.calibrate([episode() for _ in range(9)], 0.1)
    found = export_agent(made, tmp_path / "x", ExportOptions(smaller=[], steps=40), detector)
    assert found.manifest["detector"]["names"][: len(parts)] == parts
    assert found.manifest["parity"]["float32"]["score"] <= 1e-4


def test_a_step_that_rounding_decides_is_a_tie_and_a_wrong_one_is_not() -> None:
    step = Step(Linear(VECTOR), VECTOR)
    given = step.example(1)
    theirs = {"action": step.run(given)["action"].detach().numpy()}
    assert _rounding_decides(step, given, {"action": theirs["action"] + 2e-6}, 1e-5)
    assert not _rounding_decides(step, given, {"action": theirs["action"] + 1e-2}, 1e-5)
