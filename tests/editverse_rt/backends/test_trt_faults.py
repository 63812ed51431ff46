"""The runner of plans when something fails, or is asked for from another thread (conftest.py)."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editverse_rt.backends.cuda import DeviceTensor, Pool
from editverse_rt.backends.trt_runner import TensorRtOptions, TrtRunner
from editverse_rt.bundle.manifest import Bundle
from editverse_rt.engines.manifest import EngineSet
from editverse_rt.errors import BackendError

Inputs = Callable[..., dict[str, Any]]
P = 64


def check_solver(found: dict[str, Any], x: dict[str, Any]) -> None:
    velocity = x["velocity_uncond"] + np.float32(5.0) * (x["velocity_cond"] - x["velocity_uncond"])
    np.testing.assert_allclose(np.asarray(found["history_next"])[0], velocity, rtol=1e-5)


@pytest.fixture
def recording(bundle: Bundle, fake_trt: Any, cuda: Any, engines: EngineSet) -> Any:
    plans = {plan.graph: plan for plan in engines.plans}
    options = TensorRtOptions(cuda_graphs=True)
    with TrtRunner(bundle, fake_trt, cuda, replace(engines, backend="tensorrt"), plans, None, options) as r:
        yield r
    gc.collect()
    assert (cuda.buffers, cuda.graphs) == ({}, [])


# --- threads ----------------------------------------------------------------------------------------------


def test_any_thread_runs_on_the_runners_gpu(runner: TrtRunner, cuda: Any, solver_inputs: Inputs) -> None:
    """HostCuda refuses every call of a thread whose GPU was not set."""
    with ThreadPoolExecutor(1) as other:
        found = other.submit(runner.run, "solver_step", solver_inputs(5)).result()
        check_solver(
            other.submit(lambda: {k: v.numpy() for k, v in found.items()}).result(), solver_inputs(5)
        )
    check_solver(runner.run("solver_step", solver_inputs(6)), solver_inputs(6))


# --- memory that runs out ---------------------------------------------------------------------------------


def test_after_scratch_did_not_fit_no_freed_memory_is_lent(
    runner: TrtRunner, cuda: Any, solver_inputs: Inputs, transformer_inputs: Inputs
) -> None:
    """The transformer wants a larger scratch than the solver, and there is none. HostContext refuses a buffer
    that was freed, and HostCuda to free one twice."""
    runner.run("solver_step", solver_inputs(4))
    gc.collect()
    cuda.memory_bytes = 3000
    with pytest.raises(BackendError, match="cudaErrorMemoryAllocation"):
        runner.run("transformer", transformer_inputs(np.ones((1, P), np.float32)))
    gc.collect()
    cuda.memory_bytes = 1 << 40
    check_solver(runner.run("solver_step", solver_inputs(4)), solver_inputs(4))


def test_idle_buffers_make_room_for_others(runner: TrtRunner, cuda: Any, solver_inputs: Inputs) -> None:
    runner.run("solver_step", solver_inputs(60))
    gc.collect()
    # What is idle and what is asked for do not fit together.
    cuda.memory_bytes = sum(map(len, cuda.buffers.values())) + 1000
    check_solver(runner.run("solver_step", solver_inputs(59)), solver_inputs(59))


def test_a_tensor_that_got_no_memory_goes_quietly(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a destructor raises, nobody can catch: Python gives it to this hook."""
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    cuda.memory_bytes = 0
    with cuda.current(), pytest.raises(BackendError, match="cudaErrorMemoryAllocation"):
        DeviceTensor(Pool(cuda), (1,), "float32", 4)
    gc.collect()
    assert raised == []


@given(sizes=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 6)), min_size=30, max_size=80))
@settings(deadline=None, max_examples=60)
def test_what_the_pool_holds_is_bounded_by_what_was_in_use(
    host_cuda: Callable[[], Any], sizes: list[tuple[int, int]]
) -> None:
    """Buffers of many sizes, each held for a few turns: none is lent twice, and idle ones stay bounded."""
    cuda = host_cuda()
    pool = Pool(cuda)
    held: list[tuple[int, int, int]] = []
    most = 0
    with cuda.current():
        for turn, (size, turns) in enumerate(sizes):
            for end, address, _ in held:
                if end <= turn:
                    pool.give_back(address)
            held = [one for one in held if one[0] > turn]
            address = pool.take(size)
            assert len(cuda.buffers[address]) == size
            assert address not in {other for _, other, _ in held}
            held.append((turn + 1 + turns, address, size))
            most = max(most, sum(size for *_, size in held))
            assert sum(map(len, cuda.buffers.values())) <= 3 * most
        pool.close()
    assert cuda.buffers == {}


def test_a_result_that_outlives_its_runner_is_an_error_and_not_garbage(
    bundle: Bundle, fake_trt: Any, cuda: Any, engines: EngineSet, solver_inputs: Inputs
) -> None:
    plans = {plan.graph: plan for plan in engines.plans}
    with TrtRunner(bundle, fake_trt, cuda, engines, plans) as runner:
        found = runner.run("solver_step", solver_inputs(3))
        np.asarray(found["history_next"])
    check_solver(found, solver_inputs(3))
    with pytest.raises(BackendError, match="left on the GPU when its runner was closed"):
        np.asarray(found["sample_next"])


# --- profiles ---------------------------------------------------------------------------------------------


def test_after_a_shape_was_refused_the_profile_is_set_again(
    runner: TrtRunner, contexts: dict[str, Any], solver_inputs: Inputs
) -> None:
    runner.run("solver_step", solver_inputs(5))
    contexts["solver_step"].refused = {"shape"}
    with pytest.raises(BackendError, match="does not take"):
        runner.run("solver_step", solver_inputs(100))  # the larger profile, which the context has by now
    contexts["solver_step"].refused = set()
    check_solver(runner.run("solver_step", solver_inputs(5)), solver_inputs(5))
    assert contexts["solver_step"].profiles == [1, 0, 1]


# --- CUDA graphs ------------------------------------------------------------------------------------------


def test_nothing_is_set_between_the_run_before_a_recording_and_the_recording(
    recording: TrtRunner, cuda: Any, solver_inputs: Inputs
) -> None:
    """What TensorRT settles after a change is work that a recording must not catch."""
    cuda.log.clear()
    recording.run("solver_step", solver_inputs(7))
    assert cuda.log[-1] == "run"
    cuda.log.clear()
    recording.run("solver_step", solver_inputs(7))
    assert cuda.log == ["record", "run"]
    cuda.log.clear()
    recording.run("solver_step", solver_inputs(7))
    assert cuda.log == []


def test_after_scratch_has_moved_a_call_runs_once_before_it_is_recorded_again(
    recording: TrtRunner, cuda: Any, solver_inputs: Inputs, transformer_inputs: Inputs
) -> None:
    for _ in range(2):
        recording.run("solver_step", solver_inputs(7))
    recording.run("transformer", transformer_inputs(np.ones((4, P), np.float32)))
    cuda.log.clear()
    recording.run("solver_step", solver_inputs(7))
    assert cuda.log == ["scratch", "scratch", "run"]
    cuda.log.clear()
    check_solver(recording.run("solver_step", solver_inputs(7)), solver_inputs(7))
    assert cuda.log == ["record", "run"]


@pytest.mark.parametrize("failing", ["copy", "execute"])
def test_a_call_whose_first_run_failed_is_not_recorded(
    recording: TrtRunner, cuda: Any, solver_inputs: Inputs, failing: str
) -> None:
    cuda.failing = [failing]
    with pytest.raises(BackendError, match=f"{failing} failed"):
        recording.run("solver_step", solver_inputs(7))
    assert not recording._loaded["solver_step"].recorded, "its context and buffers are not kept"
    cuda.log.clear()
    check_solver(recording.run("solver_step", solver_inputs(7)), solver_inputs(7))
    assert "record" not in cuda.log
    assert cuda.graphs == []


@pytest.mark.parametrize("failing", ["record", "execute", "replay"])
def test_a_recording_that_failed_is_tried_again_after_a_run(
    recording: TrtRunner, cuda: Any, solver_inputs: Inputs, failing: str
) -> None:
    recording.run("solver_step", solver_inputs(7))
    cuda.failing = [failing]
    with pytest.raises(BackendError, match=f"{failing} failed"):
        recording.run("solver_step", solver_inputs(7))
    for _ in range(3):
        check_solver(recording.run("solver_step", solver_inputs(7)), solver_inputs(7))
    assert len(cuda.graphs) == 1


# --- arrays that many runs take ---------------------------------------------------------------------------


def test_what_is_held_is_uploaded_once(runner: TrtRunner, cuda: Any, transformer_inputs: Inputs) -> None:
    inputs = {name: runner.hold(value) for name, value in transformer_inputs(np.ones((5, P), "f4")).items()}
    assert all(isinstance(value, DeviceTensor) for value in inputs.values())
    assert all(runner.hold(value) is value for value in inputs.values())
    before = cuda.uploads
    for _ in range(3):
        found = runner.run("transformer", inputs)["velocity"]
    assert cuda.uploads == before
    np.testing.assert_allclose(np.asarray(found), np.full((5, P), 2.25, np.float32))


def test_traits_say_what_the_runner_can_do(runner: TrtRunner, engines: EngineSet) -> None:
    traits = runner.traits
    assert (traits.runs_concurrently, traits.keeps_on_device, traits.takes_adapters) == (False, True, False)
    assert (traits.gpu, traits.engines, traits.precisions) == ("a GPU of the test", engines, {"fp32"})
