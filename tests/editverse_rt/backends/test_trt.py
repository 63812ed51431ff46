"""The runner of plans over a CUDA made of the host's memory (conftest.py), and what is said without a GPU."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from editverse_rt.backends import find_obstacle, list_backends, select_backend
from editverse_rt.backends.cuda import DeviceTensor
from editverse_rt.backends.trt import TrtBackend
from editverse_rt.backends.trt_runner import TensorRtRtxOptions, TrtRunner
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.commands.main import main
from editverse_rt.engines.manifest import EngineSet
from editverse_rt.engines.stamps import write_stamp
from editverse_rt.errors import BackendError

Inputs = Callable[..., dict[str, Any]]
P = 64


def test_a_graph_computes_what_its_plan_says(runner: TrtRunner, solver_inputs: Inputs) -> None:
    x = solver_inputs(7)
    found = runner.run("solver_step", x)
    velocity = x["velocity_uncond"] + np.float32(5.0) * (x["velocity_cond"] - x["velocity_uncond"])
    expected = x["sample"] + 0.05 * velocity - 0.03 * x["history"][0] + 0.01 * x["history"][1]
    np.testing.assert_allclose(np.asarray(found["history_next"])[0], velocity, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(found["sample_next"]), expected, atol=1e-5)


def test_a_denoising_loop_stays_on_the_device(
    bundle: Bundle, runner: TrtRunner, cuda: Any, transformer_inputs: Inputs
) -> None:
    sample: Any = np.ones((5, P), np.float32)
    expected = sample.copy()
    half = np.array([[0, 0, 0, 0.5], [0] * 4, [0] * 4], np.float32)
    history: Any = np.zeros((2, 5, P), np.float32)
    for step in range(3):
        velocity = runner.run("transformer", transformer_inputs(sample))["velocity"]
        assert isinstance(velocity, DeviceTensor)
        before = cuda.uploads
        found = runner.run(
            "solver_step",
            {
                "sample": sample, "history": history, "velocity_cond": velocity, "velocity_uncond": velocity,
                "guidance": np.array(1.0, np.float32), "matrix": np.eye(3, 4, dtype=np.float32) + half,
            },
        )  # fmt: skip
        sample, history = found["sample_next"], found["history_next"]
        # The guidance and the matrix; in the first step the noise and the empty history as well.
        assert cuda.uploads - before == (4 if step == 0 else 2)
        expected = expected + 0.5 * (2 * expected + 0.25)
    assert cuda.downloads == 0
    np.testing.assert_allclose(sample.reshape(5, 8, 8), expected.reshape(5, 8, 8), rtol=1e-6)
    assert cuda.downloads == 1
    assert np.asarray(sample[:2]).shape == (2, P)
    assert len(sample) == 5
    assert cuda.downloads == 1, "copied once"


def test_buffers_are_used_again(runner: TrtRunner, cuda: Any, solver_inputs: Inputs) -> None:
    counts = []
    for _ in range(4):
        runner.run("solver_step", solver_inputs(9))
        gc.collect()
        counts.append(len(cuda.buffers))
    assert counts[1:] == counts[:-1]


def test_what_is_still_held_is_not_overwritten(runner: TrtRunner, solver_inputs: Inputs) -> None:
    first = runner.run("solver_step", solver_inputs(6))["history_next"]
    exact = np.array(first)
    kept = runner.run("solver_step", solver_inputs(6))["history_next"]
    other = {**solver_inputs(6), "velocity_uncond": np.zeros((6, P), np.float32)}
    runner.run("solver_step", other)
    np.testing.assert_array_equal(np.asarray(kept), exact)


def test_the_smallest_profile_is_set_once_and_changed_when_it_must(
    runner: TrtRunner, contexts: dict[str, Any], solver_inputs: Inputs
) -> None:
    for rows in (5, 64, 65, 3):
        runner.run("solver_step", solver_inputs(rows))
    assert contexts["solver_step"].profiles == [1, 0, 1]
    with pytest.raises(BackendError, match=r"sample \[513, 64\].*for larger shapes"):
        runner.run("solver_step", solver_inputs(513))


def test_contexts_share_the_largest_scratch(
    bundle: Bundle,
    runner: TrtRunner,
    contexts: dict[str, Any],
    cuda: Any,
    solver_inputs: Inputs,
    transformer_inputs: Inputs,
) -> None:
    runner.run("solver_step", solver_inputs(4))
    runner.run("transformer", transformer_inputs(np.ones((4, P), np.float32)))
    runner.run("solver_step", solver_inputs(4))
    assert contexts["solver_step"].memory == contexts["transformer"].memory
    assert contexts["solver_step"].memory is not None
    assert contexts["solver_step"].memory[1] == 4000


def test_a_plan_that_cannot_be_read_and_one_that_was_altered(
    runner: TrtRunner, engines: EngineSet, transformer_inputs: Inputs
) -> None:
    with pytest.raises(
        BackendError, match=r"text_encoder-fp32.plan cannot be read by tensorrt-rtx; build"
    ) as error:
        runner.run("text_encoder", {"ids": np.arange(4)})
    assert error.value.code == "backend.load"
    (engines.folder / "transformer-fp32.plan").write_bytes(b"altered")
    with pytest.raises(BackendError, match="was altered"):
        runner.run("transformer", transformer_inputs(np.ones((4, P), np.float32)))


def test_nothing_runs_outside_of_the_block(
    bundle: Bundle, fake_trt: Any, cuda: Any, engines: EngineSet, solver_inputs: Inputs
) -> None:
    plans = {plan.graph: plan for plan in engines.plans}
    runner = TrtRunner(bundle, fake_trt, cuda, engines, plans)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="`with` block"):
        runner.run("solver_step", solver_inputs(3))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("profile", 'graph "solver_step" has no profile 0, as its manifest says; build'),
        ("shape", r'graph "solver_step" does not take sample \[99, 64\], as its manifest says; build'),
        ("address", 'no input or output "sample"; build the engines again'),
    ],
)
def test_what_a_context_refuses_is_said(
    runner: TrtRunner, contexts: Any, solver_inputs: Inputs, what: str, said: str
) -> None:
    runner.run("solver_step", solver_inputs(3))
    contexts["solver_step"].refused = {what}
    with pytest.raises(BackendError, match=said) as error:
        runner.run("solver_step", solver_inputs(99))
    assert error.value.code == "backend.run"


def test_the_backend_asks_for_plans_and_for_a_stamp(
    bundle: Bundle,
    fake_trt: Any,
    cuda: Any,
    engines: EngineSet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    solver_inputs: Inputs,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_trt)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: fake_trt)
    monkeypatch.setattr("editverse_rt.backends.trt.Cuda", lambda device=0: cuda)
    backend = TrtBackend("tensorrt-rtx", "a-package", TensorRtRtxOptions())
    assert backend.probe().available
    assert backend.refuse(bundle) is None
    reason = backend.unverified(bundle)
    assert reason is not None
    assert "never verified on a GPU of the test; run `editverse-rt verify" in reason
    monkeypatch.setattr("editverse_rt.backends._BACKENDS", (backend,))
    assert find_obstacle("tensorrt-rtx", bundle) == reason
    with pytest.raises(BackendError, match="set allow_unverified"):
        select_backend("tensorrt-rtx", bundle)
    assert select_backend("auto", bundle, allow_unverified=True).backend == backend
    write_stamp(engines, cuda.gpu.name, {})
    assert backend.unverified(bundle) is None
    assert select_backend("tensorrt-rtx", bundle).backend == backend
    assert find_obstacle("tensorrt-rtx", bundle) is None
    with backend.open_runner(bundle, None) as runner:
        assert runner.run("solver_step", solver_inputs(3))["sample_next"].shape == (3, P)
    (engines.folder / "manifest.json").unlink()
    assert "build it with: python -m export.build_engine" in str(backend.refuse(bundle))
    assert main(["doctor", "--bundle", str(bundle.root)]) == 0
    said = (
        f'here ({fake_trt.__version__}), but: bundle "{bundle.spec.name}" has no plan of tensorrt-rtx; build'
    )
    assert said in capsys.readouterr().out


# --- where there is no GPU --------------------------------------------------------------------------------


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_module_that_is_not_installed(bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    (state,) = [state for state in list_backends() if state.name == name]
    assert state.reason == f"{name} is not installed; pip install 'editverse-rt[{name}]'"
    with pytest.raises(BackendError, match=f'backend "{name}" cannot be used: {name} is not installed'):
        select_backend(name, bundle)


def test_a_module_without_a_gpu(
    bundle: Bundle, name: str, fake_trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is not imported before there is a GPU for it: it is hundreds of megabytes."""
    no_gpu = SimpleNamespace(cudaGetDeviceCount=lambda: (Status(100), 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: fake_trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", no_gpu)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)
    (state,) = [state for state in list_backends() if state.name == name]
    assert "cudaErrorNoDevice; the driver finds no NVIDIA GPU" in str(state.reason)
    with pytest.raises(BackendError, match=f'backend "{name}" cannot be used: CUDA'):
        select_backend(name, bundle)


class Status(int):
    name = "cudaErrorNoDevice"


def test_doctor_names_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "  tensorrt-rtx " in out
    assert "  tensorrt  " in out
