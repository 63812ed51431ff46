"""A server with one key, Chromium, and pages of it that watch what the page does."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
KEY = "the key of these tests"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Machines may be slow; nothing here measures time.
PATIENCE_MS = 60_000
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# One job runs, and two wait: the third that waits is refused.
OPTIONS = [
    "--backend",
    "ort-cpu",
    "--slots",
    "1",
    "--max-queued-per-key",
    "2",
    "--drain-s",
    "0",
    "--port",
    "0",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of its own process."""
    folder = tmp_path_factory.mktemp("server")
    keys = folder / "keys.txt"
    keys.touch(0o600)
    keys.write_text(f"tester:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    command = [sys.executable, "-m", "editverse_rt", "serve", *OPTIONS, "--data", str(folder / "jobs")]
    process = subprocess.Popen(
        [*command, "--api-keys", str(keys)], cwd=ROOT, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    lines = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if '"listening"' in line:
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(lines))
        # Else the pipe fills up, and the server waits for a reader.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield f"http://127.0.0.1:{json.loads(lines[-1])['port']}"
    finally:
        process.terminate()
        process.wait(30)


# Playwright keeps an event loop running in this thread, in which other tests could not run theirs: so it ends here.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium: the system's, or Playwright's own. `make browser` installs it."""
    expect.set_options(timeout=PATIENCE_MS)
    found = next((path for path in map(shutil.which, BROWSERS) if path is not None), None)
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        except Exception as error:
            pytest.fail(f"Chromium does not start; run `make browser` ({error})")
        yield chromium
        chromium.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(server: str, browser: Browser) -> Iterator[Open]:
    """Opens the page in a context of its own. After the test: no error, and nothing was asked of another host."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def open_one(address: str = "/", *, signed_in: bool = True, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        if signed_in:
            assert context.request.post(f"{server}/session", data={"key": KEY}).ok
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: "Security" in message.text and faults.append(message.text))
        own = (server, "blob:" + server, "data:")
        page.on("request", lambda request: request.url.startswith(own) or faults.append(request.url))
        page.goto(server + address)
        page.locator("#work" if signed_in else "#login").wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(autouse=True)
def _delete_all_jobs(server: str, browser: Browser) -> Iterator[None]:
    """No test finds jobs of another, or waits for them."""
    yield
    context = browser.new_context()
    context.request.post(f"{server}/session", data={"key": KEY})
    for job in reversed(context.request.get(f"{server}/v1/jobs?limit=50").json()["data"]):
        assert context.request.delete(f"{server}/v1/jobs/{job['id']}").ok
    context.close()
