"""The command `serve`: its options as the server's settings. The server's packages are an extra."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from editverse_rt.commands.arguments import Command, bytes_from_text, device_number, thread_count
from editverse_rt.commands.terminal import EXIT_OK
from editverse_rt.errors import BackendError, RequestError

if TYPE_CHECKING:
    from editverse_rt.serve.settings import ServerSettings

__all__ = ["SERVE"]

EXAMPLES = """\
examples:
  editverse-rt serve
  editverse-rt serve --bundle nano --data /var/lib/editverse-rt --port 8080
  editverse-rt serve --host 0.0.0.0 --api-keys keys.txt --backend tensorrt --device 0 --device 1

On this machine alone it needs no key; on another address it refuses to start without --api-keys, a file of mode
0600 with lines name:sha256-of-the-key. Jobs are kept in --data and survive a restart. SIGTERM lets running jobs
end for --drain-s seconds, and puts the rest back into the queue. docs/serving.md has the API.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; what is left out is decided by `ServerSettings`."""
    add = parser.add_argument
    add("--bundle", action="append", metavar="BUNDLE", help="name or folder; several are served by name")
    add("--backend", help="auto, or a name from `editverse-rt doctor` (default: auto)")
    add(
        "--device", action="append", type=device_number, metavar="N", help="a GPU's number; a worker for each"
    )
    add(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="workers on the nodes of a Ray cluster; without an address, of one that is started here",
    )
    add(
        "--ray-workers", type=thread_count, metavar="N", help="how many (default: one a GPU, else one a node)"
    )
    add(
        "--data",
        type=Path,
        default=Path("editverse-rt-data"),
        metavar="DIR",
        help="jobs and their files (default: editverse-rt-data, in the current folder)",
    )
    add("--host", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=port_number, metavar="N", help="port to listen on, 0 for any (default: 8000)")
    add("--api-keys", type=Path, metavar="FILE", help="lines name:sha256, mode 0600")
    add("--allow-host", action="append", metavar="NAME", help="a name that requests may come to")
    add("--cors-origin", action="append", metavar="ORIGIN", help="another origin whose pages may call")
    add(
        "--slots",
        type=thread_count,
        metavar="N",
        help="jobs at once on a worker (default: one a core on a CPU)",
    )
    add(
        "--memory-budget",
        type=bytes_from_text,
        metavar="SIZE",
        help="for the weights and the jobs of a worker",
    )
    add("--worker-memory", type=bytes_from_text, metavar="SIZE", help="address space of a worker on a CPU")
    add("--max-body", type=bytes_from_text, metavar="SIZE", help="of a request's body (default: 268.4MB)")
    add("--max-queued", type=thread_count, metavar="N", help="jobs that wait (default: 64)")
    add(
        "--max-queued-per-key", type=thread_count, metavar="N", help="jobs of one key that wait (default: 16)"
    )
    add("--max-stored", type=bytes_from_text, metavar="SIZE", help="files of jobs (default: 10.7GB)")
    add("--min-free", type=bytes_from_text, metavar="SIZE", help="disk that stays free (default: 536.9MB)")
    for flag, text in (
        ("--worker-silence-s", "seconds after which a job that tells nothing hangs (default: 60)"),
        ("--worker-open-s", "seconds that a worker may open its bundles (default: 1800)"),
        ("--keep-s", "seconds that finished jobs are kept (default: 86400)"),
        ("--max-deadline-s", "seconds that a job may run (default: 3600)"),
        ("--header-s", "seconds that the headers of a request may take (default: 30)"),
        ("--body-silence-s", "seconds without a byte of a body (default: 30)"),
        ("--drain-s", "seconds that running jobs have at SIGTERM (default: 30)"),
    ):
        add(flag, type=seconds_number, metavar="S", help=text)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C. Raises EditVerseError for what cannot be started with."""
    try:
        from editverse_rt.serve.run import run_server
    except ImportError as error:
        raise BackendError(
            f"the server needs a package that is not installed ({error.name})",
            hint="pip install 'editverse-rt[serve]'",
            code="backend.package_missing",
        ) from error
    run_server(settings_from(args))
    return EXIT_OK


def settings_from(args: argparse.Namespace) -> ServerSettings:
    """The settings of the options that were given."""
    from editverse_rt.serve.settings import ServerSettings

    if args.ray is None and args.ray_workers is not None:
        raise _usage("--ray-workers is given without --ray")
    if args.ray is not None and args.device is not None:
        raise _usage("--device is given with --ray, which chooses the devices")
    bundles = ("nano",) if args.bundle is None else tuple(args.bundle)
    if args.ray is not None:
        # A worker on another node has another working directory.
        bundles = tuple(
            str(Path(bundle).absolute()) if Path(bundle).is_dir() else bundle for bundle in bundles
        )
    settings = ServerSettings(
        data=args.data if args.ray is None else args.data.absolute(),
        bundles=bundles,
        ray=args.ray,
        api_keys=args.api_keys,
        devices=tuple(args.device or ()),
        hosts=tuple(name.lower() for name in args.allow_host or ()),
        cors_origins=tuple(args.cors_origin or ()),
        worker_memory_bytes=args.worker_memory,
    )
    given = {
        "backend": args.backend,
        "host": args.host,
        "port": args.port,
        "slots": args.slots if args.ray is None or args.slots is not None else 1,
        "ray_workers": args.ray_workers,
        "max_queued": args.max_queued,
        "max_queued_per_key": args.max_queued_per_key,
        "max_stored_bytes": args.max_stored,
        "keep_s": args.keep_s,
        "max_deadline_s": args.max_deadline_s,
        "drain_s": args.drain_s,
        "worker_silence_s": args.worker_silence_s,
        "worker_open_s": args.worker_open_s,
        "header_s": args.header_s,
    }
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    body = {"max_bytes": args.max_body, "silence_s": args.body_silence_s, "min_free_bytes": args.min_free}
    return replace(
        settings,
        body=replace(settings.body, **{name: value for name, value in body.items() if value is not None}),
        limits=replace(settings.limits, memory_budget_bytes=args.memory_budget),
    )


def _usage(found: str) -> RequestError:
    return RequestError(found, hint="leave it out", code="command.usage")


def port_number(text: str) -> int:
    if re.fullmatch(r"\d{1,5}", text) is None or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is given, a port from 0 to 65535 is expected")
    return int(text)


def seconds_number(text: str) -> float:
    if re.fullmatch(r"\d{1,8}(\.\d{1,3})?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is given, seconds of 0 or more are expected")
    return float(text)


SERVE = Command(EXAMPLES, add_arguments, run)
