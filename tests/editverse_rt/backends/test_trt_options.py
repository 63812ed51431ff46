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

from editverse_rt.backends import GpuOptions
from editverse_rt.backends.ort import OrtBackend
from editverse_rt.backends.trt import TrtBackend
from editverse_rt.backends.trt_runner import MOST_RECORDED, TrtRunner
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
    return TrtRunner(bundle, trt, cuda, engines, plans, None, GpuOptions(cuda_graphs=True))  # type: ignore[arg-type]


def test_a_call_that_repeats_is_recorded_and_stays_right(
    bundle: Bundle, fake_trt: Any, cuda: Any, tensorrt_engines: EngineSet, solver_inputs: Inputs
) -> None:
    with open_recording(bundle, fake_trt, cuda, tensorrt_engines) as runner:
        held = []
        for turn in range(5):
            x = {**solver_inputs(7), "guidance": np.array(1.0 + turn, np.float32)}
            velocity = runner.run("solver_step", x)["velocity"]
            expected = x["velocity_uncond"] + x["guidance"] * (x["velocity_cond"] - x["velocity_uncond"])
            held.append((velocity, expected))
            assert (len(cuda.graphs), cuda.replays) == ((0, 0) if turn == 0 else (1, turn))
        # What a caller still holds was not overwritten by the calls after it.
        for velocity, expected in held:
            np.testing.assert_allclose(np.asarray(velocity), expected, rtol=1e-5)
    assert cuda.graphs == []


def test_a_denoising_loop_with_cuda_graphs(
    bundle: Bundle, fake_trt: Any, cuda: Any, tensorrt_engines: EngineSet, transformer_inputs: Inputs
) -> None:
    with open_recording(bundle, fake_trt, cuda, tensorrt_engines) as runner:
        sample: Any = np.ones((5, P), np.float32)
        expected, zeros = sample.copy(), np.zeros_like(sample)
        for _ in range(4):
            inputs = transformer_inputs(sample)
            velocity = runner.run("transformer", inputs)["velocity"]
            given = {
                "velocity_cond": velocity, "velocity_uncond": velocity,
                "velocity_prev1": zeros, "velocity_prev2": zeros,
            }  # fmt: skip
            scalars = {"guidance": np.array(1, np.float32), "coefficients": np.array([0.5, 0, 0], np.float32)}
            sample = runner.run("solver_step", {**given, **scalars, "sample": sample})["sample_next"]
            expected = expected + 0.5 * (2 * expected + 0.25)
        assert len(cuda.graphs) == 2
        assert cuda.downloads == 0
        np.testing.assert_allclose(np.asarray(sample), expected, rtol=1e-6)
        del sample, velocity, inputs, given
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
            found = runner.run("solver_step", x)["velocity"]
        assert len(cuda.graphs) == 1
        velocity = x["velocity_uncond"] + np.float32(5.0) * (x["velocity_cond"] - x["velocity_uncond"])
        np.testing.assert_allclose(np.asarray(found), velocity, rtol=1e-5)


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
    options = GpuOptions(weight_budget_bytes=asked)
    with TrtRunner(bundle, fake_trt, cuda, engines, plans, None, options) as runner:  # type: ignore[arg-type]
        runner.run("solver_step", solver_inputs(4))
    assert fake_trt.engines["solver_step"].weight_streaming_budget_v2 == given


def test_the_plugin_is_loaded_before_a_plan(
    bundle: Bundle, fake_trt: Any, cuda: Any, engines: EngineSet
) -> None:
    def runner_with(library: str) -> TrtRunner:
        options = GpuOptions(plugin=Path(library))
        return TrtRunner(bundle, fake_trt, cuda, engines, {}, None, options)  # type: ignore[arg-type]

    with runner_with("libplugin.so"):
        assert fake_trt.loaded_plugins == ["libplugin.so"]
    with pytest.raises(BackendError, match=r"broken.so is not a plugin"), runner_with("broken.so"):
        pass


def test_options_that_the_plans_do_not_take_are_refused(
    bundle: Bundle, fake_trt: Any, cuda: Any, engines: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_trt)
    monkeypatch.setattr("editverse_rt.backends.trt.Cuda", lambda device: asked.append(device) or cuda)
    backend = TrtBackend("tensorrt-rtx", "a-package")
    assert backend.refuse(bundle, GpuOptions(device=3)) is None
    assert asked == [3]
    assert "--weight-streaming" in str(backend.refuse(bundle, GpuOptions(weight_budget_bytes=1)))
    assert "leave --plugin out" in str(backend.refuse(bundle, GpuOptions(plugin=Path("lib.so"))))
    first, *rest = engines.plans
    with_plugin = replace(first, facts={"plugin": {"file": "lib.so", "sha256": "0" * 64}})
    write_manifest(replace(engines, plans=(with_plugin, *rest)))
    assert f"its plan of {first.graph} was built with" in str(backend.refuse(bundle, GpuOptions()))
    assert backend.refuse(bundle, GpuOptions(plugin=Path("lib.so"))) is None


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
        options = GpuOptions(kernel_cache=kernel_cache)
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
    with pytest.raises(BackendError, match=r"cannot be written .*; name another with --kernel-cache"):
        start("solver_step", kernel_cache=tmp_path / "absent" / "kernels.bin")
    gc.collect()
    assert (cuda.buffers, cuda.stream) == ({}, None), "everything was given back before"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["kernels.bin"]


def test_tensorrt_itself_has_no_kernels_to_keep(
    bundle: Bundle, fake_trt: Any, cuda: Any, engines: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt)
    monkeypatch.setattr("editverse_rt.backends.trt.Cuda", lambda device: cuda)
    write_manifest(replace(engines, backend="tensorrt"))
    options = GpuOptions(kernel_cache=Path("kernels.bin"))
    assert "leave --kernel-cache out" in str(TrtBackend("tensorrt", "a-package").refuse(bundle, options))


# --- what every backend is asked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": -1}, "device is -1; give a GPU's number"),
        ({"weight_budget_bytes": -5}, "weight_budget_bytes is -5"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(bundle: Bundle, options: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Pipeline.open(bundle.root, "ort-cpu", **options)


def test_the_cpu_follows_no_option_of_a_gpu(bundle: Bundle) -> None:
    for options in ({"device": 0}, {"cuda_graphs": True}, {"weight_budget_bytes": 0}, {"plugin": "lib.so"}):
        with pytest.raises(BackendError, match="ort-cpu takes no --"):
            Pipeline.open(bundle.root, "ort-cpu", **options)  # type: ignore[arg-type]
    # Nor does "auto" fall back to it from a GPU that is not there.
    with pytest.raises(BackendError, match="ort-cpu takes no --device"):
        Pipeline.open(bundle.root, "auto", device=1)


def test_onnx_runtime_takes_the_device_and_nothing_of_tensorrt(bundle: Bundle) -> None:
    backend = OrtBackend("ort-cuda", "CUDAExecutionProvider", "a-package")
    assert backend.refuse(bundle, GpuOptions(device=2)) is None
    assert "takes no --cuda-graphs" in str(backend.refuse(bundle, GpuOptions(device=2, cuda_graphs=True)))
    runner = backend.open_runner(bundle, None, GpuOptions(device=2))
    assert runner._provider_options() == {"device_id": "2"}
