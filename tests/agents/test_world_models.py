"""World Models as an agent: its phases, C and its search, who plays, and what a run asks of it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import agents
from agents.deploy.cli import export_command
from agents.run import setup
from agents.run.config import TrainConfig
from agents.run.train import build, train
from agents.world_models import SearchConfig, WorldModels, WorldModelsConfig
from agents.world_models.controller import Search, actions_of, dream, outputs
from agents.world_models.trials import Trials
from scripts.studies.bench_faults import compare
from tests.agents.small_runs import (
    ENV,
    SILENT,
    check_starts_from,
    live,
    observed,
    small_config,
    weights,
)
from tests.test_scripts import composed
from worldmodel import tree
from worldmodel.config import ConfigError, RunError
from worldmodel.envs import EnvConfig
from worldmodel.models.mdnrnn import MDNRNNConfig
from worldmodel.models.vae import VAEConfig
from worldmodel.replay import ReplayConfig
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

CPU = torch.device("cpu")
SPEC = EnvSpec({"image": ObsSpec("image", (32, 32, 3))}, ActionSpec("discrete", (3,)))
SEARCH = SearchConfig(population=4, trials=2, generations=3, dream_steps=4)
CONFIG = WorldModelsConfig(
    collect=60, vae=VAEConfig(latent=4, depths=[4, 8]), vae_updates=6, vae_batch=8, encode_rows=16,
    rnn=MDNRNNConfig(units=8, mixtures=2), rnn_updates=6, batch_size=4, batch_length=5,
    search=SEARCH,
)  # fmt: skip


def make(spec: EnvSpec = SPEC, config: WorldModelsConfig = CONFIG, seed: int = 0) -> WorldModels:
    torch.manual_seed(seed)
    return WorldModels(spec, config, CPU)


# C and its search


def test_the_carracing_preset_has_the_published_sizes() -> None:
    spec = EnvSpec({"image": ObsSpec("image", (64, 64, 3))}, ActionSpec("continuous", (3,)))
    agent = make(spec, composed("experiment=world_models_carracing").agent)
    counts = {
        name: sum(t.numel() for t in part.tensors.values() if t.requires_grad)
        for name, part in agent.parts.items()
    }
    assert counts == {"vae": 4_348_547, "rnn": 422_368, "controller": 867}
    assert not agent.controller.any()  # it begins at 0


def test_its_actions_by_hand() -> None:
    weight = torch.tensor([[1.0, 0.0, 0.5], [0.0, -2.0, 0.0]])  # two outputs of two features
    values = outputs(weight, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(values, torch.tensor([0.75, -2.0]))
    box = ActionSpec("continuous", (2,))
    torch.testing.assert_close(actions_of(values, box), torch.tanh(values))
    gas_and_brake = torch.tensor([np.tanh(0.75), -1.0]).float()  # no brake below 0
    torch.testing.assert_close(actions_of(values, box, [1]), gas_and_brake)
    torch.testing.assert_close(
        actions_of(-values, box, [1])[1], torch.tensor(2 * np.tanh(2.0) - 1).float()
    )
    factors = ActionSpec("discrete", (2, 3))
    values = torch.tensor([[1.0, 2.0, 0.0, 5.0, 4.0]])
    assert actions_of(values, factors).tolist() == [[0, 1, 0, 1, 0]]
    mask = torch.tensor([[1.0, 0, 1, 0, 1]])
    assert actions_of(values, factors, (), mask).tolist() == [[1, 0, 0, 0, 1]]


@pytest.mark.parametrize(("diagonal", "size"), [(True, 3), (False, 3), (False, 40)])
def test_the_search_finds_a_maximum_and_goes_on_where_it_was(diagonal: bool, size: int) -> None:
    goal = np.linspace(-0.5, 0.5, size)
    config = replace(SEARCH, population=16, diagonal=diagonal)

    def step(search: Search) -> None:
        search.tell(-np.square(search.ask() - goal).sum(-1))

    outside = copy.deepcopy(np.random.get_state())
    one = Search(np.zeros(size), config, seed=1)
    for _ in range(15):
        step(one)
    saved = copy.deepcopy(one.state_dict())
    other = Search(np.zeros(size), config, seed=5)
    other.load_state_dict(saved)
    np.random.rand(3)  # what others draw is no affair of the search
    for search in (one, other):
        for _ in range(25):
            step(search)
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_allclose(one.mean, goal, atol=0.01 if size == 3 else 0.5)
    assert one.generation == 40
    np.random.set_state(outside)
    one.ask()
    assert all(np.array_equal(a, b) for a, b in zip(outside, np.random.get_state(), strict=True))


def test_a_return_that_is_not_finite_is_the_worst() -> None:
    search = Search(np.zeros(2), SEARCH, seed=0)
    for _ in range(20):
        candidates = search.ask()
        returns = -np.square(candidates).sum(-1)
        returns[candidates[:, 0] > 0] = np.nan
        search.tell(returns)
    assert search.mean[0] <= 0.05
    assert np.isfinite(search.mean).all()


def test_another_search_s_state_is_an_error() -> None:
    search = Search(np.zeros(2), SEARCH, seed=0)
    search.tell(np.arange(4.0))
    saved = search.state_dict()
    with pytest.raises(ValueError, match=r"the search.mean must be torch.float64 \[3\]"):
        Search(np.zeros(3), SEARCH, 0).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"the search must hold seed, mean, .*sm\.C"):
        Search(np.zeros(2), replace(SEARCH, diagonal=False), 0).load_state_dict(saved)


def test_a_search_is_put_back_where_arithmetic_differs() -> None:
    """It was told again once, and no run of another number of threads could be loaded."""
    search = Search(np.zeros(40), replace(SEARCH, diagonal=False), seed=0)
    for _ in range(9):
        search.tell(-np.square(search.ask()).sum(-1))
    saved = copy.deepcopy(search.state_dict())
    saved["mean"][0] += 1e-12  # as of another machine
    other = Search(np.zeros(40), replace(SEARCH, diagonal=False), seed=3)
    other.load_state_dict(saved)
    again = other.state_dict()
    assert all(np.array_equal(again[name], value) for name, value in saved.items())
    np.testing.assert_allclose(other.ask(), search.ask(), atol=1e-9)


def test_a_population_dreams_as_each_would_alone() -> None:
    agent = make()
    start = agent.model.initial(2)._replace(z=torch.randn(2, 4))
    weight = torch.randn(3, 3, 13)
    rng = lambda: torch.Generator().manual_seed(7)  # noqa: E731
    together = dream(agent.model, weight, start, 6, rng(), SPEC.action)
    for i in range(3):
        alone = dream(agent.model, weight[i : i + 1], start, 6, rng(), SPEC.action)
        torch.testing.assert_close(together.returns[i], alone.returns[0])
        assert torch.equal(together.steps[i], alone.steps[0])


def test_a_dream_s_return_stops_at_its_end() -> None:
    agent = make()
    rnn = agent.model.rnn
    with torch.no_grad():
        for head, bias in (("reward", 2.0), ("end", 5.0)):
            rnn.heads[head].weight.zero_()  # type: ignore[operator]
            rnn.heads[head].bias.fill_(bias)  # type: ignore[operator]
    rnn.reward_mean.fill_(1.0)
    rnn.reward_std.fill_(0.5)
    start = agent.model.initial(2)
    weight = torch.zeros(4, 3, 13)
    found = dream(agent.model, weight, start, 6, agent.rng, SPEC.action)
    assert found.returns.unique().tolist() == [2.0]  # 1 + 0.5 x 2, once
    assert found.steps.unique().tolist() == [1.0]
    rnn.heads["end"].bias.data.fill_(-5.0)  # type: ignore[union-attr, operator]
    found = dream(agent.model, weight, start, 6, agent.rng, SPEC.action)
    assert found.returns.unique().tolist() == [12.0]
    # An end of probability 1/4 is never likelier than not, but it is expected.
    rnn.heads["end"].bias.data.fill_(-math.log(3.0))  # type: ignore[union-attr, operator]
    for ends, value in (("likely", 12.0), ("expected", 2.0 * sum(0.75**k for k in range(6)))):
        found = dream(agent.model, weight, start, 6, agent.rng, SPEC.action, ends=ends)
        assert found.returns.flatten().tolist() == pytest.approx([value] * 8, rel=1e-5)


# Who plays


def test_candidates_play_their_episodes_and_an_interrupted_one_is_played_again() -> None:
    trials = Trials(replace(SEARCH, trials=1), seed=0)
    first, on = np.ones(2, bool), np.zeros(2, bool)
    job = trials.assign(trials.nobody(2), first, real=True, explore=1.0)
    assert job.tolist() == [-2, -3]
    assert [trials.candidate(j) for j in job.tolist()] == [0, 1]

    def arrive(reward: list[float], last: list[bool], is_first: np.ndarray) -> None:
        nonlocal job
        obs = {"reward": np.array(reward), "is_last": np.array(last)}
        job = trials.assign(trials.note(job, obs, is_first), is_first, real=True, explore=1.0)

    arrive([1.0, 5.0], [False, False], on)
    arrive([2.0, 0.0], [True, False], np.array([False, True]))  # the second one's worker died
    assert trials.repeated == 1
    assert job.tolist() == [-1, -3]  # it begins again
    arrive([0.0, 1.0], [False, True], np.array([True, False]))
    assert job.tolist() == [-4, -1]
    arrive([4.0, 0.0], [True, False], np.array([False, True]))
    arrive([0.0, 6.0], [False, True], np.array([True, False]))
    assert trials.returns.tolist() == [[3.0], [1.0], [4.0], [6.0]]
    assert trials.lengths.tolist() == [[2], [1], [1], [1]]
    assert not trials.waiting
    state = copy.deepcopy(trials.state_dict())
    trials.new_generation()
    assert trials.waiting
    trials.load_state_dict(state)
    assert not trials.waiting


def test_random_policies_play_whole_episodes() -> None:
    agent = make()
    obs = observed(SPEC, 3)
    first = np.ones(3, bool)
    _, state, extras = agent.act({**obs, "is_first": first})
    assert state.job.tolist() == [1, 3, 5]  # all at random in the first iteration
    assert extras["codes"].shape == (3, 8)
    assert not torch.equal(agent._weights(1), agent._weights(3))
    assert torch.equal(agent._weights(1), agent._weights(1))
    _, state, _ = agent.act({**obs, "is_first": np.array([False, True, False])}, state)
    assert state.job.tolist() == [1, 7, 5]
    agent.iteration = 1
    for _ in range(40):
        _, state, _ = agent.act({**obs, "is_first": first}, state)
    assert agent.trials.drawn == 124
    assert torch.equal(agent._weights(-1), agent.controller)


# The agent


def test_the_mode_draws_nothing_and_is_its_tick() -> None:
    agent, obs = make(), observed(SPEC, 3)
    agent.controller.copy_(torch.randn(3, 13))
    outside, inside = torch.get_rng_state(), agent.rng.get_state()
    first = torch.tensor([True, False, False])
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    state, other = agent.initial(3), agent.initial(3)
    for _ in range(3):
        action, state, _ = agent.act({**obs, "is_first": first.numpy()}, state, "mode")
        ticked, other = agent.tick()(tensors, other, first)
        np.testing.assert_array_equal(action, ticked.detach().numpy())
    assert torch.equal(torch.get_rng_state(), outside)
    assert torch.equal(agent.rng.get_state(), inside)
    prior = agent.evaluate(state.latent).prior
    assert prior.sample().tolist() == action.tolist()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (lambda: replace(SEARCH, population=1), "population is 1; allowed: 4 to"),
        (lambda: replace(SEARCH, evolve_in="sleep"), "evolve_in is 'sleep'; allowed: dream, real"),
        (lambda: replace(CONFIG, batch_length=4), "dream_steps=4: M is trained on sequences"),
        (lambda: replace(CONFIG, rnn=MDNRNNConfig(reward=False)), "without rewards, which would"),
        (lambda: replace(CONFIG, collect=4), "collect=4 steps are fewer than the batch_length=5"),
        (lambda: MDNRNNConfig(heads="both"), "heads is 'both'; allowed: memory, arrival"),
        (lambda: make(config=replace(CONFIG, one_sided=[0])), "one_sided=.* it is discrete"),
        (
            lambda: make(EnvSpec({"v": ObsSpec("vector", (2,))}, SPEC.action)),
            "agent=world_models: World Models sees one image",
        ),
        (
            lambda: make(config=replace(CONFIG, vae=VAEConfig(published=True))),
            "64x64 pixels, not 32x32",
        ),
    ],
    ids=[
        "one",
        "where",
        "longer",
        "worthless",
        "few",
        "heads",
        "one-sided",
        "no image",
        "small",
    ],
)
def test_what_cannot_work_is_refused(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings()


# In a run


def config_of(folder: Path, agent: WorldModelsConfig = CONFIG, **changes: Any) -> TrainConfig:
    env = EnvConfig("tests.envs_for_tests:LeftRightEnv", image_size=[32, 32], num_envs=2)
    base = small_config(folder, agent, env=env, steps=10_000, prefill=0, log_every=5)
    return replace(base, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world_models") / "run"
    config = config_of(folder)
    trainer = build(config, SILENT)
    said: list[str] = []
    trainer.say = said.append
    assert trainer.run() is None
    trainer.finish()
    trainer.close()
    return folder


def test_a_run_goes_through_all_phases(run: Path) -> None:
    agent = agents.load(run).agent
    assert isinstance(agent, WorldModels)
    assert agent.phase == "done"
    assert agent.search is not None
    assert agent.search.generation == 3
    assert agent.collected >= 60
    assert agent.controller.abs().sum() > 0
    assert float(agent.model.rnn.reward_std) > 0


REAL = replace(CONFIG, search=replace(SEARCH, evolve_in="real", generations=2))
TWICE = replace(CONFIG, iterations=2, vae_updates=3, rnn_updates=3)


@pytest.mark.parametrize("agent", [TWICE, REAL], ids=["twice", "real"])
def test_a_run_stopped_in_every_phase_is_the_same(tmp_path: Path, agent: WorldModelsConfig) -> None:
    """Stopped within V, the coding, M, C and the second iteration."""
    whole, parts = (config_of(tmp_path / name, agent) for name in ("whole", "parts"))
    live(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "check_can_learn", lambda *_: None)  # so few steps stand for a signal
        for steps in (20, 41):  # while it collects
            live(replace(parts, steps=steps))
    for updates in (2, 5, 8, 12, 14, 18, 20):
        live(replace(parts, updates=updates))
    live(parts)
    found = compare(Path(whole.run), Path(parts.run))
    assert not found, found
    assert all(torch.equal(a, b) for a, b in zip(
        weights(Path(whole.run)).values(), weights(Path(parts.run)).values(), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize("evolve_in", ["dream", "real"])
def test_a_task_that_nothing_ends_is_cut_off(tmp_path: Path, evolve_in: str) -> None:
    """Dreams begin where its one episode began; candidates are judged by whole episodes."""
    config = replace(CONFIG, search=replace(SEARCH, evolve_in=evolve_in, generations=1))
    endless = {"length": 10**9}
    env = EnvConfig(ENV, state=False, keys=["image"], kwargs=endless, longest_episode=100)
    live(config_of(tmp_path, config, env=env))
    agent = agents.load(tmp_path).agent
    assert isinstance(agent, WorldModels)
    assert agent.phase == "done"
    assert (agent.collected >= 800) == (evolve_in == "real")  # 4 candidates x 2 episodes of 100


def test_a_run_that_stops_before_its_end_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    assert train(config_of(tmp_path, updates=3), said.append) == 0
    assert "unfinished   stopped in its phase 'vae': given more" in said[-1]


def test_a_replay_that_forgets_what_is_collected_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, replay=ReplayConfig(capacity=50))
    with pytest.raises(ConfigError, match="capacity=50 is less than the 60 steps that"):
        train(config, SILENT)


def test_it_says_that_prefill_does_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    assert train(config_of(tmp_path, updates=3, prefill=7), said.append) == 0
    assert any("prefill=7 does nothing: agent=world_models decides" in line for line in said)


def test_sequences_that_no_environment_can_give_are_refused_before_v_learns(tmp_path: Path) -> None:
    few = replace(CONFIG, collect=6)  # three steps of each of two environments
    with pytest.raises(RunError, match="holds none that begins with an episode"):
        train(config_of(tmp_path, few), SILENT)
    assert agents.load(tmp_path).agent.phase == "collect"  # type: ignore[attr-defined]


def test_a_run_starts_from_another_one(tmp_path: Path, run: Path) -> None:
    check_starts_from(config_of(tmp_path), run)


def test_a_run_learns_from_a_recording(tmp_path: Path, run: Path) -> None:
    """Nothing is collected: the phases begin with V, and the run ends with them."""
    config = config_of(tmp_path / "offline", offline=str(run), updates=25)
    assert train(config, SILENT) == 0
    agent = agents.load(config.folder).agent
    assert isinstance(agent, WorldModels)
    assert (agent.phase, agent.collected) == ("done", 0)


@pytest.mark.slow
def test_it_is_exported(run: Path) -> None:
    """As graphs that need none of our code, whose actions are ours."""
    pytest.importorskip("onnxscript")
    said: list[str] = []
    assert export_command(said.append, [f"run={run}", "smaller=[]", "steps=50"]) == 0, said


def test_a_corrupt_phase_is_one_clear_error() -> None:
    agent = make()
    state = tree.to_plain(agent.state_dict())
    for place, words in (
        ({"phase": "sleep"}, "phase 'sleep'.*Known: collect"),
        ({"done": -1}, "at -1"),
        ({"phase": "evolve"}, "its search is missing"),
    ):
        bad = {**state, "place": {**state["place"], **place}}
        with pytest.raises(ValueError, match=words):
            make().load_state_dict(bad)
    with pytest.raises(ValueError, match="the agent"):
        make(config=replace(CONFIG, rnn=MDNRNNConfig(units=9))).load_state_dict(state)


def test_a_finished_run_that_is_given_more_iterations_collects_again() -> None:
    agent = make()
    agent.phase, agent.collected = "done", 60
    assert agent.agenda.finished
    longer = make(config=replace(CONFIG, iterations=2))
    longer.load_state_dict(tree.to_plain(agent.state_dict()))
    assert not longer.agenda.finished
    assert longer.agenda.collecting
    assert longer.iteration == 1


def test_it_goes_on_where_it_was_saved() -> None:
    agent, obs = make(), observed(SPEC, 2)
    first = np.ones(2, bool)
    _, state, _ = agent.act({**obs, "is_first": first})
    saved = copy.deepcopy(tree.to_plain(agent.state_dict()))
    other = make(seed=3)
    other.load_state_dict(saved)
    for one in (agent, other):
        one.act({**obs, "is_first": first}, state)
    ours, theirs = (tree.to_plain(one.state_dict()) for one in (agent, other))
    for (name, a), (_, b) in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, name
