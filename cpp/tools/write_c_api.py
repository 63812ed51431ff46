"""Writes docs/c_api.md from the C header, which is the one home of what it says.

python cpp/tools/write_c_api.py          # cpp/tests/test_header.py checks that the file is up to date
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "cpp" / "include" / "editverse_rt.h"
DOCUMENT = ROOT / "docs" / "c_api.md"

_COMMENT = re.compile(r"/\*(.*?)\*/", re.DOTALL)
_SECTION = re.compile(r"^/\* --- (.+?) -+ \*/$")
_FUNCTION = re.compile(r"\b(ev_[a-z_]+)\(")


def comment_text(comment: str) -> str:
    """The words of a C comment, paragraphs kept, in which names of the interface stand as code."""
    lines = [re.sub(r"^\s*\*? ?", "", line).rstrip() for line in comment.strip().splitlines()]
    return "\n".join(lines).strip()


def read_blocks(header: str) -> list[tuple[str, str]]:
    """(comment, declarations) for each block of the header, between two empty lines outside braces."""
    body = header[header.index("#define EV_VERSION_MAJOR") : header.index("#ifdef __cplusplus\n}")]
    blocks: list[list[str]] = [[]]
    depth = 0
    in_comment = False
    for line in body.splitlines():
        in_comment = (in_comment or "/*" in line) and "*/" not in line
        depth += 0 if in_comment else line.count("{") - line.count("}")
        if not line.strip() and depth == 0 and not in_comment:
            blocks.append([])
        else:
            blocks[-1].append(line)
    pairs = []
    for block in blocks:
        text = "\n".join(block).strip()
        leading = re.match(r"/\*.*?\*/", text, re.DOTALL)
        if leading is None:
            pairs.append(("", text))
        else:
            pairs.append((leading[0], text[leading.end() :].strip()))
    return [pair for pair in pairs if any(pair)]


def title_of(declaration: str) -> str:
    """The names that a block declares."""
    functions = _FUNCTION.findall(_COMMENT.sub("", declaration))
    callback = re.match(r"typedef int \(\*(\w+)\)", declaration)
    if callback:
        return f"`{callback[1]}`"
    if declaration.startswith("EV_API"):
        return ", ".join(f"`{name}`" for name in functions)
    struct = re.match(r"typedef struct (\w+)", declaration)
    if struct:
        return f"`{struct[1]}`"
    return "Codes" if declaration.startswith("enum") else "Constants"


def make_document(header: str) -> str:
    """The Markdown of docs/c_api.md."""
    opening = comment_text(_COMMENT.findall(header)[0])
    rules = opening[opening.index("Rules that hold everywhere:") :].split("\n", 1)[1].strip()
    lines = [
        "# The C interface",
        "<!-- Written by cpp/tools/write_c_api.py from cpp/include/editverse_rt.h; change the header. -->",
        "How to build and use the library is in [cpp/README.md](../cpp/README.md). `editverse_rt.hpp` wraps",
        "these functions for C++ in objects that free themselves and exceptions.",
        "",
        "## Rules that hold everywhere",
    ]
    for rule in re.split(r"\n(?=[A-Z][a-z]+\. )", rules):
        name, words = rule.split(". ", 1)
        lines.append(f"- **{name}.** {' '.join(words.split())}")
    lines += ["", "## Types and constants"]
    for comment, declaration in read_blocks(header):
        section = _SECTION.match(comment)
        if section and not declaration:
            lines += ["", f"## {section[1][0].upper()}{section[1][1:]}"]
            continue
        lines += ["", f"### {title_of(declaration)}"]
        if comment:
            lines.append(comment_text(comment[2:-2]))
        lines += ["```c", declaration, "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # takes --help and nothing else
    DOCUMENT.write_text(make_document(HEADER.read_text("utf-8")), encoding="utf-8")
