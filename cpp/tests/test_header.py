"""The header, its document, and what ctypes makes of it agree."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
HEADER = (ROOT / "cpp" / "include" / "editverse_rt.h").read_text("utf-8")


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


writer = load_module(ROOT / "cpp" / "tools" / "write_c_api.py")
library = load_module(ROOT / "cpp" / "tests" / "library.py")


def test_the_document_is_what_the_header_says() -> None:
    """If this fails: python cpp/tools/write_c_api.py"""
    assert (ROOT / "docs" / "c_api.md").read_text("utf-8") == writer.make_document(HEADER)


def test_every_declaration_is_in_the_document() -> None:
    document = (ROOT / "docs" / "c_api.md").read_text("utf-8")
    names = re.findall(r"^EV_API .*?\b(ev_[a-z_]+)\(", HEADER, re.MULTILINE)
    assert len(names) == len(set(names)) >= 16
    for name in [*names, *re.findall(r"^typedef struct (\w+)", HEADER, re.MULTILINE)]:
        assert f"`{name}`" in document


def test_every_function_is_described() -> None:
    for comment, declaration in writer.read_blocks(HEADER):
        if declaration.startswith(("EV_API", "typedef struct", "enum")):
            assert len(comment) > (60 if declaration.startswith("EV_API") else 10), declaration


def fields_of(struct: str) -> list[str]:
    body = re.search(rf"typedef struct {struct} {{(.*?)}} {struct};", HEADER, re.DOTALL)
    assert body is not None
    code = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    return re.findall(r"(\w+);", code)


@pytest.mark.parametrize(
    ("struct", "mirror"),
    [
        ("ev_options", library.Options),
        ("ev_input", library.Input),
        ("ev_request", library.Request),
        ("ev_clip_size", library.ClipSize),
        ("ev_request_info", library.RequestInfo),
        ("ev_frames", library.FramesInfo),
        ("ev_step", library.Step),
        ("ev_window", library.Window),
    ],
)
def test_structs_are_mirrored_field_by_field(struct: str, mirror: type[ctypes.Structure]) -> None:
    assert [name for name, *_ in mirror._fields_] == fields_of(struct)
    if struct in ("ev_clip_size", "ev_step", "ev_window"):
        return  # nobody prepares them
    loaded = library.load_library()
    value = mirror()
    getattr(loaded, f"{struct}_init")(ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))
    assert value.struct_size == ctypes.sizeof(mirror)


def test_lines_fit() -> None:
    for path in [*(ROOT / "cpp").glob("include/*"), *(ROOT / "cpp").glob("examples/edit*.c*")]:
        assert max(len(line) for line in path.read_text("utf-8").splitlines()) <= 120, path
