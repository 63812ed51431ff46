"""A server from its settings to its end: locks, keys, workers, HTTP, and draining at SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from functools import partial
from types import FrameType

import uvicorn

from editverse_rt.cluster import connect_cluster
from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.serve.app import make_app
from editverse_rt.serve.auth import Keys, load_keys
from editverse_rt.serve.connections import protocol_with_limit
from editverse_rt.serve.dispatcher import Dispatcher, MakeWorker
from editverse_rt.serve.logs import Log, take_library_warnings
from editverse_rt.serve.meters import Meters
from editverse_rt.serve.process import WorkerOptions, WorkerProcess
from editverse_rt.serve.settings import ServerSettings, is_loopback
from editverse_rt.serve.store import JobStore

__all__ = ["run_server"]


def run_server(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises EditVerseError for what cannot be started with."""
    if settings.api_keys is None and not is_loopback(settings.host):
        raise RequestError(
            f"host is {settings.host}, which other machines reach, and no keys are given",
            hint="give --api-keys FILE, or listen on 127.0.0.1",
            code="serve.keys",
            field="api_keys",
        )
    keys = Keys(None if settings.api_keys is None else load_keys(settings.api_keys))
    log = Log(sys.stderr)
    take_library_warnings(log)
    with _listen(settings) as listener, _open_store(settings) as store:
        workers, make_worker = _workers(settings)
        dispatcher = Dispatcher(store, workers, log, Meters(), settings.worker_silence_s, make_worker)
        app = make_app(settings, dispatcher, keys)
        config = uvicorn.Config(
            app,
            http=protocol_with_limit(settings.header_s),
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=64 << 10,
            lifespan="off",
            ws="none",
        )
        asyncio.run(_serve(_Server(config), dispatcher, listener, settings, log))


def _workers(settings: ServerSettings) -> tuple[list[WorkerOptions], MakeWorker]:
    """What each worker opens, and how it is started: here, or on a node of a Ray cluster."""
    devices: tuple[int | None, ...] = settings.devices or (None,)
    make_worker: MakeWorker = WorkerProcess
    labels = [""] * len(devices)
    if settings.ray is not None:
        from editverse_rt.serve.ray_workers import RayWorker, devices_of

        ray = connect_cluster(settings.ray or None)
        device, found = devices_of(ray, settings.backend)
        count = settings.ray_workers or found
        devices = (device,) * count
        labels = [f"ray{number}" for number in range(count)]
        make_worker = partial(RayWorker, ray)
    return [
        WorkerOptions(
            settings.bundles,
            settings.backend,
            device,
            settings.slots,
            settings.worker_memory_bytes if device is None else None,
            settings.limits,
            label,
            settings.worker_open_s,
        )
        for device, label in zip(devices, labels, strict=True)
    ], make_worker


async def _serve(
    server: _Server, dispatcher: Dispatcher, listener: socket.socket, settings: ServerSettings, log: Log
) -> None:
    try:
        # A cluster's workers may come later, such as when it is enlarged for them.
        await dispatcher.start(all_up=settings.ray is None)
    except EditVerseError:
        await dispatcher.stop(0.0)
        raise
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    log.write("listening", url=f"http://{address}:{port}", host=host, port=port)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopped = asyncio.create_task(server.stop_asked.wait())
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    log.write("draining", running=len(dispatcher.live))
    # The API answers until the last job has ended, so that those who wait for it learn of its end.
    await dispatcher.stop(settings.drain_s)
    server.should_exit = True
    await serving
    stopped.cancel()
    log.write("stopped")


class _Server(uvicorn.Server):
    """uvicorn, but the first signal begins to drain, and only the second one ends at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop_asked = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn's handler of SIGINT and SIGTERM."""
        if self.stop_asked.is_set():
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.stop_asked.set()


def _listen(settings: ServerSettings) -> socket.socket:
    """Bind before anything is opened, so that a port that is taken is told at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is told; with it an answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(512)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise RequestError(
            f"{settings.host}:{settings.port} cannot be listened on ({error.strerror})",
            hint="choose another --port or --host",
            code="serve.listen",
            field="port",
        ) from error
    return listener


def _open_store(settings: ServerSettings) -> JobStore:
    return JobStore(settings.data, keep_s=settings.keep_s, max_bytes=settings.max_stored_bytes)
