"""ONNX Runtime behind the Runner protocol, on models of one or two nodes written byte by byte.

The runtime's tests run without the onnx package, so the few protobuf fields that are needed are encoded here.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editverse_rt import backends
from editverse_rt.backends import Availability, list_backends, select_backend
from editverse_rt.backends import ort as ort_file
from editverse_rt.backends.ort import OrtBackend, OrtRunner, probe_provider
from editverse_rt.backends.ort_cuda import BoundOrtRunner, BoundTensor, OrtCudaBackend
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.bundle.spec import GraphSpec, TensorSpec
from editverse_rt.errors import BackendError
from editverse_rt.stages import TRANSFORMERS

FLOAT = 1


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor_info(name: str, axes: tuple[int | str, ...]) -> bytes:
    dims = b"".join(field(1, field(1, a) if isinstance(a, int) else field(2, a)) for a in axes)
    return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, dims)))


def node(op: str, inputs: list[str], outputs: list[str], domain: str = "") -> bytes:
    value = b"".join(field(1, name) for name in inputs) + b"".join(field(2, name) for name in outputs)
    return value + field(4, op) + (field(7, domain) if domain else b"")


def model(nodes: list[bytes], opset: int = 17, domains: tuple[str, ...] = ()) -> bytes:
    """Inputs a [N, K] and b [K, M], output c [N, M]."""
    graph = b"".join(field(1, n) for n in nodes) + field(2, "g")
    graph += field(11, tensor_info("a", ("N", "K"))) + field(11, tensor_info("b", ("K", "M")))
    graph += field(12, tensor_info("c", ("N", "M")))
    opsets = field(8, field(1, "") + field(2, opset))
    opsets += b"".join(field(8, field(1, domain) + field(2, 1)) for domain in domains)
    return field(1, 8) + field(7, graph) + opsets


PRODUCT = model([node("MatMul", ["a", "b"], ["c"])])
A, B, C = (TensorSpec(name, "float32", axes) for name, axes in zip("abc", ("NK", "KM", "NM"), strict=True))


@pytest.fixture
def bundle(fake_template: Any, tmp_path: Path) -> Bundle:
    (tmp_path / "product.onnx").write_bytes(PRODUCT)
    names = ("product", "transformer", "noise", "vae_decoder_next")
    graphs = {name: GraphSpec(name, "product.onnx", (A, B), (C,)) for name in names}
    return Bundle(tmp_path, replace(fake_template.spec, graphs=graphs))


def open_runner(bundle: Bundle, num_threads: int | None = 1) -> OrtRunner:
    return OrtBackend().open_runner(bundle, num_threads)


def matrices(n: int, k: int, m: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    return {
        "a": rng.standard_normal((n, k), dtype=np.float32),
        "b": rng.standard_normal((k, m), dtype=np.float32),
    }


def test_a_graph_runs_by_names(bundle: Bundle) -> None:
    inputs = matrices(3, 4, 5)
    with open_runner(bundle) as runner:
        outputs = runner.run("product", inputs)
    assert list(outputs) == ["c"]
    np.testing.assert_allclose(outputs["c"], inputs["a"] @ inputs["b"], rtol=1e-5, atol=1e-6)


def test_axes_may_be_empty(bundle: Bundle) -> None:
    with open_runner(bundle) as runner:
        assert runner.run("product", matrices(0, 4, 5))["c"].shape == (0, 5)


@pytest.mark.parametrize("saturates", [True, False])
def test_the_exact_integer_products_are_asked_for_where_the_fast_ones_are_wrong(
    bundle: Bundle, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_file, "_saturates_integers", lambda ort: saturates)
    inputs = matrices(2, 2, 2)
    with open_runner(bundle) as runner:
        found = runner.run("product", inputs)["c"]
        options = runner._sessions["product"].get_session_options()
    if saturates:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match=r"session\.x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")
    np.testing.assert_allclose(found, inputs["a"] @ inputs["b"], rtol=1e-5, atol=1e-6)


def test_the_number_of_threads_changes_no_byte(bundle: Bundle) -> None:
    inputs = matrices(300, 200, 100)
    digests = set()
    for num_threads in (1, 2, 3, None):
        with open_runner(bundle, num_threads) as runner:
            for _ in range(2):
                digests.add(hashlib.sha256(runner.run("transformer", inputs)["c"].tobytes()).digest())
    assert len(digests) == 1


def test_threads_go_where_they_change_no_byte(bundle: Bundle) -> None:
    with open_runner(bundle, 3) as runner:
        for graph in ("transformer", "noise"):
            runner.run(graph, matrices(2, 2, 2))
        threads = {
            graph: session.get_session_options().intra_op_num_threads
            for graph, session in runner._sessions.items()
        }
    assert threads == {"transformer": 3, "noise": 1}


def test_threads_that_have_nothing_to_do_leave_the_cores_alone(bundle: Bundle) -> None:
    """They are another graph's as soon as a run is over; how long they would spin is no part of a result."""
    with open_runner(bundle, 3) as runner:
        runner.run("transformer", matrices(2, 2, 2))
        (session,) = runner._sessions.values()
        options = session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize(
    ("convolutions", "machine", "version", "expected"),
    [
        ("frames", "x86_64", "1.32.0", 3),
        ("frames", "x86_64", "1.25.0", 3),
        ("frames", "x86_64", "1.24.4", 1),  # gave other bytes on other numbers of threads
        ("volumes", "x86_64", "1.32.0", 1),
        ("frames", "aarch64", "1.32.0", 1),
    ],
)
def test_the_vae_takes_threads_where_it_goes_frame_by_frame(
    bundle: Bundle,
    convolutions: str,
    machine: str,
    version: str,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("onnxruntime.__version__", version)
    capabilities = replace(bundle.spec.capabilities, convolutions=convolutions)
    bundle = replace(bundle, spec=replace(bundle.spec, capabilities=capabilities))
    with open_runner(bundle, 3) as runner:
        runner.run("vae_decoder_next", matrices(2, 2, 2))
        (session,) = runner._sessions.values()
        assert session.get_session_options().intra_op_num_threads == expected


def test_products_take_threads_in_each_transformer(bundle: Bundle) -> None:
    """Of a checkpoint with two experts, as of one."""
    with open_runner(bundle, 3) as runner:
        for graph in ("text_encoder", *TRANSFORMERS):
            assert runner._takes_threads(graph), graph
        assert not runner._takes_threads("noise")


def test_a_graph_is_loaded_when_it_is_first_run(bundle: Bundle) -> None:
    path = bundle.graph_path("product")
    path.unlink()
    with open_runner(bundle) as runner:
        path.write_bytes(PRODUCT)
        runner.run("product", matrices(1, 1, 1))
        path.unlink()
        runner.run("product", matrices(2, 2, 2))


def test_threads_that_run_one_graph_at_once_get_what_each_gets_alone(bundle: Bundle) -> None:
    inputs = [matrices(60 + index, 50, 40) for index in range(8)]
    with open_runner(bundle, 2) as runner:
        alone = [runner.run("product", values)["c"] for values in inputs]
    with open_runner(bundle, 2) as runner, ThreadPoolExecutor(8) as threads:
        ready = threading.Barrier(8, timeout=60)

        def run(values: dict[str, Any]) -> Any:
            ready.wait()
            return runner.run("product", values)["c"]

        for found, expected in zip(threads.map(run, inputs), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "content",
    [
        model([node("Frobnicate", ["a", "b"], ["c"])]),
        model([node("RopeAttention", ["a", "b"], ["c"], "editverse")], domains=("editverse",)),
        model([node("FusedMystery", ["a", "b"], ["c"], "com.microsoft")], domains=("com.microsoft",)),
        model([node("MatMul", ["a", "b"], ["c"])], opset=9999),
    ],
    ids=["standard", "own domain", "contrib", "opset"],
)
def test_an_operator_that_is_not_there(bundle: Bundle, content: bytes) -> None:
    bundle.graph_path("product").write_bytes(content)
    with open_runner(bundle) as runner, pytest.raises(BackendError) as error:
        runner.run("product", matrices(1, 1, 1))
    message = str(error.value)
    assert message.startswith('graph "product" needs an operator that onnxruntime ')
    assert error.value.hint == "pip install -U onnxruntime, or export with the attention inline"
    assert error.value.code == "backend.load"
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"not a model", PRODUCT[:40]])
def test_a_graph_that_cannot_be_loaded(bundle: Bundle, content: bytes) -> None:
    bundle.graph_path("product").write_bytes(content)
    with (
        open_runner(bundle) as runner,
        pytest.raises(BackendError, match=r'cannot load graph "product" \(') as error,
    ):
        runner.run("product", matrices(1, 1, 1))
    assert (error.value.code, error.value.hint) == ("backend.load", "export the bundle again")


def test_a_graph_that_the_bundle_does_not_have(bundle: Bundle) -> None:
    with open_runner(bundle) as runner, pytest.raises(Exception, match='no graph "upscaler"'):
        runner.run("upscaler", {})


@pytest.mark.parametrize(
    "inputs",
    [
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros((4, 2), np.float32)},
        {"a": np.zeros((2, 3), np.float64), "b": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.float32)},
    ],
    ids=["shapes", "dtype", "missing"],
)
def test_a_graph_that_fails_names_itself_and_the_shapes(
    bundle: Bundle, capfd: pytest.CaptureFixture[str], inputs: dict[str, Any]
) -> None:
    with open_runner(bundle) as runner, pytest.raises(BackendError) as error:
        runner.run("product", inputs)
    assert str(error.value).startswith('onnxruntime failed in graph "product" with a [2, 3]')
    assert error.value.code == "backend.run"
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_a_runner_works_only_while_it_is_entered(bundle: Bundle) -> None:
    runner = open_runner(bundle)
    with pytest.raises(BackendError, match="outside of the runner's `with` block"):
        runner.run("product", matrices(1, 1, 1))
    with runner:
        runner.run("product", matrices(1, 1, 1))
    with pytest.raises(BackendError, match="outside of the runner's `with` block"):
        runner.run("product", matrices(1, 1, 1))


# --- IO binding, with the CPU for the device ---------------------------------------------------------------


def open_bound(bundle: Bundle) -> BoundOrtRunner:
    return BoundOrtRunner(bundle, 1, "CPUExecutionProvider")


def test_a_gpu_provider_is_bound_and_the_cpu_is_not(bundle: Bundle) -> None:
    assert type(OrtCudaBackend().open_runner(bundle, 1)) is BoundOrtRunner
    assert type(open_runner(bundle)) is OrtRunner


def test_bound_results_have_the_bytes_of_unbound_ones(bundle: Bundle) -> None:
    for shape in ((3, 4, 5), (0, 4, 5), (2, 0, 3)):
        inputs = matrices(*shape)
        with open_bound(bundle) as bound, open_runner(bundle) as plain:
            found, expected = bound.run("product", inputs)["c"], plain.run("product", inputs)["c"]
        assert isinstance(found, BoundTensor)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert np.asarray(found).tobytes() == expected.tobytes()


def test_arrays_that_are_not_contiguous_are_bound_by_value(bundle: Bundle) -> None:
    a, b = np.arange(24, dtype=np.float32).reshape(6, 4)[::2].T, np.ones((3, 2), np.float32)
    with open_bound(bundle) as runner:
        found = runner.run("product", {"a": a, "b": b})["c"]
    np.testing.assert_array_equal(np.asarray(found), a @ b)


def test_results_go_into_the_next_graph_where_they_lie(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    bound: list[tuple[str, int]] = []
    copied: list[str] = []
    value, host = onnxruntime.IOBinding.bind_ortvalue_input, onnxruntime.IOBinding.bind_cpu_input

    def bind_value(self: Any, name: str, ortvalue: Any) -> None:
        bound.append((name, ortvalue.data_ptr()))
        value(self, name, ortvalue)

    def bind_host(self: Any, name: str, array: Any) -> None:
        copied.append(name)
        host(self, name, array)

    monkeypatch.setattr(onnxruntime.IOBinding, "bind_ortvalue_input", bind_value)
    monkeypatch.setattr(onnxruntime.IOBinding, "bind_cpu_input", bind_host)
    x = matrices(4, 4, 4)
    expected = x["a"]
    with open_bound(bundle) as runner:
        held: list[Any] = [x["a"]]
        for graph in ("transformer", "product", "transformer"):
            held.append(runner.run(graph, {"a": held[-1], "b": x["b"]})["c"])
            expected = expected @ x["b"]
        # Both inputs may be one result: without guidance the two velocities are.
        square = runner.run("product", {"a": held[-1], "b": held[-1]})["c"]
    results = held[1:]
    addresses = [result.value.data_ptr() for result in results]
    assert bound == list(zip("aaab", addresses[:2] + addresses[-1:] * 2, strict=True))
    assert copied == ["a", "b", "b", "b"]
    assert all(result._host is None for result in results), "nothing was read back"
    # What is held is not overwritten, and outlives its runner.
    np.testing.assert_allclose(results[0].reshape(2, 8), (x["a"] @ x["b"]).reshape(2, 8), rtol=1e-5)
    np.testing.assert_allclose(results[-1][1:], expected[1:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(square), expected @ expected, rtol=1e-4, atol=1e-3)
    assert len(square) == 4


@pytest.mark.parametrize(
    "inputs",
    [
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros((4, 2), np.float32)},
        {"a": np.zeros((2, 3), np.float64), "b": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros((3, 2), np.float32), "z": np.zeros(1)},
    ],
    ids=["shapes", "dtype", "missing", "unknown"],
)
def test_a_bound_graph_that_fails_names_itself_and_the_shapes(
    bundle: Bundle, capfd: pytest.CaptureFixture[str], inputs: dict[str, Any]
) -> None:
    with open_bound(bundle) as runner, pytest.raises(BackendError) as error:
        runner.run("product", inputs)
    assert str(error.value).startswith('onnxruntime failed in graph "product" with a [2, 3]')
    assert error.value.code == "backend.run"
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_a_provider_that_is_not_in_this_build() -> None:
    state = probe_provider("ort-npu", "NoSuchExecutionProvider", "pip install onnxruntime-npu")
    assert not state.available
    assert state.version
    assert "has no NoSuchExecutionProvider, only " in str(state.reason)
    assert "pip install onnxruntime-npu" in str(state.reason)


def test_the_cpu_is_here() -> None:
    state = OrtBackend().probe()
    assert state.available
    assert state.reason is None


def test_a_provider_that_is_built_in_but_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["NoSuchExecutionProvider"])
    state = probe_provider("ort-cuda", "NoSuchExecutionProvider", "install it")
    assert "cannot start NoSuchExecutionProvider here; install the GPU's driver" in str(state.reason)


def test_without_onnxruntime_every_backend_says_so(
    monkeypatch: pytest.MonkeyPatch, fake_template: Any
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    states = {state.name: state for state in list_backends()}
    assert "onnxruntime cannot be imported" in str(states["ort-cpu"].reason)
    with pytest.raises(
        BackendError, match=r"no backend can be used \(tensorrt: .*; ort-cpu: onnxruntime cannot"
    ):
        select_backend("auto", Bundle(fake_template.root, fake_template.spec))


def test_the_order_of_preference() -> None:
    assert [state.name for state in list_backends()] == ["tensorrt", "tensorrt-rtx", "ort-cuda", "ort-cpu"]


def test_auto_takes_the_first_that_has_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, fake_template: Any
) -> None:
    class Picky(OrtBackend):
        def refuse(self, bundle: Bundle) -> str | None:
            return f"no plans in bundle {bundle.spec.name}"

    class Absent(OrtBackend):
        def probe(self) -> Availability:
            return Availability(self.name, "not installed")

    table = (Absent("far"), Picky("picky"), OrtBackend("first"), OrtBackend("second"))
    monkeypatch.setattr(backends, "_BACKENDS", table)
    bundle = Bundle(fake_template.root, fake_template.spec)
    selection = select_backend("auto", bundle)
    assert selection.backend is table[2]
    assert [state.name for state in selection.passed_over] == ["far", "picky"]
    assert selection.passed_over[1].reason == "no plans in bundle fake"
    named = select_backend("second", bundle)
    assert named.backend is table[3]
    assert named.passed_over == ()
    with pytest.raises(BackendError, match='backend "picky" cannot be used: no plans in bundle fake'):
        select_backend("picky", bundle)


def test_importing_the_runtime_loads_neither_onnxruntime_nor_torch() -> None:
    script = "import editverse_rt, sys; print({'onnxruntime', 'torch', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
