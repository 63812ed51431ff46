"""`edit` and `generate` on a server: `editverse-rt --server URL edit ...`."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from editverse_rt import media
from editverse_rt.client import Client
from editverse_rt.commands.losses import describe_loss, find_main
from editverse_rt.commands.terminal import EXIT_OK, Progress, print_json
from editverse_rt.errors import EditVerseError, RequestError
from editverse_rt.files import replacing
from editverse_rt.media.frames import Frames, contact_sheet
from editverse_rt.request.edit_request import EditRequest

__all__ = ["add_remote_options", "run_remote"]

API_KEY_VARIABLE = "EDITVERSE_API_KEY"
LOCAL_OPTIONS = {
    "backend": "--backend",
    "allow_unverified": "--allow-unverified",
    "threads": "--threads",
    "device": "--device",
    "cuda_graphs": "--cuda-graphs",
    "weight_budget": "--weight-budget",
    "gpu_memory_limit": "--gpu-memory-limit",
    "plugin": "--plugin",
    "kernel_cache": "--kernel-cache",
    "resume": "--resume",
}
"""Options that speak of this machine's pipeline, by the parser's name. The server has its own."""
_MAX_KEY_BYTES = 4096


def add_remote_options(parser: argparse.ArgumentParser) -> None:
    """Add --server, which may also stand before the command, and --api-key."""
    parser.add_argument(
        "--server", metavar="URL", help="run on this `editverse-rt serve`, such as http://127.0.0.1:8000"
    )
    parser.add_argument(
        "--api-key",
        type=Path,
        metavar="FILE",
        help=f"file with the server's key (default: the variable {API_KEY_VARIABLE})",
    )


def run_remote(args: argparse.Namespace, request: EditRequest) -> int:
    """Run a request on the server `args.server`, and write its result to `args.output` in one step.

    The job is cancelled by Ctrl-C. Raises EditVerseError: an option that only a local run takes, and whatever the
    server refuses.
    """
    _check_local_options(args)
    file_format = _format_of(args.output)
    inputs = _paths_of(request)
    body = request.with_inputs({}).to_json()
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(args.server, api_key=_read_key(args.api_key)))
        progress = None if args.quiet else stack.enter_context(contextlib.closing(Progress(sys.stderr)))

        def show(job: dict[str, Any]) -> None:
            if progress is not None and job["num_steps"] and job["step"]:
                steps, windows = int(job["num_steps"]), int(job["num_windows"])
                progress.show(int(job["window"]) * steps + int(job["step"]), windows * steps)

        # Ctrl-C in here is dealt with in the client.
        job = client.submit(body, model=args.bundle, format=file_format, **inputs)
        try:
            done = client.wait(job["id"], on_progress=show, poll_s=0.2)
            _download(client, done, args.output, args.preview)
        except KeyboardInterrupt:
            with contextlib.suppress(EditVerseError):
                client.cancel(job["id"])
            raise
    _report(args, request, done, time.perf_counter() - begin)
    return EXIT_OK


def _check_local_options(args: argparse.Namespace) -> None:
    for name, flag in LOCAL_OPTIONS.items():
        value = getattr(args, name)
        # 0 is a device, and equal to False.
        if value is not None and value is not False and (name, value) != ("backend", "auto"):
            raise RequestError(
                f"{flag} and --server are both given",
                expected=f"{flag} for a run on this machine only",
                hint="leave one of them out",
                code="command.usage",
            )


def _format_of(output: Path) -> str:
    """The format to ask the server for: pictures of several frames come without loss, in one file."""
    suffix = output.suffix.lower()
    if not suffix or media.is_pattern(output.name):
        return "zip"
    return "jpg" if suffix == ".jpeg" else suffix[1:]


def _download(client: Client, job: Mapping[str, Any], output: Path, preview: Path | None) -> None:
    """Write a job's result, and its contact sheet as it is made of a local run, from the files of the server."""
    if job["format"] != "zip" and preview is None:
        client.download(job["id"], output)
        return
    result = job["result"]
    shape = {"height_px": int(result["height"]), "width_px": int(result["width"])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"result.{job['format']}"
        client.download(job["id"], path)
        if job["format"] == "zip":
            frames = _frames_of(path, shape)
            media.write_clip(output, frames, result["fps"])
        else:
            frames = media.read_clip(path, num_frames=int(result["num_frames"]), **shape).frames
            with replacing(output) as part:
                shutil.copyfile(path, part)
        if preview is not None:
            rows = [frames]
            if result["has_source"]:
                source = Path(folder) / "source"
                client.download(job["id"], source, variant="source")
                length = media.probe(source).num_frames or len(frames)
                rows.insert(0, media.read_clip(source, num_frames=length, **shape).frames)
            media.write_image(preview, contact_sheet(rows))


def _frames_of(path: Path, shape: Mapping[str, int]) -> Frames:
    """The pictures of a ZIP file in the order of their names, uint8 [T, H, W, 3]. Raises MediaError."""
    frames = []
    picture = path.with_name("frame.png")
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            # The names are the server's; no file is called so here.
            picture.write_bytes(archive.read(name))
            frames.append(media.read_clip(picture, num_frames=1, **shape).frames)
    return np.concatenate(frames)


def _paths_of(request: EditRequest) -> dict[str, str]:
    paths = {name: os.fspath(source) for name, source in request.to_json().get("inputs", {}).items()}
    for name, path in paths.items():
        if not os.path.isfile(path):
            raise RequestError(
                f"{path} is no file",
                expected="a video or a picture",
                code="media.place",
                field=f"inputs.{name}",
            )
    return paths


def _read_key(path: Path | None) -> str | None:
    """The key in a file, or in the environment's variable; None for neither. Raises RequestError."""
    if path is None:
        place, key = API_KEY_VARIABLE, os.environ.get(API_KEY_VARIABLE, "").strip()
        if not key:
            return None
    else:
        place = os.fspath(path)
        with path.open("rb") as stream:
            key = stream.read(_MAX_KEY_BYTES).decode("latin-1").strip()
    if re.fullmatch(r"[\x21-\x7e]+", key) is None:
        raise RequestError(
            f"{place} holds no key",
            expected="one line of visible ASCII characters",
            code="command.usage",
        )
    return key


def _report(args: argparse.Namespace, request: EditRequest, job: dict[str, Any], total_s: float) -> None:
    result = job["result"]
    size = (int(result["height"]), int(result["width"]))
    lost = describe_loss(request, find_main(request), args.output, size, int(result["num_frames"]))
    notices = [*job["notices"], *lost]
    num_frames, height, width, fps = (result[name] for name in ("num_frames", "height", "width", "fps"))
    if not args.quiet:
        with contextlib.suppress(OSError):
            for notice in notices:
                print(f"editverse-rt: {notice}", file=sys.stderr)
    if args.json:
        print_json(
            {
                "output": os.fspath(args.output),
                "preview": None if args.preview is None else os.fspath(args.preview),
                "prompt": request.prompt,
                "seed": request.seed,
                "frames": num_frames,
                "height": height,
                "width": width,
                "fps": fps,
                "total_s": total_s,
                "notices": notices,
                "server": {"url": args.server, "job": job["id"], "model": job["model"]},
            }
        )
    elif not args.quiet:
        length = "1 frame" if num_frames == 1 else f"{num_frames} frames at {fps:g} fps"
        print(f"{args.output}: {width}x{height}, {length}, seed {request.seed}, {total_s:.1f} s")
