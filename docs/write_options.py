"""`python docs/write_options.py`: writes docs/options.md from the table of a request's options.

`--check` writes nothing and ends with 1 where the page is not what would be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from editverse_rt.request.options import OPTIONS, Option

__all__ = ["PAGE", "main", "page_from_options"]

PAGE = Path(__file__).parent / "options.md"
HEAD = """\
# Options of a request
An `EditRequest` has a `prompt`, `inputs` by the name of their tag (`video1`, `image1`, ...), and the options below.
Python, JSON and the command line share the names, types and ranges; the flag is the command line's name. What is left
out is chosen by the bundle or by the inputs. A value of another type or out of range is refused with the code
`request.option` and the option's name as `field`: see [errors.md](errors.md). This page is written by
`python docs/write_options.py` from `editverse_rt/request/options.py`.

| option | flag | value | what it is |
| --- | --- | --- | --- |
"""
TAIL = """
As JSON, inputs are paths and the size is a string; what is as by default is left out:

```json
{"prompt": "<video1> Make it night", "inputs": {"video1": "in.mp4"}, "seed": 7, "size": "128x96", "num_frames": 9}
```

`EditRequest.from_json` reads it and `EditRequest.to_json` writes it.
"""


def page_from_options(options: Sequence[Option] = OPTIONS) -> str:
    """The page as Markdown."""
    rows = [f"| `{o.name}` | `{o.flag} {o.metavar}` | {o.expected} | {o.help} |\n" for o in options]
    return HEAD + "".join(rows) + TAIL


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python docs/write_options.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the page is current")
    args = parser.parse_args(argv)
    if not args.check:
        PAGE.write_text(page_from_options(), "utf-8")
        return 0
    if PAGE.read_text("utf-8") != page_from_options():
        sys.stderr.write(f"{PAGE.name} is not what the table says; run: python docs/write_options.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
