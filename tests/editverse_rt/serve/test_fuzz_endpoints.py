"""A few hundred altered requests; `make test-serve-fuzz` sends 10,000."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fuzz_endpoints import OPTIONS, Fuzzer
from live_server import LiveServer


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it counts the sockets in /proc")
def test_altered_requests_are_answered_and_leave_nothing(
    tmp_path: Path, video: bytes, picture: bytes
) -> None:
    with LiveServer(tmp_path / "data", *OPTIONS) as server:
        fuzzer = Fuzzer(server, tmp_path / "data", video, picture)
        fuzzer.run(400, seed=1)
    assert fuzzer.faults == []
    assert fuzzer.counts["400"] > 50
    assert fuzzer.counts["201"] > 0
    assert fuzzer.num_cut > 10
