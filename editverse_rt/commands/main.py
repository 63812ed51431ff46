"""The command line `editverse-rt`: its commands, its exit codes, and errors as lines.

Results go to standard output; progress, notices and errors to standard error. Exit codes: 0 done,
2 a request, a file, a bundle or a backend that cannot be used (one line says why), 130 interrupted,
1 a bug (with its traceback).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from editverse_rt.commands.arguments import FLAGS, CommandEntry, parse_arguments
from editverse_rt.commands.terminal import (
    EXIT_BAD_INPUT,
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    discard_output,
    prepare_streams,
    print_error,
)
from editverse_rt.errors import EditVerseError, RequestCancelled

__all__ = ["COMMANDS", "main"]

COMMANDS = (
    CommandEntry("edit", "edit videos and images by an instruction", "edit"),
    CommandEntry("generate", "generate a video or an image from a prompt", "edit"),
    CommandEntry("batch", "run many requests into one folder, each exactly once", "batch"),
    CommandEntry("info", "show what a bundle holds, after checking every file's hash", "info"),
    CommandEntry("doctor", "say which backends are here, and why another is not", "doctor"),
    CommandEntry("verify", "compare a backend with ort-cpu, and accept its plans", "verify"),
    CommandEntry("plan", "say what a request costs, in memory and in time, before it runs", "plan"),
    CommandEntry("serve", "serve an HTTP API and a page", "serve"),
    CommandEntry("evaluate", "score a model on a benchmark, and compare two runs", "evaluate"),
)  # fmt: skip
"""Every command, in the order of `--help`. A new one is a file with a `Command` and a line here."""


def main(argv: Sequence[str] | None = None, *, on_loaded: Callable[[], object] = lambda: None) -> int:
    """Run one command and return its exit code; `argv` without the program's name, or None for sys.argv.

    on_loaded: called when the libraries that the command needs are imported, before it runs.
    """
    prepare_streams()
    try:
        command, args = parse_arguments(argv, COMMANDS)
        on_loaded()
        code = command.run(args)
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
