"""What a server is started with, in one frozen value."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from editverse_rt.serve.checking import Limits
from editverse_rt.serve.forms import BodyLimits

__all__ = ["ServerSettings", "is_loopback"]


@dataclass(frozen=True)
class ServerSettings:
    """bundles: names or folders, the first is the default. devices: numbers of GPUs, none for one worker on what
    the backend chooses. api_keys: a file of name:sha256 lines. hosts: names that requests may give as Host
    besides addresses and localhost. cors_origins: exact origins of other pages that may call.
    worker_memory_bytes: RLIMIT_AS of a worker on a CPU; None for none. worker_silence_s: for which a job may tell
    nothing before its worker is taken to hang, at least. worker_open_s: that a worker has to open its bundles.
    header_s: that a client has to send the headers of a request. ray: the address of a cluster for the workers, ""
    for one that is started here, None for processes of this machine; ray_workers: how many, 0 for one a device.
    """

    data: Path
    bundles: tuple[str, ...] = ("nano",)
    backend: str = "auto"
    devices: tuple[int, ...] = ()
    slots: int = 0
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Path | None = None
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    body: BodyLimits = field(default_factory=BodyLimits)
    limits: Limits = field(default_factory=Limits)
    worker_memory_bytes: int | None = None
    max_queued: int = 64
    max_queued_per_key: int = 16
    max_deadline_s: float = 3600.0
    ray: str | None = None
    ray_workers: int = 0
    prepare_s: float = 30.0
    worker_silence_s: float = 60.0
    worker_open_s: float = 1800.0
    header_s: float = 30.0
    keep_s: float = 86_400.0
    max_stored_bytes: int = 10 << 30
    drain_s: float = 30.0


def is_loopback(host: str) -> bool:
    """Whether an address or a name can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
