"""The commands `edit` and `generate`: one request, its output, and what is said about it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from editverse_rt import media
from editverse_rt.commands.arguments import (
    DEFAULT_BUNDLE,
    Command,
    add_request_options,
    add_running_options,
    gpu_options,
)
from editverse_rt.commands.inputs import name_inputs, read_request
from editverse_rt.commands.losses import describe_loss
from editverse_rt.commands.remote import add_remote_options, run_remote
from editverse_rt.commands.terminal import EXIT_OK, Progress, print_json
from editverse_rt.errors import RequestError
from editverse_rt.file_run import FileRun, run_to_file
from editverse_rt.media.frames import contact_sheet
from editverse_rt.pipeline import Pipeline
from editverse_rt.request.edit_request import EditRequest, Source
from editverse_rt.request.options import OPTIONS
from editverse_rt.request.prompt import with_tags

__all__ = ["EDIT", "GENERATE"]

EDIT_OPTIONS = tuple(option.name for option in OPTIONS)
GENERATE_OPTIONS = tuple(name for name in EDIT_OPTIONS if name not in ("start_s", "strength"))
"""Without those that speak of an input."""

EDIT_EXAMPLES = """\
examples:
  editverse-rt edit in.mp4 "Turn the circle green" -o out.mp4
  editverse-rt edit in.mp4 boat.png "<video1> Insert the boat <image1> in the water" -o out.mp4 \\
      --num-inference-steps 50 --guidance-scale 5 --seed 7 --preview sheet.png
  editverse-rt edit photo.jpg "Make it grayscale" -o out.png
  editverse-rt edit holiday.mp4 "Make it night" -o out.mp4 --resume
  editverse-rt edit --request request.json -o out.mp4 --seed 8
  editverse-rt --server http://127.0.0.1:8000 edit in.mp4 "Make it night" -o out.mp4

Videos become <video1>, <video2> ..., images <image1>, <image2> ..., each in the order given. An instruction
without any tag gets them in front, in that order. An output that exists is replaced, at once and only when
the new one is complete. The source's audio is carried over when the output keeps its length.

A request file is a JSON object, {"prompt": ..., "inputs": {"video1": PATH}, "seed": 7}; paths are relative to the
file, and the other names are those of the options in Python, such as num_inference_steps.

A video that is longer than the bundle's clips is edited window by window. Windows that are done are kept in the folder
OUT.parts until the result is complete; after Ctrl-C or a crash the same command with --resume goes on there.

OUT is a video (.mp4 .mov .mkv .webm .gif), a picture of one frame (.png .jpg .jpeg .webp), or PNG frames: a
name without a suffix is a new folder of them, and a name such as out_%04d.png numbers them.
"""

GENERATE_EXAMPLES = """\
examples:
  editverse-rt generate "A large red circle moving right at the left on a blue gradient background" -o out.mp4
  editverse-rt generate "A large yellow square at the center on a plain black background" -o out.png --size 64x64
"""


def add_edit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="INPUT", help="videos and images, then the instruction")
    add_request_file(parser)
    add_running_options(parser)
    add_remote_options(parser)
    parser.set_defaults(bundle=None)  # with --server the server's default
    add_request_options(parser, EDIT_OPTIONS)


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="what to show")
    add_request_file(parser)
    add_running_options(parser)
    add_remote_options(parser)
    parser.set_defaults(bundle=None)  # with --server the server's default
    add_request_options(parser, GENERATE_OPTIONS)


def add_request_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--request",
        type=Path,
        metavar="JSON",
        help="a file with the request; what the command line says besides wins",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the windows of a long video that an earlier run of the same request left",
    )


def run_edit(args: argparse.Namespace) -> int:
    *paths, instruction = args.words or [None]
    if args.request is None:
        if not paths:
            raise RequestError(
                f"{'one argument was' if args.words else 'no argument was'} given",
                expected="inputs and then an instruction, as in "
                '`editverse-rt edit in.mp4 "Turn the circle green" -o out.mp4`, or --request',
                code="command.usage",
            )
        check_order(paths, instruction)
        request = EditRequest("")
    else:
        request = read_request(args.request)
    inputs = name_inputs(paths) or request.inputs
    prompt = request.prompt if instruction is None else instruction
    return run_request(args, request_from(args, request, with_tags(prompt, inputs), inputs))


def check_order(paths: Sequence[str], instruction: str) -> None:
    """Refuse words of an instruction among the inputs: it stands last, as one argument. Raises RequestError."""
    missing = [path for path in paths if not os.path.exists(path)]
    if missing and (os.path.isfile(instruction) or any("." not in path for path in missing)):
        raise RequestError(
            f"{missing[0]}: no such file",
            expected="inputs, and then the instruction in quotes, as in "
            '`editverse-rt edit in.mp4 "Turn the circle green" -o out.mp4`',
            code="command.usage",
        )


def run_generate(args: argparse.Namespace) -> int:
    if args.request is None and args.prompt is None:
        raise RequestError(
            "no prompt was given",
            expected="a prompt or --request",
            hint="`editverse-rt generate --help` shows an example",
            code="command.usage",
        )
    request = EditRequest("") if args.request is None else read_request(args.request)
    if request.inputs:
        raise RequestError(
            f"{args.request} has inputs",
            expected="a request without any",
            hint="use `editverse-rt edit`",
            code="command.usage",
        )
    return run_request(args, request_from(args, request, args.prompt or request.prompt, {}))


def request_from(
    args: argparse.Namespace, request: EditRequest, prompt: str, inputs: Mapping[str, Source]
) -> EditRequest:
    """A request with the command's words and options in place of its own; a picture as output is one frame.

    Raises RequestError.
    """
    given = {option.name: getattr(args, option.name, None) for option in OPTIONS}
    chosen = {name: value for name, value in given.items() if value is not None}
    if args.output.suffix.lower() in media.IMAGE_SUFFIXES and not media.is_pattern(args.output.name):
        num_frames = chosen.get("num_frames", request.num_frames)
        if num_frames not in (None, 1):
            raise RequestError(
                f"{num_frames} for the picture {args.output}, which holds 1 frame",
                hint=f"leave it out, or name a video, a folder or {args.output.stem}_%04d.png",
                code="request.option",
                field="num_frames",
                is_value=True,
            )
        chosen["num_frames"] = 1
    return replace(request, prompt=prompt, inputs=dict(inputs), **chosen)


def run_request(args: argparse.Namespace, request: EditRequest) -> int:
    media.check_target(args.output, fps=request.fps)
    if args.preview is not None:
        media.check_target(args.preview, is_picture=True)
        if os.path.realpath(args.preview) == os.path.realpath(args.output):
            raise RequestError(
                f"--preview and --output are both {args.output}",
                hint="give the preview another name",
                code="command.usage",
            )
    if args.server is not None:
        return run_remote(args, request)
    if args.api_key is not None:
        raise RequestError(
            "--api-key is given without --server", hint="give both or neither", code="command.usage"
        )

    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        progress = None if args.quiet else stack.enter_context(contextlib.closing(Progress(sys.stderr)))
        pipeline = stack.enter_context(open_pipeline(args))
        run = run_to_file(pipeline, request, args.output, resume=args.resume, callback_on_step_end=progress)
        info = pipeline.info()
    if args.preview is not None:
        media.write_image(args.preview, contact_sheet([*run.sources, run.shown]))
    notices = [*run.notices, *describe_loss(request, run.main, args.output, run.size, run.num_frames)]
    if not args.quiet:
        with contextlib.suppress(OSError):
            for notice in notices:
                print(f"editverse-rt: {notice}", file=sys.stderr)
    report(args, request, run, notices, info, time.perf_counter() - begin)
    return EXIT_OK


def open_pipeline(args: argparse.Namespace) -> Pipeline:
    return Pipeline.open(
        DEFAULT_BUNDLE if args.bundle is None else args.bundle,
        args.backend,
        num_threads=args.threads,
        allow_unverified=args.allow_unverified,
        **gpu_options(args),
    )


def report(
    args: argparse.Namespace,
    request: EditRequest,
    run: FileRun,
    notices: Sequence[str],
    info: dict[str, Any],
    total_s: float,
) -> None:
    height, width = run.size
    if args.json:
        print_json(
            {
                "output": os.fspath(args.output),
                "preview": None if args.preview is None else os.fspath(args.preview),
                "prompt": request.prompt,
                "seed": request.seed,
                "frames": run.num_frames,
                "windows": run.num_windows,
                "height": height,
                "width": width,
                "fps": run.fps,
                "total_s": total_s,
                "timings": dict(run.timings),
                "notices": list(notices),
                "pipeline": info,
            }
        )
    elif not args.quiet:
        length = "1 frame" if run.num_frames == 1 else f"{run.num_frames} frames at {run.fps:g} fps"
        windows = f" in {run.num_windows} windows" if run.num_windows > 1 else ""
        print(f"{args.output}: {width}x{height}, {length}{windows}, seed {request.seed}, {total_s:.1f} s")


EDIT = Command(
    EDIT_EXAMPLES,
    add_edit_arguments,
    run_edit,
    usage='editverse-rt edit INPUT [INPUT ...] "INSTRUCTION" -o OUT [options]',
    late_words="words",
)
GENERATE = Command(GENERATE_EXAMPLES, add_generate_arguments, run_generate)
