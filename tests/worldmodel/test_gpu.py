"""The kernels for a GPU, without one: run by Triton's interpreter, and compiled for an H100."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worldmodel.gpu_doubles import TRITON, pretend
from worldmodel.accel import fused
from worldmodel.rssm.scan import FastRSSM
from worldmodel.rssm.state import LatentState

ROOT = Path(__file__).resolve().parents[2]
TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.uint8: "*u8",
    torch.bool: "*i1",
}  # fmt: skip
KERNEL_TESTS = ("worldmodel/gpu_fused", "worldmodel/gpu_scan", "agents/gpu_update")
HELPERS = {"sigmoid", "tanh", "place", "normed", "normed_back", "gated", "softmax"}
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed (Linux only)")


@needs_triton
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_kernels_equal_their_definitions(which: str) -> None:
    """On a CPU by Triton's interpreter, in a process of its own; on a GPU, where there is one."""
    files = [f"tests/{name}.py" for name in KERNEL_TESTS]
    alone = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, *files],
        cwd=ROOT, env=os.environ | alone, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
def test_no_argument_is_hidden_by_what_triton_wraps_around_a_kernel() -> None:
    from triton.runtime.jit import JITFunction

    from worldmodel.accel import gpu
    from worldmodel.rssm import gpu as rssm_gpu

    found = [x for m in (gpu.kernels, rssm_gpu.kernels) for x in vars(m).values()]
    names = {name for x in found if isinstance(x, JITFunction) for name in x.arg_names}
    assert {"grad", "WIDE"} < names
    assert not names & {"params", "specialization", "options", "backend", "specialize_impl"}


def signature(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[dict, dict]:
    """The types of a kernel's arguments, and the values that are compiled in, as in a launch."""
    given = dict(zip(kernel.arg_names, args, strict=False))
    given |= {k: v for k, v in options.items() if k in kernel.arg_names}
    fixed = {p.name for p in kernel.params if p.is_constexpr}
    types, values = {}, {}
    for name in kernel.arg_names:  # a KeyError here is an argument that a launch forgot
        value = given[name]
        if name in fixed or (type(value) is int and value == 1):
            types[name], values[name] = "constexpr", value
        elif isinstance(value, Tensor):
            types[name] = TYPES[value.dtype]
        else:
            types[name] = "i32" if isinstance(value, int) else "fp32"
    return types, values


def use_everything(dtype: torch.dtype) -> None:
    """Every function of `fused`, a scan of both kinds of latents, and a stepper, with gradients
    where they have any."""

    def back(out: Tensor) -> None:
        out.float().sum().backward()

    def new(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    def scale(c: int) -> Tensor:
        return torch.ones(c, requires_grad=True)

    back(fused.norm_silu(new(6, 64), scale(64), 1e-4))
    back(fused.norm_silu(new(2, 4, 4, 4 * 24), scale(24), 1e-4, 2))
    back(fused.pool_norm_silu(new(2, 4, 4, 24), scale(24), 1e-4))
    target = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    back(fused.image_loss(new(2, 4, 4, 4 * 3), torch.zeros(8, 8, 3), target, 2))
    above = torch.ones(2, 6, dtype=torch.long)
    back(fused.two_hot_log_prob(new(6, 255), above, torch.zeros(2, 6)))
    fused.two_hot_mean(new(6, 255).detach(), torch.zeros(255))
    for latent in ("categorical", "gaussian"):
        core = FastRSSM(256, 32, 8, 4, blocks=8, embed=32, action=2, latent=latent)
        first = torch.zeros(4, 2, dtype=torch.bool)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            args = new(4, 2, 32), torch.zeros(4, 2, 2), first
            states, params = core.observe(core.initial(4), *args)
            back(states.deter.sum() + states.stoch.sum() + params.sum())
            with torch.no_grad():
                start = LatentState(states.deter[:, 0], states.stoch[:, 0])
                core.stepper(start, 2)(start, torch.zeros(4, 2))


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_kernels_compile_for_an_h100(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from worldmodel.accel import gpu
    from worldmodel.rssm import gpu as rssm_gpu

    modules = gpu.kernels, rssm_gpu.kernels
    compiled: dict[str, Any] = {}

    def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        types, values = signature(kernel, args, options)
        name = f"{kernel.__module__}.{kernel.fn.__name__} {values.get('BACK')}"
        if name not in compiled:
            made = triton.compile(
                ASTSource(kernel, types, values), target=GPUTarget("cuda", 90, 32),
                options={k: v for k, v in options.items() if k not in types},
            )  # fmt: skip
            compiled[name] = len(made.asm["cubin"])

    pretend(monkeypatch)
    monkeypatch.setattr(gpu, "launch", launch)
    monkeypatch.setattr(rssm_gpu, "launch", launch)
    use_everything(dtype)
    assert all(compiled.values())
    made = {name.split()[0] for name in compiled}
    for module in modules:
        for name, kernel in vars(module).items():
            whole = hasattr(kernel, "arg_names") and kernel.__module__ == module.__name__
            if whole and name not in HELPERS:
                assert f"{module.__name__}.{name}" in made


def test_without_a_gpu_triton_is_neither_needed_nor_imported() -> None:
    code = """
import sys, torch
sys.modules["triton"] = None  # importing it fails
from worldmodel.accel import fused
from worldmodel.rssm.scan import FastRSSM
core = FastRSSM(16, 8, 2, 4, blocks=2, embed=8, action=2)
first = torch.zeros(2, 3, dtype=torch.bool)
core.observe(core.initial(2), torch.zeros(2, 3, 8), torch.zeros(2, 3, 2), first)
fused.norm_silu(torch.zeros(2, 8), torch.ones(8), 1e-4)
assert not any(name.startswith("worldmodel.accel.gpu") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
