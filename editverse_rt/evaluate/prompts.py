"""What a judge is asked, and how its answer is read.

The paper's prompt is under a licence that does not allow shipping it; it is read from the user's own clone of
the paper's repository, by parsing and never by running it. Our own prompt asks for the same three scores.
"""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from editverse_rt.errors import RequestError

__all__ = [
    "CRITERIA",
    "MAX_SCORE",
    "OWN_PROMPT",
    "Answer",
    "fill_prompt",
    "parse_answer",
    "read_paper_prompt",
]

CRITERIA = ("prompt_following", "edit_quality", "background_consistency")
MAX_SCORE = 3
INSTRUCTION_FIELD = "{editing_prompt}"
PAPER_PROMPT_SHA256 = "780b8f9c5bd986e268800c71b09798aaf2d339ea1c51c519da679318ed7eca1b"

OWN_PROMPT = f"""You compare two pictures. The first is a frame of a video. The second is the same frame \
after the video was edited by this instruction:

{INSTRUCTION_FIELD}

Tags such as <video1> in the instruction name its inputs. Give three whole numbers from 0 to 3.
prompt_following: does the second picture show what the instruction asks for? 3 all of it; 2 nearly all; \
1 a small part; 0 nothing of it, or the opposite.
edit_quality: does what was edited look natural, without blur, seams, distortion or strange textures? \
3 no flaw; 2 small flaws; 1 large flaws; 0 unusable.
background_consistency: is what the instruction does not mention the same in both pictures? 3 the same; \
2 small differences; 1 large differences; 0 another picture.

Answer in four lines and nothing else, with the sum of the three in the last:
prompt_following: <number>
edit_quality: <number>
background_consistency: <number>
total_score: <number>"""


@dataclass(frozen=True)
class Answer:
    """Three scores from 0 to 3 in the order of `CRITERIA`, and the total that the judge stated, if it did."""

    scores: tuple[int, int, int]
    stated_total: int | None

    @property
    def sum_differs(self) -> bool:
        """Whether the stated total is not the sum of the scores."""
        return self.stated_total is not None and self.stated_total != sum(self.scores)


def fill_prompt(prompt: str, instruction: str) -> str:
    """Put the raw instruction, tags included, into a prompt."""
    return prompt.replace(INSTRUCTION_FIELD, instruction)


def parse_answer(text: str) -> Answer | None:
    """Read a judge's answer: a line for each criterion, its name in any case and joined by spaces, _ or -.

    None unless each criterion has exactly one score, a whole number from 0 to 3; a range is not one, nor 2.5.
    """
    scores = [_find_number(name, text, MAX_SCORE) for name in CRITERIA]
    if any(score is None for score in scores):
        return None
    first, second, third = (score for score in scores if score is not None)
    return Answer((first, second, third), _find_number("total", text, MAX_SCORE * len(CRITERIA)))


def _find_number(name: str, text: str, maximum: int) -> int | None:
    words = r"[\s_-]*".join(name.split("_"))
    # Before the name stand at most marks and a number of the list, behind it "score" and a note in brackets.
    before, behind = r"^\W*(?:\d+[.)]\s*)?[\W_]*", r"(?:[\s_-]*score)?[\W_]*?(?:\([^)\n]*\)\W*?)?"
    # Behind the number nothing that makes it another one; "2/3" says out of how many.
    pattern = rf"{before}{words}{behind}[:=][\s*\"'\[]*(\d+)(?!\d|[.,]\d|\s*(?:-|–|to)\s*\d)"
    found = {int(match[1]) for match in re.finditer(pattern, text, re.IGNORECASE | re.MULTILINE)}
    if len(found) != 1:
        return None
    (number,) = found
    return number if number <= maximum else None


def read_paper_prompt(clone: Path) -> str:
    """The prompt in a clone of the paper's repository, with `{editing_prompt}` where the instruction goes.

    Every formatted string of its Python files is looked at; the one with the known hash is taken.
    Raises RequestError where none has it.
    """
    for path in sorted(clone.rglob("*.py")) if clone.is_dir() else []:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                template = _template(node)
                if hashlib.sha256(template.encode()).hexdigest() == PAPER_PROMPT_SHA256:
                    return template
    raise RequestError(
        f"{clone}: found no prompt with the hash {PAPER_PROMPT_SHA256[:16]}",
        expected="a clone of adobe-research/EditVerse at eeca9ce",
        hint="clone it, or use the profile own",
        code="request.judge",
    )


def _template(node: ast.JoinedStr) -> str:
    """A formatted string with the names of its fields in braces."""
    return "".join(
        str(part.value)
        if isinstance(part, ast.Constant)
        else f"{{{ast.unparse(part.value)}}}"
        if isinstance(part, ast.FormattedValue)
        else ""
        for part in node.values
    )
