"""The parser of the command line, built from a table of commands, and the options that several commands share."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from editverse_rt.cluster import ClusterOptions
from editverse_rt.errors import RequestError
from editverse_rt.request import options
from editverse_rt.request.options import OPTIONS, Option, OptionValue, check_option, parse_size

__all__ = [
    "DEFAULT_BUNDLE",
    "FLAGS",
    "Command",
    "CommandEntry",
    "add_gpu_options",
    "add_pipeline_options",
    "add_ray_option",
    "add_request_options",
    "add_running_options",
    "bytes_from_text",
    "cluster_options",
    "device_number",
    "gpu_options",
    "open_options",
    "parse_arguments",
    "thread_count",
    "version_of",
]

MAX_THREADS = 1024
DEFAULT_BUNDLE = "nano"
FLAGS = {
    **options.FLAGS,
    "device": "--device",
    "cuda_graphs": "--cuda-graphs",
    "weight_budget_bytes": "--weight-budget",
    "plugin": "--plugin",
    "kernel_cache": "--kernel-cache",
    "gpu_memory_limit_bytes": "--gpu-memory-limit",
    "num_threads": "--threads",
    "num_workers": "--workers",
    "memory_budget_bytes": "--memory",
    "allow_unverified": "--allow-unverified",
}
"""What errors call the options of a request and of `Pipeline.open` here."""

_HELP = "--help lists the options"
_ONE_TEXT = {"generate": "a prompt of several words stands in quotes"}

EXIT_CODES = """\
exit codes:
  0    done
  2    the request, a file, the bundle or the backend cannot be used; one line says why and what to do
  130  interrupted with Ctrl-C; nothing half-written is left
  1    a bug, with its traceback
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is an error of the tree: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}", hint=f"`{self.prog} --help` shows an example", code="command.usage")


@dataclass(frozen=True)
class Command:
    """One command: what its file gives to the parser, and what runs.

    examples: shown below its options. usage: the first line of its help where argparse's own would mislead.
    run: takes the parsed arguments, returns the exit code. late_words: the positional argument whose words may
    also stand behind options, "" for none.
    """

    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    usage: str | None = None
    late_words: str = ""


@dataclass(frozen=True)
class CommandEntry:
    """A line of the table of commands. module: its file, which has a `Command` called as `name` in capitals."""

    name: str
    summary: str
    module: str

    def load(self) -> Command:
        """Import the file, with the libraries that the command needs."""
        command = getattr(importlib.import_module(f"editverse_rt.commands.{self.module}"), self.name.upper())
        assert isinstance(command, Command)  # noqa: S101 - of our own table
        return command


def parse_arguments(
    argv: Sequence[str] | None, entries: Sequence[CommandEntry]
) -> tuple[Command, argparse.Namespace]:
    """Parse one command; `argv` without the program's name, or None for sys.argv.

    Only the file of the command that is asked for is imported. `--help` and `--version` print and raise
    SystemExit. Raises RequestError for what is not understood.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    words = server_behind_command(words)
    # No other option before the command takes a value, so the first word is the command.
    asked = next((word for word in words if not word.startswith("-")), None)
    command = next((entry.load() for entry in entries if entry.name == asked), None)
    args, extra = build_parser(entries, asked, command).parse_known_args(words)
    if command is None:
        raise RequestError(f"{asked!r} is no command", code="command.usage")  # argparse refused it before
    if extra:
        take_late_words(command, args, extra)
    return command, args


def server_behind_command(words: list[str]) -> list[str]:
    """Move a `--server URL` or `--server=URL` at the head behind the command, whose option it is."""
    if not words:
        return words
    length = 2 if words[0] == "--server" else 1 if words[0].startswith("--server=") else 0
    if not length or len(words) <= length:
        return words
    return [words[length], *words[:length], *words[length + 1 :]]


def build_parser(
    entries: Sequence[CommandEntry], asked: str | None, command: Command | None
) -> argparse.ArgumentParser:
    """Build the parser: all commands by name and summary, and the one that is asked for in full."""
    parser = _Parser(
        prog="editverse-rt",
        description="Edit and generate images and videos with an EditVerse bundle.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for entry in entries:
        own = command if entry.name == asked else None
        child = commands.add_parser(
            entry.name,
            help=entry.summary,
            description=entry.summary[0].upper() + entry.summary[1:] + ".",
            epilog=EXIT_CODES if own is None else f"{own.examples}\n{EXIT_CODES}",
            usage=None if own is None else own.usage,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if own is not None:
            own.add_arguments(child)
    return parser


class _ShowVersion(argparse.Action):
    """Look the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"editverse-rt {version_of('editverse-rt')}")
        parser.exit()


def add_request_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add these options of a request as the table has them: flag, type and range, help; None if not given."""
    for option in OPTIONS:
        if option.name in names:
            parser.add_argument(
                option.flag,
                dest=option.name,
                type=partial(option_from_text, option),
                metavar=option.metavar,
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
    add_pipeline_options(parser)
    add_gpu_options(parser)
    add("--preview", type=Path, metavar="PNG", help="also write a contact sheet, source over result")
    add("--json", action="store_true", help="print one JSON object about the result")
    add("--quiet", action="store_true", help="print nothing but errors (and the JSON object)")


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which bundle runs where, besides the options for a GPU."""
    add = parser.add_argument
    add("--bundle", default=DEFAULT_BUNDLE, help=f"name or folder (default: {DEFAULT_BUNDLE})")
    add("--backend", default="auto", help="auto, or a name from `editverse-rt doctor` (default: auto)")
    add("--allow-unverified", action="store_true", help="take plans that `verify` has not accepted here")
    add("--threads", type=thread_count, metavar="N", help="CPU threads (default: one a core)")


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


def add_ray_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="run on a Ray cluster, one request a device at once; without an address on this machine",
    )


def cluster_options(args: argparse.Namespace) -> ClusterOptions | None:
    """What `--ray` and the options of `Pipeline.open` say; None without --ray.

    Raises RequestError for options that are Ray's to decide.
    """
    if args.ray is None:
        return None
    given = {
        "--workers": args.workers != 1,
        "--memory": getattr(args, "memory", None) is not None,
        "--device": args.device is not None,
    }
    for flag in (flag for flag, is_given in given.items() if is_given):
        raise RequestError(
            f"{flag} is given with --ray",
            expected="one request at once on each device that Ray gives",
            hint=f"leave {flag} out",
            code="command.usage",
        )
    # Another node has another working directory.
    paths = {
        name: value.absolute() if isinstance(value, Path) else value
        for name, value in open_options(args).items()
    }
    return ClusterOptions(args.ray or None, args.bundle, args.backend, paths)


def open_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `Pipeline.open` takes of the options, besides bundle and backend."""
    return {
        "num_threads": args.threads,
        "allow_unverified": args.allow_unverified,
        **gpu_options(args),
    }


def take_late_words(command: Command, args: argparse.Namespace, extra: list[str]) -> None:
    """Accept positional words on either side of the options, which argparse does not."""
    unknown = [word for word in extra if word.startswith("-")]
    if not command.late_words or unknown:
        raise RequestError(
            f"unrecognized argument {(unknown or extra)[0]!r}",
            hint=advise_on(unknown[0]) if unknown else _ONE_TEXT.get(args.command, _HELP),
            code="command.usage",
        )
    getattr(args, command.late_words).extend(extra)


def advise_on(word: str) -> str:
    """What to do about an option that does not exist: those that are called much like it."""
    name = word.partition("=")[0].strip("-")
    known = sorted({*FLAGS.values()})
    near = [flag for flag in known if name and name in flag]
    near = near or difflib.get_close_matches(f"--{name}", known, 3)
    return f"is it {' or '.join(near)}?" if near else _HELP


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
    import importlib.metadata  # a tenth of what `--help` takes

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
