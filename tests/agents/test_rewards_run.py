"""Fitted heads of a run: every source end to end, the store, heads in the model, scores, misuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import agents
from agents.apps import rewards
from agents.apps.episodes import Episodes
from agents.apps.rewards.cli import fit_reward_command
from agents.base import Policy
from agents.run.evaluate import evaluate
from tests.agents.counting_agent import CountingConfig
from tests.agents.rewards_run import HERE, LENGTH, make_run
from worldmodel import checkpoint
from worldmodel.config import ConfigError, RunError
from worldmodel.rssm import WorldModel
from worldmodel.rssm.fitted import FittedHead, fingerprint, head_names, read_head

PRIVATE = "tests.agents.test_rewards_run"
pytestmark = pytest.mark.usefixtures("no_pictures")  # but for `run`, which is made before


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one fitted head, `near`."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "tiny")
    fit(folder, "near", f"{HERE}:step_of", "updates=100")
    return folder


def command(run: Path, *words: str) -> tuple[int, str]:
    said: list[str] = []
    code = fit_reward_command(said.append, [f"run={run}", *words])
    return code, "\n".join(said)


def fit(run: Path, name: str, reward: str, *words: str) -> FittedHead:
    quick = [] if any(word.startswith("updates=") for word in words) else ["updates=20"]
    code, said = command(run, f"name={name}", f"reward={reward}", "replace=true", *quick, *words)
    assert code == 0, said
    return read_head(run, name)


def refused(run: Path, *words: str, code: int = 2) -> str:
    """The one line that a wrong request costs; nothing is fitted or stored."""
    before = head_names(run)
    found, said = command(run, *words)
    assert found == code, said
    assert said.splitlines()[-1].startswith("error: ")
    assert "fitting" not in said
    assert head_names(run) == before
    return said


# Every source


def test_a_function_of_a_key_that_the_model_never_saw(run: Path) -> None:
    stored = read_head(run, "near")
    assert stored.source == {"reward": f"{HERE}:step_of", "kind": "function"}
    seen = stored.fitted["seen"]
    assert (seen["min"], seen["max"]) == (1, LENGTH)
    # The picture tells the step, so even this model's states do.
    assert stored.fitted["held_out"]["mae"] < stored.fitted["held_out"]["constant_mae"]
    assert stored.fitted["held_out"]["rows"] + stored.fitted["taught"]["rows"] == seen["labels"]
    assert {"1", "5"} <= set(stored.fitted["ahead"])
    for name in ("report.png", "calibration.csv", "histogram.csv", "episodes.csv"):
        assert (stored.folder / name).stat().st_size > 20, name


def test_a_key_and_the_recorded_reward(run: Path) -> None:
    stored = fit(run, "again", "key:reward")
    assert stored.fitted["seen"]["max"] == LENGTH
    assert "The key 'count' holds [4] numbers" in refused(run, "name=x", "reward=key:count")


def test_sparse_labels(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("episode,step,value\n0,1,0.5\n1,2,0.25\n2,7,1\n3,8,0\n")
    stored = fit(run, "liked", f"labels:{path}")
    assert stored.fitted["seen"]["labels"] == 4
    assert stored.fitted["held_out"]["rows"] == 1
    assert stored.fitted["taught"]["rows"] == 3
    assert stored.config.kind == "mse"  # few labels
    assert stored.fitted["dropout"] == 0.5
    _, said = command(run, "name=liked", f"reward=labels:{path}", "replace=true", "updates=5")
    assert "4 of 78 rows have a label, in 4 of 9 episodes" in said


def test_preferences(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    rng = np.random.default_rng(0)
    rows = [
        f"{a},{s},{b},{t},2,{int(t > s)}"
        for (a, b), (s, t) in zip(rng.integers(7, size=(40, 2)), rng.integers(7, size=(40, 2)),
                                  strict=True)
    ]  # fmt: skip
    path.write_text("episode_a,start_a,episode_b,start_b,length,preferred\n" + "\n".join(rows))
    stored = fit(run, "later", f"preferences:{path}")
    assert stored.fitted["held_out"]["pairs"] + stored.fitted["taught"]["pairs"] == 40
    assert 0 < stored.fitted["calibration"]["pairs"] <= stored.fitted["taught"]["pairs"]
    seen = stored.fitted["seen"]
    assert seen["mean"] == pytest.approx(0, abs=1e-6)
    assert seen["std"] == pytest.approx(1, abs=1e-6)
    # What is stored is what was centred and scaled.
    found = rewards.score(agents.load(run, "cpu"), {"later": 1.0}, run, episodes=2, num_envs=1)
    assert found.measured == {"later": False}
    assert all(abs(x) < 5 * LENGTH for x in found.parts["later"])


def test_goals(run: Path, tmp_path: Path) -> None:
    stored = fit(run, "there", "goal:1:4")
    assert stored.fitted["seen"]["max"] == pytest.approx(0, abs=1e-6)
    assert stored.fitted["seen"]["best_episode"] in range(9)
    again = fit(run, "there", "goal:1:4,2:4", "goal_scale=0.5")
    assert again.source["goal_scale"] == 0.5
    assert 0 < again.fitted["seen"]["min"] < again.fitted["seen"]["max"] <= 1


# The store


def test_heads_are_listed_replaced_and_removed(run: Path) -> None:
    fit(run, "effort", f"{HERE}:effort")
    lines = [line.split() for line in command(run, "list=true")[1].splitlines()]
    assert ["effort", f"{HERE}:effort", "(held-out", "R2"] in [line[:4] for line in lines]
    said = refused(run, "name=effort", f"reward={HERE}:effort")
    assert "has a head 'effort' already" in said
    assert "remove=effort" in said
    code, said = command(run, "remove=effort")
    assert (code, said) == (0, f"removed {run}/heads/effort")
    assert "effort" not in head_names(run)
    assert "Unknown head 'effort'" in refused(run, "remove=effort")


def test_an_interrupted_write_leaves_the_head_before(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "heads" / "near" / "weights.pt").read_bytes()

    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        command(run, "name=near", f"reward={HERE}:effort", "replace=true", "updates=5")
    monkeypatch.undo()
    assert (run / "heads" / "near" / "weights.pt").read_bytes() == before
    assert read_head(run, "near").source["reward"] == f"{HERE}:step_of"
    assert sorted(path.name for path in (run / "heads").glob(".*")) == []


def test_damage_is_noticed(run: Path) -> None:
    stored = fit(run, "frail", f"{HERE}:effort")
    weights = stored.folder / "weights.pt"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(RunError, match=r"is damaged: the bytes of weights\.pt"):
        rewards.with_heads(run, {"frail": 1.0}, device="cpu")
    (stored.folder / "head.json").write_text("{}")
    assert "is damaged" in command(run, "list=true")[1]
    assert command(run, "remove=frail")[0] == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x", "name='../x' cannot name a head: use letters"),
        ("a/b", "cannot name a head: use letters"),
        ("1st", "a letter first"),
        ("x" * 65, "at most 64"),
        ("reward", "'reward' is taken by the model itself"),
        ("image", "'image' needs another name"),
        ("actor", "'actor' names one of Dreamer's own losses"),
        ("forward", "PyTorch reserves it"),
    ],
)
def test_impossible_names_are_refused(run: Path, name: str, message: str) -> None:
    assert message in refused(run, f"name={name}", f"reward={HERE}:effort")


# Heads in the model


def test_fitted_heads_pay_an_agent_that_saves_and_loads(run: Path) -> None:
    fit(run, "calm", f"{HERE}:effort")
    policy = agents.load(run, "cpu")
    model = rewards.with_heads(run, {"near": 1.0, "calm": -0.1, "reward": 2}, policy)
    feat = torch.randn(5, model.feat_size)
    heads = model.heads
    expected = heads["near"].predict(feat) - 0.1 * heads["calm"].predict(feat)  # type: ignore[operator]
    expected = expected + 2 * heads["reward"].predict(feat)  # type: ignore[operator]
    torch.testing.assert_close(model.reward(feat), expected)
    # As part of an agent: its updates leave the fitted heads alone, and it comes back whole.
    settings = policy.agent.config  # type: ignore[attr-defined]
    settings.model = model.config
    cpu = torch.device("cpu")
    agent = agents.make("dreamer", policy.spec, settings, cpu)
    agent.model.load_state_dict(model.state_dict())
    before = {name: p.clone() for name, p in agent.model.heads["near"].named_parameters()}
    metrics, _ = agent.train_on(agents.load_replay(run).sample(2, 6))
    assert "loss/near" not in metrics
    assert "loss/reward" in metrics
    for name, p in agent.model.heads["near"].named_parameters():
        assert torch.equal(p, before[name])
    again = agents.make("dreamer", policy.spec, settings, cpu)
    again.load_state_dict(agent.state_dict())
    torch.testing.assert_close(again.model.reward(feat), agent.model.reward(feat))


def test_recorded_rewards_of_a_fitted_head_are_its_own_judgement(run: Path) -> None:
    model = rewards.with_heads(run, {"near": 2.0, "reward": 1.0}, device="cpu")
    batch = agents.load_replay(run).sample(3, 6)
    torch.manual_seed(0)
    states = model.losses(batch).states
    recorded = model.recorded_reward(batch, states)
    judged = model.heads["near"].predict(states.feat) * ~batch.is_first  # type: ignore[operator]
    torch.testing.assert_close(recorded, batch.reward + 2 * judged)
    assert not recorded.requires_grad


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"naer": 1.0}, r"Unknown head 'naer'. Known: .*near.*reward.*Did you mean 'near'\?"),
        ({"rewrd": 1.0}, r"Did you mean 'reward'\?"),
        ({"near": float("nan")}, "The weight of 'near' in control is nan"),
        ({"near": "much"}, "The weight of 'near' in control is much"),
        ({}, "control names no head. Known: reward, cont"),
        ({"../../x": 1.0}, "Unknown head"),
    ],
)
def test_impossible_controls_are_refused(
    run: Path, control: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rewards.with_heads(run, control, device="cpu")


def test_a_head_of_another_state_of_the_model_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "trained_on"
    shutil.copytree(run, other)
    state = checkpoint.load(other)
    module = state["agent"]["module"]
    module[next(name for name in module if name.startswith("model.core."))] += 0.1
    checkpoint.save(other, state)
    with pytest.raises(
        RunError, match=r"The head 'near' was fitted on the model of .* Fit the head"
    ):
        rewards.with_heads(other, {"near": 1.0}, device="cpu")
    assert "of an older checkpoint" in command(other, "list=true")[1]


# Scores


def first_action(obs: object, action: np.ndarray, next_obs: object, info: object) -> float:
    return float(action[0])


def test_a_score_of_the_task_is_its_evaluation(run: Path) -> None:
    policy = agents.load(run, "cpu")
    known = evaluate(policy.agent, policy.spec, policy.env, 5, seed=3, num_envs=2)
    found = rewards.score(policy, {"reward": 1.0, "near": 0.5}, run, 5, seed=3, num_envs=2)
    assert found.parts["reward"] == known.returns == [36.0] * 5
    assert found.lengths == known.lengths
    assert found.parts["near"] == [36.0] * 5  # 1 + ... + 8, measured by the function itself
    assert found.measured == {"reward": True, "near": True}
    assert found.returns == [54.0] * 5
    assert (found.mean, found.std) == (54.0, 0.0)


def test_a_score_by_a_function_sees_native_actions_and_further_keys(run: Path) -> None:
    policy = agents.load(run, "cpu")
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    settings = agents.agent_class("random").Config()  # type: ignore[attr-defined]
    random = Policy(agents.make("random", policy.spec, settings, cpu), policy.spec, policy.env, cpu)
    name = f"{PRIVATE}:first_action"
    found = rewards.score(random, {name: 1.0}, episodes=3, num_envs=3)
    again = rewards.score(random, {name: 2.0}, episodes=3, num_envs=3)
    assert len(found.returns) == 3
    assert all(0 < abs(x) < LENGTH for x in found.returns)
    assert again.parts.keys() == {name}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hnag", "Unknown reward 'hnag'"),
        ("nowhere:f", "There is no module 'nowhere'"),
        (f"{HERE}:nan", "returned nan at episode 0, step 5"),
        (f"{HERE}:absent", "KeyError: 'speed'. Observations hold count, image here"),
    ],
)
def test_impossible_scores_are_refused(run: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rewards.score(agents.load(run, "cpu"), {name: 1.0}, run, episodes=1)


# Fine-tuning


def test_fine_tuning_writes_a_new_run_and_leaves_the_old_one(run: Path, tmp_path: Path) -> None:
    kept = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "heads" not in p.parts}
    into = tmp_path / "tuned"
    words = ["name=near2", f"reward={HERE}:step_of", "updates=20", "finetune=true"]
    code, said = command(run, *words, f"into={into}", "finetune_updates=2", "finetune_lr=0.01")
    assert code == 0, said
    assert f"{run} is as it was" in said
    assert {p: p.read_bytes() for p in kept} == kept
    assert "near2" not in head_names(run)
    stored = read_head(into, "near2")
    assert stored.fitted["finetuned"]["from"] == str(run)
    assert "held_out" in stored.fitted["finetuned"]["before"]
    old, new = agents.load(run, "cpu"), agents.load(into, "cpu")
    assert fingerprint(old.model) != fingerprint(new.model) == stored.model
    for part in ("actor", "critic"):
        pairs = zip(getattr(old.agent, part).parameters(), getattr(new.agent, part).parameters(),
                    strict=True)  # fmt: skip
        assert all(torch.equal(a, b) for a, b in pairs)
    assert Episodes(agents.load_replay(into)).lengths.tolist() == (
        Episodes(agents.load_replay(run)).lengths.tolist()
    )
    assert isinstance(rewards.with_heads(into, {"near2": 1.0}, device="cpu"), WorldModel)
    assert "there is something in it" in refused(run, *words, f"into={into}")


# Misuse


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (f"{HERE}:never", "The data never shows this reward: all 69 rows have the value 0.5"),
        (f"{HERE}:once", "Only episode 2 shows this reward"),
        (f"{HERE}:raises", r"failed at episode 1, step 4 (line "),
        (f"{HERE}:absent", "KeyError: 'speed'. Observations hold count, image here; env.record"),
        (f"{HERE}:pair", "returned an array of shape [2] at episode 0, step 1"),
        (f"{HERE}:nan", "returned nan at episode 0, step 5"),
        (f"{HERE}:step", "Unknown function in 'tests.agents.rewards_run' 'step'"),
        ("tests.agents.nothing:hang", "There is no module 'tests.agents.nothing'"),
        ("nothing.py:hang", "There is no file"),
        ("key:speed", "Unknown key 'speed'. Known: count, reward."),
        ("labels:nothing.csv", "There is no file 'nothing.csv'"),
        ("preferences:nothing.csv", "There is no file 'nothing.csv'"),
        ("goal:99:0", "there is no episode 99"),
        ("hang", "names no reward"),
    ],
)
def test_rewards_that_cannot_be_are_refused(run: Path, reward: str, message: str) -> None:
    assert message in refused(run, "name=x", f"reward={reward}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Ask for one thing"),
        ([f"reward={HERE}:effort"], "The new head needs a name"),
        (["list=true", "remove=x"], "Given: list=true, remove=..."),
        (["name=x", f"reward={HERE}:effort", "kind=cat"], "Unknown head kind 'cat'"),
        (["name=x", f"reward={HERE}:step_of", "kind=bernoulli"], "labels go from 1 to 8"),
        (["name=x", "reward=preferences:p.csv", "kind=twohot"], "cannot learn from preferences"),
        (["name=x", "reward=preferences:p.csv", "finetune=true"], "needs labels"),
        (["name=x", f"reward={HERE}:effort", "holdout=1"], "holdout is 1"),
        (["name=x", f"reward={HERE}:effort", "updates=-1"], "updates is -1"),
        (["name=x", f"reward={HERE}:effort", "lr=0"], "lr is 0"),
        (["name=x", f"reward={HERE}:effort", "rows=nan"], "rows"),
        (["nmae=x"], "Unknown key 'nmae'. Did you mean 'name'?"),
        (["show=99"], "there is no episode 99"),
    ],
)
def test_settings_that_cannot_be_are_refused(run: Path, words: list[str], message: str) -> None:
    assert message in refused(run, *words)


def test_labels_of_one_episode_need_consent(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("episode,step,value\n0,1,0.5\n0,2,0.25\n")
    assert "All labels lie in one episode" in refused(run, "name=x", f"reward=labels:{path}")
    stored = fit(run, "unjudged", f"labels:{path}", "holdout=0")
    assert "held_out" not in stored.fitted
    assert "(not judged)" in command(run, "list=true")[1]


def test_runs_without_a_world_model_or_a_replay_are_refused(run: Path, tmp_path: Path) -> None:
    words = ["name=x", f"reward={HERE}:effort"]
    assert "this is not a run folder" in refused(tmp_path, *words)
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    shutil.rmtree(bare / "replay")
    assert "cannot be read" in refused(bare, *words)
    from dataclasses import replace

    from agents.run.train import train
    from tests.agents.test_run_train import settings

    blind = replace(settings(tmp_path / "blind"), agent=CountingConfig())
    assert train(blind, lambda text: None) == 0
    assert "read the features of a learned world's states, but the agent" in refused(
        tmp_path / "blind", *words
    )
    shutil.rmtree(bare / "checkpoints")
    assert "There is no checkpoint" in refused(bare, *words, code=1)


def test_an_episode_is_drawn_with_its_steps(run: Path) -> None:
    code, said = command(run, "show=1")
    assert code == 0
    path = Path(said.split(": ")[1])
    assert path.stat().st_size > 200
    assert path.parent == run / "heads"
    assert path.name not in head_names(run)


def test_the_numbers_are_in_head_json(run: Path) -> None:
    stored = read_head(run, "near")
    about = json.loads((stored.folder / "head.json").read_text())
    assert about["checkpoint"] == checkpoint.found(run)[0].name
    assert about["head"]["target"] == ""
    assert about["fitted"]["seconds"] > 0
    assert {"held_out", "taught", "ahead", "seen", "updates", "loss"} <= set(about["fitted"])
