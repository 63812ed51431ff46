"""The plugin as TensorRT sees it; a stub plays TensorRT (cpp/plugin/tests)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from cpp.plugin.kernel_libraries import DeviceKernel, EmulatedKernel, Rope
from export import lower
from export.attention_nodes import DOMAIN, INPUTS, OP_TYPE
from reference.families.editverse import CONFIGS
from reference.families.wan import WanConfig

TEXT_BYTES = 4096
# NvInfer's DataType, TensorFormat and PluginFieldType.
FLOAT, HALF, INT8, INT32, BF16, INT64 = 0, 1, 2, 3, 7, 8
LINEAR, CHW2 = 0, 1
FIELD_FLOAT32, FIELD_INT32 = 1, 5

ROPE = Rope(16, (12, 4, 56, 56), (10000.0, 10000.0, 21544.35, 10000.0), 1e-6)
WAN = Rope(12, (0, 44, 42, 42), epsilon=0.0)
"""Wan 2.1's 1.3 billion."""
DESCRIBED = (
    "num_heads 5 1 16\naxis_dims 5 4 12 4 56 56\naxis_thetas 1 4 0x1.388p+13 0x1.388p+13 {} 0x1.388p+13\n"
)


def field_of(name: str, value: Any) -> tuple[str, int, np.ndarray]:
    """A node's attribute as TensorRT's ONNX parser gives it to a creator."""
    kind = np.int32 if np.issubdtype(np.asarray(value).dtype, np.integer) else np.float32
    return name, FIELD_INT32 if kind is np.int32 else FIELD_FLOAT32, np.atleast_1d(value).astype(kind)


def fields_of(rope: Rope) -> list[tuple[str, int, np.ndarray]]:
    names = ("num_heads", "axis_dims", "axis_thetas", "epsilon")
    return [field_of(name, getattr(rope, name)) for name in names]


def tensors(*described: tuple[int, tuple[int, ...]], tensor_format: int = LINEAR) -> Any:
    numbers = np.zeros((len(described), 11), np.int64)
    for row, (kind, shape) in zip(numbers, described, strict=True):
        row[:3] = kind, tensor_format, len(shape)
        row[3 : 3 + len(shape)] = shape
    return numbers


def call_tensors(
    rope: Rope, tokens: int, kind: int = HALF, positions: int = INT64, sequences: int = 0, norms: bool = True
) -> list[tuple[int, tuple[int, ...]]]:
    """The inputs of a call, then its output."""
    rows, norm = (kind, (tokens, rope.inner)), (kind, (rope.head_dim,))
    inputs = [rows, rows, rows, *([norm, norm] if norms else []), (positions, (tokens, 4))]
    return [*inputs, *([(INT32, (sequences + 1,))] if sequences else []), rows]


class Stub:
    """tensorrt_stub.cpp, with the plugin loaded."""

    def __init__(self, library: Path, plugin: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        for name in ("create", "create_without_fields", "deserialize", "clone", "attach"):
            getattr(self.library, f"stub_{name}").restype = ctypes.c_void_p
        self.library.stub_workspace.restype = ctypes.c_size_t
        self.library.stub_ask_cache.restype = ctypes.c_size_t
        assert self.library.stub_load(str(plugin).encode()) == 1, self.take_log()

    def text(self, name: str, *arguments: Any) -> str:
        buffer = ctypes.create_string_buffer(TEXT_BYTES)
        getattr(self.library, f"stub_{name}")(*arguments, buffer, ctypes.c_size_t(TEXT_BYTES))
        return buffer.value.decode()

    def take_log(self) -> str:
        return self.text("take_log")

    def create(self, fields: list[tuple[str, int, np.ndarray]]) -> ctypes.c_void_p:
        count = len(fields)
        return ctypes.c_void_p(
            self.library.stub_create(
                count,
                (ctypes.c_char_p * count)(*(name.encode() for name, _, _ in fields)),
                (ctypes.c_int32 * count)(*(kind for _, kind, _ in fields)),
                (ctypes.c_int32 * count)(*(value.size for _, _, value in fields)),
                (ctypes.c_void_p * count)(*(value.ctypes.data for _, _, value in fields)),
            )
        )

    def another(self, name: str, plugin: ctypes.c_void_p) -> ctypes.c_void_p:
        return ctypes.c_void_p(getattr(self.library, f"stub_{name}")(plugin))

    def call(self, name: str, plugin: ctypes.c_void_p, described: Any, *before: int) -> int:
        numbers = tensors(*described)
        found: int = getattr(self.library, f"stub_{name}")(
            plugin, *before, ctypes.c_void_p(numbers.ctypes.data), len(described) - 1
        )
        return found


@pytest.fixture(scope="module")
def stub(plugin_build: Path, plugin_library: Path) -> Stub:
    (library,) = plugin_build.rglob("libtensorrt_stub.so")
    return Stub(library, plugin_library)


@pytest.fixture
def plugin(stub: Stub) -> Iterator[ctypes.c_void_p]:
    created = stub.create(fields_of(ROPE))
    assert created.value, stub.take_log()
    yield created
    stub.library.stub_destroy(created)


# --- the creator --------------------------------------------------------------------------------------


def test_the_creator_says_what_the_exported_node_asks_for(stub: Stub) -> None:
    kind, name, version, namespace, *fields = stub.text("describe_creator").splitlines()
    assert kind == "PLUGIN CREATOR_V3ONE"
    assert (name, version, namespace) == (
        OP_TYPE,
        lower.PLUGIN_VERSION,
        DOMAIN,
    )
    assert fields == ["num_heads 5 1", "axis_dims 5 4", "axis_thetas 1 4", "epsilon 1 1"]


def test_an_exported_node_becomes_a_plugin(stub: Stub) -> None:
    config = CONFIGS["editverse-2b"]
    node = helper.make_node(
        OP_TYPE, list(INPUTS), ["mixed"], domain=DOMAIN, num_heads=config.num_heads,
        axis_dims=list(config.axis_dims), axis_thetas=list(config.axis_thetas), epsilon=config.norm_eps,
    )  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in INPUTS]
    output = helper.make_tensor_value_info("mixed", TensorProto.FLOAT16, None)
    graph = helper.make_graph([node], "node", inputs, [output])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    lower.lower_attention(model, lower.rope_config(config), "plugin")
    lowered: onnx.NodeProto = ir.to_proto(model).graph.node[0]
    attributes = {a.name: helper.get_attribute_value(a) for a in lowered.attribute}
    assert (attributes.pop("plugin_namespace"), attributes.pop("plugin_version")) == (b"editverse", b"1")
    made = stub.create([field_of(name, value) for name, value in attributes.items()])
    assert made.value, stub.take_log()
    rope = Rope(config.num_heads, config.axis_dims, config.axis_thetas, config.norm_eps)
    described = call_tensors(rope, 9)
    assert len(lowered.input) == len(described) - 1
    assert stub.call("configure", made, described) == 0, stub.take_log()
    stub.library.stub_destroy(made)


def test_wans_node_becomes_a_plugin(stub: Stub) -> None:
    """q and k come normalised over all heads, so the node has neither norms nor an epsilon."""
    node = helper.make_node(
        OP_TYPE, ["q", "k", "v", "", "", "positions"], ["mixed"], domain=DOMAIN, num_heads=WAN.num_heads,
        axis_dims=list(WAN.axis_dims), axis_thetas=list(WAN.axis_thetas), epsilon=0.0,
    )  # fmt: skip
    given = [name for name in INPUTS if not name.endswith("norm")]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in given]
    output = helper.make_tensor_value_info("mixed", TensorProto.FLOAT16, None)
    graph = helper.make_graph([node], "node", inputs, [output])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    config = WanConfig(30, WAN.num_heads, WAN.head_dim, 8960, 4096, 16)
    assert config.axis_dims == WAN.axis_dims
    lower.lower_attention(model, lower.rope_config(config), "plugin")
    lowered: onnx.NodeProto = ir.to_proto(model).graph.node[0]
    assert list(lowered.input) == given
    attributes = {a.name: helper.get_attribute_value(a) for a in lowered.attribute}
    del attributes["plugin_namespace"], attributes["plugin_version"]
    made = stub.create([field_of(name, value) for name, value in attributes.items()])
    assert made.value, stub.take_log()
    for sequences in (0, 2):
        described = call_tensors(WAN, 32_760, BF16, sequences=sequences, norms=False)
        assert stub.call("configure", made, described) == 0, stub.take_log()
        assert all(stub.call("supports", made, described, i) for i in range(len(described)))
        # What stands behind v is positions now, and no norm.
        wrong = list(described)
        wrong[3] = (INT64, (32_760, 3))
        assert stub.call("configure", made, wrong) != 0
        assert "positions is [32760, 3]; expected [32760, 4]" in stub.take_log()
        wrong[3] = (BF16, (32_760, 4))
        assert not stub.call("supports", made, wrong, 3)
    stub.library.stub_destroy(made)


def changed_fields(name: str, kind: int, value: Any) -> list[tuple[str, int, np.ndarray]]:
    others = [field for field in fields_of(ROPE) if field[0] != name]
    return [*others, (name, kind, np.atleast_1d(value))]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (fields_of(ROPE)[:3], "field 'epsilon' is missing; expected num_heads"),
        (fields_of(ROPE)[1:], "field 'num_heads' is missing"),
        ([*fields_of(ROPE), fields_of(ROPE)[0]], "field 'num_heads' is given twice"),
        ([*fields_of(ROPE), field_of("causal", 1)], "field 'causal' is unknown"),
        (changed_fields("num_heads", FIELD_FLOAT32, np.float32(16)), "num_heads has type 1 and length 1"),
        (changed_fields("axis_dims", FIELD_INT32, np.int32([64, 64])), "axis_dims has type 5 and length 2"),
        (changed_fields("num_heads", FIELD_INT32, np.int32(0)), "num_heads 0; expected at least 1"),
        (changed_fields("axis_dims", FIELD_INT32, np.int32([13, 3, 56, 56])), "axis_dims (13, 3, 56, 56)"),
        (changed_fields("axis_dims", FIELD_INT32, np.int32([-2, 18, 56, 56])), "expected even numbers"),
        (changed_fields("axis_dims", FIELD_INT32, np.int32([2, 4, 10, 8])), "a head of 24 channels"),
        (changed_fields("axis_dims", FIELD_INT32, np.int32([0, 0, 0, 0])), "a head of 0 channels"),
        (changed_fields("axis_dims", FIELD_INT32, np.int32([128, 128, 128, 128])), "a head of 512 channels"),
        (changed_fields("axis_thetas", FIELD_FLOAT32, np.float32([1, 1, 0, 1])), "expected RoPE bases"),
        (changed_fields("axis_thetas", FIELD_FLOAT32, np.float32([1, 1, np.nan, 1])), "expected RoPE bases"),
        (changed_fields("epsilon", FIELD_FLOAT32, np.float32(-1)), "epsilon -1.0"),
    ],
)  # fmt: skip
def test_bad_fields_are_refused(stub: Stub, fields: Any, message: str) -> None:
    assert not stub.create(fields).value
    log = stub.take_log()
    assert log.startswith("1 RopeAttention: a layer: "), log  # an error, of severity 1
    assert message in log


def test_no_fields_at_all_are_refused(stub: Stub) -> None:
    assert not stub.library.stub_create_without_fields()
    assert "no fields" in stub.take_log()


# --- the plugin ---------------------------------------------------------------------------------------


def test_the_fields_survive_a_round_trip(stub: Stub, plugin: ctypes.c_void_p) -> None:
    expected = (
        "PLUGIN_V3ONE_CORE PLUGIN_V3ONE_BUILD PLUGIN_V3ONE_RUNTIME\nRopeAttention\n1\neditverse\n1\n"
        + DESCRIBED.format(float(np.float32(21544.35)).hex().replace("000p", "p").rstrip("0"))
        + f"epsilon 1 1 {float(np.float32(1e-6)).hex()}"
    )
    described = stub.text("describe_plugin", plugin)
    words, wanted = described.split(), expected.split()
    assert [float.fromhex(w) if w.startswith("0x") else w for w in words] == [
        float.fromhex(w) if w.startswith("0x") else w for w in wanted
    ]
    for name in ("deserialize", "clone", "attach"):
        another = stub.another(name, plugin)
        assert another.value, stub.take_log()
        assert another.value != plugin.value
        assert stub.text("describe_plugin", another) == described
        stub.library.stub_destroy(another)
    copies = stub.another("deserialize", plugin)
    again = stub.another("deserialize", copies)
    stub.library.stub_destroy(copies)
    assert stub.text("describe_plugin", again) == described
    stub.library.stub_destroy(again)


@pytest.mark.parametrize("kind", [FLOAT, HALF, INT8, INT32, BF16, INT64])
@pytest.mark.parametrize("positions", [INT32, INT64, HALF])
@pytest.mark.parametrize("sequences", [0, 2])
def test_formats(stub: Stub, plugin: ctypes.c_void_p, kind: int, positions: int, sequences: int) -> None:
    described = call_tensors(ROPE, 8, kind, positions, sequences)
    supported = [stub.call("supports", plugin, described, i) for i in range(len(described))]
    short = kind in (HALF, BF16)
    assert supported[0] == short
    assert supported[5] == (positions in (INT32, INT64))
    assert all(supported) == (short and positions in (INT32, INT64))


def test_formats_of_other_tensors(stub: Stub, plugin: ctypes.c_void_p) -> None:
    def supports(position: int, described: Any, tensor_format: int = LINEAR) -> int:
        numbers = tensors(*described, tensor_format=tensor_format)
        data = ctypes.c_void_p(numbers.ctypes.data)
        return int(stub.library.stub_supports(plugin, position, data, len(described) - 1))

    described = call_tensors(ROPE, 8, sequences=2)
    assert [supports(i, described, CHW2) for i in range(8)] == [0] * 8
    for position, kind in ((1, BF16), (4, FLOAT), (6, INT64), (7, BF16)):
        mixed = list(described)
        mixed[position] = (kind, mixed[position][1])
        assert not supports(position, mixed), position
    assert not supports(0, described[:4])
    assert "3 inputs; expected 6" in stub.take_log()


@pytest.mark.parametrize(("kind", "taken"), [(HALF, True), (BF16, True), (FLOAT, False)])
def test_the_output_has_the_type_of_q(stub: Stub, plugin: ctypes.c_void_p, kind: int, taken: bool) -> None:
    types = (ctypes.c_int32 * 6)(kind, kind, kind, kind, kind, INT64)
    found = ctypes.c_int32(-1)
    status = stub.library.stub_output_type(plugin, types, 6, ctypes.byref(found))
    assert (status == 0) == taken
    if taken:
        assert found.value == kind
    else:
        assert "q has data type 0; expected fp16 or bf16" in stub.take_log()


def test_the_output_has_the_shape_of_q(stub: Stub, plugin: ctypes.c_void_p) -> None:
    assert stub.text("output_shape", plugin, (ctypes.c_int32 * 6)(2, 2, 2, 1, 1, 2), 6) == "0.0 0.1"
    assert stub.text("output_shape", plugin, (ctypes.c_int32 * 6)(3, 2, 2, 1, 1, 2), 6) == ""
    assert "q has 3 axes; expected 2" in stub.take_log()
    assert stub.text("output_shape", plugin, (ctypes.c_int32 * 4)(2, 2, 2, 2), 4) == "0.0 0.1"
    assert stub.text("output_shape", plugin, (ctypes.c_int32 * 3)(2, 2, 2), 3) == ""
    assert "3 inputs; expected 6" in stub.take_log()


@pytest.mark.parametrize("tokens", [-1, 1, 32_760])
@pytest.mark.parametrize("sequences", [0, 3])
def test_shapes_are_taken(stub: Stub, plugin: ctypes.c_void_p, tokens: int, sequences: int) -> None:
    assert stub.call("configure", plugin, call_tensors(ROPE, tokens, sequences=sequences)) == 0


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (8, 100), "q is [8, 100]; expected [-1, 2048]"),
        (0, (1, 8, 2048), "q is [1, 8, 2048]; expected [-1, 2048]"),
        (1, (7, 2048), "k is [7, 2048]; expected [8, 2048]"),
        (2, (8, 1024), "v is [8, 1024]; expected [8, 2048]"),
        (3, (64,), "q_norm is [64]; expected [128]"),
        (4, (2048,), "k_norm is [2048]; expected [128]"),
        (5, (8, 3), "positions is [8, 3]; expected [8, 4]"),
        (5, (9, 4), "positions is [9, 4]; expected [8, 4]"),
        (6, (3, 1), "offsets is [3, 1]; expected [-1]"),
    ],
)
def test_shapes_are_refused(
    stub: Stub, plugin: ctypes.c_void_p, position: int, shape: tuple[int, ...], message: str
) -> None:
    described = call_tensors(ROPE, 8, sequences=2)
    described[position] = (described[position][0], shape)
    for name in ("configure", "change_shape"):
        assert stub.call(name, plugin, described) != 0
        assert message in stub.take_log()


def test_the_workspace_holds_two_turned_tensors_and_what_the_attention_needs(
    stub: Stub, plugin: ctypes.c_void_p
) -> None:
    # 16 MiB, and two parts of a maximum and a sum in float32 for each row of each head.
    library_bytes = (16 << 20) + 32_760 * 16 * 16
    assert stub.call("workspace", plugin, call_tensors(ROPE, 32_760)) == 2 * 32_760 * 2048 * 2 + library_bytes
    packed = stub.call("workspace", plugin, call_tensors(ROPE, 32_760, sequences=2))
    assert packed == 2 * 32_760 * 2048 * 2 + 256 + 256 + library_bytes
    assert stub.call("workspace", plugin, call_tensors(ROPE, 8)[:3]) == 0
    assert "2 inputs; expected 6" in stub.take_log()


@pytest.mark.parametrize(("elements", "sequences"), [(1, 0), (33 * 80, 1), (4096, 1000)])
def test_the_parts_of_the_workspace_do_not_overlap(stub: Stub, elements: int, sequences: int) -> None:
    parts = np.zeros(6, np.uint64)
    stub.library.stub_divide_workspace(
        ctypes.c_int64(elements),
        ctypes.c_int64(sequences),
        ctypes.c_size_t(1000),
        ctypes.c_void_p(parts.ctypes.data),
    )
    q, k, lengths, element_offsets, attention, num_bytes = (int(part) for part in parts)
    needed = [(q, 2 * elements), (k, 2 * elements), (attention, 1000)]
    if sequences:
        needed += [(lengths, 4 * sequences), (element_offsets, 4 * (sequences + 1))]
    needed.sort()
    for (offset, length), (following, _) in zip(needed, [*needed[1:], (num_bytes, 0)], strict=True):
        assert offset % 256 == 0
        assert offset + length <= following


def test_too_few_offsets_and_too_many_elements_are_refused(stub: Stub, plugin: ctypes.c_void_p) -> None:
    described = call_tensors(ROPE, 8, sequences=2)
    described[6] = (INT32, (1,))
    assert stub.call("change_shape", plugin, described) != 0
    assert "offsets hold 1 numbers; expected the first token of each sequence" in stub.take_log()
    assert stub.call("change_shape", plugin, call_tensors(ROPE, 1 << 21, sequences=2)) != 0
    assert "expected fewer than 2^31 elements; run the sequences one by one" in stub.take_log()


def test_a_call_without_tokens_does_nothing(stub: Stub, plugin: ctypes.c_void_p) -> None:
    assert stub.call("change_shape", plugin, call_tensors(ROPE, 0)) == 0
    assert stub.library.stub_enqueue(plugin) == 0
    assert stub.take_log() == ""


# --- where there is no GPU ----------------------------------------------------------------------------

needs_no_gpu = pytest.mark.skipif(
    Path("/dev/nvidiactl").exists(), reason="this machine has a GPU: `python -m cpp.plugin.accept` runs on it"
)


@needs_no_gpu
def test_a_shape_without_a_device_is_refused_with_the_reason(stub: Stub, plugin: ctypes.c_void_p) -> None:
    assert stub.call("change_shape", plugin, call_tensors(ROPE, 8)) != 0
    log = stub.take_log()
    assert log.startswith("1 RopeAttention: onShapeChange: CUDA has no device to attend on"), log
    assert "expected an NVIDIA GPU and its driver" in log
    assert stub.library.stub_enqueue(plugin) != 0


@needs_no_gpu
def test_the_kernel_by_itself_says_why_it_cannot_run(plugin_build: Path) -> None:
    (library,) = plugin_build.rglob("libdevice_kernel.so")
    rope = Rope(1, (4, 4, 4, 4))
    rows, norm = np.zeros((2, 16), np.uint16), np.zeros(16, np.uint16)
    inputs = {"q": rows, "k": rows, "q_norm": norm, "k_norm": norm, "positions": np.zeros((2, 4), np.int64)}
    with pytest.raises(RuntimeError, match=r"CUDA|device"):
        DeviceKernel(library).normalize_and_rotate(rope, "float16", inputs)


def test_plans_are_found_again_and_the_oldest_goes(stub: Stub) -> None:
    keys = np.int32([1, 2, 1, 3, 4, 2, 1, 4])
    made = np.zeros(len(keys), np.int32)
    data = ctypes.c_void_p(keys.ctypes.data), ctypes.c_size_t(len(keys)), ctypes.c_void_p(made.ctypes.data)
    assert stub.library.stub_ask_cache(ctypes.c_size_t(3), *data) == 3
    # 1 2 | again 1 | 3 fills it | 4 drives out 2 | 2 drives out 1 | 1 drives out 3 | 4 is still there
    assert made.tolist() == [1, 1, 0, 1, 1, 1, 1, 0]


def test_the_emulation_reads_the_fields_that_the_plugin_reads(emulated_kernel: EmulatedKernel) -> None:
    assert emulated_kernel.geometry_of(9, ROPE.num_heads, ROPE.head_dim) == (9, 4, 2)
