"""The files of the page as they are shipped: complete, without inline code, and answered as browsers need them."""

from __future__ import annotations

import asyncio
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the server is an extra")

import editverse_rt.serve.page as page

FILES = sorted(Path(page.FOLDER).iterdir())


class Elements(HTMLParser):
    """All elements of a document, with their attributes; the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.code = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style"):
            self.code += data.strip()


@pytest.fixture(scope="module")
def document() -> Elements:
    elements = Elements()
    elements.feed((page.FOLDER / "index.html").read_text("utf-8"))
    return elements


def test_the_policy_allows_all_of_the_document(document: Elements) -> None:
    assert document.code == ""
    for tag, attributes in document.found:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag


def test_every_file_is_there_and_used(document: Elements) -> None:
    texts = {path.name: path.read_text("utf-8") for path in FILES}
    named = {name for text in texts.values() for name in re.findall(r'"/static/([\w.]+)"', text)}
    assert named | {"index.html"} == set(texts)
    for tag, attributes in document.found:
        for address in (attributes.get("src"), attributes.get("href")):
            assert address is None or address.startswith(("/static/", "#", "data:image/svg+xml,")), tag
    for name, text in texts.items():
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert len(text.splitlines()) <= 150, name


def test_scripts_name_elements_that_are_there(document: Elements) -> None:
    ids = [attributes["id"] for _, attributes in document.found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    used = {
        name for path in FILES for name in re.findall(r'(?:\$|onClick)\("([\w-]+)"', path.read_text("utf-8"))
    }
    assert used - set(ids) == set()
    fields = [
        (tag, attributes) for tag, attributes in document.found if tag in ("label", "div", "section", "p")
    ]
    for tag, attributes in fields:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            assert attributes.get(name) in (None, *ids), tag


def get(name: str, *headers: tuple[bytes, bytes]) -> tuple[int, dict[str, str]]:
    scope = {"type": "http", "method": "GET", "path": f"/{name}", "headers": list(headers)}
    answer = asyncio.run(page.PageFiles().get_response(name, scope))
    return answer.status_code, dict(answer.headers)


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_types_do_not_depend_on_the_machine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimetypes.guess_type", lambda *args, **options: ("text/plain", None))
    status, headers = get(path.name)
    expected = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}[path.suffix]
    assert status == 200
    assert headers["content-type"] == f"{expected}; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert get(path.name, (b"if-none-match", headers["etag"].encode()))[0] == 304
    assert get(path.name, (b"if-none-match", b'"another"'))[0] == 200


@pytest.mark.parametrize("name", ["../page.py", "../../errors.py", "nothing.js", "a\0.js"])
def test_nothing_else_is_served(name: str) -> None:
    from starlette.exceptions import HTTPException

    with pytest.raises(HTTPException) as error:
        get(name)
    assert error.value.status_code == 404
