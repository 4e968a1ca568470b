"""From modules to graphs: torch.export, ONNX, smaller numbers, and how fast each of them is."""

from __future__ import annotations

import io
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.config import RunError

MOST_ROBOTS = 4096  # rows of a batch that a graph takes
EXTRA = 'pip install -c constraints.txt "worldmodel[export]"'


def needs(package: str) -> Any:
    """Import a package of the `export` extra; RunError where it is missing."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RunError(f"{package} is not installed ({error}). Do: {EXTRA}") from error


def traced(module: nn.Module, args: tuple[Tensor, ...]) -> Any:
    """The graph of a module for any number of robots; args: an example with two."""
    batch = torch.export.Dim("batch", min=1, max=MOST_ROBOTS)
    axes = (tuple({0: batch} for _ in args),)
    with torch.no_grad(), no_warnings():
        return torch.export.export(module.eval(), args, dynamic_shapes=axes)


def to_onnx(program: Any, inputs: list[str], outputs: list[str]) -> bytes:
    """The graph as ONNX. RunError where the extra is missing."""
    needs("onnx")
    needs("onnxscript")
    with torch.no_grad(), no_warnings():
        made = torch.onnx.export(
            program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False
        )
    assert made is not None
    data: bytes = made.model_proto.SerializeToString()
    return data


def to_pt2(program: Any) -> bytes:
    """The graph as torch.export writes it."""
    with no_warnings():
        file = io.BytesIO()
        torch.export.save(program, file)
    return file.getvalue()


def to_int8(graph: bytes, scratch: Path) -> bytes:
    """ONNX with 8-bit weights in its matrix products; activations are scaled as they come."""
    onnx = needs("onnx")
    quantization = needs("onnxruntime.quantization")
    before, after = scratch / "float32.onnx", scratch / "int8.onnx"
    model = onnx.load_from_string(graph)
    # The exporter notes the shapes of weights before it turns them; the quantiser would stumble.
    del model.graph.value_info[:]
    _unshare(model.graph)
    before.write_bytes(model.SerializeToString())
    with no_warnings():
        # Seven bits: with eight, sums saturate on a CPU without VNNI instructions.
        quantization.quantize_dynamic(
            before, after, weight_type=quantization.QuantType.QInt8, reduce_range=True
        )
    return after.read_bytes()


def _unshare(graph: Any) -> None:
    """Give every matrix product a weight of its own. The detector uses the policy's again, and the
    quantiser turns a weight anew for each product that it belongs to."""
    weights = {weight.name: weight for weight in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        name = node.input[1] if node.op_type == "Gemm" else ""
        if name in weights and uses[name] > 1:
            own = graph.initializer.add()
            own.CopyFrom(weights[name])
            own.name = node.input[1] = f"{name}.of.{node.output[0]}"


def to_half(graph: bytes) -> bytes:
    """ONNX with 16-bit floats inside; inputs and outputs stay as they are."""
    onnx = needs("onnx")
    float16 = needs("onnxruntime.transformers.float16")
    with no_warnings():
        made = float16.convert_float_to_float16(
            onnx.load_from_string(graph), keep_io_types=True, disable_shape_infer=True
        )
    data: bytes = made.SerializeToString()
    return data


@contextmanager
def only_weights() -> Iterator[None]:
    """Nothing that torch reads in the block is unpickled beyond tensors. torch.export.load falls
    back to pickles, which may run anything, for parts that hold more."""
    names = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        with no_warnings():
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def session(graph: bytes, threads: int = 1) -> Any:
    """An ONNX Runtime session on the CPU that never spins while it waits."""
    runtime = needs("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def milliseconds(call: Callable[[], Any], times: int = 200) -> float:
    """The median CPU time of a call in this thread, warm; what else the machine does is not in
    it."""
    for _ in range(times // 10):
        call()
    taken = np.empty(times)
    for i in range(times):
        start = time.thread_time()
        call()
        taken[i] = time.thread_time() - start
    return float(1e3 * np.median(taken))


@contextmanager
def no_warnings() -> Iterator[None]:
    """Without the exporters' warnings about packages that nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
