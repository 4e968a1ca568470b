"""The steps in machine code and their gradient by hand, against the loop that defines them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.model_batches import SPECS, random_batch, random_state, scramble, tiny
from worldmodel.rssm import WorldModel, scan
from worldmodel.rssm.scan import FastRSSM
from worldmodel.rssm.state import LatentState

LATENTS = ("categorical", "gaussian")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many threads share the work, however little it is."""
    monkeypatch.setattr("worldmodel.accel.threads.ALONE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return int(request.param)


def make_core(latent: str) -> FastRSSM:
    torch.manual_seed(0)
    core = FastRSSM(
        deter=12, hidden=5, groups=3, classes=4, blocks=3, embed=7, action=2, latent=latent
    )
    scramble(core)
    return core


def rows(latent: str, batch: int = 4, length: int = 6) -> tuple[LatentState, tuple[Tensor, ...]]:
    """A state to start from, and embeddings, actions and first flags, two of them in the middle."""
    state = random_state(tiny(deter=12, groups=3, classes=4, latent=latent), batch)
    g = torch.Generator().manual_seed(1)
    embed = torch.randn(batch, length, 7, generator=g)
    action = 2 * torch.randn(batch, length, 2, generator=g)
    first = torch.zeros(batch, length, dtype=torch.bool)
    first[0, 0] = first[1, 3] = first[3, 3] = first[2, 5] = True
    return state, (embed, action, first)


def observed(core: FastRSSM, state: LatentState, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """All that `observe` gives, and the gradients of a sum of it with random weights."""
    embed, action, first = inputs
    leaves = {"deter0": state.deter, "stoch0": state.stoch, "embed": embed, "action": action}
    leaves = {k: x.clone().requires_grad_() for k, x in leaves.items()}
    torch.manual_seed(2)
    states, params = core.observe(
        LatentState(leaves["deter0"], leaves["stoch0"]), leaves["embed"], leaves["action"], first
    )
    found = {"deter": states.deter, "stoch": states.stoch, "params": params}
    g = torch.Generator().manual_seed(3)
    loss = sum((x * torch.randn(x.shape, generator=g).to(x.device)).sum() for x in found.values())
    leaves |= {k: p for k, p in core.named_parameters() if not k.startswith("prior")}
    grads = torch.autograd.grad(torch.as_tensor(loss), list(leaves.values()))
    return found | {f"to {k}": g for k, g in zip(leaves, grads, strict=True)}


@pytest.mark.parametrize("latent", LATENTS)
def test_a_scan_and_its_gradient_are_those_of_the_loop(
    latent: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, (state, inputs) = make_core(latent), rows(latent)
    twice = [observed(core, state, inputs) for _ in range(2)]
    monkeypatch.setattr(scan, "usable", lambda *args: False)
    plain = observed(core, state, inputs)
    assert len(plain) == 3 + 4 + 19
    for name, expected in plain.items():
        assert torch.equal(twice[0][name], twice[1][name]), name
        assert expected.abs().max() > 0, name
        atol = 2e-6 * expected.abs().max().item()
        torch.testing.assert_close(twice[0][name], expected, rtol=2e-5, atol=atol, msg=name)


@pytest.mark.parametrize("latent", LATENTS)
def test_a_stepper_steps_as_the_core_does(latent: str, threads: int) -> None:
    core, (state, inputs) = make_core(latent), rows(latent)
    with torch.no_grad():
        step, ours, plain = core.stepper(state, 3), state, state
        assert isinstance(step, scan.Stepper)
        for t in range(3):
            torch.manual_seed(t)
            ours = step(ours, inputs[1][:, t])
            torch.manual_seed(t)
            plain = core.step(plain, inputs[1][:, t])
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=2e-6)
    assert core.stepper(state, 3) == core.step  # with gradient
    with torch.no_grad():
        assert core.stepper(state, 1) == core.step  # preparing would take longer
        assert core.double().stepper(state.map(Tensor.double), 3) == core.step


def test_a_state_keeps_what_it_was_when_the_stepper_goes_on() -> None:
    core, (state, inputs) = make_core("categorical"), rows("categorical")
    with torch.no_grad():
        step = core.stepper(state, 3)
        first = step(state, inputs[1][:, 0])
        kept = first.map(Tensor.clone)
        step(first, inputs[1][:, 1])
    assert torch.equal(first.deter, kept.deter)
    assert torch.equal(first.stoch, kept.stoch)


def test_a_nan_before_an_episode_stays_there_and_one_inside_shows() -> None:
    core, (state, (embed, action, first)) = make_core("categorical"), rows("categorical")
    embed[1, 2] = torch.nan  # the episode after it begins at 3
    embed[2, 1] = torch.nan  # its episode goes on until 5
    states, params = core.observe(state, embed, action, first)
    bad = ~torch.isfinite(params.flatten(2)).all(-1)
    assert bad.tolist() == [
        [False] * 6,
        [False, False, True, False, False, False],
        [False, True, True, True, True, False],
        [False] * 6,
    ]
    assert torch.isfinite(states.deter[1, 3:]).all()


def test_draws_that_somebody_replaced_are_theirs() -> None:
    core, (state, inputs) = make_core("categorical"), rows("categorical")
    core.sample = lambda params: torch.full((4, 3, 4), 0.25)  # type: ignore[method-assign]
    states, _ = core.observe(state, *inputs)
    assert torch.equal(states.stoch, torch.full((4, 6, 3, 4), 0.25))
    with torch.no_grad():
        assert core.stepper(state, 3) == core.step


def test_draws_follow_their_distribution() -> None:
    core = make_core("categorical")
    params = torch.tensor([[2.0, 0.0, -1.0, 0.5]]).expand(20000, 3, 4).contiguous()
    torch.manual_seed(0)
    out = torch.empty_like(params)
    vectors = scan.Vectors(*(x.detach() for x in scan.weights_of(core, params.dtype)[1]))
    ops = scan.steps_for(core, len(params), params, vectors)
    ops.draw(params, ops.noise(torch.empty_like(params)), out.flatten(1), biased=True)
    assert torch.equal(out.sum(-1), torch.ones(20000, 3))
    torch.testing.assert_close(out.mean((0, 1)), core.dist(params).probs[0, 0], rtol=0, atol=0.01)  # type: ignore[union-attr]


def test_imagining_is_the_same_with_and_without_machine_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = WorldModel(SPECS["image"], tiny())
    scramble(model, scale=0.1)
    batch = random_batch(SPECS["image"])
    found = []
    for usable in (scan.usable, lambda *args: False):
        monkeypatch.setattr(scan, "usable", usable)
        torch.manual_seed(1)
        with torch.no_grad():
            states = model.losses(batch).states
            start = states.map(lambda x: x[:, -1].clone())
            found.append(model.imagine(start, torch.zeros(3, 4, 2), 4)[0].feat)
    assert found[0].shape == (3, 5, 16 + 12)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
