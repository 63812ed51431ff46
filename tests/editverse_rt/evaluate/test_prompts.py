"""Answers of judges as they come, and the paper's prompt read from a clone without running it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editverse_rt.errors import RequestError
from editverse_rt.evaluate import prompts
from editverse_rt.evaluate.prompts import Answer, fill_prompt, parse_answer, read_paper_prompt

FORMS = {
    "lines": "Prompt Following: 3 - good\nEdit Quality: 2 - soft\nBackground Consistency: 1 - moved\n"
    "Total Score: 6",
    "ours": "prompt_following: 3\nedit_quality: 2\nbackground_consistency: 1\ntotal_score: 6",
    "markdown": "1. **Prompt Following:** 3 - a\n2. **Edit Quality:** 2\n3. **Background Consistency:** 1\n\n"
    "**Total Score:** 6",
    "brackets": "Prompt Following: [3]\nEdit Quality: [2]\nBackground Consistency: [1]\nTotal Score: [6]",
    "out of": "Prompt Following: 3/3\nEdit Quality: 2/3\nBackground Consistency: 1/3\nTotal Score: 6/9",
    "notes": "Prompt Following (Score: 0-3): 3\nEdit Quality (0-3): 2\nBackground Consistency (0-3): 1\n"
    "Total: 6",
    "json": '{\n "prompt_following": 3,\n "edit_quality": 2,\n "background_consistency": 1,\n'
    ' "total_score": 6\n}',
    "talk": "Here it is.\n\nPrompt following = 3\nThe edit quality is fine.\nEdit quality = 2\n"
    "Background consistency = 1\nTotal score = 6. Thank you.",
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_an_answer_is_read_in_each_form_that_models_give(text: str) -> None:
    assert parse_answer(text) == Answer((3, 2, 1), 6)


@pytest.mark.parametrize(
    "score", ["4", "-1", "2.5", "2,5", "2-3", "2 to 3", "1 – 2", "20", "good", "", "three"]
)
def test_what_is_no_score_from_0_to_3_is_no_answer(score: str) -> None:
    assert parse_answer(FORMS["ours"].replace("edit_quality: 2", f"edit_quality: {score}")) is None


def test_an_answer_without_one_of_the_three_or_with_two_of_one_is_none() -> None:
    assert parse_answer("prompt_following: 3\nedit_quality: 2\ntotal_score: 5") is None
    assert parse_answer(FORMS["ours"] + "\nedit_quality: 1") is None
    assert parse_answer(FORMS["ours"] + "\nedit_quality: 2") == Answer((3, 2, 1), 6)
    assert parse_answer("I cannot help with that.") is None


def test_a_total_that_is_not_the_sum_is_noted_and_one_that_is_absent_is_not() -> None:
    wrong = parse_answer(FORMS["ours"].replace("total_score: 6", "total_score: 8"))
    assert wrong == Answer((3, 2, 1), 8)
    assert wrong.sum_differs
    silent = parse_answer(FORMS["ours"].replace("total_score: 6", ""))
    assert silent == Answer((3, 2, 1), None)
    assert not silent.sum_differs


@given(st.text(max_size=300))
def test_no_text_breaks_the_parser(text: str) -> None:
    found = parse_answer(text)
    assert found is None or all(0 <= score <= 3 for score in found.scores)


def test_our_prompt_takes_the_raw_instruction_and_is_no_answer_itself() -> None:
    text = fill_prompt(prompts.OWN_PROMPT, "<video1> Make {it} night %s")
    assert "\n<video1> Make {it} night %s\n" in text
    assert parse_answer(text) is None


def test_the_papers_prompt_is_found_by_its_hash_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "Judge {editing_prompt} now.\nGive scores."
    monkeypatch.setattr(prompts, "PAPER_PROMPT_SHA256", hashlib.sha256(template.encode()).hexdigest())
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "other.py").write_text("x = f'Judge {editing_prompt} later.'")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "vlm.py").write_text(
        "raise SystemExit('it was run')\ndef ask(editing_prompt):\n"
        "    return (f'Judge {editing_prompt} now.\\n\\\nGive scores.')\n"
    )
    assert read_paper_prompt(tmp_path) == template


def test_a_changed_prompt_or_no_clone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vlm.py").write_text("x = f'You are {editing_prompt}'")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(RequestError, match="found no prompt with the hash"):
            read_paper_prompt(folder)
