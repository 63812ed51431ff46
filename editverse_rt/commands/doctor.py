"""The command `doctor`: what this machine has, and what is missing before each backend can run a bundle."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from editverse_rt.backends import find_obstacle, list_backends
from editverse_rt.backends.plugin import PLUGIN, probe_plugin
from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.commands.arguments import Command, version_of
from editverse_rt.commands.terminal import EXIT_BAD_INPUT, EXIT_OK, print_error, print_json
from editverse_rt.errors import EditVerseError

__all__ = ["DOCTOR", "describe_machine", "examine_machine"]

EXAMPLES = """\
examples:
  editverse-rt doctor
  editverse-rt doctor --json

Exit code 0 means that the bundle is whole and that a backend is here to run it.
"""

PACKAGES = ("editverse-rt", "numpy", "onnxruntime", "onnxruntime-gpu", "av", "sentencepiece")


def examine_machine(bundle: str, plugin: Path | None) -> dict[str, Any]:
    """The facts that `doctor --json` prints.

    bundle: name or folder. plugin: the library with `RopeAttention`, None where the caller names none.
    Of each backend: whether it works here, and if it does, what the bundle lacks for it ("missing", None if
    nothing). problem: what keeps the bundle from running at all, None if nothing does.
    """
    states = list_backends()
    opened: Bundle | None = None
    problem: str | None = None
    try:
        opened = load_bundle(bundle)
    except EditVerseError as error:
        problem = str(error)
    if problem is None and all(not state.available for state in states):
        problem = "no backend is available; install onnxruntime"
    library = probe_plugin(plugin)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "backends": [
            {
                "name": state.name,
                "available": state.available,
                "version": state.version,
                "reason": state.reason,
                "missing": find_obstacle(state.name, opened) if opened and state.available else None,
            }
            for state in states
        ],
        "plugin": {"available": library.available, "reason": library.reason},
        "bundle": bundle,
        "problem": problem,
    }


def describe_machine(facts: dict[str, Any]) -> list[str]:
    """The same as lines for a person."""
    lines = [f"Python {facts['python']} on {facts['platform']}, {facts['cores']} cores"]
    lines += [f"  {name:<18}{version or 'not installed'}" for name, version in facts["packages"].items()]
    lines.append("backends")
    for backend in facts["backends"]:
        if not backend["available"]:
            state = f"not here: {backend['reason']}"
        elif backend["missing"]:
            state = f"here ({backend['version']}), but: {backend['missing']}"
        else:
            state = f"available ({backend['version']})"
        lines.append(f"  {backend['name']:<18}{state}")
    plugin = facts["plugin"]
    state = "can be loaded; what it computes, only a GPU shows" if plugin["available"] else plugin["reason"]
    lines.append(f"{PLUGIN}: {state}")
    state = "whole, every hash is right" if facts["problem"] is None else facts["problem"]
    lines.append(f"bundle {facts['bundle']}: {state}")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", default="nano", help="name or folder (default: nano)")
    parser.add_argument("--plugin", type=Path, metavar="LIB", help="also try libeditverse_plugin.so")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    facts = examine_machine(args.bundle, args.plugin)
    if args.json:
        print_json(facts)
    else:
        print("\n".join(describe_machine(facts)))
    if facts["problem"] is not None:
        print_error(facts["problem"])
        return EXIT_BAD_INPUT
    return EXIT_OK


DOCTOR = Command(EXAMPLES, add_arguments, run)
