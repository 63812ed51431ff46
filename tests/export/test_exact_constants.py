"""Constants that are nearly 0 or 1 stay, and those that are so exactly still go."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from export.exact_constants import optimize_exactly

EPSILON = 2.0**-28
"""Of a norm with the usual 1e-6, whose stream was divided by 16."""


class Norm(nn.Module):
    """A norm of small values, its epsilon a quarter of their mean square."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


class Steps(nn.Module):
    """What a rule may take away, and what it may not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 0.0
        x = x * 1.0
        x = x * (1 + 2.0**-18)
        x = x / (1 - 2.0**-17)
        return x - 2.0**-29


def export(module: nn.Module, x: torch.Tensor, *, exact: bool = True) -> ir.Model:
    program = torch.onnx.export(
        module.eval(), (x,), dynamo=True, opset_version=23, verbose=False, optimize=not exact
    )
    assert program is not None
    if exact:
        optimize_exactly(program)
    return program.model


def run(model: ir.Model, x: torch.Tensor) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return np.asarray(result)


@pytest.fixture
def small() -> torch.Tensor:
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(0)) * 2.0**-13


def test_a_small_epsilon_counts_as_in_pytorch(small: torch.Tensor):
    expected = Norm()(small.double()).numpy()
    np.testing.assert_allclose(run(export(Norm(), small), small), expected, rtol=1e-6)
    lost = run(export(Norm(), small, exact=False), small)
    assert np.abs(lost / expected - 1).min() > 0.05, "the rules keep it by themselves: the module may go"


def test_what_is_nearly_nothing_stays_and_what_is_nothing_goes(small: torch.Tensor):
    model = export(Steps(), small)
    assert [node.op_type for node in model.graph] == ["Mul", "Div", "Sub"]
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert all(value.const_value is not None for value in model.graph.initializers.values())
    expected = Steps()(small.double()).numpy()
    np.testing.assert_allclose(run(model, small), expected, rtol=3e-7)
