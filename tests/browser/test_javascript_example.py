"""The JavaScript of docs/serving.md runs as it stands in a browser, on a page of the server."""

from __future__ import annotations

import re

from tests.browser.conftest import ROOT, Open

FENCES = re.findall(
    r"^```javascript\n(.*?)^```$", (ROOT / "docs" / "serving.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
)
# What the example is put into: its `file`, and a console whose lines are given back once the events have ended.
AROUND = """async (bytes) => {
  const file = new File([new Uint8Array(bytes)], "in.mp4", { type: "video/mp4" });
  const lines = [];
  const console = { log: (...words) => lines.push(words) };
  %s
  while (events.readyState !== EventSource.CLOSED) await new Promise((resolve) => setTimeout(resolve, 50));
  return { id: job.id, lines };
}"""


def test_the_example_submits_a_video_and_follows_its_job(open_page: Open) -> None:
    (code,) = FENCES
    page = open_page()
    video = (ROOT / "examples" / "sample.mp4").read_bytes()
    found = page.evaluate(AROUND % code, list(video))
    progress = [line[0] for line in found["lines"]]
    assert found["lines"][-1] == [1, "completed"]
    assert progress == sorted(progress)
    job = page.request.get(f"{page.url.rstrip('/')}/v1/jobs/{found['id']}").json()
    assert job["request"]["prompt"] == "<video1> Make it night"
    assert job["state"] == "completed"
