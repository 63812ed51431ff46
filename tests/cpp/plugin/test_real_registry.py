"""The built plugin in TensorRT's own registry, of the lean runtime: a real TensorRT that builds nothing, 44 MB.

A registry needs no GPU. So this is where a plugin is refused that TensorRT does not take: a class of another
layout, a wrong interface, a name that the parser would not find.
"""

from __future__ import annotations

import importlib
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# In a process of its own: a registry is the process's, and keeps what was loaded.
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
import tensorrt_lean_bindings as trt
from editverse_rt.backends.plugin import NAMESPACE, NODE, register_plugin

registry = trt.get_plugin_registry()
library = Path(sys.argv[1])
before = len(registry.all_creators)
register_plugin(registry, library)
first = len(registry.all_creators)
register_plugin(registry, library)
found = {"added": first - before, "added_again": len(registry.all_creators) - first}
found["second_load"] = registry.load_library(str(library)) is not None
creator = registry.get_creator(NODE, "1", NAMESPACE)
found["creator"] = [creator.name, creator.plugin_version, creator.plugin_namespace]
i32, f32 = trt.PluginFieldType.INT32, trt.PluginFieldType.FLOAT32
fields = trt.PluginFieldCollection([
    trt.PluginField("num_heads", np.array([16], np.int32), i32),
    trt.PluginField("axis_dims", np.array([12, 4, 56, 56], np.int32), i32),
    trt.PluginField("axis_thetas", np.array([1e4] * 4, np.float32), f32),
    trt.PluginField("epsilon", np.array([1e-6], np.float32), f32),
])
plugin = creator.create_plugin("attention", fields, trt.TensorRTPhase.RUNTIME)
kinds = trt.PluginCapabilityType
found["capabilities"] = [
    plugin.get_capability_interface(kind) is not None for kind in (kinds.CORE, kinds.BUILD, kinds.RUNTIME)
]
core = plugin.get_capability_interface(kinds.CORE)
found["core"] = [core.plugin_name, core.plugin_version, core.plugin_namespace]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def registered(plugin_build: Path) -> dict[str, Any]:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("NO REAL TENSORRT HERE: its lean runtime has wheels for Linux on x86-64 only")
    importlib.import_module("tensorrt_lean_bindings")  # the extra `test` installs it: absent is a failure
    (library,) = plugin_build.rglob("libeditverse_plugin.so")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_registry_takes_the_plugin_once(registered: dict[str, Any]) -> None:
    assert (registered["added"], registered["added_again"]) == (1, 0)
    assert registered["creator"] == registered["core"] == ["RopeAttention", "1", "editverse"]


def test_a_second_load_is_what_the_runner_avoids(registered: dict[str, Any]) -> None:
    """TensorRT answers it as it answers a library that is no plugin."""
    assert not registered["second_load"]


def test_the_plugin_has_the_three_capabilities(registered: dict[str, Any]) -> None:
    assert registered["capabilities"] == [True] * 3
