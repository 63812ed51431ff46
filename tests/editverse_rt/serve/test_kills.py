"""SIGKILL of the server, of its worker and of both, in each phase: no accepted job is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kills import PHASES, VICTIMS, Campaign


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it finds the workers in /proc")
def test_no_accepted_job_is_lost_by_kills(tmp_path: Path, video: bytes) -> None:
    with Campaign(tmp_path / "data", video, seed=1) as campaign:
        for number in range(12):
            campaign.kill_once(VICTIMS[number % 3], PHASES[(3 * number + number // 3) % len(PHASES)])
        campaign.finish()
    assert len(campaign.expected) >= 12
    assert campaign.outcomes["completed"] > len(campaign.expected) / 2
