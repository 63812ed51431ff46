"""Runs clang-tidy over the library, the examples and the TensorRT plugin's host code.

    check_with_clang_tidy.py BUILD [--clang-tidy FILE] [--headers FOLDER] [--cuda FOLDER]

BUILD is a folder that CMake configured with CMAKE_EXPORT_COMPILE_COMMANDS. A file that several targets compile is
checked once. The plugin is built apart, so its files are checked with flags from here, where both its headers
(--headers, of cpp/plugin/fetch_headers.py) and CUDA's are. `.clang-tidy` has the checks. Exit code 1 if one of them
finds anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CPP = Path(__file__).resolve().parents[1]
CHECKED = (CPP / "src", CPP / "examples")
PLUGIN = CPP / "plugin" / "src"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="clang-tidy over the C and C++ sources")
    parser.add_argument("build", type=Path, metavar="BUILD")
    parser.add_argument("--clang-tidy", default="clang-tidy", metavar="FILE")
    parser.add_argument("--headers", type=Path, default=Path("build/plugin-headers"), metavar="FOLDER")
    parser.add_argument("--cuda", type=Path, default=Path("/usr/local/cuda"), metavar="FOLDER")
    args = parser.parse_args(argv)
    commands = choose_commands(json.loads((args.build / "compile_commands.json").read_text()))
    commands += plugin_commands(args.headers.resolve(), args.cuda)
    folder = args.build / "clang-tidy"
    folder.mkdir(exist_ok=True)
    (folder / "compile_commands.json").write_text(json.dumps(commands))

    def check(file: str) -> tuple[int, str]:
        done = subprocess.run(
            [args.clang_tidy, "--quiet", "-p", str(folder), file], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout if done.returncode else ""

    # The largest first: none of them is then left to the end, alone on one core.
    files = sorted((command["file"] for command in commands), key=os.path.getsize, reverse=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(check, files))
    for code, text in results:
        if code:
            print(text)
    num_failed = sum(code != 0 for code, _ in results)
    print(f"clang-tidy: {len(files)} files, {num_failed} with findings")
    return 1 if num_failed else 0


def choose_commands(database: list[dict[str, str]]) -> list[dict[str, str]]:
    """Of a compile database, one command for each file of the library and the examples."""
    chosen: dict[str, dict[str, str]] = {}
    for command in database:
        if any(folder in Path(command["file"]).parents for folder in CHECKED):
            chosen.setdefault(command["file"], command)
    return list(chosen.values())


def plugin_commands(headers: Path, cuda: Path) -> list[dict[str, str]]:
    """Commands for the plugin's files, none where its headers or CUDA's are missing."""
    if not (headers / "include" / "cudnn_frontend.h").exists() or not (cuda / "include" / "cuda.h").exists():
        return []
    flags = f"-std=c++17 -DCUDNN_FRONTEND_SKIP_JSON_LIB -isystem {headers / 'include'} -isystem {cuda / 'include'}"
    return [
        {"directory": str(CPP), "file": str(file), "command": f"c++ {flags} -c {file}"}
        for file in sorted(PLUGIN.glob("*.cpp"))
    ]


if __name__ == "__main__":
    sys.exit(main())
