"""The sections of `accept.py` that need TensorRT: engines of one node, timed beside PyTorch."""

from __future__ import annotations

import platform
import statistics
from typing import TYPE_CHECKING, Any

import tensorrt as trt
import torch
import torch.nn.functional as F

from cpp.plugin import acceptance_cases as cases
from cpp.plugin.acceptance_cases import Case
from cpp.plugin.acceptance_report import Report
from editverse_rt.backends.plugin import register_plugin
from reference.families import editverse

if TYPE_CHECKING:
    from cpp.plugin.accept import Libraries

NUM_TIMED_RUNS = 30
OUTPUT = "mixed"

# Of PyTorch's error in the same format: kernel one rounds once where PyTorch rounds three times.
ERROR_FACTOR, ERROR_FLOOR = 1.5, 1e-4
# Of two answers in bf16: roundings of q, k, weights and the result on both sides.
SHORT_TOLERANCE = 2e-2


class CollectingLogger(trt.ILogger):  # type: ignore[misc]
    """Keeps TensorRT's errors, so that a failed line can say them."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)

    def take(self) -> str:
        text, self.errors = "; ".join(self.errors), []
        return text or "TensorRT gave no reason"


LOGGER = CollectingLogger()


class Engine:
    """An engine of one node for lengths from `shortest` to `longest`, and one execution context of it."""

    def __init__(self, model: bytes, inputs: dict[str, torch.Tensor], shortest: int, longest: int) -> None:
        builder = trt.Builder(LOGGER)
        # From TensorRT 11 on every network is strongly typed.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, LOGGER)
        if not parser.parse(model):
            raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
        profile = builder.create_optimization_profile()
        for name, tensor in inputs.items():
            lengths = (
                [shortest, longest, longest]
                if name in ("q", "k", "v", "positions")
                else [tensor.shape[0]] * 3
            )
            profile.set_shape(name, *((length, *tensor.shape[1:]) for length in lengths))
        config = builder.create_builder_config()
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeError(LOGGER.take())
        self.runtime = trt.Runtime(LOGGER)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise RuntimeError(LOGGER.take())
        self.context = self.engine.create_execution_context()
        # Not the default stream: it cannot be captured, and TensorRT would synchronise with it.
        self.stream = torch.cuda.Stream()

    def bind(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Give the context its tensors (on the GPU); returns the output, filled with what is not a number."""
        for name, tensor in inputs.items():
            if not self.context.set_input_shape(name, tuple(tensor.shape)):
                raise RuntimeError(LOGGER.take())
            self.context.set_tensor_address(name, tensor.data_ptr())
        output = torch.full_like(inputs["q"], float("nan"))
        self.context.set_tensor_address(OUTPUT, output.data_ptr())
        torch.cuda.synchronize()
        return output

    def enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise RuntimeError(LOGGER.take())

    def run(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        output = self.bind(inputs)
        self.enqueue()
        self.stream.synchronize()
        return output


def on_gpu(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cuda() for name, tensor in inputs.items()}


def run_pytorch(case: Case, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The reference's function in the inputs' format, with a batch axis: its fused attention needs four."""
    rope = case.rope
    q, k, v, q_norm, k_norm, positions = inputs.values()
    mixed = editverse.rope_attention(
        q[None], k[None], v[None], q_norm, k_norm, positions[None], num_heads=rope.num_heads,
        axis_dims=rope.axis_dims, axis_thetas=rope.axis_thetas, eps=rope.epsilon,
    )  # fmt: skip
    return mixed[0]


def check_numerics(case: Case, dtype: str) -> tuple[bool, str]:
    inputs = cases.make_inputs(case, dtype)
    expected = cases.run_onnx_runtime(case, inputs)
    device = on_gpu(inputs)
    engine = Engine(cases.node_model(case, dtype, "plugin"), inputs, case.tokens, case.tokens)
    error = cases.relative_error(engine.run(device).float().cpu().numpy(), expected)
    pytorch = cases.relative_error(run_pytorch(case, device).float().cpu().numpy(), expected)
    allowed = ERROR_FACTOR * pytorch + ERROR_FLOOR
    return error <= allowed, f"relative error {error:.1e}, PyTorch's {pytorch:.1e}, allowed {allowed:.1e}"


def check_shapes(case: Case, dtype: str) -> tuple[bool, str]:
    """The longest, a shorter one, one token, the longest again; then from a CUDA graph."""
    inputs = cases.make_inputs(case, dtype)
    engine = Engine(cases.node_model(case, dtype, "plugin"), inputs, 1, case.tokens)
    device = on_gpu(inputs)
    first = engine.run(device).clone()
    for tokens in (case.tokens // 3, 1):
        shorter = {
            name: value if name.endswith("norm") else value[:tokens].contiguous()
            for name, value in device.items()
        }
        found = engine.run(shorter).float().cpu().numpy()
        expected = run_pytorch(case, shorter).float().cpu().numpy()
        if cases.relative_error(found, expected) > SHORT_TOLERANCE:
            return False, f"{tokens} tokens after {case.tokens} differ from PyTorch"
    again = engine.run(device)
    if not torch.equal(first, again):
        return False, "the first length, run again after others, gives other bits"
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=engine.stream):
        engine.enqueue()
    again.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    return bool(torch.equal(first, again)), "other lengths, and the bits of a CUDA graph"


def check_packed(case: Case, dtype: str) -> tuple[bool, str]:
    inputs = cases.make_inputs(case, dtype)
    cut = case.tokens // 3
    inputs["offsets"] = torch.tensor([0, cut, case.tokens], dtype=torch.int32)
    packed = Engine(cases.node_model(case, dtype, "plugin", packed=True), inputs, case.tokens, case.tokens)
    device = on_gpu(inputs)
    found = packed.run(device).float().cpu().numpy()
    del device["offsets"]
    alone = [
        {name: t if name.endswith("norm") else t[rows].contiguous() for name, t in device.items()}
        for rows in (slice(0, cut), slice(cut, None))
    ]
    expected = torch.cat([run_pytorch(case, part) for part in alone]).float().cpu().numpy()
    error = cases.relative_error(found, expected)
    return (
        error <= SHORT_TOLERANCE,
        f"sequences of {cut} and {case.tokens - cut}: relative difference {error:.1e}",
    )


def time_ms(run: Any, stream: torch.cuda.Stream) -> float:
    """Median of NUM_TIMED_RUNS runs on the stream, after three to warm up."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * NUM_TIMED_RUNS)]
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
        for start, end in zip(events[::2], events[1::2], strict=True):
            start.record(stream)
            run()
            end.record(stream)
    torch.cuda.synchronize()
    return statistics.median(
        start.elapsed_time(end) for start, end in zip(events[::2], events[1::2], strict=True)
    )


def time_engine(case: Case, dtype: str, lowering: Any, device: dict[str, torch.Tensor]) -> str:
    try:
        engine = Engine(cases.node_model(case, dtype, lowering), device, case.tokens, case.tokens)
        engine.run(device)
        return f"{time_ms(engine.enqueue, engine.stream):.3f}"
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error)[:60]}"


def time_case(case: Case, dtype: str) -> tuple[object, ...]:
    """A row of the table: tokens, format, and milliseconds of each."""
    device = on_gpu(cases.make_inputs(case, dtype))
    stream = torch.cuda.Stream()
    heads = [device[name].unflatten(-1, (case.rope.num_heads, -1)).transpose(0, 1)[None] for name in "qkv"]
    return (
        case.tokens,
        dtype,
        time_engine(case, dtype, "plugin", device),
        time_engine(case, dtype, "inline", device),
        f"{time_ms(lambda: run_pytorch(case, device), stream):.3f}",
        f"{time_ms(lambda: F.scaled_dot_product_attention(*heads), stream):.3f}",
    )


def run(report: Report, libraries: Libraries) -> None:
    """numerics, shapes, packed, speed."""
    # PyTorch has loaded its own cuDNN by now, which the plugin then finds under the same name.
    report.machine.append(
        f"{torch.cuda.get_device_name()}, {platform.platform()}, TensorRT {trt.__version__}, "
        f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    )
    register_plugin(trt.get_plugin_registry(), libraries.plugin)
    for case, dtype in cases.cases_and_dtypes(cases.NUMERICS, 10**6):
        label = f"{case.name}, {case.tokens} tokens, {dtype}"
        report.run("numerics", label, lambda c=case, d=dtype: check_numerics(c, d))
    for dtype in cases.SHORT:
        case = cases.Case("editverse-2b", cases.LARGE, 1537)
        report.run("shapes", dtype, lambda c=case, d=dtype: check_shapes(c, d))
        report.run("packed", dtype, lambda c=case, d=dtype: check_packed(c, d))
    header = (
        "tokens",
        "format",
        "plugin",
        "TensorRT's own (`inline`)",
        "PyTorch, all of it",
        "PyTorch, SDPA alone",
    )
    title = f"Milliseconds, median of {NUM_TIMED_RUNS}; 16 heads of 128"
    for case, dtype in cases.cases_and_dtypes(cases.SPEED, 10**6):
        report.add_row(title, header, time_case(case, dtype))
