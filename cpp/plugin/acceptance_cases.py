"""What `accept.py` runs: nodes and lengths, their ONNX graphs and inputs, and ONNX Runtime's answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from cpp.plugin.kernel_libraries import Rope
from editverse_rt.backends.ort import import_onnxruntime
from reference.families.editverse import CONFIGS, TransformerConfig

SHORT = ("float16", "bfloat16")


@dataclass(frozen=True)
class Case:
    """A node and a length."""

    name: str
    config: TransformerConfig
    tokens: int

    @property
    def rope(self) -> Rope:
        c = self.config
        a, b, d, e = c.axis_dims
        return Rope(c.num_heads, (a, b, d, e), c.axis_thetas, c.norm_eps)


def make_config(num_heads: int, axis_dims: tuple[int, int, int, int], **changes: Any) -> TransformerConfig:
    return TransformerConfig(
        width=8, num_blocks=1, num_heads=num_heads, head_dim=sum(axis_dims), mlp_width=8, time_width=8,
        patch_dim=8, text_dim=8, axis_dims=axis_dims, **changes,
    )  # fmt: skip


NANO, LARGE = CONFIGS["nano"], CONFIGS["editverse-2b"]
NUMERICS = [
    Case("nano", NANO, 177),
    Case("nano", NANO, 1281),
    Case("one token", LARGE, 1),
    Case("editverse-2b", LARGE, 657),
    Case("editverse-2b", LARGE, 1537),
    Case("three heads of 64", make_config(3, (12, 8, 22, 22)), 333),
    Case("NTK scaling", make_config(4, (12, 4, 56, 56), ntk_factors=(1.0, 2.0, 4.0, 4.0)), 257),
]
SPEED = [Case("editverse-2b", LARGE, tokens) for tokens in (2577, 8190, 16_380, 32_760)]


def cases_and_dtypes(cases: list[Case], longest: int) -> Iterator[tuple[Case, str]]:
    return ((case, dtype) for case in cases for dtype in SHORT if case.tokens <= longest)


def node_model(
    case: Case, dtype: str, lowering: Literal["inline", "fused", "plugin"], *, packed: bool = False
) -> bytes:
    """A graph of the one node, its tensors the inputs; with `packed` also the sequences' offsets."""
    # Here, so that sections that only draw inputs run without these packages.
    import onnx_ir as ir
    from onnx import TensorProto, helper

    from export import lower
    from export.attention_nodes import DOMAIN, INPUTS, OP_TYPE

    types = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
    rope, kind = case.rope, types[dtype]
    names = [*INPUTS, *(["offsets"] if packed else [])]
    node = helper.make_node(
        OP_TYPE, names, ["mixed"], domain=DOMAIN, num_heads=rope.num_heads,
        axis_dims=list(rope.axis_dims), axis_thetas=list(rope.axis_thetas), epsilon=rope.epsilon,
    )  # fmt: skip
    shapes: dict[str, list[int | str]] = {name: ["L", rope.inner] for name in ("q", "k", "v")}
    shapes |= {"q_norm": [rope.head_dim], "k_norm": [rope.head_dim]}
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    inputs.append(helper.make_tensor_value_info("positions", TensorProto.INT64, ["L", 4]))
    if packed:
        inputs.append(helper.make_tensor_value_info("offsets", TensorProto.INT32, ["S"]))
    output = helper.make_tensor_value_info("mixed", kind, ["L", rope.inner])
    graph = helper.make_graph([node], "node", inputs, [output])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    lower.lower_attention(model, lower.rope_config(case.config), lowering)
    lowered: bytes = ir.to_proto(model).SerializeToString()
    return lowered


def make_inputs(case: Case, dtype: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors on the CPU, the floats rounded to the dtype; positions as a video of frames has them."""
    generator = torch.Generator().manual_seed(seed)
    rope, kind = case.rope, getattr(torch, dtype)
    inputs = {
        name: torch.randn((case.tokens, rope.inner), generator=generator).to(kind) for name in ("q", "k", "v")
    }
    for name in ("q_norm", "k_norm"):
        inputs[name] = (1 + 0.3 * torch.randn((rope.head_dim,), generator=generator)).to(kind)
    rows = torch.arange(case.tokens)
    inputs["positions"] = torch.stack((rows // 5, rows // 900, rows // 30 % 30, rows % 30), 1)
    return inputs


def run_onnx_runtime(case: Case, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """The function body in float32 on the CPU."""
    ort = import_onnxruntime()
    session = ort.InferenceSession(node_model(case, "float32", "inline"), providers=["CPUExecutionProvider"])
    widened = {
        name: (value if name == "positions" else value.float()).numpy() for name, value in inputs.items()
    }
    mixed: np.ndarray = session.run(None, widened)[0]
    return mixed


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference, relative to that of the expected; infinite if not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    difference = np.linalg.norm(found.astype(np.float64) - expected)
    return float(difference / np.linalg.norm(expected.astype(np.float64)))
