"""The documentation: examples run, links lead to a place, and quoted errors are ones that the code can raise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from editverse_rt import Pipeline

ROOT = Path(__file__).parents[1]
EXAMPLES = (ROOT / "README.md", ROOT / "docs" / "quickstart.md")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "cpp").glob("*.md")])
PAGES.append(ROOT / "cpp" / "plugin" / "README.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fenced(path: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(path.read_text("utf-8")) if found == language]


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them: its documentation of section links."""
    text = FENCE.sub("", path.read_text("utf-8"))
    anchors: set[str] = set()
    for title in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 1
        anchor = slug
        while anchor in anchors:
            anchor, number = f"{slug}-{number}", number + 1
        anchors.add(anchor)
    return anchors


def run(command: list[str], folder: Path, code: str | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, input=code, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which the paths of the examples lead to the files of the checkout."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


PYTHON = [(path, number) for path in EXAMPLES for number in range(len(fenced(path, "python")))]
SHELL = [(path, number) for path in EXAMPLES for number in range(len(fenced(path, "bash")))]


@pytest.mark.parametrize(("path", "number"), PYTHON, ids=[f"{name_of(p)}-{n}" for p, n in PYTHON])
def test_python_examples_run(path: Path, number: int, folder: Path) -> None:
    code = fenced(path, "python")[number]
    printed = run([sys.executable, "-"], folder, code).splitlines()
    said = re.findall(r"print\(.*\)  # (.+)$", code, re.MULTILINE)
    assert set(said) <= set(printed)


@pytest.mark.parametrize(("path", "number"), SHELL, ids=[f"{name_of(p)}-{n}" for p, n in SHELL])
def test_shell_examples_run(path: Path, number: int, folder: Path) -> None:
    module = f"{sys.executable} -m editverse_rt "
    for line in fenced(path, "bash")[number].splitlines():
        assert line.startswith("editverse-rt ")
        run(["bash", "-c", line.replace("editverse-rt ", module, 1)], folder)
        if output := re.search(r"-o (\S+)", line):
            assert (folder / output[1]).stat().st_size > 0


GENERATE = re.compile(r'editverse-rt generate "(A large (red|yellow) [^"]+)"(.*)')


def generated_prompts() -> list[tuple[str, str]]:
    """(prompt, colour) of what nano is asked for in the documentation and in the command's help."""
    from editverse_rt.commands.edit import GENERATE_EXAMPLES

    texts = [path.read_text("utf-8") for path in EXAMPLES] + [GENERATE_EXAMPLES]
    commands = [line for text in texts for line in text.splitlines() if "editverse-rt generate" in line]
    asked = [GENERATE.search(line) for line in commands if "--bundle" not in line]
    assert len(asked) >= 5
    assert all(asked), f"nano is asked for what it cannot show: {commands}"
    return sorted({(found[1], found[2]) for found in asked if found})


@pytest.mark.parametrize(("prompt", "color"), generated_prompts())
def test_documented_prompts_show_what_they_say(prompt: str, color: str) -> None:
    """A shape of the colour, that covers a part of the picture, before a background that does not have it."""
    with Pipeline.open("nano") as pipeline:
        frames = pipeline(prompt, schedule="fast", num_frames=1, size=(64, 64)).frames
    red, green, blue = (frames[0, ..., channel].astype(int) for channel in range(3))
    has_color = (red > 160) & (blue < 100) & ((green > 140) if color == "yellow" else (green < 100))
    assert 0.05 < has_color.mean() < 0.5
    background = frames[0, -6:, -6:].mean((0, 1))
    assert (background[2] > background[0] + 20) if "blue" in prompt else (background.max() < 110)


def test_the_examples_are_found() -> None:
    assert len(PYTHON) >= 5
    assert len(SHELL) >= 4


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_headings_lead_to_one(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text("utf-8")):
        if not link.startswith("http"):
            target = page if not link else (page.parent / link).resolve()
            assert anchor in anchors_of(target), f"{link}#{anchor}"


def test_quoted_errors_are_ones_of_the_code() -> None:
    """Each heading of the troubleshooting page that quotes an error of this project occurs in the source."""
    sources = [*(ROOT / "editverse_rt").rglob("*.py"), *(ROOT / "cpp" / "src").rglob("*.[ch]pp")]
    # Adjacent string literals become one.
    text = "\n".join(path.read_text("utf-8") for path in sources)
    text = re.sub(r'"\s*\n\s*f?"', "", text)
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8").split("## Opening a bundle")[1]
    quoted = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(quoted) >= 12
    for message in quoted:
        # What stands in capitals, and the names and numbers of a message's values, are placeholders.
        for part in re.split(r"\b[A-Z]+x?[A-Z]*\b|<\w+>|\bvideo1\b|\b1\b", message):
            words = part.strip(" ,;:")
            assert words in text, f"no message has {words!r} (of {message!r})"


def test_every_code_of_an_error_is_documented() -> None:
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", page, re.MULTILINE))
    used = set()
    for path in (ROOT / "editverse_rt").rglob("*.py"):
        used |= set(re.findall(r'\bcode="([a-z_.]+)"', path.read_text("utf-8")))
    for path in (ROOT / "cpp" / "src").rglob("*.*"):
        used |= set(re.findall(r'\bError\(EV_ERROR_[A-Z]+, "([a-z_.]+)"', path.read_text("utf-8")))
    assert len(used) > 40
    assert used - documented == set()


def test_every_page_of_the_navigation_exists() -> None:
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert len(named) >= 20
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_oldest_pins_are_the_lower_bounds() -> None:
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    done = run([sys.executable, str(ROOT / "tests" / "oldest_pins.py")], ROOT).split()
    bounds = [line.split(",")[0].replace(">=", "==") + ".*" for line in listed if ";" not in line]
    assert done == bounds
    assert "numpy==1.26.*" in done
