"""The builder by itself: which modules it takes, what is called of them, what it reads in a log."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from editverse_rt.backends import trt_runner
from editverse_rt.errors import BackendError
from export.builder import Builder, list_kernels


@pytest.mark.parametrize(
    ("version", "is_refused"), [("10.9.0.34", True), ("10.15.1", False), ("11.4", False)]
)
def test_a_tensorrt_that_is_too_old_for_the_graphs_is_refused(
    version: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))  # type: ignore[arg-type]
    if is_refused:
        with pytest.raises(
            BackendError, match=r"tensorrt is 10.9.0.34, .*; pip install 'tensorrt-cu13>=10.15'"
        ):
            Builder("tensorrt")
    else:
        assert Builder("tensorrt").version == version


def test_the_runner_calls_what_the_module_has() -> None:
    """A false module plays TensorRT to the runner's own tests; each name that it calls is of the real one."""
    trt = importlib.import_module("tensorrt_rtx")
    owners = {
        "context": trt.IExecutionContext,
        "engine": trt.ICudaEngine,
        "config": trt.IRuntimeConfig,
        "kernels": trt.IRuntimeCache,
        "_kernels": trt.IRuntimeCache,
        "_runtime": trt.Runtime,
        "_trt": trt,
        "ExecutionContextAllocationStrategy": trt.ExecutionContextAllocationStrategy,
        "CudaGraphStrategy": trt.CudaGraphStrategy,
        "Logger": trt.Logger,
    }
    called = set()
    for node in ast.walk(ast.parse(Path(trt_runner.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Attribute, ast.Name)):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
            called.add((owner, node.attr))
    used = {(owner, name) for owner, name in called if owner in owners}
    assert {owner for owner, _ in used} == set(owners), "a name of this table is no longer used"
    assert [(o, name) for o, name in sorted(used) if not hasattr(owners[o], name)] == []


def test_kernels_are_read_from_the_builders_words() -> None:
    listing = """Layers:
Name: __mye1_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , Metadata:
Name: Gemm_1+Gemm_2, LayerType: gemm, Inputs: [ { Name: a, Datatype: Half }], Outputs: [ { Name: b, \
Dimensions: [-1,4], Datatype: BFloat16, Format: x }, { Name: c, Datatype: Int64 }], TacticName:

I/O Tensors:
 Name: sample, IOMode: Input, DataType: Float"""
    found = [(kernel.name, kernel.kind, kernel.type) for kernel in list_kernels(listing)]
    assert found == [("__mye1_myl0_0", "shape_call", ""), ("Gemm_1+Gemm_2", "gemm", "BFloat16")]
    assert list_kernels("") == ()
