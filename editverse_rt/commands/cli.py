"""The command line `editverse-rt`: edit, generate, plan, verify, info and doctor.

Results go to standard output; progress, notices and errors to standard error. Exit codes: 0 done,
2 a request, a file, a bundle or a backend that cannot be used (one line says why), 130 interrupted,
1 a bug (with its traceback).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from editverse_rt import media
from editverse_rt.bundle.description import json_from_spec
from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.commands.arguments import parse_arguments
from editverse_rt.commands.descriptions import describe_bundle
from editverse_rt.commands.doctor import describe_machine, examine_machine
from editverse_rt.commands.plan_report import report_plan
from editverse_rt.commands.terminal import Progress, discard_output, prepare_streams, print_error
from editverse_rt.errors import EditVerseError, RequestCancelled, RequestError
from editverse_rt.media.frames import contact_sheet
from editverse_rt.pipeline import Pipeline, Result
from editverse_rt.quality.verify import describe_verification, verify_backend
from editverse_rt.request import options
from editverse_rt.request.edit_request import EditRequest, Source
from editverse_rt.request.options import OPTIONS
from editverse_rt.request.prompt import with_tags

__all__ = ["main"]

EXIT_OK = 0
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # what a shell says of a command whose reader left, as in `info | head -1`


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` without the program's name, or None for sys.argv."""
    prepare_streams()
    try:
        args = parse_arguments(argv)
        code = COMMANDS[args.command](args)
        sys.stdout.flush()
        return code
    except (RequestCancelled, KeyboardInterrupt) as error:
        print_error(str(error) or "stopped by Ctrl-C; nothing half-written is left")
        return EXIT_INTERRUPTED
    except EditVerseError as error:
        print_error(error.describe(FLAGS))
    except BrokenPipeError:
        discard_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.strerror is None:
            raise
        name = error.filename or "standard output"
        print_error(f"{name}: {error.strerror}; check the path and the free space")
        discard_output()
    return EXIT_BAD_INPUT


# --- edit and generate ------------------------------------------------------------------------------------


def run_edit(args: argparse.Namespace) -> int:
    *paths, instruction = args.words
    if not paths:
        raise RequestError(
            "one argument was given, inputs and then an instruction are expected, as in "
            '`editverse-rt edit in.mp4 "Turn the circle green" -o out.mp4`'
        )
    inputs = name_inputs(paths)
    return run_request(args, request_from(args, with_tags(instruction, inputs), inputs))


def run_generate(args: argparse.Namespace) -> int:
    return run_request(args, request_from(args, args.prompt, {}))


def request_from(args: argparse.Namespace, prompt: str, inputs: Mapping[str, Source]) -> EditRequest:
    """The request of a command's options; a picture as output is one frame. Raises RequestError."""
    chosen: dict[str, Any] = {option.name: getattr(args, option.name, option.default) for option in OPTIONS}
    if args.output.suffix.lower() in media.IMAGE_SUFFIXES and not media.is_pattern(args.output.name):
        if chosen["num_frames"] not in (None, 1):
            raise RequestError(
                f"{chosen['num_frames']} for the picture {args.output}, which holds 1 frame",
                hint=f"leave it out, or name a video, a folder or {args.output.stem}_%04d.png",
                code="request.option",
                field="num_frames",
                is_value=True,
            )
        chosen["num_frames"] = 1
    return EditRequest(prompt, dict(inputs), **chosen)


def name_inputs(paths: Sequence[str]) -> dict[str, media.MediaFile]:
    """Return tag name -> open file: each file's kind, numbered from 1 in the order given."""
    names: dict[str, media.MediaFile] = {}
    counts: dict[str, int] = {}
    for path in paths:
        file = media.open_media(path)
        kind = file.info.kind
        counts[kind] = counts.get(kind, 0) + 1
        names[f"{kind}{counts[kind]}"] = file
    return names


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

    begin = time.perf_counter()
    progress = None if args.quiet else Progress(sys.stderr)
    with open_pipeline(args) as pipeline:
        result = pipeline(request, callback_on_step_end=progress)
        info = pipeline.info()
    if progress is not None:
        progress.close()
    notices = [*result.notices, *result.save(args.output)]
    if args.preview is not None:
        media.write_image(args.preview, contact_sheet([*result.sources, result.frames]))
    if not args.quiet:
        with contextlib.suppress(OSError):
            for notice in notices:
                print(f"editverse-rt: {notice}", file=sys.stderr)
    report(args, request, result, info, notices, time.perf_counter() - begin)
    return EXIT_OK


def open_pipeline(args: argparse.Namespace) -> Pipeline:
    return Pipeline.open(
        args.bundle,
        args.backend,
        num_threads=args.threads,
        allow_unverified=args.allow_unverified,
        **gpu_options(args),
    )


def gpu_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `Pipeline.open` takes of the options for a GPU."""
    return {
        "device": args.device,
        "cuda_graphs": args.cuda_graphs,
        "weight_budget_bytes": args.weight_budget,
        "plugin": args.plugin,
        "kernel_cache": args.kernel_cache,
        "gpu_memory_limit_bytes": args.gpu_memory_limit,
    }


def report(
    args: argparse.Namespace,
    request: EditRequest,
    result: Result,
    info: dict[str, Any],
    notices: list[str],
    total_s: float,
) -> None:
    num_frames, height, width = result.frames.shape[:3]
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
                "fps": result.fps,
                "total_s": total_s,
                "timings": result.timings,
                "notices": notices,
                "pipeline": info,
            }
        )
    elif not args.quiet:
        length = "1 frame" if num_frames == 1 else f"{num_frames} frames at {result.fps:g} fps"
        print(f"{args.output}: {width}x{height}, {length}, seed {request.seed}, {total_s:.1f} s")


# --- plan, verify, info and doctor --------------------------------------------------------------------------


def run_plan(args: argparse.Namespace) -> int:
    facts, lines = report_plan(args, name_inputs(args.input))
    if args.json:
        print_json(facts)
    else:
        print("\n".join(lines))
    return EXIT_OK


def run_verify(args: argparse.Namespace) -> int:
    report = verify_backend(
        args.bundle,
        args.backend,
        args.num_inference_steps,
        reference=args.reference,
        **gpu_options(args),
    )
    facts = report.report()
    if args.json:
        print_json(facts)
    else:
        print("\n".join(describe_verification(report)))
    return EXIT_OK


def run_info(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle)
    facts = {
        "path": os.fspath(bundle.root),
        "num_bytes": sum(file.num_bytes for file in bundle.spec.files),
        **json_from_spec(bundle.spec),
    }
    if args.json:
        print_json(facts)
        return EXIT_OK
    print("\n".join(describe_bundle(facts)))
    return EXIT_OK


def run_doctor(args: argparse.Namespace) -> int:
    facts = examine_machine(args.bundle, args.plugin)
    if args.json:
        print_json(facts)
    else:
        print("\n".join(describe_machine(facts)))
    if facts["problem"] is not None:
        print_error(facts["problem"])
        return EXIT_BAD_INPUT
    return EXIT_OK


def print_json(facts: dict[str, Any]) -> None:
    print(json.dumps(facts, indent=2, ensure_ascii=False))


FLAGS = {
    **options.FLAGS,
    "device": "--device",
    "cuda_graphs": "--cuda-graphs",
    "weight_budget_bytes": "--weight-budget",
    "plugin": "--plugin",
    "kernel_cache": "--kernel-cache",
    "gpu_memory_limit_bytes": "--gpu-memory-limit",
}
"""What errors call the options of a request and of `Pipeline.open` here."""

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "edit": run_edit,
    "generate": run_generate,
    "info": run_info,
    "plan": run_plan,
    "verify": run_verify,
    "doctor": run_doctor,
}
