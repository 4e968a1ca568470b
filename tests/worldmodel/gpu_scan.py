"""The recurrent core's steps as Triton kernels, against the loop that defines them.

`test_gpu.py` runs this file in a process of its own; see `gpu_doubles`.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.worldmodel.gpu_doubles import DEVICE, launched, pretend
from tests.worldmodel.test_rssm_scan import LATENTS, make_core, observed
from tests.worldmodel.test_rssm_scan import rows as cpu_rows
from worldmodel import distributions
from worldmodel.rssm import scan
from worldmodel.rssm.gpu import Launches
from worldmodel.rssm.scan import FastRSSM
from worldmodel.rssm.state import LatentState

KERNELS = {"embed", "mix", "gru", "infer"}
# Make no work for a GPU: views, and memory to write to.
FREE = {
    "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided",
    "expand", "new_empty", "new_empty_strided", "permute", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        pretend(monkeypatch)

    def noise(self: Launches, out: Tensor) -> Tensor:
        """All at once it would be other numbers than those of the loop."""
        for step in out.view(-1, *out.shape[-3:]):
            step.normal_() if self.gaussian else step.uniform_()
        return out

    monkeypatch.setattr(Launches, "noise", noise)


def rows(latent: str, length: int = 4) -> tuple[LatentState, tuple[Tensor, ...]]:
    state, inputs = cpu_rows(latent, length=max(length, 6))
    return state.map(lambda x: x.to(DEVICE)), tuple(x[:, :length].to(DEVICE) for x in inputs)


def core_of(latent: str) -> FastRSSM:
    return make_core(latent).to(DEVICE)


@pytest.mark.parametrize("latent", LATENTS)
def test_a_scan_and_its_gradient_are_those_of_the_loop(
    latent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, (state, inputs) = core_of(latent), rows(latent)
    times = 1 if DEVICE == "cpu" else 2  # only a GPU could add in another order
    with launched(monkeypatch) as names:
        ours = [observed(core, state, inputs) for _ in range(times)]
    assert set(names) >= KERNELS | {f"{name}_back" for name in KERNELS}
    monkeypatch.setattr(scan, "usable", lambda *args: False)
    plain = observed(core, state, inputs)
    assert len(plain) == 3 + 4 + 19
    for name, expected in plain.items():
        assert torch.equal(ours[0][name], ours[-1][name]), name
        atol = 5e-6 * expected.abs().max().item()
        torch.testing.assert_close(ours[0][name], expected, rtol=2e-5, atol=atol, msg=name)


def decisive(x: Tensor) -> Tensor:
    """Uniform noise by which one class is drawn, whatever its probability, in any precision."""
    winner = torch.randint(x.shape[-1], (*x.shape[:-1], 1)).to(x.device)
    return x.fill_(1e-8).scatter_(-1, winner, 0.9999)


@pytest.mark.parametrize(
    "latent", ["categorical", pytest.param("gaussian", marks=pytest.mark.slow)]
)
def test_in_bfloat16_a_scan_is_as_exact_as_the_loop(
    latent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, (state, inputs) = core_of(latent), rows(latent)
    if latent == "categorical":

        def noise(self: Launches, out: Tensor) -> Tensor:
            return torch.stack([decisive(step) for step in out])

        monkeypatch.setattr(Launches, "noise", noise)
        monkeypatch.setattr(distributions, "exponential_", lambda x: decisive(x).log_().neg_())
    with torch.autocast(DEVICE, torch.bfloat16), launched(monkeypatch) as names:
        ours = observed(core, state, inputs)
    assert set(names) >= KERNELS
    monkeypatch.setattr(scan, "usable", lambda *args: False)
    exact = observed(core, state, inputs)
    with torch.autocast(DEVICE, torch.bfloat16):
        plain = observed(core, state, inputs)
    errors = torch.zeros(2, len(exact))
    for i, (name, expected) in enumerate(exact.items()):
        assert ours[name].dtype == plain[name].dtype, name
        for j, found in enumerate((ours, plain)):
            errors[j, i] = (found[name].float() - expected).detach().norm() / expected.norm()
    assert errors.max() < 0.05
    assert errors[0].mean() < 1.5 * errors[1].mean()


@pytest.mark.parametrize("latent", LATENTS)
def test_a_stepper_steps_as_the_core_does(latent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    core, (state, inputs) = core_of(latent), rows(latent)
    with torch.no_grad(), launched(monkeypatch) as names:
        step, ours, plain = core.stepper(state, 3), state, state
        assert isinstance(step, scan.Stepper)
        for t in range(3):
            torch.manual_seed(t)
            ours = step(ours, inputs[1][:, t])
            torch.manual_seed(t)
            plain = core.step(plain, inputs[1][:, t])
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=2e-6)
    assert set(names) >= {"embed", "mix", "gru"}
    assert core.stepper(state, 3) == core.step  # with gradient


def test_a_stepper_keeps_the_precision_of_the_networks() -> None:
    core, (state, inputs) = core_of("categorical"), rows("categorical")
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        torch.manual_seed(0)
        ours = core.stepper(state, 3)(state, inputs[1][:, 0])
        torch.manual_seed(0)
        plain = core.step(state, inputs[1][:, 0])
    assert ours.deter.dtype == torch.bfloat16
    torch.testing.assert_close(ours.deter, plain.deter.bfloat16(), rtol=2e-2, atol=1e-2)
    assert torch.equal(ours.stoch.sum(-1), torch.ones_like(ours.stoch[..., 0]))


def test_a_nan_before_an_episode_stays_there_and_one_inside_shows() -> None:
    core, (state, (embed, action, first)) = core_of("categorical"), rows("categorical", 6)
    embed[1, 2] = torch.nan  # the episode after it begins at 3
    embed[2, 1] = torch.nan  # its episode goes on until 5
    states, params = core.observe(state, embed.requires_grad_(), action, first)
    bad = ~torch.isfinite(params.flatten(2)).all(-1)
    assert bad.tolist() == [
        [False] * 6,
        [False, False, True, False, False, False],
        [False, True, True, True, True, False],
        [False] * 6,
    ]
    assert torch.isfinite(states.deter[1, 3:]).all()
    (grad,) = torch.autograd.grad(states.deter[1, 3:].sum() + params[0].sum(), embed)
    assert torch.isfinite(grad[[0, 3]]).all()
    assert torch.isfinite(grad[1, 3:]).all()


def test_draws_follow_their_distribution() -> None:
    core = core_of("categorical")
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5]], device=DEVICE)
    params = logits.expand(20000, 3, 4).contiguous()
    torch.manual_seed(0)
    out = torch.empty_like(params)
    vectors = scan.Vectors(*(x.detach() for x in scan.weights_of(core, params.dtype)[1]))
    ops = scan.steps_for(core, len(params), params, vectors)
    ops.draw(params, ops.noise(torch.empty_like(params)), out.flatten(1), biased=True)
    assert torch.equal(out.sum(-1), torch.ones_like(out[..., 0]))
    torch.testing.assert_close(out.mean((0, 1)), core.dist(params).probs[0, 0], rtol=0, atol=0.01)  # type: ignore[union-attr]


class Operations(TorchDispatchMode):
    """Counts the operations that make work for a GPU, and notes those that wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def operations(length: int, back: bool) -> Counter[str]:
    """Of `observe` on so many steps, or of its gradient; Triton's under their kernels' names."""
    core, (state, (embed, action, first)) = core_of("categorical"), rows("categorical", length)
    counted = [Operations(), Operations()]
    names: list[list[str]] = [[], []]
    with launched(pytest.MonkeyPatch(), run=False) as names[0], counted[0]:
        states, params = core.observe(state, embed.requires_grad_(), action, first)
    loss = states.deter.sum() + states.stoch.sum() + params.sum()
    with launched(pytest.MonkeyPatch(), run=False) as names[1], counted[1]:
        loss.backward()
    return counted[back].count + Counter(names[back])


@pytest.mark.parametrize("back", [False, True])
def test_a_step_is_eleven_launches_and_never_waits_for_the_gpu(
    back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Launches, "noise", lambda self, out: out.uniform_())
    few, many = (operations(length, back) for length in (5, 6))
    each = many - few
    assert each.total() == 11, each
    assert not {"_local_scalar_dense", "nonzero", "_to_copy"} & set(many)
