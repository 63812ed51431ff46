"""What doctor says of the plugin; its own tests are in tests/cpp/plugin."""

from __future__ import annotations

import _ctypes
import json
from pathlib import Path

import pytest

from editverse_rt.backends import plugin
from editverse_rt.backends.plugin import probe_plugin
from editverse_rt.commands.main import main

# Any shared library that is there: it can be loaded, and is no plugin.
ANY_LIBRARY = Path(_ctypes.__file__)


class Loaded:
    def getCreators(self) -> None:  # noqa: N802 - the name that TensorRT asks for
        pass


def test_each_reason_says_what_to_do(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    for library, said in (
        (None, "name build/plugin/libeditverse_plugin.so"),
        (tmp_path / "absent.so", "absent.so is not there; build it"),
        (tmp_path, "is not there"),
        (broken, "broken.so cannot be loaded"),
        (ANY_LIBRARY, "no getCreators"),
    ):
        state = probe_plugin(library)
        assert not state.available
        assert said in str(state.reason)


def test_cudnn_has_to_be_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libeditverse_plugin.so"
    library.write_bytes(b"a library")
    loaded: list[str] = []

    def load(path: str) -> Loaded:
        loaded.append(path)
        if "absent" in path:
            raise OSError(f"{path}: cannot open shared object file")
        return Loaded()

    monkeypatch.setattr(plugin.ctypes, "CDLL", load)
    assert probe_plugin(library).available
    assert loaded == [str(library), "libcudnn.so.9"]
    assert "pip install nvidia-cudnn-cu13" in str(probe_plugin(library, "libabsent.so").reason)


def test_doctor_speaks_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--plugin", str(tmp_path / "absent.so")]) == 0
    assert f"RopeAttention plugin: {tmp_path}/absent.so is not there" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["plugin"]["available"] is False
    assert "exported as a plugin" in facts["plugin"]["reason"]
