"""The release of nano: every step is a command that exists, and a second call goes on."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from reference.nano import release

ROOT = Path(__file__).parents[3]


def test_every_step_is_a_command_of_the_repository(tmp_path: Path):
    steps = release.list_steps(tmp_path, tmp_path / "run")
    assert len({step.name for step in steps}) == len(steps)
    assert [step.name for step in release.list_steps(tmp_path, None)] == [step.name for step in steps][1:]
    for step in steps:
        if step.words[0] == "-m":
            assert find_spec(step.words[1]), step.name
        else:
            assert (ROOT / step.words[0]).is_file(), step.name
        for word in step.words:
            if word.startswith("tests/"):
                assert (ROOT / word).exists(), word


def test_what_wants_a_quiet_machine_stands_together_behind_what_ships(tmp_path: Path):
    steps = release.list_steps(tmp_path, tmp_path / "run")
    timings = [number for number, step in enumerate(steps) if step.is_timing]
    assert steps[timings[0]].name == "peers-edit measured"
    assert timings == list(range(timings[0], timings[-1] + 1))
    assert {step.name for step in steps[timings[-1] + 1 :]} == {"tables", "tests"}


def test_timings_are_left_out_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ran: list[list[str]] = []
    monkeypatch.setattr(release.subprocess, "run", lambda words, **options: ran.append(words))
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["release", str(tmp_path / "work"), "--without-timings"])
    assert release.main() == 0
    assert not any(str(tmp_path) in word for words in ran for word in words)
    modules = {words[2] for words in ran if words[1] == "-m"}
    assert "benchmarks.tables" in modules
    assert not {"benchmarks.peers", "benchmarks.throughput", "benchmarks.soak"} & modules


def test_options_are_those_of_the_commands(tmp_path: Path):
    """By the text of each command's source: an option that is gone would end the step after an hour."""
    for step in release.list_steps(tmp_path, tmp_path / "run"):
        if step.words[:2] == ("-m", "pytest") or step.words[0] != "-m":
            continue
        spec = find_spec(step.words[1])
        assert spec is not None
        assert spec.origin is not None
        origin = Path(spec.origin)
        files = (origin.parent / "commands").glob("*.py") if origin.name == "__init__.py" else [origin]
        source = "".join(path.read_text("utf-8") for path in files)
        for word in step.words:
            if word.startswith("--"):
                assert f'"{word}"' in source, f"{step.name}: {word}"


def test_a_second_call_goes_on_where_the_first_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps = [release.Step(name, ("-c", name), "") for name in ("one", "two", "three")]
    ran: list[str] = []
    broken = {"two"}

    def run(words: list[str], **options: object) -> None:
        if words[-1] in broken:
            raise subprocess.CalledProcessError(1, words)
        ran.append(words[-1])

    monkeypatch.setattr(release.subprocess, "run", run)
    with pytest.raises(subprocess.CalledProcessError):
        release.remake(steps, tmp_path)
    assert ran == ["one"]
    broken.clear()
    release.remake(steps, tmp_path)
    assert ran == ["one", "two", "three"]
    release.remake(steps, tmp_path)
    assert ran == ["one", "two", "three"]
    release.remake(steps, tmp_path, start="two")
    assert ran == ["one", "two", "three", "two", "three"]
    assert json.loads((tmp_path / "done.json").read_text()) == ["one", "two", "three"]
    with pytest.raises(ValueError, match="--from 'four'; expected one of one, two, three"):
        release.remake(steps, tmp_path, start="four")
