"""TD-MPC2: its losses by hand and in float64, what learns from which, and what a run asks of it."""

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
from torch.nn import functional as F

import agents
from agents.base import parameters_count
from agents.planning.mppi import MPPI
from agents.run.config import TrainConfig
from agents.tdmpc2 import TDMPC2, TDMPC2Config
from agents.tdmpc2.config import published_planner
from agents.tdmpc2.losses import (
    constraint_gain,
    factor_gain,
    next_scale,
    plan_log_prob,
    scaled_entropy,
    value_loss,
    value_target,
)
from agents.tdmpc2.plans import PLAN
from tests.agents.small_runs import (
    check_evaluates_alike,
    check_exports_and_deploys,
    check_learns_from_images,
    check_learns_offline,
    check_resumes,
    check_starts_from,
    check_trains_and_evaluates,
    filled_replay,
    observed,
    small_config,
)
from tests.model_batches import SPECS, random_batch, scramble
from worldmodel import tree
from worldmodel.adam import Adam, AdamConfig
from worldmodel.config import ConfigError
from worldmodel.models.latent_nets import LatentConfig
from worldmodel.replay import RowIndex
from worldmodel.types import MASK_KEY, ActionSpec, Batch, EnvSpec, ObsSpec

CPU = torch.device("cpu")
VECTOR = SPECS["vector"]  # v [5], two continuous actions
PLANNER = replace(
    published_planner(), iterations=2, candidates=16, elites=4, policy_candidates=4
)  # fmt: skip
WORLD = LatentConfig(latent=16, units=16, encoder_units=16, channels=4)
CONTINUOUS_AND_NOT = pytest.mark.parametrize(
    "spec", ["vector", "discrete", "multidiscrete", "mixed"]
)


def settings(**changes: Any) -> TDMPC2Config:
    base: dict[str, Any] = {"batch_size": 8, "heads": 3, "model": WORLD, "planner": PLANNER}
    return TDMPC2Config(**{**base, **changes})


def make(spec: EnvSpec = VECTOR, seed: int = 0, **changes: Any) -> TDMPC2:
    torch.manual_seed(seed)
    return TDMPC2(spec, settings(**changes), CPU)


@pytest.mark.parametrize(
    ("sizes", "heads", "count"), [({"latent": 128, "units": 384}, 2, 1_214_651), ({}, 5, 4_960_618)]
)
def test_the_published_sizes(sizes: Any, heads: int, count: int) -> None:
    spec = EnvSpec({"o": ObsSpec("vector", (24,))}, ActionSpec("continuous", (6,)))
    agent = TDMPC2(spec, TDMPC2Config(heads=heads, model=LatentConfig(ends=False, **sizes)), CPU)
    assert parameters_count(agent) == count


# The losses


def test_targets_and_value_loss_by_hand() -> None:
    reward, terminal = torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]])
    q = torch.tensor([[[5.0, 9.0]], [[4.0, 8.0]]])
    target = value_target(reward, terminal, 0.5, q)
    torch.testing.assert_close(target, torch.tensor([[3.0, 2.0]]))
    apart = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    loss = value_loss(apart, torch.tensor([[1.0, 0.0]]))  # the second left its episode
    torch.testing.assert_close(loss, torch.tensor((1.0 + 3.0) / 4))


def test_entropy_as_published() -> None:
    noise, log_std = torch.tensor([0.5, -1.0]), torch.tensor([-1.0, 0.3])
    action = torch.tensor([0.2, -0.9])
    normal = 2 * ((-0.125 + 1.0) + (-0.5 - 0.3) - 0.9189385)
    tanh = math.log(1 - 0.04 + 1e-6) + math.log(1 - 0.81 + 1e-6)
    found = scaled_entropy(noise, log_std, action, squashed=True)
    assert float(found) == pytest.approx(-(normal - tanh), abs=1e-5)
    found = scaled_entropy(noise, log_std, action, squashed=False)
    assert float(found) == pytest.approx(-normal, abs=1e-5)


def test_the_scale_is_a_slow_range_of_at_least_one() -> None:
    values = torch.arange(101.0)
    assert float(next_scale(torch.tensor(1.0), values)) == pytest.approx(1 + 0.01 * (90 - 1))
    assert float(next_scale(torch.tensor(1.0), 0.001 * values)) == 1.0


def test_the_constraint_by_hand() -> None:
    action, mean = torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.2])
    std = torch.tensor([0.5, 0.01])  # counts as 0.05
    density = -0.5 * 1.0 - math.log(0.5) - 0.5 * 16.0 - math.log(0.05)
    log_prob = plan_log_prob(action, mean, std)
    assert float(log_prob) == pytest.approx(2 * (density - 0.9189385), rel=1e-5)
    assert float(constraint_gain(log_prob, torch.tensor(2.0), 2)) == 0.0
    found = constraint_gain(log_prob, torch.tensor(4.0), 2)
    torch.testing.assert_close(found, 2 / 61 * log_prob / 4)


def test_the_gain_of_factors_is_exact_for_one_and_unbiased_for_two() -> None:
    table = torch.tensor([[1.0, 2.0, 4.0], [-1.0, 3.0, 0.5]])  # of two factors: 2 x 3
    raws = [torch.tensor([0.3, -0.2]), torch.tensor([0.0, 1.0, -1.0])]
    raws = [raw.requires_grad_() for raw in raws]
    probs = [torch.softmax(raw, -1) for raw in raws]

    def q(action: Tensor) -> Tensor:
        return torch.einsum("...i,ij,...j->...", action[..., :2], table, action[..., 2:])

    expected = probs[0] @ table @ probs[1]
    truth = torch.autograd.grad(expected, raws, retain_graph=True)
    total = [torch.zeros_like(raw) for raw in raws]
    for i in range(2):
        for j in range(3):
            drawn = torch.cat([torch.eye(2)[i], torch.eye(3)[j]])
            gain = factor_gain(probs, drawn, q)
            chance = float((probs[0][i] * probs[1][j]).detach())
            grads = torch.autograd.grad(gain, raws, retain_graph=True)
            total = [t + chance * g for t, g in zip(total, grads, strict=True)]
    for a, b in zip(total, truth, strict=True):
        torch.testing.assert_close(a, b)
    one = factor_gain(probs[:1], torch.tensor([0.0, 1.0]), lambda a: a @ table[:, 0])
    torch.testing.assert_close(one, probs[0] @ table[:, 0])


def batch_of(spec: EnvSpec, agent: TDMPC2) -> Batch:
    batch = random_batch(spec, length=agent.model.context + agent.config.horizon + 2)
    if MASK_KEY in batch.obs:
        batch.obs[MASK_KEY].fill_(1.0)  # with one choice there is nothing to learn
    if agent.columns:
        size = agent.columns[PLAN].shape[0]
        batch.columns = {PLAN: torch.rand(*batch.shape, size) + 0.1}
    return batch


def test_value_and_policy_loss_in_float64() -> None:
    """The ensemble one head after the other, on the same draws."""
    agent = make(dropout=0.0)
    nets, config = agent.networks, agent.config
    scramble(nets, scale=0.1)
    batch = batch_of(VECTOR, agent)
    learned = agent.model.learn(batch)
    torch.manual_seed(3)
    losses, _ = agent.world_losses(learned, batch)
    torch.manual_seed(3)
    noise = torch.randn((*learned.seen.shape[:2], 2)).double()
    heads = torch.randperm(3)[:2].tolist()
    ref = copy.deepcopy(nets).double()

    def q(which: Any, one: int, z: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([z, action], -1)
        for layer in range(3):
            x = x @ which.weights[layer][one] + which.biases[layer][one]
            if layer < 2:
                of = which.scales[layer][one, 0], which.shifts[layer][one, 0]
                x = F.mish(F.layer_norm(x, x.shape[-1:], *of))
        return x

    bins = torch.linspace(-10, 10, 101, dtype=torch.float64)

    def mean(logits: Tensor) -> Tensor:
        x = torch.softmax(logits, -1) @ bins
        return x.sign() * (x.abs().exp() - 1)

    def policy(z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        x = z
        for block in (ref.policy.first, ref.policy.second):
            x = F.linear(x, block.linear.weight, block.linear.bias)
            x = F.mish(F.layer_norm(x, x.shape[-1:], block.norm.weight, block.norm.bias))
        centre, raw = ref.policy.last(x).chunk(2, -1)
        log_std = -10 + 6 * (torch.tanh(raw) + 1)
        return torch.tanh(centre + log_std.exp() * noise), log_std

    z, seen, action = (x.detach().double() for x in (learned.z, learned.seen, learned.action))
    after, _ = policy(seen, noise)
    target_q = ref.target_q.module
    low = torch.minimum(*(mean(q(target_q, i, seen, after)) for i in heads))
    target = learned.reward.double() + 0.99 * (~learned.terminal).double() * low
    bin_of = agent.model.bins.encode(target.float()).double()
    scores = [
        (bin_of * torch.log_softmax(q(ref.q, i, z[:-1], action), -1)).sum(-1) for i in range(3)
    ]
    expected = -0.1 * (learned.weight.double() * torch.stack(scores)).mean()
    assert float(losses["value"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)

    torch.manual_seed(4)
    loss, scale, _ = agent.policy_loss(learned, batch)
    torch.manual_seed(4)
    noise = torch.randn((*z.shape[:2], 2)).double()
    heads = torch.randperm(3)[:2].tolist()
    drawn, log_std = policy(z, noise)
    value = sum(mean(q(ref.q, i, z, drawn)) for i in heads) / 2
    spread = torch.quantile(value[0], 0.95) - torch.quantile(value[0], 0.05)
    s = 1 + 0.01 * (max(float(spread.detach()), 1.0) - 1)
    assert float(scale) == pytest.approx(s, rel=1e-5)
    entropy = scaled_entropy(noise, log_std, drawn, True)
    alive = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).t()
    weight = alive * 0.5 ** torch.arange(5).unsqueeze(1)  # row 2 of the first is terminal
    expected = -(weight * (value / s + config.entropy * entropy)).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    mine, names = zip(*[(p, n) for n, p in nets.policy.named_parameters()], strict=True)
    theirs = dict(ref.policy.named_parameters())
    wanted = torch.autograd.grad(expected, [theirs[n] for n in names])
    for a, b, n in zip(torch.autograd.grad(loss, mine), wanted, names, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-6, msg=n)


def learners(agent: TDMPC2, loss: Tensor) -> set[str]:
    named = [(n, p) for n, p in agent.networks.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True, retain_graph=True)
    found = zip(named, grads, strict=True)
    names = [n.removeprefix("model.") for (n, _), g in found if g is not None and g.abs().max() > 0]
    return {n.split(".")[0].removesuffix("_norm") for n in names}


@pytest.mark.parametrize("guide", ["none", "constraint", "imitation"])
@CONTINUOUS_AND_NOT
def test_who_learns_from_which_loss(spec: str, guide: str) -> None:
    agent = make(SPECS[spec], guide=guide)
    scramble(agent.networks, scale=0.1)
    with torch.no_grad():
        agent.networks.scale.fill_(3.0)
    batch = batch_of(SPECS[spec], agent)
    learned = agent.model.learn(batch)
    losses, _ = agent.world_losses(learned, batch)
    assert learners(agent, losses["value"]) == {"encoder", "dynamics", "q"}
    policy, _, _ = agent.policy_loss(learned, batch)
    assert learners(agent, policy) == {"policy"}


def test_the_encoder_learns_more_slowly() -> None:
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = [p.detach().clone() for m in (a, b) for p in m.parameters()]
    optim = Adam([("a", a), ("b", b)], AdamConfig(lr=0.1), [0.3, 1.0])
    optim.step(sum(p.sum() for m in (a, b) for p in m.parameters()))  # type: ignore[arg-type]
    after = [p.detach() for m in (a, b) for p in m.parameters()]
    moved = [float((y - x).mean()) for x, y in zip(before, after, strict=True)]
    assert moved == pytest.approx([-0.03, -0.03, -0.1, -0.1], rel=1e-4)


@pytest.mark.parametrize("guide", ["none", "constraint", "imitation"])
@CONTINUOUS_AND_NOT
def test_an_update_moves_everything(spec: str, guide: str) -> None:
    agent = make(SPECS[spec], guide=guide)
    replay = filled_replay(SPECS[spec], columns=agent.columns)
    before = copy.deepcopy(agent.networks.state_dict())
    outside = torch.get_rng_state()
    for _ in range(2):  # the first layers' weights move once the last ones are not 0
        metrics = agent.update(replay)
    assert torch.equal(torch.get_rng_state(), outside)
    assert all(math.isfinite(float(value)) for value in metrics.values())
    still = [n for n, x in agent.networks.state_dict().items() if torch.equal(x, before[n])]
    assert set(still) <= {"scale"}


@CONTINUOUS_AND_NOT
def test_old_rows_are_planned_anew(spec: str) -> None:
    agent = make(SPECS[spec], guide="imitation", replan=3, replan_every=2)
    replay = filled_replay(SPECS[spec], columns=agent.columns)

    def held() -> np.ndarray:
        rows = RowIndex(np.arange(2), np.zeros(2, np.int64), 40)
        return replay.gather(rows, columns=(PLAN,)).columns[PLAN].numpy()

    began, untouched = held(), []
    for update in range(4):
        assert agent.config.replans(agent.optim.updates) == (update == 2)
        agent.update(replay)
        untouched.append(np.array_equal(held(), began))
    assert untouched == [True, True, False, False]
    now = held()
    changed = (now != began).any(-1)
    slices = agent.config.replan * (agent.config.horizon + 1)
    assert agent.config.horizon + 1 <= changed.sum() <= slices
    assert np.isfinite(now).all()
    values = now[changed]
    if SPECS[spec].action.kind == "discrete":  # probabilities of each factor
        assert values.sum(-1) == pytest.approx(len(SPECS[spec].action.sizes), abs=1e-4)
    else:
        mean, std = np.split(values, 2, -1)
        assert np.abs(mean).max() <= 1
        assert std.min() >= agent.config.planner.least_std - 1e-6


def test_bfloat16_moves_weights_where_float32_does() -> None:
    moves = []
    for precision in ("float32", "bfloat16"):
        agent = make(cpu_precision=precision, dropout=0.0, batch_size=256)
        replay, nets = filled_replay(VECTOR), agent.networks
        before = copy.deepcopy(nets.state_dict())
        for _ in range(3):
            agent.update(replay)
        moves.append({name: x - before[name] for name, x in nets.state_dict().items()})
    exact, short = moves
    moved = [name for name, x in exact.items() if x.abs().sum() > 0]
    assert set(exact) - set(moved) <= {"scale"}
    assert min(F.cosine_similarity(exact[n].flatten(), short[n].flatten(), 0) for n in moved) > 0.9
    assert not all(torch.equal(exact[n], short[n]) for n in exact)


def test_where_the_loss_is_not_finite_nothing_moves() -> None:
    agent, replay = make(), filled_replay(VECTOR)
    agent.update(replay)
    with torch.no_grad():
        agent.networks.q.biases[0].fill_(float("inf"))
    before = copy.deepcopy(agent.networks.state_dict())
    with pytest.raises(FloatingPointError) as caught:
        agent.update(replay)
    assert caught.value.batch.shape == (8, 4)  # type: ignore[attr-defined]
    for name, value in agent.networks.state_dict().items():
        assert torch.equal(value, before[name]), name


# Acting


@CONTINUOUS_AND_NOT
def test_it_plans_once_it_has_learned(spec: str) -> None:
    agent, obs = make(SPECS[spec], guide="constraint"), observed(SPECS[spec], 3)
    outside = torch.get_rng_state()
    action, state, extras = agent.act(obs)
    size = SPECS[spec].action.size
    assert action.shape == (3, size)
    assert action.dtype == np.float32
    wide = extras[PLAN][:, size:] if agent.spec.action.kind == "continuous" else extras[PLAN]
    assert (wide == wide[0, 0]).all() or agent.spec.action.kind == "discrete"
    agent.optim.updates = 1
    first = {"is_first": np.zeros(3, bool)}
    action, after, extras = agent.act(obs | first, state)
    assert not torch.equal(after.mean, state.mean)
    assert extras[PLAN].shape == (3, *agent.columns[PLAN].shape)
    if agent.spec.action.kind == "discrete":
        torch.testing.assert_close(
            extras[PLAN].sum(-1), torch.full((3,), 1.0 * len(SPECS[spec].action.sizes))
        )
        assert set(np.unique(action)) <= {0.0, 1.0}
        if "action_mask" in obs:
            assert (action * obs["action_mask"]).sum(-1).all()
    else:
        assert np.abs(action).max() <= 1
    # Evaluations draw from elsewhere: training does not depend on whether there were any.
    mine = agent.planners["sample"].state_dict()["stream"][0].clone()
    agent.act(obs | first, state, mode="mode")
    assert torch.equal(agent.planners["sample"].state_dict()["stream"][0], mine)
    assert torch.equal(torch.get_rng_state(), outside)
    with pytest.raises(ValueError, match="Unknown action mode"):
        agent.act(obs, mode="best")


def test_an_episode_s_beginning_forgets_the_plan_and_no_other() -> None:
    agent, obs = make(), observed(VECTOR, 2)
    scramble(agent.networks)
    agent.optim.updates = 1
    _, warm, _ = agent.act(obs, mode="mode")

    def plan(state: Any, first: list[bool]) -> np.ndarray:
        agent.planners["mode"].stream.seed(5)
        return agent.act(obs | {"is_first": np.array(first)}, state, mode="mode")[0]

    fresh, both = plan(None, [True, True]), plan(warm, [False, False])
    mixed = plan(warm, [True, False])
    np.testing.assert_array_equal(mixed[0], fresh[0])
    np.testing.assert_array_equal(mixed[1], both[1])
    assert not np.array_equal(fresh, both)


def test_its_planner_against_the_plain_one_on_the_same_noise() -> None:
    """First layers computed once change nothing; and one decision by hand."""
    agent, obs = make(), observed(VECTOR, 1)
    scramble(agent.networks, scale=0.3)
    latent = agent.model.observe(
        agent.model.initial(1), {"v": torch.as_tensor(obs["v"])}, torch.zeros(1, 2),
        torch.ones(1, dtype=torch.bool),
    )  # fmt: skip
    plans = []
    for root in (latent, agent.model.prepared(latent)):
        planner = MPPI(VECTOR.action, replace(PLANNER, sample=False), 7, CPU)
        plans.append(planner.plan(agent.model, root, agent._guess).action)
    torch.testing.assert_close(*plans)

    config, size = replace(PLANNER, sample=False, policy_candidates=0, iterations=1), 16
    planner = MPPI(VECTOR.action, config, 7, CPU)
    with planner.stream:
        noise = torch.randn(1, size, 3, 2)
    planner.stream.seed(7)
    found = planner.plan(agent.model, latent, agent._guess).action
    planner.stream.seed(7)
    with planner.stream:
        torch.randn(1, size, 3, 2)
        actions = (2.0 * noise[0]).clamp(-1, 1)
        z, total = latent.z.expand(size, -1), torch.zeros(size)
        from worldmodel.models.latent import Latent

        weight = torch.ones(size)
        for t in range(3):
            step = agent.model.step(Latent(z), actions[:, t])
            z, total = step.state.z, total + weight * step.reward
            weight = weight * 0.99 * step.cont
        total = total + weight * agent._guess(Latent(z)).value
    best = total.topk(4)
    share = torch.exp(0.5 * (best.values - best.values[0]))
    mean = (share[:, None] * actions[best.indices, 0]).sum(0) / share.sum()
    torch.testing.assert_close(found[0], mean)


def test_a_deadline_gives_the_best_so_far() -> None:
    bounds = replace(PLANNER.bounds, deadline_ms=1e-6)
    agent, obs = make(planner=replace(PLANNER, bounds=bounds)), observed(VECTOR, 2)
    agent.optim.updates = 1
    action, state, _ = agent.act(obs)
    assert np.isfinite(action).all()
    assert agent.act(obs, state)[0].shape == (2, 2)


@pytest.mark.parametrize("spec", ["vector", "mixed"])
def test_its_tick_is_its_policy_without_a_plan(spec: str) -> None:
    agent, obs = make(SPECS[spec], plan=False), observed(SPECS[spec], 3)
    tensors = {key: torch.as_tensor(value) for key, value in obs.items()}
    action, _ = agent.tick()(tensors, agent.initial(3), torch.ones(3, dtype=torch.bool))
    np.testing.assert_array_equal(action.detach().numpy(), agent.act(obs, mode="mode")[0])


def test_evaluations_are_of_its_policy_and_draw_nothing() -> None:
    agent = make()
    state, before = agent.model.initial(4), torch.get_rng_state()
    found = agent.evaluate(state)
    assert found.value is not None
    assert found.value.shape == (4,)
    assert torch.equal(found.value, agent.evaluate(state).value)
    assert torch.equal(torch.get_rng_state(), before)


# Keeping


@CONTINUOUS_AND_NOT
def test_it_goes_on_where_it_was_saved(spec: str) -> None:
    one = SPECS[spec]
    agent, replays = make(one), [filled_replay(one) for _ in range(2)]
    obs = observed(one, 2)
    rows = agent.model.context + 4
    for _ in range(2):
        agent.update(replays[0])
        replays[1].sample(8, rows, online=False)  # the same draws
        _, state, _ = agent.act(obs)
    saved = copy.deepcopy(tree.to_plain(agent.state_dict()))
    where = tree.to_plain(state)
    other = make(one, seed=5)
    other.load_state_dict(saved)
    states = [state, tree.from_plain(other.initial(2), where)]
    first = {"is_first": np.zeros(2, bool)}
    for _ in range(2):
        for agent_, replay in zip((agent, other), replays, strict=True):
            agent_.update(replay)
        acted = [a.act(obs | first, s) for a, s in zip((agent, other), states, strict=True)]
        np.testing.assert_array_equal(acted[0][0], acted[1][0])
        states = [one[1] for one in acted]
    ours, theirs = (tree.to_plain(a.state_dict()) for a in (agent, other))
    for (name, a), (_, b) in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, name
    with pytest.raises(ValueError, match="another configuration"):
        make(one, model=replace(WORLD, units=17)).load_state_dict(saved)


def test_its_parts_are_the_weights_in_use() -> None:
    agent = make(SPECS["mixed"])
    parts = agent.parts
    assert set(parts) == {"encoder", "dynamics", "reward", "end", "mask", "q", "policy"}
    named = {name for part in parts.values() for name in part.tensors}
    assert named == set(agent.networks.state_dict())
    assert agent.slow_down(0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guide": "mppi"}, "guide"),
        ({"precision": "half"}, "precision"),
        ({"cpu_precision": "float16"}, "cpu_precision"),
        ({"replan": 20}, "guide=none learns from none. Set guide=imitation"),
    ],
)
def test_what_cannot_work_is_refused(changes: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings(**changes)


# Learning


def test_it_finds_the_best_action_of_a_bandit() -> None:
    """Reward -(a - 0.6)^2 x 10 and no future: plan and policy go to 0.6."""
    spec = EnvSpec({"v": ObsSpec("vector", (1,))}, ActionSpec("continuous", (1,)))
    replay = filled_replay(
        spec, 400, reward=lambda action: -10 * (action[:, 0] - 0.6) ** 2, terminal=True
    )
    agent = make(
        spec, batch_size=64, horizon=1, planner=replace(PLANNER, horizon=1, candidates=64),
        optim=AdamConfig(lr=3e-3, clip=20.0), policy_optim=AdamConfig(lr=3e-3, clip=20.0),
        value_scale=1.0, model=replace(WORLD, reward_scale=1.0),
    )  # fmt: skip
    for _ in range(400):
        agent.update(replay)
    obs = observed(spec, 5)
    np.testing.assert_allclose(agent.act(obs, mode="mode")[0], 0.6, atol=0.15)
    state = agent.act(obs)[1].latent
    np.testing.assert_allclose(agent.evaluate(state).prior.mode().numpy(), 0.6, atol=0.3)


# In a run, which knows nothing of it


def config_of(folder: Path, actions: str = "box", **changes: Any) -> TrainConfig:
    return small_config(folder, settings(), actions, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tdmpc2") / "run"
    check_trains_and_evaluates(config_of(folder))
    return folder


def test_the_same_seed_is_the_same_evaluation(run: Path) -> None:
    check_evaluates_alike(agents.load(run, "cpu"))


@pytest.mark.parametrize(
    ("actions", "guide", "replan"), [("box", "constraint", 0), ("discrete", "imitation", 2)]
)
def test_a_run_stopped_and_continued_is_the_same(
    tmp_path: Path, actions: str, guide: str, replan: int
) -> None:
    config = config_of(tmp_path, actions, first_updates=3)
    agent = replace(config.agent, guide=guide, replan=replan, replan_every=2)
    check_resumes(tmp_path, replace(config, agent=agent, env=replace(config.env, num_envs=2)))


def test_a_run_starts_from_another_one(tmp_path: Path, run: Path) -> None:
    check_starts_from(config_of(tmp_path), run)


def test_a_run_learns_from_a_recording(tmp_path: Path, run: Path) -> None:
    check_learns_offline(config_of(tmp_path), run)


def test_a_recording_has_no_plans_to_learn_from() -> None:
    make().prepare(filled_replay(VECTOR))
    with pytest.raises(ConfigError, match=r"guide=imitation.*Set agent\.guide=none"):
        make(guide="imitation").prepare(filled_replay(VECTOR))


@pytest.mark.slow
def test_it_is_exported_and_deployed(tmp_path: Path, run: Path) -> None:
    pytest.importorskip("onnxscript")
    check_exports_and_deploys(run, tmp_path)


def test_what_it_learns_does_not_depend_on_a_decoder() -> None:
    agents_ = [make(model=replace(WORLD, decoder=d)) for d in (False, True)]
    for agent in agents_:
        replay = filled_replay(VECTOR)
        for _ in range(2):
            agent.update(replay)
    ours, theirs = (agent.networks.state_dict() for agent in agents_)
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    assert "decoder" in agents_[1].parts


@pytest.mark.slow
@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_it_learns_from_images(tmp_path: Path, actions: str) -> None:
    fast = AdamConfig(lr=2e-3, clip=20.0)
    # What comes next is random here: all that consistency asks for is to tell nothing apart.
    world = replace(WORLD, frames=1, shift=0, channels=16, reward_scale=1.0, consistency_scale=2.0)
    agent = settings(
        batch_size=16, horizon=1, heads=2, optim=fast, policy_optim=fast,
        model=replace(world, discount=0.0), planner=replace(PLANNER, horizon=1, candidates=32),
    )  # fmt: skip
    check_learns_from_images(tmp_path, agent, actions)
