"""The command line's words: commands, options, their help, and what is refused before anything is opened."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from editverse_rt.errors import RequestError
from editverse_rt.planning.targets import PRECISIONS
from editverse_rt.request.options import OPTIONS, Option, OptionValue, check_option, parse_size

__all__ = ["parse_arguments", "version_of"]

EDIT_OPTIONS = tuple(option.name for option in OPTIONS)
GENERATE_OPTIONS = tuple(name for name in EDIT_OPTIONS if name not in ("start_s", "strength"))
"""Without those that speak of an input."""
PLAN_OPTIONS = ("schedule", "num_inference_steps", "guidance_scale", "size", "num_frames")
MAX_THREADS = 1024
EXIT_CODES = """\
exit codes:
  0    done
  2    the request, a file, the bundle or the backend cannot be used; one line says why and what to do
  130  interrupted with Ctrl-C; nothing half-written is left
  1    a bug, with its traceback
"""

EDIT_HELP = """\
examples:
  editverse-rt edit in.mp4 "Turn the circle green" -o out.mp4
  editverse-rt edit in.mp4 boat.png "<video1> Insert the boat <image1> in the water" -o out.mp4 \\
      --num-inference-steps 50 --guidance-scale 5 --seed 7 --preview sheet.png
  editverse-rt edit photo.jpg "Make it grayscale" -o out.png

Videos become <video1>, <video2> ..., images <image1>, <image2> ..., each in the order given. An instruction
without any tag gets them in front, in that order. An output that exists is replaced, at once and only when
the new one is complete. The source's audio is carried over when the output keeps its length.

OUT is a video (.mp4 .mov .mkv .webm .gif), a picture of one frame (.png .jpg .jpeg .webp), or PNG frames: a
name without a suffix is a new folder of them, and a name such as out_%04d.png numbers them.
"""

GENERATE_HELP = """\
examples:
  editverse-rt generate "A red circle moves over a blue gradient" -o out.mp4 --seed 3
  editverse-rt generate "A yellow square" -o out.png --size 96x64
"""

INFO_HELP = """\
examples:
  editverse-rt info
  editverse-rt info path/to/bundle --json
"""

PLAN_HELP = """\
examples:
  editverse-rt plan                                       # nano's own default request, on every target
  editverse-rt plan BUNDLE --input in.mp4 --target h100
  editverse-rt plan BUNDLE --frames 81 --size 576x320 --target rtx4090 --precision fp16 --json

It reads the bundle's facts and the inputs' headers, and runs nothing. What does not fit the target is refused
with the largest that does.
"""

VERIFY_HELP = """\
examples:
  editverse-rt verify --backend ort-cuda
  editverse-rt verify BUNDLE --backend tensorrt-rtx
  editverse-rt verify nano-plugin --backend tensorrt --plugin LIB --reference nano

The held-out edits that the bundle carries, or a few made-up ones, on the backend and on ort-cpu, from the
same seed: how many come out right on each, and how near the results are. Plans that pass get a stamp, and are
used from then on without --allow-unverified.
"""

DOCTOR_HELP = """\
examples:
  editverse-rt doctor
  editverse-rt doctor --json

Exit code 0 means that the bundle is whole and that a backend is here to run it.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is an error of the tree: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}", hint=f"`{self.prog} --help` shows an example", code="command.usage")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse one command; `argv` without the program's name, or None for sys.argv.

    `--help` and `--version` print and raise SystemExit. Raises RequestError for what is not understood.
    """
    args, extra = build_parser().parse_known_args(argv)
    if extra:
        take_late_words(args, extra)
    return args


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = _Parser(
        prog="editverse-rt",
        description="Edit and generate images and videos with an EditVerse bundle.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"editverse-rt {version_of('editverse-rt')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, summary: str, examples: str, usage: str | None = None) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"{examples}\n{EXIT_CODES}",
            usage=usage,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    edit = add(
        "edit",
        "edit videos and images by an instruction",
        EDIT_HELP,
        'editverse-rt edit INPUT [INPUT ...] "INSTRUCTION" -o OUT [options]',
    )
    edit.add_argument("words", nargs="+", metavar="INPUT", help="videos and images, then the instruction")
    add_running_options(edit)
    add_request_options(edit, EDIT_OPTIONS)

    generate = add("generate", "generate a video or an image from a prompt", GENERATE_HELP)
    generate.add_argument("prompt", help="what to show")
    add_running_options(generate)
    add_request_options(generate, GENERATE_OPTIONS)

    info = add("info", "show what a bundle holds, after checking every file's hash", INFO_HELP)
    info.add_argument("bundle", nargs="?", default="nano", help="name or folder (default: nano)")
    info.add_argument("--json", action="store_true", help="print one JSON object")

    doctor = add("doctor", "say which backends are here, and why another is not", DOCTOR_HELP)
    doctor.add_argument("--bundle", default="nano", help="name or folder (default: nano)")
    doctor.add_argument("--plugin", type=Path, metavar="LIB", help="also try libeditverse_plugin.so")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")

    verify = add("verify", "compare a backend with ort-cpu, and accept its plans", VERIFY_HELP)
    verify.add_argument("bundle", nargs="?", default="nano", help="name or folder (default: nano)")
    verify.add_argument("--backend", required=True, help="a name from `editverse-rt doctor`")
    add_request_options(verify, ("num_inference_steps",))
    verify.add_argument(
        "--reference",
        metavar="BUNDLE",
        help="another export of the checkpoint, for ort-cpu where it cannot run this one (plugin, bfloat16)",
    )
    add_gpu_options(verify)
    verify.add_argument("--json", action="store_true", help="print one JSON object")

    plan = add("plan", "say what a request costs, in memory and in time, before it runs", PLAN_HELP)
    plan.add_argument("bundle", nargs="?", default="nano", help="name or folder (default: nano)")
    plan.add_argument("--input", action="append", default=[], metavar="FILE", help="a video or an image")
    where = plan.add_mutually_exclusive_group()
    where.add_argument("--target", metavar="GPU", help="rtx4090, h100, sm_89 ... (default: all of them)")
    where.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe of your own, TOML")
    plan.add_argument("--precision", choices=PRECISIONS, help="of the transformer (default: the recipe's)")
    plan.add_argument("--prompt", metavar="TEXT", help="the instruction, to count its tokens")
    add_request_options(plan, PLAN_OPTIONS)
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def add_request_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add these options of a request as the table has them: flag, type and range, default, help."""
    for option in OPTIONS:
        if option.name in names:
            parser.add_argument(
                option.flag,
                dest=option.name,
                type=partial(option_from_text, option),
                metavar=option.metavar,
                default=option.default,
                help=option.help,
            )


def option_from_text(option: Option, text: str) -> OptionValue:
    """Read an option's value. Raises RequestError that names the option, what was given and what is expected."""
    value: object = text
    if option.kind == "int" and re.fullmatch(r"[+-]?[0-9]{1,30}", text):
        value = int(text)
    elif option.kind == "float":
        with contextlib.suppress(ValueError):
            value = float(text)
    elif option.kind == "size":
        value = parse_size(text.lower()) or text
    return check_option(option.name, value)


def add_running_options(parser: argparse.ArgumentParser) -> None:
    """Add what `edit` and `generate` take besides the request: output, bundle, backend, what is printed."""
    add = parser.add_argument
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="file to write; its suffix says the type",
    )
    add("--bundle", default="nano", help="name or folder (default: nano)")
    add("--backend", default="auto", help="auto, or a name from `editverse-rt doctor` (default: auto)")
    add("--allow-unverified", action="store_true", help="take plans that `verify` has not accepted here")
    add_gpu_options(parser)
    add("--threads", type=thread_count, metavar="N", help="CPU threads (default: one a core)")
    add("--preview", type=Path, metavar="PNG", help="also write a contact sheet, source over result")
    add("--json", action="store_true", help="print one JSON object about the result")
    add("--quiet", action="store_true", help="print nothing but errors (and the JSON object)")


def add_gpu_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", type=device_number, metavar="N", help="the GPU's number (default: 0)")
    add("--cuda-graphs", action="store_true", help="launch calls that repeat as one CUDA graph (TensorRT)")
    add(
        "--weight-budget",
        type=bytes_from_text,
        metavar="SIZE",
        help="weights of a plan that may lie on the GPU, such as 2GB (plans built with --weight-streaming)",
    )
    add(
        "--gpu-memory-limit",
        type=bytes_from_text,
        metavar="SIZE",
        help="what each graph may take of the GPU's memory, such as 20GB (ort-cuda)",
    )
    add("--plugin", type=Path, metavar="LIB", help="libeditverse_plugin.so, for plans built with it")
    add(
        "--kernel-cache",
        type=Path,
        metavar="FILE",
        help="keep what TensorRT for RTX compiles on this machine",
    )


def take_late_words(args: argparse.Namespace, extra: list[str]) -> None:
    """Accept inputs and the instruction on either side of the options, which argparse does not."""
    unknown = [word for word in extra if word.startswith("-")]
    if args.command != "edit" or unknown:
        word = (unknown or extra)[0]
        raise RequestError(
            f"unrecognized argument {word!r}",
            hint=f"`editverse-rt {args.command} --help` lists the options",
            code="command.usage",
        )
    args.words += extra


def thread_count(text: str) -> int:
    if re.fullmatch(r"0*[1-9]\d{0,3}", text) is None or int(text) > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is given, threads from 1 to {MAX_THREADS} are expected")
    return int(text)


def device_number(text: str) -> int:
    if re.fullmatch(r"\d{1,4}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is given, a GPU's number of 0 or more is expected")
    return int(text)


def bytes_from_text(text: str) -> int:
    """Return bytes from "2GB", "500MB" or "0"."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) ?([MG]B)|0", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is given, a size is expected, as in 2GB, 500MB or 0")
    if match[1] is None:
        return 0
    return round(float(match[1]) * {"MB": 10**6, "GB": 10**9}[match[2]])


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
