"""MuZero: targets by hand, gradients, reanalysis, and what a run asks of it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.apps.evaluate import evaluate_command
from agents.deploy.cli import deploy_command, export_command
from agents.muzero import MuZero, MuZeroConfig
from agents.muzero.targets import bootstraps, check_turns, make_targets, window
from agents.planning.tree_config import MCTSConfig
from agents.run.config import TrainConfig
from scripts.studies.figures import decision
from scripts.studies.plot import plot_command
from tests.agents.small_runs import (
    PATIENT,
    check_learns_offline,
    check_resumes,
    check_starts_from,
    check_trains_and_evaluates,
    filled_replay,
    live,
    observed,
    small_config,
)
from tests.model_batches import SPECS
from worldmodel import tree
from worldmodel.config import ConfigError
from worldmodel.distributions import Support, squash, unsquash
from worldmodel.envs.boards import GAMES
from worldmodel.models.muzero import MuZeroModelConfig
from worldmodel.types import MASK_KEY, PLAYER_KEY, ActionSpec, Batch, EnvSpec, ObsSpec

CPU = torch.device("cpu")
THREE = ActionSpec("discrete", (3,))
VECTOR = EnvSpec({"v": ObsSpec("vector", (5,))}, THREE)
MASKED = EnvSpec({"v": ObsSpec("vector", (5,)), MASK_KEY: ObsSpec("vector", (3,))}, THREE)
CONTINUOUS = EnvSpec({"v": ObsSpec("vector", (5,))}, ActionSpec("continuous", (2,)))
FACTORS = EnvSpec({"v": ObsSpec("vector", (5,))}, ActionSpec("discrete", (2, 3)))
PICTURE = EnvSpec({"image": ObsSpec("image", (32, 32, 3))}, THREE)
BOARD = EnvSpec(
    {"board": ObsSpec("vector", (18,)), PLAYER_KEY: ObsSpec("discrete", (2,), (2,))}, THREE
)
MODEL = MuZeroModelConfig(latent=8, units=16, channels=8, support=10, bins=21)
close = torch.testing.assert_close


def config(**changes: Any) -> MuZeroConfig:
    search = {"rule": "puct", "simulations": 4, "dirichlet": 0.3, **changes.pop("search", {})}
    model = replace(MODEL, **changes.pop("model", {}))
    small: dict[str, Any] = {"batch_size": 8, "unroll": 3, "n_step": 2, "units": 16}
    return MuZeroConfig(**{**small, **changes}, search=MCTSConfig(**search), model=model)


def make(spec: EnvSpec = VECTOR, seed: int = 0, **changes: Any) -> MuZero:
    torch.manual_seed(seed)
    return MuZero(spec, config(**changes), CPU)


def replay_of(agent: MuZero, spec: EnvSpec, **settings: Any) -> Any:
    """Random rows, each searched once."""
    replay = filled_replay(spec, columns=agent.columns, num_envs=2, **settings)
    agent.prepare(replay)
    return replay


def test_a_support_by_hand() -> None:
    """h(3) = 1 + 0.003, between bins 1 and 2 of 21 from -10 to 10."""
    x = torch.tensor([3.0, -8.0, 0.0, 1e9])
    close(squash(x[:3]), torch.tensor([1.003, -2.008, 0.0]))
    close(unsquash(squash(x[:3])), x[:3], rtol=1e-4, atol=1e-4)
    support = Support(10.0, 21)
    hot = support.encode(x)
    close(hot[0].nonzero().flatten(), torch.tensor([11, 12]))
    close(hot[0, 11:13], torch.tensor([0.997, 0.003]), rtol=1e-3, atol=1e-4)
    assert hot[3, -1] == 1  # beyond the last bin
    close(support.mean(hot.clamp_min(1e-30).log())[:3], x[:3], rtol=1e-3, atol=1e-3)


def rows(reward: list[float], first: list[int], last: list[int], terminal: list[int]) -> Batch:
    flags = (torch.tensor([x], dtype=torch.bool) for x in (first, last, terminal))
    paid = torch.tensor([reward])
    return Batch(
        {"v": torch.zeros(1, len(reward), 5)}, torch.zeros(1, len(reward), 3), paid, *flags
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_targets_by_hand(sign: float) -> None:
    """K = 3, n = 2, g = 1/2 (or -1/2: two players), values 10; the episode ends at row 2."""
    g = 0.5 * sign
    batch = rows([9, 1, 2, 0, 4, 5], [0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0])
    found = window(batch)
    assert (found.last.tolist(), found.ended.tolist()) == ([2], [True])
    e = bootstraps(found, 3, torch.tensor([2]))
    assert e.tolist() == [[2, 2, 2, 2]]
    out = make_targets(batch, found, e, torch.full((1, 4), 10.0), g, 2)
    close(out.value, torch.tensor([[1 + g * 2, 2.0, 0, 0]]))
    close(out.reward[:, 1:], torch.tensor([[1.0, 2, 0]]))
    close(out.prefix[:, 1:], torch.tensor([[1.0, 3, 0]]))  # begins anew after two steps
    assert out.cont.tolist() == [[1, 1, 0, 0]]
    assert out.learned.all()  # what lies behind the end is worth nothing, and that is learned
    assert out.decides.tolist() == [[True, True, False, False]]
    # Cut off instead: its last row is worth what the network says, nothing is asked behind it.
    batch.is_terminal[:] = False
    out = make_targets(batch, window(batch), e, torch.full((1, 4), 10.0), g, 5)
    close(out.value, torch.tensor([[1 + g * 2 + g * g * 10, 2 + g * 10, 10.0, 0]]))
    assert out.learned.tolist() == [[True, True, True, False]]
    assert out.decides.tolist() == [[True, True, True, False]]
    # Goes on: two rewards, then the value; an old sequence counts one reward only.
    batch.is_first[:] = batch.is_last[:] = False
    found = window(batch)
    for n in (2, 1):
        e = bootstraps(found, 3, torch.tensor([n]))
        assert e.tolist() == [[n, n + 1, n + 2, n + 3]]
        out = make_targets(batch, found, e, torch.full((1, 4), 10.0), g, 5)
        paid = [9, 1, 2, 0, 4, 5]
        z = [sum(g**i * paid[k + 1 + i] for i in range(n)) + g**n * 10 for k in range(3)]
        close(out.value[0, :3], torch.tensor(z))


SHAPES: dict[str, tuple[EnvSpec, dict[str, Any]]] = {
    "vector": (VECTOR, {}),
    "masked": (MASKED, {"search": {"rule": "gumbel"}}),
    "factors": (FACTORS, {}),
    "picture": (PICTURE, {"model": {"projection": 8}}),
    "board": (BOARD, {"model": {"board": [3, 3]}}),
    "prefix": (VECTOR, {"model": {"prefix": 4, "prefix_steps": 2, "projection": 8}, "aging": 10}),
    "continuous": (
        CONTINUOUS,
        {
            "search": {
                "rule": "gumbel", "samples": 2, "root_samples": 6, "wide_samples": 3, "gumbel": 0.0
            },
            "best_only": True,
        },
    ),
    "sampled": (CONTINUOUS, {"search": {"samples": 5}, "entropy": 0.01, "values": "search"}),
    "priorities": (VECTOR, {"priority_exponent": 0.6, "reanalyse": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_it_learns_from_every_kind_of_world(name: str) -> None:
    """Updates are finite, move all weights, and say what is certain: this replay's rewards."""
    spec, changes = SHAPES[name]
    agent = make(spec, **changes)
    replay = replay_of(agent, spec, priority_exponent=agent.priority_exponent)
    before = agent.optim.flat.clone()
    losses = [float(agent.update(replay)["loss/reward"]) for _ in range(4)]
    assert np.isfinite(losses).all()
    moved = {
        n.partition(".")[2]
        for n, a, b in zip(
            agent.optim.names,
            before.split([p.numel() for p in agent.optim.params]),
            agent.optim.flat.split([p.numel() for p in agent.optim.params]),
            strict=True,
        )
        if not torch.equal(a, b)
    }
    assert len(moved) > 0.8 * len(agent.optim.names)
    for mode in ("sample", "mode"):
        action, state, extras = agent.act(observed(spec, 3), agent.initial(3), mode)
        assert action.shape == (3, spec.action.size)
        assert extras.keys() == agent.columns.keys()
        assert extras["policy"].sum(-1) == pytest.approx(1.0, abs=1e-5)
        if MASK_KEY in spec.obs:
            mask = observed(spec, 3)[MASK_KEY]
            assert ((action * (mask == 0)).sum(-1) == 0).all()
            assert (extras["policy"][mask == 0] == 0).all()
    again = agent.act(observed(spec, 3), None, "mode")[0]
    assert np.array_equal(action, again)  # an evaluation draws nothing
    assert agent.evaluate(state).value.shape == (3,)


def test_two_players_see_the_same_with_the_other_sign() -> None:
    agent = make(EnvSpec({**VECTOR.obs, PLAYER_KEY: ObsSpec("discrete", (2,), (2,))}, THREE))
    assert agent.model.alternates
    assert not make().model.alternates


def test_only_the_way_into_the_next_step_is_halved() -> None:
    """The gradient that reaches the first state from the k-th one's value is 2^-k of what it is
    without the halving."""
    agent = make(model={"scaled": False})
    batch = replay_of(agent, VECTOR).sample(8, agent.window, columns=agent.columns)
    _, latents = agent._unroll(batch, agent.model.rows(batch))
    plain = agent.model.represent(batch.obs["v"][:, 0])
    actions = agent._actions(batch)
    state, shares = plain, []
    for k in range(1, 4):
        agent.rng.manual_seed(0)
        state = agent.model.step_logits(state, actions[:, k - 1]).state
        bias = agent.model.represent_net[-1].bias
        ours = torch.autograd.grad(latents[k].sum(), bias, retain_graph=True)[0]
        whole = torch.autograd.grad(state.latent.sum(), bias, retain_graph=True)[0]
        shares.append(float((ours / whole).median()))
    assert shares == pytest.approx([0.5, 0.25, 0.125], abs=0.05)


@pytest.mark.parametrize("rule", ["puct", "gumbel"])
@pytest.mark.parametrize("alternates", [False, True])
def test_machine_code_searches_as_pytorch_does(rule: str, alternates: bool) -> None:
    agent = make(MASKED, search={"rule": rule, "simulations": 30})
    agent.model.alternates = alternates
    agent.update(replay_of(agent, MASKED))
    for layer in (agent.networks.prediction.out, agent.model.reward, agent.model.ends):
        torch.nn.init.normal_(layer.weight)  # opinions that differ; the code sees new weights
    obs = {k: torch.tensor(v) for k, v in observed(MASKED, 6).items()}
    root = agent.model.represent(obs["v"])
    found = []
    for compiled in (agent.compiled, None):
        agent.planner.stream.seed(3)
        found.append(
            agent.planner.search(
                agent.model, root, agent.evaluate, obs[MASK_KEY], 1.0, compiled=compiled
            )
        )
    assert agent.compiled is not None
    code, plain = found
    assert np.array_equal(code.trees.visits, plain.trees.visits)
    assert np.array_equal(code.chosen, plain.chosen)
    np.testing.assert_allclose(code.value, plain.value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(code.policy, plain.policy, atol=1e-3)
    assert code.stats["model_steps"] == plain.stats["model_steps"]


def test_targets_come_from_a_copy_that_learns_nothing() -> None:
    agent = make(target_every=3)
    replay = replay_of(agent, VECTOR)
    for update in range(1, 5):
        before = tree.map(torch.clone, agent.target.state_dict())
        agent.update(replay)
        same = all(torch.equal(v, before[k]) for k, v in agent.target.state_dict().items())
        assert same == bool(update % 3)
    assert all(p.grad is None for p in agent.target.parameters())


def test_old_rows_are_searched_again() -> None:
    agent = make(reanalyse=6)
    replay = replay_of(agent, VECTOR)
    index = replay.sample(40, 1, columns=agent.columns).index
    before = replay.gather(index, agent.columns).columns["policy"].clone()
    with torch.no_grad():  # another opinion of everything
        agent.networks.prediction.out.bias[:3] = torch.tensor([5.0, -5.0, 0.0])
    agent.search_again(replay, replay.gather(index))
    after = replay.gather(index, agent.columns).columns["policy"]
    assert after[..., 0].mean() > before[..., 0].mean() + 0.2
    close(after.sum(-1), torch.ones(40, 1))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"continuous ones. Set agent\.search\.samples"):
        make(CONTINUOUS)
    many = EnvSpec(VECTOR.obs, ActionSpec("discrete", (17, 17, 17)))
    with pytest.raises(ConfigError, match=r"4,913 joint ones. Set agent\.search\.samples"):
        make(many)
    for rule in ("ucb1", "auto"):
        with pytest.raises(ConfigError, match=f"search.rule is {rule}; allowed .* puct, gumbel"):
            config(search={"rule": rule})
    with pytest.raises(ConfigError, match=r"search.temperature is 0.5; .* agent.temperature"):
        config(search={"temperature": 0.5})
    three = EnvSpec({**VECTOR.obs, PLAYER_KEY: ObsSpec("discrete", (3,), (3,))}, THREE)
    with pytest.raises(ConfigError, match=r"Discrete\(2\); here it is discrete \(3,\)"):
        make(three)
    with pytest.raises(ConfigError, match="no planes of 9"):
        make(VECTOR, model={"board": [3, 3]})
    with pytest.raises(ConfigError, match="images or vectors"):
        make(SPECS["mixed"])
    with pytest.raises(ConfigError, match="values is 'old'"):
        config(values="old")
    with pytest.raises(ValueError, match="the agent"):
        make().load_state_dict(make(units=8).state_dict())


def test_a_player_who_moves_twice_is_not_learned_from() -> None:
    agent = make(BOARD, model={"board": [3, 3]})
    batch = replay_of(agent, BOARD).sample(64, 5)
    check_turns(batch)  # episodes of five, of which some end and some are cut off
    batch.obs[PLAYER_KEY][:, 3] = batch.obs[PLAYER_KEY][:, 2]
    with pytest.raises(ConfigError, match=r"moves twice in a row, .* env.kwargs.alternates=false"):
        check_turns(batch)


def test_it_says_once_that_returns_are_greater_than_it_can_tell() -> None:
    agent = make(target_every=1, model={"support": 1.0, "bins": 5})
    replay = filled_replay(
        VECTOR, columns=agent.columns, reward=lambda action: np.full(len(action), 50.0)
    )
    with pytest.warns(UserWarning, match=r"lie beyond 3, .* agent.model.support=1 can tell"):
        assert agent.update(replay)["value_outside"] > 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.update(replay)


@pytest.mark.parametrize("spec", ["masked", "factors"])
def test_drawn_actions_are_allowed_ones(spec: str) -> None:
    base = SHAPES[spec][0]
    size = base.action.size
    spec_ = EnvSpec({**base.obs, MASK_KEY: ObsSpec("vector", (size,))}, base.action)
    agent = make(spec_, search={"rule": "gumbel", "samples": 2, "root_samples": 3})
    for seed in range(20):
        obs = observed(spec_, 4, seed)
        edges = np.cumsum(base.action.sizes)[:-1]
        for part in np.split(obs[MASK_KEY], edges, -1):
            part[:] = 0
            part[np.arange(4), np.random.default_rng(seed).integers(part.shape[-1], size=4)] = 1
        for mode in ("sample", "mode"):
            action, _, extras = agent.act(obs, None, mode)
            assert (action <= obs[MASK_KEY]).all()
            assert (extras["options"] <= obs[MASK_KEY][:, None]).all()


# What a run asks of it


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("muzero") / "run"
    settings = small_config(folder, config(reanalyse=2, priority_exponent=0.5))
    check_trains_and_evaluates(settings)
    return settings


def test_a_run_continues_to_the_bit(tmp_path: Path) -> None:
    settings = small_config(tmp_path, config(reanalyse=2, priority_exponent=0.5))
    check_resumes(tmp_path, settings)


def test_it_starts_from_another_run(run: TrainConfig, tmp_path: Path) -> None:
    check_starts_from(replace(run, run=str(tmp_path / "new")), Path(run.run))


def test_it_learns_offline(run: TrainConfig, tmp_path: Path) -> None:
    check_learns_offline(replace(run, run=str(tmp_path / "new")), Path(run.run))


def test_continuous_actions_live(tmp_path: Path) -> None:
    search = {"rule": "gumbel", "samples": 2, "root_samples": 4, "wide_samples": 2, "gumbel": 0.0}
    live(small_config(tmp_path / "run", config(search=search), "box"))


def test_it_is_evaluated_with_any_search_and_deployed(run: TrainConfig, tmp_path: Path) -> None:
    """Its world is open to every planner, with its own policy and value."""
    few = [f"run={run.run}", "episodes=2"]
    said: list[str] = []
    for words in (["planner.rule=gumbel"], ["planner.rule=puct"], ["planner.rollout=2"]):
        more = ["planner=mcts", "planner.simulations=6", *words]
        assert evaluate_command(said.append, [*few, *more]) == 0, said
    words = [f"to={tmp_path / 'lived'}", "deploy.warmup=2", "deploy.fallback.rest=[1, 0, 0]"]
    assert deploy_command(said.append, [*few, *words, *PATIENT]) == 0, said
    said.clear()
    assert export_command(said.append, [f"run={run.run}"]) == 2
    assert "cannot be exported" in said[-1]


def test_a_decision_is_drawn(run: TrainConfig, tmp_path: Path) -> None:
    said: list[str] = []
    words = ["figure=decision", f"run={run.run}", f"out={tmp_path}", "simulations=8"]
    assert plot_command(said.append, [*words, "moves=[1]"]) == 0, said
    assert (tmp_path / "decision.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "decision.csv").read_text().splitlines()
    assert lines[0] == "action,before,after,visits,value"
    after = [float(line.split(",")[2]) for line in lines[1:]]
    assert sum(after) == pytest.approx(1.0)
    assert plot_command(said.append, [*words, "moves=[7]"]) == 2
    assert said[-1].endswith("There is no action 7 (moves); allowed: 0 to 2.")


def test_the_expected_line_of_a_game() -> None:
    """A search that sees two moves ahead, drawn on the board until somebody has won."""
    board = np.array([[1, 1, 0], [-1, -1, 0], [0, 0, 0]], np.int8)
    pictures = decision.positions(GAMES["tic_tac_toe"], board, [2, 5])
    assert len(pictures) == 2  # the first move wins
    assert not np.array_equal(*pictures)
    assert len(decision.positions(GAMES["tic_tac_toe"], board, [0])) == 1  # it is not legal


def test_learning_and_acting_see_the_same_frames() -> None:
    """Rows one after the other through `act` give the states that `loss` begins with; a recording
    is searched with them, too."""
    spec = EnvSpec({"image": ObsSpec("image", (32, 32, 3))}, ActionSpec("discrete", (3,)))
    search = {"dirichlet": 0.0, "gumbel": 0.0}
    agent = make(spec, model={"frames": 3, "channels": 8}, reanalyse=4, search=search)
    torch.nn.init.normal_(agent.networks.prediction.out.weight)
    replay = replay_of(agent, spec)
    assert (agent.context, agent.window) == (2, 3 + agent.config.unroll + agent.config.n_step)
    batch = replay.sample(4, 8, columns=agent.columns)
    seen, state = agent.model.rows(batch), None
    assert seen.shape == (4, 8, 32, 32, 9)
    for t in range(8):
        obs = {"image": batch.obs["image"][:, t], "is_first": batch.is_first[:, t]}
        _, state, found = agent.act(obs, state)
        if t >= 2:
            close(state.latent, agent.model.represent(seen[:, t]).latent)
            close(torch.from_numpy(found["value"]), batch.columns["value"][:, t])
    metrics = agent.update(replay)
    assert np.isfinite([float(x) for x in metrics.values()]).all()
    with pytest.raises(ConfigError, match="no images to see together"):
        make(VECTOR, model={"frames": 2})
