"""The page of the server in a real browser: an edit from the upload to the comparison, and all that can go wrong."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.conftest import KEY, PATIENCE_MS, ROOT, Open

SAMPLE = ROOT / "examples" / "sample.mp4"
PICTURE = ROOT / "docs" / "images" / "page.png"


def pixels(where: Locator) -> np.ndarray:
    """What the browser shows of an element, [H, W, 3] of 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(where.screenshot())).convert("RGB"), np.float64)


def submit(page: Page, prompt: str, *files: Path | dict, schedule: str = "fast") -> None:
    page.locator("#files").set_input_files(list(files))
    page.locator("#instruction").fill(prompt)
    page.locator(f"#schedules input[value={schedule}]").check()
    page.locator("#submit").click()


def submit_long(page: Page) -> None:
    """A job that takes minutes unless it is cancelled."""
    page.locator("summary").click()
    page.locator("#num_inference_steps").fill("1000")
    submit(page, "<video1> Make it night", SAMPLE, schedule="paper")


def job_of(page: Page) -> dict:
    return page.request.get(page.url.replace("/#job=", "/v1/jobs/")).json()


def wait_for_videos(page: Page, holds: str) -> None:
    """Wait until a JavaScript function of the two videos is true. Playwright's own way of waiting needs eval."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(f"({holds})(...document.querySelectorAll('#stage video'))"):
        assert time.monotonic() < end, holds
        page.wait_for_timeout(50)


def check_accessibility(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_edit_compare_and_go_on(open_page: Open, tmp_path: Path) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.locator("#files").set_input_files(SAMPLE)
    page.get_by_role("button", name="Insert <video1> into the instruction").click()
    page.keyboard.type("Make it night")
    assert page.locator("#instruction").input_value() == "<video1> Make it night"
    page.get_by_role("radio", name="fast").check()
    page.locator("#submit").click()
    expect(page.locator("#view-title")).to_be_focused()
    expect(page.locator("#status")).to_have_text("The result is there.")
    job = job_of(page)
    assert job["state"] == "completed"
    assert job["request"]["schedule"] == "fast"

    # The estimate of a dry run stands at each schedule, now that the server knows its speed.
    expect(page.locator("#schedules .cost").nth(2)).to_have_text(re.compile(r"^2 steps, about \d+ s$"))

    # Left of the divider is the source, right of it the result: darker, and not the source.
    stage, wipe = page.locator("#stage"), page.locator("#wipe")
    wait_for_videos(page, "(a, b) => a.readyState >= 2 && b.readyState >= 2")
    page.get_by_role("button", name="Pause").click()
    wait_for_videos(page, "(a, b) => a.paused && b.paused && Math.abs(a.currentTime - b.currentTime) < 0.05")
    wait_for_videos(page, "(a, b) => !a.seeking && !b.seeking")
    wipe.focus()
    page.keyboard.press("Home")
    result = pixels(stage)
    page.keyboard.press("End")
    source = pixels(stage)
    assert source.mean() - result.mean() > 40
    assert wipe.get_attribute("aria-valuetext") == "100 % source, 0 % result"
    page.keyboard.press("ArrowLeft")
    assert wipe.input_value() == "99"
    wipe.fill("50")
    half = pixels(stage)
    width = half.shape[1]
    left, right = slice(8, width // 2 - 8), slice(width // 2 + 8, -8)
    assert np.abs(half[:, left] - source[:, left]).mean() < 1
    assert np.abs(half[:, right] - result[:, right]).mean() < 1
    check_accessibility(page)
    page.mouse.move(0, 0)
    page.evaluate(
        "document.activeElement.blur(); document.documentElement.style.scrollBehavior = 'auto'; scrollTo(0, 0)"
    )
    page.wait_for_timeout(200)
    page.screenshot(path=tmp_path / "page.png")
    take_picture(tmp_path / "page.png")

    with page.expect_download() as download:
        page.locator("#download").click()
    saved = Path(download.value.path()).read_bytes()
    assert hashlib.sha256(saved).hexdigest() == job["result"]["sha256"]
    page.locator("#recipe").click()
    expect(page.locator("#recipe")).to_have_text("Copied")
    recipe = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert recipe["request"]["prompt"] == "<video1> Make it night"
    assert recipe["request"]["seed"] == job["request"]["seed"]

    # The result becomes an input beside the upload; with the same settings as before, the result is the same.
    page.locator("#use").click()
    expect(page.locator("#inputs .tag")).to_have_text(["<video1>", "<video2>"])
    page.reload()
    expect(page.locator("#stage video")).to_have_count(2)
    page.locator("#again").click()
    expect(page.locator("#inputs .tag")).to_have_text(["<video1>"])
    assert page.locator("#seed").input_value() == str(job["request"]["seed"])
    page.locator("#remove").click()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#history a")).to_have_count(0)


def take_picture(shot: Path) -> None:
    """Keep the README's picture, with as few colours as look alike; written where EDITVERSE_WRITE_PICTURE is set."""
    small = io.BytesIO()
    Image.open(shot).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    assert len(small.getvalue()) < 150_000
    if os.environ.get("EDITVERSE_WRITE_PICTURE") == "1":
        PICTURE.write_bytes(small.getvalue())
    assert Image.open(PICTURE).size == Image.open(shot).size


def test_the_form_is_shown_with_its_models(open_page: Open) -> None:
    """An input that is put in before they are there would find none."""
    page = open_page()

    def answer_late(route: Route) -> None:
        assert page.locator("#work").is_hidden()
        route.continue_()

    page.route("**/v1/models", answer_late)
    page.reload()
    page.locator("#work").wait_for()
    assert page.locator("#schedules input").count() > 1


def test_pictures_and_suggestions(open_page: Open) -> None:
    page = open_page()
    assert page.locator("#submit").inner_text() == "Generate"
    data = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), (40, 90, 200), np.uint8)).save(data, "PNG")
    encoded = base64.b64encode(data.getvalue()).decode()
    # Pasted, and dropped.
    for event, field in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """([type, field, encoded]) => {
                const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
                const data = new DataTransfer();
                data.items.add(new File([bytes], "blue.png", { type: "image/png" }));
                const Kind = type === "paste" ? ClipboardEvent : DragEvent;
                document.dispatchEvent(new Kind(type, { [field]: data, cancelable: true }));
            }""",
            [event, field, encoded],
        )
    expect(page.locator("#inputs .tag")).to_have_text(["<image1>", "<image2>"])
    assert page.locator("#submit").inner_text() == "Edit"
    page.get_by_role("button", name="Remove image2").click()
    # Suggestions are the bundle's, and name the inputs that are there; the first of them is a request that works.
    models = page.request.get(page.url + "v1/models").json()["data"]
    known = {one["prompt"] for one in models[0]["suggestions"] if one["inputs"] == ["image1"]}
    chips = page.locator("#suggestions li:visible")
    expect(chips).to_have_count(4)
    page.locator("#more").click()
    expect(chips).to_have_count(len(known))
    page.locator("#suggestions button", has_text="pixelated").click()
    assert page.locator("#instruction").input_value() in known
    page.locator("#schedules input[value=fast]").check()
    page.locator("#submit").click()
    expect(page.locator("#stage img")).to_have_count(2)
    expect(page.locator("#play")).to_be_hidden()
    expect(page.locator("#wipe")).to_be_visible()
    assert job_of(page)["result"]["type"] == "image/png"
    check_accessibility(page)


def test_reload_in_mid_job_then_polling_then_cancel(open_page: Open) -> None:
    page = open_page()
    submit_long(page)
    expect(page.locator("#bar-text")).to_have_text(re.compile(r"^Denoising, step \d+ of 1000"))
    assert re.fullmatch(r"\d+ % - EditVerse", page.title())
    address = page.url
    page.context.route("**/events", lambda route: route.abort())
    page.reload()
    assert page.url == address
    texts = []
    for _ in range(2):
        expect(page.locator("#bar-text")).not_to_have_text(texts[-1] if texts else "")
        expect(page.locator("#bar-text")).to_have_text(
            re.compile(r"^Denoising, step \d+ of 1000, about \d+ \w+ left$")
        )
        texts.append(page.locator("#bar-text").inner_text())
    check_accessibility(page)
    page.locator("#cancel").click()
    expect(page.locator("#error")).to_be_focused()
    expect(page.locator("#error code")).to_have_text("cancelled")
    expect(page.locator("#running")).to_be_hidden()
    assert job_of(page)["state"] == "cancelled"


def test_a_refused_request_says_why(open_page: Open) -> None:
    page = open_page()
    submit(page, "<video2> Make it night", SAMPLE)
    expect(page.locator("#error")).to_be_focused()
    expect(page.locator("#error")).to_contain_text("request.tag")
    expect(page.locator("#error")).to_contain_text("video2")
    check_accessibility(page)
    page.locator("#error-close").click()
    expect(page.locator("#error")).to_be_hidden()
    page.get_by_role("button", name="Remove video1").click()
    submit(
        page, "<video1> Make it night", {"name": "broken.mp4", "mimeType": "video/mp4", "buffer": b"no video"}
    )
    expect(page.locator("#error")).to_be_focused()
    expect(page.locator("#error code")).to_have_text(re.compile(r"^media\."))
    # The instruction is still there to be corrected.
    assert page.locator("#instruction").input_value() == "<video1> Make it night"
    page.locator("#files").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"})
    expect(page.locator("#error code")).to_have_text("page.file")
    # A job that was never there.
    page.goto(page.url.split("#")[0] + "#job=job_000000000000000000000000")
    expect(page.locator("#error-parts code")).to_have_text(re.compile(r"^serve\."))


def test_a_full_queue_says_when_to_come_back(open_page: Open) -> None:
    page = open_page()
    submit_long(page)
    for waiting in range(2):
        expect(page.locator("#history a")).to_have_count(waiting + 1)
        page.locator("#submit").click()
    expect(page.locator("#bar-text")).to_have_text(re.compile(r"^In the queue, 1 ahead"))
    page.locator("#submit").click()
    expect(page.locator("#error")).to_be_focused()
    expect(page.locator("#error")).to_contain_text("queue_full")
    expect(page.locator("#error")).to_contain_text(re.compile(r"Try again in\s*\d+ (s|min|h)"))


def test_sign_in_and_out(open_page: Open) -> None:
    page = open_page(signed_in=False)
    expect(page.locator("#work")).to_be_hidden()
    expect(page.locator("#key")).to_be_focused()
    check_accessibility(page)
    page.locator("#key").fill("another key")
    page.keyboard.press("Enter")
    expect(page.locator("#login-error")).to_have_text("This key is not known to the server.")
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#instruction")).to_be_focused()
    assert page.evaluate("document.cookie") == "", "scripts can read the session"
    page.locator("#sign-out").click()
    page.locator("#login").wait_for()


def test_an_upload_can_be_watched_and_stopped(open_page: Open) -> None:
    page = open_page()
    page.locator("#instruction").fill("<video1> Make it night")
    clip = {"name": "long.mp4", "mimeType": "video/mp4", "buffer": SAMPLE.read_bytes() + bytes(2_000_000)}
    page.locator("#files").set_input_files(clip)
    line = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 100_000}
    line.send("Network.emulateNetworkConditions", slow)
    page.locator("#submit").click()
    expect(page.locator("#upload-text")).to_have_text(re.compile(r"^(\d+ kB|[\d.]+ MB) of 2\.\d MB$"))
    check_accessibility(page)
    page.locator("#stop-upload").click()
    expect(page.locator("#upload")).to_be_hidden()
    expect(page.locator("#submit")).to_be_enabled()
    expect(page.locator("#status")).to_have_text("The upload was stopped.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_windows_and_both_themes(open_page: Open, scheme: str) -> None:
    page = open_page(viewport={"width": 320, "height": 640}, color_scheme=scheme, reduced_motion="reduce")
    check_accessibility(page)
    page.locator("summary").click()
    submit(page, "<video1> Make it night", SAMPLE)
    expect(page.locator("#stage video")).to_have_count(2)
    # Nothing moves by itself where the reader asks for less motion.
    assert page.evaluate("[...document.querySelectorAll('video')].every((video) => video.paused)")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    check_accessibility(page)


def test_files_are_served_for_browsers(open_page: Open, server: str) -> None:
    page = open_page()
    names = ["/", *(f"/static/{path.name}" for path in (ROOT / "editverse_rt/serve/static").iterdir())]
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "/": "text/html"}
    for name in names:
        answer = page.request.get(server + name)
        headers = answer.headers
        assert answer.status == 200
        assert headers["content-type"] == f"{kinds[name.rsplit('.', 1)[-1]]}; charset=utf-8"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-cache"
        assert "script-src 'self';" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        again = page.request.get(server + name, headers={"If-None-Match": headers["etag"]})
        assert again.status == 304
    assert page.request.get(server + "/static/../app.py").status == 404


def test_history_goes_on_and_shows_prompts_as_text(open_page: Open) -> None:
    """With made up answers: a real history of two pages would take a job for each entry."""
    page = open_page()
    prompt = "<img src=x onerror=alert(1)><b>bold</b>"

    def answer(number: int) -> dict:
        request = {"prompt": f"{prompt} {number}"}
        parts = {"request": request, "state": "cancelled", "result": None, "error": None, "notices": []}
        return {"id": f"job_{number}", "created_at": 1_700_000_000 + number, "model": "nano", **parts}

    def list_jobs(route: Route) -> None:
        is_first = "after=" not in route.request.url
        assert is_first or "after=job_12" in route.request.url
        numbers = range(1, 13) if is_first else range(13, 15)
        route.fulfill(json={"data": [answer(number) for number in numbers], "has_more": is_first})

    page.route("**/v1/jobs?limit=*", list_jobs)
    page.route("**/v1/jobs/job_14", lambda route: route.fulfill(json=answer(14)))
    page.reload()
    expect(page.locator("#history a")).to_have_count(12)
    page.locator("#older").click()
    expect(page.locator("#history a")).to_have_count(14)
    expect(page.locator("#older")).to_be_hidden()
    page.locator("#history a").last.click()
    expect(page.locator("#job-prompt")).to_have_text(f"{prompt} 14")
    expect(page.locator("#history a").last).to_have_attribute("aria-current", "true")
    assert page.locator("main :is(b, img)").count() == 0


def test_many_events_are_spoken_seldom(open_page: Open) -> None:
    """With made up events, fifty at once: all are shown, and a screen reader is told of the phases."""
    page = open_page()
    job = {
        "id": "job_1", "model": "nano", "state": "queued", "phase": None, "step": 0, "num_steps": 50, "progress": 0,
        "queue_position": 3, "eta_s": 200, "request": {"prompt": "a"}, "result": None, "error": None, "notices": [],
    }  # fmt: skip
    running = {**job, "state": "in_progress", "phase": "denoise", "queue_position": None}
    steps = [{**running, "step": step, "progress": step / 50, "eta_s": 50 - step} for step in range(50)]
    events = "".join(f"event: job\ndata: {json.dumps(one)}\n\n" for one in [job, *steps])
    page.route("**/v1/jobs/job_1", lambda route: route.fulfill(json=job))
    page.route("**/v1/jobs/job_1/events", lambda route: None)
    page.goto(page.url + "#job=job_1")
    expect(page.locator("#bar-text")).to_have_text("In the queue, 3 ahead, about 3 min left")
    page.evaluate(
        """() => {
            document.spoken = [];
            new MutationObserver(() => document.spoken.push(document.querySelector("#status").textContent))
                .observe(document.querySelector("#status"), { childList: true });
        }"""
    )
    page.unroute("**/v1/jobs/job_1/events")
    page.route("**/v1/jobs/job_1", lambda route: route.fulfill(json=steps[-1]))
    page.route(
        "**/v1/jobs/job_1/events", lambda route: route.fulfill(content_type="text/event-stream", body=events)
    )
    page.evaluate("location.hash = ''")
    page.evaluate("location.hash = 'job=job_1'")
    # The job itself is at the last step already; the events come after it.
    end = time.monotonic() + PATIENCE_MS / 1000
    while len(page.evaluate("document.spoken")) < 3:
        assert time.monotonic() < end
        page.wait_for_timeout(50)
    expect(page.locator("#bar-text")).to_have_text("Denoising, step 50 of 50, about 1 s left")
    spoken = page.evaluate("document.spoken")
    # That it runs, when the job is opened; then what the events say: it waits, and the first of fifty steps.
    assert spoken[1:3] == [
        "In the queue, 3 ahead, about 3 min left",
        "Denoising, step 1 of 50, about 50 s left",
    ]
    assert len(spoken) <= 4
