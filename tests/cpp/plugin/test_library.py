"""The plugin's library as a file: what it shows, what it wants, and for which GPUs it has code."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path


def dynamic_symbols(library: Path, *options: str) -> list[str]:
    done = subprocess.run(["nm", "-D", *options, str(library)], capture_output=True, text=True, check=True)
    return [line.split()[-1].split("@")[0] for line in done.stdout.splitlines()]


def test_the_library_shows_two_symbols_and_wants_neither_tensorrt_nor_cudnn(plugin_library: Path) -> None:
    assert sorted(dynamic_symbols(plugin_library, "--defined-only")) == ["getCreators", "setLoggerFinder"]
    wanted = dynamic_symbols(plugin_library, "--undefined-only")
    assert "malloc" in wanted
    foreign = re.compile(r"^(cudnn|cuda|cu[A-Z]|getPluginRegistry|getLogger|createInfer|nvrtc)")
    assert [name for name in wanted if foreign.match(name)] == []
    done = subprocess.run(["readelf", "-d", str(plugin_library)], capture_output=True, text=True, check=True)
    needed = re.findall(r"NEEDED.*\[(.+?)\.so", done.stdout)
    assert set(needed) <= {
        "libstdc++",
        "libm",
        "libgcc_s",
        "libc",
        "libdl",
        "librt",
        "libpthread",
        "ld-linux-x86-64",
    }


def section(library: Path, name: bytes) -> bytes:
    """A section of a 64-bit little-endian ELF file."""
    data = library.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry_bytes, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, table + i * entry_bytes) for i in range(count)]
    names = headers[names_index][4]
    (found,) = [h for h in headers if data[names + h[0] :].startswith(name + b"\0")]
    return data[found[4] : found[4] + found[5]]


def device_code(fatbin: bytes) -> set[tuple[str, int]]:
    """("sass" | "ptx", compute capability) of each entry, from the container's headers."""
    found, offset = set(), 0
    while offset < len(fatbin):
        magic, _, header_bytes, body_bytes = struct.unpack_from("<IHHQ", fatbin, offset)
        assert magic == 0xBA55ED50
        entry, end = offset + header_bytes, offset + header_bytes + body_bytes
        while entry < end:
            kind, _, entry_header_bytes, entry_bytes = struct.unpack_from("<HHIQ", fatbin, entry)
            (capability,) = struct.unpack_from("<I", fatbin, entry + 28)
            found.add(({1: "ptx", 2: "sass"}[kind], capability))
            entry += entry_header_bytes + entry_bytes
        offset = (end + 7) // 8 * 8
    return found


def test_the_library_has_code_for_every_gpu_it_names(plugin_library: Path) -> None:
    found = device_code(section(plugin_library, b".nv_fatbin"))
    assert found == {*(("sass", sm) for sm in (80, 86, 89, 90, 100, 120)), ("ptx", 120)}
