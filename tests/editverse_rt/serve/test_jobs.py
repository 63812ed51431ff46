"""The native interface from outside: a job's life, its files and events, cancelling, idempotency, references."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live_server import LiveServer

from editverse_rt import media
from editverse_rt.pipeline import Pipeline

LONG = {"prompt": "A red circle", "num_inference_steps": 3000}
FAST = {"prompt": "A red circle", "schedule": "fast", "num_frames": 5}


def submit(client: httpx.Client, request: dict[str, Any], video: bytes | None = None, **fields: str) -> Any:
    if video is None:
        answer = client.post("/v1/jobs", json={"request": request, **fields})
    else:
        answer = client.post(
            "/v1/jobs", data={"request": json.dumps(request), **fields}, files={"video1": ("in.mp4", video)}
        )
    assert answer.status_code == 201, answer.text
    return answer.json()


def wait(client: httpx.Client, job: str, *states: str) -> Any:
    wanted = states or ("completed", "failed", "cancelled")
    end = time.monotonic() + 90
    while time.monotonic() < end:
        shown = client.get(f"/v1/jobs/{job}").json()
        if shown["state"] in wanted:
            return shown
        time.sleep(0.03)
    raise AssertionError(shown)


def wait_for_step(client: httpx.Client, job: str) -> Any:
    end = time.monotonic() + 60
    while (shown := client.get(f"/v1/jobs/{job}").json())["step"] == 0:
        assert time.monotonic() < end, shown
        time.sleep(0.02)
    return shown


def test_a_result_is_that_of_the_same_request_without_a_server(
    client: httpx.Client, video: bytes, tmp_path: Path
) -> None:
    request = {"prompt": "Make it night", "schedule": "balanced", "seed": 3}
    job = submit(client, request, video)
    assert job["request"]["prompt"] == "<video1> Make it night"
    assert job["request"]["inputs"]["video1"]["sha256"] == hashlib.sha256(video).hexdigest()
    shown = wait(client, job["id"])
    assert shown["state"] == "completed", shown
    (tmp_path / "in.mp4").write_bytes(video)
    with Pipeline.open("nano", num_threads=1) as pipeline:
        result = pipeline("<video1> Make it night", schedule="balanced", seed=3, video1=tmp_path / "in.mp4")
    result.save(tmp_path / "out.mp4")
    content = client.get(f"/v1/jobs/{job['id']}/content")
    (tmp_path / "got.mp4").write_bytes(content.content)
    shape = {"num_frames": 9, "height_px": 64, "width_px": 64}
    got = media.read_clip(tmp_path / "got.mp4", **shape).frames.astype(int)
    # H.264 in between, at a quality that differs from the frames by about 1 level.
    assert np.abs(got - result.frames).mean() < 3
    assert content.headers["content-type"] == "video/mp4"
    assert hashlib.sha256(content.content).hexdigest() == shown["result"]["sha256"]
    assert shown["result"]["num_frames"] == len(result.frames)
    (tmp_path / "source.mp4").write_bytes(
        client.get(f"/v1/jobs/{job['id']}/content", params={"variant": "source"}).content
    )
    source, made = media.probe(tmp_path / "source.mp4"), media.probe(tmp_path / "out.mp4")
    assert (source.width_px, source.height_px, source.num_frames) == (
        made.width_px, made.height_px, made.num_frames,
    )  # fmt: skip
    recipe = client.get(f"/v1/jobs/{job['id']}/recipe").json()
    assert recipe["request"] == shown["request"]


def test_a_range_is_a_part_of_the_file(client: httpx.Client) -> None:
    job = submit(client, FAST)
    wait(client, job["id"])
    path = f"/v1/jobs/{job['id']}/content"
    whole = client.get(path).content
    for text, part in (("bytes=10-19", whole[10:20]), ("bytes=-5", whole[-5:]), ("bytes=7-", whole[7:])):
        answer = client.get(path, headers={"Range": text})
        assert (answer.status_code, answer.content) == (206, part)
    for text, status in ((f"bytes={len(whole)}-", 416), ("bytes=9-0", 400), ("bytes=x", 400)):
        for where in (path, "/static/app.js"):
            answer = client.get(where, headers={"Range": text.replace(str(len(whole)), "9999999")})
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, "serve.range"), text
            assert status == 400 or answer.headers["content-range"].startswith("bytes */")


def test_events_tell_progress_that_only_grows_and_end_with_the_job(client: httpx.Client) -> None:
    job = submit(client, {**FAST, "num_inference_steps": 40})
    shown = []
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        shown = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert shown[-1]["state"] == "completed"
    progress = [one["progress"] for one in shown]
    assert progress == sorted(progress)
    assert progress[-1] == 1
    assert any(0 < one["step"] < 40 and one["eta_s"] is not None for one in shown)


def test_cancelling_frees_the_device_and_leaves_no_file(client: httpx.Client) -> None:
    job = submit(client, LONG)
    wait_for_step(client, job["id"])
    shown = client.post(f"/v1/jobs/{job['id']}/cancel").json()
    assert shown["state"] == "cancelled"
    assert client.get(f"/v1/jobs/{job['id']}/content").status_code == 409
    # Again, and of one that is over: nothing changes.
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    assert wait(client, submit(client, FAST)["id"])["state"] == "completed"


def test_a_job_that_waits_is_cancelled_at_once_and_is_told_its_place(client: httpx.Client) -> None:
    jobs = [submit(client, LONG) for _ in range(8)]
    shown = client.get(f"/v1/jobs/{jobs[-1]['id']}").json()
    assert shown["state"] == "queued"
    assert shown["queue_position"] >= 1
    assert client.post(f"/v1/jobs/{jobs[-1]['id']}/cancel").json()["state"] == "cancelled"


def test_a_deleted_job_is_gone_and_does_not_come_back(client: httpx.Client, server: LiveServer) -> None:
    job = submit(client, LONG)
    wait_for_step(client, job["id"])
    answer = client.delete(f"/v1/jobs/{job['id']}").json()
    assert answer == {"id": job["id"], "object": "job.deleted", "deleted": True}
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert wait(client, submit(client, FAST)["id"])["state"] == "completed"
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 404


def test_the_same_key_and_body_are_one_job(client: httpx.Client, video: bytes) -> None:
    headers = {"Idempotency-Key": "one-of-these"}
    answers: list[httpx.Response] = []

    def send(seed: int) -> None:
        answers.append(
            client.post(
                "/v1/jobs",
                data={"request": json.dumps({**FAST, "prompt": "Make it night", "seed": seed})},
                files={"video1": ("in.mp4", video)},
                headers=headers,
            )
        )

    threads = [threading.Thread(target=send, args=(1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    send(2)
    assert answers[-1].status_code == 409
    client.delete(f"/v1/jobs/{answers[0].json()['id']}")
    send(1)
    assert answers[-1].status_code == 410


def test_a_result_becomes_an_input_and_outlives_its_job(client: httpx.Client) -> None:
    first = submit(client, FAST)
    wait(client, first["id"])
    sha256 = client.get(f"/v1/jobs/{first['id']}").json()["result"]["sha256"]
    second = submit(client, {**FAST, "prompt": "Make it night", "inputs": {"video1": {"job": first["id"]}}})
    client.delete(f"/v1/jobs/{first['id']}")
    assert second["request"]["inputs"]["video1"]["sha256"] == sha256
    assert wait(client, second["id"])["state"] == "completed"


def test_a_picture_gives_a_picture(client: httpx.Client, picture: bytes) -> None:
    answer = client.post(
        "/v1/jobs",
        data={"request": json.dumps({"prompt": "Make it night", "schedule": "fast"})},
        files={"image1": ("a.png", picture)},
    )
    job = wait(client, answer.json()["id"])
    assert (job["format"], job["result"]["type"]) == ("png", "image/png")
    content = client.get(f"/v1/jobs/{job['id']}/content")
    assert content.content[:4] == b"\x89PNG"


def test_a_dry_run_leaves_nothing_behind(client: httpx.Client, video: bytes) -> None:
    before = client.get("/v1/jobs").json()["data"]
    answer = client.post(
        "/v1/jobs",
        params={"dry_run": "1"},
        data={"request": json.dumps({"prompt": "Make it night"})},
        files={"video1": ("in.mp4", video)},
    )
    assert answer.status_code == 200
    estimate = answer.json()
    assert (estimate["size"], estimate["num_frames"], estimate["schedule"]) == ("64x64", 9, "paper")
    assert estimate["memory_bytes"] > 0
    assert client.get("/v1/jobs").json()["data"] == before


def test_the_list_goes_through_all_jobs(client: httpx.Client) -> None:
    ids = [submit(client, FAST)["id"] for _ in range(3)]
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in first["data"]] == ids[:0:-1]
    assert first["has_more"]
    second = client.get("/v1/jobs", params={"limit": 1, "after": first["last_id"]}).json()
    assert second["data"][0]["id"] == ids[0]


def test_models_say_what_works(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "nano"
    assert [one["name"] for one in model["schedules"] if one["default"]] == ["paper"]
    assert model["suggestions"]
    for suggestion in model["suggestions"]:
        for name in suggestion["inputs"]:
            assert f"<{name}>" in suggestion["prompt"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/openapi.json"])
def test_every_answer_has_the_headers_that_browsers_obey(client: httpx.Client, path: str) -> None:
    answer = client.get(path, headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_metrics_have_no_label_that_grows(client: httpx.Client) -> None:
    wait(client, submit(client, FAST)["id"])
    for number in range(3):
        client.get(f"/nothing/{number}")
    text = client.get("/metrics").text
    assert 'route="/v1/jobs/{id}"' in text
    assert "job_" not in text.replace("editverse_job_", "")
    assert "/nothing" not in text
    assert 'editverse_worker_up{device="cpu"} 1.0' in text
