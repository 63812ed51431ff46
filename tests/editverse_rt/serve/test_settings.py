"""The options of `serve` as settings, and what a Ray cluster has room for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from editverse_rt.commands.arguments import parse_arguments
from editverse_rt.commands.main import COMMANDS
from editverse_rt.commands.serve import settings_from
from editverse_rt.errors import RequestError
from editverse_rt.serve.ray_workers import devices_of
from editverse_rt.serve.settings import ServerSettings


def settings(*words: str) -> ServerSettings:
    return settings_from(parse_arguments(["serve", *words], COMMANDS)[1])


def test_what_is_left_out_is_the_default() -> None:
    assert settings() == ServerSettings(data=Path("editverse-rt-data"))


def test_each_option_is_a_setting() -> None:
    found = settings(
        *("--bundle", "nano", "--bundle", "b", "--backend", "ort-cpu", "--device", "0", "--device", "1"),
        *("--slots", "3", "--host", "::1", "--port", "0", "--api-keys", "k", "--allow-host", "A.example"),
        *("--cors-origin", "https://b", "--max-body", "1MB", "--body-silence-s", "2", "--min-free", "3MB"),
        *("--memory-budget", "4MB", "--worker-memory", "5MB", "--worker-silence-s", "6", "--max-queued", "7"),
        *("--max-queued-per-key", "8", "--max-stored", "9MB", "--keep-s", "10", "--max-deadline-s", "11"),
        *("--drain-s", "12", "--data", "d", "--worker-open-s", "13", "--header-s", "14"),
    )
    assert (found.bundles, found.backend, found.devices, found.slots) == (("nano", "b"), "ort-cpu", (0, 1), 3)
    assert (found.host, found.port, found.api_keys, found.data) == ("::1", 0, Path("k"), Path("d"))
    assert (found.hosts, found.cors_origins) == (("a.example",), ("https://b",))
    body = found.body
    assert (body.max_bytes, body.silence_s, body.min_free_bytes) == (1_000_000, 2.0, 3_000_000)
    assert (found.limits.memory_budget_bytes, found.worker_memory_bytes) == (4_000_000, 5_000_000)
    assert (found.worker_open_s, found.header_s) == (13, 14)
    assert (found.worker_silence_s, found.max_queued, found.max_queued_per_key) == (6.0, 7, 8)
    assert (found.max_stored_bytes, found.keep_s, found.max_deadline_s, found.drain_s) == (
        9_000_000,
        10,
        11,
        12,
    )


def test_paths_are_the_same_on_every_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path)
    found = settings("--ray", "--ray-workers", "4", "--data", "d", "--bundle", "bundle", "--bundle", "nano")
    assert (found.ray, found.ray_workers, found.slots) == ("", 4, 1)
    assert (found.data, found.bundles) == (tmp_path / "d", (str(tmp_path / "bundle"), "nano"))
    assert settings("--ray", "head:6379", "--slots", "2").ray == "head:6379"


@pytest.mark.parametrize("words", [("--ray-workers", "2"), ("--ray", "--device", "0")])
def test_options_that_contradict_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(RequestError) as caught:
        settings(*words)
    assert caught.value.code == "command.usage"


@pytest.mark.parametrize(
    ("backend", "num_gpus", "expected"),
    [
        ("auto", 0, (None, 2)),
        ("auto", 3, (0, 3)),
        ("ort-cpu", 3, (None, 2)),
        ("tensorrt", 3, (0, 3)),
        ("tensorrt", 0, (0, 1)),  # the cluster is enlarged when a worker asks
    ],
)
def test_devices_of_a_cluster(backend: str, num_gpus: int, expected: tuple[Any, int]) -> None:
    resources = {"CPU": 8.0, **({"GPU": float(num_gpus)} if num_gpus else {})}
    nodes = [{"NodeID": name, "Alive": name != "b"} for name in "abc"]
    cluster = SimpleNamespace(cluster_resources=lambda: resources, nodes=lambda: nodes)
    assert devices_of(cluster, backend) == expected
