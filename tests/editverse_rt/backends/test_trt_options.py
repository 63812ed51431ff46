"""What a caller decides about the GPU: CUDA graphs, streamed weights, the plugin, which GPU (conftest.py)."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editverse_rt.backends.ort_cuda import OrtCudaBackend
from editverse_rt.backends.trt import TrtBackend
from editverse_rt.backends.trt_runner import (
    MOST_RECORDED,
    TensorRtOptions,
    TensorRtRtxOptions,
    TrtOptions,
    TrtRunner,
)
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.engines.manifest import EngineSet, write_manifest
from editverse_rt.errors import BackendError, RequestError
from editverse_rt.pipeline import Pipeline

Inputs = Callable[..., dict[str, Any]]
P = 64


@pytest.fixture
def tensorrt_engines(engines: EngineSet) -> EngineSet:
    """The same plans, of the module whose CUDA graphs are recorded here."""
    return replace(engines, backend="tensorrt", gpu="a GPU of the test")


def open_recording(bundle: Bundle, trt: Any, cuda: Any, engines: EngineSet) -> TrtRunner:
    plans = {plan.graph: plan for plan in engines.plans}
    options: TrtOptions = TensorRtOptions(cuda_graphs=True)
    if engines.backend == "tensorrt-rtx":
        options = TensorRtRtxOptions(cuda_graphs=True)
    return TrtRunner(bundle, trt, cuda, engines, plans, None, options)


def test_a_call_that_repeats_is_recorded_and_stays_right(
    bundle: Bundle, fake_trt: Any, cuda: Any, tensorrt_engines: EngineSet, solver_inputs: Inputs
) -> None:
    with open_recording(bundle, fake_trt, cuda, tensorrt_engines) as runner:
        held = []
        for turn in range(5):
            x = {**solver_inputs(7), "guidance": np.array(1.0 + turn, np.float32)}
            velocity = runner.run("solver_step", x)["history_next"]
            expected = x["velocity_uncond"] + x["guidance"] * (x["velocity_cond"] - x["velocity_uncond"])
            held.append((velocity, expected))
            assert (len(cuda.graphs), cuda.replays) == ((0, 0) if turn == 0 else (1, turn))
        # What a caller still holds was not overwritten by the calls after it.
        for velocity, expected in held:
            np.testing.assert_allclose(np.asarray(velocity)[0], expected, rtol=1e-5)
    assert cuda.graphs == []


def test_a_denoising_loop_with_cuda_graphs(
    bundle: Bundle, fake_trt: Any, cuda: Any, tensorrt_engines: EngineSet, transformer_inputs: Inputs
) -> None:
    with open_recording(bundle, fake_trt, cuda, tensorrt_engines) as runner:
        sample: Any = np.ones((5, P), np.float32)
        expected, history = sample.copy(), np.zeros((2, 5, P), np.float32)
        matrix = np.array([[1, 0, 0, 0.5], [0, 0, 0, 1], [0, 1, 0, 0]], np.float32)
        for _ in range(4):
            inputs = transformer_inputs(sample)
            velocity = runner.run("transformer", inputs)["velocity"]
            given = {"velocity_cond": velocity, "velocity_uncond": velocity, "history": history}
            scalars = {"guidance": np.array(1, np.float32), "matrix": matrix}
            found = runner.run("solver_step", {**given, **scalars, "sample": sample})
            sample, history = found["sample_next"], found["history_next"]
            expected = expected + 0.5 * (2 * expected + 0.25)
        assert len(cuda.graphs) == 2
        assert cuda.downloads == 0
        np.testing.assert_allclose(np.asarray(sample), expected, rtol=1e-6)
        del sample, history, velocity, inputs, given, found
    gc.collect()
    assert cuda.buffers == {}


def test_few_shapes_are_kept_and_a_larger_scratch_records_anew(
    bundle: Bundle,
    fake_trt: Any,
    cuda: Any,
    tensorrt_engines: EngineSet,
    solver_inputs: Inputs,
    transformer_inputs: Inputs,
) -> None:
    with open_recording(bundle, fake_trt, cuda, tensorrt_engines) as runner:
        for rows in range(3, 3 + MOST_RECORDED + 2):
            for _ in range(2):
                runner.run("solver_step", solver_inputs(rows))
        assert len(cuda.graphs) == MOST_RECORDED
        # The transformer needs more scratch: the buffer moves, and what was recorded worked in the old one.
        runner.run("transformer", transformer_inputs(np.ones((4, P), np.float32)))
        assert cuda.graphs == []
        x = solver_inputs(3 + MOST_RECORDED + 1)
        for _ in range(2):
            found = runner.run("solver_step", x)["history_next"]
        assert len(cuda.graphs) == 1
        velocity = x["velocity_uncond"] + np.float32(5.0) * (x["velocity_cond"] - x["velocity_uncond"])
        np.testing.assert_allclose(np.asarray(found)[0], velocity, rtol=1e-5)


def test_tensorrt_for_rtx_records_its_own_graphs(
    bundle: Bundle, fake_trt: Any, cuda: Any, engines: EngineSet, solver_inputs: Inputs
) -> None:
    with open_recording(bundle, fake_trt, cuda, engines) as runner:
        for _ in range(3):
            runner.run("solver_step", solver_inputs(4))
    assert fake_trt.native_graphs == ["whole"]
    assert cuda.replays == 0


@pytest.mark.parametrize(("asked", "given"), [(None, 700), (300, 300), (5000, 1000), (0, 0)])
def test_the_budget_of_streamed_weights(
    bundle: Bundle,
    fake_trt: Any,
    cuda: Any,
    engines: EngineSet,
    asked: int | None,
    given: int,
    solver_inputs: Inputs,
) -> None:
    plans = {p.graph: replace(p, facts={"weight_streaming": True}) for p in engines.plans}
    options = TensorRtRtxOptions(weight_budget_bytes=asked)
    with TrtRunner(bundle, fake_trt, cuda, engines, plans, None, options) as runner:  # type: ignore[arg-type]
        runner.run("solver_step", solver_inputs(4))
    assert fake_trt.engines["solver_step"].weight_streaming_budget_v2 == given


def test_the_plugin_is_loaded_before_a_plan_and_once_a_process(
    bundle: Bundle, fake_trt: Any, cuda: Any, tensorrt_engines: EngineSet
) -> None:
    def runner_with(library: str) -> TrtRunner:
        options = TensorRtOptions(plugin=Path(library))
        return TrtRunner(bundle, fake_trt, cuda, tensorrt_engines, {}, None, options)

    with pytest.raises(BackendError, match=r"broken.so is not a plugin"), runner_with("broken.so"):
        pass
    for _ in range(2):  # a registry refuses a library that it has
        with runner_with("libplugin.so"):
            assert fake_trt.loaded_plugins == ["libplugin.so"]


def test_options_that_the_plans_do_not_take_are_refused(
    bundle: Bundle, fake_trt: Any, cuda: Any, engines: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt)
    monkeypatch.setattr("editverse_rt.backends.trt.Cuda", lambda device: asked.append(device) or cuda)
    backend = TrtBackend("tensorrt", "a-package", TensorRtOptions())
    write_manifest(replace(engines, backend="tensorrt"))
    assert backend.with_options({"device": 3}).refuse(bundle) is None
    assert asked == [3]
    assert "with weight streaming" in str(backend.with_options({"weight_budget_bytes": 1}).refuse(bundle))
    with_library = backend.with_options({"plugin": Path("lib.so")})
    assert "leave plugin out" in str(with_library.refuse(bundle))
    first, *rest = engines.plans
    with_plugin = replace(first, facts={"plugin": {"file": "lib.so", "sha256": "0" * 64}})
    write_manifest(replace(engines, backend="tensorrt", plans=(with_plugin, *rest)))
    assert f"its plan of {first.graph} was built with" in str(backend.refuse(bundle))
    assert with_library.refuse(bundle) is None


def test_compiled_kernels_are_kept_for_the_next_start(
    bundle: Bundle,
    fake_trt: Any,
    cuda: Any,
    engines: EngineSet,
    tmp_path: Path,
    solver_inputs: Inputs,
    transformer_inputs: Inputs,
) -> None:
    file = tmp_path / "kernels.bin"
    plans = {plan.graph: plan for plan in engines.plans}

    def start(*graphs: str, kernel_cache: Path = file) -> list[str]:
        fake_trt.compiled.clear()
        options = TensorRtRtxOptions(kernel_cache=kernel_cache)
        with TrtRunner(bundle, fake_trt, cuda, engines, plans, None, options) as runner:
            if "solver_step" in graphs:
                runner.run("solver_step", solver_inputs(4))
            if "transformer" in graphs:
                runner.run("transformer", transformer_inputs(np.ones((4, P), np.float32)))
        return list(fake_trt.compiled)

    assert start() == []
    assert not file.exists(), "nothing ran, nothing is written"
    assert start("solver_step") == ["solver_step"]
    assert start("solver_step", "transformer") == ["transformer"]
    assert start("solver_step", "transformer") == []
    file.write_bytes(b"of another version")
    assert start("solver_step") == ["solver_step"]
    assert file.read_bytes() == b"kernels:solver_step"
    with pytest.raises(BackendError, match=r"cannot be written .*; name another kernel_cache"):
        start("solver_step", kernel_cache=tmp_path / "absent" / "kernels.bin")
    gc.collect()
    assert (cuda.buffers, cuda.stream) == ({}, None), "everything was given back before"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["kernels.bin"]


# --- what every backend is asked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": -1}, "device is -1; give a GPU's number"),
        ({"weight_budget_bytes": -5}, "weight_budget_bytes is -5"),
        ({"gpu_memory_limit_bytes": 0}, "gpu_memory_limit_bytes is 0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(bundle: Bundle, options: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Pipeline.open(bundle.root, "ort-cpu", **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("device", 0),
        ("cuda_graphs", True),
        ("weight_budget_bytes", 0),
        ("plugin", "lib.so"),
        ("kernel_cache", "kernels.bin"),
        ("gpu_memory_limit_bytes", 1),
    ],
)
def test_the_cpu_follows_no_option_of_a_gpu(bundle: Bundle, option: str, value: Any) -> None:
    with pytest.raises(BackendError, match=f"^{option} is not taken by ort-cpu; leave it out") as error:
        Pipeline.open(bundle.root, "ort-cpu", **{option: value})
    assert (error.value.field, error.value.code) == (option, "backend.option")
    # Nor does "auto" fall back to it from a GPU that is not there.
    with pytest.raises(BackendError, match=f"ort-cpu: {option} is not taken by ort-cpu"):
        Pipeline.open(bundle.root, "auto", **{option: value})


@pytest.mark.parametrize(
    ("backend", "option"),
    [
        (TrtBackend("tensorrt", "a-package", TensorRtOptions()), "kernel_cache"),
        (TrtBackend("tensorrt", "a-package", TensorRtOptions()), "gpu_memory_limit_bytes"),
        (TrtBackend("tensorrt-rtx", "a-package", TensorRtRtxOptions()), "plugin"),
        (OrtCudaBackend(), "cuda_graphs"),
        (OrtCudaBackend(), "plugin"),
    ],
)
def test_a_backend_takes_its_own_options_alone(backend: Any, option: str) -> None:
    assert backend.with_options({"device": 2}).options.device == 2
    with pytest.raises(BackendError, match=f"^{option} is not taken by {backend.name}; "):
        backend.with_options({"device": 2, option: 1})


def test_the_options_of_onnx_runtimes_cuda() -> None:
    """Names and values of ONNX Runtime's documentation of the provider; by default it would search for
    convolutions in each shape, double its memory and multiply in TF32."""
    backend = OrtCudaBackend().with_options({"device": 2, "gpu_memory_limit_bytes": 10**9})
    assert backend.options.provider_options() == {
        "device_id": "2",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "gpu_mem_limit": "1000000000",
    }
    assert "gpu_mem_limit" not in OrtCudaBackend().options.provider_options()
