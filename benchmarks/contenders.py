"""Who is measured: each contender runs a model's graphs as a `Runner`, in a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from editverse_rt.backends import Runner, RunnerTraits, select_backend
from editverse_rt.backends.ort import import_onnxruntime
from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.bundle.spec import GraphSpec

__all__ = ["CONTENDERS", "OURS", "REFERENCE", "Contender", "open_contender", "why_missing"]

Array = NDArray[Any]
REFERENCE = "pytorch"
OURS = "editverse-rt"


@dataclass(frozen=True)
class Contender:
    """One way to run a model. needs: the packages it takes. form: which of a model's forms it reads."""

    name: str
    needs: tuple[str, ...]
    form: str
    open_runner: Callable[[Path, Bundle, int], Runner]


def why_missing(name: str) -> str | None:
    """Why a contender cannot run here and what to do, or None."""
    absent = [package for package in CONTENDERS[name].needs if importlib.util.find_spec(package) is None]
    return f"{', '.join(absent)} not installed; pip install '.[bench]'" if absent else None


def open_contender(name: str, form: Path, bundle: Path, num_threads: int) -> tuple[Bundle, Runner]:
    """Load a contender with a model: its bundle's facts, and a runner that was entered."""
    loaded = load_bundle(bundle)
    return loaded, CONTENDERS[name].open_runner(form, loaded, num_threads).__enter__()


class _Unmanaged:
    """A runner that is there as soon as it is made, and goes with its process. It keeps results in the host's
    memory."""

    traits = RunnerTraits()

    def hold(self, array: Any) -> Any:
        return array

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        return


class TorchRunner(_Unmanaged):
    """The PyTorch modules that the graphs are exported from, run as they are or compiled; of Wan's transformer the
    class of diffusers."""

    def __init__(self, checkpoint: Path, bundle: Bundle, num_threads: int, *, compiled: bool) -> None:
        import torch

        from export.graphs import SolverStep, TextEncoder, Transformer
        from export.schedules import HISTORY_ROWS
        from reference.checkpoint import Checkpoint, load_any_checkpoint
        from reference.vae import DecoderFirst, DecoderNext, EncoderFirst, EncoderNext

        torch.set_num_threads(num_threads)
        self._torch = torch
        self._graphs = bundle.spec.graphs
        self._checkpoint: Any = load_any_checkpoint(checkpoint)
        self._compiled = compiled
        is_editverse = isinstance(self._checkpoint, Checkpoint)
        vae, p = self._checkpoint.vae, self._checkpoint.patch_size

        def make_transformer() -> Any:
            if is_editverse:
                return Transformer(self._checkpoint.transformer)
            from benchmarks.diffusers_wan import DiffusersTransformer

            return DiffusersTransformer(checkpoint / "transformer")

        self._make: dict[str, Callable[[], Any]] = {
            "text_encoder": lambda: TextEncoder(self._checkpoint.text_encoder),
            "vae_encoder_first": lambda: EncoderFirst(vae, p),
            "vae_encoder_next": lambda: EncoderNext(vae, p),
            "transformer": make_transformer,
            "solver_step": lambda: SolverStep(HISTORY_ROWS),
            "vae_decoder_first": lambda: DecoderFirst(vae, p),
            "vae_decoder_next": lambda: DecoderNext(vae, p),
        }
        self._modules: dict[str, Any] = {}
        if is_editverse and not compiled:
            self.edit = self._edit

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Array]:
        if graph == "noise":
            return {"noise": _draw_noise(inputs)}
        if graph not in self._modules:
            module = self._make[graph]().eval()
            self._modules[graph] = self._torch.compile(module) if self._compiled else module
        spec = self._graphs[graph]
        with self._torch.no_grad():
            tensors = [self._torch.from_numpy(np.array(inputs[tensor.name])) for tensor in spec.inputs]
            found = self._modules[graph](*tensors)
        results = found if isinstance(found, tuple) else (found,)
        return {tensor.name: result.numpy() for tensor, result in zip(spec.outputs, results, strict=True)}

    def _edit(self, instruction: str, clip: Array, steps: int) -> Array:
        """The reference's own loop, with the paper's guidance."""
        from reference.sampler import edit

        guidance = float(self._checkpoint.scheduler["guidance_scale"])
        shape = cast(tuple[int, int, int], clip.shape[:3])
        return edit(
            self._checkpoint, instruction, {"video1": clip}, shape,
            num_inference_steps=steps, guidance_scale=guidance,
        )  # fmt: skip


def _draw_noise(inputs: Mapping[str, Any]) -> Array:
    from reference.noise import draw_noise

    count, dim = (int(size) for size in inputs["shape"])
    return draw_noise(int(inputs["seed"]), count, dim).numpy()


class PlainOrtRunner(_Unmanaged):
    """ONNX Runtime on the plain export, with its own defaults."""

    def __init__(self, bundle: Path, num_threads: int) -> None:
        self._bundle = load_bundle(bundle)
        self._num_threads = num_threads
        self._sessions: dict[str, Any] = {}

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Array]:
        if graph not in self._sessions:
            ort = import_onnxruntime()
            options = ort.SessionOptions()
            options.intra_op_num_threads = self._num_threads
            options.log_severity_level = 3
            path = str(self._bundle.graph_path(graph))
            self._sessions[graph] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [tensor.name for tensor in self._bundle.spec.graphs[graph].outputs]
        return dict(zip(names, self._sessions[graph].run(names, dict(inputs)), strict=True))


class OpenVinoRunner(_Unmanaged):
    """OpenVINO on the same plain export, in float32, tuned for one request at a time."""

    def __init__(self, bundle: Path, num_threads: int) -> None:
        self._bundle = load_bundle(bundle)
        self._core = importlib.import_module("openvino").Core()
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": num_threads,
        }
        # Philox needs 64-bit shifts that OpenVINO does not have; noise is no part of what is compared.
        self._plain = PlainOrtRunner(bundle, num_threads)
        self._requests: dict[str, Any] = {}

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Array]:
        if graph == "noise":
            return self._plain.run(graph, inputs)
        spec: GraphSpec = self._bundle.spec.graphs[graph]
        if graph not in self._requests:
            model = self._core.compile_model(str(self._bundle.graph_path(graph)), "CPU", self._settings)
            self._requests[graph] = model.create_infer_request()
        request = self._requests[graph]
        request.infer({name: np.asarray(value) for name, value in inputs.items()})
        # Copied: the request's memory is used again by the next call.
        return {
            tensor.name: np.array(request.get_output_tensor(index).data)
            for index, tensor in enumerate(spec.outputs)
        }


def _open_ours(form: Path, bundle: Bundle, num_threads: int) -> Runner:
    return select_backend("ort-cpu", bundle).backend.open_runner(bundle, num_threads)


CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender(
            REFERENCE,
            ("torch", "diffusers", "transformers"),
            "checkpoint",
            lambda form, bundle, threads: TorchRunner(form, bundle, threads, compiled=False),
        ),
        Contender(
            "torch.compile",
            ("torch", "diffusers", "transformers"),
            "checkpoint",
            lambda form, bundle, threads: TorchRunner(form, bundle, threads, compiled=True),
        ),
        Contender(
            "onnxruntime", ("onnxruntime",), "plain", lambda form, _, threads: PlainOrtRunner(form, threads)
        ),
        Contender("openvino", ("openvino",), "plain", lambda form, _, threads: OpenVinoRunner(form, threads)),
        Contender(OURS, ("onnxruntime",), "bundle", _open_ours),
    )
}
